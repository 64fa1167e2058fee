"""Affine quantization of tensors, as operations of PyTorch's ATEN: what a quantized network computes when it runs.

    quantize:      q = clip(⌊x · (1/s)⌉ + z, qmin, qmax)                                                       (1)
    dequantize:    x = (q − z) · s                                                                            (2)

`s` is the scale, `z` the zero point (the code of 0.0), ⌊·⌉ rounds to the nearest integer, ties to even.

Everything is computed in float32, whatever the dtype of the network. This gives bit for bit the results of PyTorch's
`quantized_decomposed` operations, which other tools know: (1) multiplies by the reciprocal of the scale, which is
rounded to float32 once, and does not divide. (2) is exact up to the product, because codes and zero points have at most
16 bits and their difference is exact in float32.

The functions take and return tensors and numbers only, and have no branch on values. So `torch.export`,
`torch.compile` and `make_fx` see through them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor


def quantize(
    values: Float[Tensor, "*shape"], scale: float, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Integer[Tensor, "*shape"]:
    """The nearest codes, one scale for the whole tensor (equation 1).

    Args:
        values: real numbers, of any floating-point dtype.
        scale: real units per code, > 0.
        zero_point: the code of 0.0.
        qmin, qmax: the smallest and the largest code.
        dtype: of the codes.

    Example:
        >>> quantize(torch.tensor([0.24, 0.26, 9.0]), 0.1, 1, 0, 15, torch.uint8)
        tensor([ 3,  4, 15], dtype=torch.uint8)
    """
    inverse = 1.0 / scale
    return _cast(torch.clamp(torch.round(_cast(values, torch.float32) * inverse) + zero_point, qmin, qmax), dtype)


def dequantize(codes: Integer[Tensor, "*shape"], scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """The real numbers that codes stand for, one scale for the whole tensor (equation 2).

    Args:
        codes: integers, in any integer dtype.
        scale: real units per code, > 0.
        zero_point: the code of 0.0.
        dtype: of the result; computed in float32 and converted at the end.

    Example:
        >>> dequantize(torch.tensor([3, 15], dtype=torch.uint8), 0.5, 1, torch.float32)
        tensor([1., 7.])
    """
    return _cast((_cast(codes, torch.float32) - zero_point) * scale, dtype)


def dequantize_per_channel(
    codes: Integer[Tensor, "..."],
    scale: Float[Tensor, " channels"],
    zero_point: Integer[Tensor, " channels"],
    axis: int,
    dtype: torch.dtype,
) -> Tensor:
    """The real numbers that codes stand for, with a scale for each index along one axis (equation 2).

    Args:
        codes: integers; `codes.shape[axis]` is the number of channels.
        scale: float32, one per channel.
        zero_point: one per channel.
        axis: along which the scale changes; negative ones count from the end.
        dtype: of the result; computed in float32 and converted at the end.
    """
    shape = [1] * codes.dim()
    shape[axis] = -1
    centred = _cast(codes, torch.float32) - _cast(zero_point, torch.float32).view(shape)
    return _cast(centred * scale.view(shape), dtype)


def dequantize_per_group(
    codes: Integer[Tensor, "rows cols"],
    scale: Float[Tensor, "rows blocks"],
    zero_point: Integer[Tensor, "rows blocks"],
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """The real numbers that a matrix of codes stands for, with a scale for `size` neighbours in a row (equation 2).

    Args:
        codes: integers; the number of columns is blocks · size.
        scale: float32, one per block.
        zero_point: one per block.
        size: columns per block.
        dtype: of the result; computed in float32 and converted at the end.
    """
    rows, cols = codes.shape
    blocks = _cast(codes.reshape(rows, -1, size), torch.float32)
    real = (blocks - _cast(zero_point, torch.float32).unsqueeze(-1)) * scale.unsqueeze(-1)
    return _cast(real.reshape(rows, cols), dtype)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; itself where it has that dtype.

    `Tensor.to` would do, but `torch.export` adds an assertion to each, which ties the program to one device.
    """
    return values if values.dtype == dtype else torch.ops.aten._to_copy.default(values, dtype=dtype)
