"""Kinds of tensors with which networks cannot be computed here: only plain ones can be cut, copied and measured."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_UNSIGNED = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
PLAIN_DTYPES = frozenset(
    (
        *_UNSIGNED,
        *_SIGNED,
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    )
)
"""The dtypes with which PyTorch computes. Others, such as float8, only store numbers."""


def odd_kind(tensor: Tensor) -> str | None:
    """What is odd about a tensor, as an adjective: "sparse_coo", "nested", "float8_e4m3fn"; None for a plain tensor.

    A plain tensor has memory that holds one number beside the other, of a dtype with which PyTorch computes.

    Example:
        >>> odd_kind(torch.zeros(2, 2).to_sparse()), odd_kind(torch.zeros(2)), odd_kind(torch.zeros(2, device="meta"))
        ('sparse_coo', None, 'meta')
    """
    if tensor.is_nested:
        return "nested"
    if is_traceable_wrapper_subclass(tensor):  # such as a DTensor, which lies on several machines
        return type(tensor).__name__
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta:
        return "meta"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.").removeprefix("_")
    if tensor.dtype not in PLAIN_DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    try:
        has_memory = tensor.numel() == 0 or tensor.untyped_storage().data_ptr() != 0
    except RuntimeError:  # of a class that has no storage, such as FakeTensor
        has_memory = False
    return None if has_memory else type(tensor).__name__


def what_to_do(kind: str) -> str:
    """How a plain tensor is made of one of an odd kind."""
    if kind == "meta":
        return "It has a shape but no values: load the values first."
    if kind.startswith("sparse") or kind == "mkldnn":
        return "Give tensor.to_dense()."
    if kind == "quantized":
        return "Give tensor.dequantize()."
    if kind == "nested":
        return "Give tensor.to_padded_tensor(0), or samples of one size."
    if kind.startswith("float"):
        return "Give tensor.float()."
    return "Give a plain tensor with the same values."
