"""The one measure of errors: how far the outputs of one network are from those of another.

For one output, y of the network compared with and ŷ of the other, over all batches:

    error                 Σ(y − ŷ)² / Σy²
    relative difference   max |y − ŷ| / max |y|

The report, `evaluate`, and the checks of captures and exports all use `ErrorSums`. One number can hide what matters, so
the sums are also kept by magnitude (`numerics/magnitudes.py`) and by channel:

1. *Infinite values.* Where both networks give the same infinity, they agree, and the value counts for nothing else.
   Where only one of them is infinite or NaN, the error is infinite.
2. *Masks.* Many networks fill a part of an output with one huge number, such as −1e9. It makes Σy² so large that every
   error looks like 0. So the number counts for nothing where both networks give it; and where it was added to real
   values (a logit − 10,000), the distance from the mean counts in place of the magnitude.
3. *Dominance.* If few values or channels hold nearly all of Σy², the error is theirs alone. `OutputError.note` says so,
   with the error of the others.
4. *Whole numbers and truth values.* They are often names, such as classes. Their error is the share that differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from roundwise.numerics.magnitudes import Magnitudes, dominance
from roundwise.numerics.squares import distance, energy, relative_error

SMALLEST_CHANNEL = 1 / 16
"""A channel's differences are relative to its own largest value, or to a sixteenth of the output's if that is larger:
rounding errors of large values reach small channels too. Smaller, and correct files would fail their check."""

CHANNELS = 4096
"""Axes with more indices than this are not taken for channels. More would take more memory: 32 bytes for each."""


INTEGER_TOLERANCE = 0.01
"""Largest share of the whole numbers or truth values of an output that may differ where two networks should agree.

Some may: an argmax between two nearly equal numbers can go either way. A larger share hides errors.
"""


@final
@dataclass(frozen=True)
class OutputError:
    """How far one output is from the one that it is compared with.

    Attributes:
        values: how many numbers were compared.
        counted: how many of them the figures are about: those that are neither infinite nor a mask.
        error: Σ(y − ŷ)² / Σy²; 1 if only Σy² is 0. For whole numbers, the share that differs.
        largest_difference: max |y − ŷ|.
        relative_difference: max |y − ŷ| / max |y|, for all channels together or for the worst of them, whichever is
            larger. For whole numbers, the share that differs.
        whole: whether the output is of whole numbers or truth values.
        apart: at how many positions only one of the networks is infinite or NaN; all figures are infinite then.
        note: in words, what was left out, and what the error says nothing about; empty if there is no such thing.
    """

    values: int
    counted: int
    error: float
    largest_difference: float
    relative_difference: float
    whole: bool = False
    apart: int = 0
    note: str = ""


def as_tensor(value: Any) -> Tensor | None:
    """An output as a tensor of real numbers, if it is a tensor or a number; otherwise None."""
    if isinstance(value, bool | int | float | complex):
        value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    if not isinstance(value, Tensor):
        return None
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


@final
class ErrorSums:
    """Adds up the differences of one output over batches.

    Example:
        >>> sums = ErrorSums()
        >>> sums.add(torch.tensor([1.0, 2.2, -1e9]), torch.tensor([1.0, 2.0, -1e9]))
        >>> round(sums.result().error, 4), sums.result().counted
        (0.008, 2)
    """

    def __init__(self) -> None:
        self._values = self._differing = self._apart = 0
        self._whole = True
        self._energy = self._distance = self._precision = 0.0
        self._magnitudes = Magnitudes()
        self._channels: dict[int, _Channels] | None = None

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Add a batch of ŷ and y, which have the same shape."""
        found, expected = found.detach(), expected.detach()
        first = self._values == 0
        self._values += expected.numel()
        if not expected.is_floating_point():
            self._differing += int((found.to(expected.device) != expected).sum())
            return
        self._whole, self._precision = False, max(self._precision, torch.finfo(expected.dtype).eps)
        expected, found = _comparable(expected), _comparable(found).to(expected.device)
        finite = expected.isfinite() & found.isfinite()
        same = (found == expected) | (expected.isnan() & found.isnan())
        self._apart += int((~finite & ~same).sum())
        y, y_hat = expected[finite], found[finite]
        self._energy += energy(y)
        self._distance += distance(y_hat, y)
        self._magnitudes.add(y_hat, y)
        if first:
            axes = range(1, expected.dim())
            sizes = {axis: expected.shape[axis] for axis in {*axes[:1], *axes[-1:]}}
            self._channels = {axis: _Channels(axis, size) for axis, size in sizes.items() if 2 <= size <= CHANNELS}
        fits = [len(y) == len(finite.flatten()), *(one.fits(expected) for one in (self._channels or {}).values())]
        if self._channels is None or not all(fits):
            self._channels = None
            return
        for one in self._channels.values():
            one.add(found, expected)

    def result(self) -> OutputError:
        """The error of all batches so far."""
        if self._whole:
            share = self._differing / self._values if self._values else 0.0
            return OutputError(self._values, self._values, share, float(self._differing > 0), share, whole=True)
        counted, masks = self._magnitudes.without_masks(self._precision)
        size, difference, notes = self._energy, self._distance, [mask.note(self._values) for mask in masks]
        if masks:
            size, difference = counted.energy, counted.distance
        error = relative_error(difference, size)
        relative = _ratio(counted.largest_difference, counted.largest)
        channels = [] if masks or self._channels is None else list(self._channels.values())
        for one in channels:
            relative = max(relative, one.relative_difference(counted.largest))
        if self._apart:
            notes.append(f"at {self._apart:,} of {self._values:,} positions only one of the networks is finite")
            return OutputError(
                self._values, counted.count, math.inf, math.inf, math.inf, apart=self._apart, note="; ".join(notes)
            )
        hidden = next(filter(None, (one.dominance(error) for one in channels)), "") or counted.dominance(error)
        return OutputError(
            values=self._values,
            counted=counted.count,
            error=error,
            largest_difference=counted.largest_difference,
            relative_difference=relative,
            note="; ".join(filter(None, [*notes, hidden])),
        )


def compare(found: Tensor, expected: Tensor) -> OutputError:
    """The error of a single batch."""
    sums = ErrorSums()
    sums.add(found, expected)
    return sums.result()


@final
class _Channels:
    """Sums for each index along one axis of an output."""

    def __init__(self, axis: int, size: int) -> None:
        self._axis = axis
        self._energy, self._distance, self._largest, self._difference = torch.zeros(4, size, dtype=torch.float64)

    def fits(self, values: Tensor) -> bool:
        """Whether a batch has this axis, of the same size."""
        return values.dim() > self._axis and values.shape[self._axis] == len(self._energy)

    def add(self, found: Tensor, expected: Tensor) -> None:
        if not expected.numel():
            return
        rows = expected.movedim(self._axis, 0).flatten(1).double()
        differences = rows - found.movedim(self._axis, 0).flatten(1).double()
        self._energy += torch.linalg.vecdot(rows, rows).cpu()
        self._distance += torch.linalg.vecdot(differences, differences).cpu()
        self._largest = self._largest.maximum(rows.abs().amax(1).cpu())
        self._difference = self._difference.maximum(differences.abs().amax(1).cpu())

    def relative_difference(self, largest: float) -> float:
        """The largest relative difference of a channel; `largest` is the output's largest magnitude."""
        if not largest:
            return 0.0
        return float((self._difference / self._largest.clamp(min=largest * SMALLEST_CHANNEL)).max())

    def dominance(self, error: float) -> str:
        """What the error says nothing about if few channels hold nearly all of Σy²; empty if it is not so."""
        order = self._energy.argsort(descending=True, stable=True)
        found = dominance(self._energy[order].tolist(), self._distance[order].tolist(), [1] * len(order), error)
        if found is None:
            return ""
        most = sorted(order[: found.most].tolist())
        names = ", ".join(map(str, most[:8])) + (", …" if len(most) > 8 else "")
        return (
            f"{found.most} of {len(order)} channels of dimension {self._axis} ({names}) hold {found.share:.2%} of Σy², "
            f"so the error is theirs; that of the other channels is {found.error_of_others:.3g}"
        )


def _comparable(values: Tensor) -> Tensor:
    """Floats of 8 bits, which PyTorch cannot compare, in float32; nothing is rounded."""
    return values.float() if values.dtype.itemsize == 1 else values


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)
