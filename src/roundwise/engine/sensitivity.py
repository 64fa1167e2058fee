"""How much the network's output feels an error at each layer's output.

Let δ be a small error of a layer's output. To first order the network's output changes by J δ, where J is its
derivative. If errors at different places do not depend on each other, then

    E ‖J δ‖²  =  tr(S E[δ δᵀ]),       S = E Σ_positions Jᵀ J        [channels, channels]

where δ is the error of one position. If, on the other hand, all positions of a sample have the same error, then

    S = E (Σ_positions J)ᵀ (Σ_positions J)

which is far larger where the network averages over positions later. The truth is between the two, and S is taken so: a
share c of the second, and 1 − c of the first. c is the correlation between the layer's outputs at two positions of a
sample: errors are taken to be as alike as outputs are.

S is estimated from one backward pass: for random signs v, the gradient g of vᵀ output at the layer's output has
E[g gᵀ] = Jᵀ J. Outputs are divided by the root of their mean energy, so that tr(S E[δ δᵀ]) is the expected relative
error of the network's output.

No labels are needed, and nothing is assumed of what outputs mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

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
    sums = {layer.name: _Sums.zeros(layer.map.matrix_shape[1]) for layer in layers}
    seen, energy = 0, 0.0
    for batch in calibration.batches:
        if seen >= SAMPLES:
            break
        leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in batch]
        size = next(int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
        found, energy_here = _gradients(graph, layers, leaves, generator)
        for layer, (output, gradient) in zip(layers, found, strict=True):
            sums[layer.name].add(layer, output, gradient, size)
        seen, energy = seen + size, energy + energy_here
    metrics = {}
    for name, one in sums.items():
        metric = one.products() / max(energy, torch.finfo(torch.float64).tiny)
        mean = float(metric.diagonal().mean()) or 1.0
        metrics[name] = (metric + FLOOR * mean * torch.eye(len(metric), dtype=torch.float64)).to(device)
    return metrics


def _gradients(
    graph: Graph, layers: Sequence[Layer], leaves: Sequence[Any], generator: torch.Generator
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """For each layer its output, and there the gradient of a random combination of the network's outputs.

    The last result is the energy of the network's outputs.
    """
    layer_outputs: dict[fx.Node, Tensor] = {}
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
                    layer_outputs[node] = values[node].detach()
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
        gradients: Sequence[Tensor] = [torch.zeros_like(probe) for probe in wanted]
        if felt:  # else outputs are whole numbers only
            gradients = torch.autograd.grad(felt, wanted, signs, materialize_grads=True)
    pairs = zip(layers, gradients, strict=True)
    return [(layer_outputs[layer.node], gradient.nan_to_num(0, 0, 0)) for layer, gradient in pairs], energy


@final
@dataclass(eq=False)
class _Sums:
    """What is summed over the samples for one layer.

    Attributes:
        apart: g gᵀ of all positions.
        together: g gᵀ, where g is the sum over the positions of a sample.
        outputs, means: the sums of the layer's outputs and of their squares; likewise of the means of samples.
        positions: how many; of samples, and of all positions.
    """

    apart: Float[Tensor, "rows rows"]
    together: Float[Tensor, "rows rows"]
    outputs: Float[Tensor, "rows"]
    squares: Float[Tensor, "rows"]
    mean_squares: Float[Tensor, "rows"]
    samples: int = 0
    positions: int = 0

    @classmethod
    def zeros(cls, rows: int) -> _Sums:
        """The sums over nothing."""
        square, row = torch.zeros(rows, rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
        return cls(square, square.clone(), row, row.clone(), row.clone())

    def add(self, layer: Layer, output: Tensor, gradient: Tensor, samples: int) -> None:
        """Add one batch."""
        values = layer.map.fold_outputs(gradient)[0].float()
        self.apart += (values @ values.mT).double().cpu()
        items = [layer.map.as_items(one).float() for one in (output, gradient)]
        if len(items[0]) % samples:  # the batch is not the first dimension: positions cannot be told from samples
            samples = len(items[0])
        rows = len(self.outputs)
        outputs, gradients = (
            one.reshape(samples, -1, rows, math.prod(one.shape[2:])).transpose(1, 2).flatten(2) for one in items
        )
        sums, means = gradients.sum(2), outputs.mean(2)
        self.together += (sums.mT @ sums).double().cpu()
        self.outputs += outputs.sum((0, 2)).double().cpu()
        self.squares += outputs.square().sum((0, 2)).double().cpu()
        self.mean_squares += means.square().sum(0).double().cpu()
        self.samples += samples
        self.positions += samples * outputs.shape[2]

    def products(self) -> Float[Tensor, "rows rows"]:
        """Σ g gᵀ, as far as positions of a sample have the same error."""
        share = self._alike()
        return (1 - share) * self.apart + share * self.together

    def _alike(self) -> float:
        """The correlation between outputs at two positions of a sample, 0 to 1."""
        mean = self.outputs / max(1, self.positions)
        whole = float((self.squares / max(1, self.positions) - mean.square()).sum())
        between = float((self.mean_squares / max(1, self.samples) - mean.square()).sum())
        each = self.positions / max(1, self.samples)
        if each <= 1 or not whole > 0:
            return 0.0
        # Of independent positions, means of samples vary too.
        return min(1.0, max(0.0, (between / whole - 1 / each) / (1 - 1 / each)))


def _last_uses(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each operation, the values that no later one reads."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.operations.nodes:
        last.update(dict.fromkeys(node.all_input_nodes, node))
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        uses.setdefault(node, []).append(source)
    return uses
