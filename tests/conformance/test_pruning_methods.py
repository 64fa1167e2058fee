"""Every method of the table that removes channels: its settings, and its answers."""

import pytest
import torch

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Pruning, PruningProblem
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.numerics.channel_selection import OTHERS, Reader
from roundwise.numerics.regression import Regression
from roundwise.testing import SETTINGS_CHECKS

METHODS = {name: kind for name, kind in COMPRESSION_METHODS.items() if issubclass(kind, Pruning)}
METHOD = pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
OWNERS = [[0, 1, 2, 3, 4, 5], [5, 5, 4, 4, OTHERS, OTHERS, 3, 3, 2, 2, 1, 1, 0, 0]]
COUNTS = [1, 2, 3, 5]


def problem(seed, *, silent=(), white=False, dead=False):
    """Six channels that two layers read, one with a column for each and one with two; some channels silent."""
    generator, readers = torch.Generator().manual_seed(seed), []
    for owner in map(torch.tensor, OWNERS):
        weight = torch.randn(3, len(owner), generator=generator).double()
        root = torch.randn(len(owner), 2 * len(owner), generator=generator).double()
        mute = torch.isin(owner, torch.tensor(silent, dtype=torch.int64))
        weight[:, mute] = 0
        if dead:
            root[mute] = 0
        second = root @ root.mT
        cross = weight @ second
        energy = (weight * cross).sum(1)
        means = torch.zeros(len(owner)).double(), torch.zeros(3).double()
        regression = Regression(second, cross, energy, *means, 1000)
        regression = Regression.white(weight, torch.zeros(3)) if white else regression
        readers.append(Reader(weight, regression, torch.eye(3).double(), owner))
    return PruningProblem("conv", 6, tuple(readers))


def error(problem, kept):
    return sum(reader.explained() - reader.explained(reader.columns(kept)) for reader in problem.readers)


@METHOD
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


@METHOD
def test_it_refuses_layers_with_several_groups(kind):
    assert "2" in kind().reason(LinearMap((4, 2, 3, 3), None, torch.device("cpu"), (1, 1), (0, 0), (1, 1), groups=2))
    assert not kind().reason(LinearMap((4, 2), None, torch.device("cpu")))


@METHOD
@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("silent", [(), (0, 4), (0, 1, 2, 3, 4, 5)])
def test_it_keeps_as_many_channels_as_are_asked_for(kind, white, silent):
    given = problem(0, silent=silent, white=white, dead=True)
    answer = kind().keep(given, COUNTS)
    assert [len(kept) for kept in answer] == COUNTS
    for kept in answer:
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert set(kept.tolist()) <= set(range(6))
    assert kind().keep(given, []) == []


@METHOD
@pytest.mark.parametrize("dead", [False, True])
def test_channels_that_nothing_reads_go_first(kind, dead):
    given = problem(1, silent=(1, 5), dead=dead)
    for kept in kind().keep(given, [4]):
        assert kept.tolist() == [0, 2, 3, 4]


@METHOD
def test_more_channels_leave_a_smaller_error(kind):
    given = problem(2)
    errors = [error(given, kept) for kept in kind().keep(given, COUNTS)]
    assert errors[0] > errors[1] > errors[-1] > 0


def test_with_samples_methods_beat_magnitudes_on_average():
    total = dict.fromkeys(METHODS, 0.0)
    for seed in range(20):
        given = problem(seed)
        for name, kind in METHODS.items():
            total[name] += sum(error(given, kept) for kept in kind().keep(given, [2, 3, 4]))
    assert total["backward-elimination"] < total["channel-pruning"] < total["magnitude-pruning"]
