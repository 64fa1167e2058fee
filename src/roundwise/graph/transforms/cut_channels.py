"""Remove channels from a graph: rows, columns and parameters go, and everything downstream becomes smaller.

A group of channels (`graph/analysis/channels.py`) says where its channels are in constants and in values. From all
constants their places are taken out. Then the numbers that operations hold about these dimensions are changed: the
number of groups of a grouped convolution, the sizes of a split, the ends of a slice, the amounts of a padding, the
indices of a selection, and the sizes of a reshape, which `graph/shapes.py` finds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.errors import ModelError
from roundwise.graph.analysis.axes import padding_along
from roundwise.graph.analysis.channels import ChannelGroup
from roundwise.graph.analysis.layers import channel_axis, linear_map
from roundwise.graph.edit import select_along
from roundwise.graph.graph import Graph, bind, set_argument
from roundwise.graph.operators import PADS, SPLITS
from roundwise.graph.shapes import refresh

aten = torch.ops.aten

_Removed = Mapping[fx.Node, tuple[int, frozenset[int]]]  # the dimension of a value, and which places of it go
_NOTHING: tuple[int, frozenset[int]] = (0, frozenset())


def cut_channels(graph: Graph, removed: Mapping[ChannelGroup, Collection[int]]) -> None:
    """Remove channels of some groups; the graph computes what it computed with the columns that read them at zero.

    The groups do not fit the graph afterwards; find them anew before the next cut.

    Args:
        graph: is changed. The groups are its own: a copy has others.
        removed: which channels of each group go, counted from 0.

    Raises:
        ModelError: a channel cannot be removed, there is no such channel, or none would be left.
    """
    constants: dict[tuple[str, int], set[int]] = defaultdict(set)
    values: dict[fx.Node, tuple[int, frozenset[int]]] = {}
    for group, channels in removed.items():
        _check(group, channels)
        for member in group.members:
            constants[member.constant, member.dim].update(place for c in channels for place in member.places[c])
        for value in group.values:
            gone = frozenset(place for c in channels for place in value.places[c])
            values[value.node] = value.axis, gone | values.get(value.node, (value.axis, frozenset()))[1]
    sizes = [(name, graph.constants[name].shape[dim], len(places)) for (name, dim), places in constants.items()]
    sizes += [(node.name, int(node.meta["val"].shape[axis]), len(gone)) for node, (axis, gone) in values.items()]
    for name, size, lost in sizes:
        if size == lost:
            raise ModelError(f"'{name}' would lose all of its {size} channels. Leave it one at least.")
    _adapt_groups(graph, values)
    for node in list(graph.operations.nodes):
        _adapt(graph, node, values)
    for (name, dim), places in constants.items():
        select_along(graph, name, dim, torch.tensor(_kept(graph.constants[name].shape[dim], places)))
    graph.prune()
    refresh(graph, {node: axis for node, (axis, _) in values.items()})


def _check(group: ChannelGroup, channels: Collection[int]) -> None:
    name, last = group.rows[0], group.channels - 1
    if group.reason and channels:
        raise ModelError(f"the channels of '{name}' cannot be removed: {group.reason}. Leave this group as it is.")
    wrong = [channel for channel in channels if not 0 <= channel <= last]
    if wrong:
        raise ModelError(f"the group of '{name}' has the channels 0 to {last}, and no {wrong}. Choose among these.")


def _kept(size: int, gone: Collection[int]) -> list[int]:
    return [place for place in range(size) if place not in gone]


def _adapt_groups(graph: Graph, values: _Removed) -> None:
    """A depthwise convolution has as many groups as it reads channels; other grouped ones keep theirs."""
    for node, (axis, gone) in values.items():
        for user in list(node.users) if gone else ():
            layer = linear_map(graph, user)
            if layer is not None and user.args[0] is node and layer.groups > 1 and axis == channel_axis(node, layer):
                size = int(node.meta["val"].shape[axis])
                if layer.groups == size:
                    set_argument(user, "groups", size - len(gone))


def _adapt(graph: Graph, node: fx.Node, values: _Removed) -> None:
    """Change the numbers that a move of data holds about the channels that it reads."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return
    axis, gone = values.get(source, _NOTHING)
    if not gone and not values.get(node, _NOTHING)[1]:
        return
    arguments, value = bind(node), source.meta["val"]
    dim = arguments.get("dim")
    along = isinstance(dim, int) and isinstance(value, Tensor) and dim % value.dim() == axis
    if node.target in SPLITS and along:
        _adapt_split(node, axis, gone)
    elif node.target is aten.slice.Tensor and along:
        size = int(source.meta["val"].shape[axis])
        start, end, _ = slice(arguments["start"], arguments["end"]).indices(size)
        set_argument(node, "start", len(_kept(start, gone)))
        set_argument(node, "end", len(_kept(end, gone)))
    elif node.target is aten.index_select.default and along:
        _adapt_selection(graph, node, int(source.meta["val"].shape[axis]), gone)
    elif node.target in PADS:
        _adapt_padding(node, values)


def _adapt_split(node: fx.Node, axis: int, gone: Collection[int]) -> None:
    """Parts lose their own channels, and are no longer equal: the operation becomes one with a size for each."""
    sizes, start = [], 0
    for part in node.meta["val"]:
        end = start + int(part.shape[axis])
        sizes.append(len([place for place in range(start, end) if place not in gone]))
        start = end
    node.target, node.args, node.kwargs = aten.split_with_sizes.default, (node.args[0], sizes, axis), {}


def _adapt_selection(graph: Graph, node: fx.Node, size: int, gone: Collection[int]) -> None:
    """The indices of the channels that are left, which have moved up."""
    argument = bind(node)["index"]
    index = graph.constant(argument)
    assert index is not None
    new = {old: place for place, old in enumerate(_kept(size, gone))}
    left = [new[old] for old in index.tolist() if old in new]
    set_argument(node, "index", graph.add_constant(str(argument.target), torch.tensor(left).to(index)))


def _adapt_padding(node: fx.Node, values: _Removed) -> None:
    """What a padding added before and after the channels, less what is gone of it."""
    axis, gone = values[node]
    size, last = int(node.meta["val"].shape[axis]), int(node.meta["val"].dim()) - 1 - axis
    before, after = padding_along(node, axis)
    if before == after == 0:
        return
    pad: list[Any] = list(bind(node)["pad"])
    pad[2 * last] = len(_kept(before, gone))
    pad[2 * last + 1] = after - sum(place >= size - after for place in gone)
    set_argument(node, "pad", pad)
