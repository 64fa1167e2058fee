"""The front end for PyTorch modules and exported programs, through `torch.export`.

1. The model runs on a few samples, so that what its code keeps between calls holds real tensors.
2. It runs on fake tensors, in evaluation mode, and PyTorch writes down its ATen operations as one flat list. Functional
   calls and modules that are called several times need no rewriting. The batch size stays symbolic.
3. In-place operations become pure ones (`exporting.py`).
4. `program.py` turns the program into a graph, and `training.py` adds what training must know.
5. The graph is compared with the model on real samples (`checks.py`).
6. Sizes on which the graph does not depend are found (`sizes.py`). All others stay as they are in the samples.

Nothing of this touches the model: what runs is its double (`double.py`).
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import CalibrationError, CaptureError, ModelError
from roundwise.frontends.checks import (
    FirstRun,
    check_conditions,
    check_equal,
    check_other_size,
    difference_of,
    run,
)
from roundwise.frontends.conditions import conditions_of
from roundwise.frontends.double import Double
from roundwise.frontends.explain import callers_level
from roundwise.frontends.exporting import (
    SMALLEST,
    Exported,
    Inputs,
    Plan,
    export,
    plan_of_module,
    plan_of_program,
    take,
)
from roundwise.frontends.in_place import CURE, UncertainWrite
from roundwise.frontends.interface import Facts, Frontend, Signature
from roundwise.frontends.memory import has_strided_reads
from roundwise.frontends.program import graph_of_program
from roundwise.frontends.scripted import signature_of_scripted
from roundwise.frontends.settings import quiet, without_fast_path
from roundwise.frontends.sizes import SizeWatch, free_sizes, has_control_flow
from roundwise.frontends.training import training_information
from roundwise.frontends.ways_of_use import (
    depends_on_layout,
    note_on_gradients,
    note_on_same_inputs,
    note_on_training,
)
from roundwise.frontends.wrappers import named_from_inside, unwrapped
from roundwise.graph.graph import CallStructure, Graph, InputSpec
from roundwise.graph.sizes import Dynamic, Range
from roundwise.wording import number_of

_ATTENTION_ALONG_BATCH = (
    "attention runs along the first dimension of the inputs, which is taken for samples: nn.MultiheadAttention and "
    "nn.Transformer take [time, batch, features] unless batch_first=True. If the first dimension is time here, "
    "sequences were cut into batches: build the model with batch_first=True, or quantize a wrapper that transposes "
    "its input"
)


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
        _check_names(model)
        module: nn.Module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
        if not exported:
            _check_parameters(module)
        double = Double(module)
        if double.trained and not exported:
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
            first = double
            graph, double, lost = _capture(first, (args, kwargs), plan)
            if isinstance(model, ExportedProgram):
                conditions = conditions_of(model)
                check_conditions(conditions, graph, (args, kwargs))
                _limit_sizes(graph, conditions.highest)
            elif first.trained:
                graph.notes = (*graph.notes, *note_on_training(first, graph, (args, kwargs)))
            graph.structure = _with_defaults(graph.structure, self.facts(model).signature)
            training = training_information(double.module, graph, exported=exported)
            graph.training = replace(training, notes=(*lost, *training.notes))
        return graph


def _capture(double: Double, inputs: Inputs, plan: Plan) -> tuple[Graph, Double, tuple[str, ...]]:
    """The graph of a model in evaluation mode, the double with its tensors, and a note if dropout could not be kept."""
    done = FirstRun.of(double, inputs, plan.batches.low) if plan.of_program is None else None
    watch = SizeWatch(double.module) if plan.of_program is None else None
    exported = export(double, inputs, plan, run, watch=watch)
    strided = has_strided_reads(exported.program.graph)
    if strided:
        exported = export(double.another(), inputs, plan, run, record_contiguous=True)
    uncertain = _uncertain_writes(double, inputs, plan, exported)
    lost: tuple[str, ...] = ()
    graph = graph_of_program(exported.program, exported.double.module, plan.named)
    conditions = conditions_of(exported.program)
    cause = f"{uncertain[0]}. {CURE}" if uncertain else ""
    try:
        notes = check_equal(double, graph, inputs, plan.batches.low, done, cause)
    except CaptureError:
        if not exported.kept:
            raise
        lost = (
            f"{number_of(exported.kept, 'dropout operation')} could not be kept in the graph: the model overwrites the "
            "result of dropout, and with it, in evaluation mode, the input of dropout.",
        )
        exported = export(double.another(), inputs, plan, run, keep_dropout=False, record_contiguous=strided)
        graph = graph_of_program(exported.program, exported.double.module, plan.named)
        notes = check_equal(double, graph, inputs, plan.batches.low, cause=cause)
    graph.notes = (*graph.notes, *notes, *note_on_same_inputs(double, graph, inputs))
    if uncertain:
        graph.notes = (
            *graph.notes,
            f"{uncertain[0]}. The network computes what the model computes for the captured one",
        )
        if any(one.by_layout for one in uncertain):
            graph.limits = replace(graph.limits, contiguous=True)
    for other in conditions.others:
        check_other_size(double, graph, inputs, other)
    if watch is not None and watch.asks_layout and not graph.limits.contiguous:
        graph.limits = replace(graph.limits, contiguous=depends_on_layout(double, graph, inputs))
    if watch is not None and watch.asks_gradient:
        graph.notes = (*graph.notes, *note_on_gradients(double, graph, inputs))
    if plan.of_program is not None:
        graph.inputs = plan.of_program
        batches = Range(graph.limits.batches.low, plan.batches.high)
        graph.limits = replace(graph.limits, batches=plan.batches if plan.batches.low > SMALLEST else batches)
    elif watch is not None and not watch.reads and not uncertain and not has_control_flow(graph.operations):
        _find_free_sizes(double, graph, inputs)
    _limit_sizes(graph, conditions.highest)
    if watch is not None and watch.attends and not any(plan.named):
        graph.notes = (*graph.notes, _ATTENTION_ALONG_BATCH)
    return graph, exported.double, lost


def _uncertain_writes(double: Double, inputs: Inputs, plan: Plan, exported: Exported) -> tuple[UncertainWrite, ...]:
    """The writes in place whose effect depends on how values lie in memory.

    Raises:
        CaptureError: there are some, and sizes besides the batch are dynamic. Sizes decide too.
    """
    uncertain = exported.uncertain
    if exported.unclear:
        uncertain = export(double.another(), inputs, plan, run, tell_apart=True).uncertain
    names = sorted({name for names in plan.named for name in names.values()})
    if uncertain and names:
        raise CaptureError(
            f"{uncertain[0]}; sizes decide too. So no graph computes what the model computes for every size of "
            f"{' and '.join(names)}. {CURE} Or let no size but the batch be dynamic."
        )
    return uncertain


def _limit_sizes(graph: Graph, highest: Mapping[tuple[int, int], int]) -> None:
    """Let a graph take no sizes beyond those up to which the conditions of the export hold."""
    for (number, dim), high in highest.items():
        spec = graph.inputs[number]
        if dim == 0:
            low, old = graph.limits.batches.low, graph.limits.batches.high
            graph.limits = replace(graph.limits, batches=Range(low, min(high, old or high)))
        elif isinstance(spec, InputSpec):
            variable = (
                replace(one, sizes=Range(one.sizes.low, min(high, one.sizes.high or high))) if one.dim == dim else one
                for one in spec.variable
            )
            changed = replace(spec, variable=tuple(variable))
            graph.inputs = (*graph.inputs[:number], changed, *graph.inputs[number + 1 :])


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
                expected = run(double.another(), (args, kwargs))
        except CalibrationError:
            return None
        return not difference_of(expected, graph, (args, kwargs))

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
    return replace(structure, parameters=positional, defaults=signature.defaults)


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
    for name, part in model.named_modules():
        package = type(part).__module__
        if package.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ModelError(
                f"'{name}' ({type(part).__name__}) was quantized by PyTorch ({package}), and its weights are no floats "
                "any more. Give the float model, as it was before."
            )
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


def _check_names(model: nn.Module | ExportedProgram) -> None:
    """Refuse tensors under names that PyTorch's graph modules, to which the model's tensors go, have for themselves."""
    if isinstance(model, ExportedProgram):
        paths = [*model.state_dict, *model.constants]
    else:
        model = unwrapped(model)
        named = itertools.chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        plain = (
            f"{name}.{attribute}".lstrip(".")
            for name, part in model.named_modules()
            for attribute, value in vars(part).items()
            if isinstance(value, Tensor)
        )
        paths = [*(name for name, _ in named), *plain]
    taken = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))
    for path in paths:
        name = path.partition(".")[0]
        if name in taken:
            raise ModelError(
                f"the model holds the tensor '{path}', but PyTorch's graphs of models have something else under the "
                f"name '{name}', so no graph can hold it. Rename that attribute in the model's class, and in the keys "
                "of its weights."
            )
