"""How far the outputs of a finished network are from those of the float network, on the calibration samples."""

from __future__ import annotations

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.artifacts.emit import emit
from roundwise.engine.calibration import Calibration
from roundwise.engine.network import Network
from roundwise.engine.stream import output_names
from roundwise.graph.graph import Graph
from roundwise.numerics.output_error import ErrorSums, as_tensor
from roundwise.report import OutputReport


@torch.no_grad()
def output_errors(
    network: Network, reference: Graph, calibration: Calibration, device: torch.device
) -> tuple[OutputReport, ...]:
    """The error of each output, as reports have it. Outputs with other shapes than the reference's are left out."""
    current, original = emit(network.graph, list(network.weights), network.quantizers).module(), reference.module()
    names = output_names(network.graph)
    sums: dict[str, ErrorSums] = {}
    for batch in calibration.batches:
        leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in batch]
        args, kwargs = pytree.tree_unflatten(leaves, calibration.spec)
        found, expected = (pytree.tree_leaves(module(*args, **kwargs)) for module in (current, original))
        for name, one, other in zip(names, found, expected, strict=False):
            output, target = as_tensor(one), as_tensor(other)
            if output is not None and target is not None and output.shape == target.shape:
                sums.setdefault(name, ErrorSums()).add(output, target)
    results = {name: one.result() for name, one in sums.items()}
    return tuple(OutputReport(name, one.error, one.whole, one.note) for name, one in results.items())
