"""A layer is a matrix: the only place that knows what a convolution is.

Linear layers and convolutions of every kind (1d to 3d, strided, dilated, grouped, depthwise, transposed) compute

    y = W u(x) + b

where u *unfolds* the input: one column vector for each output position. Groups are independent problems, so

    W      [groups, rows, cols]         rows: output channels of the group;  cols: what one output is a sum over
    u(x)   [groups, cols, positions]    positions: samples × output positions
    y      [groups, rows, positions]

A transposed convolution is an ordinary one with the kernel mirrored, over an input with stride − 1 zeros put between
its elements; that is how it is unfolded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def fast_format(dims: int) -> torch.memory_format:
    """How a tensor of so many dimensions should lie in memory for convolutions to be fast: images have channels last.

    A convolution's output then lies so as well, which makes faster what follows.
    """
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(dims, torch.contiguous_format)


@final
@dataclass(frozen=True, eq=False)
class LinearMap:
    """One layer's linear (affine) map, whatever operation it was written as.

    Attributes:
        weight_shape: of the weight tensor as the operation takes it: `[out, in]`, `[out, in/groups, *kernel]`, or
            transposed `[in, out/groups, *kernel]`.
        bias: `[out]`, or None.
        stride, dilation, output_padding: one number per spatial dimension; empty for a linear layer.
        padding: one number per spatial dimension, or "same" or "valid".
        groups: how many independent parts the channels fall into.
        transposed: whether it is a transposed convolution.
        device: where the layer computes.
    """

    weight_shape: tuple[int, ...]
    bias: Tensor | None
    device: torch.device
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @classmethod
    def from_arguments(cls, weight: Tensor, bias: Tensor | None, arguments: dict[str, Any]) -> LinearMap:
        """From the arguments of an ATen `linear`, `convNd`, `conv_transposeNd` or `convolution` operation, by name."""
        shape, dims = tuple(weight.shape), weight.dim() - 2
        if dims == 0:
            return cls(shape, bias, weight.device)

        def per_dimension(value: Any) -> tuple[int, ...]:
            values = [value] if isinstance(value, int) else list(value)
            return tuple(values * dims if len(values) == 1 else values)

        padding = arguments["padding"]
        return cls(
            shape,
            bias,
            weight.device,
            stride=per_dimension(arguments["stride"]),
            padding=padding if isinstance(padding, str) else per_dimension(padding),
            dilation=per_dimension(arguments["dilation"]),
            output_padding=per_dimension(arguments.get("output_padding", 0)),
            groups=arguments["groups"],
            transposed=arguments["transposed"],
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions; 0 for a linear layer."""
        return len(self.stride)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size along each spatial dimension."""
        return self.weight_shape[2:]

    @property
    def operation(self) -> str:
        """The operation's name, such as `linear`, `conv2d` or `conv_transpose1d`."""
        if self.dims == 0:
            return "linear"
        return f"conv_transpose{self.dims}d" if self.transposed else f"conv{self.dims}d"

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """`(groups, rows, cols)`."""
        first, second = self.weight_shape[:2]
        taps = math.prod(self.kernel)
        if self.transposed:
            return self.groups, second, first // self.groups * taps
        return self.groups, first // self.groups, second * taps

    @property
    def bias_rows(self) -> Float[Tensor, "groups rows"]:
        """The bias as the matrix's rows see it, in float32; zeros where there is none."""
        groups, rows, _ = self.matrix_shape
        if self.bias is None:
            return torch.zeros(groups, rows, dtype=torch.float32, device=self.device)
        return self.bias.float().reshape(groups, rows)

    @property
    def is_depthwise(self) -> bool:
        """Whether each group of a convolution has one input channel."""
        return self.dims > 0 and self.matrix_shape[2] == math.prod(self.kernel)

    @property
    def pads(self) -> bool:
        """Whether a convolution puts zeros around its input."""
        return not self.transposed and any(self._padding())

    @property
    def padding_of_sides(self) -> tuple[int, ...]:
        """Zeros before each spatial dimension, then those after each; of a transposed convolution, what it cuts off."""
        sides = self._padding()[::-1]  # after and before, first dimension first
        return *sides[1::2], *sides[::2]

    def columns_of_channels(self, values: Float[Tensor, "channels"]) -> Float[Tensor, "groups cols"]:
        """One number for each input channel, at all columns of the channel: those of its kernel positions.

        Where a layer reads flattened images, a channel has a column for each pixel.
        """
        groups, _, cols = self.matrix_shape
        return values.repeat_interleave(groups * cols // values.numel()).reshape(groups, cols)

    def to_matrix(self, weight: Tensor) -> Real[Tensor, "groups rows cols"]:
        """The weight tensor as a matrix per group, in plain memory order however the tensor lies in memory."""
        if not self.transposed:
            return weight.reshape(self.matrix_shape).contiguous()
        groups, rows, _ = self.matrix_shape
        split = weight.reshape(groups, -1, rows, *self.kernel).transpose(1, 2)
        return split.flip(tuple(range(3, 3 + self.dims))).reshape(self.matrix_shape).contiguous()

    def to_weight(self, matrix: Real[Tensor, "groups rows cols"]) -> Tensor:
        """The inverse of `to_matrix`, for weights and for codes."""
        if not self.transposed:
            return matrix.reshape(self.weight_shape)
        groups, rows, _ = self.matrix_shape
        split = matrix.reshape(groups, rows, -1, *self.kernel).flip(tuple(range(3, 3 + self.dims)))
        return split.transpose(1, 2).reshape(self.weight_shape)

    def apply(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """The operation itself, with the given weight tensor and the layer's bias (in the weight's dtype)."""
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        if self.dims == 0:
            return F.linear(inputs, weight, bias)
        if self.transposed:
            return _TRANSPOSED[self.dims](
                inputs, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        return _CONVOLUTIONS[self.dims](inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def apply_matrix(self, matrix: Float[Tensor, "groups rows cols"], inputs: Tensor) -> Tensor:
        """The operation, its weight given as a matrix."""
        return self.apply(self.to_weight(matrix), inputs)

    def as_items(self, values: Tensor) -> Tensor:
        """Inputs or outputs with exactly one batch dimension: `[items, features]` or `[items, channels, *space]`.

        What stands before a linear layer's features is flattened; a convolution's missing batch dimension is added.
        """
        if self.dims == 0:
            return values.reshape(-1, values.shape[-1])
        return values if values.dim() == self.dims + 2 else values.unsqueeze(0)

    def unfold(self, inputs: Tensor) -> Float[Tensor, "groups cols positions"]:
        """u(x): for each output position the inputs that it is a weighted sum of, in the order of the columns."""
        items = self.as_items(inputs)
        if self.dims == 0:
            return items.T.unsqueeze(0)
        if self.transposed:
            items, stride = self._spread(items), (1,) * self.dims
        else:
            items, stride = F.pad(items, self._padding()), self.stride
        items = items.contiguous()
        batch, channels, *space = items.shape
        positions = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(space, self.kernel, stride, self.dilation, strict=True)
        ]
        step = items.stride()
        windows = items.as_strided(
            (channels, *self.kernel, batch, *positions),
            (
                step[1],
                *(e * d for e, d in zip(step[2:], self.dilation, strict=True)),
                step[0],
                *(e * s for e, s in zip(step[2:], stride, strict=True)),
            ),
        )
        groups, _, cols = self.matrix_shape
        return windows.reshape(groups, cols, -1)

    def fold_outputs(self, outputs: Tensor) -> Float[Tensor, "groups rows positions"]:
        """y as the matrix that `matrix @ unfold(inputs) + bias` gives."""
        items = self.as_items(outputs).transpose(0, 1)
        return items.reshape(self.groups, self.matrix_shape[1], -1)

    def pairs_at(
        self, inputs: Tensor, outputs: Tensor, items: Int[Tensor, "pairs"], positions: Int[Tensor, "pairs"]
    ) -> tuple[Float[Tensor, "groups pairs cols"], Float[Tensor, "groups pairs rows"]]:
        """u(x) and y at chosen places alone, without unfolding the rest.

        Of a depthwise convolution both lie in memory the other way round, all places of a column side by side: its
        many matrices are so small that products of them take several times as long otherwise.

        Args:
            inputs, outputs: of the layer, with their batch dimension; each on any device, where its part of the result
                is too.
            items: along the batch dimension of `as_items`.
            positions: along the flattened spatial dimensions of the output; all 0 for a linear layer.
        """
        x, wanted = self.as_items(inputs), self.outputs_at(outputs, items, positions)
        groups, _, cols = self.matrix_shape
        space = self.as_items(outputs).shape[2:]
        items, positions = items.to(x.device), positions.to(x.device)
        if self.dims == 0:
            return x.index_select(0, items).unsqueeze(0), wanted
        if self.transposed:
            x, stride, before = self._spread(x), (1,) * self.dims, [0] * self.dims
        else:
            stride, before = self.stride, self._padding()[::2][::-1]

        # Index of every tap in the inputs, channels last; those that fall on the padding read anything and become 0.
        place, index = positions.unsqueeze(1), items.unsqueeze(1).expand(-1, math.prod(self.kernel))
        inside = torch.ones_like(index, dtype=torch.bool)
        taps = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in self.kernel)).reshape(-1, self.dims)
        for d, size in enumerate(x.shape[2:]):
            after = math.prod(space[d + 1 :])
            start = place // after % space[d] * stride[d] - before[d]
            coordinate = start + taps[:, d] * self.dilation[d]
            inside &= (coordinate >= 0) & (coordinate < size)
            index = index * size + coordinate.clamp(0, size - 1)
        if self.is_depthwise:  # taps first: then transposing a plain matrix puts each channel's numbers together
            index, inside = index.T, inside.T
        x_flat = x.movedim(1, -1).reshape(-1, x.shape[1])
        columns = x_flat.index_select(0, index.flatten()).view(*index.shape, -1)
        if not bool(inside.all()):
            columns *= inside.to(columns.dtype).unsqueeze(-1)
        pairs = len(items)
        if self.is_depthwise:
            return columns.view(-1, groups).T.contiguous().view(groups, cols, pairs).mT, wanted
        return columns.view(pairs, len(taps), groups, -1).permute(2, 0, 3, 1).reshape(groups, pairs, cols), wanted

    def outputs_at(
        self, outputs: Tensor, items: Int[Tensor, "pairs"], positions: Int[Tensor, "pairs"]
    ) -> Float[Tensor, "groups pairs rows"]:
        """y alone, or anything of its shape, at places as `pairs_at` takes them and in its memory order."""
        y = self.as_items(outputs)
        groups, rows, _ = self.matrix_shape
        wanted = (items * self.positions(outputs) + positions).to(y.device)
        if self.dims == 0:
            return y.index_select(0, wanted).unsqueeze(0)
        values = y.movedim(1, -1).reshape(-1, y.shape[1]).index_select(0, wanted)
        if self.is_depthwise:
            return values.T.contiguous().view(groups, rows, len(items)).mT
        return values.view(len(items), groups, rows).transpose(0, 1)

    def positions(self, outputs: Tensor) -> int:
        """How many output positions each item of `as_items` has."""
        return math.prod(self.as_items(outputs).shape[2:])

    def output_space(self, space: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of an ordinary convolution's output, from those of its input; () for a linear layer."""
        padding = self._padding()[::-1]
        return tuple(
            (size + padding[2 * d] + padding[2 * d + 1] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d]
            + 1
            for d, size in enumerate(space)
        )

    def in_two(self, rank: int, first: int) -> tuple[LinearMap, ...]:
        """Two layers in a row with `rank` channels between them, which can compute a product of two factors.

        Args:
            rank: at least 1.
            first: how many dimensions of the kernel the first layer has, 0 for a linear layer; the second has the rest.
        """
        return self.in_chain((rank,), (range(first), range(first, self.dims)))

    def in_chain(
        self, ranks: Sequence[int], dims: Sequence[range], *, depthwise: bool = False
    ) -> tuple[LinearMap, ...]:
        """Layers in a row, of which each has some dimensions of the kernel, with their stride, padding and dilation.

        Padding with zeros in several steps is the same as in one, since no layer has a bias here.

        Args:
            ranks: channels between the layers, each at least 1.
            dims: dimensions of the kernel that each layer has, in order; one layer more than there are ranks.
            depthwise: whether all layers but the first and the last are depthwise; the ranks are then all the same.
        """
        assert self.groups == 1 and not self.transposed  # noqa: PT018  # both are for methods to refuse
        outputs, inputs = self.weight_shape[:2]
        widths = [inputs, *ranks, outputs]

        def part(number: int) -> LinearMap:
            own, columns, rows = dims[number], widths[number], widths[number + 1]
            groups = rows if depthwise and 0 < number < len(ranks) else 1

            def pick(values: Sequence[int], otherwise: int) -> tuple[int, ...]:
                return tuple(value if d in own else otherwise for d, value in enumerate(values))

            return LinearMap(
                (rows, columns // groups, *pick(self.kernel, 1)),
                None,
                self.device,
                stride=pick(self.stride, 1),
                padding=self.padding if isinstance(self.padding, str) else pick(self.padding, 0),
                dilation=pick(self.dilation, 1),
                output_padding=pick(self.output_padding, 0),
                groups=groups,
            )

        return tuple(part(number) for number in range(len(dims)))

    def _padding(self) -> list[int]:
        """Zeros before and after each spatial dimension, last dimension first, as `F.pad` wants them."""
        if self.padding == "valid":
            return [0] * (2 * self.dims)
        if isinstance(self.padding, str):  # "same": an odd surplus goes after, as in PyTorch
            totals = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
            return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        return [p for p in reversed(self.padding) for _ in range(2)]

    def _spread(self, items: Tensor) -> Tensor:
        """The input over which a transposed convolution is an ordinary one of stride 1."""
        batch, channels, *space = items.shape
        spread = items.new_zeros(batch, channels, *((n - 1) * s + 1 for n, s in zip(space, self.stride, strict=True)))
        inner = (slice(None), slice(None), *(slice(None, None, s) for s in self.stride))
        spread[inner] = items
        sides: list[int] = []
        assert not isinstance(self.padding, str)  # the string forms are ordinary convolutions' alone
        for k, d, p, extra in zip(self.kernel, self.dilation, self.padding, self.output_padding, strict=True):
            before = d * (k - 1) - p
            sides = [before, before + extra, *sides]
        return F.pad(spread, sides)
