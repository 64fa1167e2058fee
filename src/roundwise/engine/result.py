"""The result of a run: the network with integer codes and quantizers in its graph, and the report on all stages."""

from __future__ import annotations

from roundwise.artifacts.emit import emit
from roundwise.artifacts.model import Model, versions
from roundwise.engine.network import Network
from roundwise.engine.run import Run
from roundwise.engine.tasks import stored_bytes
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report


def model_of(network: Network, run: Run, recipe: Recipe) -> Model:
    """The result: the network with integer codes and quantizers in its graph, and the report on all stages."""
    graph = emit(network.graph, list(network.weights), network.quantizers)
    report = Report(
        stages=network.reports,
        samples=run.samples,
        float_bytes=network.facts.size,
        quantized_bytes=stored_bytes(graph),
        setup_seconds=run.seconds,
        peak_activation_bytes=run.store.peak,
        setup_notes=run.notes,
    )
    return Model(graph, report, recipe, versions(), run.inputs)
