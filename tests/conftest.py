"""What holds for every test."""

import functools
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _the_same_random_numbers_in_any_order():
    """Weights that a test draws without a seed of its own do not depend on the tests that ran before in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _onnx_translations_are_listed_once():
    """From the second ONNX export in a process on, PyTorch's table of translations is copied, not built again.

    To build the table, PyTorch parses the source of some 500 functions, the same ones at every export: nearly half of
    the time of a small export. The first export in each process builds the table as it does for users.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None or hasattr(registration.ONNXRegistry.from_torchlib, "once"):
        return
    once = functools.cache(registration.ONNXRegistry.from_torchlib)

    def copied(*arguments, **settings):
        table = once(*arguments, **settings)
        copy = type(table)()
        # An export adds translations of its own.
        vars(copy).update(vars(table), functions={target: [*known] for target, known in table.functions.items()})
        return copy

    copied.once = once
    registration.ONNXRegistry.from_torchlib = staticmethod(copied)
