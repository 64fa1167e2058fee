"""Calls that PyTorch's tracer cannot follow, exchanged for calls that compute the same.

x.data                          x.detach(): the same memory, and the tracer sees where it comes from
torch.linalg.multi_dot([a, b])  a @ b: PyTorch's own function chooses an order by the sizes, which are symbols here
torch.take_along_dim(x, i, 1)   x.gather(1, i), where no dimension is broadcast
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA = vars(torch._C.TensorBase)["data"].__get__
_CHAINS = {torch.chain_matmul, torch.linalg.multi_dot}
_TAKES = {torch.take_along_dim, Tensor.take_along_dim}


@final
class Traceable(TorchFunctionMode):
    """While it is active, the tracer can follow the calls above."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DATA:
            return args[0].detach()
        if func in _CHAINS and not kwargs:
            matrices = args[0] if isinstance(args[0], Sequence) else args
            return functools.reduce(torch.matmul, matrices)
        if func in _TAKES:
            return _taken(func, args, kwargs)
        return func(*args, **kwargs)


def _taken(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The values along a dimension at the places that another tensor tells."""
    given = {**dict(zip(("input", "indices", "dim"), args, strict=False)), **kwargs}
    values, indices, dim = (given.get(name) for name in ("input", "indices", "dim"))
    if isinstance(values, Tensor) and isinstance(indices, Tensor) and isinstance(dim, int):
        pairs = list(zip(values.shape, indices.shape, strict=False))
        others = [pair for place, pair in enumerate(pairs) if place != dim % values.dim()]
        plain = values.dim() == indices.dim() and given.keys() == {"input", "indices", "dim"}
        if plain and all(one == other for one, other in others):
            return values.gather(dim, indices)
    result: Tensor = func(*args, **kwargs)
    return result
