"""Tucker-2 from second moments: a 1 × 1 layer to a channels, the kernel to b channels, a 1 × 1 layer to the outputs.

    M[o, c, t]  =  Σ_β Σ_α  U[o, β]  K[β, α, t]  V[α, c]                                                            (1)

In the coordinates of `numerics/whitening.py`:

1. *Start.* V has the leading left singular vectors of the unfolding of M₀ along c (HOSVD).
2. *Kernel and outputs.* Given V, reduced-rank regression gives the best K and U together (`numerics/reduced_tail.py`).
3. *Inputs.* Given U, take the leading left singular vectors of the unfolding of Uᵀ M₀ along c: a step of HOOI. Where it
   does not lower the error, improve V with U and K fixed (`numerics/conjugate_gradients.py`).
4. Repeat 2 and 3. The error never rises. For white inputs this is HOOI, the higher-order orthogonal iteration.

References:
    De Lathauwer, De Moor, Vandewalle: On the best rank-1 and rank-(R1,...,RN) approximation, SIMAX 21(4), 2000.
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


@final
@dataclass(frozen=True, eq=False)
class TuckerCores:
    """The three factors of (1)."""

    inputs: Float[Tensor, "a channels"]
    kernel: Float[Tensor, "b a taps"]
    outputs: Float[Tensor, "outputs b"]

    @property
    def matrix(self) -> Float[Tensor, "outputs cols"]:
        """The layer's matrix that they make up."""
        whole = torch.einsum("bat,ac->bct", self.kernel, self.inputs)
        return (self.outputs @ whole.flatten(1)).contiguous()


@final
class Tucker2Problem:
    """The problem of one layer: find the factors for given ranks."""

    def __init__(self, regression: Regression, metric: Float[Tensor, "rows rows"], inputs: int) -> None:
        """Begin with the moments of a layer whose columns are ordered (inputs, taps)."""
        self._white = Whitened.of(regression, metric, inputs)
        self._tail = ReducedTail(self._white, self._white.best.shape[2])
        self._start = _leading(self._white.best)

    def errors(self, ranks: Sequence[tuple[int, int]]) -> list[float]:
        """The error of the start for each pair (a, b)."""
        counts = sorted({a for a, _ in ranks})
        known = dict(zip(counts, self._tail.errors(self._start, counts), strict=True))
        return [float(known[a][b]) for a, b in ranks]

    def solve(self, ranks: tuple[int, int], rounds: int) -> TuckerCores:
        """The factors for the ranks (a, b), after so many rounds of steps 2 and 3."""
        a, b = ranks
        inputs = self._start[:a]
        kernel, outputs = self._tail.solve(inputs, b)
        error = self._tail.error(inputs, b)
        for _ in range(rounds):
            projected = torch.einsum("ob,oct->bct", outputs, self._white.best)
            stepped = _leading(projected)[:a]
            known = self._tail.error(stepped, b)
            if known > error:
                stepped = self._improved(inputs, kernel, outputs)
                known = self._tail.error(stepped, b)
            if not known <= error:
                break
            inputs, error = stepped, known
            kernel, outputs = self._tail.solve(inputs, b)
        return TuckerCores(inputs @ self._white.inputs_back, kernel, self._white.outputs_back @ outputs)

    def _improved(
        self, inputs: Float[Tensor, "a c"], kernel: Float[Tensor, "b a t"], outputs: Float[Tensor, "o b"]
    ) -> Float[Tensor, "a c"]:
        channels, taps = self._white.best.shape[1:]

        def build(core: Float[Tensor, "a c"]) -> Float[Tensor, "o cols"]:
            return TuckerCores(core, kernel, outputs).matrix

        def back(matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "a c"]:
            return torch.einsum("bat,bct->ac", kernel, (outputs.mT @ matrix).reshape(-1, channels, taps))

        return improved(inputs, build, back, self._white.best.flatten(1), self._white.second)


def _leading(tensor: Float[Tensor, "o c t"]) -> Float[Tensor, "n c"]:
    """The left singular vectors of the unfolding along c, leading ones first, as rows."""
    unfolded = tensor.transpose(0, 1).flatten(1)
    _, vectors = torch.linalg.eigh(unfolded @ unfolded.mT)
    rows: Tensor = vectors.flip(1).mT
    return rows
