"""What PyTorch's kernels take on trust. An operation of a file must prove it before it runs.

Most kernels check what they are given. Some do not. Given a window of 2⁶² places, or a mean for half of the channels,
they read memory that is not the tensor's; given whole numbers to divide by −1, they end the process. The rules here are
of two kinds:

1. *By the name of the argument*, whatever the operation: sizes of windows, strides and numbers of groups are small and
   positive, factors of sizes are near 1.
2. *By operation*: statistics have one number for each channel and are only read, whole numbers are not divided by −1
   or 0 (the processor cannot divide the smallest whole number by −1), modes are those that exist, and so on.

All arguments are values, and of the kinds that the schema names (`artifacts/schema.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from roundwise.artifacts.schema import UnsafeError
from roundwise.graph.operators import ATTENTION, MATRIX_PRODUCTS, NORMALIZATIONS, SPLITS, WEIGHTED
from roundwise.graph.vocabulary import BATCH_STATISTICS, RECURRENT, WHOLE_DIVISIONS

aten = torch.ops.aten

Arguments = Mapping[str, Any]

_FROM_ONE = (
    *("chunks", "dilation", "divisor_override", "downscale_factor", "group", "groups", "kernel_size"),
    *("num_groups", "num_layers", "steps", "stride", "upscale_factor"),
)
_FROM_ZERO = ("k", "length", "output_padding", "output_size", "repeats", "split_size", "split_sizes")
_FACTORS = ("scale_factors", "scales_h", "scales_w")

WIDEST = 1 << 20
"""The largest window, stride, padding or number of groups. Wider than every layer; its square is far below 2⁶³."""

FACTORS = (1e-4, 1e4)
"""The smallest and the largest factor of an upsampling. Kernels divide by it and turn the result into an address."""

MOST_PIECES = 1 << 14
"""The most tensors that one operation may give. PyTorch takes some hundred bytes for each, however small it is."""

MOST_DIMENSIONS = 16
"""The most dimensions that a tensor may have. Kernels have fixed room for 64 at most, some for 25."""


def check_arguments(function: OpOverload, arguments: Arguments, limit: int) -> None:
    """Raise unless an operation of the vocabulary is safe to run with these arguments.

    Args:
        function: the operation.
        arguments: by their names, defaults filled in.
        limit: the most bytes that it may take for itself while it runs.

    Raises:
        UnsafeError: says which argument is wrong, and why.
    """
    for name in _FROM_ONE:
        if name in arguments and function is not aten.as_strided.default:
            _check_range(name, arguments[name], 1, WIDEST)
    for name in _FROM_ZERO:
        _check_range(name, arguments.get(name), 0, None)
    for name in _FACTORS:
        _check_range(name, arguments.get(name), *FACTORS)
    if isinstance(arguments.get("padding"), list | tuple | int):
        _check_range("padding", arguments["padding"], 0, WIDEST)
    if arguments.get("mode", "constant") != "constant":
        _check_range("pad", arguments.get("pad"), 0, WIDEST)
    for operations, rule in _RULES:
        if function in operations:
            rule(function, arguments)
    if function in WEIGHTED:
        _check_room(arguments, limit)


def _check_range(name: str, value: Any, low: float, high: float | None) -> None:
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= (math.inf if high is None else high):
            most = "" if high is None else f" and at most {high}"
            raise UnsafeError(f"is given {number} as '{name}', which must be at least {low}{most}")


# -------------------------------------------------------------------------------------------------- rules by operation


def _same_dtypes(_: OpOverload, arguments: Arguments) -> None:
    """Layers and products of matrices: all operands have one dtype."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        found = ", ".join(f"'{name}' in {tensor.dtype}" for name, tensor in tensors.items())
        raise UnsafeError(f"is given {found}; all must have the same dtype")


def _one_for_each(names: Iterable[str], arguments: Arguments, shape: Sequence[int], of_what: str) -> None:
    for name in names:
        value = arguments.get(name)
        if value is not None and tuple(value.shape) != tuple(shape):
            raise UnsafeError(f"is given '{name}' of shape {list(value.shape)}; {of_what} needs {list(shape)}")


def _normalization(function: OpOverload, arguments: Arguments) -> None:
    """Weights, biases and statistics have one number for each channel, or for each normalized place."""
    values = arguments.get("input", arguments.get("self"))
    assert isinstance(values, Tensor)
    names = ("weight", "bias", "running_mean", "running_var")
    places = arguments.get("normalized_shape")
    if places is not None:
        if not places or tuple(values.shape[-len(places) :]) != tuple(places):
            raise UnsafeError(f"normalizes {list(values.shape)} over {list(places)}, which are not its last dimensions")
        _one_for_each(names, arguments, places, "each normalized place")
        return
    if values.dim() < 2:
        raise UnsafeError(f"is given a tensor of shape {list(values.shape)}, which has no channels")
    trains = arguments.get("training") or arguments.get("use_input_stats")
    if trains and any(arguments.get(name) is not None for name in ("running_mean", "running_var")):
        raise UnsafeError("computes statistics and is given running ones, to which it would write")
    if function in BATCH_STATISTICS and not arguments["training"]:
        raise UnsafeError("has no statistics and is told not to compute them")
    channels = values.shape[1]
    _one_for_each(names, arguments, (channels,), f"each of {channels} channels")
    if function is aten.native_group_norm.default:
        stated = (arguments["N"], arguments["C"], arguments["HxW"])
        if stated != (values.shape[0], channels, math.prod(values.shape[2:])):
            raise UnsafeError(f"states the sizes {stated} for a tensor of shape {list(values.shape)}")
    groups = arguments.get("num_groups", arguments.get("group", 1))
    if channels % groups:
        raise UnsafeError(f"divides {channels} channels into {groups} groups")


def _whole_division(_: OpOverload, arguments: Arguments) -> None:
    """A whole number may be divided by a number of the file that is neither 0 nor −1, and by no tensor."""
    operands = arguments["self"], arguments["other"]
    if any(isinstance(it, float) or (isinstance(it, Tensor) and it.is_floating_point()) for it in operands):
        return
    values, divisor = operands
    dtype = values.dtype if isinstance(values, Tensor) and values.dtype is not torch.bool else torch.int64
    sound = not isinstance(divisor, Tensor) and divisor not in (0, -1)
    if not sound or not torch.iinfo(dtype).min <= divisor <= torch.iinfo(dtype).max:
        what = "a tensor" if isinstance(divisor, Tensor) else divisor
        raise UnsafeError(f"divides {dtype} by {what}; the divisor must be a number of that dtype other than 0 and −1")


def _pieces(_: OpOverload, arguments: Arguments) -> None:
    values, dim = arguments["self"], arguments["dim"]
    if not -values.dim() <= dim < values.dim():
        raise UnsafeError(f"splits a tensor of shape {list(values.shape)} along dimension {dim}")
    sizes = arguments.get("split_size", arguments.get("split_sizes", 1))
    pieces = len(sizes) if isinstance(sizes, list | tuple) else -(-values.shape[dim] // max(1, sizes))
    pieces = min(pieces, arguments.get("chunks", pieces))
    if pieces > MOST_PIECES:
        raise UnsafeError(f"splits a tensor into {pieces} pieces; at most {MOST_PIECES} are allowed")


def _attention(_: OpOverload, arguments: Arguments) -> None:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    tensors = (query, key, value)
    if len({(tensor.dtype, tensor.dim()) for tensor in tensors}) > 1 or not query.is_floating_point():
        raise UnsafeError("is given a query, key and value that differ in dtype or in the number of dimensions")
    shapes = [list(tensor.shape) for tensor in tensors]
    if query.dim() < 2 or key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise UnsafeError(f"is given a query, key and value of the shapes {shapes}, which do not fit together")
    mask = arguments["attn_mask"]
    if mask is not None:
        if mask.dtype not in (torch.bool, query.dtype):
            raise UnsafeError(f"is given a mask in {mask.dtype}; it must be in {query.dtype} or torch.bool")
        places = (*query.shape[:-1], key.shape[-2])
        pairs = zip(reversed(mask.shape), reversed(places), strict=False)
        if mask.dim() > len(places) or any(size not in (1, place) for size, place in pairs):
            raise UnsafeError(f"is given a mask of shape {list(mask.shape)} for {list(places)} pairs of places")


def _sampling(_: OpOverload, arguments: Arguments) -> None:
    modes = arguments["interpolation_mode"], arguments["padding_mode"]
    if not all(0 <= mode <= 2 for mode in modes):
        raise UnsafeError(f"is given the modes {modes}; there are the modes 0, 1 and 2")


def _cells(function: OpOverload, arguments: Arguments) -> None:
    """A recurrent layer: the sizes of its weights fit its state, layer by layer and direction by direction."""
    gates = {aten.lstm.input: 4, aten.gru.input: 3}.get(function, 1)
    values, states, params = arguments["input"], arguments["hx"], list(arguments["params"])
    states = list(states) if isinstance(states, list | tuple) else [states]
    directions, layers = 1 + arguments["bidirectional"], arguments["num_layers"]
    if values.dim() != 3 or len(states) != 1 + (gates == 4) or any(state.dim() != 3 for state in states):
        raise UnsafeError("needs an input and states of three dimensions each")
    # An LSTM may project its output: the first state has as many numbers as the output, the second as the cell.
    given, hidden, first = states[0].shape[2], states[-1].shape[2], bool(arguments["batch_first"])
    projects = given != hidden
    batch, steps = values.shape[1 - first], values.shape[first]
    if not given or not hidden or not steps or not values.shape[2] or arguments["train"]:
        raise UnsafeError("needs at least one step, one input, one number of state, and no training")
    for state, size in zip(states, (given, hidden), strict=False):
        _one_for_each(("state",), {"state": state}, (layers * directions, batch, size), "each layer and direction")
    each = (4 if arguments["has_biases"] else 2) + projects
    if len(params) != each * layers * directions:
        raise UnsafeError(f"is given {len(params)} weights and biases for {layers} layers in {directions} directions")
    for number, param in enumerate(params):
        layer, place = number // (each * directions), number % each
        inputs = (values.shape[2] if layer == 0 else given * directions) if place == 0 else given
        shape = (gates * hidden, inputs) if place < 2 else (gates * hidden,)
        if projects and place == each - 1:
            shape = (given, hidden)
        _one_for_each(("weight",), {"weight": param}, shape, f"layer {layer}")
    if len({tensor.dtype for tensor in (values, *states, *params)}) > 1 or not values.is_floating_point():
        raise UnsafeError("is given an input, states and weights of several dtypes; all must have one")


def _equation(_: OpOverload, arguments: Arguments) -> None:
    if arguments["path"] is not None or len(arguments["tensors"]) > 8:
        raise UnsafeError("is given its own order of products, or more than 8 tensors")


def _ends(_: OpOverload, arguments: Arguments) -> None:
    """Numbers from one end to another: finite, and small enough to count."""
    for name in ("start", "end", "step"):
        value = arguments.get(name)
        if isinstance(value, int | float) and not abs(value) <= 1 << 53:
            raise UnsafeError(f"is given {value} as '{name}', which cannot be counted to")


def sequence_results(arguments: Arguments) -> list[Tensor]:
    """What a recurrent layer gives, without numbers: it would run on `meta` step by step, which takes long."""
    values, states = arguments["input"], arguments["hx"]
    states = list(states) if isinstance(states, list | tuple) else [states]
    width = states[0].shape[2] * (1 + arguments["bidirectional"])
    return [values.new_empty((*values.shape[:2], width)), *(torch.empty_like(state) for state in states)]


def _no_stated_size(_: OpOverload, arguments: Arguments) -> None:
    if arguments["output_size"] is not None:
        raise UnsafeError("is told the size of its result")


def _strided(_: OpOverload, arguments: Arguments) -> None:
    """A view lies within its tensor's memory. PyTorch checks that only where there are numbers."""
    for name in ("stride", "storage_offset"):
        _check_range(name, arguments[name], 0, None)
    values, sizes, strides = arguments["self"], arguments["size"], arguments["stride"]
    first = values.storage_offset() if arguments["storage_offset"] is None else arguments["storage_offset"]
    last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    held = values.untyped_storage().nbytes() // values.element_size()
    if math.prod(sizes) and last >= held:
        raise UnsafeError(f"views place {last} of a memory of {held} numbers")


def _bits(_: OpOverload, arguments: Arguments) -> None:
    if arguments["dtype"] is torch.bool:
        raise UnsafeError("takes bytes for truth values, which may be neither 0 nor 1")


def _steps(_: OpOverload, arguments: Arguments) -> None:
    _check_range("step", arguments["step"], 1, None)


_RULES: tuple[tuple[frozenset[OpOverload], Callable[[OpOverload, Arguments], None]], ...] = (
    (WEIGHTED | MATRIX_PRODUCTS | {aten.addmm.default, aten.baddbmm.default}, _same_dtypes),
    (NORMALIZATIONS | BATCH_STATISTICS, _normalization),
    (WHOLE_DIVISIONS, _whole_division),
    (SPLITS, _pieces),
    (frozenset({aten.as_strided.default}), _strided),
    (frozenset({aten.view.dtype}), _bits),
    (frozenset({aten.repeat_interleave.self_int}), _no_stated_size),
    (frozenset({aten.slice.Tensor, aten.slice_scatter.default, aten.unfold.default}), _steps),
    (ATTENTION, _attention),
    (frozenset({aten.grid_sampler.default, aten.grid_sampler_2d.default}), _sampling),
    (RECURRENT, _cells),
    (frozenset({aten.einsum.default}), _equation),
    (frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default}), _ends),
)


# ---------------------------------------------------------------------------------------------------------- memory

_BLOCK = 16
"""Channels that oneDNN puts together: it copies tensors with fewer channels into ones with as many."""


_SMALL = 20_480
"""Numbers of an input up to which PyTorch makes columns for float32 too, and does not ask oneDNN."""


def _check_room(arguments: Arguments, limit: int) -> None:
    """Raise if a layer's kernel would copy its weight, input or output into more than `limit` bytes.

    Where oneDNN does not compute a convolution, each place of the result gets a column: all the numbers that it is a
    sum of. In a transposed convolution each place of the input gets one: all the numbers to which it is added.
    """
    values, weight = arguments["input"], arguments["weight"]
    if values.dim() < 3 or weight.dim() < 3:
        return
    kernel, groups, dims = weight.shape[2:], arguments["groups"], weight.dim() - 2
    transposed = "output_padding" in arguments and arguments.get("transposed", True)
    depthwise = weight.shape[1] == 1 and groups > 1
    blocks = _up(weight.shape[0]) * (1 if depthwise else _up(weight.shape[1])) * math.prod(kernel)
    channels, sizes = values.shape[-dims - 1], values.shape[-dims:]
    samples = values.numel() // max(1, channels * math.prod(sizes))
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    places = math.prod(_result_sizes(arguments, sizes, kernel, transposed))
    copies = samples * (_up(channels) * math.prod(sizes) + _up(outputs) * places)
    columns = 0
    if transposed:  # for one sample after the other
        columns = outputs * math.prod(kernel) * math.prod(sizes)
    elif values.dtype != torch.float32 or values.numel() <= _SMALL:
        columns = samples * channels * math.prod(kernel) * places
    taken = (blocks + copies + columns) * weight.element_size()
    if taken > limit:
        raise UnsafeError(f"would take {taken} bytes for its own copies; at most {limit} are allowed")


def _result_sizes(arguments: Arguments, sizes: Sequence[int], kernel: Sequence[int], transposed: bool) -> Iterable[int]:
    """The height and width of a convolution's result; 0 where PyTorch will refuse the arguments."""
    dims = len(kernel)
    stride, dilation, more = (
        _for_each(arguments.get(name, 0), dims) for name in ("stride", "dilation", "output_padding")
    )
    padding = arguments["padding"]
    if isinstance(padding, str):  # "same" adds dilation · (kernel − 1) numbers
        ends = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, kernel, strict=True)]
    else:
        ends = [2 * one for one in _for_each(padding, dims)]
    for size, k, s, d, end, extra in zip(sizes, kernel, stride, dilation, ends, more, strict=True):
        reach = d * (k - 1) + 1
        yield max(0, (size - 1) * s - end + reach + extra if transposed else (size + end - reach) // s + 1)


def _for_each(value: Any, dims: int) -> list[int]:
    """A number for each dimension: PyTorch takes one number for all of them."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return numbers * dims if len(numbers) == 1 else (numbers + [1] * dims)[:dims]


def _up(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK
