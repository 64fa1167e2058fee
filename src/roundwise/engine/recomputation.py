"""Train with less memory: keep few activations in the forward pass, and compute the others again in the backward pass.

A graph of n operations is cut into √n segments of √n operations. Only the values between segments are kept. In the
backward pass each segment runs again before its gradients are computed, so a step costs one more forward pass.

What happens once in a forward pass must not happen twice: dropout draws the same numbers again
(`torch.utils.checkpoint` sees to that), and batch-norm does not count a batch twice (`_statistics_stay`).

Reference:
    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import torch.utils._pytree as pytree
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class _Segment(NamedTuple):
    """Some operations that follow each other.

    Attributes:
        run: takes the module and the values that it reads; returns those that later segments read.
        reads, gives: their names.
    """

    run: Callable[..., Any]
    reads: Sequence[str]
    gives: Sequence[str]


@final
class Segments:
    """The operations of a graph in segments.

    Args:
        module: has the parameters, buffers and modules that the operations use.
        operations: from the inputs to the output.
    """

    def __init__(self, module: nn.Module, operations: fx.Graph) -> None:
        self._module = module
        self._inputs = [node.name for node in operations.nodes if node.op == "placeholder"]
        body = [node for node in operations.nodes if node.op not in ("placeholder", "get_attr", "output")]
        size = max(1, math.isqrt(len(body)))
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        self._segments = [_segment(module, part) for part in parts]
        (self._result,) = next(node for node in operations.nodes if node.op == "output").args

    def run(self, *inputs: Any) -> Any:
        """The outputs for these leaves of the inputs, nested as the graph's output is."""
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for segment in self._segments:
            read = [values[name] for name in segment.reads]
            contexts = lambda: (contextlib.nullcontext(), _statistics_stay(self._module))  # noqa: E731
            results = checkpoint(segment.run, self._module, *read, use_reentrant=False, context_fn=contexts)
            values.update(zip(segment.gives, results, strict=True))
        return pytree.tree_map(lambda it: values[it.name] if isinstance(it, fx.Node) else it, self._result)


def _segment(module: nn.Module, nodes: Sequence[fx.Node]) -> _Segment:
    inside = set(nodes)
    outside = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
    read = [node for node in outside if node.op != "get_attr"]
    given = [node for node in nodes if any(user not in inside for user in node.users)]
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in read:
        copies[node] = graph.placeholder(node.name)
    for node in (*outside.keys() - set(read), *nodes):  # parameters and buffers, then operations
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in given))
    run = type(fx.GraphModule(module, graph)).forward
    return _Segment(run, [node.name for node in read], [node.name for node in given])


@contextlib.contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Inside the context, batch-norms in training mode leave their running statistics as they are."""
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # With momentum 0 the old statistics count 1 and the new ones 0. The operation stays the same one, so it keeps
        # the same tensors for the backward pass.
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
