"""Run a model, and leave the model and PyTorch's settings as they were."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def model_left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes that it had before, whatever happens inside: mode, buffers, hooks.

    Inside, the modules hold copies of their buffers, since running a model may write to them. Attributes that are
    lists, dicts or sets get their content back where it has changed. What deeper Python objects hold is not restored.
    """
    copies: dict[Tensor, Tensor] = {}
    before: list[tuple[Any, Any]] = []
    for module in model.modules():
        attributes = vars(module)
        before.append((attributes, dict(attributes)))
        before += [(value, _content(value)) for value in attributes.values() if isinstance(value, dict | list | set)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(buffer, buffer.detach().clone())
    try:
        yield
    finally:
        for container, content in before:
            if not _same(_content(container), content):
                _refill(container, content)


def _content(container: Any) -> Any:
    """A plain copy, made without methods of the container's own class."""
    if isinstance(container, dict):
        return dict(dict.items(container))
    return list(list.__iter__(container) if isinstance(container, list) else set.__iter__(container))


def _same(now: Any, before: Any) -> bool:
    """Whether two contents hold the same objects, in the same order."""
    if isinstance(now, dict):
        return _same([*now, *now.values()], [*before, *before.values()])
    return len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True))


def _refill(container: Any, content: Any) -> None:
    """Give a container its content back, even where its own class forbids changes."""
    if isinstance(container, dict):
        dict.clear(container)
        dict.update(container, content)
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), content)
    else:
        set.clear(container)
        set.update(container, content)


@contextlib.contextmanager
def quiet_and_unfused() -> Iterator[None]:
    """Keep PyTorch's remarks about its own internals from the user, and its fused attention kernel from the graph.

    The fused kernel hides the linear layers of attention.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    loggers = [log for name, log in logging.root.manager.loggerDict.items() if name.partition(".")[0] == "torch"]
    handlers = {handler for log in loggers if isinstance(log, logging.Logger) for handler in log.handlers}

    def below_warning(record: logging.LogRecord) -> bool:  # PyTorch logs these only if TORCH_LOGS asks for them
        return record.levelno < logging.WARNING

    torch.backends.mha.set_fastpath_enabled(False)
    for handler in handlers:
        handler.addFilter(below_warning)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\..*|copyreg", category=FutureWarning)
            warnings.filterwarnings("ignore", module=r"torch\..*", category=DeprecationWarning)
            # `model_left_as_it_was` takes back what the model assigns.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            # PyTorch warns of every tensor that enters `torch.cond`.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(below_warning)
        torch.backends.mha.set_fastpath_enabled(fast)
