"""Run one stage of a recipe: it takes a network and returns a network that has one more entry in its report."""

from __future__ import annotations

from collections.abc import Sequence

from roundwise.engine.network import Network
from roundwise.engine.quantizing import run_quantize
from roundwise.engine.rewriting import run_rewrite
from roundwise.engine.run import Run
from roundwise.recipe.stages import Quantize, Rewrite, Stage


def run_stage(stage: Stage, network: Network, run: Run, following: Sequence[Stage]) -> Network:
    """Run one stage.

    Args:
        stage: the stage.
        network: the result of the stage before.
        run: samples, memory and seed.
        following: the stages after this one; `Rewrite` may prepare the network for them.
    """
    match stage:
        case Rewrite():
            return run_rewrite(stage, network, run, following)
        case Quantize():
            return run_quantize(stage, network, run)
