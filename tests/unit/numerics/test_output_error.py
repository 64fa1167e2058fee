"""The measure of errors: what masks, infinite values, huge values and several sizes of values do to it."""

import math

import pytest
import torch

from roundwise.numerics.output_error import ErrorSums, as_tensor, compare
from roundwise.numerics.squares import distance, energy

EXACT = (-1e4, -65504.0, -1e9, 1e6, torch.finfo(torch.float32).min, -math.inf)


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(60, 7, generator=generator)
    found = expected + 0.1 * torch.randn(60, 7, generator=generator)
    masked = torch.rand(60, 7, generator=generator) > 0.7
    return found, expected, masked


def relative(found, expected):
    return float((found - expected).double().square().sum() / expected.double().square().sum())


def of_batches(found, expected, size):
    sums = ErrorSums()
    for one, other in zip(found.split(size), expected.split(size), strict=True):
        sums.add(one, other)
    return sums.result()


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("fill", EXACT)
def test_values_that_both_networks_mask_count_for_nothing(outputs, fill, size):
    found, expected, masked = outputs
    error = of_batches(found.masked_fill(masked, fill), expected.masked_fill(masked, fill), size)
    assert error.error == pytest.approx(relative(found[~masked], expected[~masked]), rel=1e-5)
    assert error.counted == int((~masked).sum())
    assert error.largest_difference == pytest.approx(float((found - expected)[~masked].abs().max()), rel=1e-5)
    assert 0.01 < error.relative_difference < 1


@pytest.mark.parametrize("added", [-1e4, -1e9])
def test_a_mask_that_is_added_to_logits_does_not_hide_their_error(outputs, added):
    found, expected, masked = outputs
    shift = torch.where(masked, added, 0.0)
    true = relative(found[~masked], expected[~masked])
    assert 0.5 * true < compare(found + shift, expected + shift).error < 2 * true


def test_a_mask_at_other_positions_is_an_error(outputs):
    found, expected, masked = outputs
    elsewhere = masked.clone()
    elsewhere[0, :3] = ~masked[0, :3]
    assert compare(found.masked_fill(elsewhere, -1e9), expected.masked_fill(masked, -1e9)).error > 1e-3
    infinite = compare(found.masked_fill(elsewhere, -math.inf), expected.masked_fill(masked, -math.inf))
    assert (infinite.error, infinite.apart) == (math.inf, 3)
    assert "3" in infinite.note


def test_values_at_a_bound_are_no_mask(outputs):
    found, expected, _ = outputs
    for bounded in (lambda y: (8 * y).sigmoid(), lambda y: y.clamp(-1, 1), lambda y: 1000 * y.clamp(-1, 1)):
        error = compare(bounded(found), bounded(expected))
        assert error.counted == expected.numel()
        assert error.error == pytest.approx(relative(bounded(found), bounded(expected)), rel=1e-5)


def test_values_beside_much_larger_ones_are_told(outputs):
    found, expected, _ = outputs
    beside = torch.cat([expected * 1e4, expected], 1)
    error = compare(torch.cat([expected * 1e4, found], 1), beside)
    assert error.error < 1e-8
    assert f"{relative(found, expected):.3g}" in error.note
    assert error.relative_difference > 1e-4  # of the smaller channels, not of the largest value


@pytest.mark.parametrize("factor", [1e-25, 1e-15, 1e15, 1e25])
def test_the_error_does_not_depend_on_the_unit(outputs, factor):
    found, expected, _ = outputs
    assert compare(found * factor, expected * factor).error == pytest.approx(relative(found, expected), rel=1e-4)
    assert energy(expected * factor) == pytest.approx(float((expected.double() * factor).square().sum()), rel=1e-4)
    assert distance(found * factor, expected * factor) > 0


def test_a_distance_does_not_depend_on_the_order_of_memory():
    one, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    true = float((one - other).square().sum())
    for a in (one, one.contiguous(memory_format=torch.channels_last)):
        for b in (other, other.contiguous(memory_format=torch.channels_last)):
            assert distance(a, b) == pytest.approx(true, rel=1e-5)


def test_nan_in_one_network_is_an_error_and_in_both_is_not():
    nan = torch.tensor([math.nan, 2.0])
    assert compare(nan, nan).error == 0
    assert compare(torch.tensor([1.0, 2.0]), nan).error == math.inf
    assert compare(nan, torch.tensor([1.0, 2.0])).relative_difference == math.inf


def test_whole_numbers_are_compared_by_the_share_that_differs():
    error = compare(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 9]))
    assert (error.whole, error.error) == (True, 0.25)
    assert compare(torch.tensor([True]), torch.tensor([True])).error == 0


@pytest.mark.parametrize("value", [1.5, 2 + 3j, True, 7, torch.tensor([1j])])
def test_numbers_are_outputs_too(value):
    tensor = as_tensor(value)
    assert tensor is not None
    assert not tensor.is_complex()
    assert compare(tensor, tensor).error == 0
    assert as_tensor("text") is None


def test_outputs_without_values_or_without_size_have_no_error():
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)).error == 0
    assert compare(torch.zeros(4), torch.zeros(4)).error == 0
    assert compare(torch.ones(4), torch.zeros(4)).error == 1
