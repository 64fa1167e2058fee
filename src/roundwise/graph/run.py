"""One operation of a graph, run on values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.graph.matrix import fast_format

aten = torch.ops.aten


def execute(node: fx.Node, inputs: Mapping[fx.Node, Any]) -> Any:
    """The result of an operation.

    Args:
        node: the operation.
        inputs: for each node that it reads, the value.
    """
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: inputs[source])
    # Values may lie in memory otherwise than when the graph was captured, so that a view of them is not possible.
    target = aten.reshape.default if node.target is aten.view.default else node.target
    assert callable(target)
    return target(*args, **kwargs)


def fast_layout(weight: Tensor) -> Tensor:
    """A convolution's weight with channels last: the convolution, and what follows it, then run faster on every device.

    Other weights are returned as they are.
    """
    return weight.contiguous(memory_format=fast_format(weight.dim())) if weight.dim() in (4, 5) else weight
