"""Operations that PyTorch's ONNX exporter translates in part only, as operations that it translates.

The exporter takes attention over four dimensions without a mask. Everything else of
`torch.nn.functional.scaled_dot_product_attention` is written out here: other numbers of dimensions, masks, queries
that share heads of keys. And it takes two limits of a clamp only if both are whole or both are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from roundwise.graph.graph import Graph

aten = torch.ops.aten


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 – 0 in evaluation mode
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v. Like PyTorch, a query that may see no key at all gets zeros, and not NaN."""
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    if query.dim() == 4 and attn_mask is None and alike:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        return torch.softmax(scores, -1) @ value
    blocked = ~attn_mask if attn_mask.dtype is torch.bool else attn_mask == -math.inf
    added = scores if attn_mask.dtype is torch.bool else scores + attn_mask
    weights = torch.softmax(added.masked_fill(blocked, -math.inf), -1)
    return weights.masked_fill(blocked.all(-1, keepdim=True), 0.0) @ value


def clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x between two limits, of which both are floats if one is."""
    if isinstance(low, float) or isinstance(high, float):
        low, high = (limit if limit is None else float(limit) for limit in (low, high))
    return torch.clamp(x, low, high)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.clamp.default: clamp,
    aten.scaled_dot_product_attention.default: attention,
}
"""For each operation, the function that computes it from operations that the exporter translates."""


def decomposed(graph: Graph) -> Graph:
    """A copy of the graph that computes the operations of `DECOMPOSITIONS` by their functions."""
    copy = graph.copy()
    found = [node for node in copy.operations.nodes if node.op == "call_function" and node.target in DECOMPOSITIONS]
    for node in found:
        node.target = DECOMPOSITIONS[node.target]
    for node in copy.operations.find_nodes(op="call_function", target=aten.view.default) if found else ():
        node.target = aten.reshape.default  # the functions give results in another order of memory
    return copy
