"""Which function runs which stage: a network in, a network out, with an entry for the report."""

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
        stage: what to do.
        network: as the stages before left it.
        run: samples, memory and seed.
        following: the stages after it; a rewrite may prepare for them.
    """
    match stage:
        case Rewrite():
            return run_rewrite(stage, network, run, following)
        case Quantize():
            return run_quantize(stage, network, run)
