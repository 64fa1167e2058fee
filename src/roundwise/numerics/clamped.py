"""The loss behind a clamp: what replaces the quadratic where a ReLU, a ReLU6 or another clamp follows the layer.

With f(ŷ) = clamp(ŷ, l, u), outputs ŷ = ŵ x̂ + b before the clamp, and y those of the float network:

    L(ŵ, b) = E (f(ŷ) − f(y))²                                            (Eq. 25 without its regularizer, f_a = f)

L is not quadratic, because where ŷ is outside the limits its error has no influence. There are two ways to lower it.

*By minibatches of positions* (`ClampedLoss`). Half its gradients need only some positions:

    ½ ∂L/∂ŵ = E (f(ŷ) − f(y)) [l < ŷ < u] x̂ᵀ         ½ ∂L/∂b = E (f(ŷ) − f(y)) [l < ŷ < u]

*By majorisation* (`majorising_change`). With ŷ₀ the current output, let the target be

    t = y             where l < y < u
        min(ŷ₀, l)    where y ≤ l
        max(ŷ₀, u)    where y ≥ u

Then (f(ŷ) − f(y))² ≤ (ŷ − t)² for every ŷ. So a step that lowers the quadratic E (ŷ − t)², for which all positions
count, lowers a bound on L. At ŷ = ŷ₀ the two sides are equal where ŷ₀ is inside the limits, and where y and ŷ₀ are cut
off at the same limit. Elsewhere, where ŷ₀ alone is cut off or the two at opposite limits, the bound does not touch L,
and L itself may rise: so L must be measured after every step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.moments import Pairs
from roundwise.numerics.quadratic import Quadratic

aten = torch.ops.aten

Limits = tuple[float, float]
"""l and u; either may be infinite."""

BIAS_RATE = 0.2
"""The step of a free bias: how much of the mean error it takes up at every minibatch. Above 1 it would swing."""


@final
@dataclass(frozen=True, eq=False)
class ClampedLoss:
    """L plus the pull to the float weights, by its gradient on minibatches of positions.

        L(ŵ, b) + strength · ‖ŵ − w‖²

    Where the bias is free it moves too. Inputs are then taken less their mean μ, so that weights and bias do not work
    against each other, and outputs are ŷ = ŵ (x̂ − μ) + *level*. The level is b + ŵ μ, the mean output before the clamp;
    one step hands it on to the next, and `bias_at` turns it into b at the end. Where the bias is not free, μ counts as
    0, and the level is the bias.

    Attributes:
        plain: the quadratic of the same samples; its `input_mean` is None where the bias is not free.
        strength: of the pull to the float weights w (`Quadratic.shrinkage_strength`).
        bias: of the layer.
        limits: of the clamp.
        minibatches: positions, without end. Every gradient uses up the next minibatch.
    """

    plain: Quadratic
    strength: Float[Tensor, "groups"]
    bias: Float[Tensor, "groups rows"]
    limits: Limits
    minibatches: Iterator[Pairs]

    def first_level(self) -> Float[Tensor, "groups rows"]:
        """The level at the float weights, with the bias that is best for them before the clamp."""
        plain = self.plain
        if plain.input_mean is None or plain.mean_error is None:
            return self.bias
        return self.bias + plain.mean_error + _times(plain.weight, plain.input_mean)

    def bias_at(
        self, level: Float[Tensor, "groups rows"], matrix: Float[Tensor, "groups rows cols"]
    ) -> Float[Tensor, "groups rows"]:
        """The layer's bias b, from the level and the weights."""
        mean = self.plain.input_mean
        return level if mean is None else level - _times(matrix, mean)

    def half_gradient(
        self, matrix: Float[Tensor, "groups rows cols"], level: Float[Tensor, "groups rows"]
    ) -> tuple[Float[Tensor, "groups rows cols"], Float[Tensor, "groups rows"]]:
        """Half the gradient by the weights, estimated on the next minibatch; and the level after its own step."""
        low, high = self.limits
        pairs, mean = next(self.minibatches), self.plain.input_mean
        if mean is not None:
            pairs = pairs._replace(columns=pairs.columns - mean.unsqueeze(1))
        columns, y = pairs  # [groups, positions, cols] and [groups, positions, rows]
        output = pairs.outputs(matrix, level)
        # The backward pass of a clamp: (f(ŷ) − f(y)) [l < ŷ < u], since ŷ = f(ŷ) inside the limits.
        error = aten.hardtanh_backward(output - y.clamp(low, high), output, low, high)
        if mean is not None:
            level = level - BIAS_RATE * error.mean(1)
        pull = torch.addcmul(self._pull_at_zero, matrix, self.strength[:, None, None])  # strength (ŵ − w)
        return pull.baddbmm_(error.mT, columns, alpha=1 / columns.shape[1]), level

    @functools.cached_property
    def _pull_at_zero(self) -> Float[Tensor, "groups rows cols"]:
        """Half the gradient of the pull to the float weights at ŵ = 0: −strength · w."""
        return self.plain.weight * -self.strength[:, None, None]


def majorising_change(
    y: Float[Tensor, "*positions"], output: Float[Tensor, "*positions"], limits: Limits
) -> Float[Tensor, "*positions"]:
    """t − y, the change of the targets that makes the quadratic majorise L at the outputs ŷ: 0 where l < y < u."""
    low, high = limits
    # First as if every y were outside, then take it away where y is inside: that part is what the backward pass of a
    # threshold lets through. `torch.where` would take ten times as long.
    change = output.clamp(max=low).sub_(y) if low > -torch.inf else torch.zeros_like(y)
    change.sub_(aten.threshold_backward(change, y, low))
    if high < torch.inf:
        above = output.clamp(min=high).sub_(y)
        change.add_(above.sub_(aten.hardtanh_backward(above, y, -torch.inf, high)))
    return change


def _times(matrix: Tensor, mean: Tensor) -> Float[Tensor, "groups rows"]:
    """ŵ μ, from `[groups, rows, cols]` and `[groups, cols]`."""
    return (matrix @ mean.unsqueeze(-1)).squeeze(-1)
