"""Refuse models whose weights or names PyTorch cannot capture, before it fails with an error of its own."""

from __future__ import annotations

import itertools
import keyword
from collections.abc import Iterator

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from roundwise.errors import ModelError
from roundwise.tensor_kinds import odd_kind, what_to_do


def check_weights_and_names(model: object) -> None:
    """Make sure that a model's weights are plain tensors, and that code can be written with its names.

    PyTorch writes Python code for a captured graph, with the names of modules and tensors in it. A quote or a newline
    would end a name too early, and a keyword is no name.

    Raises:
        ModelError: names the tensor or the module.
    """
    if not isinstance(model, nn.Module | ExportedProgram):
        return
    for name, tensor in _tensors(model):
        # Lazy weights and weights without values are refused later, with what to do about them.
        if tensor is not None and not is_lazy(tensor) and (kind := odd_kind(tensor)) not in (None, "meta"):
            assert kind is not None
            raise ModelError(
                f"'{name}' is a {kind} tensor of {list(tensor.shape) if kind != 'nested' else 'several sizes'}, and "
                f"only plain tensors of floats or integers can be quantized. {what_to_do(kind)}"
            )
    modules = (name for name, _ in model.named_modules()) if isinstance(model, nn.Module) else ()
    for name in itertools.chain(modules, (name for name, _ in _tensors(model))):
        if odd := next((part for part in name.split(".") if not _can_be_written(part)), None):
            raise ModelError(
                f"{name!a} is a name in the model, and PyTorch cannot capture a model in which a module, parameter "
                f"or buffer is called {odd!a}: code that it writes would contain that name. Rename it: without "
                'quotation marks ("), backslashes and characters that cannot be printed, and not to a word of Python '
                "such as class."
            )


def _tensors(model: nn.Module | ExportedProgram) -> Iterator[tuple[str, Tensor | None]]:
    if isinstance(model, ExportedProgram):
        yield from model.state_dict.items()
        yield from ((name, value) for name, value in model.constants.items() if isinstance(value, Tensor))
    else:
        yield from model.named_parameters()
        yield from model.named_buffers()


def _can_be_written(part: str) -> bool:
    return part.isprintable() and not set('"\\') & set(part) and not keyword.iskeyword(part)
