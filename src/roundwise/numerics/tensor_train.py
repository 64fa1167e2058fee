"""Tensor trains from second moments: the channels and the two dimensions of a kernel become four layers in a row.

    M[o, c, i, j]  =  Σ_δ Σ_β Σ_α  U[o, δ]  K₂[δ, β, j]  K₁[β, α, i]  V[α, c]                                       (1)

In the coordinates of `numerics/whitening.py`:

1. *Start.* V has the leading left singular vectors of the unfolding of M₀ along c. The products K₁ V are those of the
   best two factors with taps i and j (`numerics/two_factors.py`, step 1), projected on V.
2. *Last two layers.* Given V and K₁, reduced-rank regression gives the best K₂ and U together
   (`numerics/reduced_tail.py`).
3. *First two layers.* Improve K₁, then V, the others fixed (`numerics/conjugate_gradients.py`).
4. Repeat 2 and 3. The error never rises.

For white inputs the start is the sequential decomposition of Oseledets, with the first two cores from unfoldings of the
whole tensor.

References:
    Oseledets, Tensor-Train Decomposition, SIAM Journal on Scientific Computing 33(5), 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.conjugate_gradients import improved
from roundwise.numerics.reduced_tail import ReducedTail
from roundwise.numerics.regression import Regression
from roundwise.numerics.whitening import Whitened

Ranks = tuple[int, int, int]
"""The channels between the four layers: α, β and δ in (1)."""


@final
@dataclass(frozen=True, eq=False)
class TrainCores:
    """The four factors of (1), in the order in which they run."""

    inputs: Float[Tensor, "a channels"]
    first: Float[Tensor, "b a taps1"]
    second: Float[Tensor, "d b taps2"]
    outputs: Float[Tensor, "outputs d"]

    @property
    def features(self) -> Float[Tensor, "b channels taps1"]:
        """What the first two make up."""
        return torch.einsum("bai,ac->bci", self.first, self.inputs)

    @property
    def matrix(self) -> Float[Tensor, "outputs cols"]:
        """The layer's matrix that they make up."""
        tail = torch.einsum("od,dbj->obj", self.outputs, self.second)
        return torch.einsum("bci,obj->ocij", self.features, tail).flatten(1)


@final
class TensorTrainProblem:
    """The problem of one layer: find the factors for given ranks."""

    def __init__(
        self, regression: Regression, metric: Float[Tensor, "rows rows"], inputs: int, taps: tuple[int, int]
    ) -> None:
        """Begin with the moments of a layer whose columns are ordered (inputs, first taps, second taps)."""
        self._white, self._taps = Whitened.of(regression, metric, inputs), taps
        self._tail = ReducedTail(self._white, taps[1])
        outputs = len(metric)
        best = self._white.best.reshape(outputs, inputs, *taps)
        self._inputs = _leading(best.transpose(0, 1).flatten(1))
        pairs = _leading(best.permute(1, 2, 0, 3).reshape(inputs * taps[0], -1))
        self._pairs = pairs.reshape(-1, inputs, taps[0])

    def errors(self, ranks: Sequence[Ranks]) -> list[float]:
        """The error of the start for each triple of ranks."""
        known: dict[tuple[int, int], Tensor] = {}
        for a in sorted({rank[0] for rank in ranks}):
            counts = sorted({b for first, b, _ in ranks if first == a})
            features = self._start(a, max(counts)).features.flatten(1)
            errors = self._tail.errors(features, counts)
            known.update({(a, b): error for b, error in zip(counts, errors, strict=True)})
        return [float(known[a, b][d]) for a, b, d in ranks]

    def solve(self, ranks: Ranks, rounds: int) -> TrainCores:
        """The factors for some ranks, after `rounds` rounds of steps 2 and 3."""
        cores = self._completed(self._start(*ranks[:2]), ranks[2])
        for _ in range(rounds):
            cores = self._improved_first(cores)
            cores = self._improved_inputs(cores)
            cores = self._completed(cores, ranks[2])
        inputs, outputs = cores.inputs @ self._white.inputs_back, self._white.outputs_back @ cores.outputs
        return TrainCores(inputs, cores.first, cores.second, outputs)

    def _start(self, a: int, b: int) -> TrainCores:
        """Step 1; the last two factors are empty."""
        inputs, pairs = self._inputs[:a], self._pairs[:b]
        first = torch.einsum("bci,ac->bai", pairs, inputs)
        return TrainCores(
            inputs, first, first.new_zeros(0, b, self._taps[1]), first.new_zeros(len(self._white.best), 0)
        )

    def _completed(self, cores: TrainCores, d: int) -> TrainCores:
        """Step 2."""
        second, outputs = self._tail.solve(cores.features.flatten(1), d)
        return TrainCores(cores.inputs, cores.first, second, outputs)

    def _improved_first(self, cores: TrainCores) -> TrainCores:
        def build(core: Float[Tensor, "b a i"]) -> Float[Tensor, "o cols"]:
            return TrainCores(cores.inputs, core, cores.second, cores.outputs).matrix

        def back(matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "b a i"]:
            return torch.einsum("bci,ac->bai", self._features_back(cores, matrix), cores.inputs)

        core = improved(cores.first, build, back, self._white.best.flatten(1), self._white.second)
        return TrainCores(cores.inputs, core, cores.second, cores.outputs)

    def _improved_inputs(self, cores: TrainCores) -> TrainCores:
        def build(core: Float[Tensor, "a c"]) -> Float[Tensor, "o cols"]:
            return TrainCores(core, cores.first, cores.second, cores.outputs).matrix

        def back(matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "a c"]:
            return torch.einsum("bci,bai->ac", self._features_back(cores, matrix), cores.first)

        core = improved(cores.inputs, build, back, self._white.best.flatten(1), self._white.second)
        return TrainCores(core, cores.first, cores.second, cores.outputs)

    def _features_back(self, cores: TrainCores, matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "b c i"]:
        """The adjoint of the map from features to the matrix."""
        projected = (cores.outputs.mT @ matrix).reshape(cores.outputs.shape[1], -1, *self._taps)
        return torch.einsum("dbj,dcij->bci", cores.second, projected)


def _leading(unfolded: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
    """The left singular vectors, leading ones first, as rows."""
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.mT)
    rows: Tensor = vectors.flip(1).mT
    return rows
