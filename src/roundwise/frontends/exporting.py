"""Export a model, or a program that was exported before, as a program of pure ATEN operations.

1. The samples are repeated to a batch of 23. The batch is dynamic, and so are the dimensions that the user names.
2. PyTorch writes down the operations that the model's code calls. If the code does not work for all numbers of samples,
   PyTorch is asked for which (`if x.shape[0] >= 64: …` leaves 1 to 63), first with the batch of 23, then with one of 5.
3. In-place operations become pure ones: by exchange where that is safe, else by PyTorch's decompositions, which
   `dropout.py` leads dropout through.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from roundwise.errors import CalibrationError, CaptureError, RecipeError
from roundwise.frontends.double import Double
from roundwise.frontends.dropout import DistinctDropout, hide_dropout, show_dropout
from roundwise.frontends.explain import explain, find_limit
from roundwise.frontends.in_place import KeptOrder, UncertainWrite, uncertain_writes
from roundwise.frontends.memory import RecordedContiguous
from roundwise.frontends.outputs import explain_outputs
from roundwise.frontends.program import batch_range, read_inputs
from roundwise.frontends.settings import without_fast_path, without_looking_at_masks
from roundwise.frontends.sizes import SizeWatch, dynamic_leaves
from roundwise.frontends.traceable import Traceable
from roundwise.graph.graph import RESERVED, ConstantInput, InputSpec, bind
from roundwise.graph.operators import WEIGHTED
from roundwise.graph.sizes import Dynamic, Range

aten = torch.ops.aten

SMALLEST = 2
"""The smallest batch for which PyTorch finds a program to hold, if it is to find out by itself."""

_SAMPLES = 23
"""Samples in the exported batch. PyTorch may take two equal sizes for one, and layers hardly ever have 23 channels."""

_FEW = 5
"""Samples in the exported batch if the model's code does something else for 23 samples than for fewer."""

_ANY = "any number"
_TRIES = ((_SAMPLES, _ANY), (_SAMPLES, Dim.DYNAMIC), (_FEW, Dim.DYNAMIC))
"""Numbers of samples to export with, and what PyTorch is told of the batch."""

_ABOUT_OUTPUTS = ("in output", "User output")
"""Words of PyTorch's messages on results that a graph cannot have."""

_LIMITED = "Constraints violated"
"""The beginning of PyTorch's message if a model's code does not work for all sizes that are asked for."""

_WITHOUT_GRADIENTS = (
    "is being modified inplace",
    "don't support automatic differentiation",
    "is being used in an in-place operation",
)
"""Words of PyTorch's messages on operations that run without gradients only."""

_CUDA_BATCH = (1 << 16) - 1
"""The largest batch for which PyTorch's batch-norm uses one and the same kernel on CUDA."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""`(args, kwargs)` of a call."""

_PURE = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor} | {
    getattr(aten, f"{name}_").default: getattr(aten, name).default
    for name in ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "tanh")
}
"""In-place operations, and the pure operation that computes the same."""

_FRESH = WEIGHTED | {aten.batch_norm.default, aten.add.Tensor, aten.mul.Tensor, aten.cat.default}
"""Operations whose result never shares memory with an argument."""

_KNOWN_VIEWS = {aten.flatten.using_ints, aten.reshape.default}
"""Composite operations that may return memory of an argument, and that a graph may hold as they are."""

# ----------------------------------------------------------------------------------------------------------------- plan


@final
@dataclass(frozen=True)
class Plan:
    """How a model is to be exported.

    Attributes:
        tries: numbers of samples to export with, and what PyTorch is told of the batch: "any number", a hint, or None
            for a fixed batch. The next one is for models whose code does not allow the one before.
        named: for each leaf of the inputs the names of its dynamic dimensions.
        batches: how many samples the model may be given.
        of_program: what the inputs of a program are; None for a module.
    """

    tries: tuple[tuple[int, Any], ...]
    named: list[dict[int, str]]
    batches: Range = field(default_factory=Range)
    of_program: tuple[InputSpec | ConstantInput, ...] | None = None


def plan_of_module(model: nn.Module, inputs: Inputs, dynamic: Dynamic) -> Plan:
    """Any number of samples; on CUDA up to 65,535, because beyond that PyTorch's batch-norm uses another kernel.

    Raises:
        CaptureError: an input is of a kind that no graph takes.
        RecipeError: the inputs have no such dimensions as `dynamic` names.
    """
    args, kwargs = inputs
    try:
        arguments = named_signature(model, kwargs).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CalibrationError(
            f"the samples do not fit the model's forward: {error}. Give a tuple with all inputs in order, or a dict "
            "with their names."
        ) from error
    _check_kinds(arguments)
    named = dynamic_leaves(arguments, dynamic)
    on_cuda = any(it.device.type == "cuda" for it in itertools.chain(model.parameters(), model.buffers()))
    return Plan(_TRIES, named, Range(1, _CUDA_BATCH if on_cuda else None))


def _check_kinds(arguments: dict[str, Any]) -> None:
    """Refuse inputs that no graph has.

    Raises:
        CaptureError: an input is neither a tensor nor a number, a flag, text or None; or it is called as something that
            the code of every graph reads.
    """
    for name in arguments.keys() & RESERVED:
        raise CaptureError(
            f"the model's forward has a parameter '{name}', but the code that runs a graph means something else by "
            "this name. Rename the parameter."
        )
    for path, leaf in pytree.tree_flatten_with_path(arguments)[0]:
        number = isinstance(leaf, Tensor | bool | int | float | str | None)
        if not number or isinstance(leaf, enum.Enum):
            raise CaptureError(
                f"the input {pytree.keystr(path)} of the samples is {leaf!r}, a {type(leaf).__name__}. A graph takes "
                "tensors, numbers, flags, text and None. Leave it out of the samples if it is the default; otherwise "
                "wrap the model in a module whose forward gives it."
            )


def plan_of_program(program: ExportedProgram, module: nn.Module, inputs: Inputs, dynamic: Dynamic) -> Plan:
    """A program has sizes of its own; the samples must have them.

    Args:
        program: of the user.
        module: the program as a module.
        inputs: samples.
        dynamic: must be empty.

    Raises:
        CalibrationError: the samples have another dtype or size than the program.
        RecipeError: the sizes that are to be dynamic are fixed in the program.
    """
    if dynamic:
        raise RecipeError(
            "dynamic is for models that are captured here, and the model is a program whose sizes are fixed or dynamic "
            "already. Export it with `dynamic_shapes` instead."
        )
    assert isinstance(module, fx.GraphModule)
    specs, batch = read_inputs(module.graph, program.range_constraints)
    for spec, leaf in zip(specs, pytree.tree_leaves(inputs), strict=False):
        misfit = spec.misfit(leaf) if isinstance(spec, InputSpec) and isinstance(leaf, Tensor) else ""
        if isinstance(spec, InputSpec) and misfit:
            raise CalibrationError(
                f"the program was exported for {spec.in_words()} as '{spec.name}', and {misfit} in these samples. "
                "Numbers in it may come from the sizes of its own inputs. Give samples like those, or export the model "
                "again with these."
            )
    named = [spec.names if isinstance(spec, InputSpec) else {} for spec in specs]
    if batch is not None:
        return Plan(((batch, None),), named, of_program=specs)
    batches = batch_range(program)
    samples = next(one for one in (_SAMPLES, _FEW, 3, SMALLEST, batches.low) if batches.holds(one))
    return Plan(((samples, Dim.DYNAMIC),), named, batches, specs)


# --------------------------------------------------------------------------------------------------------------- export


@final
@dataclass(frozen=True, eq=False)
class Exported:
    """A pure program, and how it came about.

    Attributes:
        program: without in-place operations.
        double: that it was exported from.
        kept: how many dropouts went through decompositions.
        uncertain: writes in place whose effect depends on how values lie in memory.
        unclear: whether there may be more of them, which an export with `tell_apart` shows.
    """

    program: ExportedProgram
    double: Double
    kept: int
    uncertain: tuple[UncertainWrite, ...] = ()
    unclear: bool = False


def export(
    double: Double,
    inputs: Inputs,
    plan: Plan,
    run: Callable[[Double, Inputs], Any],
    *,
    keep_dropout: bool = True,
    record_contiguous: bool = False,
    tell_apart: bool = False,
    watch: SizeWatch | None = None,
) -> Exported:
    """Export a model and make the program pure.

    Args:
        double: of the model. It is used for the first try.
        inputs: samples.
        plan: what is dynamic.
        run: runs a double on samples, and raises if they do not fit it.
        keep_dropout: whether dropout becomes an operation of the graph.
        record_contiguous: whether calls of `contiguous` do.
        tell_apart: whether a call of `contiguous` that returns its argument itself counts as an alias of it.
        watch: sees whether the model's code reads sizes.

    Raises:
        CalibrationError: the model does not run on the samples.
        CaptureError: it cannot be exported; says why.
    """

    def attempt(double: Double, samples: int, batch: Any, gradients: bool) -> Exported:
        model, kept_order = double.module, KeptOrder(distinct=tell_apart)
        if batch == _ANY:
            batch = Dim("batch", min=1, max=plan.batches.high)
        args, kwargs = take(inputs, samples)
        leaves, spec = pytree.tree_flatten(dict(named_signature(model, kwargs).bind(*args, **kwargs).arguments))
        shapes = [
            {**({} if batch is None else {0: batch}), **dict.fromkeys(named, Dim.DYNAMIC)}
            if isinstance(leaf, Tensor) and leaf.dim()
            else None
            for leaf, named in zip(leaves, plan.named, strict=True)
        ]
        with torch.set_grad_enabled(gradients):
            with contextlib.ExitStack() as modes:
                modes.enter_context(Traceable())
                modes.enter_context(DistinctDropout())
                modes.enter_context(without_fast_path())
                modes.enter_context(without_looking_at_masks(model))
                if record_contiguous:
                    modes.enter_context(RecordedContiguous())
                modes.enter_context(kept_order)
                if watch is not None:
                    modes.enter_context(watch)
                program = torch.export.export(model, args, kwargs, dynamic_shapes=pytree.tree_unflatten(shapes, spec))
            _replace_in_place(program.graph_module)
            uncertain = uncertain_writes(program, aliases=tell_apart)
            unclear = kept_order.was_written
            if _is_plain(program.graph):
                return Exported(program, double, 0, uncertain, unclear)
            hidden = hide_dropout(program.graph) if keep_dropout else []
            program = program.run_decompositions({})  # nothing is taken apart but what mutates or may alias
            show_dropout(program.graph, hidden)
            return Exported(program, double, len(hidden), uncertain, unclear)

    printed = io.StringIO()  # on failure, PyTorch prints the graph that it has so far
    first: Exception | None = None
    used = double
    # With gradients, as most people export: a model that switches them on itself cannot be exported without.
    tries, gradients = list(plan.tries), True
    while tries:
        samples, batch = tries[0]
        try:
            with contextlib.redirect_stderr(printed):
                exported = attempt(used, samples, batch, gradients)
            if plan.of_program is not None or batch_range(exported.program).low <= SMALLEST:
                sys.stderr.write(printed.getvalue())
                return exported
        except Exception as error:
            if gradients and any(words in str(error) for words in _WITHOUT_GRADIENTS):
                gradients, used = False, double.another()
                continue
            first = first or error
            if _LIMITED not in str(error):
                break
        used = double.another()
        tries.pop(0)
    assert first is not None
    samples, batch = plan.tries[0]
    outputs = None
    fewest = samples if batch is None else max(SMALLEST, plan.batches.low)
    for few in (fewest, samples):  # few samples first: the error shows their shapes
        outputs = run(double.another(copies_weights=True), take(inputs, few))
    unknown = explain_outputs(double.module, outputs) if any(words in str(first) for words in _ABOUT_OUTPUTS) else None
    if unknown is not None:
        raise CaptureError(unknown) from first
    limit = None
    if _LIMITED in str(first):
        again = double.another()
        with contextlib.redirect_stderr(printed):
            limit = find_limit(again.module, lambda: attempt(again, samples, batch, gradients))
    raise CaptureError(explain(double.module, first, limit, plan.named)) from first


def take(inputs: Inputs, samples: int) -> Inputs:
    """A copy of the inputs with this many samples, repeated from the first where there are too few."""

    def taken(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(samples, device=leaf.device) % leaf.shape[0]] if leaf.dim() else leaf.clone()

    result: Inputs = pytree.tree_map_only(Tensor, taken, inputs)
    return result


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
    """Whether the decompositions would leave every operation as it is, or do no more than rename a known view.

    They make in-place operations pure, and take apart composite operations that may return memory of an argument. That
    takes as long as the export itself.
    """
    return all(
        node.op in ("placeholder", "get_attr", "output") or (node.op == "call_function" and _stays(node))
        for node in graph.nodes
    )


def _stays(node: fx.Node) -> bool:
    operation = node.target
    if not isinstance(operation, torch._ops.OpOverload):
        return getattr(operation, "__module__", "") in ("_operator", "math")  # arithmetic on sizes
    if operation in _KNOWN_VIEWS:
        return True
    if operation._schema.is_mutable or operation is aten.alias.default:
        return False
    if bind(node).get("training") or bind(node).get("use_input_stats"):
        return False  # it writes running statistics, which the schema does not say
    aliases = any(value.alias_info is not None for value in operation._schema.returns)
    return not aliases or not torch._C._dispatch_has_kernel_for_dispatch_key(
        operation.name(), "CompositeImplicitAutograd"
    )


def named_signature(model: nn.Module, kwargs: dict[str, Any]) -> inspect.Signature:
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
