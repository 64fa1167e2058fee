"""The front end for PyTorch modules and exported programs, through `torch.export`.

1. The model runs once, on fake tensors and in evaluation mode, and PyTorch writes down its ATen operations as one flat
   list. Functional calls and modules that are called several times need no rewriting. The batch size stays symbolic.
2. In-place operations become pure ones (`exporting.py`).
3. `program.py` turns the program into a graph, and `training.py` adds what training must know.
4. The graph is compared with the model on real samples, in batches of other sizes than the one exported.
5. Sizes on which the graph does not depend are found (`sizes.py`). All others stay as they are in the samples.

Nothing of this touches the model: what runs is its double (`double.py`).
"""

from __future__ import annotations

import inspect
import itertools
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import CalibrationError, CaptureError, ModelError
from roundwise.frontends.conditions import OtherSizes, other_sizes
from roundwise.frontends.double import Double
from roundwise.frontends.explain import callers_level, first_lines, locate, way_out
from roundwise.frontends.exporting import SMALLEST, Inputs, Plan, export, plan_of_module, plan_of_program, take
from roundwise.frontends.interface import Facts, Frontend, Signature
from roundwise.frontends.memory import has_strided_reads
from roundwise.frontends.program import graph_of_program
from roundwise.frontends.scripted import signature_of_scripted
from roundwise.frontends.settings import fast_path, quiet, without_fast_path
from roundwise.frontends.sizes import SizeWatch, free_sizes, has_control_flow
from roundwise.frontends.training import training_information
from roundwise.frontends.wrappers import named_from_inside, unwrapped
from roundwise.graph.graph import CallStructure, Graph, InputSpec
from roundwise.graph.sizes import Dynamic, Range
from roundwise.numerics.output_error import INTEGER_TOLERANCE, as_tensor, compare
from roundwise.wording import number_of

_ATTENTION_ALONG_BATCH = (
    "attention runs along the first dimension of the inputs, which is taken for samples: nn.MultiheadAttention and "
    "nn.Transformer take [time, batch, features] unless batch_first=True. If the first dimension is time here, "
    "sequences were cut into batches: build the model with batch_first=True, or quantize a wrapper that transposes "
    "its input"
)

_TWO_DIFFER = re.compile(r"\S+ != \S+")
"""A condition that two sizes, or a size and a number, are not equal."""


@final
class TorchExport(Frontend):
    """Reads modules, and programs that were exported before."""

    reads: ClassVar[str] = "an nn.Module or an ExportedProgram"

    def accepts(self, model: object) -> bool:
        return isinstance(model, nn.Module | ExportedProgram)

    def facts(self, model: nn.Module | ExportedProgram) -> Facts:
        tensors = list(itertools.chain(model.parameters(), model.buffers()))
        if any(is_lazy(tensor) for tensor in tensors):
            raise ModelError(
                "the model has lazy parameters, which get their shapes and values when the model is first called. Call "
                "it once, or load trained weights into it, and quantize it then."
            )
        numbers = [buffer for buffer in model.buffers() if buffer.is_floating_point() or buffer.is_complex()]
        floats = [*model.parameters(), *numbers]
        return Facts(
            _signature_of_program(model) if isinstance(model, ExportedProgram) else _signature_of_module(model),
            device=tensors[0].device if tensors else torch.device("cpu"),
            dtype=next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32),
            size=sum({(t.data_ptr(), t.nbytes): t.nbytes for t in floats}.values()),
        )

    def graph(
        self,
        model: nn.Module | ExportedProgram,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dynamic: Dynamic | None = None,
    ) -> Graph:
        exported = isinstance(model, ExportedProgram)
        module: nn.Module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
        if not exported:
            _check_parameters(module)
        double = Double(module)
        if double.was_training and not exported:
            warnings.warn(
                "the model is in training mode; its evaluation behaviour is quantized (dropout off, batch-norm "
                "with its running statistics). Call `model.eval()` first to say that this is what you mean.",
                UserWarning,
                stacklevel=callers_level(),
            )
        with named_from_inside(model), quiet(), torch.inference_mode(False), torch.no_grad():
            if isinstance(model, ExportedProgram):
                plan = plan_of_program(model, module, (args, kwargs), dynamic or {})
            else:
                plan = plan_of_module(double.module, (args, kwargs), dynamic or {})
            graph, double, lost = _capture(double, (args, kwargs), plan)
            if isinstance(model, ExportedProgram):
                _check_conditions(model, graph, (args, kwargs))
            graph.structure = _with_defaults(graph.structure, self.facts(model).signature)
            training = training_information(double.module, graph, exported=exported)
            graph.training = replace(training, notes=(*lost, *training.notes))
        return graph


def _capture(double: Double, inputs: Inputs, plan: Plan) -> tuple[Graph, Double, tuple[str, ...]]:
    """The graph of a model in evaluation mode, the double with its tensors, and a note if dropout could not be kept."""
    watch = SizeWatch(double.module) if plan.of_program is None else None
    exported = export(double, inputs, plan, _run, watch=watch)
    strided = has_strided_reads(exported.program.graph)
    if strided:
        exported = export(double.another(), inputs, plan, _run, record_contiguous=True)
    lost: tuple[str, ...] = ()
    graph = graph_of_program(exported.program, exported.double.module, plan.named)
    others = other_sizes(exported.program)
    try:
        graph.notes = _check_equal(double, graph, inputs)
    except CaptureError:
        if not exported.kept:
            raise
        lost = (
            f"{number_of(exported.kept, 'dropout operation')} could not be kept in the graph: the model overwrites the "
            "result of dropout, and with it, in evaluation mode, the input of dropout.",
        )
        exported = export(double.another(), inputs, plan, _run, keep_dropout=False, record_contiguous=strided)
        graph = graph_of_program(exported.program, exported.double.module, plan.named)
        graph.notes = _check_equal(double, graph, inputs)
    for other in others:
        _check_other_size(double, graph, inputs, other)
    if plan.of_program is not None:
        graph.inputs = plan.of_program
        batches = Range(graph.limits.batches.low, plan.batches.high)
        graph.limits = replace(graph.limits, batches=plan.batches if plan.batches.low > SMALLEST else batches)
    elif watch is not None and not watch.reads and not has_control_flow(graph.operations):
        _find_free_sizes(double, graph, inputs)
    if watch is not None and watch.attends and not any(plan.named):
        graph.notes = (*graph.notes, _ATTENTION_ALONG_BATCH)
    return graph, exported.double, lost


def _find_free_sizes(double: Double, graph: Graph, inputs: Inputs) -> None:
    """Note which sizes the graph does not depend on. The model's code reads none."""
    leaves, spec = pytree.tree_flatten(take(inputs, 2))
    numbers = [number for number, one in enumerate(graph.inputs) if isinstance(one, InputSpec)]
    specs = [one for one in graph.inputs if isinstance(one, InputSpec)]

    def agree(tensors: list[Tensor]) -> bool | None:
        changed = list(leaves)
        for number, tensor in zip(numbers, tensors, strict=True):
            changed[number] = tensor
        args, kwargs = pytree.tree_unflatten(changed, spec)
        try:
            with warnings.catch_warnings(action="ignore"), without_fast_path():
                expected = _run(double.another(), (args, kwargs))
        except CalibrationError:
            return None
        return not _difference_of(expected, graph, (args, kwargs))

    for one, variable in zip(specs, free_sizes(specs, [leaves[number] for number in numbers], agree), strict=True):
        graph.inputs = tuple(replace(it, variable=variable) if it is one else it for it in graph.inputs)


# ------------------------------------------------------------------------------------------------------- what it takes


def _signature_of_module(model: nn.Module) -> Signature:
    model = unwrapped(model)
    scripted = isinstance(model, torch.jit.ScriptModule)
    signature = signature_of_scripted(model) if scripted else inspect.signature(model.forward)
    parameters = signature.parameters.values()
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = tuple(p.name for p in plain if p.default is p.empty)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return Signature(
        required,
        tuple(p.name for p in plain),
        variadic,
        any_names=any(p.kind is p.VAR_KEYWORD for p in parameters),
        keyword_only=tuple(p.name for p in plain if p.kind is p.KEYWORD_ONLY),
        defaults={p.name: p.default for p in plain if p.default is not p.empty},
    )


def _with_defaults(structure: CallStructure, signature: Signature) -> CallStructure:
    """A structure that knows the parameters that the samples did not give."""
    positional = () if signature.variadic else tuple(it for it in signature.names if it not in signature.keyword_only)
    constants = {
        name: value for name, value in signature.defaults.items() if isinstance(value, bool | int | float | str | None)
    }
    return replace(structure, parameters=positional, defaults=constants)


def _signature_of_program(program: ExportedProgram) -> Signature:
    args, kwargs = program.call_spec.in_spec.children()
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    names = [node.name for node in inputs[: args.num_children]]
    if len(inputs) < args.num_children or any(not child.is_leaf() for child in args.children()):
        names = [f"argument {i}" for i in range(args.num_children)]
    values = [node.meta["val"] for node in inputs]
    sizes: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim() > 0]
    batch = next((size for size in sizes if isinstance(size, int)), None)
    return Signature((*names, *kwargs.context), (*names, *kwargs.context), batch=batch)


def _check_parameters(model: nn.Module) -> None:
    devices: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(
                f"'{name}' is on the 'meta' device: it has a shape but no values. Load the model's weights first."
            )
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        where = ", ".join(f"'{name}' on {device}" for device, name in devices.items())
        raise ModelError(f"the model is spread over several devices: {where}. Move it to one, e.g. `model.to('cpu')`.")


# ------------------------------------------------------------------------------------------------------------- checks


def _run(double: Double, inputs: Inputs) -> Any:
    """The model's outputs. If the model raises an error, the samples do not fit it."""
    try:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, inputs)  # the model may write to them
        return double.module(*args, **kwargs)
    except Exception as error:
        given = [
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in pytree.tree_leaves(inputs)
        ]
        place = locate(double.module, traceback.walk_tb(error.__traceback__))
        at = f", at {place}" if place else ""
        dtype = _other_dtype(double.module, inputs, error)
        raise CalibrationError(
            f"the model does not run on the calibration samples. It was called with {', '.join(given)} and raised "
            f"{type(error).__name__}: {first_lines(error)}{at}.{dtype}\nGive samples of the shape, dtype and structure "
            "that the model's forward takes. The first dimension of every tensor counts samples, and the model must "
            "take any number of them."
        ) from error


def _other_dtype(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """A sentence on samples of another dtype than the model's weights, if the error is about dtypes."""
    dtype = next((it.dtype for it in model.parameters() if it.is_floating_point()), None)
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if dtype is None or "type" not in str(error) or all(tensor.dtype == dtype for tensor in tensors):
        return ""
    return f" The model's weights are {dtype}: give inputs that are images or features as `x.to({dtype})`."


def _check_equal(double: Double, graph: Graph, inputs: Inputs) -> tuple[str, ...]:
    """Compare the graph with the model on real samples, in batches of other sizes than the one exported.

    PyTorch's own ranges begin at 2. If the graph is right for one sample too, its range begins at 1.

    Returns:
        Notes on how the model's outputs depend on the caller's settings.

    Raises:
        CaptureError: their outputs differ by more than rounding explains.
    """
    double = double.another()  # for all calls, so that a second call that gives something else is seen
    sizes = (2, 1) if graph.batch is None else (graph.batch, graph.batch)
    notes: list[str] = []
    for samples in sizes:
        try:
            notes += _check_equal_batch(double, graph, take(inputs, samples), samples)
        except CaptureError:
            if samples == 1 and graph.limits.batches.low == SMALLEST:
                break
            raise
    else:
        if graph.limits.batches.low == SMALLEST:
            graph.limits = replace(graph.limits, batches=Range(1, graph.limits.batches.high))
    return tuple(notes[:1])  # of the largest batch


def _check_equal_batch(double: Double, graph: Graph, inputs: Inputs, samples: int) -> Iterator[str]:
    """Compare the graph with the model, as the caller's settings let it run, on one batch."""
    try:
        expected = _run(double, inputs)
    except CalibrationError:
        if samples > 1:
            raise
        return  # the model needs several samples, for batch-norm with the batch's own statistics for example
    difference = _difference_of(expected, graph, inputs)
    path = fast_path(double.another().module, *inputs)
    if path is not None and (difference or path.drops_places):
        with without_fast_path():
            difference_without = _difference_of(_run(double.another(), inputs), graph, inputs)
        if not difference_without:
            yield path.note(difference)
            return
    if difference:
        raise CaptureError(
            "the captured graph does not compute what the model computes; on a batch of "
            f"{number_of(samples, 'sample')}, {difference}. The model's code decides by something that "
            "is not in the values of its inputs: the number of samples (`if x.shape[0] > 1`), state of its own, the "
            "clock, whether gradients are computed. Or it overwrites what dropout handed on, and with it dropout's "
            f"input (`y = drop(x); y += 1`). Take that out of its forward.\n{way_out(double.module, '')}"
        )


def _check_other_size(double: Double, graph: Graph, inputs: Inputs, other: OtherSizes) -> None:
    """Compare the graph with the model at a size at which a condition of the export does not hold."""
    args, kwargs = _resized(inputs, other)
    try:
        with warnings.catch_warnings(action="ignore"), without_fast_path():
            expected = _run(double.another(), (args, kwargs))
    except CalibrationError:
        return  # the model refuses that size itself
    difference = _difference_of(expected, graph, (args, kwargs))
    if difference:
        shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise CaptureError(
            f"the model's code does something else for some sizes: it was captured where {other.condition}, and with "
            f"inputs of {' and '.join(shapes)} {difference}. Take that decision out of the model's forward, or "
            f"leave that dimension out of `dynamic` if it is there.\n{way_out(double.module, '')}"
        )


def _check_conditions(program: ExportedProgram, graph: Graph, inputs: Inputs) -> None:
    """Refuse a program that holds only for every other number of samples or the like: the graph would hold for all.

    Two sizes that must differ are a condition of PyTorch's own in most programs, and are no reason to refuse one.
    """
    for other in other_sizes(program):
        if _TWO_DIFFER.fullmatch(other.condition):
            continue
        args, kwargs = _resized(inputs, other)
        try:
            graph.module()(*args, **kwargs)
        except Exception:  # noqa: S112  # the graph refuses these sizes itself
            continue
        shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise CaptureError(
            f"the program holds only where {other.condition}, and so not for inputs of {' and '.join(shapes)}. It was "
            "exported from code that decides by sizes. Give the model itself, or export it with fixed sizes."
        )


def _resized(inputs: Inputs, other: OtherSizes) -> Inputs:
    """The samples with other sizes, by cutting or repeating."""
    leaves, spec = pytree.tree_flatten(inputs)
    for (number, dim), size in other.sizes.items():
        places = torch.arange(size, device=leaves[number].device) % leaves[number].shape[dim]
        leaves[number] = leaves[number].index_select(dim, places)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def _difference_of(outputs: Any, graph: Graph, inputs: Inputs) -> str:
    """Where the graph's outputs differ from those of the model, in words; empty if they agree."""
    args, kwargs = inputs
    try:
        return _difference(pytree.tree_leaves(outputs), pytree.tree_leaves(graph.module()(*args, **kwargs)))
    except Exception as error:
        return f"it raises {type(error).__name__}: {first_lines(error)}"


def _difference(expected: list[Any], found: list[Any]) -> str:
    """Where two lists of outputs differ, in words; empty if they agree."""
    if len(expected) != len(found):
        return f"it gives {number_of(len(found), 'value')} instead of {len(expected)}"
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        y, y_hat = as_tensor(one), as_tensor(other)
        if y is None or y_hat is None or isinstance(one, Tensor) != isinstance(other, Tensor):
            if one is not other and one != other:
                return f"output {number} is {other!r} instead of {one!r}"
            continue
        if (y.shape, y.dtype) != (y_hat.shape, y_hat.dtype):
            return f"output {number} is {y_hat.dtype} {list(y_hat.shape)} instead of {y.dtype} {list(y.shape)}"
        error = compare(y_hat, y)
        # 3e-4 in float32, 0.03 in float16. A class may change with the last digit of a logit.
        tolerance = INTEGER_TOLERANCE if error.whole else torch.finfo(y.dtype).eps ** 0.5
        if error.relative_difference > tolerance:
            share = (
                f"in {error.relative_difference:.1%} of its values"
                if error.whole
                else (f"by up to {error.largest_difference:.2g}, {error.relative_difference:.2g} of its largest value")
            )
            return f"output {number} differs {share}"
    return ""
