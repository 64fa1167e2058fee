"""A budget of time: layers are timed in ONNX Runtime, the report has the times, and a budget that is missed is told."""

import math

import pytest
import torch
from facts import has, raises
from torch import nn

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.runtimes.layer_times import LayerTimes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def macs_of(inputs, layer):
    space = [
        size + layer.padding[d] + layer.padding[d + 2] - layer.weight[2 + d] + 1 for d, size in enumerate(inputs[2:])
    ]
    return math.prod(layer.weight) * math.prod(space), (1, layer.outputs, *space)


def by_multiplications(_, inputs, layers):
    """A second for each million of multiplications, and 1 ms for each chain."""
    total = 1e-3
    for layer in layers:
        macs, inputs = macs_of(inputs, layer)
        total += 1e-6 * macs
    return total


METHODS = {
    "chains": (rw.compression.SpatialSVD(),),
    "channels": (rw.compression.MagnitudePruning(),),
    "both": (rw.compression.MagnitudePruning(), rw.compression.SpatialSVD()),
}


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_the_budget_is_kept_and_the_report_has_the_times(model, images, methods, monkeypatch):
    monkeypatch.setattr(LayerTimes, "seconds", by_multiplications)
    small = rw.compress(model, images, rw.Compress(latency=0.6, methods=methods, multiple=2))
    stage = small.report.stages[-1]
    macs, _ = stage.macs
    assert stage.latency[0] == pytest.approx(3e-3 + 1e-6 * macs)
    assert stage.latency[1] == pytest.approx(3e-3 + 1e-6 * stage.macs[1])
    assert 0.5 < stage.latency[1] / stage.latency[0] <= 0.6
    assert not stage.notes
    assert has(str(small.report), f"{1000 * stage.latency[0]:.3g} ms", f"{1000 * stage.latency[1]:.3g} ms")
    assert rw.Report.from_dict(small.report.as_dict()).stages[-1].latency == stage.latency


def test_real_times_are_a_budget(model, images):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    small = rw.compress(model, images, latency=0.9)
    before, after = small.report.stages[-1].latency
    assert after <= 0.9 * before or small.report.stages[-1].notes
    assert any(one.method for one in small.report.stages[-1].compressed)


def test_layers_that_are_slower_than_predicted_are_cut_further(model, images, monkeypatch):
    """Layers with odd numbers of channels take half as long again; no measurement before the choice shows it."""

    def slow(times, inputs, layers):
        odd = any(layer.weight[0] % 4 or layer.weight[1] % 4 not in (0, 3) for layer in layers)
        return by_multiplications(times, inputs, layers) * (1.5 if odd else 1)

    monkeypatch.setattr(LayerTimes, "seconds", slow)
    stage = rw.Compress(latency=0.6, methods=(rw.compression.MagnitudePruning(),), multiple=1)
    entry = rw.compress(model, images, stage).report.stages[-1]
    assert entry.latency[1] <= 0.6 * entry.latency[0]
    assert entry.macs[1] < 0.6 * entry.macs[0]


def test_a_budget_that_no_choice_keeps_to_is_told(model, images, monkeypatch):
    whole = {(32, 3): 1.0, (32, 32): 1.0, (16, 32): 1.0}
    half = {(16, 1): 0.25, (16, 16): 0.25, (8, 16): 0.25}

    def never_faster(_, inputs, layers):
        (layer,) = layers
        return {**half, **whole}.get(layer.weight[:2], 1.0)

    monkeypatch.setattr(LayerTimes, "seconds", never_faster)
    stage = rw.Compress(latency=0.6, methods=(rw.compression.MagnitudePruning(),), multiple=6)
    (note,) = rw.compress(model, images, stage).report.stages[-1].notes
    assert has(note, "latency=0.6", "1.000")


def test_a_time_that_cannot_be_reached_is_an_error(model, images, monkeypatch):
    monkeypatch.setattr(LayerTimes, "seconds", by_multiplications)
    with raises(RecipeError, "latency=0.001", "ONNX Runtime", "ms"):
        rw.compress(model, images, latency=0.001)


def test_the_page_shows_the_times(model, images, monkeypatch, tmp_path):
    pytest.importorskip("jinja2")
    monkeypatch.setattr(LayerTimes, "seconds", by_multiplications)
    small = rw.compress(model, images, latency=0.6)
    rw.html_report(small, tmp_path / "page.html")
    before, after = (f"{1000 * seconds:.3g} ms" for seconds in small.report.stages[-1].latency)
    assert has((tmp_path / "page.html").read_text(), f"{before} → {after}")
    untimed = rw.compress(model, images, macs=0.6)
    rw.html_report(untimed, tmp_path / "page.html")
    assert "time left" not in (tmp_path / "page.html").read_text()
