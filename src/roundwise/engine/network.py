"""The network that stages hand on: a model's graph with the codes and quantizers that it has so far.

`capture` makes it once, so that several recipes can start from the same graph.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.artifacts.model import Model
from roundwise.engine.calibration import Calibration, DataFree, read_calibration
from roundwise.engine.model_checks import check_weights_and_names
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.torch_state import ONE_THREAD_AT_A_TIME, capturing_on, default_device, isolated_torch_state
from roundwise.errors import CalibrationError, CaptureError, ModelError, RecipeError
from roundwise.frontends import Facts, frontend_for
from roundwise.graph.graph import ConstantInput, Graph, InputSpec
from roundwise.graph.sizes import Dynamic
from roundwise.numerics.quantizer import Quantizer
from roundwise.report import StageReport

REPAIR = "Remove or repair such samples; where a mask has −∞, check that each sample keeps a place that is not masked."
"""What to do about samples with values that are NaN or infinite."""


@final
@dataclass(frozen=True, eq=False)
class Network:
    """What stages hand on: the graph as it is now, with its codes and quantizers, and the float graph to compare with.

    `rw.capture` returns one, before any stage: give it to `quantize` instead of the model, as often as you like. It
    shares its tensors with the model. If the model's weights change later, `quantize` raises an error: capture the
    model again.

    Attributes:
        graph: operations and float weights, as the stages so far left them.
        facts: what was known of the model without running it.
        versions: for each tensor, how often it had been changed in place when the model was captured.
        weights: the quantized layers: codes, grids and shifts of biases.
        quantizers: of tensors between operations, by the operation or input that gives the tensor.
        reports: an entry for each stage so far.
        original: the float graph as the last stage that keeps the function left it; None is `graph` itself.
        counterparts: for each operation of `graph` whose output can be compared with one of the original, the name of
            that one; None where operations of the same name correspond.
    """

    graph: Graph
    facts: Facts
    versions: dict[str, int]
    weights: tuple[QuantizedWeight, ...] = ()
    quantizers: Mapping[fx.Node, Quantizer] = field(default_factory=dict)
    reports: tuple[StageReport, ...] = ()
    original: Graph | None = None
    counterparts: Mapping[str, str] | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Network cannot be pickled or copied: it shares its tensors with the model. Capture it again."
        )

    def __repr__(self) -> str:
        operations, inputs = len(self.graph.operations.nodes), _inputs_in_words(self.graph)
        return f"Network({operations} operations, for samples of {inputs})"


def facts_of(model: object) -> Facts:
    """Device, dtype, size and inputs of a model, found without running it.

    Raises:
        ModelError: the model is quantized already, no front end can capture it, or its weights or names are odd.
    """
    if isinstance(model, Network):
        return model.facts
    if isinstance(model, Model):
        raise ModelError(
            "the model is quantized already. Quantize the float model that it was made from: a second quantization "
            "would add its own errors, and the report would show only these."
        )
    with ONE_THREAD_AT_A_TIME:
        check_weights_and_names(model)
        return frontend_for(model).facts(model)


def capture(model: nn.Module | ExportedProgram, samples: Any, *, dynamic: Dynamic | None = None) -> Network:
    """Capture a model once, in order to compare several recipes without capturing it for each.

    Args:
        model: as for `quantize`.
        samples: two or more inputs, in any form that `quantize` takes, or `DataFree(…)`; only the first two are used.
        dynamic: as for `quantize`.

    Raises:
        CalibrationError, CaptureError, ModelError, RecipeError: as for `quantize`.

    Example:
        >>> import roundwise as rw
        >>> import torch
        >>> model, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(16, 3, 8, 8)
        >>> captured = rw.capture(model, images[:2])
        >>> stages = [rw.Quantize(rw.Weights(bits=bits), rw.rounding.Nearest()) for bits in (4, 3)]
        >>> four, three = (rw.quantize(captured, images, stage) for stage in stages)
        >>> four.report.output_error < three.report.output_error
        True
    """
    facts = facts_of(model)
    callers = default_device()
    with isolated_torch_state(facts.device), ActivationStore(default_budget(facts.device), facts.device) as store:
        if isinstance(samples, DataFree):
            samples = samples.samples(facts.dtype, facts.signature.batch or 2)
        calibration = read_calibration(samples, facts.signature, 2, store)
        with capturing_on(facts.device, callers):
            graph, _ = graph_for(model, calibration, facts.device, dynamic)
        return Network(graph, facts, _versions(graph))


def graph_for(
    model: nn.Module | ExportedProgram | Network,
    calibration: Calibration,
    device: torch.device,
    dynamic: Dynamic | None = None,
) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a model for calibration samples, and notes about samples with values that are NaN or infinite.

    Such values are right where the network does not compute with them: −∞ in an attention mask, NaN where data is
    missing and replaced. So the samples are used if the network's outputs for them are finite. −∞ among the outputs is
    allowed, since masks use it.

    Raises:
        CalibrationError: the outputs are NaN or infinite; or as `graph_of`.
        CaptureError, ModelError: as `graph_of`.
    """
    odd = calibration.not_finite
    try:
        graph = graph_of(model, *calibration.example(2, device), dynamic)
    except (CaptureError, ModelError) as error:
        if odd is None:
            raise
        raise CalibrationError(f"{odd.found}, and the model cannot be captured with them. {REPAIR}") from error
    if odd is None:
        return graph, ()
    args, kwargs = calibration.batch_with(odd.sample, device)
    with torch.no_grad():
        leaves = pytree.tree_leaves(graph.module()(*args, **kwargs))
    outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not outputs or any(bool((output.isnan() | (output == math.inf)).any()) for output in outputs):
        why = (
            "are not finite either"
            if outputs
            else "are not floating-point numbers that could show whether this is right"
        )
        raise CalibrationError(f"{odd.found}, and the network's outputs for this batch {why}. {REPAIR}")
    return graph, (f"{odd.found}; they are used, because the network's outputs for this batch are finite",)


def graph_of(
    model: nn.Module | ExportedProgram | Network,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Dynamic | None = None,
) -> Graph:
    """The graph of a model: captured on an example of its inputs, unless it was captured before.

    Raises:
        CalibrationError: the model was captured for other inputs than these.
        ModelError: the model's weights have changed since it was captured.
        RecipeError: the model was captured before, with its own dynamic dimensions; or it cannot have these.
    """
    if not isinstance(model, Network):
        graph = frontend_for(model).graph(model, args, kwargs, dynamic)
        graph.notes = (*graph.notes, *_notes_on_quantized_parts(model))
        return graph
    if dynamic:
        raise RecipeError(
            "dynamic is for capture, and this model was captured already. Give it to `rw.capture(model, samples, "
            "dynamic=…)`."
        )
    changed = [name for name, version in _versions(model.graph).items() if version != model.versions[name]]
    if changed:
        raise ModelError(
            f"{changed[0]!r} has changed since the model was captured{_and_others(changed)}: weights were loaded or "
            "trained further, but the captured network describes the old weights. Call `capture` again."
        )
    _check_structure(model, args, kwargs)
    leaves = pytree.tree_leaves((args, kwargs))
    if not all(map(_fits, model.graph.inputs, leaves)):
        found = ", ".join(_in_words(leaf) for leaf in leaves)
        raise CalibrationError(
            f"the model was captured for samples of {_inputs_in_words(model.graph)}, but these samples are {found}. "
            "Capture it with two of these samples, or give `quantize` the model itself. For samples of several sizes, "
            "capture it with `dynamic`."
        )
    return model.graph


def _notes_on_quantized_parts(model: nn.Module | ExportedProgram) -> tuple[str, ...]:
    """A note if parts of a model are networks that were quantized before."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    quantized = [name for name, part in parts if isinstance(part, Model)]
    if not quantized:
        return ()
    return (
        f"quantized already: {', '.join(map(repr, quantized))}. Layers there are quantized again, and errors in this "
        "report do not count what the first time has cost. To keep them as they are, in floating point, give the "
        f"override {{'{quantized[0]}.*': None}}; for small weights everywhere, quantize the float model in one call",
    )


def _versions(graph: Graph) -> dict[str, int]:
    """PyTorch's counts of in-place changes, by tensor; tensors made in inference mode have no count."""
    tensors = {name: value for name, value in graph.constants.items() if hasattr(value, "is_inference")}
    return {name: value._version for name, value in tensors.items() if not value.is_inference()}


def _and_others(names: list[str]) -> str:
    return f", as have {len(names) - 1} other tensors" if len(names) > 1 else ""


def _check_structure(model: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise if the inputs are nested differently from those at capture: the graph takes their leaves in order."""
    spec, names = model.graph.structure.in_spec, model.facts.signature.names
    captured_args, captured_kwargs = pytree.tree_unflatten([0] * spec.num_leaves, spec)
    wanted, found = (
        ([*names[: len(a)], *k], [pytree.tree_structure(it) for it in (*a, *k.values())])
        for a, k in ((captured_args, captured_kwargs), (args, kwargs))
    )
    if found != wanted:
        raise CalibrationError(
            "these samples have another structure than the samples that the model was captured for: their dicts have "
            "other keys, or the keys in another order, or their tuples are nested differently. Capture it with two of "
            "these samples, or give `quantize` the model itself."
        )


def _fits(spec: InputSpec | ConstantInput, leaf: Any) -> bool:
    """Whether samples are what a graph was captured for."""
    if isinstance(spec, ConstantInput):
        return type(leaf) is type(spec.value) and bool(leaf == spec.value)
    return isinstance(leaf, Tensor) and not spec.misfit(leaf)


def _inputs_in_words(graph: Graph) -> str:
    return ", ".join(spec.in_words() if isinstance(spec, InputSpec) else repr(spec.value) for spec in graph.inputs)


def _in_words(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return InputSpec("", (None, *leaf.shape[1:]) if leaf.dim() else (), leaf.dtype).in_words()


@contextlib.contextmanager
def made_up_inputs(data_free: bool) -> Iterator[None]:
    """If the inputs were made up, add to an error about them where they came from: the user never gave them."""
    try:
        yield
    except CalibrationError as error:
        if not data_free:
            raise
        raise CalibrationError(
            f"{error}\nThere is no data: these samples are random numbers with the shape that `DataFree` or "
            "`--input-size` gives. Give the size of one sample that the model takes. For several inputs, or for whole "
            "numbers such as tokens, use Python and give `DataFree` a tuple or dict of tensors (or use a program that "
            "was exported with such inputs)."
        ) from error
