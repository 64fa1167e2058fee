"""Settings of PyTorch while a model is captured: no remarks about its own internals, no fast path, no look at masks.

PyTorch has a second implementation of `nn.TransformerEncoder` and `nn.MultiheadAttention`, the *fast path*, for
evaluation without gradients. Its kernels hide linear layers, so a model is exported without it. But its outputs may
differ: if a padding mask is given, it drops the padded places and puts zeros there at the end. `fast_path` finds out
whether a model takes it, so that the report can say what differs.

`nn.TransformerEncoder` and `nn.TransformerDecoder` compare a mask with the causal one, to choose a faster kernel. The
operations of a graph cannot depend on the values of a tensor, so a model is exported without this comparison. The mask
itself has the same effect.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from roundwise.graph.operators import FAST_PATH

aten = torch.ops.aten


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's remarks about its own internals from the user."""
    loggers = [log for name, log in logging.root.manager.loggerDict.items() if name.partition(".")[0] == "torch"]
    handlers = {handler for log in loggers if isinstance(log, logging.Logger) for handler in log.handlers}

    def below_warning(record: logging.LogRecord) -> bool:  # PyTorch logs these only if TORCH_LOGS asks for them
        return record.levelno < logging.WARNING

    for handler in handlers:
        handler.addFilter(below_warning)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\..*|copyreg", category=FutureWarning)
            warnings.filterwarnings("ignore", module=r"torch\..*", category=DeprecationWarning)
            # Only the double of the model gets these attributes.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            # PyTorch warns of every tensor that enters `torch.cond`.
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            # The fast path makes nested tensors, which are a prototype.
            warnings.filterwarnings("ignore", message=r"The PyTorch API of nested tensors is in prototype stage")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(below_warning)


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Run transformers and attention without PyTorch's fast path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


_ASK_FOR_CAUSAL: dict[type[nn.Module], tuple[str, int]] = {
    nn.TransformerEncoder: ("is_causal", 3),
    nn.TransformerDecoder: ("tgt_is_causal", 6),
}
"""The modules that compare a mask with the causal one; name and position of the parameter that spares them the look."""


@contextlib.contextmanager
def without_looking_at_masks(model: nn.Module) -> Iterator[None]:
    """Let transformers use their masks as they are, and not find out whether they are causal.

    Args:
        model: gets hooks for this time, so it must not be the user's.
    """
    with contextlib.ExitStack() as hooks:
        for part in model.modules():
            for kind, (name, position) in _ASK_FOR_CAUSAL.items():
                if isinstance(part, kind) and type(part).forward is kind.forward:
                    hook = part.register_forward_pre_hook(partial(_with_answer, name, position), with_kwargs=True)
                    hooks.callback(hook.remove)
        yield


def _with_answer(
    name: str, position: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with False for a parameter that is None."""
    if len(args) > position:
        return (*args[:position], args[position] or False, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: kwargs.get(name) or False}


@final
@dataclass(frozen=True)
class FastPath:
    """That a model takes the fast path.

    Attributes:
        drops_places: whether it drops the places that a padding mask marks.
    """

    drops_places: bool

    def note(self, difference: str) -> str:
        """The note for the report.

        Args:
            difference: how the outputs differed on samples; empty if they did not.
        """
        what = "drops the places that a padding mask marks, and puts zeros there" if self.drops_places else "was taken"
        seen = f"on samples, {difference}" if difference else "no difference on the samples that were compared"
        return (
            f"PyTorch's fast path for transformers, on in evaluation without gradients, {what}. The network was "
            f"captured without it, and can give other values there ({seen}). The model gives the network's values with "
            "`torch.backends.mha.set_fastpath_enabled(False)`. Let nothing after the encoder read padded places, or "
            "set them to zero in the model."
        )


def fast_path(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FastPath | None:
    """Whether a model takes the fast path on these inputs, under the settings of now; None if it does not."""
    kinds = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
    if not torch.backends.mha.get_fastpath_enabled() or not any(isinstance(part, kinds) for part in model.modules()):
        return None
    watch = _Watch()
    with contextlib.suppress(Exception), watch:  # operators of higher order cannot run while a mode is on
        model(*args, **kwargs)
    return FastPath(aten._nested_tensor_from_mask.default in watch.seen) if watch.seen else None


@final
class _Watch(TorchDispatchMode):
    """Collects the operations of the fast path that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= {func} & FAST_PATH
        return func(*args, **(kwargs or {}))
