"""A unit: the part of a graph whose weights are chosen together. A layer, or a block of layers.

    inputs ──▶ nodes, in order, with one or more weights ──▶ output

Methods that work on one layer see its weight as a matrix (`graph/matrix.py`). Methods that work on a block see
`forward(weights, inputs)`, and may differentiate through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, fx

from roundwise.errors import ModelError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.run import execute


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """A sub-graph with one output.

    Attributes:
        name: for messages, reports and seeds; a layer's own name where it is one layer.
        graph: that the unit is a part of.
        layers: the layers whose weights are chosen, in the order of their calls.
        nodes: all operations of the unit, in order; the last one gives the output.
    """

    name: str
    graph: Graph
    layers: tuple[Layer, ...]
    nodes: tuple[fx.Node, ...]

    @classmethod
    def of_layer(cls, graph: Graph, layer: Layer) -> Unit:
        """A unit of one layer."""
        return cls(layer.name, graph, (layer,), (layer.node,))

    @classmethod
    def of_block(cls, graph: Graph, name: str, layers: Sequence[Layer], output: fx.Node) -> Unit:
        """The layers and all operations between them and the output.

        Args:
            graph: that they are in.
            name: for the unit.
            layers: in the order of their calls.
            output: the operation that gives the unit's output; it reads the layers, perhaps through other operations.

        Raises:
            ModelError: the output does not depend on all the layers, or an operation outside reads one inside, so that
                the unit has several outputs.
        """
        inside = {layer.node for layer in layers}
        for node in graph.operations.nodes:  # what depends on a layer, as far as the output depends on it
            if node.op == "call_function" and any(source in inside for source in node.all_input_nodes):
                inside.add(node)
        needed: set[fx.Node] = set()
        waiting = [output]
        while waiting:
            node = waiting.pop()
            if node in inside and node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        nodes = tuple(node for node in graph.operations.nodes if node in needed)
        leaving = [node.name for node in nodes if node is not output and any(user not in needed for user in node.users)]
        missing = [layer.name for layer in layers if layer.node not in needed]
        if leaving or missing:
            raise ModelError(
                f"the unit '{name}' cannot end at '{output.name}': "
                + (f"it does not depend on {', '.join(missing)}" if missing else "")
                + (f"operations outside read {', '.join(leaving)}" if leaving and not missing else "")
                + ". Choose an operation through which everything goes that the layers compute."
            )
        return cls(name, graph, tuple(layers), nodes)

    @property
    def output(self) -> fx.Node:
        """The operation that gives the output."""
        return self.nodes[-1]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The operations and inputs of the network, outside the unit, that its operations read; no constants."""
        outside = (
            source
            for node in self.nodes
            for source in node.all_input_nodes
            if source not in self.nodes and source.op != "get_attr"
        )
        return tuple(dict.fromkeys(outside))

    @property
    def layer(self) -> Layer:
        """The layer, of a unit of one."""
        (layer,) = self.layers
        return layer

    def forward(self, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The output for other weights.

        Args:
            weights: by the names of layers, each shaped as the layer's own weight tensor; others stay as they are.
            inputs: in the order of `inputs`.
        """
        values: dict[fx.Node, object] = dict(zip(self.inputs, inputs, strict=True))
        for layer in self.layers:
            source = layer.node.args[1]
            assert isinstance(source, fx.Node)
            if layer.name in weights:
                values[source] = weights[layer.name]
        for node in self.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in values:
                    values[source] = self.graph.constants[str(source.target)]
            values[node] = execute(node, values)
        output = values[self.output]
        assert isinstance(output, Tensor)
        return output
