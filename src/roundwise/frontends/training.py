"""What training must know of a model besides its graph: parameters, batch-norm's counts, and what the graph lacks.

The graph is captured in evaluation mode, and not a second time in training mode: a model may do anything in training
that no graph holds (batch-norm with `momentum=None` reads its count as a Python number) or that would change it
(running statistics, weights that are clipped in `forward`). Evaluation mode keeps nearly all that training needs:

- Dropout is captured as an operation with its probability, batch-norm as one with its momentum and epsilon.
- `momentum=None` is captured as 0.0, and the number of batches so far not at all: both are read from the module here.
- Code that `self.training` switches is not captured. Where a module's code reads `self.training`, and on that line no
  operation was captured that can be switched back to training, a note says so.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from roundwise.frontends.explain import frames_of
from roundwise.frontends.program import tensor_key
from roundwise.graph.graph import Graph, bind
from roundwise.graph.training import RunningStatistics, TensorOrigin, TrainingInformation
from roundwise.wording import number_of

aten = torch.ops.aten

_BATCH_NORMS = frozenset({aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default})


class _Read(NamedTuple):
    """A place in a module's code that reads `self.training`.

    Attributes:
        calls: the first lines of the calls that it stands in; a captured operation is known by such a line.
    """

    file: str
    line: int
    calls: frozenset[int]


def training_information(model: nn.Module, graph: Graph, *, exported: bool) -> TrainingInformation:
    """What training must know of a graph that was captured from a model.

    Args:
        model: whose tensors the graph's constants are.
        graph: as captured.
        exported: whether the model is a program that was exported before, and so has no code to look at.
    """
    origins = _origins(model, graph)
    notes = [*_unused_parameters(model, origins)]
    if exported:
        notes.append(
            "The model is an exported program. What its exporter removed (dropout, batch-norm, code for training) is "
            "not in the graph."
        )
    else:
        notes += _lost_code(model, graph)
    return TrainingInformation(origins, _running_statistics(model, graph), tuple(notes))


def _origins(model: nn.Module, graph: Graph) -> dict[str, TensorOrigin]:
    """Where each constant comes from, by address: the graph knows a shared tensor by one of its names."""
    origins = {}
    known = _names_of_tensors(model)
    for name, value in graph.constants.items():
        if isinstance(value, Tensor):
            origins[name] = known.get(_key(name, value), TensorOrigin((), "constant"))
    return origins


def _names_of_tensors(model: nn.Module) -> dict[object, TensorOrigin]:
    origins: dict[object, TensorOrigin] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = _key(name, parameter)
        names = origins[key].names if key in origins else ()
        origins[key] = TensorOrigin((*names, name), "parameter", parameter.requires_grad)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        key = _key(name, buffer)
        before = origins.get(key, TensorOrigin((), "buffer"))
        origins[key] = TensorOrigin((*before.names, name), before.kind, before.trainable)
    return origins


def _key(name: str, tensor: Tensor) -> object:
    return tensor_key(tensor) if tensor.numel() else name


def _running_statistics(model: nn.Module, graph: Graph) -> dict[str, RunningStatistics]:
    modules, buffers = dict(model.named_modules(remove_duplicate=False)), dict(model.named_buffers())
    statistics = {}
    for node in graph.operations.nodes:
        arguments = bind(node) if node.target in _BATCH_NORMS else {}
        mean = arguments.get("running_mean")
        if not isinstance(mean, fx.Node) or graph.constant(mean) is None:
            continue
        name = str(mean.target)
        path = name.rpartition(".")[0]
        counter = f"{path}.num_batches_tracked".lstrip(".")
        count, module, momentum = buffers.get(counter), modules.get(path), arguments["momentum"]
        if isinstance(module, _BatchNorm):
            momentum = module.momentum
        elif momentum == 0 and count is not None:
            momentum = None  # PyTorch captures it as 0.0; a momentum of 0 would never update what is counted
        statistics[name] = RunningStatistics(
            momentum, None if count is None else counter, 0 if count is None else int(count)
        )
    return statistics


# -------------------------------------------------------------------------------------- what the graph does not hold


def _unused_parameters(model: nn.Module, origins: Mapping[str, TensorOrigin]) -> Iterator[str]:
    used = {name for origin in origins.values() for name in origin.names}
    unused = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in used]
    if unused:
        yield (
            f"{number_of(len(unused), 'trainable parameter')} of the model, '{unused[0]}' first, took no part when the "
            "model ran in evaluation mode. Training will not change them."
        )


def _lost_code(model: nn.Module, graph: Graph) -> Iterator[str]:
    """A note on everything that the model does in training only, as far as its code tells."""
    modules = dict(model.named_modules(remove_duplicate=False))
    captured: dict[nn.Module, set[tuple[str, int]]] = {}  # module → lines that gave operations with two behaviours
    for node in graph.operations.nodes:
        module = modules.get(_path(node)) if _is_switch(node) else None
        if module is not None:
            captured.setdefault(module, set()).update((file, line) for file, line, _ in frames_of(node))
    by_reason: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        for reason in _reasons(module, captured.get(module)):
            by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        first = f"Module '{names[0]}'" if names[0] else "The model"
        others = f" and {number_of(len(names) - 1, 'other module')}" if len(names) > 1 else ""
        yield f"{first} ({type(modules[names[0]]).__name__}){others}: {reason}"


def _reasons(module: nn.Module, captured: set[tuple[str, int]] | None) -> Iterator[str]:
    """What a module does in training that the graph does not contain.

    Args:
        module: any part of the model.
        captured: the lines of its code that gave operations with two behaviours; None if there are no such operations.
    """
    if isinstance(module, _DropoutNd):
        if module.p and captured is None:
            yield f"its dropout, with probability {module.p}, did not run in evaluation mode and is not in the graph."
    elif isinstance(module, nn.MultiheadAttention):
        if module.dropout:
            yield f"its dropout of attention weights, with probability {module.dropout}, is not in the graph."
    elif not type(module).__module__.startswith("torch.") and not (
        isinstance(module, _BatchNorm) and captured is not None
    ):
        for read in _reads_of_training(type(module).__mro__):
            if not any((read.file, line) in (captured or ()) for line in read.calls):
                yield (
                    f"its code reads `self.training` at {read.file}:{read.line}. What it does there in training only "
                    "is not in the graph."
                )


def _is_switch(node: fx.Node) -> bool:
    """Whether an operation was captured with its evaluation behaviour, and can be given its training behaviour."""
    return node.target in _BATCH_NORMS or not {"train", "training", "use_input_stats"}.isdisjoint(bind(node))


def _path(node: fx.Node) -> str:
    """The path of the module that was running; PyTorch numbers repeated calls (`drop@1`)."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


@functools.cache
def _reads_of_training(classes: tuple[type, ...]) -> tuple[_Read, ...]:
    """Where an attribute `training` is read in `forward`, and in the methods that `forward` names.

    Args:
        classes: the class of a module, and what it inherits from.
    """
    methods = {
        name: function
        for owner in reversed(classes)
        if owner not in nn.Module.__mro__
        for name, value in vars(owner).items()
        if isinstance(function := inspect.unwrap(value) if callable(value) else value, FunctionType)
    }
    found: dict[_Read, None] = {}
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        function = methods.get(waiting.pop())
        for code in () if function is None else _codes(function.__code__):
            new = [name for name in code.co_names if name not in seen]
            waiting += new
            seen.update(new)
            found.update(dict.fromkeys(_reads(code)))
    return tuple(found)


def _reads(code: CodeType) -> Iterator[_Read]:
    spans = [
        (one.opname, one.argval, one.positions.lineno, one.positions.end_lineno)
        for one in dis.get_instructions(code)
        if one.positions and one.positions.lineno and one.positions.end_lineno
    ]
    calls = {(first, last) for name, _, first, last in spans if name.startswith("CALL")}
    for name, value, line, _ in spans:
        if name == "LOAD_ATTR" and value == "training":
            around = frozenset(first for first, last in calls if first <= line <= last)
            yield _Read(code.co_filename, line, around)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
