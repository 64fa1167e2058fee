"""Run one stage of a recipe: it takes a network and returns a network that has one more entry in its report."""

from __future__ import annotations

from collections.abc import Sequence

from roundwise.engine.compressing import run_compress
from roundwise.engine.finetuning import run_finetune
from roundwise.engine.network import Network
from roundwise.engine.quantizing import run_quantize
from roundwise.engine.rewriting import run_rewrite
from roundwise.engine.run import Run
from roundwise.recipe.compress import Compress
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.stages import Quantize, Rewrite, Stage


def run_stage(stage: Stage, network: Network, run: Run, following: Sequence[Stage]) -> Network:
    """Run one stage.

    Args:
        stage: the stage.
        network: the result of the stage before.
        run: samples, memory and seed.
        following: the stages after this one; `Rewrite` may prepare the network for them.
    """
    run.last = not following
    match stage:
        case Compress():
            return run_compress(stage, network, run)
        case Rewrite():
            return run_rewrite(stage, network, run, following)
        case Quantize():
            return run_quantize(stage, network, run)
        case Finetune():
            return run_finetune(stage, network, run)


def run_stages(stages: Sequence[Stage], network: Network, run: Run) -> Network:
    """Run stages one after the other."""
    for index, stage in enumerate(stages, 1):
        network = run_stage(stage, network, run, following=stages[index:])
    return network
