"""Trained networks on real images: the figures that the project promises.

They need the folder that ROUNDWISE_DATA names (see `benchmarks/networks.py`); without it they are skipped.
"""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from recipes import quantizing

import roundwise as rw
from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.methods.rewrites.cross_layer_equalization import pairs

_SPEC = importlib.util.spec_from_file_location(
    "benchmark_networks", Path(__file__).parents[2] / "benchmarks" / "networks.py"
)
networks = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(networks)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not networks.available(), reason=f"no networks in {networks.ROOT}; set ROUNDWISE_DATA"),
]


@functools.cache
def task():
    """ResNet-20 with 256 images to calibrate on, and every fourth of those to evaluate on."""
    whole = networks.load("resnet20", 256)
    return networks.Task(whole.model, whole.calibration, whole.images[::4], whole.labels[::4])


@functools.cache
def quantized(bits, rounding, samples=256, **settings):
    weights = rw.Weights(bits=bits, granularity=rw.PerTensor(), ranges=rw.ranges.WeightMSE())
    recipe = quantizing(weights, rounding, rewrites=(), **settings)
    return rw.quantize(task().model, task().calibration[:samples], recipe)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "expected", "tolerance"), [(4, 69, 2), (3, 25, 4)])
def test_nearest_rounding_per_tensor_costs_what_it_is_known_to_cost(bits, expected, tolerance):
    model = quantized(bits, rw.rounding.Nearest())
    assert task().accuracy(model) == pytest.approx(expected, abs=tolerance)
    report = model.report
    assert len(report.layers) == 20
    assert report.kept_float == ()
    assert report.quantized_bytes < report.float_bytes * (bits + 0.5) / 32


def test_a_file_gives_back_the_same_network(tmp_path):
    model = quantized(4, rw.rounding.Nearest())
    model.save(tmp_path / "resnet20.rw")
    images = task().images[:32]
    assert torch.equal(rw.load(tmp_path / "resnet20.rw")(images), model(images))
    assert (tmp_path / "resnet20.rw").stat().st_size < model.report.quantized_bytes + 80_000


@pytest.mark.slow
def test_nothing_but_speed_depends_on_the_memory_budget():
    in_memory, on_disk = (
        quantized(3, rw.rounding.Ceil(), samples=64, memory_budget=budget) for budget in (1 << 40, 1 << 20)
    )
    assert in_memory.report.output_error == on_disk.report.output_error
    assert [layer.error for layer in in_memory.report.layers] == [layer.error for layer in on_disk.report.layers]
    sample = 16 * 32 * 32 * 4  # the widest: a block's input and the two convolutions' between it, in both streams
    assert in_memory.report.peak_activation_bytes <= 6 * 64 * sample


@pytest.mark.slow
def test_adaround_recovers_most_of_what_nearest_rounding_loses():
    model = quantized(3, rw.rounding.AdaRound(iterations=500))
    assert task().accuracy(model) > 70
    assert model.report.output_error < 0.5 * quantized(3, rw.rounding.Nearest()).report.output_error
    assert all(0.02 < layer.flips < 0.5 for layer in model.report.layers)


@pytest.mark.parametrize(
    ("network", "count"), [("resnet20", 9), pytest.param("mobilenet_v1_075", 27, marks=pytest.mark.slow)]
)
def test_equalization_finds_the_pairs_of_trained_networks_and_leaves_their_outputs(network, count):
    whole = networks.load(network, 8)
    graph = rewrite(TorchExport().graph(whole.model, (whole.calibration,), {}))
    assert len(pairs(graph)) == count
    with torch.no_grad():
        expected = graph.module()(whole.calibration)
        outputs = rw.rewrites.CrossLayerEqualization().apply(graph).module()(whole.calibration)
    assert torch.linalg.vector_norm(outputs - expected) < 1e-5 * torch.linalg.vector_norm(expected)
