"""Remove channels of a network, and keep it comparable with the network before.

`cut_channels` removes the channels. Three things come on top:

- A layer that reads fewer channels than before will get new weights, and a new bias with them. Where it has no bias of
  its own, it gets one, which is zero.
- A tensor that has lost channels cannot be compared with the tensor before. Where a comparison is wanted, the graph to
  compare with gets an operation that selects the channels that are left; nobody else reads its result.
- What corresponds to what is written down, by names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from roundwise.graph.analysis.channels import ChannelGroup, find_channel_groups
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.edit import LayerEdit
from roundwise.graph.graph import Graph
from roundwise.graph.shapes import infer
from roundwise.graph.transforms.cut_channels import cut_channels

aten = torch.ops.aten


@final
@dataclass(frozen=True, eq=False)
class PrunedGraph:
    """A graph without some channels, and one to compare it with.

    Attributes:
        graph: the new graph.
        reference: the graph to compare with, which has new operations that nobody reads.
        counterparts: for each operation of the new graph whose output can be compared with one of the reference, the
            name of that one.
    """

    graph: Graph
    reference: Graph
    counterparts: dict[str, str]


def prune(
    graph: Graph,
    removed: Mapping[int, Collection[int]],
    readers: Sequence[str],
    reference: Graph,
    counterparts: Mapping[str, str] | None = None,
) -> PrunedGraph:
    """Remove channels.

    Args:
        graph: stays as it is.
        removed: which channels of each group go, by the group's place in `find_channel_groups(graph)`.
        readers: names of layers that will get new weights; their outputs, and values that these are added to, can be
            compared with the reference.
        reference: stays as it is.
        counterparts: what corresponds in the reference to operations of the graph; by default what has the same name.
    """
    new, reference = graph.copy(), reference.copy()
    groups = find_channel_groups(new) if removed else []
    going = {groups[number]: channels for number, channels in removed.items()}
    left = _what_is_left(going)
    cut_channels(new, going)
    names = {node.name: node.name for node in new.operations.nodes if node.op == "call_function"}
    names = {name: counterparts[name] for name in names if name in counterparts} if counterparts is not None else names
    compared = set[str]()
    for layer in find_layers(new):
        if layer.name in readers:
            if layer.own_bias is None:
                _add_bias(new, layer.calls)
            compared |= {layer.node.name, *(() if layer.addend is None else (layer.addend.name,))}
    there = {node.name: node for node in reference.operations.nodes}
    for name, (axis, places) in left.items():
        counterpart = there.get(names.pop(name, ""))
        if counterpart is not None and name in compared:
            names[name] = _select(reference, counterpart, axis, places)
    return PrunedGraph(new, reference, names)


def _what_is_left(removed: Mapping[ChannelGroup, Collection[int]]) -> dict[str, tuple[int, list[int]]]:
    """For each operation that loses channels, by its name: the dimension, and the places that are left."""
    gone: dict[fx.Node, tuple[int, set[int]]] = {}
    for group, channels in removed.items():
        for value in group.values:
            places = {place for channel in channels for place in value.places[channel]}
            gone.setdefault(value.node, (value.axis, set()))[1].update(places)
    return {
        node.name: (axis, [place for place in range(int(node.meta["val"].shape[axis])) if place not in places])
        for node, (axis, places) in gone.items()
        if places
    }


def _add_bias(graph: Graph, calls: Sequence[fx.Node]) -> None:
    """Give a layer a bias of its own that changes nothing."""
    edit = LayerEdit(graph, *calls)
    groups, rows, _ = edit.map.matrix_shape
    edit.shift_outputs(torch.zeros(groups * rows, dtype=torch.float64, device=edit.map.device))
    edit.store()


def _select(graph: Graph, source: fx.Node, axis: int, places: Sequence[int]) -> str:
    """Add an operation that selects places of a value along a dimension; returns its name."""
    index = graph.add_constant(f"{source.name}_left", torch.tensor(places, device=source.meta["val"].device))
    with graph.operations.inserting_after(source):
        node = graph.operations.call_function(aten.index_select.default, (source, axis, index))
    node.meta["val"] = infer(graph, node)
    return str(node.name)
