"""Quantization without any data: the same network as with data and that recipe, and a report that claims nothing."""

import json
import math

import numpy as np
import pytest
import torch
from facts import has, raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.report import Report
from roundwise.reporting.page import render

WITH_DATA = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A small network in the style of MobileNetV2, whose batch-norms know what the layers give for normal inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, groups=16, padding=1), nn.BatchNorm2d(16), nn.ReLU6(),
        )  # fmt: skip
        self.project, self.norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.last = nn.Linear(16, 5)
        with torch.no_grad():
            self.body[0].weight *= torch.logspace(-1, 1, 16).reshape(-1, 1, 1, 1)
        for norm in (self.body[1], self.body[4], self.norm):
            norm.momentum = None
            nn.init.normal_(norm.bias, 1.0)
            nn.init.uniform_(norm.weight, 0.2, 1.0)
        self.train()
        with torch.no_grad():
            for _ in range(4):
                self(torch.randn(64, 3, 8, 8))
        self.eval()

    def forward(self, x):
        x = self.body(x)
        return self.last((x + self.norm(self.project(x))).mean((2, 3)))


NET = Net()
FREE = rw.DataFree((3, 8, 8))
RANGES = rw.activations.ActivationBatchNorm(input_low=-4.0, input_high=4.0)


def recipe(**changes):
    plain = rw.Weights(bits=8, ranges=rw.ranges.MinMax())
    return rw.Recipe.data_free().with_settings(rw.Quantize, **{"weights": plain, **changes})


@pytest.fixture(scope="module")
def quantized():
    return rw.quantize(NET, FREE, recipe(activations=rw.Activations(ranges=RANGES)))


@pytest.mark.parametrize("adapt", [True, False])
def test_it_gives_what_the_same_recipe_gives_with_data(quantized, adapt):
    free, activations = quantized, rw.Activations(ranges=RANGES, adapt_rounding=adapt)
    with_data = rw.quantize(NET, WITH_DATA, recipe(activations=activations))
    ours, theirs = free.state_dict(), with_data.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with torch.no_grad():
        assert torch.equal(free(WITH_DATA), with_data(WITH_DATA))
    assert free.report.activations == with_data.report.activations
    assert not free.report.measured
    assert with_data.report.measured


def test_the_report_tells_that_no_error_was_measured(quantized):
    report = quantized.report
    text, html = str(report), render(quantized, title="net", facts={}, accuracy={}).partition("<script>")[0]
    assert has(text, 4)
    for word in ("nan", "NaN", "nearest  chosen"):
        assert word not in text
        assert word not in html
    assert [bool(layer.note) for layer in report.layers] == [layer.name == "body.0" for layer in report.layers]
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["stages"][1]["output_error"] is None
    assert str(Report.from_dict(plain)) == text


def test_a_file_of_it_loads(quantized, tmp_path):
    quantized.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    assert loaded.recipe == quantized.recipe
    assert quantized.samples is None  # so that an export is checked on what calls itself random
    assert not loaded.report.measured
    with torch.no_grad():
        assert torch.equal(loaded(WITH_DATA), quantized(WITH_DATA))


def test_the_correction_takes_most_of_the_mean_error_away():
    samples = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(6))

    @torch.no_grad()
    def error(correction):
        weights = rw.Weights(3, rw.PerTensor(), ranges=rw.ranges.MinMax())
        coarse = quantizing(weights, rw.rounding.Nearest(), correction=correction, rewrites=())
        difference = rw.quantize(NET, FREE, coarse)(samples) - NET(samples)
        return float(difference.mean(0).square().sum())

    assert error(rw.corrections.AnalyticBias()) < 0.2 * error(None)


def test_inputs_of_any_form_can_be_described():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.last = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, tokens, scale):
            return self.last(self.embed(tokens).mean(1) * scale)

    example = (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 4))
    plain = quantizing(rounding=rw.rounding.Nearest())
    assert len(rw.quantize(Two().eval(), rw.DataFree(example), plain).report.layers) == 1


def test_a_network_with_nothing_to_do_runs_through_and_says_so():
    model = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval()
    report = rw.quantize(model, rw.DataFree((6,))).report
    assert len(report.notes) == 2
    for rewrite in ("cross-layer-equalization", "high-bias-absorption"):
        assert any(has(note, rewrite) for note in report.notes)
    assert all(layer.note for layer in report.layers)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"rounding": rw.rounding.GramAdaRound()}, ("'body.0'", "GramAdaRound", "rounding=Nearest()")),
        ({"correction": rw.corrections.EmpiricalBias()}, ("'body.0'", "EmpiricalBias", "correction=AnalyticBias()")),
        ({"weights": rw.Weights(ranges=rw.ranges.OutputMSE())}, ("'body.0'", "OutputMSE", "ranges=WeightMSE()")),
        ({"activations": rw.Activations()}, ("activations", "ActivationMSE", "ranges=ActivationBatchNorm()")),
        (
            {"activations": rw.Activations(ranges=rw.activations.ActivationBatchNorm())},
            ("activations", "'x'", "input_low", "input_high"),
        ),
    ],
    ids=["rounding", "correction", "ranges", "activations", "limits of the input"],
)
def test_methods_that_learn_from_samples_are_refused(changes, facts):
    with raises(rw.RecipeError, *facts):
        rw.quantize(NET, FREE, recipe(**changes))


@pytest.mark.parametrize("data", [rw.DataFree((4,)), torch.randn(9, 4)], ids=["without data", "with data"])
def test_an_activation_of_which_nothing_is_known_is_named(data):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with raises(rw.RecipeError, "activations", "'relu'", "ActivationMSE()"):
        rw.quantize(model, data, recipe(activations=rw.Activations(ranges=RANGES)))


@pytest.mark.parametrize("size", [(np.int64(4),), torch.Size([4]), torch.zeros(2, 4).numpy().shape[1:], [4]], ids=repr)
def test_a_size_may_come_from_other_libraries(size):
    assert rw.DataFree(size).samples().shape == (2, 4)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_size_serves_a_program_for_one_batch_size(batch):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    program = torch.export.export(model, (torch.zeros(batch, 4),))
    assert rw.quantize(program, rw.DataFree((4,)))(torch.zeros(batch, 4)).shape == (batch, 3)
    captured = rw.capture(program, rw.DataFree((4,)))
    assert rw.quantize(captured, rw.DataFree((4,)))(torch.zeros(batch, 4)).shape == (batch, 3)


@pytest.mark.parametrize(
    "size",
    [(), (3, 0, 8), [-1], (3, 8.0), (3, True), "3x8x8", 3, None, ((3, 8), (4,)), {"x": (3, 8)}, {"x": 3}],
    ids=str,
)
def test_a_size_that_is_none_is_refused(size):
    with raises(rw.CalibrationError, repr(size), "(3, 224, 224)"):
        rw.DataFree(size)


@pytest.mark.parametrize(
    "settings",
    [
        {"deviations": 0.0},
        {"channels": 0.0},
        {"channels": 1.5},
        {"input_low": 1.0},
        {"input_low": 1.0, "input_high": 1.0},
    ],
    ids=str,
)
def test_ranges_that_mean_nothing_are_refused(settings):
    with raises(rw.RecipeError, "ActivationBatchNorm", *(f"{name}={value}" for name, value in settings.items())):
        rw.activations.ActivationBatchNorm(**settings)


def test_the_recipe_survives_a_trip_through_toml(tmp_path):
    wanted = recipe(activations=rw.Activations(ranges=RANGES))
    wanted.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == wanted


class Pooled(nn.Module):
    """Means of four numbers with one scale: a quarter of them lies in the middle between two codes."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.norm.bias, 0.5)

    def forward(self, x):
        return self.last(nn.functional.avg_pool2d(self.norm(self.first(x)).relu(), 2)).flatten(1)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_means_of_codes_may_be_rounded_either_way_by_an_exported_file(seed, tmp_path):
    pytest.importorskip("onnxruntime")
    quantized = rw.quantize(Pooled(seed).eval(), FREE, recipe(activations=rw.Activations(ranges=RANGES)))
    assert all(output.passes for output in rw.export(quantized, tmp_path / "net.onnx").outputs)


@pytest.mark.parametrize(("size", "model"), [((8, 8), nn.Conv2d(3, 4, 3)), ((4,), nn.Embedding(5, 3))])
def test_a_size_that_does_not_fit_is_not_answered_by_asking_for_samples(size, model):
    with raises(rw.CalibrationError, [2, *size], "DataFree", "--input-size"):
        rw.quantize(model.eval(), rw.DataFree(size))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_batch_norm_that_computes_nothing_is_refused(value):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model[1].running_mean[1] = value
    with raises(rw.ModelError, "1.running_mean", 1, 4):
        rw.quantize(model, rw.DataFree((3, 8, 8)))


def test_a_bias_that_computes_nothing_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model[0].bias.data[2] = -math.inf
    with raises(rw.ModelError, "'0'", "biases", 1, 4):
        rw.quantize(model, rw.DataFree((3, 8, 8)))


def test_a_limit_for_each_channel_is_no_weight_that_was_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 2, 3)).eval()
    model[0].weight.data[1] *= 9
    quantized = rw.quantize(model, rw.DataFree((3, 8, 8)))
    assert any(str(node.target) == "aten.minimum.default" for node in quantized.graph.operations.nodes)
    assert quantized.report.kept_float == ()


def test_a_network_that_gives_no_numbers_is_refused():
    class Broken(Net):
        def forward(self, image):
            return (-super().forward(image).square()).log()

    broken = Broken().eval()
    with raises(rw.ModelError, "random", "NaN"):
        rw.quantize(broken, FREE)


def test_random_inputs_have_the_networks_own_dtype():
    assert rw.quantize(Net().half(), FREE).graph.inputs[0].dtype == torch.float16
