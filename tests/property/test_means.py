"""Means of outputs from sums of inputs: the same as running the layer on every sample, for every layer there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_linear_maps import convolutions, linear_layers, of_module

from roundwise.statistics import Means

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
examples = settings(max_examples=60, deadline=None, derandomize=True)


@examples
@given(st.one_of(linear_layers(), convolutions()), st.integers(1, 3))
@torch.no_grad()
def test_means_are_those_of_all_samples_and_positions_in_whatever_batches(drawn, batches):
    module, inputs = drawn
    layer = of_module(module)
    samples = [torch.randn_like(inputs) + 1 for _ in range(batches)]
    targets = [torch.randn_like(module(x)) for x in samples]
    means = Means.empty(layer, sum(len(x) for x in samples), torch.Generator())
    for x, y in zip(samples, targets, strict=True):
        means.add(x, y, len(x))
    weight = layer.to_matrix(torch.randn_like(module.weight))
    outputs = [layer.apply_matrix(weight, x) for x in samples]
    bias = 0 if layer.bias is None else layer.bias.reshape(weight.shape[:2])
    wanted = torch.cat([layer.fold_outputs(y) for y in outputs], -1).mean(-1) - bias
    torch.testing.assert_close(means.output(weight), wanted)
    torch.testing.assert_close(means.target, torch.cat([layer.fold_outputs(y) for y in targets], -1).mean(-1))


@torch.no_grad()
def test_batches_of_other_shapes_add_up_where_samples_stand_along_a_place():
    # Samples along a sequence: the convolution sees one row, and a last batch that is shorter has fewer places.
    module = torch.nn.Conv1d(2, 3, 1, dtype=torch.float64)
    layer, samples = of_module(module), torch.randn(2, 7, dtype=torch.float64)
    means = Means.empty(layer, 7, torch.Generator())
    for x in samples.split([4, 3], dim=1):
        means.add(x, module(x), x.shape[1])
    output = module(samples)
    torch.testing.assert_close(means.target, output.mean(1).unsqueeze(0))
    torch.testing.assert_close(means.output(layer.to_matrix(module.weight)) + module.bias, means.target)
