"""`rw.trainable` in the training loops of others: each example trains, and what it trains gets better.

These tests need the packages of the extra `loops`; `pytest -m loops` runs them.
"""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPS = {"lightning": ["lightning"], "transformers": ["transformers", "accelerate"], "accelerate": ["accelerate"]}
"""What each example needs."""


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"train_with_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.loops
@pytest.mark.parametrize("name", LOOPS)
def test_an_example_trains_and_gives_a_model(name, capsys):
    for package in LOOPS[name]:
        pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these packages warn of what is theirs, such as the number of workers
        module = example(name)
        before, after = module.main(epochs=0), module.main(epochs=6)
    assert after.weights["0"].codes.unique().numel() <= 8
    assert "quantized" in capsys.readouterr().out
    torch.manual_seed(0)
    model = reference()
    images = torch.randn(256, 3, 8, 8)
    with torch.no_grad():
        targets = model(images).log_softmax(1)
        losses = [
            float(
                torch.nn.functional.kl_div(it(images).log_softmax(1), targets, reduction="batchmean", log_target=True)
            )
            for it in (before, after)
        ]
    assert losses[1] < 0.8 * losses[0]


def reference():
    """The float network of all examples, built after the same seed."""
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
