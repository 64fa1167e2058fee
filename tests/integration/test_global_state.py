"""Settings of PyTorch that belong to the whole process change no codes, and are afterwards what they were before."""

import contextlib
import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from thirds import in_thirds
from torch import nn

import roundwise as rw

ROUNDINGS = {
    "gram-adaround": rw.rounding.GramAdaRound(iterations=20),
    "adaround": rw.rounding.AdaRound(iterations=20, batch_size=8),
    "cross-entropy-method": rw.rounding.CrossEntropyMethod(iterations=3, samples=20),
    "gptq": rw.rounding.GPTQ(),
    "stochastic": rw.rounding.Stochastic(),
    "straight-through": rw.rounding.StraightThrough(iterations=20, batch_size=8),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    ).eval()


def samples():
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def recipes():
    for name, rounding in ROUNDINGS.items():
        yield name, rw.Quantize(rw.Weights(bits=3), rounding, activations=rw.Activations(8))


def numbers(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, wanted):
    found = numbers(model)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@contextlib.contextmanager
def setting(write, value, before):
    write(value)
    try:
        yield
    finally:
        write(before)


def default_dtype(dtype):
    return lambda: setting(torch.set_default_dtype, dtype, torch.float32)


STATES = {
    "float64": default_dtype(torch.float64),
    "float16": default_dtype(torch.float16),
    "bfloat16": default_dtype(torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "default device meta": lambda: setting(torch.set_default_device, "meta", None),
    "a device that this PyTorch may not have": lambda: torch.device("xpu"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "without oneDNN": lambda: setting(lambda on: torch.backends.mkldnn.set_flags(_enabled=on), False, True),
    "deterministic algorithms": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "float64 and meta and autocast": lambda: contextlib.ExitStack(),
}


@contextlib.contextmanager
def state(name):
    with contextlib.ExitStack() as stack:
        stack.enter_context(STATES[name]())
        if name == "float64 and meta and autocast":
            for one in ("float64", "meta device", "autocast", "inference mode"):
                stack.enter_context(STATES[one]())
        yield


@functools.cache
def wanted(rounding):
    return numbers(rw.quantize(network(), samples(), dict(recipes())[rounding]))


KERNELS = {"without oneDNN"}
"""States in which PyTorch computes with other kernels, so that the last digit may differ; the codes must not."""


def agree(model, wanted, name):
    found = numbers(model)
    if name not in KERNELS:
        return same(model, wanted)
    exact = [key for key in wanted if not wanted[key].is_floating_point()]
    return all(torch.equal(found[key], wanted[key]) for key in exact) and all(
        torch.allclose(found[key], wanted[key], rtol=1e-4, atol=1e-5) for key in wanted
    )


TRAINED = rw.Recipe((rw.Rewrite(), rw.Quantize(rw.Weights(3), rw.rounding.Nearest()), rw.Finetune(epochs=1)))
CALLS = {
    "finetune": lambda model, inputs: rw.finetune(model, inputs, TRAINED),
    "trainable": lambda model, inputs: rw.trainable(model, inputs, TRAINED),
}


@functools.cache
def trained(call):
    return numbers(CALLS[call](network(), samples()))


@pytest.mark.parametrize(("name", "call"), in_thirds(list(STATES), list(CALLS)))
def test_training_is_the_same_in_any_state_of_pytorch(name, call):
    expected, model, inputs = trained(call), network(), samples()
    with state(name):
        found = CALLS[call](model, inputs)
    assert agree(found, expected, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_every_float_type_are_trained(dtype):
    model = network().to(dtype)
    found = rw.finetune(model, samples().to(dtype), TRAINED)
    assert found(samples().to(dtype)).dtype == dtype


@pytest.mark.parametrize(("name", "rounding"), in_thirds(list(STATES), list(ROUNDINGS)))
def test_codes_and_scales_are_the_same_in_any_state_of_pytorch(name, rounding):
    expected = wanted(rounding)
    model, inputs = network(), samples()
    before = torch.get_default_dtype()
    with state(name):
        inside = torch.get_default_dtype()
        quantized = rw.quantize(model, inputs, dict(recipes())[rounding])
        assert torch.get_default_dtype() == inside
    assert agree(quantized, expected, name)
    assert torch.get_default_dtype() == before


@functools.cache
def nearest():
    return rw.quantize(network(), samples(), rw.Quantize(rounding=rw.rounding.Nearest()))


@pytest.mark.parametrize("name", STATES)
def test_a_model_is_captured_saved_loaded_and_reported_in_any_state(tmp_path, name):
    model, inputs, quantized = network(), samples(), nearest()
    with state(name):
        captured = rw.capture(model, rw.DataFree((3, 6, 6)))
        rw.capture(model, inputs)
        quantized.save(tmp_path / "net.rw")
        loaded = rw.load(tmp_path / "net.rw")
        rw.html_report(quantized, tmp_path / "net.html")
        program = loaded.program
    assert same(loaded, numbers(quantized))
    assert torch.equal(loaded(inputs), quantized(inputs))
    assert torch.equal(program.module()(inputs), quantized(inputs))
    assert same(rw.quantize(captured, inputs, quantized.recipe), numbers(quantized))


@pytest.mark.parametrize("name", ["float64", "meta device", "autocast"])
def test_a_model_is_exported_in_any_state(tmp_path, name):
    pytest.importorskip("onnxruntime")
    quantized = nearest()
    with state(name):
        file = rw.export(quantized, tmp_path / "net.onnx")
    assert file.max_difference < 1e-4


def test_threads_that_quantize_load_and_export_at_once_give_what_one_gives(tmp_path):
    model, inputs, recipe = network(), samples(), rw.Quantize(rounding=rw.rounding.GPTQ())
    quantized = rw.quantize(model, inputs, recipe)
    quantized.save(tmp_path / "net.rw")

    def work(number):
        mine = rw.quantize(model, inputs, recipe)
        mine.save(tmp_path / "net.rw")
        loaded = rw.load(tmp_path / "net.rw")
        outputs = loaded.program.module()(inputs)  # other threads may be changing settings that kernels are chosen by
        assert torch.allclose(outputs, quantized(inputs), atol=1e-5)
        return mine, loaded

    with ThreadPoolExecutor(4) as pool:
        for mine, loaded in pool.map(work, range(8)):
            assert same(mine, numbers(quantized))
            assert same(loaded, numbers(quantized))


PRINTS_CODES = """
import hashlib, sys, torch
sys.path += sys.argv[1:]
from test_global_state import network, samples, recipes, numbers
import roundwise as rw
for name, recipe in recipes():
    text = repr([(key, value.tolist()) for key, value in numbers(rw.quantize(network(), samples(), recipe)).items()])
    print(name, hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.slow
def test_codes_are_the_same_in_every_process_whatever_seeds_its_hashes():
    def codes(seed):
        command = [sys.executable, "-c", PRINTS_CODES, *map(str, Path(__file__).parents[:2])]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert codes("0") == codes("1") == codes("12345")


def quantized_with(threads, batch_size, budget, rounding):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stage = rw.Quantize(rw.Weights(bits=3), rounding)
        return rw.quantize(wide(), wide_samples(), rw.Recipe((rw.Rewrite(), stage), 0, batch_size, budget))
    finally:
        torch.set_num_threads(before)


def wide():
    """A network whose matrices are large enough for several threads."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 3), nn.ReLU()).eval()


def wide_samples():
    return torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["gram-adaround", "gptq"])
def one_thread_and_batches_of_32(request):
    return ROUNDINGS[request.param], quantized_with(1, 32, None, ROUNDINGS[request.param])


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "budget"), [(1, 0), (2, None), (2, 0)])
def test_threads_and_budgets_change_no_code_and_errors_by_their_last_digits(
    one_thread_and_batches_of_32, threads, budget
):
    rounding, wanted = one_thread_and_batches_of_32
    found = quantized_with(threads, 32, budget, rounding)
    assert same(found, numbers(wanted))
    assert found.report.output_error == pytest.approx(wanted.report.output_error, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_of_another_size_change_few_codes_by_one_step_and_the_error_by_little(
    one_thread_and_batches_of_32, threads
):
    rounding, wanted = one_thread_and_batches_of_32
    found = quantized_with(threads, 7, None, rounding)
    for key, value in numbers(wanted).items():
        if key.endswith("_codes"):
            steps = (value.int() - numbers(found)[key].int()).abs()
            assert steps.max() <= 1
            assert (steps > 0).float().mean() < 0.05
    assert found.report.output_error == pytest.approx(wanted.report.output_error, rel=0.05)
