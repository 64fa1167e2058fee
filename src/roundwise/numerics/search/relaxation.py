"""Relaxation: let every weight move continuously between its two codes, and pull it to one of them towards the end.

The mathematics of AdaRound, numbered as in the paper. Every weight gets a variable V for how far it is rounded up:

    W̃ = s · clip(⌊W/s⌋ + h(V), qmin, qmax)                                                    (Eq. 22)
    h(V) = clip(σ(V) (ζ − γ) + γ, 0, 1)                     the rectified sigmoid             (Eq. 23)
    f_reg(V) = Σ 1 − |2 h(V) − 1|^β                         0 where every h is 0 or 1         (Eq. 24)

    minimise   loss(W̃) + λ f_reg(V)   over V                                                  (Eq. 25)

(On other pages Eq. 25 stands for the loss alone, ‖f_a(W x) − f_a(W̃ x̂)‖². The regularizer is needed only here, where
weights move continuously.)

β is annealed. At first there is no regularizer; then β is high, so that f_reg is flat except near 0 and 1 and the
variables move freely; at last it is low, so that every variable is pulled to 0 or 1. V starts where W̃ = W and ends as a
decision: up where h(V) ≥ ½.

Two solvers use this page. `AdaRound` minimises Eq. 25 as the paper does, on minibatches of samples, and lets automatic
differentiation find the loss's gradient. `GramAdaRound` uses `Relaxation` below, whose gradients are written out.

The paper has n and p for qmin and qmax, and no zero point; the code adds the grid's. In `Relaxation` W is any
real-valued matrix, the *centre*: the float weights, or those that `GramAdaRound` starts from.

References:
    Nagel et al., ICML 2020, arXiv:2004.10568, Section 3.3. ζ = 1.1 and γ = −0.1 are below Eq. 23; how β is annealed is
    as in the authors' own code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam

from roundwise.numerics.clamped import ClampedLoss
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic

aten = torch.ops.aten

CHECK_EVERY = 20
"""Steps between two checks whether all variables are decided. With more, a few steps may be wasted at the end."""


@final
@dataclass(frozen=True)
class RectifiedSigmoid:
    """h(V) of Eq. 23: a sigmoid, stretched to reach from γ < 0 to ζ > 1, and clipped to 0 … 1.

    Example:
        >>> RectifiedSigmoid()(torch.tensor([-10.0, 0.0, 10.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    zeta: float = 1.1
    gamma: float = -0.1

    @property
    def span(self) -> float:
        """ζ − γ: how much h changes with σ between its ends."""
        return self.zeta - self.gamma

    @property
    def ends(self) -> tuple[float, float]:
        """The σ(V) at which h becomes 0, and 1."""
        return -self.gamma / self.span, (1 - self.gamma) / self.span

    def __call__(self, soft: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (soft.sigmoid() * self.span + self.gamma).clamp(0, 1)

    def inverse(self, fraction: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The V with h(V) = `fraction`."""
        return -torch.log(self.span / (fraction - self.gamma) - 1)


@final
@dataclass(frozen=True)
class BetaAnnealing:
    """β of Eq. 24: none during the warm-up, then from `start` to `end` along half a period of a cosine."""

    start: float = 20.0
    end: float = 2.0
    warm_up: float = 0.2  # share of the iterations

    def at(self, iteration: int, iterations: int) -> float | None:
        """β at an iteration; None where there is no regularizer yet."""
        progress = annealing_progress(iteration, iterations, self.warm_up)
        if progress < 0:
            return None
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


def annealing_progress(iteration: int, iterations: int, warm_up: float) -> float:
    """How much of an annealing is done, from 0 to 1; negative during the warm-up."""
    first = warm_up * iterations
    return (iteration - first) / (iterations - first)


def regularizer(up: Float[Tensor, "..."], beta: float) -> Float[Tensor, "..."]:
    """f_reg of each weight (Eq. 24), at h = `up`."""
    return 1 - (2 * up - 1).abs().pow(beta)


def regularizer_slope(up: Float[Tensor, "..."], beta: float) -> Float[Tensor, "..."]:
    """The derivative of f_reg by h: −2 β |2h − 1|^(β − 1) sgn(2h − 1)."""
    away = 2 * up - 1
    return away.abs().pow_(beta - 1).mul_(away.sign_()).mul_(-2 * beta)


class Relaxed(NamedTuple):
    """Where a relaxation ended."""

    codes: Int[Tensor, "groups rows cols"]
    bias: Float[Tensor, "groups rows"] | None  # None where a quadratic was lowered, whose best bias has a closed form


@final
@dataclass(frozen=True)
class Relaxation:
    """Minimise Eq. 25 by Adam, with the loss given by second moments or by minibatches of positions.

    - *The exact gradient.* Where the loss is a quadratic, half its gradient by the weights is (W̃ − W) H − C over all
      positions used, for the price of one small matrix product. Steps may be much longer than with minibatches.
    - *λ is the same number for all layers*, because each row's gradient is divided by the mean of s² H_jj, the
      curvature of the row's objective in units of codes.
    - *It stops when every variable is decided*: where h is 0 or 1 for all, nothing moves any more.

    Args:
        iterations: steps of Adam, at most. With 0, the codes are those nearest to the centre.
        learning_rate: of Adam, in units of V.
        regularization: λ, for an objective in units of a row's mean curvature.
    """

    iterations: int = 400
    learning_rate: float = 0.2
    regularization: float = 1.0

    def search(
        self,
        objective: Quadratic,
        grid: Grid,
        centre: Float[Tensor, "groups rows cols"],
        clamped: ClampedLoss | None = None,
    ) -> Relaxed:
        """Codes next to the centre.

        Args:
            objective: the quadratic that is lowered; with `clamped` it only gives the unit of λ.
            grid: gives scales and zero points.
            centre: real-valued weights, where W̃ starts. Each ends at one of the two codes next to it.
            clamped: the loss behind a clamp, to be lowered instead of the quadratic.
        """
        h, annealing, hessian, cols = RectifiedSigmoid(), BetaAnnealing(), objective.hessian, centre.shape[-1]
        ends = h.ends
        in_codes = grid.in_codes(centre)  # all that follows is [groups, rows, cols], unless it is said
        floor = in_codes.floor()
        low, high = grid.clip(floor), grid.clip(floor + 1)
        step = grid.scales(cols) * (high - low)  # 0 where the grid ends
        # With share = clip(σ(V), *ends), which is between 0 and 1, Eq. 22 and 23 are W̃ = base + reach · share.
        base = (low - expand_blocks(grid.zero_point, cols)) * grid.scales(cols) + h.gamma * step
        reach = h.span * step
        # Half the quadratic's gradient where W̃ is `base`.
        base_slope = (base - objective.weight) @ hessian - objective.inherited

        curvature = (step.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)).mean(-1, keepdim=True)
        gradient_unit = 2 * reach / torch.where(curvature > 0, curvature, 1.0)
        soft = h.inverse(in_codes - floor).contiguous()  # V
        optimizer = _Adam(soft, self.learning_rate)
        level = None if clamped is None else clamped.first_level()  # [groups, rows]
        for iteration in range(self.iterations):
            sigmoid = soft.sigmoid()
            share = sigmoid.clamp(*ends)
            if clamped is None or level is None:  # lowers the quadratic, by its exact gradient
                gradient = torch.baddbmm(base_slope, share * reach, hessian)
            else:  # lowers the loss behind the clamp, by its gradient on a minibatch
                gradient, level = clamped.half_gradient(torch.addcmul(base, share, reach), level)
            gradient.mul_(gradient_unit)
            beta = annealing.at(iteration, self.iterations)
            if beta is not None:
                # `regularizer_slope`, by the share instead of by h = span · share + γ. With away = share − ½ it is
                # −β (2 span)^β |away|^(β − 2) away; and exp(log(away²) (β/2 − 1)) is four times as fast as a power.
                away = share.sub_(0.5)
                power = away.square().log_().mul_(beta / 2 - 1).exp_()
                gradient.addcmul_(power, away, value=-beta * self.regularization * (2 * h.span) ** beta)
            gradient = aten.hardtanh_backward(gradient, sigmoid, *ends)  # through the clip,
            gradient = aten.sigmoid_backward(gradient, sigmoid)  # and through the sigmoid, to V
            if iteration % CHECK_EVERY == 0 and not ((sigmoid > ends[0]) & (sigmoid < ends[1])).any():
                break
            optimizer.step(gradient)
        codes = torch.where(soft >= 0, high, low).to(torch.int32)
        if clamped is None or level is None:
            return Relaxed(codes, None)
        return Relaxed(codes, clamped.bias_at(level, grid.dequantize(codes)))


@final
class _Adam:
    """`torch.optim.Adam` for one contiguous tensor, without its bookkeeping: that is half of a small layer's step.

    `torch.optim.adam.adam` is the function that `torch.optim.Adam` calls; it is used here and nowhere else.
    """

    def __init__(self, variable: Tensor, learning_rate: float) -> None:
        self._variable, self._learning_rate = variable, learning_rate
        self._mean, self._square = torch.zeros_like(variable), torch.zeros_like(variable)
        self._steps = torch.zeros((), device=variable.device)

    def step(self, gradient: Tensor) -> None:
        """Change the variable in place."""
        adam(
            [self._variable],
            [gradient.contiguous()],  # as the variable is: PyTorch's kernel goes through both in memory order
            [self._mean],
            [self._square],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=0.9,  # this and the rest are PyTorch's defaults
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0,
            eps=1e-8,
            maximize=False,
        )
