"""Channels that go together: a network with channels cut computes what it computes with them masked."""

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_fold_batchnorm import Recorder
from torch import fx, nn

import roundwise as rw
from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.edit import set_constant
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.cut_channels import cut_channels
from roundwise.graph.transforms.normalize import normalize

aten = torch.ops.aten
examples = settings(max_examples=150, deadline=None, derandomize=True)
SIZE = 4  # of the images


class Dice:
    """Random choices from a seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, end):
        return int(torch.randint(end, (), generator=self.generator))

    def one_of(self, options):
        return options[self.below(len(options))]

    def some_of(self, options, count):
        return [options[place] for place in torch.randperm(len(options), generator=self.generator)[:count].tolist()]


class Builder:
    """A random network in the operations of a captured graph: every value is [3, channels, 4, 4]."""

    def __init__(self, seed):
        self.dice = Dice(seed)
        self.root, self.graph = nn.Module(), fx.Graph()
        self.values = [(self.graph.placeholder("x"), 3)]
        self.unread = set()

    def constant(self, *shape, positive=False):
        value = torch.randn(*shape, generator=self.dice.generator, dtype=torch.float64)
        return self.tensor(value.abs() + 0.5 if positive else value)

    def tensor(self, value):
        name = f"constant_{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def pick(self, channels=None):
        """A value, of some number of channels."""
        fitting = [value for value in self.values if channels in (None, value[1])]
        value = self.dice.one_of(fitting)
        self.unread.discard(value[0])
        return value

    def give(self, operation, arguments, channels):
        node = self.graph.call_function(operation, arguments)
        self.values.append((node, channels))
        self.unread.add(node)

    def convolution(self):
        source, channels = self.pick()
        groups = self.dice.one_of([g for g in (1, 1, 2, channels) if channels % g == 0])
        out = groups * self.dice.one_of([1, 2, 3])
        kernel = self.dice.one_of([1, 3])
        bias = self.constant(out) if self.dice.below(2) else None
        if self.dice.below(3) == 0:
            weight = self.constant(channels, out // groups, kernel, kernel)
            rest = ([1, 1], [kernel // 2] * 2, [0, 0], groups, [1, 1])
            self.give(aten.conv_transpose2d.input, (source, weight, bias, *rest), out)
        else:
            weight = self.constant(out, channels // groups, kernel, kernel)
            self.give(aten.conv2d.default, (source, weight, bias, [1, 1], [kernel // 2] * 2, [1, 1], groups), out)

    def function(self):
        source, channels = self.pick()
        kind = self.dice.one_of(["sigmoid", "prelu", "norm", "pool", "constant"])
        if kind == "sigmoid":
            self.give(aten.sigmoid.default, (source,), channels)
        elif kind == "prelu":
            self.give(aten.prelu.default, (source, self.constant(self.dice.one_of([1, channels]))), channels)
        elif kind == "pool":
            self.give(aten.avg_pool2d.default, (source, [3, 3], [1, 1], [1, 1]), channels)
        elif kind == "constant":
            self.give(
                self.dice.one_of([aten.add.Tensor, aten.mul.Tensor]),
                (source, self.constant(channels, 1, 1)),
                channels,
            )
        else:
            parameters = [self.constant(channels) for _ in range(3)]
            rest = (self.constant(channels, positive=True), False, 0.1, 1e-5, False)
            self.give(aten.batch_norm.default, (source, *parameters, *rest), channels)

    def sum(self):
        source, channels = self.pick()
        self.give(self.dice.one_of([aten.add.Tensor, aten.mul.Tensor]), (source, self.pick(channels)[0]), channels)

    def join(self):
        some = [self.pick() for _ in range(self.dice.one_of([2, 3]))]
        if sum(channels for _, channels in some) <= 16:
            self.give(aten.cat.default, ([node for node, _ in some], 1), sum(channels for _, channels in some))

    def split(self):
        source, channels = self.pick()
        if channels > 1:
            sizes = [channels // 2, channels - channels // 2]
            parts = self.graph.call_function(aten.split_with_sizes.default, (source, sizes, 1))
            for number, size in enumerate(sizes):
                self.give(operator.getitem, (parts, number), size)

    def choose(self):
        source, channels = self.pick()
        if self.dice.below(2):
            start = self.dice.below(channels)
            end = start + 1 + self.dice.below(channels - start)
            self.give(aten.slice.Tensor, (source, 1, start, end), end - start)
        else:
            index = [self.dice.below(channels) for _ in range(1 + self.dice.below(channels + 1))]
            self.give(aten.index_select.default, (source, 1, self.tensor(torch.tensor(index))), len(index))

    def pad(self):
        source, channels = self.pick()
        before, after = self.dice.one_of([(1, 0), (0, 2), (1, 1)])
        self.give(aten.constant_pad_nd.default, (source, [0, 0, 0, 0, before, after]), channels + before + after)

    def shuffle(self):
        source, channels = self.pick()
        if channels % 2 == 0:
            split = self.graph.call_function(aten.view.default, (source, [-1, 2, channels // 2, SIZE, SIZE]))
            swapped = self.graph.call_function(aten.transpose.int, (split, 1, 2))
            self.give(aten.reshape.default, (swapped, [3, channels, SIZE, SIZE]), channels)

    def squeeze_and_excite(self):
        source, channels = self.pick()
        call = self.graph.call_function
        mean = call(aten.mean.dim, (source, [2, 3]))
        inner = call(aten.relu.default, (call(aten.linear.default, (mean, self.constant(2, channels))),))
        scale = call(aten.sigmoid.default, (call(aten.linear.default, (inner, self.constant(channels, 2))),))
        self.give(aten.mul.Tensor, (source, call(aten.view.default, (scale, [-1, channels, 1, 1]))), channels)

    def build(self, steps):
        kinds = [self.convolution] * 4 + [self.function] * 3 + [self.sum] * 2
        kinds += [self.join, self.split, self.choose, self.pad, self.shuffle, self.squeeze_and_excite]
        self.convolution()
        for _ in range(steps):
            self.dice.one_of(kinds)()
        left = [value for value in self.values if value[0] in self.unread] or self.values[-1:]
        channels = sum(count for _, count in left)
        joined = self.graph.call_function(aten.cat.default, ([node for node, _ in left], 1))
        flat = self.graph.call_function(aten.view.default, (joined, [-1, channels * SIZE * SIZE]))
        head = self.constant(2, channels * SIZE * SIZE)
        self.graph.output(self.graph.call_function(aten.linear.default, (flat, head)))
        module, inputs = fx.GraphModule(self.root, self.graph), torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
        Recorder(module).run(inputs)
        graph = Graph.of_module(module)
        graph.prune()
        return graph, inputs


def masked(graph, removed):
    """The graph with the columns at zero that read some channels."""
    graph = graph.copy()
    for group, channels in removed.items():
        for member in group.members:
            if member.role == "columns":
                places = torch.tensor([place for channel in channels for place in member.places[channel]], dtype=int)
                weight = graph.constants[member.constant].index_fill(member.dim, places, 0.0)
                set_constant(graph, member.constant, weight)
    return graph


def some_channels(groups, seed, share=0.4):
    """A share of the channels of every group that can lose some, of each at least one and not all."""
    dice = Dice(seed)
    free = [group for group in groups if not group.reason and group.channels > 1]
    return {group: dice.some_of(range(group.channels), max(1, int(share * group.channels))) for group in free}


@pytest.mark.slow
@examples
@given(st.integers(0, 10**6))
def test_a_random_network_with_channels_cut_computes_what_it_does_with_them_masked(seed):
    graph, inputs = Builder(seed).build(steps=seed % 12)
    before = {name: value.clone() for name, value in graph.constants.items()}
    cut = graph.copy()
    removed = some_channels(find_channel_groups(cut), seed)
    expected = masked(cut, removed)
    try:
        cut_channels(cut, removed)
    except rw.ModelError as error:  # a slice or a layer would have lost all that it has
        assume("would lose all" not in str(error))
        raise
    torch.testing.assert_close(cut.module()(inputs), expected.module()(inputs), rtol=1e-9, atol=1e-9)
    numbers = [sum(value.numel() for value in one.constants.values()) for one in (cut, expected)]
    assert (numbers[0] < numbers[1]) == bool(removed)
    assert all(torch.equal(graph.constants[name], value) for name, value in before.items())


@examples
@given(st.integers(0, 10**6))
def test_every_row_of_every_layer_is_in_one_group(seed):
    graph, _ = Builder(seed).build(steps=seed % 12)
    rows = {}
    for group in find_channel_groups(graph):
        for member in group.members:
            if member.role == "rows":
                places = rows.setdefault((member.constant, member.dim), [])
                places += [place for channel in member.places for place in channel]
    assert all(sorted(places) == list(range(graph.constants[name].shape[dim])) for (name, dim), places in rows.items())
    layers = [node for node in graph.operations.nodes if node.target in (aten.conv2d.default, aten.linear.default)]
    assert {str(node.args[1].target) for node in layers} <= {name for name, _ in rows}


def captured(model, *shape, form=normalize):
    torch.manual_seed(0)
    return form(TorchExport().graph(model.eval(), (torch.randn(4, *shape),), {}))


def check(model, *shape, form=normalize):
    """Cut a captured network, whose batch stays dynamic; returns the groups and the graph afterwards."""
    graph = captured(model, *shape, form=form)
    groups = find_channel_groups(graph)
    removed = some_channels(groups, 0)
    expected = masked(graph, removed)
    names = {node: node.name for node in graph.operations.nodes}
    cut_channels(graph, removed)
    for batch in (1, 5):
        inputs = torch.randn(batch, *shape)
        torch.testing.assert_close(graph.module()(inputs), expected.module()(inputs), rtol=1e-4, atol=1e-5)
    shapes = {names.get(node): node.meta["val"].shape for node in graph.operations.nodes if node.op == "placeholder"}
    assert all(isinstance(shape[0], torch.SymInt) for shape in shapes.values())
    for node in graph.operations.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor) and node.op == "call_function":
            assert isinstance(node.meta["val"].shape[0], torch.SymInt) or node.meta["val"].dim() == 5
    return groups, graph


class Attention(nn.Module):
    """Four heads, from one packed projection or from three."""

    def __init__(self, packed, fused):
        super().__init__()
        self.packed, self.fused = packed, fused
        self.inputs = nn.ModuleList(nn.Linear(24, 72 if packed else 24) for _ in range(1 if packed else 3))
        self.output = nn.Linear(24, 24)

    def forward(self, x):
        batch, places, width = x.shape
        if self.packed:
            q, k, v = self.inputs[0](x).reshape(batch, places, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (one(x).view(-1, places, 4, 6).transpose(1, 2) for one in self.inputs)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 6**-0.5).softmax(-1) @ v
        return self.output(y.transpose(1, 2).reshape(batch, places, width))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_attention_are_channels_of_all_three_projections(packed, fused):
    groups, _ = check(Attention(packed, fused), 7, 24)
    (heads,) = [group for group in groups if not group.reason]
    assert heads.channels == 4
    assert set(heads.rows) == {f"inputs.{number}.weight" for number in range(1 if packed else 3)}
    assert heads.columns == ("output.weight",)
    columns = next(member for member in heads.members if member.role == "columns")
    assert columns.places[1] == tuple(range(6, 12))


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2."""

    def __init__(self):
        super().__init__()
        self.stem, self.point, self.depthwise = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        )
        self.last, self.head = nn.Conv2d(16, 6, 1, groups=2), nn.Linear(6, 2)

    def forward(self, x):
        kept, worked = self.stem(x).relu().chunk(2, 1)
        x = torch.cat([kept, self.depthwise(self.point(worked).relu())], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.last(x).mean((2, 3)))


def test_shuffled_halves_of_channels_lose_the_same_ones():
    groups, graph = check(Shuffled(), 3, 5, 5)
    found = {group.rows: group.channels for group in groups if not group.reason}
    assert found[("stem.weight", "point.weight", "depthwise.weight")] == 4  # pairs of pairs, for two groups of `last`
    assert found[("stem.weight",)] == 8
    assert graph.constants["depthwise.weight"].shape[0] < 8


class Padded(nn.Module):
    """A shortcut with fewer channels, padded, as in the ResNets for CIFAR; and a branch that scales channels."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 8, 3, 1, 1)
        self.norm, self.slopes = nn.BatchNorm2d(4), nn.PReLU(8)
        self.squeeze, self.excite, self.head = nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8 * 4, 2)

    def forward(self, x):
        x = self.norm(self.small(x))
        x = self.slopes(self.large(x) + F.pad(x, (0, 0, 0, 0, 2, 2)))
        scale = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        x = F.adaptive_avg_pool2d(x * scale.view(-1, 8, 1, 1), 2)
        return self.head(x.view(-1, 32))


@pytest.mark.parametrize("form", [normalize, rewrite], ids=["with batch-norm", "folded"])
def test_padded_shortcuts_squeezed_and_flattened_channels_are_followed(form):
    groups, graph = check(Padded(), 3, 6, 6, form=form)
    found = {group.rows: group for group in groups}
    both, padding = found[("small.weight", "large.weight", "excite.weight")], found[("large.weight", "excite.weight")]
    assert (both.channels, padding.channels) == (4, 4)
    columns = next(member for member in both.members if member.constant == "head.weight")
    assert columns.places[0] == (8, 9, 10, 11)  # the third of eight channels, each a column for four pixels
    names = {member.constant for member in both.members}
    assert {"slopes.weight", "large.bias", "squeeze.weight"} <= names
    assert ("norm.running_var" in names) == (form is normalize)
    sizes = [node.args[1] for node in graph.operations.nodes if node.target is aten.reshape.default]
    kept = graph.constants["large.weight"].shape[0]
    assert sizes == [[-1, kept, 1, 1], [-1, 4 * kept]]


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (nn.Softmax(1), "softmax"),
        (nn.LayerNorm([8, 6, 6]), "layer_norm"),
        (nn.GroupNorm(2, 8), "group_norm"),
        (nn.Linear(6, 6), "another dimension"),
        (nn.Identity(), "returns"),
        (nn.Flatten(0, 1), "no fixed size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_channels_that_cannot_go_say_why(last, says):
    graph = captured(nn.Sequential(nn.Conv2d(3, 8, 1), last), 3, 6, 6)
    group = find_channel_groups(graph)[0]
    assert says in group.reason
    with pytest.raises(rw.ModelError, match=r"0\.weight.*cannot be removed"):
        cut_channels(graph, {group: [0]})
    cut_channels(graph, {group: []})
    assert graph.constants["0.weight"].shape[0] == 8


def test_channels_beside_the_networks_input_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.b(torch.cat([x, self.a(x)], 1) + torch.cat([x, x], 1)).mean((2, 3))

    reasons = {group.rows[0]: group.reason for group in find_channel_groups(captured(Net(), 3, 4, 4))}
    assert "'x'" in reasons["a.weight"]


def test_there_must_be_such_a_channel_and_one_must_be_left():
    graph = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), 3, 4, 4)
    group = find_channel_groups(graph)[0]
    with pytest.raises(rw.ModelError, match="0 to 3"):
        cut_channels(graph, {group: [4]})
    with pytest.raises(rw.ModelError, match="all of its 4 channels"):
        cut_channels(graph, {group: range(4)})
    assert graph.constants["0.weight"].shape[0] == 4


def test_moments_of_layers_that_lost_channels_are_gone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    graph = captured(nn.Sequential(*model, nn.Flatten(), nn.Linear(64, 2)), 3, 4, 4, form=rewrite)
    assert set(graph.moments) == {"0.weight", "3.weight"}
    group = next(group for group in find_channel_groups(graph) if group.rows == ("3.weight",))
    cut_channels(graph, {group: [1]})
    assert set(graph.moments) == {"0.weight"}
