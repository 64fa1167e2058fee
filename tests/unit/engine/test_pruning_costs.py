"""Costs by counts of channels are those of the network that is really cut; choices keep to the budget."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roundwise.engine.prunable import PrunableGroup, PruningOption
from roundwise.engine.pruning_costs import ChannelCosts
from roundwise.engine.rewriting import folded
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.costs import costs_of
from roundwise.graph.transforms.cut_channels import cut_channels
from roundwise.methods.compression import ChannelPruning, OutputError, SameRatio


class Net(nn.Module):
    """A shortcut, a depthwise, a grouped and a transposed convolution, a concatenation and a flattened image."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1, groups=2)
        self.up, self.side = nn.ConvTranspose2d(12, 6, 2, 2), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(10 * 64, 5)

    def forward(self, x):
        y = F.relu(self.stem(x))
        y = F.relu(self.grouped(self.depthwise(y + self.branch(y))))
        y = torch.cat([self.up(y), self.side(F.interpolate(x, scale_factor=2))], 1)
        return self.head(y.relu().flatten(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return folded(TorchExport().graph(Net().eval(), (torch.randn(4, 3, 4, 4),), {}))


def options(graph, counts_of=lambda channels: range(1, channels)):
    """All counts for every group; the first channels stay, and the error is the square of the number that goes."""
    return [
        PrunableGroup(
            number,
            group,
            (),
            tuple(
                PruningOption(ChannelPruning(), torch.arange(count), ((group.channels - count) ** 2 / 100,))
                for count in (() if group.reason else counts_of(group.channels))
            ),
            group.reason,
        )
        for number, group in enumerate(find_channel_groups(graph))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_costs_are_those_of_the_network_that_is_cut(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = options(graph)
    assert sum(not group.group.reason for group in groups) == 4
    counts = [
        group.group.channels
        if group.group.reason
        else int(torch.randint(1, group.group.channels + 1, (), generator=generator))
        for group in groups
    ]
    cut = graph.copy()
    fresh = find_channel_groups(cut)
    cut_channels(
        cut,
        {group: range(count, group.channels) for group, count in zip(fresh, counts, strict=True) if not group.reason},
    )
    real = costs_of(cut)
    assert ChannelCosts(graph, groups, "macs").total(counts) == pytest.approx(real.macs)
    assert ChannelCosts(graph, groups, "parameters").total(counts) == pytest.approx(real.parameters)
    by_layer = ChannelCosts(graph, groups, "macs").of_layers(counts)
    for layer in find_layers(cut):
        assert (by_layer[layer.name].macs, by_layer[layer.name].parameters) == real.of(layer.calls)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
@pytest.mark.parametrize("choice", [OutputError(), SameRatio()], ids=repr)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_choice_is_within_the_budget_and_uses_most_of_it(graph, unit, choice, share):
    groups = options(graph)
    costs = ChannelCosts(graph, groups, unit)
    budget = share * costs.total([group.group.channels for group in groups])
    numbers = costs.choose(choice, budget)
    counts = [
        len(group.options[number - 1].kept) if number else group.group.channels
        for group, number in zip(groups, numbers, strict=True)
    ]
    assert 0.75 * budget < costs.total(counts) <= budget


def test_there_is_no_choice_below_the_smallest_counts(graph):
    groups = options(graph, lambda channels: [channels - 1])
    costs = ChannelCosts(graph, groups, "macs")
    least = costs.total([group.group.channels - bool(group.options) for group in groups])
    assert costs.choose(OutputError(), least) is not None
    assert costs.choose(OutputError(), 0.999 * least) is None
