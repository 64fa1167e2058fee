"""What codes hang on does not depend on the number of threads."""

import pytest
import torch

from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.threads import one_thread


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_one_thread_is_one_and_then_as_many_as_before():
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="stopped"), one_thread():
        raise ValueError("stopped")
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_the_start_of_a_search_is_the_same_with_any_number_of_threads():
    """A Cholesky decomposition of this size is not: PyTorch gives each thread a part of it."""
    generator = torch.Generator().manual_seed(0)
    inputs, inherited = (torch.randn(1, rows, 600, generator=generator) for rows in (2000, 8))
    hessian = inputs.mT @ inputs / 2000
    quadratic = Quadratic(torch.zeros(1, 8, 600), hessian, inherited, torch.ones(1, 8))
    with_two = quadratic.minimum(1e-3)
    torch.set_num_threads(1)
    assert torch.equal(quadratic.minimum(1e-3), with_two)
