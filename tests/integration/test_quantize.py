"""`quantize` from the user's side: what goes in, what comes out, what stays as it was, and what it depends on."""

import copy
import functools
import itertools
import pickle
import subprocess
import sys
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from facts import has, raises, warns
from recipes import quantizing
from thirds import in_thirds
from torch import nn
from torch.export import Dim
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw
from roundwise.artifacts.emit import QuantizedWeight, emit, packed_bits
from roundwise.artifacts.model import Model
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.normalize import normalize
from roundwise.numerics.grid import BITS, Codebook, Grid

SAMPLES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
FEW = rw.rounding.AdaRound(iterations=12, batch_size=4, learning_rate=0.1)
NEAREST = quantizing(rounding=rw.rounding.Nearest())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, image):
        x = F.relu(self.norm(self.first(image)))
        x = x + self.second(x)
        return self.head(self.drop(x.mean((2, 3))))


class Two(nn.Module):
    """Two inputs; outputs in a dict, a list and a tuple, one of which is not a tensor."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left, right, scale=1.0):
        a, b = self.left(left), self.right(right) * scale
        return {"sum": a + b, "both": [a, (b, None)], "name": "two"}


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    for _ in range(3):
        model(torch.randn(20, 3, 6, 6))  # gives the batch-norm its statistics
    return model.eval()


def codes(quantized):
    return {name: weight.codes for name, weight in quantized.weights.items()}


def assert_same_codes(one, other):
    assert list(codes(one)) == list(codes(other))
    for name, value in codes(one).items():
        assert torch.equal(value, codes(other)[name]), name


def recipe(rounding=FEW, **settings):
    return quantizing(rw.Weights(bits=3), rounding, batch_size=4, **settings)


@functools.cache
def reference():
    return rw.quantize(net(), SAMPLES, recipe())


# ------------------------------------------------------------------------------------------- samples, however they come


def rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


LABELS = torch.arange(12)
FORMS = {
    "an array": lambda: SAMPLES.numpy(),
    "a loader of tensors": lambda: DataLoader(list(SAMPLES), batch_size=5),
    "a loader of (input, label) pairs": lambda: DataLoader(TensorDataset(SAMPLES, LABELS), batch_size=3),
    "a loader of dicts by the parameter's name": lambda: DataLoader(rows(image=SAMPLES, label=LABELS), batch_size=4),
    "a loader of dicts by a usual name": lambda: DataLoader(rows(pixel_values=SAMPLES), batch_size=7),
    "a list of batches of odd sizes": lambda: [SAMPLES[:1], SAMPLES[1:9], SAMPLES[9:]],
    "a generator, channels last": lambda: (part.to(memory_format=torch.channels_last) for part in SAMPLES.split(6)),
    "a slice that is not aligned": lambda: torch.cat([torch.zeros(1), SAMPLES.flatten()])[1:].view(SAMPLES.shape),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_codes_do_not_depend_on_how_samples_are_handed_over(form):
    assert_same_codes(rw.quantize(net(), form(), recipe()), reference())


def test_dropped_labels_are_noted_in_the_report():
    quantized = rw.quantize(net(), (SAMPLES, LABELS), NEAREST)
    (note,) = quantized.report.notes
    assert has(note, 2)
    assert "label" in note
    assert has(quantized.report, note)


# -------------------------------------------------------------------------------------------- what codes depend on


def test_the_same_seed_gives_the_same_codes_and_another_seed_others():
    assert_same_codes(rw.quantize(net(), SAMPLES, recipe()), reference())
    one, same, other = (
        codes(rw.quantize(net(), SAMPLES, recipe(rw.rounding.Stochastic(), seed=seed))) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_codes_do_not_depend_on_randomness_around_the_call():
    torch.manual_seed(99)
    state = torch.get_rng_state()
    quantized = rw.quantize(copy.deepcopy(net_once()), SAMPLES, recipe())
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_codes(quantized, reference())


@functools.cache
def net_once():
    with torch.random.fork_rng():
        return net()


def test_codes_of_a_layer_do_not_depend_on_what_is_done_with_later_ones():
    overrides = {"second": rw.Weights(bits=8, rounding=rw.rounding.Ceil()), "head": None}
    changed = rw.quantize(net(), SAMPLES, recipe(overrides=overrides))
    assert torch.equal(codes(changed)["first"], codes(reference())["first"])


def test_stochastic_codes_of_a_layer_do_not_depend_on_any_other_layer():
    everything = codes(rw.quantize(net(), SAMPLES, recipe(rw.rounding.Stochastic())))
    alone = codes(
        rw.quantize(net(), SAMPLES, recipe(rw.rounding.Stochastic(), overrides={"first": None, "second": None}))
    )
    assert list(alone) == ["head"]
    assert torch.equal(alone["head"], everything["head"])


def test_codes_do_not_depend_on_the_memory_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled = rw.quantize(net(), DataLoader(SAMPLES, batch_size=5), recipe(memory_budget=0))
    assert_same_codes(spilled, reference())
    assert spilled.report.output_error == reference().report.output_error
    assert spilled.report.peak_activation_bytes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_codes_do_not_depend_on_the_context_of_the_call(around):
    model = net()
    with around():
        quantized = rw.quantize(model, SAMPLES, recipe())
    assert_same_codes(quantized, reference())
    assert quantized(SAMPLES).dtype == torch.float32


# ---------------------------------------------------------------------------------------------- what stays as it was


def fingerprint(model):
    return {
        "types": [(name, type(module)) for name, module in model.named_modules()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "names": list(model.state_dict()),
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "storage": [tensor.data_ptr() for tensor in model.state_dict().values()],
    }


@pytest.mark.parametrize("training", [False, True], ids=["evaluation mode", "training mode"])
def test_the_users_model_and_samples_stay_as_they_were(training):
    model, samples = net().train(training), SAMPLES.clone()
    model.drop.train()
    model.head.bias.requires_grad_(False)
    model.first.weight.grad = None
    before, weights = fingerprint(model), copy.deepcopy(model.state_dict())
    with warns(UserWarning, "model.eval()"):
        rw.quantize(model, samples, recipe())
    assert fingerprint(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(samples, SAMPLES)


def test_the_result_shares_no_memory_with_the_model():
    model = net()
    quantized = rw.quantize(model, SAMPLES, quantizing(rounding=rw.rounding.Nearest(), overrides={"second": None}))
    before = quantized(SAMPLES)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert torch.equal(quantized(SAMPLES), before)


# ------------------------------------------------------------------------------------------------ what comes out


def test_defaults_give_four_bits_per_channel_and_outputs_close_to_the_models():
    model = net()
    quantized = rw.quantize(model, SAMPLES, NEAREST)
    assert [layer.name for layer in quantized.report.layers] == ["first", "second", "head"]
    assert {layer.bits for layer in quantized.report.layers} == {4}
    assert {layer.granularity for layer in quantized.report.layers} == {"per-channel"}
    with torch.no_grad():
        error = (quantized(SAMPLES) - model(SAMPLES)).square().sum() / model(SAMPLES).square().sum()
    assert quantized.report.output_error == pytest.approx(float(error), rel=1e-3)
    assert 0 < error < 0.05
    assert quantized.report.samples == 12
    assert set(quantized.report.seconds) == {"read", "capture", "rewrite", "forward", "ranges", "rounding"}
    weights, outputs = 4 * 27 + 4 * 18 + 20, 4 + 4 + 5
    statistics = sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert quantized.report.float_bytes == 4 * statistics
    assert quantized.report.quantized_bytes == weights / 2 + 4 * outputs + 4 * outputs  # codes, scales, biases
    assert repr(quantized).startswith("Model(\n")
    assert has(repr(quantized).splitlines()[1], 3, 4)


@pytest.mark.parametrize("form", ["positional", "named"])
def test_a_model_of_several_inputs_keeps_its_call_and_the_structure_of_its_outputs(form):
    left, right = torch.randn(9, 3), torch.randn(9, 5)
    data = (left, right) if form == "positional" else {"right": right, "left": left}
    quantized = rw.quantize(Two().eval(), data, NEAREST)
    outputs = quantized(left, right)
    assert list(outputs) == ["sum", "both", "name"]
    assert isinstance(outputs["both"], list)
    assert isinstance(outputs["both"][1], tuple)
    assert outputs["both"][1][1] is None
    assert outputs["name"] == "two"
    for other in (quantized(left=left, right=right), quantized(left, right=right)):
        assert torch.equal(other["sum"], outputs["sum"])
    assert quantized.program.module()(
        *([left, right] if form == "positional" else []),
        **({} if form == "positional" else {"left": left, "right": right}),
    )["sum"].shape == (9, 4)


def test_a_model_that_takes_a_dict_is_calibrated_with_dicts():
    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.rgb, self.depth = nn.Linear(3, 4), nn.Linear(1, 4)

        def forward(self, views):
            return OrderedDict(fused=self.rgb(views["rgb"]) + self.depth(views["depth"]))

    views = {"rgb": torch.randn(8, 3), "depth": torch.randn(8, 1)}
    quantized = rw.quantize(Fusion().eval(), [views], NEAREST)
    assert isinstance(quantized(views), OrderedDict)
    assert quantized(views)["fused"].shape == (8, 4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-5)])
def test_other_precisions_work_and_agree_with_float32(dtype, tolerance):
    model = net().to(dtype)
    quantized = rw.quantize(model, SAMPLES.to(dtype), recipe(rw.rounding.Nearest()))
    outputs = quantized(SAMPLES.to(dtype))
    assert outputs.dtype == dtype
    expected = rw.quantize(net(), SAMPLES, recipe(rw.rounding.Nearest()))(SAMPLES)
    assert (outputs.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert_same_grids_up_to_precision(quantized, tolerance)
    trained = rw.quantize(model, SAMPLES.to(dtype), recipe())
    assert all(0 <= layer.error < 1 for layer in trained.report.layers)


def assert_same_grids_up_to_precision(quantized, tolerance):
    scales = {name: value for name, value in quantized.state_dict().items() if name.endswith("_scale")}
    assert {value.dtype for value in scales.values()} == {torch.float32}
    expected = reference().state_dict()
    for name, value in scales.items():
        assert torch.allclose(value, expected[name], rtol=20 * tolerance)


def test_second_moments_of_half_precision_are_summed_in_float32():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, x):
            return self.linear(x)

    # The squares of these outputs exceed float16's 65504 one by one, and so does their sum.
    model, samples = Wide().half(), (300 * torch.randn(64, 4)).half()
    report = rw.quantize(model.eval(), samples, NEAREST).report
    expected = rw.quantize(copy.deepcopy(model).float(), samples.float(), NEAREST).report
    assert report.layers[0].error == pytest.approx(expected.layers[0].error, rel=0.02)


def test_the_program_has_integer_codes_and_operations_of_aten_and_takes_any_batch():
    quantized = rw.quantize(net(), SAMPLES, recipe(rw.rounding.Nearest()))
    program = quantized.program
    assert isinstance(program, torch.export.ExportedProgram)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in targets} == {"aten"}
    assert sum(value.dtype == torch.int8 for value in program.state_dict.values()) == len(quantized.weights) == 3
    for batch in (1, 2, 7):
        samples = torch.randn(batch, 3, 6, 6)
        assert torch.equal(program.module()(samples), quantized(samples))


def test_the_program_survives_torchs_own_save_and_load(tmp_path):
    quantized = reference()
    torch.export.save(quantized.program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(SAMPLES[:5]), quantized(SAMPLES[:5]))


def test_a_copy_is_a_model_of_its_own():
    quantized = rw.quantize(net(), SAMPLES, NEAREST)
    assert quantized.program is quantized.program
    twin = copy.deepcopy(quantized)
    assert torch.equal(twin(SAMPLES), quantized(SAMPLES))
    assert twin.report == quantized.report
    before = quantized(SAMPLES)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
    assert torch.equal(quantized(SAMPLES), before)
    assert twin.program is not quantized.program


def test_a_model_can_be_sent_to_another_process():
    quantized = reference()
    sent = pickle.loads(pickle.dumps(quantized))  # noqa: S301  our own bytes
    assert isinstance(sent, Model)
    assert sent.program is not None
    assert torch.equal(sent(SAMPLES), quantized(SAMPLES))
    assert sent.report == quantized.report


def test_a_quantized_part_can_be_put_back_into_its_model():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = net()

        def forward(self, x):
            return [row for row in self.backbone(x) if row.sum() > 0]  # what no export can follow

    whole = Whole().eval()
    whole.backbone = rw.quantize(whole.backbone, SAMPLES, NEAREST)
    assert len(whole(SAMPLES)) <= 12
    assert whole.train()(SAMPLES) is not None


# ------------------------------------------------------------------------------------------------ devices and dtypes


def test_a_result_moves_between_devices_with_the_operations_that_make_tensors():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) + torch.arange(x.shape[1], device=x.device)

    quantized = rw.quantize(Positions().eval(), torch.randn(8, 4), NEAREST)
    assert quantized.program is not None
    moved = quantized.to("meta")
    assert moved is quantized
    assert moved(torch.randn(3, 4, device="meta")).shape == (3, 4)
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}
    assert "program" not in vars(moved)


def test_float32_is_computed_as_such_whatever_the_caller_lets_matrix_units_do():
    seen = []

    def watch(_: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        quantized = rw.quantize(net(), SAMPLES, recipe(), progress=watch)
        after = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert set(seen) == {(False, "highest")}
    assert after == (before[0], "high")
    assert_same_codes(quantized, reference())


@pytest.fixture
def switches():
    """PyTorch's newer switches for matrix units, put back after a test."""
    units = torch.backends
    theirs = [units, units.cuda.matmul, units.cudnn.conv, units.cudnn.rnn, units.mkldnn.matmul, units.mkldnn.conv]
    before = [switch.fp32_precision for switch in theirs]
    yield theirs
    for switch, value in zip(theirs, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.parametrize("unit", in_thirds(range(6)))
def test_the_newer_switches_for_matrix_units_are_left_as_the_caller_has_them(switches, unit):
    # Setting one of them makes PyTorch refuse to say what the older switches are.
    seen = []
    switches[unit].fp32_precision = "bf16" if unit > 3 else "tf32"
    before = [switch.fp32_precision for switch in switches]
    quantized = rw.quantize(
        net(), SAMPLES, recipe(), progress=lambda _: seen.extend(switch.fp32_precision for switch in switches)
    )
    assert seen
    assert set(seen) <= {"ieee", "none"}  # "none" is float32 where those above it say no more
    assert [switch.fp32_precision for switch in switches] == before
    assert_same_codes(quantized, reference())


SWITCHES = """
import torch
from torch import nn
import roundwise as rw

torch.manual_seed(0)
units, model, samples = torch.backends, nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(6, 4)
parts = [units, units.cudnn, units.mkldnn, units.cuda.matmul, units.mkldnn.matmul, units.mkldnn.conv, units.mkldnn.rnn]

def state():
    return [part.fp32_precision for part in parts]

def run():
    rw.quantize(model, samples, rw.Quantize(rounding=rw.rounding.Nearest()))

run()
assert state() == ["none"] * 7, state()
units.fp32_precision = "tf32"  # who says nothing still follows
assert state() == ["tf32"] * 7, state()
run()
assert state() == ["tf32"] * 7, state()
units.fp32_precision = "none"
assert state() == ["none"] * 7, state()
torch.set_float32_matmul_precision("medium")
units.cuda.matmul.allow_tf32 = True
run()
assert units.cuda.matmul.allow_tf32
torch.set_float32_matmul_precision("medium")
units.disable_global_flags()
try:
    run()
except RuntimeError:  # PyTorch's: from here on its switches refuse to be set
    pass
assert torch.get_float32_matmul_precision() == "medium"
"""


def test_switches_for_matrix_units_are_as_they_were_from_a_fresh_process_on():
    done = subprocess.run([sys.executable, "-c", SWITCHES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_take_their_turns():
    models = [net() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda model: rw.quantize(model, SAMPLES, recipe()), models))
    for result in results:
        assert_same_codes(result, reference())


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.to(torch.float64), lambda m: m.bfloat16()])
def test_a_result_keeps_its_dtype(change):
    quantized = copy.deepcopy(reference())
    with raises(rw.ModelError, "torch.float32", "rw.quantize(model.to(torch."):
        change(quantized)
    assert torch.equal(quantized(SAMPLES), reference()(SAMPLES))


# -------------------------------------------------------------------------------------------------- exported programs


def test_a_program_that_was_exported_with_any_batch_is_quantized_like_its_module():
    program = torch.export.export(net(), (SAMPLES[:2],), dynamic_shapes=({0: Dim("batch")},))
    for data in (SAMPLES, {"image": SAMPLES}, DataLoader(rows(image=SAMPLES, label=LABELS), batch_size=5)):
        quantized = rw.quantize(program, data, recipe())
        assert_same_codes(quantized, reference())
    assert quantized(SAMPLES[:5]).shape == (5, 5)


class Fixed(nn.Module):
    """Works for four samples at a time only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(27, 5)

    def forward(self, x):
        return self.linear(x[:, :, ::2, ::2].reshape(4, -1))


def test_a_program_that_was_exported_with_one_batch_size_is_run_with_that():
    program = torch.export.export(Fixed().eval(), (SAMPLES[:4],))
    quantized = rw.quantize(program, SAMPLES, quantizing(rounding=FEW))
    assert quantized(SAMPLES[:4]).shape == (4, 5)
    assert quantized.samples[0][0].shape[0] == 4
    assert quantized.program.module()(SAMPLES[4:8]).shape == (4, 5)
    with raises(rw.CalibrationError, 4, 11, 3):
        rw.quantize(program, SAMPLES[:11], NEAREST)


# ------------------------------------------------------------------------------------------------ codes in the graph


class One(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).relu()


KINDS = {
    "linear": (lambda: nn.Linear(8, 6), (8,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 2), (4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 2, padding="same", dilation=2), (4, 5, 5)),
    "conv2d, grouped": (lambda: nn.Conv2d(8, 6, 2, groups=2, stride=2), (8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 2, stride=2), (4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), padding=1), (4, 5, 5)),
    "conv_transpose2d, grouped": (lambda: nn.ConvTranspose2d(4, 6, (2, 1), groups=2), (4, 5, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
}
GRANULARITIES = {
    "per tensor": lambda groups, rows, cols: (1, 1, 1),
    "per channel": lambda groups, rows, cols: (groups, rows, 1),
    "per group": lambda groups, rows, cols: (groups, rows, cols // 2),
}


def random_grid(codebook, *shape):
    zero_point = torch.zeros(shape, dtype=torch.int32)
    if not codebook.symmetric:
        zero_point = torch.randint(codebook.qmax + 1, shape, dtype=torch.int32)
    return Grid((torch.rand(shape) + 0.5) / (codebook.qmax - codebook.qmin), zero_point, codebook)


@functools.cache
def one_layer(kind, dtype):
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    graph = normalize(TorchExport().graph(One(make()).eval().to(dtype), (torch.randn(2, *shape, dtype=dtype),), {}))
    (layer,) = find_layers(graph)
    return graph, layer, torch.randn(3, *shape, dtype=dtype)


@pytest.mark.parametrize(("kind", "dtype"), in_thirds(list(KINDS), [torch.float32, torch.float16]))
def test_a_graph_with_codes_computes_what_the_dequantized_weight_gives(kind, dtype):
    graph, layer, inputs = one_layer(kind, dtype)
    groups, rows, cols = layer.map.matrix_shape
    for shares, bits, symmetric in itertools.product(GRANULARITIES.values(), (2, 3, 4, 5, 8, 16), (True, False)):
        codebook = Codebook(bits, symmetric)
        grid = random_grid(codebook, *shares(groups, rows, cols))
        values = torch.randint(codebook.qmin, codebook.qmax + 1, (groups, rows, cols))
        for stored in (values.int(), values.to(codebook.dtype)):
            weight = QuantizedWeight(layer, stored, grid)
            emitted = emit(graph, [weight])
            expected = layer.map.apply(weight.weight(dtype), inputs).relu()
            assert torch.equal(emitted.module()(inputs), expected)
        assert packed_bits(emitted)["layer.weight_codes"] == bits
        assert emitted.constants["layer.weight_codes"].dtype == codebook.dtype
        assert "layer.weight" not in emitted.constants


def test_other_uses_of_a_shared_weight_keep_the_float_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 4)

        def forward(self, tokens):
            return F.linear(self.embedding(tokens), self.embedding.weight)

    quantized = rw.quantize(Tied().eval(), torch.randint(6, (8, 3)), NEAREST)
    names = list(quantized.graph.constants)
    assert "embedding.weight" in names
    assert "embedding" in quantized.weights
    assert quantized.report.layers[0].note
    assert [kept.name for kept in quantized.report.kept_float] == ["embedding.weight"]


def test_every_number_of_bits_gives_the_error_that_it_should():
    captured, errors = rw.capture(net(), SAMPLES), []
    for bits in BITS:
        weights = rw.Weights(bits=bits, symmetric=bits % 2 == 0)
        errors.append(rw.quantize(captured, SAMPLES, quantizing(weights, rw.rounding.Nearest())).report.output_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7


def test_a_numpy_scalar_seed_is_no_trouble():
    quantized = rw.quantize(net(), SAMPLES, recipe(rw.rounding.Stochastic(), seed=int(np.int64(3))))
    assert quantized.recipe.seed == 3


def _linear(weight):
    layer = nn.Linear(64, 32)
    layer.weight = nn.Parameter(weight)
    return layer.eval()


def _transposed_convolution(weight):
    layer = nn.ConvTranspose2d(6, 4, 2)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer, nn.ReLU()).eval()


@pytest.mark.parametrize(
    "solver",
    [rw.rounding.GramAdaRound(), rw.rounding.StraightThrough(iterations=50), rw.rounding.AdaRound(iterations=50)],
    ids=repr,
)
@pytest.mark.parametrize(
    ("build", "shape", "inputs", "elsewhere"),
    [
        (_linear, (32, 64), (8, 64), lambda weight: weight.T.contiguous().T),
        (_transposed_convolution, (6, 4, 2, 2), (6, 5, 5), lambda w: w.contiguous(memory_format=torch.channels_last)),
    ],
    ids=["linear", "transposed convolution"],
)
def test_codes_do_not_depend_on_how_weights_lie_in_memory(solver, build, shape, inputs, elsewhere):
    generator = torch.Generator().manual_seed(0)
    weight, samples = torch.randn(shape, generator=generator), torch.randn(1024, *inputs, generator=generator)
    size = inputs[-1]
    samples = samples @ (0.3 * torch.randn(size, size, generator=generator) + torch.eye(size)) + 1
    layers = []
    for values in (weight, elsewhere(weight)):
        torch.manual_seed(0)
        quantized = rw.quantize(build(values), samples, quantizing(rw.Weights(bits=3), solver, rewrites=()))
        layers.append(quantized.report.layers[0])
    assert layers[0].error == pytest.approx(layers[1].error, rel=1e-3)
    assert layers[0].flips == pytest.approx(layers[1].flips, abs=0.01)


IMAGES = torch.zeros(2, 3, 6, 6)


class Broken:
    """Not even its size can be told."""

    @property
    def shape(self):
        raise RuntimeError("no shape")


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda q: q(torch.zeros(2, 4, 6, 6)), "float32 [2, 4, 6, 6]"),
        (lambda q: q(torch.zeros(3, 6, 6)), "float32 [3, 6, 6]"),
        (lambda q: q(IMAGES.double()), "float64 [2, 3, 6, 6]"),
        (lambda q: q(IMAGES.to("meta")), "float32 [2, 3, 6, 6] on meta."),
        (lambda q: q(IMAGES.to_sparse()), "sparse_coo float32 [2, 3, 6, 6]."),
        (lambda q: q(IMAGES, torch.zeros(2)), "float32 [2, 3, 6, 6], float32 [2]."),
        (lambda q: q(IMAGES, images=IMAGES), "float32 [2, 3, 6, 6], images=float32 [2, 3, 6, 6]."),
        (lambda q: q(pictures=IMAGES), "pictures=float32 [2, 3, 6, 6]."),
        (lambda q: q(), "nothing."),
    ],
)
def test_an_error_for_other_inputs_says_what_the_network_was_made_for(call, found):
    with pytest.raises(Exception) as caught:
        call(reference())
    said = "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert has(said, "float32 [samples, 3, 6, 6]", found)


@pytest.mark.parametrize(
    ("value", "found"),
    [([IMAGES], "a list"), (IMAGES.numpy(), "float32 [2, 3, 6, 6]"), (Broken(), "a Broken"), (None, None), (2.5, 2.5)],
)
def test_what_is_not_a_tensor_is_refused_with_the_tensor_that_the_network_was_made_for(value, found):
    with raises(rw.ModelError, "'image'", "float32 [samples, 3, 6, 6]", found):
        reference()(value)


def test_an_error_of_something_else_stays_as_it_is():
    quantized = copy.deepcopy(reference())
    quantized.graph_module.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        quantized(torch.zeros(7, 3, 6, 6))
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_that_does_not_tell_its_size_does_not_hide_the_error():
    nested = torch.nested.nested_tensor([torch.zeros(3, 6, 6), torch.zeros(3, 5, 5)])
    with pytest.raises(NotImplementedError):  # PyTorch's own: it has no such convolution
        reference()(nested)


def test_several_inputs_are_told_apart():
    quantized = rw.quantize(Two().eval(), (torch.zeros(3, 3), torch.zeros(3, 5)), NEAREST)
    with raises(rw.ModelError, "'left'", "float32 [3, 5]", "float32 [samples, 3]"):
        quantized(right=torch.zeros(3, 3), left=torch.zeros(3, 5))
    with raises(rw.ModelError, "'left'", 3, "'right'", 4):
        quantized(torch.zeros(3, 3), torch.zeros(4, 5))  # each as it should be, but for its number of samples


class Sign(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, positive=True):
        return self.layer(x) if positive else -self.layer(x)


def test_an_input_that_is_part_of_the_network_cannot_have_another_value():
    x = torch.randn(6, 4)
    quantized = rw.quantize(Sign().eval(), [{"x": x, "positive": False}], NEAREST)
    expected = quantized(x, False)
    assert torch.equal(quantized(positive=False, x=x), expected)
    assert torch.equal(torch.compile(quantized, fullgraph=True, backend="eager")(x, False), expected)
    for other in (True, None, torch.tensor(False), np.zeros(2, bool)):
        with raises(rw.ModelError, "'positive'", "False"):
            quantized(x, other)
