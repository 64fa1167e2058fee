"""The front end for PyTorch modules and exported programs, through `torch.export`.

1. The model runs once, on fake tensors and in evaluation mode, and PyTorch writes down its ATen operations as one flat
   list. Functional calls and modules that are called several times need no rewriting. The batch size stays symbolic.
2. In-place operations become pure ones: by exchange where that is safe, else by PyTorch's decompositions, which
   `dropout.py` leads dropout through.
3. `program.py` turns the program into a graph, and `training.py` adds what training must know.
4. The graph is compared with the model on real samples, in batches of other sizes than the one exported.

The model is left as it was.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import sys
import traceback
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import CalibrationError, CaptureError, ModelError, RecipeError
from roundwise.frontends.dropout import DistinctDropout, hide_dropout, show_dropout
from roundwise.frontends.explain import callers_level, explain, first_lines, locate, way_out
from roundwise.frontends.interface import Facts, Frontend, Signature
from roundwise.frontends.memory import RecordedContiguous, has_strided_reads
from roundwise.frontends.preserve import model_left_as_it_was, quiet_and_unfused
from roundwise.frontends.program import batch_range, graph_of_program, read_inputs
from roundwise.frontends.sizes import SizeWatch, dynamic_leaves, free_sizes
from roundwise.frontends.training import training_information
from roundwise.graph.graph import ConstantInput, Graph, InputSpec, bind
from roundwise.graph.operators import WEIGHTED
from roundwise.graph.sizes import Dynamic, Range
from roundwise.wording import number_of

aten = torch.ops.aten

_SAMPLES = 23
"""Samples in the exported batch. PyTorch may take two equal sizes for one, and layers hardly ever have 23 channels."""

_FEW = 5
"""Samples in the exported batch if the model's code does something else for 23 samples than for fewer."""

_SMALLEST = 2
"""The smallest batch for which PyTorch finds a graph to hold, if it is to find out by itself."""

_ANY = "any number"
_TRIES = ((_SAMPLES, _ANY), (_SAMPLES, Dim.DYNAMIC), (_FEW, Dim.DYNAMIC))
"""Any batch size; else those that PyTorch finds the exported operations to hold for: `if x.shape[0] >= 64: …`."""

_CUDA_BATCH = (1 << 16) - 1
"""The largest batch for which PyTorch's batch-norm uses one and the same kernel on CUDA."""

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""`(args, kwargs)` of a call."""

_PURE = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor} | {
    getattr(aten, f"{name}_").default: getattr(aten, name).default
    for name in ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "tanh")
}
"""In-place operations, and the pure operation that computes the same."""

_FRESH = WEIGHTED | {aten.batch_norm.default, aten.add.Tensor, aten.mul.Tensor, aten.cat.default}
"""Operations whose result never shares memory with an argument."""

_PLAIN = (
    _FRESH
    | frozenset(_PURE.values())
    | {
        aten.adaptive_avg_pool2d.default,
        aten.avg_pool2d.default,
        aten.div.Tensor,
        aten.dropout.default,
        aten.flatten.using_ints,
        aten.gelu.default,
        aten.max_pool2d.default,
        aten.mean.dim,
        aten.pad.default,
        aten.slice.Tensor,
        aten.sub.Tensor,
    }
)
"""Operations that write to no tensor. A graph of nothing else needs no decompositions."""


@final
class TorchExport(Frontend):
    """Reads modules, and programs that were exported before."""

    reads: ClassVar[str] = "an nn.Module or an ExportedProgram"

    def accepts(self, model: object) -> bool:
        return isinstance(model, nn.Module | ExportedProgram)

    def facts(self, model: nn.Module | ExportedProgram) -> Facts:
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                f"the model is a {type(model).__name__}, compiled by TorchScript, which torch.export cannot read. "
                "Give the nn.Module that was traced or scripted."
            )
        tensors = list(itertools.chain(model.parameters(), model.buffers()))
        if any(is_lazy(tensor) for tensor in tensors):
            raise ModelError(
                "the model has lazy parameters, which get their shapes and values when the model is first called. Call "
                "it once, or load trained weights into it, and quantize it then."
            )
        floats = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
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
        if isinstance(model, ExportedProgram):
            module: nn.Module = model.module(check_guards=False)
            plan = _plan_of_program(model, module, (args, kwargs), dynamic)
        else:
            module = model
            _check_parameters(module)
            named = dynamic_leaves(_named_signature(module, kwargs).bind(*args, **kwargs).arguments, dynamic or {})
            plan = _Plan(_TRIES, named, _batches_of(module))
            if any(part.training for part in module.modules()):
                warnings.warn(
                    "the model is in training mode; its evaluation behaviour is quantized (dropout off, batch-norm "
                    "with its running statistics). Call `model.eval()` first to say that this is what you mean.",
                    UserWarning,
                    stacklevel=callers_level(),
                )
        with model_left_as_it_was(module), quiet_and_unfused(), torch.inference_mode(False), torch.no_grad():
            for part in module.modules():
                part.training = False
            graph, lost = _capture(module, (args, kwargs), plan)
            training = training_information(module, graph, exported=exported)
            graph.training = replace(training, notes=(*lost, *training.notes))
        return graph


@final
@dataclass(frozen=True)
class _Plan:
    """How a model is to be exported.

    Attributes:
        tries: numbers of samples to export with, and what PyTorch is told of the batch: a dimension, a hint, or None
            for a fixed batch; the next one is taken where the model does not allow the one before.
        named: for each leaf of the inputs the names of its dynamic dimensions.
        batches: how many samples the model may be given.
        of_program: what the inputs of a program are; None for a module.
    """

    tries: tuple[tuple[int, Any], ...]
    named: list[dict[int, str]]
    batches: Range = field(default_factory=Range)
    of_program: tuple[InputSpec | ConstantInput, ...] | None = None


def _plan_of_program(program: ExportedProgram, module: nn.Module, inputs: _Inputs, dynamic: Dynamic | None) -> _Plan:
    """A program has sizes of its own; the samples must have them.

    Raises:
        CalibrationError: the samples have another dtype or size than the program.
        RecipeError: the sizes that are to be dynamic are fixed in the program.
    """
    assert isinstance(module, fx.GraphModule)
    specs, batch = read_inputs(module.graph, program.range_constraints)
    leaves = pytree.tree_leaves(inputs)
    if dynamic:
        raise RecipeError(
            "dynamic is for models that are captured here, and the model is a program whose sizes are fixed or dynamic "
            "already. Export it with `dynamic_shapes` instead."
        )
    for spec, leaf in zip(specs, leaves, strict=False):
        if isinstance(spec, InputSpec) and isinstance(leaf, Tensor):
            misfit = spec.misfit(leaf)
            if misfit:
                raise CalibrationError(
                    f"the program was exported for {spec.in_words()} as '{spec.name}', and {misfit} in these samples. "
                    "Numbers in it may come from the sizes of its own inputs. Give samples like those, or export the "
                    "model again with these."
                )
    named = [spec.names if isinstance(spec, InputSpec) else {} for spec in specs]
    if batch is not None:
        return _Plan(((batch, None),), named, of_program=specs)
    batches = batch_range(program)
    samples = next(one for one in (_SAMPLES, _FEW, batches.low) if batches.holds(one))
    return _Plan(((samples, Dim.DYNAMIC),), named, of_program=specs, batches=batches)


def _capture(model: nn.Module, inputs: _Inputs, plan: _Plan) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a model in evaluation mode, and notes on what it could not keep."""
    watch = SizeWatch(model) if plan.of_program is None else None
    program, kept = _export(model, inputs, plan, watch=watch)
    strided = has_strided_reads(program.graph)
    if strided:
        program, kept = _export(model, inputs, plan, record_contiguous=True)
    graph = graph_of_program(program, model, plan.named)
    notes: tuple[str, ...] = ()
    try:
        _check_equal(model, graph, inputs)
    except CaptureError:
        if not kept:
            raise
        program, _ = _export(model, inputs, plan, keep_dropout=False, record_contiguous=strided)
        graph = graph_of_program(program, model, plan.named)
        _check_equal(model, graph, inputs)
        notes = (
            f"{number_of(kept, 'dropout operation')} could not be kept in the graph: the model overwrites the result "
            "of dropout, and with it, in evaluation mode, the input of dropout.",
        )
    if plan.of_program is not None:
        graph.inputs = plan.of_program
        batches = Range(graph.limits.batches.low, plan.batches.high)
        graph.limits = replace(graph.limits, batches=plan.batches if plan.batches.low > _SMALLEST else batches)
    elif watch is not None and not watch.reads:
        _find_free_sizes(model, graph, inputs)
    return graph, notes


def _find_free_sizes(model: nn.Module, graph: Graph, inputs: _Inputs) -> None:
    """Note which sizes the graph does not depend on. The model's code reads none."""
    samples = 2 if graph.batch is None else graph.batch
    leaves, spec = pytree.tree_flatten(_take(inputs, samples))
    numbers = [number for number, one in enumerate(graph.inputs) if isinstance(one, InputSpec)]
    specs = [one for one in graph.inputs if isinstance(one, InputSpec)]

    def agree(tensors: list[Tensor]) -> bool | None:
        changed = list(leaves)
        for number, tensor in zip(numbers, tensors, strict=True):
            changed[number] = tensor
        args, kwargs = pytree.tree_unflatten(changed, spec)
        try:
            with warnings.catch_warnings(action="ignore"):
                expected = _run(model, (args, kwargs))
        except CalibrationError:
            return None
        return not _difference_of(expected, graph, (args, kwargs))

    for spec_, variable in zip(specs, free_sizes(specs, [leaves[n] for n in numbers], agree), strict=True):
        graph.inputs = tuple(replace(one, variable=variable) if one is spec_ else one for one in graph.inputs)


# ------------------------------------------------------------------------------------------------------- what it takes


def _signature_of_module(model: nn.Module) -> Signature:
    parameters = inspect.signature(model.forward).parameters.values()
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = tuple(p.name for p in plain if p.default is p.empty)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    any_names = not plain and not variadic and len(parameters) > 0
    return Signature(required, tuple(p.name for p in plain), variadic, any_names)


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


def _batches_of(model: nn.Module) -> Range:
    """Any number of samples; on CUDA up to 65,535, because beyond that PyTorch's batch-norm uses another kernel."""
    on_cuda = any(tensor.device.type == "cuda" for tensor in model.state_dict().values())
    return Range(1, _CUDA_BATCH if on_cuda else None)


# ------------------------------------------------------------------------------------------------------------- export


def _export(
    model: nn.Module,
    inputs: _Inputs,
    plan: _Plan,
    *,
    keep_dropout: bool = True,
    record_contiguous: bool = False,
    watch: SizeWatch | None = None,
) -> tuple[ExportedProgram, int]:
    """Export a model and make the program pure; also say how many dropouts were led through decompositions.

    Args:
        model: in evaluation mode.
        inputs: samples.
        plan: what is dynamic.
        keep_dropout: whether dropout becomes an operation of the graph.
        record_contiguous: whether calls of `contiguous` do.
        watch: sees whether the model's code reads sizes.

    Raises:
        CalibrationError: the model does not run on the samples.
        CaptureError: it cannot be exported; says why.
    """

    def attempt(samples: int, batch: Any) -> tuple[ExportedProgram, int]:
        if batch == _ANY:
            batch = Dim("batch", min=1, max=plan.batches.high)
        args, kwargs = _take(inputs, samples)
        arguments = _named_signature(model, kwargs).bind(*args, **kwargs).arguments
        leaves, spec = pytree.tree_flatten(dict(arguments))
        shapes = [
            {**({0: batch} if batch is not None else {}), **dict.fromkeys(named, Dim.DYNAMIC)}
            if isinstance(leaf, Tensor) and leaf.dim()
            else None
            for leaf, named in zip(leaves, plan.named, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            # With gradients, as most people export: a model that switches them on itself cannot be exported without.
            stack.enter_context(torch.enable_grad())
            with contextlib.ExitStack() as modes:
                modes.enter_context(DistinctDropout())
                if record_contiguous:
                    modes.enter_context(RecordedContiguous())
                if watch is not None:
                    modes.enter_context(watch)
                program = torch.export.export(model, args, kwargs, dynamic_shapes=pytree.tree_unflatten(shapes, spec))
            _replace_in_place(program.graph_module)
            if _is_plain(program.graph):
                return program, 0
            hidden = hide_dropout(program.graph) if keep_dropout else []
            program = program.run_decompositions({})  # nothing is taken apart but what mutates or may alias
            show_dropout(program.graph, hidden)
            return program, len(hidden)

    printed = io.StringIO()  # on failure, PyTorch prints the graph that it has so far
    errors: list[Exception] = []
    for samples, batch in plan.tries:
        try:
            with contextlib.redirect_stderr(printed):
                exported = attempt(samples, batch)
            if plan.of_program is not None or batch_range(exported[0]).low <= _SMALLEST:
                sys.stderr.write(printed.getvalue())
                return exported
        except Exception as error:
            errors.append(error)
            if "Constraints violated" not in str(error):
                break
    samples, batch = plan.tries[0]
    for few in (samples if batch is None else 2, samples):  # few samples first: the error shows their shapes
        _run(model, _take(inputs, few))
    with contextlib.redirect_stderr(printed):
        explanation = explain(model, errors[0], lambda: attempt(samples, batch), plan.named)
    raise CaptureError(explanation) from errors[0]


def _replace_in_place(module: fx.GraphModule) -> None:
    """Exchange in-place operations for pure ones, `relu_(bn(x))` for `relu(bn(x))`, where that is safe.

    It is safe where the overwritten tensor is new and nothing else reads it. PyTorch's decompositions replace every
    in-place operation, but take as long as the export itself.
    """
    fresh = {node for node in module.graph.nodes if node.target in _FRESH}
    for node in module.graph.nodes:
        if node.target in _PURE and node.args[0] in fresh and len(node.args[0].users) == 1:
            values = [source.meta.get("val") for source in node.all_input_nodes]
            # Of operands of several dtypes, the pure operation gives another dtype than the one in place.
            if len({getattr(value, "dtype", None) for value in values}) == 1:
                node.target = _PURE[node.target]
                fresh.add(node)
    module.recompile()


def _is_plain(graph: fx.Graph) -> bool:
    """Whether no operation is left that the decompositions must make pure."""
    kinds = {"placeholder", "get_attr", "output"}
    return all(
        node.op in kinds
        or (node.op == "call_function" and node.target in _PLAIN and not bind(node).get("training"))  # of batch-norm
        for node in graph.nodes
    )


def _named_signature(model: nn.Module, kwargs: dict[str, Any]) -> inspect.Signature:
    """The signature of forward, with its `**kwargs` as named parameters: torch.export cannot take them as they are."""
    signature = inspect.signature(model.forward)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(parameters) == len(signature.parameters):
        return signature
    names = [name for name in kwargs if name not in signature.parameters]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    forward = model.forward

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    signature = signature.replace(parameters=parameters)
    vars(named)["__signature__"] = signature
    vars(model)["forward"] = named  # taken back by `model_left_as_it_was`
    return signature


# ------------------------------------------------------------------------------------------------------------- checks


def _take(inputs: _Inputs, samples: int) -> _Inputs:
    """A copy of the inputs with this many samples, repeated from the first where there are too few."""

    def take(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(samples, device=leaf.device) % leaf.shape[0]] if leaf.dim() else leaf.clone()

    taken: _Inputs = pytree.tree_map_only(Tensor, take, inputs)
    return taken


def _run(model: nn.Module, inputs: _Inputs) -> Any:
    """The model's outputs. If the model raises an error, the samples do not fit it."""
    try:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, inputs)  # the model may write to them
        return model(*args, **kwargs)
    except Exception as error:
        given = [
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in pytree.tree_leaves(inputs)
        ]
        place = locate(model, traceback.walk_tb(error.__traceback__))
        at = f", at {place}" if place else ""
        raise CalibrationError(
            f"the model does not run on the calibration samples. It was called with {', '.join(given)} and raised "
            f"{type(error).__name__}: {first_lines(error)}{at}.\nGive samples of the shape, dtype and structure that "
            "the model's forward takes. The first dimension of every tensor counts samples, and the model must take "
            "any number of them."
        ) from error


def _check_equal(model: nn.Module, graph: Graph, inputs: _Inputs) -> None:
    """Compare the graph with the model on real samples, in batches of other sizes than the one exported.

    PyTorch's own ranges begin at 2. If the graph is right for one sample too, its range begins at 1.

    Raises:
        CaptureError: their outputs differ by more than rounding explains.
    """
    sizes = (2, 1) if graph.batch is None else (graph.batch,)
    for samples in sizes:
        try:
            _check_equal_batch(model, graph, _take(inputs, samples), samples)
        except CaptureError:
            if samples == 1 and graph.limits.batches.low == _SMALLEST:
                return
            raise
    if graph.limits.batches.low == _SMALLEST:
        graph.limits = replace(graph.limits, batches=Range(1, graph.limits.batches.high))


def _check_equal_batch(model: nn.Module, graph: Graph, inputs: _Inputs, samples: int) -> None:
    try:
        expected = _run(model, inputs)
    except CalibrationError:
        if samples > 1:
            raise
        return  # the model needs several samples, for batch-norm with the batch's own statistics for example
    if difference := _difference_of(expected, graph, inputs):
        raise CaptureError(
            "the captured graph does not compute what the model computes; on a batch of "
            f"{number_of(samples, 'sample')}, {difference}. The model's code decides by something that "
            "is not in the values of its inputs: the number of samples (`if x.shape[0] > 1`), state of its own, the "
            "clock. Or it overwrites what dropout handed on, and with it dropout's input (`y = drop(x); y += 1`). Take "
            f"that out of its forward.\n{way_out(model, '')}"
        )


def _difference_of(expected: Any, graph: Graph, inputs: _Inputs) -> str:
    """Where the graph's outputs differ from those of the model, in words; empty if they agree."""
    args, kwargs = inputs
    try:
        return _difference(pytree.tree_leaves(expected), pytree.tree_leaves(graph.module()(*args, **kwargs)))
    except Exception as error:
        return f"it raises {type(error).__name__}: {first_lines(error)}"


def _difference(expected: list[Any], found: list[Any]) -> str:
    """Where two lists of outputs differ, in words; empty if they agree."""
    if len(expected) != len(found):
        return f"it gives {number_of(len(found), 'value')} instead of {len(expected)}"
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                return f"output {number} is {other.dtype} {list(other.shape)} instead of {one.dtype} {list(one.shape)}"
            if one.is_floating_point() and one.numel():
                tolerance = torch.finfo(one.dtype).eps ** 0.5  # 3e-4 in float32, 0.03 in float16
                difference, size = (one - other).float().nan_to_num().abs().max(), one.float().nan_to_num().abs().max()
                if difference > tolerance * size:
                    return f"output {number} differs by up to {difference:.2g}, where its values reach {size:.2g}"
        elif isinstance(one, Tensor) or isinstance(other, Tensor) or one != other:
            return f"output {number} is {other!r} instead of {one!r}"
    return ""
