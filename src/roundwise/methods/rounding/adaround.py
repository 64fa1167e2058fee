"""AdaRound by stochastic gradient descent: the paper's procedure, as published.

Every weight gets a continuous variable V that says how far it is rounded up:

    W̃ = s · clip(⌊W/s⌋ + h(V), n, p)                                                          (Eq. 22)
    h(V) = clip(σ(V) (ζ − γ) + γ, 0, 1)                     the rectified sigmoid             (Eq. 23)
    f_reg(V) = Σ 1 − |2 h(V) − 1|^β                         pushes h to 0 or 1                (Eq. 24)

    min over V   ‖f_a(W x) − f_a(W̃ x̂)‖² + λ f_reg(V)                                          (Eq. 25)

with Adam on minibatches. β is annealed: high at first, so that f_reg is flat except near 0 and 1 and the variables move
freely; low at the end, so that it pulls every one of them to an end. V starts where W̃ = W, and ends as a decision:
up where h(V) ≥ 1/2.

The alternatives that the paper compares with this are settings:

    relaxation = "sigmoid"               h(V) = σ(V), with f_reg                     (Table 3, second row)
    relaxation = "sigmoid-temperature"   h(V) = σ(V / T), T annealed, no f_reg       (Table 3, first row)
    asymmetric = False                   ‖f_a(W x) − f_a(W̃ x)‖², x the float network's inputs      (Eq. 21, Table 4)
    activation_aware = False             f_a left out of the norm                                  (Eq. 21, Table 4)

A falling temperature is Hopfield's way to binary variables: σ(V / T) goes to a step as T goes to 0. T falls by the same
factor in every iteration. While a step of Adam is shorter than T, the V shrink along with T and nothing is decided;
what decides is that T falls far below the learning rate.

What the paper leaves open is settled as in its authors' own code: λ = 0.01, β from 20 to 2 along a cosine, no
regulariser in the first fifth of the iterations, and the norm in Eq. 25 read as a sum over output channels and a mean
over samples and positions, which is what gives λ = 0.01 its meaning (transformer-quantization @8dbf3c6 and AIMET
@c51b284b agree).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.settings import check_rules, check_types
from roundwise.statistics import Samples

NEVER_QUITE = 1e-3
"""How near to 0 and 1 the sigmoid starts, which reaches neither: a weight starts at most this part of a step away."""


@final
@dataclass(frozen=True)
class AdaRound(RoundingSolver[Samples]):
    """Learn for every weight whether to round up or down.

    Args:
        iterations: steps of Adam; 10,000 in the paper (Section 5), 20,000 for its Table 7.
        batch_size: samples per step; 32 in the paper (Section 5).
        learning_rate: of Adam. The paper says "default hyper-parameters", which is 0.001; independent code takes 0.01.
            Measured here on ResNet-20 at 3 bits (benchmarks/RESULTS.md): 0.01 leaves 43 % of the layers' errors that
            0.001 leaves after 1,000 steps, and 95 % after 10,000.
        regularization: λ of Eq. 25; 0.01 in the authors' code, not stated in the paper. Not read where a temperature
            is annealed.
        beta_start, beta_end: the annealing of β in Eq. 24; 20 and 2 in the authors' code.
        warm_up: share of the iterations without regulariser, or at the first temperature; 0.2 in the authors' code.
        zeta, gamma: the stretch of the rectified sigmoid; 1.1 and −0.1 in the paper (below Eq. 23).
        activation_aware: put the following activation function into the loss (Eq. 25), as the paper does.
        relaxation: h(V); the three of Table 3.
        temperature_start, temperature_end: the annealing of T, for "sigmoid-temperature" alone. The paper searched for
            a schedule and does not tell it. Measured here on three layers of 30 to 36 weights at 3 bits, 1,000 steps:
            of all h, 62 % are still between 0.05 and 0.95 where T ends at 0.01, 1 % at 0.001, none at 0.0001; the
            errors of the layers are not below nearest rounding's for the first, and alike (within 16 %) for the others.
        asymmetric: take x̂, what earlier layers' quantization leaves of the inputs (Eq. 25); else the float network's
            x (Eq. 21). Where inputs of layers are quantized, x is what they are before.

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
    def float_inputs(self) -> bool:
        return not self.asymmetric

    def work(self, rows_per_sample: int, samples: int) -> float:
        # Forward, and a backward pass that costs about as much again since only the weights need a gradient.
        return 2.0 * self.iterations * min(self.batch_size, samples) * rows_per_sample

    def solve(self, problem: Problem[Samples], generator: torch.Generator) -> Rounding:
        grid = problem.grid
        up = self.learn(problem, generator)
        return Rounding(grid.clip(grid.position(problem.weight).floor() + (up >= 0.5)).to(torch.int32))

    def learn(self, problem: Problem[Samples], generator: torch.Generator) -> Float[Tensor, "groups rows cols"]:
        """h(V) as the last step leaves it: how far up each weight would be rounded, from 0 to 1."""
        grid, samples = problem.grid, problem.statistics
        nonlinearity = problem.nonlinearity if self.activation_aware else None
        position = grid.position(problem.weight)
        floor = position.floor()

        soft = self.soften(position - floor).requires_grad_()
        optimizer = torch.optim.Adam([soft], lr=self.learning_rate, fused=True)
        for iteration in range(self.iterations):
            inputs, targets = samples.draw(self.batch_size, generator)
            with torch.enable_grad():
                up = self.up(soft, self.temperature(iteration))
                outputs = samples.layer.apply_matrix(grid.dequantize(grid.clip(floor + up)), inputs)
                if nonlinearity is not None:
                    outputs, targets = nonlinearity(outputs), nonlinearity(targets)
            # The derivatives of Eq. 25 by the outputs and by h are short, and written out they cost a third less time
            # than when autograd finds them; it does the rest, from there to V. The norm is the sum over channels
            # (dimension 1) and the mean over the other dimensions.
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
                return (soft.sigmoid() * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)
            case "sigmoid":
                return soft.sigmoid()
            case "sigmoid-temperature":
                return (soft / temperature).sigmoid()

    def soften(self, fraction: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The V with h(V) = `fraction`, where Eq. 22 gives the float weight itself; or nearly, where a sigmoid ends."""
        match self.relaxation:
            case "rectified-sigmoid":
                return -torch.log((self.zeta - self.gamma) / (fraction - self.gamma) - 1)
            case "sigmoid":
                return fraction.logit(eps=NEVER_QUITE)
            case "sigmoid-temperature":
                return self.temperature(0) * fraction.logit(eps=NEVER_QUITE)

    def beta(self, iteration: int) -> float | None:
        """β at an iteration; None where f_reg has no part: during the warm-up, and where T is annealed instead."""
        progress = self.progress(iteration)
        if progress < 0 or self.relaxation == "sigmoid-temperature":
            return None
        return self.beta_end + (self.beta_start - self.beta_end) * 0.5 * (1 + math.cos(math.pi * progress))

    def temperature(self, iteration: int) -> float:
        """T at an iteration: `temperature_start` during the warm-up, `temperature_end` after the last iteration."""
        fall = math.log(self.temperature_end / self.temperature_start)
        return self.temperature_start * math.exp(fall * max(0.0, self.progress(iteration)))

    def progress(self, iteration: int) -> float:
        """How much of the annealing is done at an iteration, from 0 to 1; negative during the warm-up."""
        start = self.warm_up * self.iterations
        return (iteration - start) / (self.iterations - start)


def regularizer_slope(up: Float[Tensor, "..."], beta: float) -> Float[Tensor, "..."]:
    """The derivative of f_reg (Eq. 24) by h: −2 β |2h − 1|^(β − 1) sgn(2h − 1)."""
    away = 2 * up - 1
    return away.abs().pow_(beta - 1).mul_(away.sign_()).mul_(-2 * beta)
