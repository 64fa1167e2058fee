"""Sizes at which a model's code may do something else than it did when it was exported.

`if x.shape[0] % 4 == 0: …` runs one way for the sizes of the samples, and PyTorch writes down the condition under which
that way is right. Ranges (`n < 64`) become limits of the graph. Of other conditions some are the model's, and some are
of PyTorch's own making and change nothing (`n != 10`, where a layer has 10 channels). So the graph is compared with the
model at sizes at which each condition does not hold: the smallest that are found among many sizes of one dimension, and
some of several dimensions at once. PyTorch's own check of the conditions says which hold; it reads nothing but sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from roundwise.frontends.program import size_range
from roundwise.graph.sizes import Range

_GUARDS = "_guards_fn"
"""PyTorch's name for the part of a program's module that checks its conditions."""

_ONE = range(1, 2049)
"""Sizes of one dimension that are tried while the others are as in the samples. A model may decide beyond them."""

_SEVERAL = (1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 24, 31, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 384, 512)
"""Sizes of up to three dimensions that are tried together."""

_LARGEST = 1 << 24
"""Numbers in the inputs beyond which the graph is not compared: it would take too long."""

_MOST = 40
"""Most sizes at which the graph is compared."""


@final
@dataclass(frozen=True)
class OtherSizes:
    """Sizes at which a condition of the export does not hold.

    Attributes:
        sizes: by the number of the input and the dimension.
        condition: what does not hold there, such as `x.size()[0] % 4 != 0`.
    """

    sizes: Mapping[tuple[int, int], int]
    condition: str


def other_sizes(program: ExportedProgram) -> tuple[OtherSizes, ...]:
    """For each condition of a program the smallest sizes, in their ranges, that were found not to meet it.

    The smallest ones are told for each choice of dimensions that change, and once more with these dimensions equal: the
    code may ask further (`h % 32 == 0 and w % 32 == 0`) where a condition does not hold.
    """
    if getattr(program, "_guards_code", None) == []:  # as for most models; asking for each size would take time
        return ()
    module = program.module()
    calls = module.graph.find_nodes(op="call_module", target=_GUARDS)
    if not calls:
        return ()
    inputs = module.graph.find_nodes(op="placeholder")
    read = [inputs.index(source) for source in calls[0].args]
    guards = getattr(module, _GUARDS)
    values = [node.meta.get("val") for node in inputs]
    places: dict[Any, list[tuple[int, int]]] = {}
    hints: dict[Any, int] = {}
    for number, value in enumerate(values):
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                places.setdefault(size.node.expr, []).append((number, dim))
                hints[size.node.expr] = size.node.hint
    ranges = {symbol: size_range(symbol, program.range_constraints) for symbol in places}
    found: dict[Any, tuple[int, OtherSizes]] = {}
    for symbols, chosen in _candidates(hints, ranges):
        sizes = {place: chosen[symbol] for symbol, group in places.items() for place in group}
        leaves = [_of_sizes(number, value, sizes) for number, value in enumerate(values)]
        try:
            guards(*(leaves[number] for number in read))
        except AssertionError as error:
            condition = str(error).removeprefix("Guard failed: ")
            numbers = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
            kind = condition, symbols, len({chosen[symbol] for symbol in symbols}) == 1
            if numbers <= _LARGEST and numbers < found.get(kind, (math.inf,))[0]:
                found[kind] = numbers, OtherSizes(sizes, condition)
    return tuple(other for _, other in found.values())[:_MOST]


def _candidates(
    hints: Mapping[Any, int], ranges: Mapping[Any, Range]
) -> Iterator[tuple[tuple[Any, ...], dict[Any, int]]]:
    """Symbols that change, and sizes of all: of one as in `_ONE`, of two or three as in `_SEVERAL`."""
    for count in (1, 2, 3):
        for symbols in itertools.combinations(hints, count):
            tried = _ONE if count == 1 else _SEVERAL
            for sizes in itertools.product(*([n for n in tried if ranges[one].holds(n)] for one in symbols)):
                yield symbols, {**hints, **dict(zip(symbols, sizes, strict=True))}


def _of_sizes(number: int, value: Any, sizes: Mapping[tuple[int, int], int]) -> Any:
    """A tensor without numbers for one input; other inputs as they are."""
    if not isinstance(value, Tensor):
        return value
    shape = [sizes.get((number, dim), size) for dim, size in enumerate(value.shape)]
    return torch.empty([int(size) for size in shape], dtype=value.dtype, device="meta")
