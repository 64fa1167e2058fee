"""Cutting channels of every small network that is captured: it computes what it does with them masked."""

import pytest
import torch
import torch.utils._pytree as pytree
from zoo import CASES

from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.edit import set_constant
from roundwise.graph.transforms.cut_channels import cut_channels

# Those whose capture is quick, and some of whose channels can go.
NAMES = ("BatchNorms", "Branches", "Convolutions", "Functional", "Pieces", "QueryTokens", "Residual", "Transposed")


@pytest.mark.parametrize(
    "name", [name if name in NAMES else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_network_with_channels_cut_computes_what_it_does_with_them_masked(name):
    case = CASES[name]
    args, kwargs = case.inputs(4)
    graph = rewrite(TorchExport().graph(case.build(), args, kwargs))
    groups = find_channel_groups(graph)
    assert all(group.reason or group.columns for group in groups), "a channel that nobody reads"
    assert name not in NAMES or any(not group.reason for group in groups)
    removed = {group: [0, *range(2, group.channels, 3)] for group in groups if not group.reason and group.channels > 1}
    expected = graph.copy()
    for group, channels in removed.items():
        for member in group.members:
            if member.role == "columns":
                places = torch.tensor([place for channel in channels for place in member.places[channel]], dtype=int)
                weight = expected.constants[member.constant].index_fill(member.dim, places, 0.0)
                set_constant(expected, member.constant, weight)
    cut_channels(graph, removed)
    for batch in (graph.batch,) if graph.batch else (1, 3):
        args, kwargs = case.inputs(batch)
        results = (pytree.tree_leaves(one.module()(*args, **kwargs)) for one in (graph, expected))
        for found, wanted in zip(*results, strict=True):
            if isinstance(wanted, torch.Tensor):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
