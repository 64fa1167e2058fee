"""Shapes after an edit: what is written into operations follows, what was dynamic stays dynamic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import roundwise as rw
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.edit import select_along
from roundwise.graph.shapes import blocks, refresh
from roundwise.graph.transforms.normalize import normalize

aten = torch.ops.aten
examples = settings(max_examples=200, deadline=None, derandomize=True)


@examples
@given(st.lists(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 5)), max_size=4))
def test_blocks_cover_both_shapes_with_equal_products(parts):
    before = [size for part, _ in parts for size in part]
    after = [size for part, turn in parts for size in ([math.prod(part)] if turn % 2 else part[::-1])]
    found = blocks(before, after)
    assert [i for inputs, _ in found for i in inputs] == list(range(len(before)))
    assert [i for _, outputs in found for i in outputs] == list(range(len(after)))
    products = [
        (math.prod(before[i] for i in inputs), math.prod(after[i] for i in outputs)) for inputs, outputs in found
    ]
    assert all(one == other for one, other in products)


def test_shapes_that_hold_different_counts_have_no_blocks():
    with pytest.raises(ValueError, match=r"\[2, 3\] to \[7\]"):
        blocks([2, 3], [7])


class Reshaped(nn.Module):
    """A linear layer, a reshape of its output, and a layer that reads that."""

    def __init__(self, reshape, reads):
        super().__init__()
        self.first, self.reshape, self.last = nn.Linear(5, 12), reshape, nn.Linear(reads, 2)

    def forward(self, x):
        return self.last(self.reshape(self.first(x)))


def cut(reshape, reads, kept, columns, axes=None, places=3):
    """The graph of `Reshaped` with some rows of the first layer and some columns of the last, refreshed."""
    torch.manual_seed(0)
    model, samples = Reshaped(reshape, reads).eval(), torch.randn(2, places, 5)
    graph = normalize(TorchExport().graph(model, (samples,), {}))
    for name in ("first.weight", "first.bias"):
        select_along(graph, name, 0, torch.arange(kept))
    select_along(graph, "last.weight", 1, torch.arange(columns))
    nodes = {node.name: node for node in graph.operations.nodes}
    refresh(graph, {nodes[name]: axis for name, axis in (axes or {}).items()})
    value = next(node for node in graph.operations.nodes if node.op == "output").all_input_nodes[0].meta["val"]
    for batch in (1, 4):
        result = graph.module()(torch.randn(batch, places, 5))
        assert list(result.shape) == [batch if isinstance(size, torch.SymInt) else size for size in value.shape]
    return graph, value


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.view(-1, 36),
        lambda x: x.reshape(x.shape[0], 36),
        lambda x: x.flatten(1),
        lambda x: x.view(-1, 3, 1, 12).flatten(1),
        lambda x: x.unflatten(2, (1, 12)).reshape(x.shape[0], 36),
        lambda x: x.transpose(1, 2).reshape(-1, 36),
    ],
    ids=["view", "reshape", "flatten", "view of four", "unflatten", "transposed"],
)
def test_sizes_in_reshapes_follow_the_channels(reshape):
    graph, value = cut(reshape, reads=36, kept=7, columns=21)
    assert isinstance(value.shape[0], torch.SymInt)
    literals = [
        size
        for node in graph.operations.nodes
        if node.op == "call_function"
        for argument in node.args
        for size in (argument if isinstance(argument, list) else ())
    ]
    assert not {12, 36} & set(literals)


def test_where_a_dimension_is_split_the_one_that_shrinks_must_be_named():
    def heads(x):
        return x.view(-1, 3, 3, 4).transpose(1, 2).flatten(2)

    graph, _ = cut(heads, reads=12, kept=8, columns=12, axes={"view": 2})
    assert next(node for node in graph.operations.nodes if node.name == "view").args[1] == [-1, 3, 2, 4]
    graph, _ = cut(heads, reads=12, kept=9, columns=9, axes={"view": 3})
    assert next(node for node in graph.operations.nodes if node.name == "view").args[1] == [-1, 3, 3, 3]
    with pytest.raises(rw.ModelError, match=r"'view'.*become.*8"):
        cut(heads, reads=12, kept=8, columns=12)
    with pytest.raises(rw.ModelError, match=r"'view'.*become.*7"):
        cut(heads, reads=12, kept=7, columns=12, axes={"view": 2})


def test_an_expanded_size_follows():
    _, value = cut(lambda x: x.mean(1, keepdim=True).expand(-1, 3, 12), reads=12, kept=7, columns=7)
    assert list(value.shape)[1:] == [3, 2]


def test_an_operation_that_no_longer_fits_is_named():
    with pytest.raises(rw.ModelError, match=r"'linear_1'.*7.*9"):
        cut(lambda x: x, reads=12, kept=7, columns=9)


def test_values_of_a_graph_that_nobody_edited_stay_as_they_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.cell = nn.Conv2d(3, 4, 3), nn.LSTM(6, 5, batch_first=True)

        def forward(self, x, y):
            return nn.functional.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear"), *self.cell(y)

    graph = normalize(TorchExport().graph(Net().eval(), (torch.randn(2, 3, 6, 6), torch.randn(2, 4, 6)), {}))
    before = {node: str(node.meta.get("val")) for node in graph.operations.nodes if node.op == "call_function"}
    refresh(graph)
    assert {node: str(node.meta["val"]) for node in before} == before
