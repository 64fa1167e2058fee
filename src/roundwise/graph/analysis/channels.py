"""Which channels of which layers go together: what must be removed with a channel, and what keeps it from going.

Removing an output channel of a layer removes a row of its weight, a number of its bias, the batch-norm's four numbers,
the rows of every layer whose output is added to this one, and the columns of all layers that read any of it. All these
are one *channel* here, and channels of the same rows are a *group*:

    x ── conv A ── bn ──(+)── relu ── conv C        rows of A and B, parameters of the batch-norm, columns of C
    x ── conv B ─────────┘                          one group

`find_channel_groups` follows channels through additions, concatenations, splits, padding, grouped and depthwise
convolutions, reshapes, pooling and functions (`following.py` has the rules). A channel that reaches the network's
output, or an operation that mixes channels or that is not known, cannot be removed; its group says why.

*Masked equals cut.* A channel acts on the network through the columns that read it, and through nothing else. So the
network without it computes what the network computes with these columns at zero.

References:
    Fang et al., CVPR 2023, arXiv:2301.12900: groups of parameters that are removed together (Torch-Pruning).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from torch import fx

from roundwise.graph.analysis.following import Follower
from roundwise.graph.analysis.labels import Role
from roundwise.graph.graph import Graph

Places = tuple[tuple[int, ...], ...]
"""For each channel of a group, its places along a dimension: none, one, or several."""


@final
@dataclass(frozen=True)
class Member:
    """A dimension of a constant along which a group's channels lie.

    Attributes:
        constant: its name.
        dim: the dimension.
        role: "rows" give a layer's output channels, "columns" read a layer's input channels, and a "parameter" has a
            number for each channel, as a bias, a batch-norm and a `prelu` have.
        places: where each channel is along that dimension; a flattened image has several columns of a channel.
    """

    constant: str
    dim: int
    role: Role
    places: Places


@final
@dataclass(frozen=True, eq=False)
class Value:
    """A dimension of a value that an operation gives, along which a group's channels lie."""

    node: fx.Node
    axis: int
    places: Places


@final
@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that the same layers give; each can be removed by itself, but only from all members at once.

    Attributes:
        channels: how many there are.
        members: the constants that they are in, rows first.
        values: the values that they are in, in the order of the graph.
        reason: why they cannot be removed, in words; empty if they can.
    """

    channels: int
    members: tuple[Member, ...]
    values: tuple[Value, ...]
    reason: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the weights whose rows these channels are."""
        return tuple(member.constant for member in self.members if member.role == "rows")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the weights whose columns read these channels."""
        return tuple(member.constant for member in self.members if member.role == "columns")


def find_channel_groups(graph: Graph) -> list[ChannelGroup]:
    """The groups of a graph's channels, in the order of the layers that give them.

    Channels of one layer are in several groups where only some of them are added to another layer's, or can be removed.

    Args:
        graph: in normal form; batch-norms may be folded or not.
    """
    follower = Follower(graph)
    labels = follower.labels
    slots = {slot: [labels.root(label) for label in along] for slot, along in follower.slots.items()}
    givers: dict[int, list[tuple[str, int]]] = defaultdict(list)  # channel → where it is a row
    for slot, along in slots.items():
        for channel in dict.fromkeys(along) if follower.roles[slot] == "rows" else ():
            givers[channel].append(slot)
    groups: dict[tuple[tuple[tuple[str, int], ...], str], list[int]] = defaultdict(list)
    for channel, rows in givers.items():
        groups[tuple(rows), labels.reason(channel)].append(channel)
    members = {slot: _by_channel(along) for slot, along in slots.items()}
    values = {
        node: (track.axis, _by_channel([labels.root(label) for label in track.labels]))
        for node, track in follower.tracks.items()
    }
    order = {"rows": 0, "columns": 1, "parameter": 2}
    return [
        ChannelGroup(
            len(channels),
            tuple(
                Member(name, dim, follower.roles[name, dim], _places(channels, found))
                for (name, dim), found in sorted(members.items(), key=lambda item: order[follower.roles[item[0]]])
                if found.keys() & channels
            ),
            tuple(
                Value(node, axis, _places(channels, found))
                for node, (axis, found) in values.items()
                if found.keys() & channels
            ),
            reason,
        )
        for (_, reason), channels in groups.items()
    ]


def _by_channel(along: list[int]) -> dict[int, tuple[int, ...]]:
    """The places of each channel along a dimension."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, channel in enumerate(along):
        places[channel].append(place)
    return {channel: tuple(found) for channel, found in places.items()}


def _places(channels: Collection[int], found: dict[int, tuple[int, ...]]) -> Places:
    return tuple(found.get(channel, ()) for channel in channels)
