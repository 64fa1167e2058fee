"""Small networks of seeded random weights, which together have layers of every kind.

A digest is taken of what each recipe makes of them (`digests.py`), so they stay as they are: a new kind of layer is a
new network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers by their names, and the function that computes with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        """Run the function."""
        return self.run(self, x)


def _tied() -> nn.Module:
    net = Net(
        lambda n, x: n.c(n.c(n.b(F.relu(n.a(x)))).tanh()), a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6)
    )
    net.get_submodule("b").weight = net.get_submodule("a").weight
    return net


def _residual(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.bn(net.stem(x)))
    x = F.relu(net.bn2(net.two(F.relu(net.bn1(net.one(x))))) + net.short(x))
    x = x + F.silu(net.last(x))
    return net.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _branches(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([net.one(x), F.relu(net.bn(net.three(x))), net.pooled(F.avg_pool2d(x, 3, 1, 1))], 1)
    return net.head(F.max_pool2d(x, 2)).mean((2, 3))  # type: ignore[no-any-return]


def _attention(net: Any, x: Tensor) -> Tensor:
    x = net.norm(x + net.attention(x, x, x, need_weights=False)[0])
    q, k = net.q(x), net.k(x)
    return x + net.down(F.gelu(net.up(torch.softmax(q @ k.transpose(1, 2), -1) @ x)))  # type: ignore[no-any-return]


_CONV = nn.Conv2d
SMALL: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": (
        (12,),
        lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 9, bias=False), nn.Tanh(),
                              nn.Linear(9, 4)),
    ),
    "wide": ((600,), lambda: nn.Sequential(nn.Linear(600, 6), nn.ReLU(), nn.Linear(6, 3))),
    "batch-norms": (
        (3, 8),
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6),
                              nn.Conv1d(6, 6, 1, bias=False), nn.BatchNorm1d(6, affine=False), nn.Flatten(),
                              nn.Linear(36, 5), nn.BatchNorm1d(5)),
    ),
    "conv1d": (
        (3, 16),
        lambda: nn.Sequential(nn.Conv1d(3, 6, 5, 2, 2), nn.BatchNorm1d(6), nn.ReLU(),
                              nn.Conv1d(6, 6, 3, padding="same", dilation=2, groups=3), nn.PReLU(6),
                              nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2), nn.Hardtanh(), nn.Conv1d(4, 2, 3)),
    ),
    "conv2d": (
        (4, 9, 9),
        lambda: nn.Sequential(_CONV(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU6(),
                              _CONV(6, 12, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(12), nn.LeakyReLU(0.1),
                              _CONV(12, 4, 3, padding=(2, 1), dilation=(2, 1)), nn.SiLU(),
                              _CONV(4, 4, (3, 5), padding="same"), nn.Hardtanh(-0.5, 2.0),
                              _CONV(4, 3, (1, 3), bias=False)),
    ),
    "padding-modes": (
        (3, 8, 8),
        lambda: nn.Sequential(_CONV(3, 5, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
                              _CONV(5, 5, 3, padding=1, padding_mode="replicate"), nn.ELU(),
                              _CONV(5, 4, 3, padding=1, padding_mode="circular"), nn.ZeroPad2d((0, 1, 0, 1)),
                              _CONV(4, 4, 3, 2)),
    ),
    "conv3d": (
        (2, 6, 5, 4),
        lambda: nn.Sequential(nn.Conv3d(2, 4, (3, 2, 1), (2, 1, 1), (1, 0, 0)), nn.BatchNorm3d(4), nn.ReLU(),
                              nn.Conv3d(4, 4, 2, groups=4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2, 2, groups=2)),
    ),
    "transposed": (
        (4, 5, 5),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.BatchNorm2d(6), nn.ReLU(),
                              nn.ConvTranspose2d(6, 4, 2, 2, groups=2, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(),
                              nn.ConvTranspose2d(4, 4, 3, groups=4), nn.ELU(),
                              nn.ConvTranspose2d(4, 2, 3, padding=(1, 2), dilation=2)),
    ),
    "mobile": (
        (3, 8, 8),
        lambda: nn.Sequential(_CONV(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
                              _CONV(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
                              _CONV(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                              nn.Flatten(), nn.Linear(12, 5)),
    ),
    "residual": (
        (3, 8, 8),
        lambda: Net(_residual, stem=_CONV(3, 4, 3, padding=1), bn=nn.BatchNorm2d(4), one=_CONV(4, 6, 3, 2, 1),
                    bn1=nn.BatchNorm2d(6), two=_CONV(6, 6, 3, padding=1), bn2=nn.BatchNorm2d(6),
                    short=_CONV(4, 6, 1, 2), last=_CONV(6, 6, 1), fc=nn.Linear(6, 5)),
    ),
    "branches": (
        (3, 8, 8),
        lambda: Net(_branches, one=_CONV(3, 2, 1), three=_CONV(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3),
                    pooled=_CONV(3, 2, 1), head=_CONV(7, 4, 3)),
    ),
    "reused-and-tied": ((6,), _tied),
    "attention": (
        (5, 8),
        lambda: Net(_attention, attention=nn.MultiheadAttention(8, 2, batch_first=True), norm=nn.LayerNorm(8),
                    q=nn.Linear(8, 4), k=nn.Linear(8, 4), up=nn.Linear(8, 12), down=nn.Linear(12, 8)),
    ),
    "recurrent": (
        (4, 3),
        lambda: Net(lambda n, x: n.head(n.lstm(n.first(x))[0][:, -1]), first=nn.Linear(3, 3),
                    lstm=nn.LSTM(3, 5, batch_first=True), head=nn.Linear(5, 2)),
    ),
}  # fmt: skip
"""Shape of a sample, and the network."""


def load(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """One of these networks in evaluation mode, the same each time, and the shape of a sample."""
    shape, build = SMALL[name]
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _spread(module)
    return model, shape


def _spread(norm: Any) -> None:
    """Statistics and parameters of a batch-norm as training leaves them: other than zeros and ones."""
    for tensor, low, high in ((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0)):
        nn.init.uniform_(tensor, low, high)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 3.0)
        nn.init.uniform_(norm.bias, -0.5, 3.0)
