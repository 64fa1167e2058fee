"""Costs by counts of channels are those of the network that is really cut; choices keep to the budget."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roundwise.engine.candidates import Candidate, Cost, Option
from roundwise.engine.compression_costs import CompressionCosts, Sizes
from roundwise.engine.latencies import LayerSeconds
from roundwise.engine.prunable import PrunableGroup, PruningOption
from roundwise.engine.rewriting import folded
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.costs import costs_of, costs_of_chain
from roundwise.graph.transforms.cut_channels import cut_channels
from roundwise.graph.transforms.factorize import factorize
from roundwise.methods.compression import ChannelPruning, OutputError, SameRatio, WeightSVD


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


def layers(graph, *, chains):
    """All layers; with chains of rank 1 and 2 for the layers with one group, if these are wanted."""
    method, found = WeightSVD(), []
    for layer in find_layers(graph):
        ranks = (1, 2) if chains and not method.reason(layer.map) else ()
        parts = [costs_of_chain(graph, layer.input, method.parts(layer.map, (rank,))) for rank in ranks]
        offers = [
            Option(method, (rank,), tuple(Cost(*one) for one in cost), 1 / rank)
            for rank, cost in zip(ranks, parts, strict=True)
        ]
        found.append(Candidate(layer, torch.zeros(0, 0), torch.zeros(0, 0), tuple(offers)))
    return found


def timed(graph, candidate):
    """A layer that takes 100 units and one for each multiplication; so do its chains."""
    macs = costs_of(graph).of(candidate.layer.calls)[0]
    offers = [
        dataclasses.replace(
            one, parts=tuple(dataclasses.replace(part, latency=100 / len(one.parts) + part.macs) for part in one.parts)
        )
        for one in candidate.options
    ]
    return dataclasses.replace(candidate, options=tuple(offers), seconds=LayerSeconds(100.0, float(macs)))


def counts_of(groups, numbers):
    return [
        len(group.options[number - 1].kept) if number else group.group.channels
        for group, number in zip(groups, numbers, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chains", [False, True])
def test_costs_are_those_of_the_network_that_is_cut(graph, seed, chains):
    generator = torch.Generator().manual_seed(seed)
    groups, found = options(graph), layers(graph, chains=chains)
    assert sum(not group.group.reason for group in groups) == 4
    sizes = Sizes(
        *(
            [int(torch.randint(len(one.options) + 1, (), generator=generator)) for one in several]
            for several in (groups, found)
        )
    )
    cut = graph.copy()
    fresh = find_channel_groups(cut)
    cut_channels(
        cut,
        {
            group: range(count, group.channels)
            for group, count in zip(fresh, counts_of(groups, sizes.groups), strict=True)
            if not group.reason
        },
    )
    parts = {}
    for one, number in zip(found, sizes.layers, strict=True):
        if number:
            (layer,) = (layer for layer in find_layers(cut) if layer.name == one.layer.name)
            first, last = WeightSVD().parts(layer.map, one.options[number - 1].size)
            last = dataclasses.replace(last, bias=torch.zeros(last.weight_shape[0]))
            parts[layer.name] = [(part, torch.zeros(part.weight_shape)) for part in (first, last)]
    chain = factorize(cut, parts)
    real = costs_of(chain.graph)
    assert bool(parts) == chains
    assert CompressionCosts(graph, groups, found, "macs").total(sizes) == pytest.approx(real.macs)
    assert CompressionCosts(graph, groups, found, "parameters").total(sizes) == pytest.approx(real.parameters)
    by_layer = CompressionCosts(graph, groups, found, "macs").of_layers(sizes)
    names = {layer.name: [layer] for layer in find_layers(chain.graph)} | {n: list(c) for n, c in chain.chains.items()}
    for name, cost in by_layer.items():
        calls = [call for layer in names[name] for call in layer.calls]
        assert (cost.macs, cost.parameters) == real.of(calls)


@pytest.mark.parametrize("unit", ["macs", "parameters", "latency"])
@pytest.mark.parametrize("choice", [OutputError(), SameRatio()], ids=repr)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("chains", [False, True])
def test_a_choice_is_within_the_budget_and_uses_most_of_it(graph, unit, choice, share, chains):
    found = layers(graph, chains=chains)
    if unit == "latency":
        found = [timed(graph, one) for one in found]
    costs = CompressionCosts(graph, options(graph), found, unit)
    budget = share * costs.total(costs.nothing)
    assert 0.6 * budget < costs.total(costs.choose(choice, budget)) <= budget * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_seconds_are_those_of_the_layers_that_are_left(graph, seed):
    generator, found = torch.Generator().manual_seed(seed), layers(graph, chains=False)
    timed = [dataclasses.replace(one, seconds=LayerSeconds(0.25, float(len(one.layer.name)))) for one in found]
    groups = options(graph)
    numbers = [int(torch.randint(len(one.options) + 1, (), generator=generator)) for one in groups]
    sizes = Sizes(numbers, [0] * len(found))
    costs, macs = (CompressionCosts(graph, groups, timed, unit) for unit in ("latency", "macs"))
    before, after = macs.of_layers(macs.nothing), macs.of_layers(sizes)
    left = {name: after[name].macs / before[name].macs for name in before}  # both fall with rows and columns
    assert costs.total(sizes) == pytest.approx(sum(0.25 + len(name) * share for name, share in left.items()))
    assert sum(one.latency for one in costs.of_layers(sizes).values()) == pytest.approx(costs.total(sizes))


def test_there_is_no_choice_below_the_smallest_sizes(graph):
    groups = options(graph, lambda channels: [channels - 1])
    costs = CompressionCosts(graph, groups, layers(graph, chains=True), "macs")
    assert costs.choose(OutputError(), costs.least()) is not None
    assert costs.choose(OutputError(), 0.999 * costs.least()) is None


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_more_kinds_of_options_never_raise_the_predicted_error(graph, share):
    groups, found = options(graph), layers(graph, chains=True)

    def error(groups, found):
        costs = CompressionCosts(graph, groups, found, "macs")
        sizes = costs.choose(OutputError(), share * costs.total(costs.nothing))
        return sum(sum(g.options[n - 1].errors) for g, n in zip(groups, sizes.groups, strict=True) if n) + sum(
            one.options[n - 1].error for one, n in zip(found, sizes.layers, strict=True) if n
        )

    assert error(groups, found) <= 1.001 * error(groups, layers(graph, chains=False))
