"""Where layers are in a graph: what their outputs are added to."""

import pytest
import torch
from torch import nn

from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers

aten = torch.ops.aten


class Sum(nn.Module):
    """Two linear layers; what becomes of the second one's output y, the input x and the first one's output is given."""

    def __init__(self, join):
        super().__init__()
        self.first, self.second, self.join = nn.Linear(3, 3), nn.Linear(3, 3), join
        self.constant = nn.Buffer(torch.ones(3))

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.join(self, self.second(hidden), hidden, x)


def in_place(y, r):
    y += r
    return y


@pytest.mark.parametrize(
    ("join", "added"),
    [
        (lambda m, y, r, x: y + r, aten.relu.default),
        (lambda m, y, r, x: r + y, aten.relu.default),
        (lambda m, y, r, x: in_place(y, r), aten.relu.default),
        (lambda m, y, r, x: torch.add(y, r, alpha=1), aten.relu.default),
        (lambda m, y, r, x: (y + r.sigmoid()).relu(), aten.sigmoid.default),
        (lambda m, y, r, x: y, None),
        (lambda m, y, r, x: y + 1.0, None),
        (lambda m, y, r, x: y + x, None),  # an input: the same in both networks
        (lambda m, y, r, x: y + m.constant, None),
        (lambda m, y, r, x: y + y, None),
        (lambda m, y, r, x: y - r, None),
        (lambda m, y, r, x: torch.add(y, r, alpha=2), None),
        (lambda m, y, r, x: torch.add(r, y, alpha=2), None),
        (lambda m, y, r, x: y + r[:1], None),  # broadcast
        (lambda m, y, r, x: y.relu() + r, None),
        (lambda m, y, r, x: y + (r > 0), None),  # no real numbers
        (lambda m, y, r, x: y + x.shape[0], None),
        (lambda m, y, r, x: y + r.sum().item(), None),
        (lambda m, y, r, x: m.second(r[r[:, 0] > 0]) + r.mean(0, keepdim=True), None),  # as many rows as the values say
        (lambda m, y, r, x: (y + r) * y, None),  # read elsewhere too
    ],
)
def test_what_a_layers_output_is_added_to_is_found_where_the_sum_alone_reads_it(join, added):
    graph = rewrite(TorchExport().graph(Sum(join).eval(), (torch.randn(2, 3),), {}))
    first, second = find_layers(graph)
    assert first.addend is None
    assert (second.addend.target if second.addend is not None else None) == added


def test_a_layer_that_is_called_twice_may_be_made_up_for_but_makes_up_for_nothing():
    graph = rewrite(TorchExport().graph(Sum(lambda m, y, r, x: y + m.first(x)).eval(), (torch.randn(2, 3),), {}))
    first, second = find_layers(graph)
    assert second.addend is first.calls[1]
    assert first.addend is None
