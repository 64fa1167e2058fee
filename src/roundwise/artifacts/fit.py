"""Whether the tensors of a call are what a network was captured for. What would give wrong numbers is refused.

Sizes may be symbols: a network can be a part of a model that PyTorch exports. A comparison then becomes a condition of
the program, and `int(size)` would make a number of the symbol.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from roundwise.errors import ModelError
from roundwise.graph.graph import InputSpec
from roundwise.graph.sizes import Limits

Inputs = Iterable[tuple[InputSpec, Tensor]]


def check_fit(inputs: Inputs, batch: int | None, limits: Limits) -> None:
    """Raise unless a graph computes for these tensors what the model would.

    Args:
        inputs: the tensors, each with what the graph takes in its place.
        batch: the number of samples if it is fixed.
        limits: the numbers of samples otherwise, and whether tensors must be contiguous.

    Raises:
        ModelError: another dtype or size than at capture; names the input and the way out.
    """
    inputs = [(spec, tensor) for spec, tensor in inputs if tensor.layout == torch.strided and not tensor.is_nested]
    for spec, tensor in inputs:
        _check_tensor(spec, tensor, limits)
    _check_batch([(spec, tensor) for spec, tensor in inputs if spec.shape], batch, limits)
    _check_named(inputs)


def _check_tensor(spec: InputSpec, tensor: Tensor, limits: Limits) -> None:
    misfit = spec.misfit(tensor)
    if misfit:
        raise ModelError(
            f"input '{spec.name}' is {_in_words(tensor)}, but the network takes {spec.in_words()}: {misfit}. "
            f"{_way_out(spec, tensor)}"
        )
    if limits.contiguous and not _is_in_order(tensor):
        make = "contiguous()" if not tensor.is_contiguous() else "clone(memory_format=torch.contiguous_format)"
        raise ModelError(
            f"input '{spec.name}' is {_in_words(tensor)} with the strides {list(tensor.stride())}, so it is not "
            "contiguous. The model reads memory in its order (`as_strided`), or its code decides by that order "
            "(`is_contiguous`, `stride`), or it writes in place to a result of `reshape` or the like, a view or "
            f"copy. It was captured with contiguous inputs: give `{spec.name}.{make}`."
        )


def _is_in_order(tensor: Tensor) -> bool:
    """Whether values lie in memory one after the other, and PyTorch's layers see it so.

    A single channel may have the strides of channels last. Such a tensor counts as contiguous, but a convolution gives
    its result in channels last.
    """
    return tensor.is_contiguous() and suggest_memory_format(tensor) is torch.contiguous_format


def _way_out(spec: InputSpec, tensor: Tensor) -> str:
    if tensor.dtype != spec.dtype:
        return (
            "For another dtype the model may compute something else, and the captured network has only the operations "
            f"for {spec.dtype}. Convert the input with `{spec.name}.to({spec.dtype})` if the model takes it so, or "
            f"quantize the model with samples of {tensor.dtype}."
        )
    if tensor.dim() != len(spec.shape):
        return "Give a batch with as many dimensions as the samples had: `x.unsqueeze(0)` makes a batch of one sample."
    dim = next(dim for dim, sizes in spec.sizes.items() if dim and not sizes.holds(tensor.shape[dim]))
    sizes, name = spec.sizes[dim], spec.names.get(dim)
    if name:
        return f"'{name}' may be {sizes}: for other sizes the model's code does something else."
    return (
        f"Numbers in the network may come from the size {spec.shape[dim]}, which that dimension had in the samples. "
        "Give inputs of that size, quantize the model with samples of the new size, or let the network take several "
        f"sizes: `rw.quantize(model, data, dynamic={{{spec.name!r}: {{{dim}: 'size'}}}})`."
    )


def _check_batch(inputs: list[tuple[InputSpec, Tensor]], batch: int | None, limits: Limits) -> None:
    counts = {spec.name: tensor.shape[0] for spec, tensor in inputs}
    if any(count != next(iter(counts.values())) for count in counts.values()):
        given = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise ModelError(
            f"the inputs disagree on the number of samples, their first dimension: {given}. Give all of them the same."
        )
    for count in counts.values():
        if batch is not None and count != batch:
            raise ModelError(
                f"the network takes batches of exactly {batch} samples, and was given {count}: the program that it was "
                f"made from has a fixed batch size. Give {batch} samples at once, or export the program with a dynamic "
                "first dimension."
            )
        if batch is None and count and not limits.batches.holds(count):
            raise ModelError(
                f"the network takes batches of {limits.batches} samples, and was given {count}: the model's code does "
                "something else for other numbers of samples. Give fewer or more at once."
            )


def _check_named(inputs: Inputs) -> None:
    """Dimensions with one name must have one size."""
    found: dict[str, tuple[str, int]] = {}
    for spec, tensor in inputs:
        for dim, name in spec.names.items():
            place, size = f"dimension {dim} of '{spec.name}'", tensor.shape[dim]
            first, known = found.setdefault(name, (place, size))
            if known != size:
                raise ModelError(
                    f"'{name}' is {known} in {first} and {size} in {place}. The network was captured with one size for "
                    "both: give inputs that agree."
                )


def _in_words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} [{', '.join(map(str, tensor.shape))}]"
