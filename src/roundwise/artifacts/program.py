"""Turn a graph into a `torch.export` program."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from roundwise.artifacts.signature import CallSignature
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.errors import ExportError
from roundwise.graph.graph import Graph, InputSpec

EXAMPLE_BATCH = 23
"""The batch size with which a program is traced.

PyTorch may treat two dimensions of equal size as one dimension. So this is a size that hardly any layer has.
"""

NUMBERS_OF_SAMPLES = 8
"""Numbers of samples, from the fewest, for which a program is tried that does not hold for all."""


LONGEST_SIZE = 1000
"""Terms of the longest expression for a size. PyTorch writes out such expressions: with more, exports take long."""


def export_program(graph: Graph, device: torch.device) -> ExportedProgram:
    """Trace a graph whose tensors are on `device`. The program takes any number of samples if the graph does.

    Raises:
        ExportError: PyTorch cannot export the graph.
    """
    _check_sizes(graph)
    batches = graph.limits.batches
    with isolated_torch_state(device):
        if graph.batch is not None:
            return _export(graph, device, None)
        try:
            return _export(graph, device, Dim("batch", min=batches.low, max=batches.high))
        except ExportError:  # Some operations exclude a few batch sizes; only with `DYNAMIC` PyTorch finds out which.
            program = _export(graph, device, Dim.DYNAMIC)
            _check_batches(program, graph, device)
            return program


def _check_sizes(graph: Graph) -> None:
    """Refuse sizes whose expression is too long when it is written out: each step of a calculation may double it."""
    terms: dict[fx.Node, int] = {}
    for node in graph.operations.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int):
        terms[node] = 1
    for node in graph.operations.nodes:
        if node.op == "call_function" and not isinstance(node.target, OpOverload):
            terms[node] = 1 + sum(terms.get(one, 0) for one in node.args if isinstance(one, fx.Node))
            if terms[node] > LONGEST_SIZE:
                raise ExportError(
                    f"the size '{node.name}' is calculated from sizes in {terms[node]} terms, when it is written out; "
                    f"at most {LONGEST_SIZE} are exported, because PyTorch works with the expression that is written "
                    "out. The model still runs, and can be saved with `model.save`."
                )


def _check_batches(program: ExportedProgram, graph: Graph, device: torch.device) -> None:
    """Refuse a program that holds only for every other number of samples or the like, where the graph has values."""
    module, signature, low = program.module(), CallSignature.of(graph), graph.limits.batches.low
    with FakeTensorMode(allow_non_fake_inputs=True):  # only sizes count
        for samples in range(low, low + NUMBERS_OF_SAMPLES):
            if graph.limits.batches.holds(samples):
                example = signature.example(samples, device)
                broken = _error(module, example)
                if isinstance(broken, AssertionError) and _error(graph.module(), example) is None:
                    raise ExportError(
                        "the network cannot be exported for any number of samples: what it computes depends on that "
                        f"number ({broken}, and there are {samples}). The model still runs, and can be saved with "
                        "`model.save`."
                    )


def _error(module: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Exception | None:
    args, kwargs = example
    try:
        module(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _export(graph: Graph, device: torch.device, batch: Any) -> ExportedProgram:
    signature, batches = CallSignature.of(graph), graph.limits.batches
    samples = next(one for one in (EXAMPLE_BATCH, 5, 3, 2, batches.low) if batches.holds(one))
    args, kwargs = signature.example(samples, device)
    flat = [_dynamic(spec, batch) if isinstance(spec, InputSpec) else None for spec in graph.inputs]
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten(flat, graph.structure.in_spec)
    names = graph.structure.arguments
    dynamic = dict(zip(names, [*dynamic_args, *dynamic_kwargs.values()], strict=True))
    try:
        with torch.no_grad():
            return torch.export.export(graph.module(), args, kwargs, dynamic_shapes=dynamic)
    except Exception as error:
        raise ExportError(
            f"PyTorch cannot export the quantized graph as a program: {error} "
            "The model still runs, and can be saved with `model.save`; please report this with the model."
        ) from error


def _dynamic(spec: InputSpec, batch: Any) -> dict[int, Any]:
    """The dimensions of an input that are dynamic: the batch, and those that the user has named."""
    dims = {0: batch} if batch is not None and spec.shape else {}
    return dims | dict.fromkeys(spec.names, Dim.DYNAMIC)
