"""What codes hang on does not depend on the number of threads."""

import pytest
import torch

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
