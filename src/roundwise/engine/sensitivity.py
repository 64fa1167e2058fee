"""How much the network's output feels an error at each layer's output.

Let δ be a small error of a layer's output. To first order the network's output changes by J δ, where J is its
derivative. If errors at different places do not depend on each other, then

    E ‖J δ‖²  =  tr(S E[δ δᵀ]),       S = E Σ_positions Jᵀ J        [channels, channels]

where δ is the error of one position. S is estimated from one backward pass: for random signs v, the gradient g of vᵀ
output at the layer's output has E[g gᵀ] = Jᵀ J. Outputs are divided by the root of their mean energy, so that
tr(S E[δ δᵀ]) is the expected relative error of the network's output.

No labels are needed, and nothing is assumed of what outputs mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, fx

from roundwise.engine.calibration import Calibration
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.run import execute

SAMPLES = 256
"""Samples that are run forward and backward. More give a better estimate, and take as much longer."""

FLOOR = 1e-2
"""Share of the mean of S's diagonal that is added to it, so that no direction of errors counts for nothing: S is an
estimate, and later stages change what the network feels."""


def output_metrics(
    graph: Graph, layers: Sequence[Layer], calibration: Calibration, device: torch.device, generator: torch.Generator
) -> dict[str, Float[Tensor, "rows rows"]]:
    """S of each layer by its name, float64; a multiple of the identity where the output does not depend on a layer.

    Args:
        graph: the network.
        layers: whose channels are in one group, and that are called once.
        calibration: the samples, of which the first 256 are used.
        device: of the network.
        generator: for the random signs.
    """
    sums = {layer.name: torch.zeros(2 * (layer.map.matrix_shape[1],), dtype=torch.float64) for layer in layers}
    seen, energy = 0, 0.0
    for batch in calibration.batches:
        if seen >= SAMPLES:
            break
        leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in batch]
        size = next(int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
        found, energy_here = _gradients(graph, layers, leaves, generator)
        for layer, gradient in zip(layers, found, strict=True):
            values = layer.map.fold_outputs(gradient)[0].float()
            sums[layer.name] += (values @ values.mT).double().cpu()
        seen, energy = seen + size, energy + energy_here
    metrics = {}
    for name, total in sums.items():
        metric = total / max(energy, torch.finfo(torch.float64).tiny)
        mean = float(metric.diagonal().mean()) or 1.0
        metrics[name] = (metric + FLOOR * mean * torch.eye(len(metric), dtype=torch.float64)).to(device)
    return metrics


def _gradients(
    graph: Graph, layers: Sequence[Layer], leaves: Sequence[Any], generator: torch.Generator
) -> tuple[list[Tensor], float]:
    """The gradient of a random combination of the outputs at each layer's output; and the energy of the outputs."""
    probes: dict[fx.Node, Tensor] = {}
    calls = {layer.node for layer in layers}
    last_use = _last_uses(graph)
    values: dict[fx.Node, Any] = {}
    inputs, outputs = iter(leaves), list[Any]()
    with torch.enable_grad():
        for node in graph.operations.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "get_attr":
                values[node] = graph.constants[str(node.target)]
            elif node.op == "call_function":
                values[node] = execute(node, values)
                if node in calls:
                    probes[node] = torch.zeros_like(values[node], requires_grad=True)
                    values[node] = values[node] + probes[node]
            else:
                outputs = [values[source] for source in node.all_input_nodes]
            for source in last_use.get(node, ()):
                values.pop(source, None)
        floats = [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor) and one.is_floating_point()]
        felt = [torch.where(one.isfinite(), one, 0) for one in floats if one.requires_grad]
        energy = sum(float(one.detach().double().square().sum()) for one in felt)
        signs = [torch.randint(2, one.shape, generator=generator).to(one) * 2 - 1 for one in felt]
        wanted = [probes[layer.node] for layer in layers]
        if not felt:  # outputs of whole numbers only
            return [torch.zeros_like(probe) for probe in wanted], energy
        gradients = torch.autograd.grad(felt, wanted, signs, materialize_grads=True)
    return [gradient.nan_to_num(0, 0, 0) for gradient in gradients], energy


def _last_uses(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each operation, the values that no later one reads."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.operations.nodes:
        last.update(dict.fromkeys(node.all_input_nodes, node))
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        uses.setdefault(node, []).append(source)
    return uses
