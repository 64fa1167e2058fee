"""Sizes at which a model's code may do something else than it did when it was exported.

`if x.shape[0] % 4 == 0: …` runs one way for the sizes of the samples, and PyTorch writes down the condition under which
that way is right. Ranges (`n < 64`) become limits of the graph. Of other conditions some are the model's, and some are
of PyTorch's own making and change nothing (`n != 10`, where a layer has 10 channels). So the graph is compared with the
model at sizes at which each condition does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from roundwise.frontends.program import size_range
from roundwise.graph.sizes import Range

_TRIED = 40
"""Sizes from 1 to this are tried, besides those that a condition names."""

_MOST = 16
"""Most places that are compared. A model's own conditions come before those that follow from them."""


@final
@dataclass(frozen=True)
class OtherSize:
    """A size at which a condition of the export does not hold.

    Attributes:
        places: the inputs' dimensions that have this size: for each the number of the input and the dimension.
        size: the size.
        condition: what does not hold there, such as `Mod(x.shape[0], 4) != 0`.
    """

    places: tuple[tuple[int, int], ...]
    size: int
    condition: str


def other_sizes(program: ExportedProgram) -> Iterator[OtherSize]:
    """For each condition of a program one size in its range at which it does not hold, if there is one."""
    symbols: dict[Any, list[tuple[int, int]]] = {}
    words: dict[str, str] = {}
    hints: dict[Any, int] = {}
    environment: Any = None
    user_inputs = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in user_inputs]
    for number, node in enumerate(nodes):
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                symbol, environment = size.node.expr, size.node.shape_env
                symbols.setdefault(symbol, []).append((number, dim))
                words.setdefault(str(symbol), f"{node.target}.shape[{dim}]")
                hints[symbol] = size.node.hint
    seen: set[tuple[Any, int]] = set()
    for guard in getattr(environment, "guards", ()):
        for symbol in sorted(guard.expr.free_symbols & symbols.keys(), key=str):
            other = _breaking(guard.expr, symbol, hints, size_range(symbol, program.range_constraints))
            if other is not None and (symbol, other) not in seen and len(seen) < _MOST:
                seen.add((symbol, other))
                yield OtherSize(tuple(symbols[symbol]), other, _in_words(guard.expr, words))


def _breaking(condition: Any, symbol: Any, hints: Mapping[Any, int], allowed: Range) -> int | None:
    """The smallest size of one symbol at which a condition does not hold, all others being as in the samples."""
    others = {other: hint for other, hint in hints.items() if other != symbol}
    named = {int(number) for number in condition.atoms() if number.is_Integer} | set(others.values())
    sizes: list[int] = sorted({*range(1, _TRIED + 1), *(number for number in named if number > _TRIED)})
    for size in sizes:
        if allowed.holds(size):
            try:
                holds = condition.subs(others | {symbol: size})
            except ZeroDivisionError:
                continue
            if holds.is_Boolean and not bool(holds):
                return size
    return None


def _in_words(condition: Any, words: Mapping[str, str]) -> str:
    """A condition as Python has it, with the names of inputs."""
    sign = {"Equality": "==", "Unequality": "!="}.get(type(condition).__name__)
    text = f"{condition.lhs} {sign} {condition.rhs}" if sign else str(condition)
    return re.sub(r"\bs\d+\b", lambda found: words.get(found[0], found[0]), text)
