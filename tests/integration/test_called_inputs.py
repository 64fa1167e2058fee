"""What inputs a captured network may be called with: what it was captured for is right, and all else is refused."""

import pytest
import torch
import torch.nn.functional as F
from facts import has, raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

PRECISE = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest())
IMAGES, LARGER = torch.randn(24, 3, 8, 8), torch.randn(4, 3, 12, 16)
SEQUENCES, LONGER = torch.randn(24, 7, 6), torch.randn(4, 11, 6)
SIDES = {"x": {2: "height", 3: "width"}}


class Net(nn.Module):
    """A convolution and a linear layer, and what is done between them."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.head, self.way = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5), way

    def forward(self, x):
        return self.way(self, x)


class Words(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(6, 8), nn.Linear(8, 3), way

    def forward(self, x):
        return self.way(self, x)


def agree(network, model, *inputs):
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs), model(*inputs), rtol=1e-3, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- dtypes


class Casts(nn.Module):
    """Casts its input itself, or does something else for another dtype."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        if x.dtype == torch.bool:
            return self.layer(x.float()) + 1
        return self.layer((x.to(torch.float32) - 127) / 64)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool)


@pytest.mark.parametrize("captured", DTYPES, ids=str)
def test_another_dtype_than_at_capture_is_refused_by_name(captured, tmp_path):
    samples, model = torch.randint(0, 2, (8, 6)), Casts().eval()
    quantized = rw.quantize(model, samples.to(captured), PRECISE)
    quantized.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    for network in (quantized, loaded):
        agree(network, model, samples.to(captured))
        for other in set(DTYPES) - {captured}:
            with raises(rw.ModelError, "'x'", str(other).split(".")[1], str(captured)):
                network(samples.to(other))
    with raises(rw.ExportError, "int32"):
        rw.export(loaded, tmp_path / "model.onnx", samples=samples.int())


def test_samples_of_several_dtypes_or_sizes_are_refused():
    x = torch.ones(4, 6)
    for other in (x.double(), x.to(torch.uint8), torch.ones(4, 7)):
        with raises(rw.CalibrationError, "batch 1"):
            rw.quantize(Casts().eval(), [x, other], PRECISE)


# ---------------------------------------------------------------------------------------------------------------- sizes


def mean_by_hand(net, x):
    y = F.relu(net.conv(x))
    return net.head(y.sum((2, 3)) / (y.shape[2] * y.shape[3]))


def whole_pool(net, x):
    y = F.relu(net.conv(x))
    return net.head(F.avg_pool2d(y, y.shape[-2:]).flatten(1))


def to_the_inputs_size(net, x):
    return F.interpolate(net.conv(x[..., ::2, ::2]), size=x.shape[-2:], mode="bilinear")


def shifted_by_half(net, x):
    y = net.conv(x)
    return torch.roll(y, y.size(2) // 2, 2)


def places(net, x):
    height, width = x.shape[2:]
    return net.conv(x) * (torch.arange(height)[:, None] + torch.arange(width)) / 10


def kept_height(net, x):
    return F.adaptive_avg_pool2d(net.conv(x), (None, 2))


def larger_than_ten(net, x):
    y = net.conv(x)
    return 2 * y if x.shape[2] > 10 else y


def rows(net, x):
    return net.head(sum(net.conv(x).mean(3).unbind(2)))


DEPENDENT = (
    mean_by_hand,
    whole_pool,
    to_the_inputs_size,
    shifted_by_half,
    places,
    kept_height,
    larger_than_ten,
    rows,
)


@pytest.mark.parametrize("way", DEPENDENT, ids=lambda way: way.__name__)
def test_a_size_that_the_models_code_computes_with_is_fixed(way, tmp_path):
    model = Net(way).eval()
    quantized = rw.quantize(model, IMAGES, PRECISE)
    quantized.save(tmp_path / "model.rw")
    for network in (quantized, rw.load(tmp_path / "model.rw")):
        agree(network, model, IMAGES[:3])
        with raises(rw.ModelError, "'x'", "dimension 2", 12, 8, "dynamic={'x': {2: 'size'}}"):
            network(LARGER)


def test_a_hook_that_computes_with_a_size_is_seen():
    model = Net(lambda net, x: net.conv(x)).eval()
    model.register_forward_hook(lambda _, __, output: output / output.shape[2])
    quantized = rw.quantize(model, IMAGES, PRECISE)
    agree(quantized, model, IMAGES)
    with raises(rw.ModelError, 12, 8):
        quantized(LARGER)


def pooled(net, x):
    return net.head(net.conv(x).mean((2, 3)))


def pooled_and_viewed(net, x):
    y = F.adaptive_avg_pool2d(F.relu(net.conv(x)), 1)
    return net.head(y.view(y.size(0), -1).reshape(x.shape[0], 4))


def everywhere(net, x):
    return F.interpolate(F.max_pool2d(net.conv(x), 2), scale_factor=2.0)


@pytest.mark.parametrize("way", [pooled, pooled_and_viewed, everywhere], ids=lambda way: way.__name__)
def test_a_size_on_which_nothing_depends_is_free_and_the_channels_are_not(way, tmp_path):
    model = Net(way).eval()
    quantized = rw.quantize(model, IMAGES, PRECISE)
    quantized.save(tmp_path / "model.rw")
    for network in (quantized, rw.load(tmp_path / "model.rw")):
        agree(network, model, LARGER)
        with raises(rw.ModelError, "dimension 1", 4, 3):
            network(torch.randn(2, 4, 8, 8))


def test_the_length_of_a_sequence_is_free_where_no_code_reads_it():
    recurrent = nn.LSTM(6, 6, batch_first=True)

    def forward(net, x):
        return net.b(torch.tanh(net.a(recurrent(x)[0])).amax(1))

    model = Words(forward).eval()
    agree(rw.quantize(model, SEQUENCES, PRECISE), model, LONGER)


def test_other_sizes_of_several_inputs_go_together():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, ids, mask):
            return self.head((self.words(ids) * mask[..., None]).sum(1))

    model = Masked().eval()
    quantized = rw.quantize(model, (torch.randint(0, 20, (8, 7)), torch.ones(8, 7)), PRECISE)
    agree(quantized, model, torch.randint(0, 20, (2, 11)), torch.ones(2, 11))
    named = {"ids": {1: "length"}, "mask": {1: "length"}}
    quantized = rw.quantize(model, (torch.randint(0, 20, (8, 7)), torch.ones(8, 7)), PRECISE, dynamic=named)
    with raises(rw.ModelError, "'length'", "'ids'", 11, "'mask'", 10):
        quantized(torch.randint(0, 20, (2, 11)), torch.ones(2, 10))


class Head(nn.Module):
    """Keeps a grid for the size that it has seen last, as the heads of detectors do."""

    def __init__(self):
        super().__init__()
        self.conv, self.size, self.grid = nn.Conv2d(3, 4, 3, padding=1), None, torch.empty(0)

    def forward(self, x):
        y = self.conv(x)
        if self.size != y.shape:
            self.grid, self.size = torch.arange(y.shape[2] * y.shape[3]).view(1, 1, *y.shape[2:]) / 10, y.shape
        return y + self.grid


@pytest.mark.parametrize("earlier", [None, IMAGES[:1], IMAGES, LARGER], ids=["none", "one", "same", "other"])
def test_a_grid_that_an_earlier_call_left_behind_is_not_taken_for_another_size(earlier):
    model = Head().eval()
    if earlier is not None:
        model(earlier)
    quantized = rw.quantize(model, IMAGES, PRECISE)
    agree(quantized, model, IMAGES[:5])
    with raises(rw.ModelError, 12):
        quantized(LARGER)


# -------------------------------------------------------------------------------------------------------------- dynamic


def attention(net, x):
    q = net.a(x)
    return net.b((torch.softmax(q @ q.mT, -1) @ q).reshape(x.shape[0], x.shape[1], 8))


@pytest.mark.parametrize(
    ("model", "samples", "dynamic", "other", "axes"),
    [
        (Net(mean_by_hand), IMAGES, SIDES, LARGER, ["batch", 3, "height", "width"]),
        pytest.param(
            *(Net(to_the_inputs_size), IMAGES, SIDES, LARGER, ["batch", 3, "height", "width"]), marks=pytest.mark.slow
        ),
        (Net(pooled), IMAGES, {"x": {3: "width"}}, LARGER[:, :, :8], ["batch", 3, 8, "width"]),
        (Words(attention), SEQUENCES, {"x": {1: "length"}}, LONGER, ["batch", "length", 6]),
    ],
    ids=["mean", "interpolation", "width", "attention"],
)
def test_sizes_that_are_dynamic_are_right_up_to_the_file_for_onnx(model, samples, dynamic, other, axes, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    quantized = rw.quantize(model.eval(), samples, PRECISE, dynamic=dynamic)
    captured = rw.quantize(rw.capture(model, samples, dynamic=dynamic), samples, PRECISE)
    quantized.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    for network in (quantized, captured, loaded):
        agree(network, model, samples)
        agree(network, model, other)
    assert has(quantized.report, *(name for dims in dynamic.values() for name in dims.values()))
    rw.export(loaded, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == axes
    (found,) = session.run(None, {"x": other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(other).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_every_recipe_runs_on_a_network_with_dynamic_sizes():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6)
            self.c, self.up, self.head = nn.Conv2d(6, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 3)

        def forward(self, x):
            y = F.relu(self.c(F.relu(self.b(F.relu(self.bn(self.a(x)))))))
            y = torch.cat([self.up(y), self.up(y).flip(2)], 1)[:, 2:6]
            return self.head(y.flatten(2).transpose(1, 2)), y.shape[2] * y.mean((2, 3))

    model = Blocks().eval()
    for recipe in (
        rw.Recipe(),
        quantizing(activations=rw.Activations(), rounding=rw.rounding.Nearest()),
        quantizing(rounding=rw.rounding.GPTQ(), rewrites=(rw.rewrites.CrossLayerEqualization(),)),
    ):
        quantized = rw.quantize(model, IMAGES, recipe, dynamic=SIDES)
        for x in (IMAGES, LARGER):
            for one, other in zip(quantized(x), model(x), strict=True):
                assert one.shape == other.shape


def test_a_size_outside_of_the_range_of_its_branch_is_refused(tmp_path):
    model = Net(larger_than_ten).eval()
    quantized = rw.quantize(model, IMAGES, PRECISE, dynamic=SIDES)
    assert has(quantized.report, "height (2 to 10)")
    agree(quantized, model, torch.randn(2, 3, 10, 20))
    with raises(rw.ModelError, "'height'", "2 to 10"):
        quantized(LARGER)
    with raises(rw.ExportError, "'height'", "2 to 10"):
        rw.export(quantized, tmp_path / "model.onnx")


def test_a_dynamic_size_that_the_code_makes_a_constant_of_is_refused_with_the_place():
    with raises(rw.CaptureError, "dimension 2", "height", "test_called_inputs.py", "range(int(x.shape[2]))"):
        rw.quantize(
            Net(lambda net, x: sum(net.conv(x) * i for i in range(int(x.shape[2])))).eval(),
            IMAGES,
            PRECISE,
            dynamic=SIDES,
        )


@pytest.mark.parametrize(
    ("dynamic", "facts"),
    [
        ({"image": {2: "height"}}, ("'image'", "'x'")),
        ({"x": {4: "depth"}}, (4, "samples", 3, 8)),
        ({"x": {0: "batch"}}, (0, "batch")),
        ({"x": {1: "batch"}}, (1, "batch")),
        ({"x": ["height"]}, ("['height']", "{2: 'height', 3: 'width'}")),
        ({"x": {"2": "height"}}, ("'2'", "{2: 'height', 3: 'width'}")),
        ({"x": {2: "the height"}}, ("the height", "{2: 'height', 3: 'width'}")),
    ],
)
def test_dynamic_that_names_no_dimension_is_refused(dynamic, facts):
    with raises(rw.RecipeError, *facts):
        rw.quantize(Net(pooled).eval(), IMAGES, PRECISE, dynamic=dynamic)


def test_dynamic_belongs_to_capture():
    model = Net(pooled).eval()
    with raises(rw.RecipeError, "rw.capture"):
        rw.quantize(rw.capture(model, IMAGES), IMAGES, PRECISE, dynamic=SIDES)
    with raises(rw.RecipeError, "dynamic_shapes"):
        rw.quantize(torch.export.export(model, (IMAGES,)), IMAGES, PRECISE, dynamic=SIDES)
    with raises(rw.RecipeError, 1, "2 or more"):
        rw.quantize(model, IMAGES[:, :, :1], PRECISE, dynamic={"x": {2: "height"}})


# --------------------------------------------------------------------------------------------------- numbers of samples


def copies_many(net, x):
    y = net.conv(x + torch.arange(x.shape[0])[:, None, None, None] * 0)
    if y.shape[0] >= 64:
        y = 2 * y
    return y


def test_a_model_that_does_something_else_for_many_samples_takes_fewer(tmp_path):
    model = Net(copies_many).eval()
    quantized = rw.quantize(model, IMAGES, PRECISE)
    quantized.save(tmp_path / "model.rw")
    assert has(quantized.report, "1 to 63")
    for network in (quantized, rw.load(tmp_path / "model.rw")):
        for number in (1, 2, 63):
            agree(network, model, torch.randn(number, 3, 8, 8))
        with raises(rw.ModelError, "1 to 63", 64):
            network(torch.randn(64, 3, 8, 8))
    many = torch.randn(130, 3, 8, 8)
    with raises(rw.CalibrationError, "batch_size=100", "1 to 63"):
        rw.quantize(model, many, quantizing(rounding=rw.rounding.Nearest(), batch_size=100))


def test_samples_are_cut_into_batches_that_the_network_takes():
    def few(net, x):
        y = net.conv(x)
        return 2 * y if x.shape[0] > 6 else y

    model = Net(few).eval()
    quantized = rw.quantize(model, IMAGES[:13], quantizing(rounding=rw.rounding.Nearest(), correction=None))
    with torch.no_grad():
        wanted = torch.cat([model(part) for part in IMAGES[:13].split(6)])
    found = torch.cat([quantized(part) for part in IMAGES[:13].split(6)])
    error = float((wanted - found).square().sum() / wanted.square().sum())
    assert quantized.report.output_error == pytest.approx(error, rel=1e-3)


def test_the_way_out_for_one_batch_size_works_when_it_is_followed():
    def loop(net, x):
        return torch.stack([net.conv(one) for one in x])

    model = Net(loop).eval()
    with raises(rw.CaptureError, "for one in x", "torch.export.export(model, (samples,))"):
        rw.quantize(model, IMAGES, PRECISE)
    samples = IMAGES[:8]
    quantized = rw.quantize(torch.export.export(model, (samples,)), IMAGES, PRECISE)
    agree(quantized, model, samples)
    with raises(rw.ModelError, 8, 5):
        quantized(IMAGES[:5])


class BatchFirst(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("kind", in_thirds([nn.LSTM, nn.GRU, nn.RNN]))
def test_time_first_is_told_by_name_and_both_ways_out_work(kind):
    class TimeFirst(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.recurrent, self.head = kind(6, 8, **settings), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.recurrent(x)[0])

    model = TimeFirst().eval()
    with raises(rw.CaptureError, f"nn.{kind.__name__}", "'recurrent'", "batch_first=True", "x.transpose(0, 1)"):
        rw.quantize(model, torch.randn(50, 16, 6), PRECISE)
    other = TimeFirst(batch_first=True).eval()
    other.load_state_dict(model.state_dict())
    for way_out in (other, BatchFirst(model).eval()):
        quantized = rw.quantize(way_out, SEQUENCES, PRECISE)
        with torch.no_grad():
            expected = model(SEQUENCES.transpose(0, 1)).transpose(0, 1)
            torch.testing.assert_close(quantized(SEQUENCES), expected, rtol=1e-3, atol=1e-3)


def test_attention_along_the_first_dimension_is_in_the_report():
    for first in (False, True):
        model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=first).eval()
        report = rw.quantize(model, torch.randn(8, 5, 6), PRECISE).report
        assert has(report, "batch_first=True") == (not first)


# --------------------------------------------------------------------------------------------------------------- memory


def test_a_model_that_reads_memory_in_its_order_takes_contiguous_inputs_only(tmp_path):
    model = Net(lambda net, x: net.conv(torch.as_strided(x, (x.shape[0], 3, 4, 4), (192, 64, 16, 2)))).eval()
    quantized = rw.quantize(model, IMAGES, PRECISE)
    quantized.save(tmp_path / "model.rw")
    for network in (quantized, rw.load(tmp_path / "model.rw")):
        agree(network, model, IMAGES)
        with raises(rw.ModelError, "'x'", "contiguous", "as_strided"):
            network(IMAGES.contiguous(memory_format=torch.channels_last))
