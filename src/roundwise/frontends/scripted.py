"""Models and parts that TorchScript compiled or traced, in a form that `torch.export` can read.

TorchScript keeps a module, its parts and its tensors in C++. There is no Python code to look at, but running it on fake
tensors calls the same ATen operations, so it is captured like any code. `torch.export` must be able to exchange the
tensors, though, and it can do that only in plain modules. So a tree of plain modules stands for the scripted one, with
parameters and buffers of the same names. When it is called, it hands its tensors to a copy of the scripted module, and
runs that.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, final

import torch
from torch import nn
from torch.jit._fuser import optimized_execution


@final
class _Part(nn.Module):
    """The tensors of one part of a scripted module."""


@final
class Scripted(nn.Module):
    """Computes what a scripted module computes in evaluation, with the same tensors by the same names."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.training = bool(getattr(scripted, "training", False))  # what is frozen has no mode
        runs: torch.jit.ScriptModule = copy.deepcopy(scripted)
        parts: dict[str, Any] = dict(runs.named_modules())
        for part in parts.values():
            if part._c.hasattr("training"):
                part._c.setattr("training", False)
        places = [_add_tensors(self, scripted, runs)]
        for path, original in scripted.named_modules():
            if path:
                parent, _, name = path.rpartition(".")
                holder = _Part().eval()
                self.get_submodule(parent).add_module(name, holder)
                places.append(_add_tensors(holder, original, parts[path]))
        self.__dict__.update(_runs=runs, _places=places, forward=self._forward_of(scripted))

    def _forward_of(self, scripted: torch.jit.ScriptModule) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._hand_over()
            with optimized_execution(False):  # optimized code is for the sizes of the first call only
                return self.__dict__["_runs"](*args, **kwargs)

        vars(forward)["__signature__"] = signature_of_scripted(scripted)
        return forward

    def _hand_over(self) -> None:
        for part, run, names in self.__dict__["_places"]:
            for name in names:
                run._c.setattr(name, getattr(part, name))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_runs" not in self.__dict__:
                raise
        self._hand_over()
        return getattr(self.__dict__["_runs"], name)


def _add_tensors(part: nn.Module, original: Any, run: Any) -> tuple[nn.Module, Any, list[str]]:
    """Give a part the tensors of a scripted one; returns where they are handed over to."""
    parameters = {name: value for name, value in original.named_parameters(recurse=False) if value is not None}
    buffers = {name: value for name, value in original.named_buffers(recurse=False) if value is not None}
    for name, value in parameters.items():
        part.register_parameter(name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
    for name, value in buffers.items():
        part.register_buffer(name, value.detach().clone())
    return part, run, [*parameters, *buffers]


def signature_of_scripted(module: nn.Module) -> inspect.Signature:
    """The signature of `forward`, from its schema."""
    compiled: Any = module._c
    parameters = []
    for argument in compiled._get_method("forward").schema.arguments[1:]:
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(argument.name, kind, default=default))
    return inspect.Signature(parameters)
