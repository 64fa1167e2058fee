"""Networks in PyTorch alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from entry import Entry, images, numbers
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with batch-norm and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


class UNet(nn.Module):
    """Down, up, and concatenations across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)]
        )
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(32, 8, 2, 2)])
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = F.relu(layer(x))
            kept.append(x)
        x = torch.cat([self.up[0](x), kept[1]], 1)
        return self.out(torch.cat([self.up[1](x), kept[0]], 1))


class Recurrent(nn.Module):
    """An LSTM or GRU, its last state classified."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Cell(nn.Module):
    """A recurrence of linear layers that starts from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.inner, self.out = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(x.shape[0], 8)
        for step in x.unbind(1):
            i, f, g, o = (self.inward(step) + self.inner(state)).chunk(4, 1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
        return self.out(state)


class Encoder(nn.Module):
    """PyTorch's own transformer encoder."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


class Decoder(nn.Module):
    """PyTorch's own transformer decoder, with a causal mask of −∞."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1)
        self.out = nn.Linear(16, 9)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.decoder(x, memory, tgt_mask=self.mask))


class PointNet(nn.Module):
    """A maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.out = (
            nn.Conv1d(3, 16, 1),
            nn.BatchNorm1d(16),
            nn.Conv1d(16, 32, 1),
            nn.Linear(32, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(F.relu(self.norm(self.a(x)))).max(-1).values)


class Recommender(nn.Module):
    """Embeddings and numbers, their products, a perceptron; a dict in and a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.dense, self.top = nn.Linear(4, 8), nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor, dense: Tensor) -> dict[str, Tensor]:
        parts = torch.stack([self.users(user), self.items(item), self.dense(dense)], 1)
        products = (parts @ parts.transpose(1, 2))[:, [0, 0, 1], [1, 2, 2]]
        score = self.top(torch.cat([products, parts[:, 2]], 1))
        return {"score": score.sigmoid(), "logit": score}


class Graph(nn.Module):
    """Two graph convolutions on a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        links = links / links.sum(-1, keepdim=True).clamp(min=1)
        return (links @ self.b(F.relu(links @ self.a(x)))).mean(1)


class WaveNet(nn.Module):
    """Dilated convolutions with gates, on a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 2, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**n) for n in range(3))
        self.back = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inward(x), torch.zeros(())
        for number, (gate, back) in enumerate(zip(self.gates, self.back, strict=True)):
            value, open_ = gate(F.pad(x, (2**number, 0))).chunk(2, 1)
            value = back(value.tanh() * open_.sigmoid())
            x, total = x + value, total + value
        return self.out(F.relu(total))


class Siamese(nn.Module):
    """One network for two inputs, and their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)
        )

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(self.body(left), self.body(right))


class Volume(nn.Module):
    """Convolutions over three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 6, 3, 2, groups=3)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3, 4)))


class Mixed(nn.Module):
    """A flag, a number and None among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: float = 1.0, gate: Tensor | None = None, *, squash: bool = False) -> Any:
        x = F.relu(self.a(x)) * scale
        x = x if gate is None else x * gate
        return self.b(x).tanh() if squash else (self.b(x), x)


class Mixer(nn.Module):
    """Linear layers along patches, and across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.along, self.across = nn.Conv2d(3, 16, 4, 4), nn.Linear(64, 64), nn.Linear(16, 16)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.along(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.out((x + F.gelu(self.across(self.norm(x)))).mean(1))


class Fourier(nn.Module):
    """The Fourier transform over places and channels, in place of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + torch.fft.fft2(x).real)
        return self.out((x + F.gelu(self.inner(x))).mean(1))


class Experts(nn.Module):
    """Several layers, of which each sample takes a weighted mean of two."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x)
        chosen = gates.masked_fill(gates < gates.topk(2).values[:, 1:], -torch.inf).softmax(1)
        return (chosen.unsqueeze(2) * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)


class SuperResolution(nn.Module):
    """Pixels from channels, added to an enlarged input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slope = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 4, 3, padding=1), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return enlarged + F.pixel_shuffle(self.b(self.slope(self.a(x))), 2)


class Detector(nn.Module):
    """Boxes and scores on two scales, without the suppression of boxes that overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 7, 1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.silu(self.body(x))
        scales = zip(self.heads, (fine, F.silu(self.down(fine))), strict=True)
        found = torch.cat([head(features).flatten(2).transpose(1, 2) for head, features in scales], 1)
        corner, size, scores = found.split((2, 2, 3), 2)
        return torch.cat([corner.sigmoid(), size.clamp(max=2).exp()], 2), scores.softmax(2)


PLAIN = (
    Entry("perceptron", "plain", lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), numbers(8)),
    Entry("residual", "plain", lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8), Residual(8)), images(12)),
    Entry("unet", "plain", UNet, images(16)),
    Entry("lstm", "plain", lambda: Recurrent(nn.LSTM), numbers(7, 8)),
    Entry("gru", "plain", lambda: Recurrent(nn.GRU), numbers(7, 8)),
    Entry("lstm of linear layers", "plain", Cell, numbers(4, 8)),
    Entry("encoder, norm last", "plain", lambda: Encoder(first=False), numbers(6, 16)),
    Entry("encoder, norm first", "plain", lambda: Encoder(first=True), numbers(6, 16)),
    Entry("decoder", "plain", Decoder, lambda n: ((torch.randn(n, 6, 16), torch.randn(n, 5, 16)), {})),
    Entry("pointnet", "plain", PointNet, numbers(3, 20)),
    Entry(
        "recommender",
        "plain",
        Recommender,
        lambda n: ((), {"user": torch.randint(30, (n,)), "item": torch.randint(40, (n,)), "dense": torch.randn(n, 4)}),
    ),
    Entry("graph", "plain", Graph, lambda n: ((torch.randn(n, 7, 6), (torch.rand(n, 7, 7) > 0.5).float()), {})),
    Entry("wavenet", "plain", WaveNet, numbers(1, 24)),
    Entry("siamese", "plain", Siamese, lambda n: ((torch.randn(n, 1, 9, 9), torch.randn(n, 1, 9, 9)), {})),
    Entry("volume", "plain", Volume, numbers(1, 8, 8, 8)),
    Entry("mixer", "plain", Mixer, images(32)),
    Entry("fourier", "plain", Fourier, numbers(6, 8)),
    Entry("mixture of experts", "plain", Experts, numbers(8)),
    Entry("super-resolution", "plain", SuperResolution, images(10, 1)),
    Entry("detector", "plain", Detector, images(16)),
    Entry(
        "flag, number and none", "plain", Mixed, lambda n: ((torch.randn(n, 8), 2.0), {"gate": None, "squash": True})
    ),
)
