"""Read the quantized weights of a network from its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from roundwise.artifacts import dialect
from roundwise.artifacts.emit import CODES
from roundwise.graph.graph import Graph


@final
@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A layer's codes and grid, as a quantized network stores them: real weight = (code − zero point) · scale.

    Attributes:
        codes: integers, one per element. They have the shape of the weight, or `[groups · rows, cols]` if no axis of
            that shape has the scales along it (`PerGroup` in a convolution, `PerChannel` in a grouped transposed one).
        scale: float32: no dimension (per tensor), `[channels]` (per channel), or `[rows, blocks]` (per group).
        zero_point: the codes of 0.0, int64, in the shape of `scale`.
        qmin, qmax: the smallest and the largest code.
        axis: the dimension of `codes` along which the scale changes, if there is one scale per channel; else None.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None

    def dequantize(self) -> Tensor:
        """The real weights, float32, in the shape of the codes."""
        arguments = (self.qmin, self.qmax, self.scale.dtype)
        if self.axis is not None:
            return dialect.dequantize_per_channel(self.codes, self.scale, self.zero_point, self.axis, *arguments)
        if self.scale.dim() == 0:
            return dialect.dequantize(self.codes, self.scale.item(), int(self.zero_point), *arguments)
        size = self.codes.shape[1] // self.scale.shape[1]
        return dialect.dequantize_per_group(self.codes, self.scale, self.zero_point, size, *arguments)


def stored_weights(graph: Graph) -> dict[str, StoredWeight]:
    """The quantized weights of a graph by the names of the weights, in the order in which they are read."""
    found = {}
    for node in graph.operations.nodes:
        operation = dialect.operation_of(node)
        if operation is None or operation not in dialect.DEQUANTIZERS:
            continue
        arguments = operation.arguments(node)
        codes = graph.constant(arguments["codes"])
        if codes is None:  # the codes of an activation, which are computed
            continue
        name = str(arguments["codes"].target).rpartition(CODES)[0]
        found[name] = StoredWeight(
            codes,
            _tensor(graph, arguments["scale"], torch.float32),
            _tensor(graph, arguments["zero_point"], torch.int64),
            arguments["qmin"],
            arguments["qmax"],
            arguments.get("axis"),
        )
    return found


def _tensor(graph: Graph, argument: Any, dtype: torch.dtype) -> Tensor:
    """A scale or zero point as a tensor, whether the graph holds it as a constant or as a number."""
    constant = graph.constant(argument)
    return torch.tensor(argument, dtype=dtype) if constant is None else constant
