"""Choose sizes so that no layer, when it alone is cut, loses more accuracy than another needs to."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.methods.compressing import LayerOptions, RatioChoice


@final
@dataclass(frozen=True)
class EqualAccuracyLoss(RatioChoice):
    """Every layer becomes as small as it can at a loss of at most t of a metric; t is as small as the budget allows.

        1. For each layer and each of the shares 0.1, 0.2, … 0.9 of its cost, cut this layer alone, and evaluate the
           network. This takes 9 evaluations per layer, so give a metric that takes seconds.
        2. For a loss t, each layer takes its cheapest size whose loss is at most t. The network's cost falls as t
           rises, so bisection finds the smallest t within the budget. It is one of the losses that were measured.

    The metric is the function `evaluate` of `roundwise.compress`. How layers that are cut together affect each other is
    not measured, and differences below the noise of the metric decide too: use a metric without random numbers, on as
    many samples as time allows.

    References:
        Kuzmin et al., Taxonomy and Evaluation of Structured Compression of CNNs, arXiv:1912.09802, 2019. AIMET calls it
        greedy selection.
    """

    evaluates: ClassVar[bool] = True

    def choose(self, layers: Sequence[LayerOptions], budget: float) -> list[int]:
        losses = sorted({0.0, *(loss for one in layers for loss in one.errors if loss > 0)})

        def fits(loss: float) -> bool:
            chosen = [_cheapest(one, loss) for one in layers]
            return sum(one.costs[number] for one, number in zip(layers, chosen, strict=True)) <= budget

        smallest = losses[bisect.bisect_left(losses, True, hi=len(losses) - 1, key=fits)]
        return [_cheapest(one, smallest) for one in layers]


def _cheapest(layer: LayerOptions, loss: float) -> int:
    """The cheapest option that loses at most this; of equally cheap ones the one that loses least."""
    options = [option for option, known in enumerate(layer.errors) if known <= loss]
    return min(options, key=lambda option: (layer.costs[option], layer.errors[option]))
