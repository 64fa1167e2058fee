"""AdaRound in Gram space: the paper's relaxation, solved from second moments instead of minibatches.

The paper relaxes the choice between rounding down and up to a continuous variable for each weight,

    W̃ = s · clip(⌊W/s⌋ + h(V), n, p)                                                          (Eq. 22)
    h(V) = clip(σ(V) (ζ − γ) + γ, 0, 1)                     the rectified sigmoid             (Eq. 23)
    f_reg(V) = Σ 1 − |2 h(V) − 1|^β                         pushes h to 0 or 1                (Eq. 24)

and minimises ‖W x − W̃ x̂‖² + λ f_reg(V) by Adam on minibatches. But the first term is a quadratic function of W̃ that
H = E[x̂ x̂ᵀ] and C = E[e x̂ᵀ] determine (`numerics/quadratic.py`). So here, without an activation function, every step
has the exact gradient over all samples, 2 s (D H − C) by h, for the price of one small matrix product, and steps may be
some hundred times as long as with minibatches. Further:

- *λ is one number for all layers*, since each row's objective is divided by the mean of s² H_jj, its curvature in
  units of codes.
- *It stops when every variable is decided*: where h is 0 or 1 for all, nothing moves any more.
- *Coordinate descent* then takes what is left (`numerics/search/descent.py`).
- *Few samples are worth few steps*: with less than a hundred positions for each column, proportionally fewer are taken.
- *Few columns* (the first convolution of a network for images has 27, whose inputs are nearly the same): there a tabu
  walk (`numerics/search/tabu.py`) goes on from where the descent stops. Where a clamp follows, there are two starts,
  with its slopes and without, and every row keeps the better end.
- *Very few* (a 3×3 depthwise convolution has 9) need no relaxation: all 2^cols roundings of a row are tried.

Four things go beyond the paper, each a field:

- `free_bias`: the bias takes up the mean error, so that the weights need only match what varies. On by default.
- `any_code`: not only floor and ceiling of each weight, but any code. The relaxation is then centred on the minimum of
  the quadratic over real numbers instead of on the weights, since that is where good codes are.
- `fit_scale`: the scale follows the codes, in closed form.
- `addition_aware`: where the layer's output y is added to another branch r, as in residual networks, the target is
  y + r − r̂: what that branch lacks already is made up for, as far as the layer's inputs tell. That lowers the error of
  the network's output by 2 to 10 %, but labels show no gain, so it is off by default (benchmarks/RESULTS.md, "What an
  addition lacks").

`any_code` and `fit_scale` fit the samples more closely. Where these are plentiful for the columns, or where floor and
ceiling are too little (2 bits), that holds on other inputs too; else it fits these samples rather than the task. So by
default both are on with 2 bits or fewer, and with more wherever `Gram` takes fifty positions for each column, which are
those of about one sample for each where a sample has 64 or more (benchmarks/RESULTS.md, "How much freedom").

Where a ReLU, a ReLU6 or another clamp follows the layer, the gradient of Eq. 25 depends on which outputs it cuts off.
There each step takes its gradient from a few hundred unfolded positions, as in the paper, but of more samples than 32
with all their positions. Where they are too few for the columns, targets set anew (majorisation) stand in. Other
functions do not enter (`methods/reconstruction.py`, which also holds the layer to never being worse than nearest
rounding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.optim.adam import adam

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.reconstruction import WORK, Freedom, Slope, solve
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices, descend
from roundwise.numerics.search.tabu import walk
from roundwise.statistics import Gram

aten = torch.ops.aten

ZETA, GAMMA = 1.1, -0.1
"""The stretch of the rectified sigmoid (below Eq. 23); ζ + γ is 1, so that h = ½ where σ = ½."""

SPAN = ZETA - GAMMA
"""How much h changes with σ between its ends."""

CUT = -GAMMA / SPAN, (1 - GAMMA) / SPAN
"""The σ at which h becomes 0, and 1."""

BETA_START, BETA_END, WARM_UP = 20.0, 2.0, 0.2
"""The annealing of β along a cosine, and the share of steps without regulariser, as in the authors' own code."""

EXHAUSTIBLE = 10
"""With so many columns or fewer, every rounding is tried."""

AT_ONCE = 64
"""So many roundings of every row are tried at a time."""

FEW_COLUMNS = 32
"""With so many columns or fewer, but more than can be tried, a walk follows and there are two starts."""

CENTRE_DAMPING = 0.01
"""How much the centre of the search for any code is pulled to the weights: a share of the mean curvature."""

FREE_BITS = 2
"""With so many bits or fewer, any code and scales that follow are worth their risk in every layer."""

FREE_PER_COLUMN = 50
"""Positions for each column, of those that `Gram` takes to choose by, with which they are with more bits too."""

PER_COLUMN, LEAST = 100, 0.1
"""Positions for each column that are worth all steps, fewer being worth fewer; and the share below which none are."""

LOOK = 20
"""Steps between two looks at whether all is decided."""


TENURE = 4
"""A changed column is left alone for the length of the row, divided by this, or up to twice as long."""


@final
@dataclass(frozen=True)
class GramAdaRound(RoundingSolver[Gram]):
    """Choose for every weight how to round it, so that the layer's output changes least. The default.

    Args:
        iterations: steps of the relaxation, at most; twice as many where it follows a ReLU or another clamp.
        learning_rate: of Adam, in units of V.
        regularization: λ of Eq. 25, for an objective in units of one row's mean curvature.
        any_code: True lets each weight have any code; False only the two next to it, as in the paper (Eq. 9); None is
            True at 2 bits, and above in layers with 50 positions for each column among those that codes are chosen by
            (of a sample mostly 64; `statistics/gram.py`).
        free_bias: let the layer's bias take up the mean error, where it has one of its own.
        fit_scale: re-fit the scales to the codes (per group they stay); None is what `any_code` is in that layer.
        addition_aware: where the layer's output, and nothing made from it, is added to another branch that can be
            computed before, make up for that branch's error too. Worth a try at 2 bits; False, as in the paper, looks
            at the layer alone.
        turns: how often scale, activation function and codes take their turns; with 0 the activation function plays no
            part in the search, and held-out samples are only held out.
        walk: moves for each column of the tabu walk that follows where columns are few; 0 for none, and for one start.
        damping: how strongly weights are held to the float ones, against fitting the calibration samples too closely;
            0 is not at all, 1 as much as their number suggests if every position were a sample of its own. But those
            of one image resemble each other, and 10 was best for samples that had been held out. Where
            inputs have a mean of many times their spread, as behind a sigmoid, 10 holds nearly all weights to nearest
            rounding: take 0 there.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Sections 3.3 and 3.4; the objective from second moments: its Eq. 20.
    """

    iterations: int = 400
    learning_rate: float = 0.2
    regularization: float = 1.0
    any_code: bool | None = None
    free_bias: bool = True
    fit_scale: bool | None = None
    addition_aware: bool = False
    turns: int = 3
    walk: int = 10
    damping: float = 10.0
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(
            self,
            {
                "iterations must be at least 1": self.iterations >= 1,
                "learning_rate must be positive": self.learning_rate > 0,
                "regularization must not be negative": self.regularization >= 0,
                "turns, walk and damping must not be negative": min(self.turns, self.walk, self.damping) >= 0,
            },
        )

    @property
    def floor_or_ceil(self) -> bool:
        return self.any_code is False and not self.fit_scale

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        cols = problem.weight.shape[2]
        any_code = self.is_worth_freedom(problem) if self.any_code is None else self.any_code
        fit_scale = any_code if self.fit_scale is None else self.fit_scale
        all_tried, few = cols <= EXHAUSTIBLE, self.walk > 0 and EXHAUSTIBLE < cols <= FEW_COLUMNS

        def search(quadratic: Quadratic, grid: Grid, choices: Choices, slope: Slope | None) -> Tensor:
            centre = quadratic.minimum(CENTRE_DAMPING) if any_code else quadratic.weight
            steps = self.steps(quadratic)
            if slope is not None and steps and not all_tried:
                return self.relax(quadratic, grid, centre, 2 * steps, slope)
            codes = exhaust(quadratic, grid, centre) if all_tried else self.relax(quadratic, grid, centre, steps)
            return improve(quadratic, grid, codes, choices)

        def improve(quadratic: Quadratic, grid: Grid, codes: Tensor, choices: Choices) -> Tensor:
            codes = descend(quadratic, grid, codes, choices)
            if not few:
                return codes
            codes = walk(quadratic, grid, codes, choices, generator, self.walk * cols, max(1, cols // TENURE))
            return descend(quadratic, grid, codes, choices)

        freedom = Freedom(any_code, self.free_bias, fit_scale, self.turns, self.damping)
        remark = ""
        if any_code and self.any_code is None:
            follow = fit_scale and problem.grid.scale.shape[-1] == 1  # several to a row depend on each other, and stay
            remark = "weights could take any code" + (", and scales followed" if follow else "")
        return solve(problem, search, freedom, improve=improve, twice=few, remark=remark)

    def is_worth_freedom(self, problem: Problem[Gram]) -> bool:
        """Whether `any_code=None` lets this layer's weights have any code."""
        plenty = problem.statistics.fit.count >= FREE_PER_COLUMN * problem.weight.shape[2]
        return plenty or problem.grid.codebook.bits <= FREE_BITS

    def steps(self, quadratic: Quadratic) -> int:
        """How many steps the samples are worth: where few decide, coordinate descent finds codes as good as many do."""
        worth = quadratic.count / (PER_COLUMN * quadratic.hessian.shape[-1])
        return round(min(1.0, worth) * self.iterations) if worth >= LEAST else 0

    def relax(self, quadratic: Quadratic, grid: Grid, centre: Tensor, steps: int, slope: Slope | None = None) -> Tensor:
        """Codes next to the `centre` after so many steps of the relaxation, `[groups, rows, cols]` as floats.

        The centre is the float weights, or where any code may be chosen the minimum over real numbers.

        Downhill on the quadratic, or on the objective that `slope` has the gradients of.
        """
        hessian, cols = quadratic.hessian, centre.shape[-1]
        position = grid.position(centre)
        floor = position.floor()
        low, high = grid.clip(floor), grid.clip(floor + 1)
        step = grid.steps(cols) * (high - low)  # 0 where the grid ends
        # Everything by s = clip(σ(V)) between the ends of `CUT`, of which h = SPAN s + γ and Ŵ = base + reach s.
        base = (low - expand_blocks(grid.zero_point, cols)) * grid.steps(cols) + GAMMA * step
        reach = SPAN * step
        base_slope = (base - quadratic.weight) @ hessian - quadratic.pull

        curvature = (step.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)).mean(-1, keepdim=True)
        gradient_unit = 2 * reach / torch.where(curvature > 0, curvature, 1.0)
        soft = inverse_rectified_sigmoid(position - floor).contiguous()
        optimizer = _Adam(soft, self.learning_rate)
        for iteration in range(steps):
            sigmoid = soft.sigmoid()
            cut = sigmoid.clamp(*CUT)
            if slope is None:
                gradient = torch.baddbmm(base_slope, cut * reach, hessian)
            else:
                gradient = slope(torch.addcmul(base, cut, reach))
            gradient.mul_(gradient_unit)
            beta = annealed_beta(iteration / steps)
            if beta is not None:
                away = cut.sub_(0.5)  # 2 SPAN of these are 2 h − 1, whose β-th power's slope this is:
                power = away.square().log_().mul_(beta / 2 - 1).exp_()  # four times faster than pow; β stays above 2
                gradient.addcmul_(power, away, value=-beta * self.regularization * (2 * SPAN) ** beta)
            gradient = aten.hardtanh_backward(gradient, sigmoid, *CUT)  # through the clip,
            gradient = aten.sigmoid_backward(gradient, sigmoid)  # and the sigmoid
            if iteration % LOOK == 0 and not ((sigmoid > CUT[0]) & (sigmoid < CUT[1])).any():
                break
            optimizer.step(gradient)
        return torch.where(soft >= 0, high, low)


@final
class _Adam:
    """`torch.optim.Adam` of one contiguous tensor, without what that spends on groups: half of a small layer's step."""

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
            beta1=0.9,  # and what follows: PyTorch's defaults
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0,
            eps=1e-8,
            maximize=False,
        )


def inverse_rectified_sigmoid(fraction: Tensor) -> Tensor:
    """The V with h(V) = `fraction`."""
    return -torch.log(SPAN / (fraction - GAMMA) - 1)


def annealed_beta(progress: float) -> float | None:
    """β for the share of the steps that is done; None during the warm-up."""
    if progress < WARM_UP:
        return None
    angle = math.pi * (progress - WARM_UP) / (1 - WARM_UP)
    return BETA_END + (BETA_START - BETA_END) * 0.5 * (1 + math.cos(angle))


def exhaust(quadratic: Quadratic, grid: Grid, centre: Tensor) -> Tensor:
    """The best codes next to the `centre`, by trying all 2^cols of each row; nearest ones where nothing is better."""
    cols, hessian = centre.shape[-1], quadratic.hessian
    position, scale = grid.position(centre), grid.steps(cols)
    low, high, nearest = (grid.clip(codes) for codes in (position.floor(), position.floor() + 1, position.round()))
    step = (high - low) * scale
    base = (low - expand_blocks(grid.zero_point, cols)) * scale - quadratic.weight
    # A code up or down is a bit, and the objective a sum over bits and pairs of them: one product gives it for all.
    one, other = torch.triu_indices(cols, cols, device=centre.device)
    curves = hessian[:, None, one, other] * step[..., one] * step[..., other] * (1 + (one != other))
    curves[..., one == other] += 2 * step * (base @ hessian - quadratic.pull)

    bits = (nearest > low).float()
    least = (curves * bits[..., one] * bits[..., other]).sum(-1, keepdim=True)
    columns = torch.arange(cols, device=centre.device)
    for numbers in torch.arange(1 << cols, device=centre.device).split(AT_ONCE):
        some = (numbers.unsqueeze(1) >> columns & 1).float()
        loss, which = (curves @ (some[:, one] * some[:, other]).T).min(-1, keepdim=True)
        better = loss < least
        bits, least = torch.where(better, some[which.squeeze(-1)], bits), torch.where(better, loss, least)
    matters = hessian.diagonal(dim1=1, dim2=2).unsqueeze(1) > 0  # else the input is always zero
    return torch.where(matters, torch.where(bits > 0, high, low), nearest)
