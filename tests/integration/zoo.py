"""Small networks, each of which once made life hard for a tool that had to find the layers of a model.

`CASES` maps a name to the model, its inputs for a given batch size, and the layers that must be found in it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's class, `(args, kwargs)` for a batch size, and names of layers in the order of their first use."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
    layers: tuple[str, ...]

    def build(self) -> nn.Module:
        """The model in evaluation mode, with every parameter and statistic random, the same each time."""
        torch.manual_seed(0)
        return randomize(self.model()).eval()


CASES: dict[str, Case] = {}


def randomize(model: nn.Module) -> nn.Module:
    """Fill biases and batch-norm's parameters and statistics, which a new network has at zero and one."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
        elif isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def images(channels: int = 3, size: int = 8) -> Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs of a network that takes images."""
    return lambda batch: ((torch.randn(batch, channels, size, size),), {})


def vectors(*sizes: int) -> Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs of a network that takes one tensor of this shape for each sample."""
    return lambda batch: ((torch.randn(batch, *sizes),), {})


def case(
    inputs: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]], *layers: str
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a model into the list."""

    def enter(model: type[nn.Module]) -> type[nn.Module]:
        CASES[model.__name__] = Case(model, inputs, layers)
        return model

    return enter


# ------------------------------------------------------------------------------------------------- convolutions


@case(images(), "stem", "block1", "shortcut", "block2", "fc")
class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block1, self.bn1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut, self.bn3 = nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.block2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        main = self.relu(self.bn1(self.block1(x)))
        x = self.bn3(self.shortcut(x))
        x = self.relu(self.bn2(self.block2(main)) + x)
        return self.fc(self.pool(x).flatten(1))


@case(images(), "kernel", "fc")
class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(6, 3, 3, 3) / 5), nn.Parameter(torch.randn(6))
        self.fc = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.relu6(F.conv2d(x, self.kernel, self.shift))
        x = F.pad(F.max_pool2d(x, 2), (0, 1, 1, 0), value=0.5)[..., :-1, 1:]
        return F.log_softmax(self.fc(torch.flatten(F.hardswish(x), start_dim=1)), dim=-1)


@case(images(), "a", "b")
class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu_(self.a(x))
        y = self.b(x)
        y += x
        y[:, :2] = 0.5 * y[:, 2:]
        y[:, 3].mul_(2.0).clamp_(min=-1.0)
        return y.relu_()


@case(images(4), "conv")
class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        for _ in range(3):
            x = F.silu(self.bn(self.conv(x)))
        return x


@case(images(4, 9), "grouped", "depthwise", "dilated", "same", "rectangular")
class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped, self.bn1 = nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)
        self.depthwise, self.bn2 = nn.Conv2d(6, 12, 3, groups=6, padding=1, bias=False), nn.BatchNorm2d(12)
        self.dilated = nn.Conv2d(12, 4, 3, dilation=(2, 1), padding=(2, 1))
        self.same = nn.Conv2d(4, 4, (3, 5), padding="same")
        self.rectangular = nn.Conv2d(4, 3, (1, 3), padding="valid", bias=False)

    def forward(self, x):
        x = self.bn2(self.depthwise(F.relu(self.bn1(self.grouped(x)))))
        return self.rectangular(self.same(F.gelu(self.dilated(x))))


@case(images(4, 5), "up", "grouped", "depthwise", "dilated")
class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.bn1 = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(6)
        self.grouped, self.bn2 = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, bias=False), nn.BatchNorm2d(4)
        self.depthwise = nn.ConvTranspose2d(4, 4, 3, groups=4)
        self.dilated = nn.ConvTranspose2d(4, 2, 3, dilation=2, padding=(1, 2))

    def forward(self, x):
        x = F.leaky_relu(self.bn2(self.grouped(F.relu(self.bn1(self.up(x))))), 0.1)
        return torch.sigmoid(self.dilated(F.elu(self.depthwise(x))))


@case(vectors(3, 16), "encode", "dilated", "decode", "last")
class Sequence1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.bn = nn.Conv1d(3, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6)
        self.dilated = nn.Conv1d(6, 6, 3, dilation=2, padding="same", groups=3)
        self.decode = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1, groups=2)
        self.last, self.slopes = nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular"), nn.PReLU(4)

    def forward(self, x):
        x = F.relu(self.bn(self.encode(x)))
        x = self.slopes(self.decode(x + F.dropout(self.dilated(x), training=self.training)))
        return self.last(F.avg_pool1d(x, 2))


@case(lambda batch: ((torch.randn(batch, 2, 6, 5, 4),), {}), "a", "b", "c")
class Volume3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv3d(2, 4, (3, 2, 1), padding=(1, 0, 0), stride=(2, 1, 1)), nn.BatchNorm3d(4)
        self.b, self.c = nn.Conv3d(4, 4, 2, groups=4), nn.ConvTranspose3d(4, 2, 2, stride=2, groups=2)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.bn(self.a(x))))))


@case(images(), "one", "three.0", "three.1", "pool.1", "head")
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 2, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(3, 2, 1))
        self.head = nn.Conv2d(7, 4, 3)

    def forward(self, x):
        branches = [self.one(x), self.three(x), self.pool(x)]
        return self.head(torch.cat(branches, dim=1)).mean((2, 3))


@case(images(), "down", "expand", "shuffle", "scale.1", "scale.3")
class Pieces(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4)
        self.expand, self.norm2 = nn.Conv2d(4, 8, 1), nn.InstanceNorm2d(8, affine=True)
        self.shuffle, self.norm3 = nn.Conv2d(8, 8, 1), nn.LayerNorm(2)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))

    def forward(self, x):
        x = F.interpolate(F.mish(self.norm1(self.down(x))), scale_factor=2, mode="bilinear")
        x = self.norm2(self.expand(x))
        a, b = x.chunk(2, dim=1)
        x = F.pixel_shuffle(self.shuffle(torch.cat([b, a], 1)), 2)
        x = self.norm3(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x * torch.sigmoid(self.scale(x))


# -------------------------------------------------------------------------------- linear layers, shared and computed


@case(lambda batch: ((torch.randint(0, 11, (batch, 6)),), {}), "mix", "embedding")
class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


@case(lambda batch: ((torch.randint(0, 11, (batch, 6)),), {}), "mix", "embedding")
class TiedEmbeddingProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, tokens):
        return F.gelu(self.mix(self.embedding(tokens))) @ self.embedding.weight.T


@case(vectors(6), "a")
class TiedLinears(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


@case(vectors(3, 6), "first", "second", "third", "fourth", "block.w")
class Products(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4, 5))
        self.third, self.b3 = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
        self.fourth, self.b4 = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(1, 5))
        self.block = nn.ParameterDict({"w": nn.Parameter(torch.randn(5, 2))})

    def forward(self, x):
        x = F.linear(torch.tanh(x @ self.first), self.second)
        x = torch.addmm(self.b3, x.flatten(0, 1), self.third)
        x = torch.addmm(self.b4, torch.tanh(x), self.fourth)
        return torch.mm(x, self.block["w"]).unflatten(0, (-1, 3))


@case(images(), "conv", "fc", "spectral")
class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.fc = parametrizations.weight_norm(nn.Linear(4, 6), dim=None)
        self.spectral = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))
        return self.spectral(torch.tanh(self.spectral(x)))


class Standardized(nn.Conv2d):
    def forward(self, x):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


class Masked(nn.Module):
    def forward(self, weight):
        return weight * torch.ones_like(weight).tril()


@case(images(), "conv", "masked", "sum")
class ComputedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.masked = Standardized(3, 5, 3), nn.Linear(5, 5)
        parametrize.register_parametrization(self.masked, "weight", Masked())
        self.sum = nn.Linear(5, 4)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 5))

    def forward(self, x):
        x = self.masked(F.relu(self.conv(x)).mean((2, 3)))
        return F.linear(x, self.sum.weight + self.lora_a @ self.lora_b, self.sum.bias)


@case(vectors(2, 5), "a", "b", "c")
class BatchNorms(nn.Module):
    """Some that fold and some that cannot."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.after_a = nn.BatchNorm1d(2), nn.Linear(5, 6), nn.BatchNorm1d(2)
        self.b, self.after_b = nn.Linear(12, 6), nn.BatchNorm1d(6, affine=False)
        self.again, self.c = nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.last = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x):
        x = F.relu(self.after_a(self.a(self.first(x)))).flatten(1)
        x = self.after_b(self.b(x))
        return self.last(self.c(self.again(torch.sin(x))))


# ---------------------------------------------------------------------------------------------------- attention


def tokens(*lengths: int, width: int = 8) -> Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs of a network that takes sequences of these lengths."""
    return lambda batch: (tuple(torch.randn(batch, length, width) for length in lengths), {})


@case(tokens(5), "attention.in_proj_weight", "attention.out_proj")
class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)


@case(tokens(5), "attention.in_proj_weight", "attention.out_proj")
class TimeFirstAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1)

    def forward(self, x):
        x = x.transpose(0, 1)
        return x.transpose(0, 1) + self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)


@case(
    tokens(5, 3),
    "two.in_proj_weight_0",
    "two.in_proj_weight_1",
    "two.out_proj",
    "three.in_proj_weight_0",
    "three.in_proj_weight_1",
    "three.in_proj_weight_2",
    "three.out_proj",
    "apart.q_proj_weight",
    "apart.k_proj_weight",
    "apart.v_proj_weight",
    "apart.out_proj",
)
class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.two, self.three = nn.MultiheadAttention(8, 2, batch_first=True), nn.MultiheadAttention(8, 2)
        self.apart = nn.MultiheadAttention(8, 2, kdim=8, vdim=4, batch_first=True, bias=False)

    def forward(self, x, memory):
        y, weights = self.two(x, memory, memory)
        a, b, c = (t.transpose(0, 1) for t in (y, memory, memory + 1))
        y = y + self.three(a, b, c, need_weights=False)[0].transpose(0, 1)
        return y + self.apart(y, memory, memory[..., :4])[0], weights


@case(
    lambda batch: ((torch.randn(batch, 5, 8), torch.arange(5).expand(batch, 5) > 2), {}),
    *(f"layers.0.{name}" for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")),
    *(f"layers.1.{name}" for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")),
)
class TransformerEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first) for first in (False, True)
        )

    def forward(self, x, padding):
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x


@case(tokens(5), "qkv", "out", "packed_0", "packed_1", "packed_2")
class HandWrittenAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.packed = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.randn(24, 8) / 3)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        x = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, 8))
        q, k, v = F.linear(x, self.packed[:8]), F.linear(x, self.packed[8:16]), F.linear(x, self.packed[16:])
        scores = torch.softmax(torch.einsum("bqc,bkc->bqk", q, k) / 8**0.5, dim=-1)
        return x + torch.matmul(scores, v)


@case(images(3, 8), "patches", "project", "key", "fixed.weight_derived", "head")
class QueryTokens(nn.Module):
    """Parameters that are inputs of layers: what they give is constant, so `fixed` is computed once and for all."""

    def __init__(self):
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 5, 8))
        self.token, self.queries = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(3, 8))
        self.fixed, self.project, self.key, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.project(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position)
        scores = torch.relu(self.fixed(self.queries)) @ self.key(x).transpose(1, 2)
        return self.head(torch.softmax(scores, -1) @ x)


@case(vectors(4, 3), "head")
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(3, 5, batch_first=True), nn.GRU(5, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])


# ------------------------------------------------------------------------------------------- inputs and outputs


@case(lambda batch: ((torch.randn(batch, 4), torch.randn(batch, 3, 2), torch.randn(batch)), {}), "left", "right")
class PositionalInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x, y, scale):
        return self.left(x)[:, None] + self.right(y) * scale[:, None, None]


@case(lambda batch: ((torch.randn(batch, 4),), {"second": torch.randn(batch, 4), "double": True}), "a", "b")
class KeywordInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, first, factor=0.5, *, second=None, third=None, double=False, mode="sum"):
        y = self.a(first) * factor
        if second is not None:
            y = y + self.b(second)
        if third is not None:
            y = y + third
        return 2 * y if double and mode == "sum" else y


@case(
    lambda batch: ((torch.randn(batch, 4), torch.randn(batch, 4)), {"c": torch.randn(batch, 1)}),
    "layers.0",
    "layers.1",
)
class VariadicInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, *tensors, **named):
        return sum(layer(x) for layer, x in zip(self.layers, tensors, strict=True)) + named.get("c", 0.5)


@case(lambda batch: (({"pixels": torch.randn(batch, 2, 4), "mask": torch.ones(batch, 2, dtype=torch.bool)},), {}), "fc")
class DictInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, batch):
        return {"scores": self.fc(batch["pixels"]).masked_fill(~batch["mask"][..., None], 0.0), "mask": batch["mask"]}


class Boxes(NamedTuple):
    scores: Tensor
    boxes: list[Tensor]


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]


pytree.register_dataclass(Output, serialized_type_name="roundwise.tests.zoo.Output")


@case(vectors(4), "a", "b")
class NestedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        y = self.b(h)
        return {"boxes": Boxes(y, [h, h.argmax(-1)]), "input": x, "rest": (None, 7, "text", [y.sum(-1)])}


@case(vectors(4), "a", "b")
class DataclassOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return Output(self.b(h), (h, x))


# -------------------------------------------------------------------------------------------- modes and control


@case(vectors(4), "a", "b", "c")
class GradientModes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        with torch.no_grad():
            x = torch.relu(self.a(x))
        with torch.inference_mode():
            y = self.b(x)
        with torch.enable_grad():
            return self.c(x.detach() + y.clone())


@case(vectors(4), "a", "b")
class MixedPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.relu(self.a(x))
            with torch.autocast("cpu", enabled=False):
                x = self.b(x.float())
        return x


@case(vectors(4), "a", "b")
class ControlFlowOperator(nn.Module):
    """What is inside `torch.cond` stays in float; the layers outside are found."""

    def __init__(self):
        super().__init__()
        self.a, self.inside, self.b = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        x = torch.cond(x.sum() > 0, lambda t: torch.relu(self.inside(t)), lambda t: t + 1.0, (x,))
        return self.b(x)


@case(vectors(4), "a", "b")
class Attributes(nn.Module):
    """Keeps what it computes: neither the model nor the capture may be harmed by that."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.calls, self.seen = nn.Linear(4, 4), nn.Linear(4, 3), 0, []
        self.register_buffer("scale", torch.full((4,), 0.5))

    def forward(self, x):
        self.calls += 1
        self.hidden = self.a(x).squeeze() * self.scale
        self.seen.append(self.hidden)
        return self.b(self.hidden.reshape(-1, 4))
