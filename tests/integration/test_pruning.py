"""Channel pruning of whole networks: what is not needed goes without a loss, files hold the result."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from facts import has, raises
from torch import nn

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.runtimes import OnnxRuntime

PRUNINGS = [
    rw.compression.ChannelPruning(),
    rw.compression.MagnitudePruning(),
    rw.compression.BackwardElimination(),
]


class Net(nn.Module):
    """Blocks with shortcuts and batch-norms, a depthwise layer, a concatenation, and a flattened image."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.Conv2d(16, 24, 1)
        self.side = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(32 * 9, 20), nn.Linear(20, 6)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = torch.cat([self.point(F.relu(self.depthwise(x))), self.side(x)], 1)
        return self.head(F.relu(self.hidden(F.relu(x).flatten(1))))


def repeat(model):
    """Let the second half of each group of channels repeat the first half, so that every second channel can go."""
    half = {"stem": 8, "inner": 12, "outer": 8, "depthwise": 8, "point": 12, "side": 4, "hidden": 10}
    with torch.no_grad():
        for name, size in half.items():
            layer = getattr(model, name)
            layer.weight[size:] = layer.weight[:size]
            if layer.bias is not None:
                layer.bias[size:] = layer.bias[:size]
    return model


@pytest.fixture(scope="module")
def images():
    noise = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, 1) * 3  # neighbouring pixels are alike, as in photographs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def small(model, images):
    return rw.compress(model, images, rw.Compress(macs=0.6, methods=PRUNINGS[:1], multiple=2))


def entries(model):
    (stage,) = (stage for stage in model.report.stages if stage.compressed)
    return {one.name: one for one in stage.compressed}


def tensors(model):
    return {name.removeprefix("graph_module."): tensor for name, tensor in model.state_dict().items()}


def relative(output, target):
    return float((output - target).detach().square().sum() / target.detach().square().sum())


def test_channels_that_repeat_others_go_without_a_loss():
    images = torch.randn(1500, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = repeat(Net().eval())
    stage = rw.Compress(macs=0.33, methods=PRUNINGS[2:], choice=rw.compression.SameRatio(), multiple=1)
    small = rw.compress(model, images, stage)
    before, after = next(stage.macs for stage in small.report.stages if stage.compressed)
    assert after <= 0.33 * before
    assert relative(small(images), model(images)) < 1e-4


def test_the_error_is_as_the_report_says_and_smaller_than_without_fitting(model, images, small):
    error = relative(small(images), model(images))
    assert error == pytest.approx(small.report.output_error, rel=1e-3)
    readers = [one for one in entries(small).values() if not math.isnan(one.error)]
    assert {"inner", "outer", "point", "hidden", "head"} & {one.name for one in readers}
    assert all(one.error <= 1.01 * one.error_weights for one in readers)
    assert sum(one.error for one in readers) < 0.7 * sum(one.error_weights for one in readers)


def test_macs_are_those_of_the_network_that_is_left(model, images, small):
    before, after = next(stage.macs for stage in small.report.stages if stage.compressed)
    assert 0.45 * before < after <= 0.6 * before
    found = entries(small)
    kept = {name: one.size for name, one in found.items() if one.method}
    shapes = {name: tuple(tensor.shape[:2]) for name, tensor in tensors(small).items() if tensor.dim() > 1}
    assert kept
    for name, size in kept.items():
        assert shapes[f"{name}.weight"] == size
        assert all(number % 2 == 0 or name in ("stem", "depthwise") for number in size)
    assert found["head"].macs[0] == 6 * 20


@pytest.mark.parametrize("batch", [1, 5])
def test_it_runs_saves_loads_and_exports(images, small, tmp_path, batch):
    samples = torch.randn(batch, 3, 6, 6)
    output = small(samples)
    assert output.shape == (batch, 6)
    small.save(tmp_path / "small.rw")
    torch.testing.assert_close(rw.load(tmp_path / "small.rw")(samples), output, rtol=0, atol=0)
    file = OnnxRuntime().open(rw.export(small, tmp_path / "small.onnx").path)
    (name,) = file.inputs
    found = torch.from_numpy(file.run({name: samples.numpy()})[0])
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)


def test_layers_that_the_recipe_keeps_stay(model, images):
    stage = rw.Compress(macs=0.8, methods=PRUNINGS[:1], multiple=2, keep=("hidden",))
    found = entries(rw.compress(model, images, stage))
    assert not found["hidden"].method
    assert found["hidden"].macs[0] == found["hidden"].macs[1]
    assert has(found["hidden"].note, "'hidden'")
    assert any(one.method for one in found.values())


def test_the_report_says_why_channels_stay(small):
    assert has(entries(small)["head"].note or "returns", "returns")


@pytest.mark.parametrize("method", PRUNINGS, ids=repr)
def test_without_data_the_columns_that_stay_are_as_they_were(model, images, method):
    stage = rw.Compress(macs=0.6, methods=(method,), multiple=2)
    small = rw.compress(model, rw.DataFree((3, 6, 6)), stage)
    assert small(images).shape == (96, 6)
    weight, whole = tensors(small)["head.weight"], model.head.weight
    columns = {tuple(column.tolist()) for column in whole.T}
    assert all(tuple(column.tolist()) in columns for column in weight.T)


def test_several_stages_follow_each_other(model, images):
    stages = (
        rw.Rewrite(),
        rw.Compress(macs=0.8, methods=PRUNINGS[:1], multiple=2),
        rw.Compress(macs=0.8, methods=PRUNINGS[:1], multiple=2),
        rw.Compress(macs=0.8, multiple=2),
    )
    small = rw.compress(model, images, rw.Recipe(stages=stages))
    assert relative(small(images), model(images)) == pytest.approx(small.report.output_error, rel=1e-2)
    first, second, third = [stage.macs for stage in small.report.stages if stage.compressed]
    assert first[1] == second[0]
    assert second[1] == third[0]
    integer = rw.compress(model, images, rw.Recipe(stages=(*stages, rw.Quantize(rw.Weights(bits=8)))))
    assert relative(integer(images), small(images)) < 1e-3


def test_training_goes_on_from_a_pruned_network(model, images):
    stages = rw.Compress(macs=0.7, methods=PRUNINGS[:1], multiple=2), rw.Finetune(epochs=1)
    trained = rw.compress(model, images, rw.Recipe(stages=stages))
    assert trained(images).shape == (96, 6)
    assert trained.report.stages[-1].epochs


def test_a_budget_below_what_can_be_reached_is_refused(model, images):
    with raises(RecipeError, "macs=0.001", "ChannelPruning", 2):
        rw.compress(model, images, rw.Compress(macs=0.001, methods=PRUNINGS[:1], multiple=2))


BOTH = (*PRUNINGS[2:], rw.compression.SpatialSVD(), rw.compression.WeightSVD())


@pytest.fixture(scope="module")
def redundant(model):
    """Layers that share channels by a pair, and whose weights have a low rank."""
    net = repeat(copy.deepcopy(model))
    with torch.no_grad():
        for layer in (net.stem, net.outer, net.side):
            layer.weight.copy_(layer.weight.mean(3, keepdim=True).expand_as(layer.weight))
    return net


@pytest.fixture(scope="module")
def combined(redundant, images):
    return rw.compress(redundant, images, rw.Compress(macs=0.3, methods=BOTH, multiple=2))


def test_layers_lose_channels_and_become_chains_in_one_stage(redundant, images, combined):
    found = entries(combined)
    both = [one for one in found.values() if " + " in one.method]
    assert both
    for one in both:
        rows, columns, rank = one.size
        chain = [tensors(combined)[f"{one.name}.{part}.weight"].shape for part in (0, 1)]
        assert (chain[0][0], chain[0][1], chain[1][0], chain[1][1]) == (rank, columns, rows, rank)
    assert relative(combined(images), redundant(images)) == pytest.approx(combined.report.output_error, rel=1e-3)


def test_costs_of_channels_and_chains_are_those_of_the_network_that_is_left(redundant, images):
    stages = rw.Compress(macs=0.3, methods=BOTH, multiple=2), rw.Compress(macs=0.95, multiple=1)
    twice = rw.compress(redundant, images, rw.Recipe((rw.Rewrite(), *stages)))
    first, second = [stage.macs for stage in twice.report.stages if stage.compressed]
    assert 0.25 * first[0] < first[1] <= 0.3 * first[0]
    assert second[0] == first[1]


def test_both_kinds_of_methods_lose_no_more_than_one_of_them(redundant, images, combined):
    expected = sum(one.predicted for one in entries(combined).values() if one.method)
    for methods in (BOTH[:1], BOTH[1:]):
        alone = rw.compress(redundant, images, rw.Compress(macs=0.3, methods=methods, multiple=2))
        assert expected <= 1.001 * sum(one.predicted for one in entries(alone).values() if one.method)


def test_both_kinds_of_methods_work_without_data(model, images):
    small = rw.compress(model, rw.DataFree((3, 6, 6)), rw.Compress(macs=0.4, methods=BOTH, multiple=2))
    assert small(images).shape == (96, 6)
    assert {"spatial-svd", "weight-svd", "backward-elimination"} & {one.method for one in entries(small).values()}


def test_a_method_that_chooses_channels_that_do_not_exist_is_named(model, images):
    class Wrong(rw.compression.Pruning):
        def reason(self, layer):
            return ""

        def keep(self, problem, counts):
            return [torch.arange(count) + problem.channels for count in counts]

    with raises(RecipeError, "Wrong"):
        rw.compress(model, images, rw.Compress(macs=0.5, methods=(Wrong(),)))


class Shortcut(nn.Module):
    """A branch of two convolutions, and a shortcut that is computed from the same tensor, after the branch."""

    def __init__(self, inner=16):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
        self.one, self.two = nn.Conv2d(16, inner, 3, padding=1), nn.Conv2d(inner, 16, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        branch = self.two(torch.relu(self.one(x)))
        return self.head(torch.relu(branch + 0.5 * x).mean((2, 3)))


class Cheapest(rw.compression.RatioChoice):
    """Everything becomes as small as it can."""

    def choose(self, layers, budget):
        return [min(range(len(one.costs)), key=one.costs.__getitem__) for one in layers]


def test_a_chain_whose_own_channels_go_reads_what_the_original_reads_too():
    torch.manual_seed(0)
    model, images = Shortcut(inner=8).eval(), torch.randn(64, 3, 10, 10)
    methods = rw.compression.MagnitudePruning(), rw.compression.SpatialSVD()
    stage = rw.Compress(macs=0.9, methods=methods, choice=Cheapest())
    found = {one.name: one for one in rw.compress(model, images, stage).report.stages[-1].compressed}
    assert found["two"].method == "magnitude-pruning + spatial-svd"
    assert found["two"].size[:2] == (8, 8)  # of its output channels some go, of its inputs none


def test_a_chain_that_reads_fewer_channels_makes_up_for_the_shortcut_beside_it():
    torch.manual_seed(0)
    model, images = Shortcut().eval(), torch.randn(64, 3, 10, 10)
    methods = rw.compression.MagnitudePruning(), rw.compression.SpatialSVD()
    stage = rw.Compress(macs=0.9, methods=methods, choice=Cheapest(), keep=("stem", "head"))
    small = rw.compress(model, images, stage)
    found = {one.name: one for one in small.report.stages[-1].compressed}
    assert "magnitude-pruning" in found["one"].method
    assert found["two"].method == "magnitude-pruning + spatial-svd"
    assert found["two"].error <= found["two"].error_weights
    torch.testing.assert_close(small(images), model(images), rtol=1, atol=0.5)
