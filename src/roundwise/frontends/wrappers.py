"""Wrappers that add nothing to what a model computes in evaluation: what they hold is captured in their place.

So layers have the names that the user gave them: `encoder.fc`, and not `_orig_mod.encoder.fc` (`torch.compile`),
`module.encoder.fc` (`DataParallel`, averaged weights) or `base_model.model.encoder.fc` (PEFT). Wrappers may stand
around the model or around any part of it, and around each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from roundwise.errors import CaptureError

_WRAPPERS: tuple[type[nn.Module], ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""PyTorch's wrappers that hold the model as `module`, and call it."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def named_from_inside(model: object) -> Iterator[None]:
    """Let an error about a wrapped model say what its paths begin at."""
    try:
        yield
    except CaptureError as error:
        if not isinstance(model, nn.Module) or unwrapped(model) is model:
            raise
        inside, outside = type(unwrapped(model)).__name__, type(model).__name__
        raise CaptureError(f"{error}\nHere `model` is the {inside} inside the {outside}: take it out first.") from error


def unwrapped(module: nn.Module) -> nn.Module:
    """What stands inside all wrappers around a module; the module itself if there is no wrapper.

    A wrapper with hooks of its own stays, since the hooks may change inputs and outputs.
    """
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None if the module is not a wrapper, or computes something itself."""
    if any(vars(module).get(hooks) for hooks in _HOOKS):
        return None
    kind, parts = type(module), vars(module).get("_modules", {})
    inner: Any = None
    if kind.__module__ == "torch._dynamo.eval_frame":  # by name: the module takes seconds to import
        inner = parts.get("_orig_mod") if _is_compiled(vars(module).get("forward")) else None
    elif not _is_called_as_its_class_says(module):
        return None
    elif any(isinstance(module, wrapper) and kind.forward is wrapper.forward for wrapper in _WRAPPERS):
        inner = parts.get("module")
    elif _is_of_peft(kind, "PeftModel") and not _changes_the_prompt(module):
        inner = parts.get("base_model")
    elif _is_of_peft(kind, "BaseTuner"):
        inner = parts.get("model")
    return inner if isinstance(inner, nn.Module) else None


def _is_compiled(forward: object) -> bool:
    """Whether `torch.compile` made this function of a forward. Another one was set by the user."""
    return hasattr(forward, "_torchdynamo_orig_callable")


def _is_called_as_its_class_says(module: nn.Module) -> bool:
    """Whether a call runs the forward of the module's class, and nothing else."""
    kind = type(module)
    called = kind.__call__ is nn.Module.__call__ and kind._call_impl is nn.Module._call_impl
    return called and not vars(module).keys() & {"forward", "_call_impl"}


def _is_of_peft(kind: type, name: str) -> bool:
    """Whether a class is, or inherits from, a class of this name in PEFT, which need not be installed.

    Tuners with a forward of their own compute something. Models have one for each task, which may be PEFT's only.
    """
    base: Any = next((base for base in kind.__mro__ if base.__name__ == name and _package(base) == "peft"), None)
    forward = getattr(kind, "forward", None)
    return base is not None and (forward is base.forward or (name == "PeftModel" and _package(forward) == "peft"))


def _package(thing: object) -> str:
    """The package that defines a class or function."""
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _changes_the_prompt(module: nn.Module) -> bool:
    """Whether PEFT puts vectors of its own before the inputs, so that the wrapper is part of the function."""
    config = getattr(module, "peft_config", None)
    configs = config.values() if isinstance(config, dict) else ()
    return any(getattr(one, "is_prompt_learning", False) for one in configs)
