"""Which target a file is written for, and whether the target can hold the network."""

from __future__ import annotations

from roundwise.artifacts import dialect
from roundwise.artifacts.model import Model
from roundwise.errors import ExportError
from roundwise.exporters.interface import Exporter
from roundwise.recipe.recipe import Recipe
from roundwise.targets import Target
from roundwise.wording import did_you_mean


def target_for(exporter: Exporter, name: object, recipe: Recipe) -> Target | None:
    """The target that the caller names; else that of the recipe, if the format has it; else the usual one.

    Raises:
        ExportError: the format has no target of this name.
    """
    known = {target.name: target for target in exporter.targets}
    if name is None:
        usual = next(iter(known.values()), None)
        return usual if recipe.target is None else known.get(recipe.target, usual)
    if not isinstance(name, str) or name not in known:
        if not known:
            raise ExportError(
                f"target={name!r}: a {exporter.title} file holds every network as it is, for all targets. Leave out "
                "`target`."
            )
        raise ExportError(
            f"target={name!r}: {exporter.title} files are written for {', '.join(known)}. Give one of these."
            f"{did_you_mean(name, known)}"
        )
    return known[name]


def check_model(model: Model, target: Target) -> None:
    """Make sure that a target can hold the codes of a network.

    Raises:
        ExportError: names the layer or activation that it cannot hold, and what to do.
    """
    for name, weight in model.weights.items():
        fault = target.weight_fault(
            weight.qmin, weight.qmax, zero_points=bool(weight.zero_point.any()), groups=weight.scale.dim() > 1
        )
        if fault is not None:
            raise _refusal(f"the weights of layer '{name}'", fault)
    for node in model.graph.operations.nodes:
        operation = dialect.operation_of(node)
        if operation != dialect.QUANTIZE:
            continue
        codes = operation.arguments(node)
        fault = target.activation_fault(codes["qmin"], codes["qmax"], zero_points=codes["zero_point"] != 0)
        if fault is not None:
            raise _refusal(f"activation '{codes['values'].name}'", fault)


def _refusal(what: str, fault: str) -> ExportError:
    return ExportError(f"{what}: {fault} Quantize the network with this setting, or export it for another target.")
