"""Estimate the running statistics of batch-norms anew: mean and variance over a few batches, with the present weights.

While a network is trained at few bits, weights keep jumping between neighbouring codes. The running statistics are a
mean over networks that no longer exist, and fit none of them. Estimating them anew before each evaluation gains points
at 3 and 4 bits, and costs a few forward passes.

Reference:
    Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, arXiv:2203.11086, Section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[Callable[[], object]]) -> int:
    """Set the running mean and variance of all batch-norms to their average over batches.

    Everything but batch-norm runs in evaluation mode, so dropout does nothing. Modes and momenta are as before
    afterwards.

    Args:
        module: whose batch-norms are changed.
        batches: each call runs the module on one batch.

    Returns:
        The number of batches; with 0 nothing is changed.
    """
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        return 0
    modes = {one: one.training for one in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = [(norm, {name: value.clone() for name, value in norm.named_buffers()}) for norm in norms]
    count = 0
    try:
        module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average over all batches
            norm.train()
        for run in batches:
            run()
            count += 1
    finally:
        for one, mode in modes.items():
            one.training = mode
        for norm, buffers in before:
            norm.momentum = momenta[norm]
            for name, value in buffers.items():
                if count == 0 or name == "num_batches_tracked":
                    norm.get_buffer(name).copy_(value)
    return count
