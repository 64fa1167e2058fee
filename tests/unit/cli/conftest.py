"""A model and data for the commands, and the files that one run of `quantize` writes."""

import numpy as np
import pytest
from commandline import run
from PIL import Image

from roundwise.cli import weights
from roundwise.cli.commands import quantize as quantize_command

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6))

def linear():
    return nn.Linear(4, 3)

def broken():
    raise ValueError("no such dataset")
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model, inputs with and without labels, images."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((24, 3, 8, 8)).astype(np.float32)
    np.save(folder / "inputs.npy", inputs)
    np.savez(folder / "labelled.npz", images=inputs, labels=rng.integers(0, 6, 24))
    np.savez(folder / "pixels.npz", images=rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8))
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(3):
            image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            image.save(folder / "photos" / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def written(folder):
    """What one run of `quantize` gave: its result, and files in two formats."""
    outs = [folder / "net.rw", folder / "net.onnx"]
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest",
        *(part for out in outs for part in ("--out", out)),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def no_run(monkeypatch):
    """Make it an error to start what takes long."""

    def fail(*_, **__):
        raise AssertionError("the long run was started")

    monkeypatch.setattr(quantize_command, "quantize", fail)
    monkeypatch.setattr(weights, "load_model", fail)
