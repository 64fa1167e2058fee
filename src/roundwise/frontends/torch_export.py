"""Capture: any PyTorch module as one flat list of ATen operations, through `torch.export`.

The model's Python runs once on fake tensors, so functional calls, reused modules and in-place operations need no
rewriting; in-place operations come out as pure ones. The batch dimension stays symbolic. What comes out is compared
with the model on real samples, and the model is left as it was.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import CalibrationError, CaptureError, ModelError
from roundwise.frontends.explain import explain, first_lines, locate, place_of, way_out
from roundwise.graph.graph import ConstantInput, Graph, InputSpec, bind, is_random
from roundwise.graph.operators import WEIGHTED
from roundwise.wording import number_of

__all__ = ["ConstantInput", "Graph", "InputSpec", "bind", "capture_graph"]

aten = torch.ops.aten

_EXAMPLE = 23
"""Samples in the batch that is exported: PyTorch may take equal sizes for the same size, and 23 is hardly a layer's."""

_PURE = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor} | {
    getattr(aten, f"{name}_").default: getattr(aten, name).default
    for name in ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "tanh")
}
"""In-place operations, and the same without."""

_FRESH = WEIGHTED | {aten.batch_norm.default, aten.add.Tensor, aten.mul.Tensor, aten.cat.default}
"""Operations whose result is memory of its own, whatever their arguments."""

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
"""Operations that write to nothing, and that may stay as they are."""

CUDA_BATCH = (1 << 16) - 1
"""The most samples that one and the same kernel of PyTorch's takes for batch-norm on CUDA."""


def capture_graph(model: nn.Module | ExportedProgram, args: Sequence[Any], kwargs: dict[str, Any]) -> Graph:
    """Turn a model into a `Graph`.

    Args:
        model: in any mode, on any one device; or a program that was exported before.
        args, kwargs: an example of its inputs, at least 2 samples along the first dimension of every tensor.

    Raises:
        ModelError: parameters without data, or on several devices.
        CalibrationError: the model does not run on the example.
        CaptureError: the model runs, but cannot be turned into a graph that computes the same; says where and what to
            do.
    """
    batch = None
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
        dynamic = Dim.DYNAMIC  # a program may have limits of its own,
        batch = _inputs(Graph.of_module(model))[1]  # or be made for one batch size
    else:
        _check_parameters(model)
        dynamic = batch_dimension(model)
        if any(module.training for module in model.modules()):
            warnings.warn(
                "the model is in training mode; its evaluation behaviour is quantized (dropout off, batch-norm with "
                "its running statistics). Call `model.eval()` first to say that this is what you mean.",
                UserWarning,
                stacklevel=4,  # who called `quantize` or its like
            )
    with _left_as_it_was(model), _quiet(), torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            module.training = False
        inputs = tuple(args), kwargs
        graph = _to_graph(_export(model, *_take(inputs, batch or _EXAMPLE), None if batch else dynamic), model)
        for samples in (batch,) if batch else (2, 1):
            _check_equal(model, graph, *_take(inputs, samples))
    return graph


def batch_dimension(model: nn.Module) -> Dim:
    """Any number of samples; on CUDA up to 65,535, since beyond that PyTorch's batch-norm takes another kernel."""
    on_cuda = any(tensor.device.type == "cuda" for tensor in model.state_dict().values())
    return Dim("batch", min=1, max=CUDA_BATCH if on_cuda else None)


def _take(inputs: tuple[tuple[Any, ...], dict[str, Any]], samples: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A copy with so many samples, again from the first where there are too few."""

    def take(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(samples, device=leaf.device) % leaf.shape[0]] if leaf.dim() else leaf.clone()

    taken: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(Tensor, take, inputs)
    return taken


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> ExportedProgram:
    def attempt() -> ExportedProgram:
        shapes = pytree.tree_map(
            lambda leaf: {0: dynamic} if dynamic is not None and isinstance(leaf, Tensor) and leaf.dim() else None,
            _signature(model, kwargs).bind(*args, **kwargs).arguments,
        )
        # With gradients, as most people export: a model that switches them on itself cannot be exported without.
        with torch.enable_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
            _replace_in_place(program.graph_module)
            if not _is_plain(program.graph):
                program = program.run_decompositions({})  # in-place operations go, nothing is taken apart
        return program

    said = io.StringIO()  # on failure, PyTorch prints the graph that it has so far
    try:
        with contextlib.redirect_stderr(said):
            program = attempt()
    except Exception as error:
        few = (args, kwargs) if dynamic is None else _take((args, kwargs), 2)
        for inputs in (few, (args, kwargs)):  # few samples first: the error shows their shapes
            _run(model, *inputs)
        with contextlib.redirect_stderr(said):
            explanation = explain(model, error, attempt)
        raise CaptureError(explanation) from error
    sys.stderr.write(said.getvalue())
    return program


def _replace_in_place(module: fx.GraphModule) -> None:
    """`relu_(bn(x))` becomes `relu(bn(x))`, and its like: what is overwritten is new, and nobody else reads it.

    PyTorch would replace all in-place operations, but takes much longer over one than over a pure one. Those that may
    overwrite a part of something else are left to it.
    """
    fresh = {node for node in module.graph.nodes if node.target in _FRESH}
    for node in module.graph.nodes:
        if node.target in _PURE and node.args[0] in fresh and len(node.args[0].users) == 1:
            values = [source.meta.get("val") for source in node.all_input_nodes]
            if len({getattr(value, "dtype", None) for value in values}) == 1:  # of several the pure one gives another
                node.target = _PURE[node.target]
                fresh.add(node)
    module.recompile()


def _is_plain(graph: fx.Graph) -> bool:
    """Whether nothing is left to be made pure, which takes PyTorch as long as the export itself."""
    kinds = {"placeholder", "get_attr", "output"}
    return all(
        node.op in kinds
        or (node.op == "call_function" and node.target in _PLAIN and not bind(node).get("training"))  # of batch-norm
        for node in graph.nodes
    )


def _signature(model: nn.Module, kwargs: dict[str, Any]) -> inspect.Signature:
    """The signature of forward, with a name for each of its `**kwargs`, which torch.export cannot take as they are."""
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
    vars(model)["forward"] = named  # taken back by `_left_as_it_was`
    return signature


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's outputs; an error of the model's becomes one about the samples."""
    try:
        copied_args, copied_kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))  # it may write to them
        return model(*copied_args, **copied_kwargs)
    except Exception as error:
        given = [
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in pytree.tree_leaves((args, kwargs))
        ]
        place = locate(model, traceback.walk_tb(error.__traceback__))
        at = f", at {place}" if place else ""
        raise CalibrationError(
            f"the model does not run on the calibration samples. It was called with {', '.join(given)} and raised "
            f"{type(error).__name__}: {first_lines(error)}{at}.\nGive samples of the shape, dtype and structure that "
            "the model's forward takes. The first dimension of every tensor counts samples, and the model must take "
            "any number of them."
        ) from error


def _to_graph(program: ExportedProgram, model: nn.Module | None) -> Graph:
    flat = program.module(check_guards=False)
    assert isinstance(flat, fx.GraphModule)
    graph = Graph.of_module(flat)
    _drop_writes(graph, model)
    _drop_checks(graph)
    _merge_constants(graph)
    graph.prune()
    _check_deterministic(graph)
    graph.inputs, graph.batch = _inputs(graph)
    return graph


def _check_equal(model: nn.Module, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare with the model on a batch of another size than the one exported."""
    samples = next(len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
    try:
        expected = _run(model, args, kwargs)
    except CalibrationError:
        if samples > 1:
            raise
        return  # it needs several samples: batch-norm with the batch's own statistics, for example
    try:
        difference = _difference(pytree.tree_leaves(expected), pytree.tree_leaves(graph.module()(*args, **kwargs)))
    except Exception as error:
        difference = f"it raises {type(error).__name__}: {first_lines(error)}"
    if difference:
        raise CaptureError(
            "the captured graph does not compute what the model computes; on a batch of "
            f"{number_of(samples, 'sample')}, {difference}. The model's code decides by something that "
            "is not in the values of its inputs: the number of samples (`if x.shape[0] > 1`), state of its own, the "
            "clock. Or it overwrites what dropout handed on, and with it dropout's input (`y = drop(x); y += 1`). Take "
            f"that out of its forward.\n{way_out(model, '')}"
        )


def _difference(expected: list[Any], found: list[Any]) -> str:
    """In words, or empty."""
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


def _check_parameters(model: nn.Module) -> None:
    devices: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ModelError(f"'{name}' has no shape yet: its module is lazy. Call the model once on a sample first.")
        if tensor.is_meta:
            raise ModelError(
                f"'{name}' is on the 'meta' device: it has a shape but no values. Load the model's weights first."
            )
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        where = ", ".join(f"'{name}' on {device}" for device, name in devices.items())
        raise ModelError(f"the model is spread over several devices: {where}. Move it to one, e.g. `model.to('cpu')`.")


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every module has afterwards the attributes that it had before: mode, buffers, hooks.

    Buffers are lent as copies, since running a model may write to them. Attributes that are lists, dicts or sets get
    their content back; what deeper Python objects hold is out of reach.
    """
    copies: dict[Tensor, Tensor] = {}
    before: list[tuple[Any, Any]] = []
    for module in model.modules():
        attributes = vars(module)
        before.append((attributes, dict(attributes)))
        before += [(value, dict(value)) for value in attributes.values() if isinstance(value, dict)]
        before += [(value, list(value)) for value in attributes.values() if isinstance(value, list | set)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(buffer, buffer.detach().clone())
    try:
        yield
    finally:
        for container, content in before:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No fused attention kernel that hides its linear layers, and no word about PyTorch's own insides."""
    fast = torch.backends.mha.get_fastpath_enabled()
    loggers = [log for name, log in logging.root.manager.loggerDict.items() if name.partition(".")[0] == "torch"]
    handlers = {handler for log in loggers if isinstance(log, logging.Logger) for handler in log.handlers}

    def below_warning(record: logging.LogRecord) -> bool:  # more is only said if TORCH_LOGS asks for it
        return record.levelno < logging.WARNING

    torch.backends.mha.set_fastpath_enabled(False)
    for handler in handlers:
        handler.addFilter(below_warning)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\..*|copyreg", category=FutureWarning)
            warnings.filterwarnings("ignore", module=r"torch\..*", category=DeprecationWarning)
            # What it assigns is taken back, see `_left_as_it_was`.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            # Of every tensor that enters `torch.cond`.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(below_warning)
        torch.backends.mha.set_fastpath_enabled(fast)


def _drop_writes(graph: Graph, model: nn.Module | None) -> None:
    """A model that writes to its input is captured without that; one that writes to its own state cannot be."""
    for node in list(graph.operations.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.copy_.default:
            destination, source = node.args[:2]
            assert isinstance(destination, fx.Node)
            assert isinstance(source, fx.Node)
            if destination.op == "get_attr":
                name = str(destination.target)
                out = "" if model is None else "\n" + way_out(model, name.rpartition(".")[0])
                raise CaptureError(
                    f"the model changes its own state while it runs: it writes to '{name}'{_at(source)}. A quantized "
                    "network is a pure function of its inputs. Make that buffer an input and an output of forward, or "
                    f"leave it alone in evaluation mode (`if self.training: …`).{out}"
                )
            node.replace_all_uses_with(source)
            graph.operations.erase_node(node)


def _check_deterministic(graph: Graph) -> None:
    """Noise would make the float and the quantized network incomparable, and every run another network."""
    for node in graph.operations.nodes:
        if is_random(node):
            raise CaptureError(
                f"the model draws random numbers in evaluation mode: {node.target}{_at(node)}. No two runs agree, so "
                "there is no output to reproduce. Dropout must know the mode (`nn.Dropout`, or `F.dropout(x, p, "
                "training=self.training)`); noise that belongs to the model can become an input of forward."
            )


def _at(node: fx.Node) -> str:
    place = place_of(node)
    return f" at {place}" if place else ""


def _drop_checks(graph: Graph) -> None:
    """Drop what an exported graph holds only to check its inputs at run time."""
    for node in reversed(list(graph.operations.nodes)):
        if node.op == "call_module" and not node.users:
            graph.operations.erase_node(node)


def _merge_constants(graph: Graph) -> None:
    """One name and one node for each tensor, also where the model knows it by several (tied weights)."""
    keepers: dict[Any, fx.Node] = {}
    for node in list(graph.operations.nodes):
        if node.op != "get_attr":
            continue
        value = graph.constants[str(node.target)]
        key: Any = str(node.target)
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else key
        if key in keepers:
            node.replace_all_uses_with(keepers[key])
            graph.operations.erase_node(node)
        else:
            keepers[key] = node


def _inputs(graph: Graph) -> tuple[tuple[InputSpec | ConstantInput, ...], int | None]:
    specs: list[InputSpec | ConstantInput] = []
    batch: int | None = None
    for node in graph.operations.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if value is None or isinstance(value, bool | int | float | str):
            specs.append(ConstantInput(value))
            continue
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"input '{node.name}' of the program is neither a tensor nor a fixed value, but {type(value).__name__} "
                f"{value}. Export the program with that value fixed, or as a tensor."
            )
        shape = tuple(size if type(size) is int else None for size in value.shape)
        if None in shape[1:]:
            raise CaptureError(
                f"input '{node.name}' of the program has further dynamic dimensions besides the batch: "
                f"{list(value.shape)}. Export it with the first dimension dynamic and the others fixed."
            )
        if shape and shape[0] is not None:
            batch = shape[0]
        specs.append(InputSpec(node.name, shape, value.dtype))
    return tuple(specs), batch
