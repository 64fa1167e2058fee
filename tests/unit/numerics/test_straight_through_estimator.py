"""Gradients of fake quantization, against those that automatic differentiation gives for the same formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundwise.numerics import affine
from roundwise.numerics.straight_through import SMALLEST_LEARNED_SCALE, fake_quantize, gradient_scale, positive


def composed(values, scale, zero_point, qmin, qmax):
    """The formula of the papers from operations that PyTorch differentiates, with rounding passed over."""
    position = (values / scale + zero_point).clamp(qmin, qmax)
    return (position + (position.round() - position).detach() - zero_point) * scale


def gradients(function, tensors, weights):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    result.backward(weights)
    return result.detach(), [leaf.grad for leaf in leaves]


@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([2, 3, 4, 8]),
    scale=st.floats(0.01, 1.0),
    shift=st.sampled_from([0, 1, 3]),
    whole=st.booleans(),
)
def test_gradients_are_those_of_the_formula(seed, bits, scale, shift, whole):
    generator = torch.Generator().manual_seed(seed)
    values, weights = torch.randn(2, 200, generator=generator)
    zero_point = torch.tensor(float(shift) if whole else shift + 0.3)
    tensors, limits = (values, torch.tensor(scale), zero_point), (0, 2**bits - 1)
    found = gradients(lambda *t: fake_quantize(*t, *limits, real_zero_point=not whole), tensors, weights)
    wanted = gradients(lambda *t: composed(*t, *limits), tensors, weights)
    # A value in the middle between two codes may be rounded either way; no such value is drawn in practice.
    torch.testing.assert_close(found[0], wanted[0])
    for one, other in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_each_channel_has_the_gradient_of_its_own_scale():
    values, weights = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.tensor([[0.1], [0.3], [1.0]]), torch.zeros(3, 1)
    _, (_, together, _) = gradients(lambda *t: fake_quantize(*t, -4, 3), (values, scale, zero), weights)
    for row in range(3):
        alone = (values[row], scale[row, 0], zero[row, 0])
        _, (_, single, _) = gradients(lambda *t: fake_quantize(*t, -4, 3), alone, weights[row])
        torch.testing.assert_close(together[row, 0], single)


def test_values_are_those_of_the_quantized_network():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    codes = affine.quantize(values, 0.037, 5, 0, 15, torch.uint8)
    found = fake_quantize(values, torch.tensor(0.037), torch.tensor(5.0), 0, 15)
    assert torch.equal(found, affine.dequantize(codes, 0.037, 5, torch.float32))


def test_the_factor_changes_gradients_of_the_scale_only():
    values, weights = torch.randn(2, 100, generator=torch.Generator().manual_seed(2))
    tensors = (values, torch.tensor(0.2), torch.tensor(2.0))
    _, plain = gradients(lambda *t: fake_quantize(*t, 0, 7), tensors, weights)
    _, scaled = gradients(lambda *t: fake_quantize(*t, 0, 7, 0.1), tensors, weights)
    assert torch.equal(scaled[0], plain[0])
    torch.testing.assert_close(scaled[1], 0.1 * plain[1])
    torch.testing.assert_close(scaled[2], 0.1 * plain[2])


def test_the_factor_falls_with_values_and_codes():
    assert gradient_scale(100, 1) == pytest.approx(0.1)
    assert gradient_scale(400, 1) == pytest.approx(0.05)
    assert gradient_scale(100, 4) == pytest.approx(0.05)


@pytest.mark.parametrize("start", [0.5, -0.5, 1e-12, 0.0])
def test_a_scale_stays_positive_and_keeps_its_gradient(start):
    scale = torch.tensor(start, requires_grad=True)
    result = positive(scale)
    result.backward()
    assert result.item() == pytest.approx(max(abs(start), SMALLEST_LEARNED_SCALE))
    assert scale.grad.item() == (-1 if start < 0 else 1)
