"""The front end for PyTorch modules and exported programs, through `torch.export`.

1. The model runs once, on fake tensors and in evaluation mode, and PyTorch writes down its ATen operations as one flat
   list. Functional calls and modules that are called several times need no rewriting. The batch size stays symbolic.
2. In-place operations become pure ones: by exchange where that is safe, else by PyTorch's decompositions, which
   `dropout.py` leads dropout through.
3. `program.py` turns the program into a graph, and `training.py` adds what training must know.
4. The graph is compared with the model on real samples, in batches of other sizes than the one exported.

Nothing of this touches the model: what runs is its double (`double.py`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import CalibrationError, CaptureError, ModelError
from roundwise.frontends.double import Double
from roundwise.frontends.dropout import DistinctDropout, hide_dropout, show_dropout
from roundwise.frontends.explain import callers_level, explain, first_lines, locate, way_out
from roundwise.frontends.interface import Facts, Frontend, Signature
from roundwise.frontends.memory import RecordedContiguous, has_strided_reads
from roundwise.frontends.outputs import explain_outputs
from roundwise.frontends.program import graph_of_program, read_inputs
from roundwise.frontends.scripted import signature_of_scripted
from roundwise.frontends.settings import fast_path, quiet, without_fast_path
from roundwise.frontends.training import training_information
from roundwise.frontends.wrappers import unwrapped
from roundwise.graph.graph import CallStructure, Graph, bind
from roundwise.graph.operators import WEIGHTED
from roundwise.wording import number_of

aten = torch.ops.aten

_SAMPLES = 23
"""Samples in the exported batch. PyTorch may take two equal sizes for one, and layers hardly ever have 23 channels."""

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

    def graph(self, model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        exported = isinstance(model, ExportedProgram)
        dynamic: Any
        if isinstance(model, ExportedProgram):
            module: nn.Module = model.module(check_guards=False)
            assert isinstance(module, fx.GraphModule)
            batch = read_inputs(module.graph)[1]
            dynamic = Dim.DYNAMIC if batch is None else None  # the program may have limits of its own
        else:
            module, batch = model, None
            _check_parameters(module)
            dynamic = _batch_dimension(module)
        double = Double(module)
        if double.was_training and not exported:
            warnings.warn(
                "the model is in training mode; its evaluation behaviour is quantized (dropout off, batch-norm "
                "with its running statistics). Call `model.eval()` first to say that this is what you mean.",
                UserWarning,
                stacklevel=callers_level(),
            )
        with quiet(), torch.inference_mode(False), torch.no_grad():
            graph, double, lost = _capture(double, (args, kwargs), dynamic, batch)
            graph.structure = _with_defaults(graph.structure, self.facts(model).signature)
            training = training_information(double.module, graph, exported=exported)
            graph.training = replace(training, notes=(*lost, *training.notes))
        return graph


def _capture(double: Double, inputs: _Inputs, dynamic: Any, batch: int | None) -> tuple[Graph, Double, tuple[str, ...]]:
    """The graph of a model in evaluation mode, the double with its tensors, and a note if dropout could not be kept."""
    exported, sizes = _take(inputs, batch or _SAMPLES), (2, 1) if batch is None else (batch,)
    program, kept = _export(double, exported, dynamic)
    if has_strided_reads(program.graph):
        program, kept = _export(double, exported, dynamic, record_contiguous=True)
    graph = graph_of_program(program, double.module)
    try:
        graph.notes = _check_equal(double, graph, inputs, sizes)
    except CaptureError:
        if not kept:
            raise
    else:
        return graph, double, ()
    double = double.another()
    program, _ = _export(double, exported, dynamic, keep_dropout=False)
    graph = graph_of_program(program, double.module)
    graph.notes = _check_equal(double, graph, inputs, sizes)
    note = (
        f"{number_of(kept, 'dropout operation')} could not be kept in the graph: the model overwrites the result of "
        "dropout, and with it, in evaluation mode, the input of dropout."
    )
    return graph, double, (note,)


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


def _batch_dimension(model: nn.Module) -> Dim:
    """Any number of samples; on CUDA up to 65,535, because beyond that PyTorch's batch-norm uses another kernel."""
    on_cuda = any(it.device.type == "cuda" for it in itertools.chain(model.parameters(), model.buffers()))
    return Dim("batch", min=1, max=_CUDA_BATCH if on_cuda else None)


# ------------------------------------------------------------------------------------------------------------- export


def _export(
    double: Double, inputs: _Inputs, dynamic: Any, *, keep_dropout: bool = True, record_contiguous: bool = False
) -> tuple[ExportedProgram, int]:
    """Export a model and make the program pure; also say how many dropouts were led through decompositions."""
    args, kwargs = inputs

    def attempt(model: nn.Module) -> tuple[ExportedProgram, int]:
        shapes = pytree.tree_map(
            lambda leaf: {0: dynamic} if dynamic is not None and isinstance(leaf, Tensor) and leaf.dim() else None,
            _named_signature(model, kwargs).bind(*args, **kwargs).arguments,
        )
        # With gradients, as most people export: a model that switches them on itself cannot be exported without.
        with torch.enable_grad():
            recorded = RecordedContiguous() if record_contiguous else contextlib.nullcontext()
            with DistinctDropout(), without_fast_path(), recorded:
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
            _replace_in_place(program.graph_module)
            if _is_plain(program.graph):
                return program, 0
            hidden = hide_dropout(program.graph) if keep_dropout else []
            program = program.run_decompositions({})  # nothing is taken apart but what mutates or may alias
            show_dropout(program.graph, hidden)
            return program, len(hidden)

    printed = io.StringIO()  # on failure, PyTorch prints the graph that it has so far
    try:
        with contextlib.redirect_stderr(printed):
            exported = attempt(double.module)
    except Exception as error:
        few, outputs = inputs if dynamic is None else _take(inputs, 2), None
        for samples in (few, inputs):  # few samples first: the error shows their shapes
            outputs = _run(double.another(copies_weights=True), samples)
        unknown = explain_outputs(double.module, outputs) if "in output" in str(error) else None
        if unknown is not None:
            raise CaptureError(unknown) from error
        with contextlib.redirect_stderr(printed):
            again = double.another()
            explanation = explain(double.module, error, lambda: attempt(again.module))
        raise CaptureError(explanation) from error
    sys.stderr.write(printed.getvalue())
    return exported


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
    vars(model)["forward"] = named  # of the double
    return signature


# ------------------------------------------------------------------------------------------------------------- checks


def _take(inputs: _Inputs, samples: int) -> _Inputs:
    """A copy of the inputs with this many samples, repeated from the first where there are too few."""

    def take(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(samples, device=leaf.device) % leaf.shape[0]] if leaf.dim() else leaf.clone()

    taken: _Inputs = pytree.tree_map_only(Tensor, take, inputs)
    return taken


def _run(double: Double, inputs: _Inputs) -> Any:
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
        raise CalibrationError(
            f"the model does not run on the calibration samples. It was called with {', '.join(given)} and raised "
            f"{type(error).__name__}: {first_lines(error)}{at}.\nGive samples of the shape, dtype and structure that "
            "the model's forward takes. The first dimension of every tensor counts samples, and the model must take "
            "any number of them."
        ) from error


def _check_equal(double: Double, graph: Graph, inputs: _Inputs, sizes: Sequence[int]) -> tuple[str, ...]:
    """Compare the graph with the model on real samples, in batches of some sizes.

    Returns:
        Notes on how the model's outputs depend on the caller's settings.

    Raises:
        CaptureError: their outputs differ by more than rounding explains.
    """
    double = double.another()  # for all calls, so that a second call that gives something else is seen
    if len(sizes) == 1:
        sizes = (*sizes, *sizes)
    notes = [note for samples in sizes for note in _check_equal_batch(double, graph, _take(inputs, samples), samples)]
    return tuple(notes[:1])  # of the largest batch


def _check_equal_batch(double: Double, graph: Graph, inputs: _Inputs, samples: int) -> Iterator[str]:
    """Compare the graph with the model, as the caller's settings let it run, on one batch."""
    try:
        expected = _run(double, inputs)
    except CalibrationError:
        if samples > 1:
            raise
        return  # the model needs several samples, for batch-norm with the batch's own statistics for example
    args, kwargs = inputs

    def difference_from(outputs: Any) -> str:
        try:
            return _difference(pytree.tree_leaves(outputs), pytree.tree_leaves(graph.module()(*args, **kwargs)))
        except Exception as error:
            return f"it raises {type(error).__name__}: {first_lines(error)}"

    difference = difference_from(expected)
    path = fast_path(double.another().module, *inputs)
    if path is not None and (difference or path.drops_places):
        with without_fast_path():
            difference_without = difference_from(_run(double.another(), inputs))
        if not difference_without:
            yield path.note(difference)
            return
    if difference:
        raise CaptureError(
            "the captured graph does not compute what the model computes; on a batch of "
            f"{number_of(samples, 'sample')}, {difference}. The model's code decides by something that "
            "is not in the values of its inputs: the number of samples (`if x.shape[0] > 1`), state of its own, the "
            "clock. Or it overwrites what dropout handed on, and with it dropout's input (`y = drop(x); y += 1`). Take "
            f"that out of its forward.\n{way_out(double.module, '')}"
        )


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
