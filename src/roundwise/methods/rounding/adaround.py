"""AdaRound: the paper's procedure, Adam on minibatches of samples.

Every weight gets a continuous variable V that says how far it is rounded up:

    W̃ = s · clip(⌊W/s⌋ + h(V), qmin, qmax)                                                    (Eq. 22)
    h(V) = clip(σ(V) (ζ − γ) + γ, 0, 1)                     the rectified sigmoid             (Eq. 23)
    f_reg(V) = Σ 1 − |2 h(V) − 1|^β                         0 where every h is 0 or 1         (Eq. 24)

    min over V   ‖f_a(W x) − f_a(W̃ x̂)‖² + λ f_reg(V)                                          (Eq. 25)

1. V ← the V with W̃ = W.
2. Repeat `iterations` times:
3.     draw a minibatch of inputs x̂ and targets W x;
4.     β ← as annealed: no regularizer at first, then high, so that f_reg is flat except near 0 and 1 and the variables
       move freely; low at the end, so that every variable is pulled to 0 or 1;
5.     V ← one step of Adam, by the gradient of Eq. 25.
6. Round up where h(V) ≥ ½, and down elsewhere.

Eq. 22 to 24 and the annealing are in `numerics/search/relaxation.py`.

The alternatives that the paper compares with this are settings:

    relaxation = "sigmoid"               h(V) = σ(V), with f_reg                     (Table 3, second row)
    relaxation = "sigmoid-temperature"   h(V) = σ(V / T), T annealed, no f_reg       (Table 3, first row)
    asymmetric = False                   ‖f_a(W x) − f_a(W̃ x)‖², x the float network's inputs      (Eq. 21, Table 4)
    activation_aware = False             f_a left out of the norm                                  (Eq. 21, Table 4)

A falling temperature is Hopfield's way to binary variables: σ(V / T) becomes a step as T goes to 0. T falls by the same
factor in every iteration. While a step of Adam is shorter than T, the V shrink along with T and nothing is decided;
variables are decided when T falls far below the learning rate.

What the paper leaves open is as in its authors' own code: λ = 0.01, β from 20 to 2 along a cosine, no regularizer in
the first fifth of the iterations. The norm in Eq. 25 is a sum over output channels and a mean over samples and
positions, which gives λ = 0.01 its meaning (transformer-quantization @8dbf3c6 and AIMET @c51b284b agree).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.search.relaxation import (
    BetaAnnealing,
    RectifiedSigmoid,
    annealing_progress,
    regularizer_slope,
)
from roundwise.statistics import Samples

SIGMOID_MARGIN = 1e-3
"""How near to 0 and 1 a plain sigmoid starts, since it reaches neither. Larger: weights start farther from W."""


@final
@dataclass(frozen=True)
class AdaRound(RoundingSolver[Samples]):
    """Learn for every weight whether to round up or down.

    Args:
        iterations: steps of Adam; 10,000 in the paper (Section 5), 20,000 for its Table 7.
        batch_size: samples per step; 32 in the paper (Section 5).
        learning_rate: of Adam. The paper says "default hyper-parameters", which is 0.001; independent code takes 0.01.
            Measured on ResNet-20 with 3 bits (benchmarks/RESULTS.md): the layers' errors with 0.01 are 43 % of those
            with 0.001 after 1,000 steps, and 95 % after 10,000.
        regularization: λ of Eq. 25; 0.01 in the authors' code, not stated in the paper. Without effect where a
            temperature is annealed.
        beta_start, beta_end: the annealing of β in Eq. 24; 20 and 2 in the authors' code.
        warm_up: share of the iterations without regularizer, or at the first temperature; 0.2 in the authors' code.
        zeta, gamma: the stretch of the rectified sigmoid; 1.1 and −0.1 in the paper (below Eq. 23).
        activation_aware: put the nonlinearity that follows the layer into the loss (Eq. 25), as the paper does.
        relaxation: h(V); the three of Table 3.
        temperature_start, temperature_end: the annealing of T, for "sigmoid-temperature" alone. The paper searched for
            a schedule and does not state it. Measured on three layers of 30 to 36 weights with 3 bits, 1,000 steps: of
            all h, 62 % are still between 0.05 and 0.95 where T ends at 0.01, 1 % at 0.001, none at 0.0001; the layers'
            errors are not below those of nearest rounding for the first, and within 16 % of each other for the others.
        asymmetric: take the inputs x̂ of the network so far (Eq. 25); False takes the float network's x (Eq. 21). Where
            a layer's inputs are quantized, x is not.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 3.3 and Section 5.
    """

    iterations: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-2
    regularization: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_up: float = 0.2
    zeta: float = 1.1
    gamma: float = -0.1
    activation_aware: bool = True
    relaxation: Literal["rectified-sigmoid", "sigmoid", "sigmoid-temperature"] = "rectified-sigmoid"
    temperature_start: float = 1.0
    temperature_end: float = 0.001
    asymmetric: bool = True
    needs: ClassVar[type] = Samples

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(
            self,
            {
                "iterations must be at least 1": self.iterations >= 1,
                "batch_size must be at least 1": self.batch_size >= 1,
                "learning_rate must be positive": self.learning_rate > 0,
                "regularization must not be negative": self.regularization >= 0,
                "beta must fall from beta_start to beta_end, both at least 1": self.beta_start >= self.beta_end >= 1,
                "warm_up is a share of the iterations, from 0 up to but not including 1": 0 <= self.warm_up < 1,
                "the rectified sigmoid must reach past 0 and 1: gamma < 0 and zeta > 1": self.gamma < 0
                and self.zeta > 1,
                "temperature must fall from temperature_start to temperature_end, both positive": (
                    self.temperature_start >= self.temperature_end > 0
                ),
            },
        )

    @property
    def traits(self) -> Traits:
        steps, size = self.iterations, self.batch_size
        return Traits(float_inputs=not self.asymmetric, gradient_steps=steps, batch_size=size)

    def solve(self, problem: Problem[Samples], generator: torch.Generator) -> Rounding:
        grid = problem.grid
        up = self.learn(problem, generator)
        return Rounding(grid.clip(grid.in_codes(problem.weight).floor() + (up >= 0.5)).to(torch.int32))

    def learn(self, problem: Problem[Samples], generator: torch.Generator) -> Float[Tensor, "groups rows cols"]:
        """h(V) after the last step: how far each weight is rounded up, from 0 to 1."""
        grid, samples = problem.grid, problem.statistics
        nonlinearity = problem.nonlinearity if self.activation_aware else None
        in_codes = grid.in_codes(problem.weight)
        floor = in_codes.floor()

        soft = self.soften(in_codes - floor).requires_grad_()
        optimizer = torch.optim.Adam([soft], lr=self.learning_rate, fused=True)
        for iteration in range(self.iterations):
            inputs, targets = samples.draw(self.batch_size, generator)
            with torch.enable_grad():
                up = self.up(soft, self.temperature(iteration))
                outputs = samples.layer.apply_matrix(grid.dequantize(grid.clip(floor + up)), inputs)
                if nonlinearity is not None:
                    outputs, targets = nonlinearity(outputs), nonlinearity(targets)
            # The derivatives of Eq. 25 by the outputs and by h are written out, which saves a third of the time;
            # autograd does the rest, from there to V. The norm is the sum over channels (dimension 1) and the mean
            # over the other dimensions.
            ends = [outputs]
            slopes = [targets.sub_(outputs.detach()).mul_(-2 * outputs.shape[1] / outputs.numel())]
            beta = self.beta(iteration)
            if beta is not None:
                ends.append(up)
                slopes.append(self.regularization * regularizer_slope(up.detach(), beta))
            (soft.grad,) = torch.autograd.grad(ends, soft, slopes)
            optimizer.step()
        return self.up(soft.detach(), self.temperature(self.iterations))

    def up(self, soft: Float[Tensor, "..."], temperature: float = 1.0) -> Float[Tensor, "..."]:
        """h(V): the rectified sigmoid of Eq. 23, or the sigmoid of V / T."""
        match self.relaxation:
            case "rectified-sigmoid":
                return self._rectified(soft)
            case "sigmoid":
                return soft.sigmoid()
            case "sigmoid-temperature":
                return (soft / temperature).sigmoid()

    def soften(self, fraction: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The V with h(V) = `fraction`, where W̃ = W in Eq. 22; nearly so for a sigmoid, which reaches neither end."""
        match self.relaxation:
            case "rectified-sigmoid":
                return self._rectified.inverse(fraction)
            case "sigmoid":
                return fraction.logit(eps=SIGMOID_MARGIN)
            case "sigmoid-temperature":
                return self.temperature(0) * fraction.logit(eps=SIGMOID_MARGIN)

    def beta(self, iteration: int) -> float | None:
        """β at an iteration; None without f_reg: during the warm-up, and where T is annealed instead."""
        if self.relaxation == "sigmoid-temperature":
            return None
        return BetaAnnealing(self.beta_start, self.beta_end, self.warm_up).at(iteration, self.iterations)

    def temperature(self, iteration: int) -> float:
        """T at an iteration: `temperature_start` during the warm-up, `temperature_end` after the last iteration."""
        fall = math.log(self.temperature_end / self.temperature_start)
        progress = annealing_progress(iteration, self.iterations, self.warm_up)
        return self.temperature_start * math.exp(fall * max(0.0, progress))

    @property
    def _rectified(self) -> RectifiedSigmoid:
        return RectifiedSigmoid(self.zeta, self.gamma)
