"""Compression of networks: budgets are kept, errors are as predicted, files hold the result, bad input is refused."""

import pytest
import torch
from facts import has, raises
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.runtimes import OnnxRuntime

SVD = rw.compression.SpatialSVD(), rw.compression.WeightSVD()


class Net(nn.Module):
    """Convolutions with batch-norm, a stride, a shortcut, a depthwise and a grouped layer, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.grouped = nn.Conv2d(32, 32, 1, groups=2)
        self.conv2, self.bn2 = nn.Conv2d(32, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48)
        self.point = nn.Conv2d(48, 64, 1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.grouped(self.depthwise(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.relu(self.point(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    noise = torch.randn(96, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, 1) * 3  # neighbouring pixels are alike, as in photographs


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    model = Net().train()
    with torch.no_grad():
        for _ in range(40):
            model(images)
    return model.eval()


@pytest.fixture(scope="module")
def small(model, images):
    return rw.compress(model, images, rw.Compress(macs=0.6, methods=SVD, multiple=4))


def entries(model):
    (stage,) = (stage for stage in model.report.stages if stage.compressed)
    return {one.name: one for one in stage.compressed}


def relative(output, target):
    return float((output - target).detach().square().sum() / target.detach().square().sum())


def test_the_budget_is_kept_and_counted_right(model, images, small):
    before, after = next(stage.macs for stage in small.report.stages if stage.compressed)
    places = 12 * 12
    wanted = places * (3 * 32 * 9 + 32 * 32 * 9 + 32 * 9 + 32 * 16) + 36 * (32 * 48 * 9 + 48 * 64) + 640
    assert before == wanted
    assert 0.5 * before < after <= 0.6 * before
    weights = sum(p.numel() for name, p in small.state_dict().items() if "weight" in name)
    assert weights < sum(p.numel() for p in model.parameters())


def test_the_output_is_near_the_original_and_its_error_as_the_report_says(model, images, small):
    error = relative(small(images), model(images))
    assert error == pytest.approx(small.report.output_error, rel=1e-3)
    predicted = sum(one.predicted for one in entries(small).values() if one.method)
    assert 0.3 * predicted < error < 2 * predicted


def test_fitted_factors_are_better_than_those_of_the_weights(model, images, small):
    cut = [one for one in entries(small).values() if one.method]
    assert len(cut) >= 2
    assert all(one.error < one.error_weights for one in cut)
    free = rw.compress(model, rw.DataFree((3, 12, 12)), rw.Compress(macs=0.6, multiple=4))
    assert relative(free(images), model(images)) > 2 * small.report.output_error
    assert all(0 < one.predicted < 1 for one in entries(free).values() if one.method)


def test_layers_that_cannot_be_cut_stay_and_the_report_says_why(small):
    left = {name: one.note for name, one in entries(small).items() if not one.method}
    assert has(left["depthwise"], 32)
    assert has(left["grouped"], 2)
    assert has(str(small.report), *left.values())


@pytest.mark.parametrize("keep", [("conv2",), ("conv*",)])
def test_layers_that_the_recipe_keeps_stay(model, images, keep):
    kept = rw.compress(model, images, rw.Compress(macs=0.95, multiple=4, keep=keep))
    assert {"conv1", "conv2"} >= {name for name, one in entries(kept).items() if one.note == "the recipe keeps it"}
    assert not entries(kept)["conv2"].method


def test_the_same_share_in_every_layer_is_a_choice(model, images):
    choice = rw.compression.SameRatio()
    small = rw.compress(model, images, rw.Compress(macs=0.7, methods=SVD, choice=choice, multiple=1))
    shares = [one.macs[1] / one.macs[0] for one in entries(small).values() if one.method]
    assert max(shares) - min(shares) < 0.15
    chosen = rw.compress(model, images, rw.Compress(macs=0.7, methods=SVD, multiple=1))
    assert chosen.report.output_error < small.report.output_error


def test_parameters_are_a_budget_too(model, images):
    small = rw.compress(model, images, parameters=0.7)
    before, after = next(stage.parameters for stage in small.report.stages if stage.compressed)
    assert after <= 0.7 * before
    assert after == pytest.approx(sum(p.numel() for p in small.state_dict().values()), rel=0.02)  # folded batch-norms


def test_a_budget_of_parameters_keeps_sizes_that_do_not_save_multiplications():
    # 1 × 1 to few channels at the full resolution, then the strided kernel: fewer parameters, and more multiplications.
    torch.manual_seed(0)
    layer, samples = nn.Conv2d(16, 16, 2, stride=4).eval(), torch.randn(32, 16, 16, 16)
    method = rw.compression.WeightSVD("last")
    stage = rw.Compress(parameters=0.8, methods=(method,), multiple=4)
    (one,) = rw.compress(layer, samples, stage).report.stages[-1].compressed
    assert one.parameters[1] <= 0.8 * one.parameters[0]
    assert one.macs[1] > one.macs[0]
    with raises(RecipeError, "macs=0.8"):
        rw.compress(layer, samples, rw.Compress(macs=0.8, methods=(method,), multiple=4))


def test_batch_norms_stay_where_the_recipe_does_not_fold_them(model, images):
    small = rw.compress(model, images, (rw.Compress(macs=0.6, multiple=4),))
    assert any("bn1" in name for name in small.state_dict())
    folded = rw.compress(model, images, rw.Compress(macs=0.6, multiple=4))
    assert not any("bn1" in name for name in folded.state_dict())
    assert relative(small(images), model(images)) < 2 * folded.report.output_error


def test_the_same_seed_gives_the_same_network_however_samples_are_batched(model, images, small):
    again = rw.compress(model, list(images.split(32)), rw.Compress(macs=0.6, methods=SVD, multiple=4))
    for (name, one), (other_name, other) in zip(small.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_result_is_saved_loaded_and_exported(images, small, tmp_path):
    small.save(tmp_path / "small.rw")
    loaded = rw.load(tmp_path / "small.rw")
    assert torch.equal(loaded(images), small(images))
    assert loaded.report.as_dict() == small.report.as_dict()
    assert loaded.recipe == small.recipe
    pytest.importorskip("onnxruntime")
    file = rw.export(small, tmp_path / "small.onnx").path
    opened = OnnxRuntime().open(file)
    (output,) = opened.run({opened.inputs[0]: images.numpy()})
    torch.testing.assert_close(torch.as_tensor(output), small(images), rtol=1e-3, atol=1e-4)


def test_the_page_shows_the_layers(small, tmp_path):
    pytest.importorskip("jinja2")
    rw.html_report(small, tmp_path / "small.html")
    text = (tmp_path / "small.html").read_text()
    assert has(text, "spatial-svd", "conv1", "MACs")
    assert "every weight tensor of the network is on a grid" not in text


def test_compression_and_quantization_in_one_recipe(model, images):
    stages = rw.Compress(macs=0.6, multiple=4), rw.Quantize(rw.Weights(bits=8), activations=rw.Activations(bits=8))
    both = rw.quantize(model, images, stages)
    assert [stage.stage for stage in both.report.stages] == ["compress", "rewrite", "quantize"]
    assert relative(both(images), model(images)) < 1.5 * both.report.stages[0].output_error + 0.01
    assert {"conv1.0", "conv1.1"} <= {layer.name for layer in both.report.layers}
    assert has(str(both.report), "spatial-svd", "conv1.0")


def test_training_learns_from_the_original_network(model, images):
    training = rw.Finetune(epochs=8, batch_size=16, loss="mse", learning_rate=3e-4)
    stages = rw.Rewrite(()), rw.Compress(macs=0.3, methods=SVD, multiple=4), training
    trained = rw.finetune(model, images, stages, calibration=images)
    _, compressed, finetuned = trained.report.stages
    assert finetuned.best_epoch.epoch > 0
    assert finetuned.output_error < compressed.output_error
    assert relative(trained(images), model(images)) == pytest.approx(finetuned.output_error, rel=0.05)


def test_training_learns_from_the_original_network_through_a_rewrite(model, images):
    stages = rw.Compress(macs=0.45, multiple=4), rw.Rewrite(), rw.Finetune(epochs=1, batch_size=16, loss="mse")
    trained = rw.finetune(model, images, stages, calibration=images)
    assert trained.report.stages[-1].output_error == pytest.approx(relative(trained(images), model(images)), rel=0.05)


def test_a_network_can_be_compressed_twice(model, images):
    stages = [rw.Compress(macs=0.8, multiple=4), rw.Compress(macs=0.8, multiple=4, methods=(SVD[1],))]
    twice = rw.compress(model, images, stages)
    first, second = twice.report.stages
    assert second.macs[0] == first.macs[1]
    assert second.output_error == pytest.approx(relative(twice(images), model(images)), rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "sample", "method"),
    [
        (nn.Linear(48, 40), (48,), "weight-svd"),
        (nn.Linear(48, 40), (5, 48), "weight-svd"),
        (nn.Conv1d(40, 48, 3, stride=2, padding=1), (40, 20), "weight-svd"),
        (nn.Conv2d(16, 24, 3, padding="same", dilation=2), (16, 9, 9), "spatial-svd"),
        (nn.Conv2d(16, 24, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), (16, 9, 11), "spatial-svd"),
        (nn.Conv3d(8, 16, 3, padding=1), (8, 5, 5, 5), "spatial-svd"),
    ],
    ids=str,
)
def test_every_kind_of_layer_is_cut_and_counted(layer, sample, method):
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.01, 1, layer.weight.shape[1]).reshape(-1, *[1] * (layer.weight.dim() - 2)))
    samples = torch.randn(64, *sample)
    small = rw.compress(nn.Sequential(layer).eval(), samples, rw.Compress(macs=0.7, methods=SVD, multiple=2))
    (one,) = entries(small).values()
    assert one.method == method
    assert relative(small(samples), layer(samples)) == pytest.approx(one.error, rel=1e-2)
    output = layer(samples)
    assert one.macs[0] == layer.weight.numel() * output[0].numel() // output.shape[-1 if layer.weight.dim() == 2 else 1]
    assert one.parameters[1] == sum(tensor.numel() for tensor in small.state_dict().values())


CHAINS = rw.compression.Tucker2(), rw.compression.TensorTrain(), rw.compression.CP()
CHAIN = pytest.mark.parametrize("method", CHAINS, ids=lambda method: type(method).__name__)
MANY = {
    "conv1d": (nn.Conv1d(24, 32, 3, stride=2, padding=1), (24, 20)),
    "conv2d": (nn.Conv2d(16, 24, 3, padding="same", dilation=2, bias=False), (16, 9, 9)),
    "conv2d strided": (nn.Conv2d(16, 24, (3, 2), stride=(1, 2), padding=(1, 0)), (16, 9, 10)),
    "conv3d": (nn.Conv3d(8, 16, 3, padding=1), (8, 5, 5, 5)),
}


@pytest.mark.parametrize(
    ("case", "method"), in_thirds(MANY, {type(method).__name__: method for method in CHAINS}, start=1)
)
def test_longer_chains_are_counted_saved_and_exported(case, method, tmp_path):
    layer, sample = case
    samples = torch.randn(64, *sample)
    if isinstance(layer, nn.Conv1d) and isinstance(method, rw.compression.TensorTrain):
        pytest.skip("a kernel of one dimension")
    stage = rw.Compress(macs=0.7, methods=(method,), multiple=4)
    small = rw.compress(nn.Sequential(layer).eval(), samples, stage)
    (one,) = entries(small).values()
    assert rw.compression.COMPRESSION_METHODS[one.method] is type(method)
    assert relative(small(samples), layer(samples)) == pytest.approx(one.error, rel=1e-2)
    assert one.error < one.error_weights * 1.01
    assert one.parameters[1] == sum(tensor.numel() for tensor in small.state_dict().values())
    macs, value = 0, samples[:1]
    for part in small.graph_module.graph.nodes:  # each layer multiplies its weight with all places of its output
        if part.op == "call_function" and "conv" in str(part.target):
            weight = small.graph.constants[str(part.args[1].target)]
            value = part.target(value, weight, None, *part.args[3:])
            macs += weight.numel() * value[0, 0].numel()
    assert one.macs[1] == macs
    small.save(tmp_path / "small.rw")
    assert rw.load(tmp_path / "small.rw").recipe == small.recipe
    pytest.importorskip("onnxruntime")
    opened = OnnxRuntime().open(rw.export(small, tmp_path / "small.onnx").path)
    (output,) = opened.run({opened.inputs[0]: samples.numpy()})
    torch.testing.assert_close(torch.as_tensor(output), small(samples), rtol=1e-3, atol=1e-4)


def test_layers_that_share_a_weight_stay(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.last = nn.Conv2d(16, 32, 3)

        def forward(self, x):
            return self.last(torch.relu(self.conv(torch.relu(self.conv(self.first(x))))))

    small = rw.compress(Twice().eval(), images, rw.Compress(macs=0.9, multiple=4))
    assert not entries(small)["conv"].method
    assert has(entries(small)["conv"].note, 2)
    assert entries(small)["last"].method


def test_half_precision_keeps_its_dtype(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval().bfloat16()
    small = rw.compress(model, images.bfloat16(), macs=0.6)
    assert {tensor.dtype for tensor in small.state_dict().values()} == {torch.bfloat16}
    assert small(images[:4].bfloat16()).dtype == torch.bfloat16


def test_progress_tells_the_two_passes_and_the_layers(model, images):
    events = []
    rw.compress(model, images, rw.Compress(macs=0.6, multiple=4), progress=events.append)
    texts = [str(event) for event in events]
    assert any(has(text, "conv1", "size") for text in texts)
    assert sum("measuring" in text for text in texts) == 1


# ------------------------------------------------------------------------------------------------------ bad input


def test_a_budget_that_cannot_be_met_says_what_can(model, images):
    with raises(RecipeError, "macs=0.01", "SpatialSVD", 8) as caught:
        rw.compress(model, images, macs=0.01)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    reached = rw.compress(model, images, macs=least)
    before, after = next(stage.macs for stage in reached.report.stages if stage.compressed)
    assert after / before == pytest.approx(least, abs=2e-3)


def test_a_layer_to_keep_that_does_not_exist_is_an_error(model, images):
    with raises(RecipeError, "conv9", "conv1"):
        rw.compress(model, images, rw.Compress(macs=0.6, keep=("conv9",)))


def test_a_network_without_layers_is_an_error(images):
    with raises(ModelError):
        rw.compress(nn.ReLU().eval(), images, macs=0.5)


def test_weights_that_are_not_finite_are_an_error(images):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)).eval()
    with torch.no_grad():
        model[1].weight[0, 0, 0, 0] = torch.nan
    with raises(ModelError, "'1'", 1):
        rw.compress(model, images, macs=0.6)


def test_a_recipe_and_a_budget_together_are_an_error(model, images):
    with raises(RecipeError, "macs"):
        rw.compress(model, images, rw.Compress(macs=0.5), macs=0.5)


def test_no_samples_are_an_error(model):
    with pytest.raises(CalibrationError):
        rw.compress(model, torch.empty(0, 3, 12, 12), macs=0.6)


def test_an_answer_that_does_not_fit_names_the_method_and_the_layer(model, images):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Wrong(rw.compression.Factorization):
        def reason(self, layer):
            return SVD[1].reason(layer)

        def sizes(self, layer, multiple):
            return SVD[1].sizes(layer, multiple)

        def parts(self, layer, size):
            return SVD[1].parts(layer, size)

        def errors(self, problem, sizes):
            return SVD[1].errors(problem, sizes)

        def factorize(self, problem, size):
            answer = SVD[1].factorize(problem, size)
            return rw.compression.Factorized(answer.weights[::-1], answer.matrix)

    with raises(RecipeError, "Wrong()"):
        rw.compress(model, images, rw.Compress(macs=0.6, methods=(Wrong(),), multiple=4))
