"""A weight with learned scales: where its codes are held, the scale has its exact gradient."""

import torch
from torch import nn

import roundwise as rw
from roundwise.graph.analysis.layers import find_layers
from roundwise.numerics.grid import Grid, expand_blocks


def quantizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    (layer,) = find_layers(rw.capture(model, torch.randn(2, 3, 5, 5)).graph)
    grid = Grid.symmetric(torch.rand(1, 4, 1) + 0.1, 3)
    return rw.training.LSQ(scales_gradients=False).weight(grid, layer.map), layer.map, grid


def test_held_codes_do_not_follow_the_weight_or_the_scale():
    module, layer, grid = quantizer()
    codes = grid.quantize(torch.randn(1, 4, 27))
    module.codes = codes
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(layer.to_matrix(module(weight)), grid.dequantize(codes))
    with torch.no_grad():
        module.scale *= 1.7
    torch.testing.assert_close(layer.to_matrix(module(weight)), 1.7 * grid.dequantize(codes))


def test_the_gradient_of_a_scale_is_that_of_scale_times_codes():
    module, layer, grid = quantizer()
    module.codes = grid.quantize(torch.randn(1, 4, 27))
    weight, gradient = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, 3, 3, 3)
    module(weight).backward(gradient)
    counts = module.codes - expand_blocks(grid.zero_point, 27)
    expected = (layer.to_matrix(gradient) * counts).sum(-1, keepdim=True)
    torch.testing.assert_close(module.scale.grad, expected)
    assert weight.grad is None
