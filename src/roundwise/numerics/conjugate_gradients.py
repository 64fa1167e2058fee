"""Improve one core of a product of several, the others fixed: a few steps of conjugate gradients.

A layer's matrix M(A) is linear in each core A of its factorization. Then tr (M(A) − M₀) H (M(A) − M₀)ᵀ is quadratic in
A, and steps from the present A never raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 8
"""Steps of conjugate gradients. With more, each call takes longer and gains more."""


def improved(
    core: Tensor,
    build: Callable[[Tensor], Float[Tensor, "rows cols"]],
    back: Callable[[Float[Tensor, "rows cols"]], Tensor],
    best: Float[Tensor, "rows cols"],
    second: Float[Tensor, "cols cols"],
) -> Tensor:
    """A core with a smaller error, or the same core where none is smaller.

    Args:
        core: to begin with.
        build: M(A), linear.
        back: its adjoint: ⟨M(A), X⟩ = ⟨A, back(X)⟩.
        best: M₀.
        second: H.
    """
    residual = back((best - build(core)) @ second)
    direction, size = residual, residual.square().sum()
    for _ in range(STEPS):
        curved = back(build(direction) @ second)
        along = (direction * curved).sum()
        if not float(along) > 0 or not float(size) > 0:
            break
        core = core + direction * (size / along)
        residual = residual - curved * (size / along)
        before, size = size, residual.square().sum()
        direction = residual + direction * (size / before)
    return core


def balanced(weights: Sequence[Float[Tensor, "rows cols *taps"]]) -> list[Tensor]:
    """The weights of layers in a row, with each channel between two of them scaled so that both have one norm there.

    What the layers compute together stays the same. No layer then has much larger numbers than the next, which training
    and integer arithmetic prefer.
    """
    scaled = list(weights)
    for number in range(len(scaled) - 1):
        one, two = scaled[number], scaled[number + 1]
        before, after = one.flatten(1).norm(dim=1), two.transpose(0, 1).flatten(1).norm(dim=1)
        scale = torch.where((before > 0) & (after > 0), (after / before).sqrt(), 1.0)
        scaled[number] = one * scale.reshape(-1, *[1] * (one.dim() - 1))
        scaled[number + 1] = two / scale.reshape(1, -1, *[1] * (two.dim() - 2))
    return scaled
