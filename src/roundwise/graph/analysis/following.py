"""Following channels through a graph: which rows, columns and parameters of constants belong to the same channel.

Every place along a dimension of a constant, and along the followed dimension of every value, carries a *label*. An
operation makes some labels the same:

1. A layer's output channels have the labels of its weight's rows; its input channels those of its columns. A depthwise
   or grouped convolution joins labels further: what is removed must leave all groups alike.
2. Additions, products and other functions of two values join their labels, place by place.
3. Concatenations put labels side by side; splits and slices take them apart again; padding adds new ones.
4. Reshapes repeat labels, or join those that a smaller dimension can only keep or lose together.
5. Batch-norms and other parameters for each channel have the labels of the value.
6. What mixes channels, or is not known here, *fixes* the labels of all that it reads: they stay, for a stated reason.

Each value has one followed dimension at most.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, fx

from roundwise.graph.analysis.axes import axis_after, padding_along, stays_apart
from roundwise.graph.analysis.labels import Labels, Role, Slot, Track, UnfollowedError
from roundwise.graph.analysis.layers import channel_axis, linear_map, weight_name
from roundwise.graph.graph import Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.operators import (
    ATTENTION,
    MATRIX_PRODUCTS,
    NORMALIZATIONS,
    OF_TWO,
    PADS,
    PIXEL_SHUFFLES,
    RESHAPES,
    SPLITS,
    padded_number,
)
from roundwise.graph.shapes import blocks, expression

aten = torch.ops.aten


@final
class Follower:
    """One walk over a graph; afterwards its attributes hold what was found.

    Attributes:
        labels: of all places.
        slots: the labels along the dimensions of constants.
        roles: what these dimensions are.
        tracks: the followed dimensions of values.
    """

    def __init__(self, graph: Graph) -> None:
        self.labels = Labels()
        self.slots: dict[Slot, list[int]] = {}
        self.roles: dict[Slot, Role] = {}
        self.tracks: dict[fx.Node, Track] = {}
        self._graph = graph
        self._lost: dict[fx.Node, str] = {}  # why nothing is followed there
        self._parts: dict[fx.Node, list[Track]] = {}  # of operations with several outputs
        self._fixed: dict[str, str] = {}  # constants that must stay as they are, and why
        for node in graph.operations.nodes:
            if node.op == "placeholder":
                self._lost[node] = f"they come from the network's input '{node.name}'"
            elif node.op == "output":
                self._stop(node, "the network returns them")
            elif node.op == "call_function":
                self._visit(node)
        for (name, _), labels in self.slots.items():
            if name in self._fixed:
                self.labels.fix(labels, self._fixed[name])

    def _visit(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("val"), Tensor | tuple | list):
            return  # a size
        try:
            track = self._after(node)
        except UnfollowedError as stop:
            self._stop(node, str(stop))
            return
        if isinstance(track, Track):
            self.tracks[node] = track
        else:
            self._parts[node] = track

    def _stop(self, node: fx.Node, reason: str) -> None:
        """Nothing is followed beyond an operation, and all that it reads stays."""
        self._lost[node] = reason
        for source in node.all_input_nodes:
            self._fix_operand(source, reason)

    def _fix_operand(self, source: fx.Node, reason: str) -> None:
        """Everything of an operand stays."""
        if source.op == "get_attr":
            self._fixed.setdefault(str(source.target), reason)
        for track in (self.tracks.get(source), *self._parts.get(source, ())):
            if track is not None:
                self.labels.fix(track.labels, reason)

    def _slot(self, name: str, dim: int, role: Role) -> list[int]:
        if (name, dim) not in self.slots:
            self.slots[name, dim] = self.labels.fresh(self._graph.constants[name].shape[dim])
        if role == "rows" or (name, dim) not in self.roles:
            self.roles[name, dim] = role
        return self.slots[name, dim]

    def _after(self, node: fx.Node) -> Track | list[Track]:
        """What is followed beyond an operation.

        Raises:
            UnfollowedError: nothing.
        """
        layer = linear_map(self._graph, node)
        if layer is not None:
            return self._after_layer(node, layer)
        if node.target in OF_TWO:
            return self._after_two(node)
        if node.target in MATRIX_PRODUCTS:
            return self._after_product(node)
        if node.target in ATTENTION:
            return self._after_attention(node)
        if node.target is aten.cat.default:
            return self._after_join(node)
        source = next(iter(node.all_input_nodes), None)
        if source is not None and node.target is operator.getitem and source in self._parts:
            return self._parts[source][int(node.args[1])]  # type: ignore[arg-type]
        track = self._track(source)
        assert source is not None
        if node.target is aten.batch_norm.default or node.target is aten.prelu.default:
            return self._after_parameters(node, track)
        if node.target in NORMALIZATIONS:
            raise UnfollowedError(f"'{node.name}' ({node.target}) normalizes each by all of them")
        if node.target in RESHAPES:
            return self._after_reshape(node, source, track)
        if node.target in PIXEL_SHUFFLES:
            return self._after_pixel_shuffle(node, source, track)
        moved = axis_after(node, source, track.axis)
        if node.target in SPLITS:
            return self._after_split(node, track, moved)
        if moved is not None:
            return Track(moved, track.labels)
        chosen = self._chosen(node, track)
        if chosen is None:
            raise UnfollowedError(f"'{node.name}' ({node.target}) mixes them, or is not known to keep them apart")
        return Track(track.axis, chosen)

    def _track(self, source: fx.Node | None) -> Track:
        """What is followed in an operand."""
        if source in self.tracks:
            return self.tracks[source]
        raise UnfollowedError(self._why([source]))

    def _why(self, operands: Sequence[fx.Node | None]) -> str:
        """Why nothing is followed in some operands."""
        return next((self._lost[one] for one in operands if one in self._lost), "they come from constants")

    # ------------------------------------------------------------------------------------------ layers, parameters

    def _after_layer(self, node: fx.Node, layer: LinearMap) -> Track:
        source, name = node.args[0], weight_name(node)
        assert isinstance(source, fx.Node)
        groups, rows, cols = layer.matrix_shape
        inputs = cols // math.prod(layer.kernel) if layer.dims else cols
        row_dim, column_dim = (1, 0) if layer.transposed else (0, 1)
        read = self._read_by(source, channel_axis(source, layer), groups * inputs)
        per_channel = groups > 1 and inputs == 1
        if groups > 1:  # each group must keep equally many
            if not per_channel:
                self._alike(read, groups)
            if layer.transposed:
                self.labels.join(self._slot(name, 0, "rows" if per_channel else "columns"), read)
            elif not per_channel:
                self.labels.join(self._slot(name, 1, "columns"), read[:inputs])
        else:
            self.labels.join(self._slot(name, column_dim, "columns"), read)
        if per_channel:
            out = [label for label in read for _ in range(rows)]
            if not layer.transposed:
                self.labels.join(self._slot(name, 0, "rows"), out)
        else:
            out = list(self._slot(name, row_dim, "rows"))
            if layer.transposed:
                out = out * groups
            elif groups > 1:
                self._alike(out, groups)
        bias = bind(node)["bias"]
        if bias is not None:
            self.labels.join(self._slot(str(bias.target), 0, "parameter"), out)
        return Track(channel_axis(node, layer), out)

    def _read_by(self, source: fx.Node, axis: int, channels: int) -> list[int]:
        """The labels of the channels that a layer reads; where they are not followed, new ones that stay."""
        track, reason = self.tracks.get(source), self._why([source])
        if track is not None and track.axis == axis:
            return track.labels
        if track is not None:
            reason = f"a layer reads '{source.name}' along another dimension than that of its channels"
        self._fix_operand(source, reason)
        labels = self.labels.fresh(channels)
        self.labels.fix(labels, reason)
        return labels

    def _alike(self, labels: Sequence[int], groups: int) -> None:
        """Join the labels at the same place of each group."""
        size = len(labels) // groups
        for group in range(1, groups):
            self.labels.join(labels[:size], labels[group * size : (group + 1) * size])

    def _after_parameters(self, node: fx.Node, track: Track) -> Track:
        """After a batch-norm or a `prelu`, whose channels are dimension 1."""
        names = ("weight",) if node.target is aten.prelu.default else ("weight", "bias", "running_mean", "running_var")
        arguments = bind(node)
        for name in names:
            constant = self._graph.constant(arguments[name])
            if constant is None and arguments[name] is not None:
                raise UnfollowedError(f"the {name} of '{node.name}' is computed")
            if constant is not None and constant.numel() == len(track.labels):
                if track.axis != 1:
                    raise UnfollowedError(f"'{node.name}' has parameters along another dimension than theirs")
                self.labels.join(self._slot(str(arguments[name].target), 0, "parameter"), track.labels)
        return track

    # --------------------------------------------------------------------------------------------- several operands

    def _after_two(self, node: fx.Node) -> Track:
        """After a function of two values, element by element, which may be stretched to each other's shape."""
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
        dims = int(node.meta["val"].dim())
        found = [(operand, track) for operand in operands if (track := self._wide(node, operand, dims)) is not None]
        if not found:
            raise UnfollowedError(self._why(operands))
        first, result = found[0]
        for operand in operands:
            if operand is first:
                continue
            value = operand.meta["val"]
            place = result.axis - dims + (value.dim() if isinstance(value, Tensor) else 0)
            track = self.tracks.get(operand)
            if place < 0 or expression(value.shape[place]) == 1:
                self._fix_operand(operand, f"'{node.name}' combines them with channels along another dimension")
            elif operand.op == "get_attr":
                self.labels.join(self._slot(str(operand.target), place, "parameter"), result.labels)
            elif track is not None and track.axis == place:
                self.labels.join(track.labels, result.labels)
            else:
                reason = self._lost.get(operand, f"'{node.name}' combines them with channels along another dimension")
                self._fix_operand(operand, reason)
                self.labels.fix(result.labels, reason)
        return result

    def _wide(self, node: fx.Node, operand: fx.Node, dims: int) -> Track | None:
        """What is followed in an operand, in the dimensions of the result, unless it is stretched along there."""
        track = self.tracks.get(operand)
        if track is None:
            return None
        axis = track.axis + dims - int(operand.meta["val"].dim())
        return Track(axis, track.labels) if expression(node.meta["val"].shape[axis]) == len(track.labels) else None

    def _after_product(self, node: fx.Node) -> Track:
        """After a product of matrices, of which heads of attention, rows of the first or columns of the second pass."""
        left, right = node.args[:2]
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        dims = [int(one.meta["val"].dim()) for one in (left, right)]
        tracks = [self.tracks.get(one) for one in (left, right)]
        ends = [None if track is None else track.axis - n for track, n in zip(tracks, dims, strict=True)]
        out = int(node.meta["val"].dim())
        if dims[0] == dims[1] and ends[0] is not None and ends[0] == ends[1] and ends[0] < -2:
            assert tracks[0] is not None
            assert tracks[1] is not None
            self.labels.join(tracks[0].labels, tracks[1].labels)
            return Track(out + ends[0], tracks[0].labels)
        if tracks[1] is None and ends[0] == -2 and tracks[0] is not None and right.op != "get_attr":
            return Track(out - 2, tracks[0].labels)
        if tracks[0] is None and ends[1] == -1 and tracks[1] is not None and left.op != "get_attr":
            return Track(out - 1, tracks[1].labels)
        raise UnfollowedError(
            f"'{node.name}' ({node.target}) sums over them, or multiplies them with what is not followed"
        )

    def _after_attention(self, node: fx.Node) -> Track:
        operands = [self._track(operand) for operand in node.args[:3] if isinstance(operand, fx.Node)]
        dims = int(node.meta["val"].dim())
        masked = bind(node)["attn_mask"] is not None
        if masked or len({track.axis for track in operands}) != 1 or operands[0].axis >= dims - 2:
            raise UnfollowedError(f"'{node.name}' ({node.target}) does more with them than keep heads apart")
        for track in operands[1:]:
            if len(track.labels) != len(operands[0].labels):
                raise UnfollowedError(f"'{node.name}' ({node.target}) shares some heads between others")
            self.labels.join(operands[0].labels, track.labels)
        return operands[0]

    def _after_join(self, node: fx.Node) -> Track:
        operands, dim = bind(node)["tensors"], bind(node)["dim"] % node.meta["val"].dim()
        if not any(operand in self.tracks for operand in operands):
            raise UnfollowedError(self._why(operands))
        tracks = [self.tracks.get(operand) for operand in operands]
        if any(track is not None and track.axis == dim for track in tracks):
            return Track(dim, [label for operand in operands for label in self._side_by_side(node, operand, dim)])
        first = tracks[0]
        if first is None or any(track is None or track.axis != first.axis for track in tracks):
            raise UnfollowedError(f"'{node.name}' joins them with tensors whose channels are elsewhere or not followed")
        for track in tracks[1:]:
            assert track is not None
            self.labels.join(first.labels, track.labels)
        return first

    def _side_by_side(self, node: fx.Node, operand: fx.Node, dim: int) -> list[int]:
        """The labels of one operand of a concatenation along `dim`; new ones that stay where it is not followed."""
        track, size = self.tracks.get(operand), expression(operand.meta["val"].shape[dim])
        if track is not None and track.axis == dim:
            return track.labels
        if not isinstance(size, int):
            raise UnfollowedError(f"'{node.name}' joins them with a tensor whose size is not fixed")
        reason = self._lost.get(operand, f"'{node.name}' joins them with a constant, or with channels elsewhere")
        self._fix_operand(operand, reason)
        new = self.labels.fresh(size)
        self.labels.fix(new, reason)
        return new

    # --------------------------------------------------------------------------------------- moves of one operand

    def _after_split(self, node: fx.Node, track: Track, moved: int | None) -> list[Track]:
        parts = node.meta["val"]
        if moved is not None:
            return [Track(moved, track.labels)] * len(parts)
        if node.target is aten.unbind.int:
            raise UnfollowedError(f"'{node.name}' ({node.target}) makes a tensor of each")
        found, start = [], 0
        for part in parts:
            size = int(part.shape[track.axis])
            found.append(Track(track.axis, track.labels[start : start + size]))
            start += size
        return found

    def _chosen(self, node: fx.Node, track: Track) -> list[int] | None:
        """The labels after a selection or padding along the followed dimension; None after anything else."""
        arguments = bind(node)
        if node.target is aten.slice.Tensor and arguments["step"] == 1:
            ends = arguments["start"], arguments["end"]
            return track.labels[slice(*ends)] if all(end is None or isinstance(end, int) for end in ends) else None
        if node.target is aten.index_select.default:
            index = self._graph.constant(arguments["index"])
            return None if index is None else [track.labels[place] for place in index.tolist()]
        if node.target in PADS and padded_number(node) is not None:
            before, after = padding_along(node, track.axis)
            if before < 0 or after < 0:
                return None
            return self.labels.fresh(before) + track.labels + self.labels.fresh(after)
        return None

    def _after_pixel_shuffle(self, node: fx.Node, source: fx.Node, track: Track) -> Track:
        """Channels in groups of `factor`² become one each, or the other way round."""
        axis = int(source.meta["val"].dim()) - 3
        if track.axis < axis:
            return track
        if track.axis > axis:
            raise UnfollowedError(f"'{node.name}' ({node.target}) mixes them with channels")
        if node.target is aten.pixel_shuffle.default:
            return Track(axis, self._merged(track.labels, bind(node)["upscale_factor"] ** 2))
        return Track(axis, [label for label in track.labels for _ in range(bind(node)["downscale_factor"] ** 2)])

    def _merged(self, labels: Sequence[int], count: int) -> list[int]:
        """Join so many labels in a row; returns the first of each."""
        for step in range(1, count):
            self.labels.join(labels[::count], labels[step::count])
        return list(labels[::count])

    def _after_reshape(self, node: fx.Node, source: fx.Node, track: Track) -> Track:
        before, after = source.meta["val"].shape, node.meta["val"].shape
        try:
            inputs, outputs = next(pair for pair in blocks(before, after) if track.axis in pair[0])
        except ValueError:
            raise UnfollowedError(f"'{node.name}' ({node.target}) reshapes a tensor without numbers") from None
        if not outputs or not all(isinstance(expression(before[i]), int) for i in inputs):
            raise UnfollowedError(f"'{node.name}' ({node.target}) merges them with a dimension of no fixed size")
        sizes = [int(after[i]) for i in outputs]
        inner = math.prod(int(before[i]) for i in inputs if i > track.axis)
        outer = math.prod(int(before[i]) for i in inputs if i < track.axis)
        roots = torch.tensor([self.labels.root(label) for label in track.labels])
        flat = roots.repeat_interleave(inner).repeat(outer).reshape(sizes)
        # One dimension must hold all labels; where none does by itself, labels are joined until one does.
        wide = [i for i, size in enumerate(sizes) if size > 1] or [0]
        rows = {i: flat.movedim(i, 0).reshape(sizes[i], -1) for i in wide}
        chosen = next((i for i in wide if bool((rows[i] == rows[i][:, :1]).all())), None)
        if chosen is None:
            by_size = sorted(wide, key=lambda i: -sizes[i])
            chosen = next((i for i in by_size if stays_apart(node, outputs[i])), None)
        if chosen is None:
            raise UnfollowedError(f"'{node.name}' ({node.target}) spreads them over several dimensions")
        labels = rows[chosen].tolist()
        for place in range(1, len(labels[0])):
            self.labels.join([row[0] for row in labels], [row[place] for row in labels])
        return Track(outputs[chosen], [row[0] for row in labels])
