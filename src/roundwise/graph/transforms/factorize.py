"""Replace layers of a graph by chains of smaller layers, as a factorization gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, fx

from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.edit import split_layer
from roundwise.graph.graph import Graph
from roundwise.graph.matrix import LinearMap
from roundwise.graph.training import TensorOrigin

Part = tuple[LinearMap, Tensor]
"""One layer of a chain: its linear map, with its bias, and its weight."""


@final
@dataclass(frozen=True, eq=False)
class FactorizedGraph:
    """A graph with chains in the place of layers.

    Attributes:
        graph: the new graph.
        chains: the layers of each chain, in order, by the name of the layer that it replaces.
        outputs: the operation that gives the output of each chain, by the same names.
        counterparts: for each operation of the new graph whose output can be compared with one of the graph before, the
            name of that one. The last layer of a chain has the output of the layer that it replaces, and its name.
    """

    graph: Graph
    chains: dict[str, tuple[Layer, ...]]
    outputs: dict[str, fx.Node]
    counterparts: dict[str, str]


def factorize(graph: Graph, parts: Mapping[str, Sequence[Part]]) -> FactorizedGraph:
    """Replace layers by chains.

    The parts of the layer `block.conv` are `block.conv.0`, `block.conv.1` and so on, and are trained if it was. What
    followed the layer, such as a batch-norm, follows the last part.

    Args:
        graph: stays as it is.
        parts: the layers of each chain, by the name of a layer that is called once.
    """
    new = graph.copy()
    names = {node.name for node in graph.operations.nodes if node.op == "call_function"}
    outputs: dict[str, fx.Node] = {}
    for layer in [layer for layer in find_layers(new) if layer.name in parts]:
        (call,) = layer.calls
        before = set(new.constants)
        (last,) = split_layer(new, layer, parts[layer.name])
        last.meta.update({key: value for key, value in call.meta.items() if key in ("batch_norm", "dropout")})
        last.name = call.name  # which is gone; so what later stages know by this name is still found
        outputs[layer.name] = last
        _record_origins(new, layer, [name for name in new.constants if name not in before])
    new.prune()
    counterparts = {node.name: node.name for node in new.operations.nodes if node.name in names}
    by_output = {layer.node: layer for layer in find_layers(new)}
    chains = {name: _chain(by_output, output, len(parts[name])) for name, output in outputs.items()}
    return FactorizedGraph(new, chains, outputs, counterparts)


def _chain(layers: Mapping[fx.Node, Layer], last: fx.Node, length: int) -> tuple[Layer, ...]:
    """The layers from the one that gives an output back to the first of the chain, in order."""
    chain = [layers[last]]
    while len(chain) < length:
        chain.insert(0, layers[chain[0].input])
    return tuple(chain)


def _record_origins(graph: Graph, layer: Layer, added: Sequence[str]) -> None:
    """Say of new constants that they were computed from the layer's weight, and are trained if it is."""
    origin = graph.training.origins.get(layer.weight)
    if origin is not None:
        computed = TensorOrigin(origin.names, "computed", origin.trainable)
        graph.training = graph.training.with_origins(dict.fromkeys(added, computed))
