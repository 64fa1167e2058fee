"""The study of LSQ+: its network, its recipes, and a small version of a table."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import roundwise as rw

PAPER = Path(__file__).parents[2] / "papers" / "lsqplus_2020"


@pytest.fixture(scope="module")
def study():
    """The program of the study."""
    paths, modules = list(sys.path), dict(sys.modules)
    sys.modules.pop("networks", None)  # another test may have put one of its own there
    spec = importlib.util.spec_from_file_location("lsqplus_study", PAPER / "run.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = paths
    if "networks" in modules:
        sys.modules["networks"] = modules["networks"]


RUN = {"network": "swish", "bits": 2, "configuration": 4, "start": "mse", "epochs": 1, "batch_norm": True, "seed": 0}


@pytest.mark.slow
def test_what_layers_read_is_quantized_and_nothing_else(study):
    torch.manual_seed(0)
    model, images = study.swish.SwishNet(width=0.25).eval(), torch.randn(8, 3, 32, 32)
    recipe = study.recipe(RUN | {"configuration": 1, "start": "statistics"}, rw.capture(model, images).graph)
    rewrite, quantize, _ = recipe.stages
    report = rw.quantize(model, images, (rewrite, quantize)).report
    bits = {one.name: one.bits for one in report.activations}
    assert bits["x"] == 8
    assert sorted(bits.values()).count(8) == 2  # the images, and what the classifier reads
    assert set(bits.values()) == {2, 8}
    assert [layer.bits for layer in report.layers].count(8) == 2
    assert len(bits) == len(report.layers)  # each layer reads one, and sums and products none
    negative = {one.name for one in report.activations if one.zero_point > 0}
    assert negative == {"x"}  # configuration 1 loses all other negative values


def test_the_configurations_are_the_papers(study):
    graph = rw.capture(torch.nn.Conv2d(3, 2, 1).eval(), torch.randn(2, 3, 4, 4)).graph
    learned = [study.recipe(RUN | {"configuration": one}, graph).stages[-1].quantization for one in (1, 3, 4)]
    assert learned == [rw.training.LSQ(), rw.training.LSQPlus(signed=True), rw.training.LSQPlus()]


def test_augmented_images_are_shifted_and_flipped_ones(study):
    images = torch.arange(1.0, 1 + 32 * 32).view(1, 1, 32, 32).expand(64, 3, 32, 32)
    torch.manual_seed(0)
    found = study.swish.augmented(images)
    assert found.shape == images.shape
    steps = {float(one) for one in (found[:, 0, 16, 16] - found[:, 0, 16, 15])}
    assert steps == {1.0, -1.0}
    corners = {float(one) for one in found[:, 0, 16, 16]}
    assert len(corners) > 10


@pytest.mark.real
@pytest.mark.slow
def test_a_small_version_of_a_table(study, tmp_path, monkeypatch):
    if not study.networks.available():
        pytest.skip("no networks; set ROUNDWISE_DATA")
    monkeypatch.setattr(study, "CONFIGURATIONS", (1, 4))
    monkeypatch.setattr(study.swish, "BLOCKS", ((8, 1, 2), (16, 1, 2)))
    monkeypatch.setattr(study.swish, "SwishNet", functools.partial(study.swish.SwishNet, width=0.5))
    common = ("swish", "--images", "320", "--folder", str(tmp_path))
    study.main(["train", *common, "--epochs", "2"])
    for _ in range(2):  # what is in the journal is not run again
        study.main(["accuracy", *common, "--epochs", "1", "--seeds", "1", "--bits", "4"])
    study.main(["page", *common])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line.get("configuration") for line in lines] == [None, 1, 4]
    assert all(0 <= line["accuracy"] <= 100 for line in lines)
    assert (tmp_path / "results.md").read_text().count("W4A4") == 2
