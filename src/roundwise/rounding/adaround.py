"""AdaRound in Gram space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.gramspace import Choices, Freedom, Quadratic, descend, solve
from roundwise.grid import Grid, expand_blocks
from roundwise.problem import Problem, Rounding, RoundingSolver, check_types
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class AdaRound(RoundingSolver[Gram]):
    iterations: int = 500
    learning_rate: float = 0.1
    regularization: float = 1.0
    any_code: bool = True
    free_bias: bool = True
    fit_scale: bool = True
    turns: int = 3
    damping: float = 0.0
    needs: ClassVar[type] = Gram

    @property
    def floor_or_ceil(self) -> bool:
        return not self.any_code

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        return solve(problem, self._search, Freedom(self.any_code, self.free_bias, self.fit_scale, self.turns, self.damping))

    def _search(self, quadratic: Quadratic, grid: Grid, choices: Choices) -> Tensor:
        W = quadratic.minimum(0.01) if self.any_code else quadratic.weight
        H, C = quadratic.hessian, quadratic.pull
        g, r, c = W.shape
        s = grid.steps(c).expand(W.shape)
        z = expand_blocks(grid.zero_point, c).expand(W.shape).float()
        pos = grid.position(W)
        fl = pos.floor()
        lo, hi = grid.clip(fl), grid.clip(fl + 1)
        ze, ga = 1.1, -0.1
        V = -torch.log((ze - ga) / (pos - fl - ga) - 1)
        diag = H.diagonal(dim1=1, dim2=2)
        norm = (s * s * diag[:, None, :]).mean().clamp(min=1e-30)
        m = torch.zeros_like(V)
        v = torch.zeros_like(V)
        base = (lo - z) * s - quadratic.weight
        sc = s * (hi - lo)
        G0 = torch.bmm(base, H) - C
        steps = self.iterations
        for it in range(steps):
            sg = V.sigmoid()
            h = (sg * (ze - ga) + ga).clamp(0, 1)
            gr = (G0 + torch.bmm(sc * h, H)).mul_(2 * sc / norm)
            t = it / steps
            if t >= 0.2:
                p = (t - 0.2) / 0.8
                beta = 2 + 18 * 0.5 * (1 + math.cos(math.pi * p))
                a = 2 * h - 1
                gr = gr - self.regularization * 2 * beta * a.abs().pow(beta - 1) * a.sign()
            gr = gr * sg * (1 - sg) * (ze - ga) * ((h > 0) & (h < 1))
            m.mul_(0.9).add_(gr, alpha=0.1)
            v.mul_(0.999).addcmul_(gr, gr, value=0.001)
            V -= self.learning_rate * (m / (1 - 0.9 ** (it + 1))) / ((v / (1 - 0.999 ** (it + 1))).sqrt() + 1e-8)
        h = (V.sigmoid() * (ze - ga) + ga).clamp(0, 1)
        return descend(quadratic, grid, torch.where(h >= 0.5, hi, lo), choices)
