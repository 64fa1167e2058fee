"""Second moments of a layer's inputs and targets: all that a quadratic objective knows of the samples.

With unfolded quantized-prefix inputs x̂ (a column of the matrix layer's input) and float targets y, for each group:

    Σ x̂ x̂ᵀ [cols, cols]      Σ y x̂ᵀ [rows, cols]      Σ x̂ [cols]      Σ y [rows]      Σ y² [rows]      and their number.

They are sums: they stream, and two of them add up to the one of all samples (`Moments.merge`).

*Positions.* A convolution's input has far more positions than the matrix has columns, and neighbouring ones say much
the same. So of each sample's positions only some are taken, drawn at random (seeded, with replacement): 64, or three
for each column where these are fewer (the 9 columns of a depthwise convolution need no more), or 16 · cols / samples
where that is more. Where a sample has no more than that, all are. With n positions in all the objective of a given
rounding is then known up to a relative standard error of about √(2/n): 0.6 % for 64 positions of 1,024 samples, below
what the choice of the calibration samples themselves makes. `benchmarks/RESULTS.md` has the accuracy with fewer.
So the moments take a tenth of the time at most, and cleverer ways could save no more: those of a convolution from the
correlations of shifted inputs need all positions, and matrix units of fewer bits were measured there too.

*Held-out samples.* Every eighth sample stays out of `fit` and goes to `held_out`, by which a method can tell whether
what it learnt from the others holds for inputs that it has not seen.

Sums are in float32, whatever the network's dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, Self, final

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.numerics.moments import Moments, Pairs, side_by_side
from roundwise.statistics.base import Addend, Statistic

POSITIONS, POSITIONS_OF_A_COLUMN = 64, 3
"""Positions of each sample that are taken, if it has as many: so many, or so many for each column."""

POSITIONS_PER_COLUMN = 16
"""Positions in all, per column of the matrix, that are taken if the samples have as many."""

HOLD_OUT = 8
"""One sample in so many is held out."""

CHUNK = 1 << 22
"""Unfolded numbers at a time: 16 MiB of them, in the processor's last cache."""

KEEP = 1 << 26
"""Unfolded numbers, of inputs and targets, that are kept to be looked at again: 256 MiB of them."""

ON_ACCELERATOR = 8
"""Times as much of both on anything but a CPU, where an operation's start costs more than its work."""


class _Places(NamedTuple):
    """Where some positions are, in a batch that the stream holds."""

    inputs: Tensor
    targets: Tensor
    addend: Addend | None
    rows: Int[Tensor, "pairs"]
    positions: Int[Tensor, "pairs"]


@final
class _Share:
    """The positions of some samples, in chunks: unfolded ones, or where to unfold them again."""

    def __init__(self, moments: Moments, room: int) -> None:
        self.moments, self.room = moments, room  # numbers that it may keep
        self.chunks: list[Pairs | list[_Places]] = []
        self.waiting: list[tuple[_Places, Pairs]] = []


@final
class Gram(Statistic):
    """`Moments` of the samples, apart for those that are held out; and the same positions again, to be seen twice.

    Positions of several batches make a chunk, so that products are large however small the batches are, and do not
    depend on them. The samples are kept where the stream keeps them, and beside them so much of what was unfolded as
    `KEEP` allows; the rest is unfolded again when it is wanted.

    Attributes:
        layer: the linear map.
    """

    def __init__(self, layer: LinearMap, samples: int, generator: torch.Generator) -> None:
        self.layer, self.samples = layer, samples
        room = KEEP * _times(layer.device)
        self._fit, self._held_out = (
            _Share(Moments.zeros(layer.matrix_shape, layer.device), numbers)
            for numbers in (room - room // HOLD_OUT, room // HOLD_OUT)
        )
        self._generator = generator
        self._seen = 0

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer, samples, generator)

    @classmethod
    def bytes_needed(cls, layer: LinearMap, samples: int, positions: int) -> int:
        # Two sets of moments; a solver has H in a few versions, and about a dozen matrices like the weights. Beside
        # them the unfolded inputs that are kept, two indices of every position, and what is unfolded at work.
        groups, rows, cols = layer.matrix_shape
        taken = samples * min(positions, _positions_taken(cols, samples))
        matrices, kept = (
            groups * cols * (6 * cols + 14 * rows),
            min(KEEP * _times(layer.device), taken * groups * (cols + rows)),
        )
        return 4 * (matrices + kept) + 16 * taken + 24 * CHUNK * _times(layer.device)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        self._add(inputs, targets, samples, None)

    def add_sum(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend) -> None:
        self._add(inputs, targets, samples, addend)

    def _add(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend | None) -> None:
        held_out = (torch.arange(self._seen, self._seen + samples) + 1) % min(HOLD_OUT, max(2, self.samples)) == 0
        if self.samples < 2:
            held_out[:] = False
        rows, positions = self._choose(targets, samples)
        sample = rows * samples // self.layer.as_rows(targets).shape[0]
        self._seen += samples
        for share, chosen in ((self._fit, ~held_out[sample]), (self._held_out, held_out[sample])):
            on_device = rows[chosen].to(inputs.device), positions[chosen].to(inputs.device)
            self._add_places(share, _Places(inputs, targets, addend, *on_device))

    def _add_places(self, share: _Share, places: _Places) -> None:
        """Fill chunks to the last place, so that they do not depend on the batches."""
        size, start = self._chunk_size(), 0
        rows, positions = places.rows, places.positions
        while start < len(rows):
            room = size - sum(len(waiting.rows) for waiting, _ in share.waiting)
            some = slice(start, start + room)
            places = places._replace(rows=rows[some], positions=positions[some])
            share.waiting.append((places, self._unfold([places])))
            start += room
            if start <= len(rows):
                self._take_in(share)

    @property
    def fit(self) -> Moments:
        """Of the samples to choose a rounding by."""
        return self._take_in(self._fit).moments

    @property
    def held_out(self) -> Moments:
        """Of the samples to check it on; of none where there are fewer than two samples."""
        return self._take_in(self._held_out).moments

    def again(self, *, held_out: bool = False) -> Iterator[Pairs]:
        """The positions of `fit`, or of `held_out`, once more, some at a time."""
        return map(self._unfold, self._take_in(self._held_out if held_out else self._fit).chunks)

    def all_again(self) -> Iterator[Pairs]:
        """The positions of both."""
        return itertools.chain(self.again(), self.again(held_out=True))

    def minibatches(self, size: int) -> Iterator[Pairs]:
        """Positions of `fit` without end, at least `size` of them at a time if there are as many; all equally often.

        A chunk of positions gives several of them. What is kept takes turns with other chunks; what is not is unfolded
        once and used up.
        """
        chunks = self._take_in(self._fit).chunks
        visits: list[tuple[float, int, int, int]] = []
        for number, chunk in enumerate(chunks):
            parts = max(1, _length(chunk) // size)
            for part in range(parts):
                turn = (part + 0.5) / parts if isinstance(chunk, Pairs) else (number + 0.5) / len(chunks)
                visits.append((turn, number, part, parts))
        visits.sort()
        gathered: list[Pairs] = []
        while True:
            last, pairs = -1, None
            for _, number, part, parts in visits:
                if number != last or pairs is None:
                    last, pairs = number, self._unfold(chunks[number])
                gathered.append(pairs.every(parts, part))
                if len(gathered) == len(visits) or sum(map(_length, gathered)) >= size:
                    yield _joined(gathered)
                    gathered = []

    def _take_in(self, share: _Share) -> _Share:
        """Make a chunk of what waits."""
        if share.waiting:
            places, unfolded = map(list, zip(*share.waiting, strict=True))
            share.waiting.clear()
            pairs = _joined(unfolded)
            share.moments.add(pairs)
            numbers = pairs.columns.numel() + pairs.targets.numel()
            keep = numbers <= share.room
            share.room -= numbers if keep else 0
            share.chunks.append(pairs if keep else places)
        return share

    def _chunk_size(self) -> int:
        groups, rows, cols = self.layer.matrix_shape
        return max(256, CHUNK * _times(self.layer.device) // (groups * max(rows, cols)))

    def _unfold(self, chunk: Pairs | list[_Places]) -> Pairs:
        if isinstance(chunk, Pairs):
            return chunk
        return _joined([self._pairs(places) for places in chunk])

    def _pairs(self, places: _Places) -> Pairs:
        layer, (inputs, outputs, addend, *where) = self.layer, places
        columns, targets = (values.to(layer.device).float() for values in layer.pairs_at(inputs, outputs, *where))
        if addend is not None:
            added, lacking = (layer.outputs_at(values, *where).to(layer.device).float() for values in addend)
            targets = targets + (added - lacking)
        return Pairs(columns, targets)

    def _choose(self, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Rows and positions of one batch that are taken."""
        rows, per_row = self.layer.as_rows(targets).shape[0], self.layer.positions(targets)
        most = _positions_taken(self.layer.matrix_shape[2], self.samples)
        per_sample = rows * per_row // samples
        if per_sample <= most:
            places = torch.arange(rows * per_row)
        else:
            inside = torch.randint(per_sample, (samples, most), generator=self._generator).sort(1).values
            places = (inside + per_sample * torch.arange(samples).unsqueeze(1)).flatten()
        return places // per_row, places % per_row


def _positions_taken(cols: int, samples: int) -> int:
    """How many positions of each sample are taken at most."""
    return max(min(POSITIONS, POSITIONS_OF_A_COLUMN * cols), math.ceil(POSITIONS_PER_COLUMN * cols / samples))


def _times(device: torch.device) -> int:
    """How many times `CHUNK` and `KEEP` are taken."""
    return 1 if device.type == "cpu" else ON_ACCELERATOR


def _joined(parts: list[Pairs]) -> Pairs:
    """The positions of all."""
    if len(parts) == 1:
        return parts[0]
    return Pairs(*map(_concatenated, zip(*parts, strict=True)))


def _concatenated(parts: tuple[Tensor, ...]) -> Tensor:
    """Along the positions, in the memory order of the parts."""
    if any(map(side_by_side, parts)):
        return torch.cat([part.mT for part in parts], 2).mT
    return torch.cat(parts, 1)


def _length(chunk: Pairs | list[_Places]) -> int:
    """How many positions there are."""
    return chunk.columns.shape[1] if isinstance(chunk, Pairs) else sum(len(places.rows) for places in chunk)
