"""Quantization that can be trained: gradients of quantize-then-dequantize for values, scale and zero point.

    x̂ = s (clip(⌊x/s⌉ + z, qmin, qmax) − z)                                                                   (1)

Rounding has the derivative 0 almost everywhere. The straight-through estimator takes 1 instead. With u = x/s + z, it
gives, for the gradient G of the loss with respect to x̂,

    inside, qmin < u < qmax        ∂x̂/∂x = 1      ∂x̂/∂s = ⌊x/s⌉ − x/s      ∂x̂/∂z = 0                        (2)
    below and above                ∂x̂/∂x = 0      ∂x̂/∂s = q − z             ∂x̂/∂z = −s                       (3)

where q is qmin or qmax. All three lines of both cases follow from one residual, r = x̂ − x inside and r = x̂ outside:
∂x̂/∂s = r/s. So the backward pass needs x and x̂ only, and both are kept in memory by their neighbours anyway.

A learned scale would move much faster than the weights, because it gets the gradients of many values. LSQ divides its
gradient by √(N · qmax), where N is the number of values that share the scale (for activations: in one sample).

References:
    Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153 (Eq. 3, and Section 2.2 for the factor).
    Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv:2004.09576 (Eqs. 2 to 6, with the offset β = −z s).
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_LEARNED_SCALE = 1e-8
"""A learned scale is at least 1e-8. With a larger value, tensors of tiny numbers could not be represented; with 0,
training could end in a division by 0."""


def gradient_scale(values: int, qmax: int) -> float:
    """The factor on the gradient of a scale that `values` values share: 1/√(values · qmax).

    Example:
        >>> gradient_scale(100, 4)
        0.05
    """
    return 1.0 / math.sqrt(max(1, values) * max(1, qmax))


def fake_quantize(
    values: Float[Tensor, "*shape"],
    scale: Float[Tensor, "..."],
    zero_point: Float[Tensor, "..."],
    qmin: int,
    qmax: int,
    factor: float = 1.0,
    *,
    real_zero_point: bool = False,
) -> Float[Tensor, "*shape"]:
    """Quantize, then back to real numbers (equation 1), with the gradients of equations 2 and 3.

    Args:
        values: real numbers.
        scale: > 0; of a shape that broadcasts with `values`.
        zero_point: the code of 0.0, of the scale's shape; a whole number, unless `real_zero_point`.
        qmin, qmax: the smallest and the largest code.
        factor: the gradients of scale and zero point are multiplied by it.
        real_zero_point: whether the zero point may be other than a whole number. It is then added before rounding.

    Example:
        >>> x = torch.tensor([0.1, 0.7, 9.0], requires_grad=True)
        >>> y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), 0, 3)
        >>> y.sum().backward()
        >>> y.detach(), x.grad
        (tensor([0.0000, 0.5000, 1.5000]), tensor([1., 1., 0.]))
    """
    arguments = (values, scale, zero_point, qmin, qmax, factor, real_zero_point)
    result: Tensor = _FakeQuantize.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def round_through(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest whole numbers; the gradient is passed on unchanged."""
    return values + (values.round() - values).detach()


def scaled_gradient(values: Float[Tensor, "*shape"], factor: float) -> Float[Tensor, "*shape"]:
    """The values themselves; the gradient is multiplied by a factor."""
    return values * factor + (values - values * factor).detach()


def positive(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """|scale|, at least `SMALLEST_LEARNED_SCALE`; the gradient is passed on with the sign of the scale, also below.

    An optimizer may step over 0. The absolute value makes the step harmless: a scale of −0.1 works as 0.1 does, and the
    gradient moves it away from 0 or towards 0 as it would move 0.1. A clamp would stop its gradient.
    """
    size = torch.where(scale < 0, -scale, scale)  # |scale|, with a gradient at 0 too
    return size + (size.clamp(min=SMALLEST_LEARNED_SCALE) - size).detach()


@final
class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float, real: bool
    ) -> Tensor:
        # As numerics/affine.py: in float32, with the reciprocal of the scale, rounded before the zero point is added.
        inverse = (1.0 / scale.double()).float()
        codes = torch.mul(values.float(), inverse)
        codes = codes.add_(zero_point).round_() if real else codes.round_().add_(zero_point)
        result = codes.clamp_(qmin, qmax).sub_(zero_point).mul_(scale).to(values.dtype)
        ctx.save_for_backward(values, result, scale, zero_point)
        ctx.limits = qmin, qmax
        ctx.factor = factor
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, result, scale, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.limits
        low, high = (qmin - zero_point) * scale, (qmax - zero_point) * scale
        inside = _inside(gradient, values, low, high)
        of_scale = of_zero_point = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            outside = (gradient - inside).float()
            if ctx.needs_input_grad[1]:
                residual = result.float() - values.float()
                sums = _sum_of_products(inside.float(), residual, scale) + _sum_of_products(outside, result, scale)
                of_scale = sums / scale * ctx.factor
            if ctx.needs_input_grad[2]:
                of_zero_point = outside.sum_to_size(zero_point.shape) * scale * -ctx.factor
        return inside if ctx.needs_input_grad[0] else None, of_scale, of_zero_point, None, None, None, None


def _inside(gradient: Tensor, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient where values lie between the limits, 0 elsewhere."""
    one_pass = low.numel() == 1 and low.device.type == "cpu" and gradient.dtype == values.dtype
    if one_pass:  # on a GPU, to read the limits would wait for all that was computed before
        passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, values, float(low), float(high))
        return passed
    return torch.where((values > low) & (values < high), gradient, torch.zeros_like(gradient))


def _sum_of_products(one: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """Σ one · other over all values that share an element of `like`."""
    if like.numel() == 1 and one.is_contiguous() and other.is_contiguous() and one.dtype == other.dtype:
        return torch.dot(one.reshape(-1), other.reshape(-1)).reshape(like.shape)
    return (one * other).sum_to_size(like.shape)
