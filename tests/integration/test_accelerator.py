"""Solvers, networks and their results on an accelerator where one is at hand; skipped where there is none."""

import copy

import pytest
import torch
import zoo
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.reproduction import taskloss
from roundwise.testing import SOLVER_CHECKS, cases, quick

ACCELERATOR = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

needs_one = pytest.mark.skipif(ACCELERATOR.type == "cpu", reason="no accelerator is at hand")

SOLVERS = pytest.mark.parametrize("kind", ROUNDING_SOLVERS.values(), ids=ROUNDING_SOLVERS)

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(12 * 64, 5),
    )
    return zoo.randomize(layers).eval()


@needs_one
@pytest.mark.parametrize("check", SOLVER_CHECKS, ids=lambda check: check.__name__)
@SOLVERS
@pytest.mark.parametrize("case", cases() if ACCELERATOR.type != "cpu" else (), ids=str)
def test_a_solver_on_the_accelerator_holds_to(check, case, kind):
    check(quick(kind), case.to(ACCELERATOR))


@needs_one
@pytest.mark.parametrize("name", [name for name, case in zoo.CASES.items() if not all(case.inputs(2))])
def test_a_network_is_quantized_on_the_accelerator(name):
    case = zoo.CASES[name]
    args, kwargs = case.inputs(12)
    calibration = kwargs or (args if len(args) > 1 else args[0])
    model = case.build()
    recipe = quantizing(rounding=rw.rounding.CoordinateDescent())
    there = rw.quantize(copy.deepcopy(model).to(ACCELERATOR), calibration, recipe)
    here = rw.quantize(model, calibration, recipe)
    assert [layer.name for layer in there.report.layers] == [layer.name for layer in here.report.layers]
    assert {value.device.type for value in there.state_dict().values()} == {ACCELERATOR.type}
    assert there.report.output_error == pytest.approx(here.report.output_error, rel=0.3, abs=0.01)


RECIPES = {
    "default": rw.Recipe(),
    "2 bits per tensor": quantizing(rw.Weights(bits=2, granularity=rw.PerTensor())),
    "activations": quantizing(activations=rw.Activations(bits=8)),
    "activations per tensor": quantizing(rw.Weights(granularity=rw.PerTensor()), activations=rw.Activations(bits=8)),
    "minibatches": quantizing(rounding=rw.rounding.AdaRound(iterations=20)),
    "no memory": quantizing(memory_budget=0),
}


@needs_one
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_result_of_the_accelerator_moves_is_saved_and_exported(recipe, tmp_path):
    quantized = rw.quantize(network().to(ACCELERATOR), IMAGES, recipe)
    outputs = quantized(IMAGES.to(ACCELERATOR)).cpu()
    quantized.save(tmp_path / "model.rw")
    assert torch.allclose(rw.load(tmp_path / "model.rw")(IMAGES), outputs, atol=1e-2)
    rw.export(quantized, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()
    assert torch.allclose(quantized.to("cpu")(IMAGES), outputs, atol=1e-2)


@needs_one
def test_the_accelerator_gives_the_same_codes_each_time():
    first, second = (rw.quantize(network().to(ACCELERATOR), IMAGES, rw.Recipe()) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@needs_one
@pytest.mark.parametrize("correction", CORRECTIONS.values(), ids=CORRECTIONS)
def test_corrections_work_on_the_accelerator(correction):
    recipe = quantizing(rounding=rw.rounding.Nearest(), correction=correction())
    assert rw.quantize(network().to(ACCELERATOR), IMAGES, recipe).report.output_error < 1


@needs_one
def test_no_data_is_needed_on_the_accelerator():
    model = nn.Sequential(*list(network())[:7], nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1))
    quantized = rw.quantize(zoo.randomize(model).eval().to(ACCELERATOR), rw.DataFree((3, 8, 8)))
    assert quantized(IMAGES.to(ACCELERATOR)).device.type == ACCELERATOR.type


@needs_one
@pytest.mark.parametrize("curvature", [taskloss.ExactHessian(), taskloss.GaussNewton()])
def test_the_hessian_of_the_task_loss_is_the_same_on_the_accelerator(curvature):
    there, here = (
        taskloss.task_hessian(network().to(device), "0", IMAGES, taskloss.PredictedClasses(), curvature=curvature)
        for device in (ACCELERATOR, torch.device("cpu"))
    )
    assert there.hessian.device.type == ACCELERATOR.type
    assert torch.allclose(there.hessian.cpu(), here.hessian, rtol=1e-2, atol=1e-4)
