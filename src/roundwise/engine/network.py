"""`Network`: what stages hand on, and what `capture` makes of a model, once for many recipes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, final

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.artifacts.model import Model
from roundwise.engine.calibration import DataFree, read_calibration
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.errors import CalibrationError, ModelError
from roundwise.frontends import Facts, frontend_for
from roundwise.graph.graph import ConstantInput, Graph
from roundwise.numerics.quantizer import Quantizer
from roundwise.report import StageReport


@final
@dataclass(frozen=True, eq=False)
class Network:
    """What stages hand on: the graph as it is now, its quantizers, and the float graph to compare with.

    `rw.capture` returns one, before any stage. `quantize` takes it in the model's place, as often as one likes. Its
    tensors are the model's own: if the model's weights change afterwards, `quantize` refuses the network, and the model
    must be captured again.

    Attributes:
        graph: operations and float weights, as the stages so far left them.
        facts: what was known of the model without running it.
        versions: how often each tensor had been changed in place when the model was captured.
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
        raise TypeError("a Network cannot be pickled or copied: its tensors are the model's. Capture it anew.")

    def __repr__(self) -> str:
        operations, inputs = len(self.graph.operations.nodes), _words(_wanted(self.graph))
        return f"Network({operations} operations, for samples of {inputs})"


def facts_of(model: object) -> Facts:
    """What is known of a model without running it.

    Raises:
        ModelError: it is quantized already, or of no kind that can be captured.
    """
    if isinstance(model, Network):
        return model.facts
    if isinstance(model, Model):
        raise ModelError(
            "the model is quantized already. Quantize the float model it was made from; a second time would add "
            "the errors of both, and measure only those of the second."
        )
    return frontend_for(model).facts(model)


def capture(model: nn.Module | ExportedProgram, samples: Any) -> Network:
    """Capture a model by itself, for a comparison of recipes: each then costs what it does, and no capture.

    Args:
        model: as for `quantize`.
        samples: two or more inputs, in any form that `quantize` takes, `DataFree(…)` too; only the first are looked at.

    Raises:
        CalibrationError, CaptureError, ModelError: as for `quantize`.

    Example:
        >>> import roundwise as rw
        >>> model, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(16, 3, 8, 8)
        >>> captured = rw.capture(model, images[:2])
        >>> stages = [rw.Quantize(rw.Weights(bits=bits), rw.rounding.Nearest()) for bits in (4, 3)]
        >>> four, three = (rw.quantize(captured, images, stage) for stage in stages)
        >>> four.report.output_error < three.report.output_error
        True
    """
    facts = facts_of(model)
    if isinstance(samples, DataFree):
        samples = samples.samples(facts.dtype, facts.signature.batch or 2)
    with isolated_torch_state(facts.device), ActivationStore(default_budget(facts.device), facts.device) as store:
        args, kwargs = read_calibration(samples, facts.signature, 2, store).example(2, facts.device)
        graph = graph_of(model, args, kwargs)
        return Network(graph, facts, _versions(graph))


def graph_of(
    model: nn.Module | ExportedProgram | Network,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Graph:
    """The graph of a model, captured on an example of its inputs unless it has been captured before.

    Raises:
        CalibrationError: it was captured for other inputs than the example's.
        ModelError: its weights have changed since.
    """
    if not isinstance(model, Network):
        return frontend_for(model).graph(model, args, kwargs)
    changed = [name for name, version in _versions(model.graph).items() if version != model.versions[name]]
    if changed:
        raise ModelError(
            f"{changed[0]!r} has changed since the model was captured{_and_others(changed)}: weights were loaded or "
            "trained further, and what the capture knows of the old ones no longer fits. Call `capture` again."
        )
    _check_structure(model, args, kwargs)
    found = [_told(leaf) for leaf in pytree.tree_leaves((args, kwargs))]
    wanted = _wanted(model.graph)
    if found != wanted:
        raise CalibrationError(
            f"the model was captured for samples of {_words(wanted)}, and these are {_words(found)}. Capture it with "
            "two of these samples, or give `quantize` the model itself."
        )
    return model.graph


def _versions(graph: Graph) -> dict[str, int]:
    """Counts of changes in place, of the tensors that have one."""
    tensors = {name: value for name, value in graph.constants.items() if hasattr(value, "is_inference")}
    return {name: value._version for name, value in tensors.items() if not value.is_inference()}


def _and_others(names: list[str]) -> str:
    return f", as have {len(names) - 1} other tensors" if len(names) > 1 else ""


def _check_structure(model: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where inputs are put together otherwise than those it was captured for: leaves go by their order."""
    spec, names = model.graph.structure.in_spec, model.facts.signature.names
    captured_args, captured_kwargs = pytree.tree_unflatten([0] * spec.num_leaves, spec)
    wanted, found = (
        ([*names[: len(a)], *k], [pytree.tree_structure(it) for it in (*a, *k.values())])
        for a, k in ((captured_args, captured_kwargs), (args, kwargs))
    )
    if found != wanted:
        raise CalibrationError(
            "these samples are not put together as those that the model was captured for: their dicts have other keys, "
            "or in another order, or their tuples are nested otherwise. Capture it with two of these samples, or give "
            "`quantize` the model itself."
        )


def _wanted(graph: Graph) -> list[Any]:
    """The inputs that a graph was captured for, as `_told` tells them."""
    return [spec.value if isinstance(spec, ConstantInput) else (spec.dtype, *spec.shape[1:]) for spec in graph.inputs]


def _told(leaf: Any) -> Any:
    """An input as far as a capture holds for it: its number of samples may be another."""
    return (leaf.dtype, *leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf


def _words(inputs: list[Any]) -> str:
    shapes = [
        f"{it[0]} {['samples', *it[1:]]}".replace("'", "") if isinstance(it, tuple) else repr(it) for it in inputs
    ]
    return ", ".join(shapes)


@contextlib.contextmanager
def made_up_inputs(data_free: bool) -> Iterator[None]:
    """Errors of inputs that were made up say so: whoever has no samples cannot give better ones."""
    try:
        yield
    except CalibrationError as error:
        if not data_free:
            raise
        raise CalibrationError(
            f"{error}\nThere is no data: these samples are random numbers like the example of `DataFree`, or "
            "`--input-size`. Give the size of one sample that the model takes. For several inputs, or whole "
            "numbers such as tokens, the example is a tuple or dict of tensors, which only Python takes (or a program "
            "that was exported with them)."
        ) from error
