"""Sizes at which a model's code may do something else than it did when it was exported.

`if x.shape[0] % 4 == 0: …` runs one way for the sizes of the samples, and PyTorch writes down the condition under which
that way is right. Ranges (`n < 64`) become limits of the graph. Of other conditions some are the model's, and some are
of PyTorch's own making and change nothing (`n != 10`, where a layer has 10 channels). So the graph is compared with the
model at sizes at which each condition does not hold: the smallest that are found among many sizes of one dimension, and
some of several dimensions at once. Farther sizes are looked for in larger steps; where the inputs would be too large
to compare (`h * w > 10**7`), the sizes become limits of the graph. PyTorch's own check says which conditions hold; it
reads nothing but sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""Most sizes at which the graph is compared, among the small ones and among the far ones."""

_FARTHEST = 1 << 31
"""The largest size that is tried. A dimension as long as this takes 8 GiB by itself."""

_LARGEST_FAR = 1 << 22
"""Numbers in the inputs beyond which the graph is not compared at far sizes: they become limits instead."""


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


@final
@dataclass(frozen=True)
class Conditions:
    """What the conditions of an export ask for.

    Attributes:
        others: sizes at which the graph must be compared with the model.
        highest: by the number of the input and the dimension, the size up to which all conditions hold, where one does
            not hold beyond and the inputs there are too large to compare.
    """

    others: tuple[OtherSizes, ...] = ()
    highest: Mapping[tuple[int, int], int] = field(default_factory=dict)


def conditions_of(program: ExportedProgram) -> Conditions:
    """For each condition of a program the smallest sizes, in their ranges, that were found not to meet it.

    The smallest ones are told for each choice of dimensions that change, and once more with these dimensions equal: the
    code may ask further (`h % 32 == 0 and w % 32 == 0`) where a condition does not hold.
    """
    if getattr(program, "_guards_code", None) == []:  # as for most models; asking for each size would take time
        return Conditions()
    module = program.module()
    calls = module.graph.find_nodes(op="call_module", target=_GUARDS)
    if not calls:
        return Conditions()
    inputs = module.graph.find_nodes(op="placeholder")
    sizes = _Sizes([node.meta.get("val") for node in inputs], program)
    asked = _Asked(getattr(module, _GUARDS), [inputs.index(source) for source in calls[0].args], sizes)
    found: dict[Any, tuple[int, OtherSizes]] = {}
    for symbols, chosen in _candidates(sizes.hints, sizes.ranges):
        for condition in asked.failing(chosen)[:1]:
            kind = condition, symbols, len({chosen[symbol] for symbol in symbols}) == 1
            numbers = sizes.numbers(chosen)
            if numbers <= _LARGEST and numbers < found.get(kind, (math.inf,))[0]:
                found[kind] = numbers, OtherSizes(sizes.at_places(chosen), condition)
    far, highest = _beyond(asked, {condition for condition, *_ in found})
    return Conditions((*[other for _, other in found.values()][:_MOST], *far[:_MOST]), highest)


@final
class _Sizes:
    """The symbols that stand for sizes of a program's inputs, and the inputs' sizes for values of them."""

    def __init__(self, values: Sequence[Any], program: ExportedProgram) -> None:
        self.values = values
        self.places: dict[Any, list[tuple[int, int]]] = {}
        self.hints: dict[Any, int] = {}
        for number, value in enumerate(values):
            for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self.places.setdefault(size.node.expr, []).append((number, dim))
                    self.hints[size.node.expr] = size.node.hint
        self.ranges = {symbol: size_range(symbol, program.range_constraints) for symbol in self.places}

    def at_places(self, chosen: Mapping[Any, int]) -> dict[tuple[int, int], int]:
        """Sizes by the number of the input and the dimension."""
        return {place: chosen[symbol] for symbol, group in self.places.items() for place in group}

    def shapes(self, chosen: Mapping[Any, int]) -> list[list[int] | None]:
        """The shape of each input; None for one that is not a tensor."""
        sizes = self.at_places(chosen)
        return [
            [int(sizes.get((number, dim), size)) for dim, size in enumerate(value.shape)]
            if isinstance(value, Tensor)
            else None
            for number, value in enumerate(self.values)
        ]

    def numbers(self, chosen: Mapping[Any, int]) -> int:
        """How many numbers all inputs hold."""
        return sum(math.prod(shape) for shape in self.shapes(chosen) if shape is not None)

    def few_samples(self) -> dict[Any, int]:
        """Sizes as in the samples, and as few samples as allowed."""
        first = {symbol for symbol, group in self.places.items() if any(dim == 0 for _, dim in group)}
        return {symbol: self.ranges[symbol].low if symbol in first else hint for symbol, hint in self.hints.items()}

    def with_one(self, symbols: Sequence[Any], size: int) -> dict[Any, int]:
        """One size for these, and the others as in `few_samples`."""
        return {**self.few_samples(), **dict.fromkeys(symbols, size)}


@final
class _Asked:
    """Asks PyTorch's own check which conditions do not hold for sizes."""

    def __init__(self, guards: Any, read: Sequence[int], sizes: _Sizes) -> None:
        self.sizes, self._read = sizes, read
        check = _innermost(guards.forward)
        self._failed: list[str] = []
        self._all: list[str] = []
        # A check that goes on after the first condition that does not hold.
        asking = {**check.__globals__, "torch": types.SimpleNamespace(**{**vars(torch), "_assert": self._note})}
        self._check = types.FunctionType(check.__code__, asking)
        self.failing(sizes.hints)
        self.conditions = list(self._all)

    def _note(self, holds: object, message: str) -> None:
        self._all.append(message.removeprefix("Guard failed: "))
        if not holds:
            self._failed.append(self._all[-1])

    def failing(self, chosen: Mapping[Any, int]) -> list[str]:
        """The conditions that do not hold."""
        self._failed.clear()
        self._all.clear()
        shapes = self.sizes.shapes(chosen)
        arguments = [
            value if shape is None else _Shaped(shape) for shape, value in zip(shapes, self.sizes.values, strict=True)
        ]
        with contextlib.suppress(ArithmeticError):  # a condition that can be asked only where one before it holds
            self._check(*(arguments[number] for number in self._read))
        return list(self._failed)


def _innermost(function: types.FunctionType) -> types.FunctionType:
    """The function that PyTorch wrapped in others."""
    while "_assert" not in function.__code__.co_names:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        function = next(one for one in held if isinstance(one, types.FunctionType))
    return function


@final
@dataclass(frozen=True)
class _Shaped:
    """Stands for a tensor of this shape. The conditions read nothing else."""

    shape: list[int]

    def size(self) -> list[int]:
        """The shape."""
        return self.shape


def _beyond(asked: _Asked, known: Collection[str]) -> tuple[tuple[OtherSizes, ...], dict[tuple[int, int], int]]:
    """Sizes beyond those of `_candidates` that do not meet a condition, and where such sizes are too large, bounds.

    One to three dimensions get one size, which doubles. Sizes that the numbers in a condition suggest are tried too
    (`h % 5000 == 0`). Between the last size that meets a condition and the first that does not, bisection finds where
    it begins.

    Args:
        asked: the conditions.
        known: those that need no further sizes.
    """
    sizes, tried = asked.sizes, _far(asked.conditions)
    known = {*known, *asked.failing(sizes.few_samples())}
    found: dict[str, list[tuple[tuple[Any, ...], dict[Any, int]]]] = {}
    for count in (1, 2, 3):
        for symbols in itertools.combinations(sizes.hints, count):
            seen, last = set(known), max(sizes.hints[one] for one in symbols)
            for size in tried:
                if size <= last or not all(sizes.ranges[one].holds(size) for one in symbols):
                    continue
                for condition in asked.failing(sizes.with_one(symbols, size)):
                    if condition in seen:
                        continue
                    seen.add(condition)
                    first = _first(asked, condition, symbols, last, size)
                    before = found.setdefault(condition, [])
                    # Not where it is enough that some of these dimensions have this size.
                    if not any(
                        set(fewer) < set(symbols) and chosen[fewer[0]] <= first[symbols[0]] for fewer, chosen in before
                    ):
                        before.append((symbols, first))
                last = size
    others: list[OtherSizes] = []
    highest: dict[tuple[int, int], int] = {}
    for condition, places in found.items():
        small = [chosen for _, chosen in places if sizes.numbers(chosen) <= _LARGEST_FAR]
        others += [OtherSizes(sizes.at_places(chosen), condition) for chosen in small]
        for symbols, chosen in places if not small else ():
            for symbol in symbols:
                for place in sizes.places[symbol]:
                    highest[place] = min(chosen[symbol] - 1, highest.get(place, _FARTHEST))
    return tuple(others), highest


def _far(conditions: Iterable[str]) -> list[int]:
    """Sizes to try: powers of two; multiples and parts of the numbers in the conditions, and the sizes beside them."""
    tried = {1 << power for power in range(10, _FARTHEST.bit_length())}
    for condition in conditions:
        numbers = [int(number) for number in re.findall(r"(?<![\w.\[])\d+", condition)]
        for one, other in itertools.product([n for n in numbers if n > _SEVERAL[-1]], {1, *numbers} - {0}):
            tried |= {size + by for size in (one * other, one // other) for by in (-1, 0, 1)}
    return sorted(size for size in tried if 0 < size <= _FARTHEST)


def _first(asked: _Asked, condition: str, symbols: tuple[Any, ...], low: int, high: int) -> dict[Any, int]:
    """The first sizes that do not meet a condition, between a size that does and one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        fails = condition in asked.failing(asked.sizes.with_one(symbols, middle))
        low, high = (low, middle) if fails else (middle, high)
    return asked.sizes.with_one(symbols, high)


def _candidates(
    hints: Mapping[Any, int], ranges: Mapping[Any, Range]
) -> Iterator[tuple[tuple[Any, ...], dict[Any, int]]]:
    """Symbols that change, and sizes of all: of one as in `_ONE`, of two or three as in `_SEVERAL`."""
    for count in (1, 2, 3):
        for symbols in itertools.combinations(hints, count):
            tried = _ONE if count == 1 else _SEVERAL
            for sizes in itertools.product(*([n for n in tried if ranges[one].holds(n)] for one in symbols)):
                yield symbols, {**hints, **dict(zip(symbols, sizes, strict=True))}
