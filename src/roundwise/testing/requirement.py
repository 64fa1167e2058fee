"""How a check reports that something does not hold, and how the checks of a file are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def require(holds: bool, found: str) -> None:
    """Raise `AssertionError(found)` unless `holds`. Unlike `assert`, it also works under `python -O`."""
    if not holds:
        raise AssertionError(found)


def checks_in(names: Mapping[str, Any]) -> tuple[Callable[..., None], ...]:
    """The functions called `check_…` among the global names of a file, in the order in which the file defines them."""
    return tuple(value for name, value in names.items() if name.startswith("check_"))


@contextmanager
def unchanged(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Require that what runs inside changes no tensor, and draws no random numbers from PyTorch's global state."""
    before, state = {name: tensor.clone() for name, tensor in tensors.items()}, torch.get_rng_state()
    yield
    for name, tensor in tensors.items():
        require(torch.equal(tensor, before[name]), f"{name} were changed")
        require(not tensor.requires_grad and tensor.grad is None, f"{name} got a gradient")
    require(torch.equal(state, torch.get_rng_state()), "random numbers were drawn from PyTorch's global state")
