"""`capture`: one capture for several recipes changes nothing but the time."""

import copy
import pickle
import re

import pytest
import torch
from facts import raises, warns
from recipes import quantizing
from torch import nn
from torch.export import Dim

import roundwise as rw
from roundwise.reproduction import taskloss

SAMPLES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
NEAREST = quantizing(rounding=rw.rounding.Nearest())
RECIPES = {
    "nearest": NEAREST,
    "GramAdaRound": rw.Recipe(),
    "equalized": quantizing(rewrites=(rw.rewrites.CrossLayerEqualization(),)),
    "8-bit activations": quantizing(activations=rw.Activations()),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3)

    def forward(self, image, flip=False):
        x = self.second(self.norm(self.first(image)).relu()).mean((2, 3))
        return x.flip(1) if flip else x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


def outputs(quantized):
    with torch.no_grad():
        return quantized(SAMPLES)


@pytest.mark.parametrize("form", ["module", pytest.param("program", marks=pytest.mark.slow)])
def test_recipes_one_after_the_other_give_what_each_gives_alone(model, form):
    whole = model
    if form == "program":
        whole = torch.export.export(model, (SAMPLES,), dynamic_shapes=({0: Dim("n")},))
    captured = rw.capture(whole, SAMPLES[:2])
    for recipe in [*RECIPES.values(), NEAREST]:
        shared, alone = rw.quantize(captured, SAMPLES, recipe), rw.quantize(whole, SAMPLES, recipe)
        assert torch.equal(outputs(shared), outputs(alone))
        assert shared.report.float_bytes == alone.report.float_bytes


def test_a_result_shares_no_memory_with_the_capture(model):
    captured = rw.capture(model, SAMPLES)
    results = [rw.quantize(captured, SAMPLES, NEAREST) for _ in range(2)]
    tensors = [{t.untyped_storage().data_ptr() for t in it.state_dict().values() if t.numel()} for it in results]
    own = {t.untyped_storage().data_ptr() for t in captured.graph.constants.values()}
    assert tensors[0]
    assert own
    assert tensors[0].isdisjoint(tensors[1])
    assert own.isdisjoint(tensors[0] | tensors[1])


def test_a_capture_serves_without_data_and_for_the_task_loss(model):
    captured = rw.capture(model, SAMPLES)
    bare = rw.capture(model, rw.DataFree((3, 6, 6)))
    free, barer, alone = (rw.quantize(it, rw.DataFree((3, 6, 6))) for it in (captured, bare, model))
    assert torch.equal(outputs(free), outputs(alone))
    assert torch.equal(outputs(barer), outputs(alone))
    hessians = [
        taskloss.task_hessian(it, "first", SAMPLES, taskloss.PredictedClasses()).hessian for it in (captured, model)
    ]
    assert torch.equal(*hessians)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (torch.randn(4, 4, 6, 6), "float32 [samples, 4, 6, 6]"),
        (torch.randn(4, 3, 6, 6, dtype=torch.float64), "float64 [samples, 3, 6, 6]"),
    ],
)
def test_other_inputs_than_it_was_captured_for_are_refused(model, samples, found):
    captured = rw.capture(model, SAMPLES)
    with raises(rw.CalibrationError, "float32 [samples, 3, 6, 6]", found):
        rw.quantize(captured, samples, NEAREST)


class DictIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, batch):
        return self.left(batch["u"]) + 2 * self.right(batch["v"])


def test_inputs_in_a_dict_of_another_order_or_other_keys_are_refused():
    u, v = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    model = DictIn().eval()
    captured = rw.capture(model, [{"u": u, "v": v}])
    alone, shared = (rw.quantize(it, [{"u": u, "v": v}], NEAREST) for it in (model, captured))
    assert shared.report.output_error == alone.report.output_error
    for other in ({"v": v, "u": u}, {"u": u, "w": v}):
        with pytest.raises(rw.CalibrationError):
            rw.quantize(captured, [other], NEAREST)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_program_for_one_batch_size_is_quantized_without_data(model, batch):
    program = torch.export.export(model, (SAMPLES[:batch],))
    quantized = rw.quantize(program, rw.DataFree((SAMPLES[:batch],)))
    assert quantized(SAMPLES[:batch]).shape == (batch, 5)


def test_it_says_what_it_is_in_a_line(model):
    said = repr(rw.capture(model, SAMPLES))
    assert re.fullmatch(r"Network\(.*\d+ .*float32 \[samples, 3, 6, 6\].*\)", said)


@pytest.mark.parametrize("call", [rw.capture, lambda *given: rw.quantize(*given, NEAREST)])
def test_the_warning_of_training_mode_points_at_the_caller(model, call):
    with warns(UserWarning, "model.eval()") as warned:
        call(model.train(), SAMPLES)
    assert [warning.filename for warning in warned] == [__file__]


def test_what_cannot_be_captured_is_refused_as_by_quantize():
    with raises(rw.ModelError, "dict", "nn.Module", "load_state_dict"):
        rw.capture({"weight": SAMPLES}, SAMPLES)


def test_a_model_that_has_changed_since_must_be_captured_again(model):
    captured = rw.capture(model, SAMPLES)
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    with raises(rw.ModelError, "first.weight", 4):
        rw.quantize(captured, SAMPLES, NEAREST)
    again = rw.quantize(rw.capture(model, SAMPLES), SAMPLES, NEAREST)
    assert again.report.output_error == rw.quantize(model, SAMPLES, NEAREST).report.output_error


@pytest.mark.parametrize("copy", [pickle.dumps, copy.deepcopy, copy.copy])
def test_it_is_not_copied(model, copy):
    captured = rw.capture(model, SAMPLES)
    with raises(TypeError, "Network"):
        copy(captured)


def test_other_things_than_captures_and_samples_are_refused_with_a_reason(model, tmp_path):
    captured = rw.capture(model, SAMPLES)
    with raises(rw.ExportError, "Network", "quantize"):
        rw.export(captured, tmp_path / "model.onnx")
    with raises(rw.CalibrationError, "DataFree"):
        taskloss.task_hessian(captured, "first", rw.DataFree((3, 6, 6)), None)
