"""Dropping dropout leaves every output as it was, and a tensor of its own."""

import pytest
import torch
from torch import fx

from roundwise.graph.graph import Graph
from roundwise.graph.transforms.drop_dropout import DROPOUTS, drop_dropout

aten = torch.ops.aten


def graph_of(function):
    return Graph.of_module(fx.symbolic_trace(function))


def targets(graph):
    return [node.target for node in graph.operations.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dropout", sorted(DROPOUTS, key=str), ids=str)
def test_every_kind_of_dropout_goes(dropout):
    graph = graph_of(lambda x: aten.relu.default(dropout(dropout(aten.neg.default(x), 0.5, False), 0.25, False)))
    dropped = drop_dropout(graph)
    assert targets(dropped) == [aten.neg.default, aten.relu.default]
    assert len(targets(graph)) == 4
    x = torch.randn(3, 4)
    assert torch.equal(dropped.module()(x), graph.module()(x))


def test_dropout_that_is_active_stays():
    graph = graph_of(lambda x: aten.dropout.default(aten.neg.default(x), 0.5, True))
    assert targets(drop_dropout(graph)) == [aten.neg.default, aten.dropout.default]


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: aten.dropout.default(x, 0.5, False), [aten.clone.default]),
        (
            lambda x: (y := aten.neg.default(x), aten.dropout.default(y, 0.5, False)),
            [aten.neg.default, aten.clone.default],
        ),
        (lambda x: aten.dropout.default(aten.neg.default(x), 0.5, False), [aten.neg.default]),
    ],
    ids=["an input", "another output", "nothing else"],
)
def test_an_output_shares_no_memory_with(function, kept):
    dropped, x = drop_dropout(graph_of(function)), torch.randn(3, 4)
    assert targets(dropped) == kept
    outputs = dropped.module()(x)
    tensors = [x, *outputs] if isinstance(outputs, tuple) else [x, outputs]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
