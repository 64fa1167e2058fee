"""Sums of two products in 16 bits, as processors without VNNI add them: exact for what `ort-cpu-avx2` lets through.

Machines with VNNI hide the effect, so VPMADDUBSW is computed here, in NumPy.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from roundwise.numerics.grid import BITS, Codebook
from roundwise.targets import TARGETS

AVX2 = TARGETS["ort-cpu-avx2"]
SIGNED = [Codebook(bits) for bits in BITS if bits <= 8]
HELD = [book for book in SIGNED if AVX2.weight_fault(book.qmin, book.qmax, zero_points=False, groups=False) is None]


def dot_with_vpmaddubsw(activations, weights):
    """Σ a·w of unsigned and signed bytes: neighbours are multiplied, added and clipped to 16 bits, then added in 32."""
    products = activations.astype(np.int32) * weights.astype(np.int32)
    pairs = (products[0::2] + products[1::2]).clip(-(2**15), 2**15 - 1)
    return int(pairs.sum())


def exact(activations, weights):
    return int((activations.astype(np.int64) * weights.astype(np.int64)).sum())


def test_the_target_holds_signed_weights_of_up_to_seven_bits():
    assert [book.bits for book in HELD] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("end", ["qmin", "qmax"])
@pytest.mark.parametrize("book", SIGNED, ids=lambda book: f"{book.bits} bits")
def test_the_largest_sums_are_exact_just_for_the_weights_that_the_target_holds(book, end):
    activations, weights = np.full(8, 255, np.uint8), np.full(8, getattr(book, end), np.int8)
    assert (dot_with_vpmaddubsw(activations, weights) == exact(activations, weights)) == (book in HELD)


@given(st.data())
def test_all_sums_are_exact_for_the_weights_that_the_target_holds(data):
    book = data.draw(st.sampled_from(HELD))
    count = 2 * data.draw(st.integers(1, 32))
    activations = data.draw(arrays(np.uint8, count))
    weights = data.draw(arrays(np.int8, count, elements=st.integers(book.qmin, book.qmax)))
    assert dot_with_vpmaddubsw(activations, weights) == exact(activations, weights)
