"""Every network of the zoo with channels cut computes what it computes with the columns that read them at zero.

Where no channel of a network can be cut, each group says why. `make zoo` runs all of it; some networks of PyTorch alone
are part of every run of the tests.
"""

import importlib.util
import os

import pytest
import torch
import torch.utils._pytree as pytree
from architectures import ARCHITECTURES
from steps import as_data

import roundwise as rw
from roundwise.engine.rewriting import folded
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.costs import costs_of
from roundwise.graph.edit import set_constant
from roundwise.graph.transforms.cut_channels import cut_channels
from roundwise.graph.transforms.normalize import normalize

pytestmark = pytest.mark.filterwarnings("ignore")  # other packages warn of much that is not about us

CLOSE = 1e-4
"""The largest relative difference of an output: the two networks add the same numbers, perhaps in another order."""

WHOLE = {"lstm", "gru", "lstm of linear layers", "mixer", "fourier", "mixture of experts", "mamba"}
"""The networks in which no channel can be cut: states of recurrent layers, and what is mixed or stacked."""


QUICK = {"residual", "unet", "pointnet", "wavenet", "siamese", "volume", "mixer", "super-resolution", "detector"}
"""Networks of PyTorch alone whose capture is quick."""

CASES = [
    pytest.param(name, marks=() if entry.source == "plain" and entry.name in QUICK else pytest.mark.zoo)
    for name, entry in ARCHITECTURES.items()
]


@pytest.mark.parametrize("name", CASES)
def test_a_network_with_channels_cut_computes_what_it_does_with_them_masked(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # all weights are random, and nothing has to be downloaded
    entry = ARCHITECTURES[name]
    if entry.source != "plain" and importlib.util.find_spec(entry.source) is None:
        assert not os.environ.get("ROUNDWISE_ZOO"), f"{entry.source} is not installed"
        pytest.skip(f"{entry.source} is not installed; `make zoo` installs it")
    model = entry.model()
    captured = rw.capture(model, as_data(model, entry.samples(2))).graph
    for form in (folded, normalize):
        _check(entry, form(captured))


def _check(entry, graph):
    groups = find_channel_groups(graph)
    free = [group for group in groups if not group.reason and group.channels > 1]
    assert bool(free) == (entry.name not in WHOLE)
    assert all(group.columns for group in free), "a channel that no layer reads"
    removed = {group: sorted({0, *range(2, group.channels, 3)}) for group in free}
    masked, before = graph.copy(), costs_of(graph)
    for group, channels in removed.items():
        for member in group.members:
            if member.role == "columns":
                places = torch.tensor([place for channel in channels for place in member.places[channel]], dtype=int)
                weight = masked.constants[member.constant].index_fill(member.dim, places, 0.0)
                set_constant(masked, member.constant, weight)
    cut_channels(graph, removed)
    after = costs_of(graph)
    assert (after.macs < before.macs, after.parameters < before.parameters) == (bool(free), bool(free))
    for count in (graph.batch,) if graph.batch else (1, 5):
        args, kwargs = entry.samples(count, seed=3)
        results = (pytree.tree_leaves(one.module()(*args, **kwargs)) for one in (graph, masked))
        for found, wanted in zip(*results, strict=True):
            if isinstance(wanted, torch.Tensor) and wanted.is_floating_point():
                # Masks hold infinity, or huge numbers that stand for it.
                counts = wanted.isfinite() & (wanted.abs() < 1e8)
                difference, energy = (found[counts] - wanted[counts]).double().norm(), wanted[counts].double().norm()
                assert float(difference) <= CLOSE * float(energy)
