"""Summarize a layer's float weights and its grid in a few hundred bytes, for the report.

The summary is made during the run, because the quantized network no longer has the float weights. It reads the weights
a few times, and takes much less time than choosing their scales.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.grid import Grid
from roundwise.report import WeightSummary

BINS = 48
"""Bins of the histogram: enough for a small figure. More bins make the report larger."""

_CHUNK = 1 << 20
"""Weights that are converted to float64 and counted at once; with more, a large layer would be copied as a whole."""


def summarize(weight: Float[Tensor, "groups rows cols"], grid: Grid) -> WeightSummary:
    """The summary of a weight matrix and its grid.

    Example:
        >>> summary = summarize(torch.tensor([[[-0.5, 0.0, 2.0]]]), Grid.symmetric(torch.tensor([[[0.25]]]), bits=3))
        >>> summary.finest, summary.upper_ends, round(summary.clipped, 2)
        ((0.25, 0), (0.75, 0.75), 0.33)
    """
    smallest, largest = float(weight.min()), float(weight.max())
    counts = torch.zeros(1, dtype=torch.float64)
    if smallest == largest:
        counts += weight.numel()
    else:
        chunks = weight.flatten().split(_CHUNK)
        # On the CPU, since PyTorch refuses a GPU's histogram if only deterministic operations are allowed.
        counts = sum((torch.histc(c.cpu().double(), BINS, smallest, largest) for c in chunks), start=counts)
    book, in_codes = grid.codebook, grid.in_codes(weight)
    clipped = (in_codes < book.qmin - 0.5) | (in_codes > book.qmax + 0.5)
    scale, zero_point = grid.scale.flatten().double().cpu(), grid.zero_point.flatten().cpu()
    lower, upper = scale * (book.qmin - zero_point), scale * (book.qmax - zero_point)
    finest, coarsest = int(scale.argmin()), int(scale.argmax())
    return WeightSummary(
        smallest=smallest,
        largest=largest,
        counts=tuple(int(count) for count in counts.tolist()),
        scales=scale.numel(),
        finest=(float(scale[finest]), int(zero_point[finest])),
        coarsest=(float(scale[coarsest]), int(zero_point[coarsest])),
        lower_ends=(float(lower.min()), float(lower.max())),
        upper_ends=(float(upper.min()), float(upper.max())),
        clipped=float(clipped.float().mean()),
    )
