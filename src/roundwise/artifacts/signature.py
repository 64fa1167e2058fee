"""The signature of a network: which inputs it takes, and explanations for errors about other inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.artifacts.binding import Arguments, in_words, same_constant
from roundwise.artifacts.fit import check_fit
from roundwise.errors import ModelError
from roundwise.graph.graph import CallStructure, ConstantInput, Graph, InputSpec
from roundwise.graph.sizes import Limits


@final
@dataclass(frozen=True, eq=False)
class CallSignature:
    """The inputs that a network takes.

    Attributes:
        inputs: the kind of each leaf of the arguments, in order.
        batch: the fixed number of samples; None if the network takes several.
        limits: how many samples a call may have, and whether inputs must be contiguous.
        structure: the pytree that makes arguments from leaves, and the names of the arguments.
    """

    inputs: tuple[InputSpec | ConstantInput, ...]
    batch: int | None
    limits: Limits
    structure: CallStructure

    @classmethod
    def of(cls, graph: Graph) -> CallSignature:
        """The signature of a graph."""
        return cls(graph.inputs, graph.batch, graph.limits, graph.structure)

    def example(self, batch: int, device: torch.device) -> Arguments:
        """`(args, kwargs)` of zeros for `batch` samples, or for the fixed number if there is one."""
        leaves = [
            spec.example(self.batch or batch).to(device) if isinstance(spec, InputSpec) else spec.value
            for spec in self.inputs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure.in_spec)
        return args, kwargs

    def check_constants(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise unless the inputs that are constants of the graph have the same values as at capture.

        Raises:
            ModelError: names the input that has another value.
        """
        if not any(isinstance(spec, ConstantInput) for spec in self.inputs):
            return
        for spec, (name, leaf) in zip(self.inputs, self._leaves(args, kwargs) or (), strict=False):
            if isinstance(spec, ConstantInput) and not same_constant(leaf, spec.value):
                raise ModelError(
                    f"'{name}' was {spec.value!r} when the network was quantized, but it is {_describe(leaf)} now. The "
                    "quantized network contains only what the model computes for the first value. Quantize the model "
                    "with the new value too."
                )

    def check_tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise unless every input that was a tensor at capture is one now, of a dtype and size that the graph takes.

        Inputs of another structure pass: the graph itself refuses them.

        Raises:
            ModelError: names the input.
        """
        names, in_spec = self.structure.arguments, self.structure.in_spec
        made_args, made_kwargs = pytree.tree_unflatten(list(self.inputs), in_spec)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name, spec in zip(names, [*made_args, *made_kwargs.values()], strict=True):
            leaf = given.get(name, torch.empty(0))  # a missing argument is a TypeError, as Python raises it
            if isinstance(spec, InputSpec) and not isinstance(leaf, Tensor):
                if leaf is None:
                    cure = "To run the network without this input, quantize the model with samples that lack it."
                else:
                    cure = f"Give a tensor, `torch.{'from_numpy' if isinstance(leaf, np.ndarray) else 'tensor'}(…)`."
                raise ModelError(
                    f"'{name}' must be a tensor, {spec.in_words()}, as it "
                    f"was when the network was quantized, but it is {in_words(leaf)}. {cure}"
                )

        given_leaves = zip(self.inputs, self._leaves(args, kwargs) or (), strict=False)
        pairs = [(spec, leaf) for spec, (_, leaf) in given_leaves if isinstance(spec, InputSpec)]
        check_fit([(spec, leaf) for spec, leaf in pairs if isinstance(leaf, Tensor)], self.batch, self.limits)

    def explain(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> str | None:
        """A note to add to the error of a call: which inputs the network takes, and which were given.

        None if the given inputs fit, so that the error has another cause.
        """
        leaves = self._leaves(args, kwargs)
        given = zip(self.inputs, leaves or (), strict=False)
        tensors = [leaf for spec, (_, leaf) in given if isinstance(spec, InputSpec)]
        if leaves is not None and all(_is_plain(leaf, device) for leaf in tensors):
            return None  # they fit, since `check_tensors` let them pass
        size = "samples" if self.batch is None else self.batch
        takes = [spec.in_words(size) if isinstance(spec, InputSpec) else repr(spec.value) for spec in self.inputs]
        found = [*map(_describe, args), *(f"{name}={_describe(value)}" for name, value in kwargs.items())]
        return f"The quantized network takes {', '.join(takes)}, but was given {', '.join(found) or 'nothing'}."

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The inputs of a call, one for each placeholder; None if their structure differs from the network's."""
        leaves = self._leaves(args, kwargs)
        return None if leaves is None else [leaf for _, leaf in leaves]

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]] | None:
        """The inputs, each with the name of its argument; None if their structure differs from the network's."""
        names, spec = self.structure.arguments, self.structure.in_spec
        made_args, made_kwargs = pytree.tree_unflatten([0] * spec.num_leaves, spec)
        made = dict(zip(names, [*made_args, *made_kwargs.values()], strict=True))
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(made) or given.keys() != made.keys():
            return None
        if any(pytree.tree_structure(given[name]) != pytree.tree_structure(made[name]) for name in names):
            return None
        return [(name, leaf) for name in names for leaf in pytree.tree_leaves(given[name])]


def _is_plain(leaf: object, device: torch.device) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.device == device


def _dtype_and_shape(dtype: torch.dtype, shape: Iterable[object]) -> str:
    return f"{str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"


def _describe(value: Any) -> str:
    """A short description of an input, such as `float32 [2, 3]`."""
    match value:
        case Tensor():
            layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
            where = "" if value.is_cpu else f" on {value.device}"
            return f"{layout}{_dtype_and_shape(value.dtype, value.shape)}{where}"
        case bool() | int() | float() | str() | None:
            return repr(value)
        case list() | tuple() | dict():
            return f"a {type(value).__name__} of {len(value)}"
        case _:
            return f"a {type(value).__name__}, which is not a tensor"
