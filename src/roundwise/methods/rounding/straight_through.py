"""The straight-through estimator: train the weights themselves, and round them in every step.

With W in steps of the grid, u = W/s + z:

    q = clip(⌊u⌉, qmin, qmax),      Ŵ = s (q − z)

    min over u   ‖f_a(W x) − f_a(Ŵ x̂)‖²                                                      (Eq. 25 without f_reg)

The derivative of rounding is 0 almost everywhere, so the backward pass takes the identity's, except where it clips:

    ∂q/∂u ≈ 1 where n ≤ ⌊u⌉ ≤ p, else 0

u starts at the float weights and may go anywhere; the codes are those of the last u. Table 5 of the AdaRound paper
compares with it, and quantization-aware training uses it for a whole network. (The paper's text names Eq. 21 there, and
the table's caption Eq. 25; this follows the caption.)

The paper states no settings. Adam's steps do not depend on the size of gradients, so in u they mean the same for every
layer and scale. Near the border between two codes the estimate drives u to and fro without end, and weights of
correlated inputs move together; with a learning rate that falls linearly to 0, fewer of them cross the border. The sum
of the learning rate over all steps is the farthest that a weight can go, the *reach*. Relative errors of a linear layer
(64 to 32, 3 bits, correlated inputs of 512 samples, measured on as many others; two seeds), where nearest rounding has
0.045 and 0.042, and AdaRound (Eq. 22 to 25) has 0.016 and 0.015 with 5,000 steps:

    steps    learning rate at first    reach    falling to 0      constant (twice the reach)
    1,000    0.0001                    0.05     0.032  0.027      0.027  0.023
             0.0002                    0.1      0.025  0.024
             0.0005                    0.25     0.022  0.022
             0.001                     0.5      0.023  0.023      0.038  0.036
             0.01                      5        0.039  0.032      0.084  0.049
    5,000    0.0001                    0.25     0.021  0.019      0.028  0.033
             0.001                     2.5      0.035  0.028      0.057  0.055
             0.01                      25       0.031  0.031      0.084  0.082

For six layers of 24 to 36 weights with 200 steps, a reach of 0.25 is also the best of four: on average the errors are
0.84 of those of nearest rounding, and with 0.05, 0.1 and 0.5 they are 1.03, 0.96 and 1.58. With a reach of 0.25 few
weights move farther than to the code next to the nearest one; with a larger reach more of them do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid
from roundwise.statistics import Samples


@final
@dataclass(frozen=True)
class StraightThrough(RoundingSolver[Samples]):
    """Learn the weights by gradients that pass through the rounding.

    Args:
        iterations: steps of Adam.
        batch_size: samples per step.
        reach: how many steps of the grid a weight moves if every iteration moves it in the same direction; the
            learning rate starts at 2 · reach / iterations and falls to 0.
        activation_aware: put the nonlinearity that follows the layer into the loss (Eq. 25).

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Bengio et al., 2013, arXiv:1308.3432, Section 4; as in Nagel et al., ICML 2020, arXiv:2004.10568, Table 5.
    """

    iterations: int = 10_000
    batch_size: int = 32
    reach: float = 0.25
    activation_aware: bool = True
    needs: ClassVar[type] = Samples

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(
            self,
            {
                "iterations must be at least 1": self.iterations >= 1,
                "batch_size must be at least 1": self.batch_size >= 1,
                "reach must be positive": self.reach > 0,
            },
        )

    @property
    def traits(self) -> Traits:
        return Traits(floor_or_ceil=False, gradient_steps=self.iterations, batch_size=self.batch_size)

    def solve(self, problem: Problem[Samples], generator: torch.Generator) -> Rounding:
        grid, samples = problem.grid, problem.statistics
        nonlinearity = problem.nonlinearity if self.activation_aware else None
        in_codes = grid.in_codes(problem.weight).contiguous()
        optimizer = torch.optim.Adam([in_codes], fused=True)
        for iteration in range(self.iterations):
            optimizer.param_groups[0]["lr"] = self.learning_rate(iteration)
            inputs, targets = samples.draw(self.batch_size, generator)
            codes = grid.clip(in_codes.round()).requires_grad_()
            with torch.enable_grad():
                outputs = samples.layer.apply_matrix(grid.dequantize(codes), inputs)
                if nonlinearity is not None:
                    outputs, targets = nonlinearity(outputs), nonlinearity(targets)
            # The derivative of Eq. 25 by the outputs: the sum over channels (dimension 1), the mean over the rest.
            slope = targets.sub_(outputs.detach()).mul_(-2 * outputs.shape[1] / outputs.numel())
            (by_codes,) = torch.autograd.grad(outputs, codes, slope)
            # Contiguous, as `in_codes` is: PyTorch's kernel goes through both in memory order.
            in_codes.grad = straight_through(by_codes, in_codes, grid).contiguous()
            optimizer.step()
        return Rounding(grid.clip(in_codes.round()).to(torch.int32))

    def learning_rate(self, iteration: int) -> float:
        """Of Adam at an iteration, in steps of the grid."""
        return 2 * self.reach / self.iterations * (1 - iteration / self.iterations)


def straight_through(
    by_codes: Float[Tensor, "groups rows cols"], in_codes: Float[Tensor, "groups rows cols"], grid: Grid
) -> Float[Tensor, "groups rows cols"]:
    """The estimated derivative by u, from the derivative by codes q: the same, and 0 where u is clipped."""
    rounded = in_codes.round()
    return by_codes * (rounded == grid.clip(rounded))
