"""Second moments of a layer's inputs and targets: everything that a quadratic objective needs to know of positions.

A *position* is one application of the layer's matrix: a pixel of a convolution's output, a token of a linear layer. It
has an unfolded input x̂ (of the network so far, `cols` numbers) and a target y (of the float network, `rows` numbers).
The sums over positions are, for each group:

    Σ x̂ x̂ᵀ [cols, cols]      Σ y x̂ᵀ [rows, cols]      Σ x̂ [cols]      Σ y [rows]      Σ y² [rows]      and their number

They are collected batch by batch, and the sums of two sets of samples add up (`Moments.merge`).

*Which positions.* A convolution has far more positions than its matrix has columns, and neighbouring positions are much
alike. So only some positions of each sample are used, drawn at random (seeded, with replacement): 64, or three for each
column if that is less (the 9 columns of a depthwise convolution need no more), or 16 · cols / samples if that is more.
Samples with no more positions than that use all. With n positions in all, the objective of a given rounding is known
up to a relative standard error of about √(2/n): 0.6 % for 64 positions of 1,024 samples, less than the choice of the
calibration samples makes. `benchmarks/RESULTS.md` has the accuracy with fewer. The moments take at most a tenth of the
time of a run, so cleverer ways to compute them could save no more than that.

*Held-out samples.* Every eighth sample (of two to seven, the last one) stays out of `fit` and goes to `held_out`, so
that a method can check whether a rounding chosen on the other samples is also good on inputs that it was not chosen by.

*Positions once more.* Where a clamp follows the layer, moments are not enough, and solvers go over the positions again
(`positions`), or draw minibatches of them (`minibatches`).

Sums are in float32, whatever the network's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, Self, final

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.numerics.moments import Moments, Pairs, side_by_side
from roundwise.statistics.base import Addend, Statistic

POSITIONS, POSITIONS_OF_A_COLUMN = 64, 3
"""The most positions of a sample: 64, or 3 for each column if that is less. With more, moments vary less."""

POSITIONS_PER_COLUMN = 16
"""The fewest positions for each column, if the samples have as many: wide matrices need more of each sample. Held-out
samples are counted too: of 16 positions, 14 are in `fit`."""

HOLD_OUT = 8
"""One sample in 8 is held out. With a larger number, fewer samples check the result, and more determine it."""

CHUNK = 1 << 22
"""Unfolded numbers that are worked on at once: 16 MiB, which stay in the processor's last cache."""

KEEP = 1 << 26
"""Unfolded numbers, of inputs and targets, that are kept for later passes: 256 MiB. The rest is unfolded every time."""

ACCELERATOR_FACTOR = 8
"""On GPUs `CHUNK` and `KEEP` are this many times larger, because there the start of a kernel costs most."""

Split = Literal["fit", "held-out", "all"]
"""Which samples: those that a rounding is chosen by, those that it is checked on, or both."""


class _Locations(NamedTuple):
    """Where some positions are, in a batch that the stream holds."""

    inputs: Tensor
    targets: Tensor
    addend: Addend | None
    items: Int[Tensor, "pairs"]
    positions: Int[Tensor, "pairs"]


@final
class _Part:
    """The positions of the samples in `fit` or in `held_out`, in chunks: unfolded, or where to unfold them again.

    Attributes:
        moments: of all chunks.
        budget: how many unfolded numbers it may still keep.
        chunks: complete ones.
        pending: positions that do not fill a chunk yet.
    """

    def __init__(self, moments: Moments, budget: int) -> None:
        self.moments, self.budget = moments, budget
        self.chunks: list[Pairs | list[_Locations]] = []
        self.pending: list[tuple[_Locations, Pairs]] = []


@final
class Gram(Statistic):
    """`Moments` of the samples, apart for the held-out ones; and the same positions again, for a second look.

    A chunk has positions of several batches, so that matrix products are large however small the batches are, and sums
    do not depend on the batches. Samples stay where the stream keeps them. Beside them, unfolded positions are kept up
    to `KEEP` numbers; others are unfolded again whenever they are read.

    Attributes:
        layer: the linear map.
        samples: how many calibration samples there will be.
    """

    forward_passes: ClassVar[float] = 12.0
    """Measured on one core of a CPU: with 16, ResNet-20 took 26 s where the plan said 32 s, and MobileNetV1 55 s where
    it said 73 s."""

    def __init__(self, layer: LinearMap, samples: int, generator: torch.Generator) -> None:
        self.layer, self.samples = layer, samples
        budget = KEEP * _device_factor(layer.device)
        self._fit, self._held_out = (
            _Part(Moments.zeros(layer.matrix_shape, layer.device), numbers)
            for numbers in (budget - budget // HOLD_OUT, budget // HOLD_OUT)
        )
        self._generator = generator
        self._seen = 0

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer, samples, generator)

    @classmethod
    def bytes_needed(cls, layer: LinearMap, samples: int, positions: int) -> int:
        # Two sets of moments, a solver's few versions of H, and about a dozen matrices of the weights' size; the
        # unfolded numbers that are kept; two indices of every position; and the chunks that are being worked on.
        groups, rows, cols = layer.matrix_shape
        used = samples * min(positions, _positions_used(cols, samples))
        matrices, kept = (
            groups * cols * (6 * cols + 14 * rows),
            min(KEEP * _device_factor(layer.device), used * groups * (cols + rows)),
        )
        return 4 * (matrices + kept) + 16 * used + 24 * CHUNK * _device_factor(layer.device)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        self._add(inputs, targets, samples, None)

    def add_sum(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend) -> None:
        self._add(inputs, targets, samples, addend)

    def _add(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend | None) -> None:
        held_out = (torch.arange(self._seen, self._seen + samples) + 1) % min(HOLD_OUT, max(2, self.samples)) == 0
        if self.samples < 2:
            held_out[:] = False
        items, positions = self._choose(targets, samples)
        sample = items * samples // self.layer.as_items(targets).shape[0]
        self._seen += samples
        for part, chosen in ((self._fit, ~held_out[sample]), (self._held_out, held_out[sample])):
            on_device = items[chosen].to(inputs.device), positions[chosen].to(inputs.device)
            self._add_positions(part, _Locations(inputs, targets, addend, *on_device))

    def _add_positions(self, part: _Part, locations: _Locations) -> None:
        """Fill every chunk to the last position, so that chunks do not depend on the batches."""
        size, start = self._chunk_size(), 0
        items, positions = locations.items, locations.positions
        while start < len(items):
            room = size - sum(len(pending.items) for pending, _ in part.pending)
            some = slice(start, start + room)
            locations = locations._replace(items=items[some], positions=positions[some])
            part.pending.append((locations, self._unfold([locations])))
            start += room
            if start <= len(items):
                self._flush(part)

    @property
    def fit(self) -> Moments:
        """Of the samples that a rounding is chosen by."""
        return self._flush(self._fit).moments

    @property
    def held_out(self) -> Moments:
        """Of the samples that it is checked on; of none where there are fewer than two samples."""
        return self._flush(self._held_out).moments

    def positions(self, split: Split) -> Iterator[Pairs]:
        """The positions of a split once more, one chunk at a time."""
        parts = {"fit": [self._fit], "held-out": [self._held_out], "all": [self._fit, self._held_out]}[split]
        for part in parts:
            yield from map(self._unfold, self._flush(part).chunks)

    def minibatches(self, size: int) -> Iterator[Pairs]:
        """Positions of `fit` without end, at least `size` of them at a time if there are as many.

        Every position comes equally often. A chunk is divided into several parts, each with every n-th position of it.
        Parts of chunks that are kept alternate with those of other chunks. A chunk that is not kept is unfolded, and
        then all its parts follow each other, so that it is unfolded only once.
        """
        chunks = self._flush(self._fit).chunks
        visits: list[tuple[float, int, int, int]] = []  # when, chunk, part, number of parts
        for number, chunk in enumerate(chunks):
            parts = max(1, _length(chunk) // size)
            for part in range(parts):
                when = (part + 0.5) / parts if isinstance(chunk, Pairs) else (number + 0.5) / len(chunks)
                visits.append((when, number, part, parts))
        visits.sort()
        gathered: list[Pairs] = []
        while True:
            last, pairs = -1, None
            for _, number, part, parts in visits:
                if number != last or pairs is None:
                    last, pairs = number, self._unfold(chunks[number])
                gathered.append(pairs.strided(parts, part))
                if len(gathered) == len(visits) or sum(map(_length, gathered)) >= size:
                    yield _joined(gathered)
                    gathered = []

    def _flush(self, part: _Part) -> _Part:
        """Make a chunk of the pending positions, if there are any, and add it to the moments."""
        if part.pending:
            locations, unfolded = map(list, zip(*part.pending, strict=True))
            part.pending.clear()
            pairs = _joined(unfolded)
            part.moments.add(pairs)
            numbers = pairs.columns.numel() + pairs.targets.numel()
            keep = numbers <= part.budget
            part.budget -= numbers if keep else 0
            part.chunks.append(pairs if keep else locations)
        return part

    def _chunk_size(self) -> int:
        groups, rows, cols = self.layer.matrix_shape
        return max(256, CHUNK * _device_factor(self.layer.device) // (groups * max(rows, cols)))

    def _unfold(self, chunk: Pairs | list[_Locations]) -> Pairs:
        if isinstance(chunk, Pairs):
            return chunk
        return _joined([self._pairs(locations) for locations in chunk])

    def _pairs(self, locations: _Locations) -> Pairs:
        layer, (inputs, outputs, addend, *where) = self.layer, locations
        columns, targets = (values.to(layer.device).float() for values in layer.pairs_at(inputs, outputs, *where))
        if addend is not None:
            added, lacking = (layer.outputs_at(values, *where).to(layer.device).float() for values in addend)
            targets = targets + (added - lacking)
        return Pairs(columns, targets)

    def _choose(self, targets: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """The positions of one batch that are used: their items, and their numbers within the item."""
        items, per_item = self.layer.as_items(targets).shape[0], self.layer.positions(targets)
        most = _positions_used(self.layer.matrix_shape[2], self.samples)
        per_sample = items * per_item // samples
        if per_sample <= most:
            places = torch.arange(items * per_item)
        else:
            inside = torch.randint(per_sample, (samples, most), generator=self._generator).sort(1).values
            places = (inside + per_sample * torch.arange(samples).unsqueeze(1)).flatten()
        return places // per_item, places % per_item


def _positions_used(cols: int, samples: int) -> int:
    """How many positions of each sample are used, if it has as many."""
    return max(min(POSITIONS, POSITIONS_OF_A_COLUMN * cols), math.ceil(POSITIONS_PER_COLUMN * cols / samples))


def _device_factor(device: torch.device) -> int:
    """What `CHUNK` and `KEEP` are multiplied by."""
    return 1 if device.type == "cpu" else ACCELERATOR_FACTOR


def _joined(parts: list[Pairs]) -> Pairs:
    """The positions of all parts."""
    if len(parts) == 1:
        return parts[0]
    return Pairs(*map(_concatenated, zip(*parts, strict=True)))


def _concatenated(parts: tuple[Tensor, ...]) -> Tensor:
    """Joined along the positions, in the memory order of the parts."""
    if any(map(side_by_side, parts)):
        return torch.cat([part.mT for part in parts], 2).mT
    return torch.cat(parts, 1)


def _length(chunk: Pairs | list[_Locations]) -> int:
    """How many positions a chunk has."""
    return chunk.columns.shape[1] if isinstance(chunk, Pairs) else sum(len(locations.items) for locations in chunk)
