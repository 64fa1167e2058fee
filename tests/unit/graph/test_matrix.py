"""What compression asks of a layer's linear map: the size of its output, and the two layers that it can become."""

import pytest
import torch
from torch import nn

from roundwise.graph.matrix import LinearMap

CONVOLUTIONS = [
    (nn.Conv1d(2, 3, 4, stride=3, padding=2), (11,)),
    (nn.Conv2d(2, 3, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)), (9, 7)),
    (nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1)), (8, 5)),
    (nn.Conv2d(2, 3, 3, padding="valid"), (8, 5)),
    (nn.Conv3d(2, 3, 3, stride=2, padding=1), (5, 6, 7)),
]


def map_of(module):
    names = ("stride", "padding", "dilation", "groups")
    return LinearMap.from_arguments(
        module.weight.detach(), None, {name: getattr(module, name) for name in names} | {"transposed": False}
    )


@pytest.mark.parametrize(("module", "space"), CONVOLUTIONS, ids=str)
def test_the_size_of_the_output_is_that_of_the_operation(module, space):
    assert map_of(module).output_space(space) == tuple(module(torch.zeros(1, 2, *space)).shape[2:])


@pytest.mark.parametrize(("module", "space"), CONVOLUTIONS, ids=str)
def test_two_layers_have_the_output_of_the_product_of_their_weights(module, space):
    layer = map_of(module)
    for first in range(layer.dims + 1):
        one, two = layer.in_two(2, first)
        a, b = torch.randn(one.weight_shape), torch.randn(two.weight_shape)
        letters = "xyz"[: layer.dims]
        product = torch.einsum(
            f"or{letters},rc{letters}->oc{letters}", b.expand(-1, -1, *layer.kernel), a.expand(-1, -1, *layer.kernel)
        )
        samples = torch.randn(2, 2, *space)
        torch.testing.assert_close(two.apply(b, one.apply(a, samples)), layer.apply(product, samples))


def test_a_linear_layer_becomes_two():
    one, two = LinearMap((5, 4), None, torch.device("cpu")).in_two(3, 0)
    assert (one.weight_shape, two.weight_shape) == ((3, 4), (5, 3))
    assert LinearMap((5, 4), None, torch.device("cpu")).output_space(()) == ()
