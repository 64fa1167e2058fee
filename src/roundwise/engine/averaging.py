"""The running average of all parameters: steadier than the parameters of any single step.

    ā ← d ā + (1 − d) a                after each step                                                             (1)

The average is what is evaluated and kept; training goes on with a itself. In the first steps d is smaller,
(1 + t) / (10 + t) after t steps, so that the average forgets where training started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn


@final
class Average:
    """The average of the parameters of a module that ask for gradients.

    Args:
        module: the module.
        decay: d in equation 1, 0 to 1; 0 keeps no average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        named = module.named_parameters() if decay else ()
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take note of the parameters after a step of the optimizer."""
        self._steps += 1
        weight = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter.detach(), weight)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the context the module has the averages as its parameters."""
        before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._load(self._average)
        try:
            yield
        finally:
            self._load(before)

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that is remembered, for a checkpoint."""
        return {"steps": torch.tensor(self._steps), **{f"average.{name}": it for name, it in self._average.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self._steps = int(state["steps"])
        for name, average in self._average.items():
            average.copy_(state[f"average.{name}"])
