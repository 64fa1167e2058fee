"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _the_same_random_numbers_in_any_order():
    """Weights that a test draws without a seed of its own do not depend on the tests that ran before in its process."""
    torch.manual_seed(0)
