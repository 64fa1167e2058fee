"""What every network of the zoo goes through.

    capture       the module becomes a graph (its outputs depend on its inputs, or the other steps would show nothing)
    16 bits       with 16-bit weights, the outputs are those of the module
    batches       the same for 1 and for 5 samples
    layouts       the same for inputs that are channels-last, permuted, or sliced out of larger tensors
    8 bits        with 8-bit weights and activations, the report's error is what the network does, and it is small
    save, load    the same network, bit for bit
    ONNX          the exported file, run in ONNX Runtime's default session, gives what the network gives

A step that compares returns the largest relative difference that it found, and raises an AssertionError if that is too
large. A step that the library refuses raises one of its errors.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from entry import Call, Entry
from facts import missing
from torch import Tensor, nn

import roundwise as rw

SAMPLES = 8
"""Calibration samples. With more, every step takes longer."""

CLOSE = 1e-3
"""The largest relative difference ‖y − ŷ‖/‖y‖ of an output with 16-bit weights. A larger one misses smaller faults."""

LIVELY = 0.02
"""The smallest relative difference between outputs for different inputs. It is well above `CLOSE`, so that a step that
loses the inputs on the way is found."""

FAIR = 0.5
"""The largest relative squared error of an output with 8-bit weights and activations. The weights are random: errors
are larger than in trained networks."""

INDEPENDENT = 2.0
"""The largest difference between ONNX Runtime and the network with 8-bit activations, divided by the error of
quantization; `CLOSE` is added. A runtime adds numbers in another order. A value at the border of two codes may then get
the other one, and so may values that depend on it. In a deep network the rounding errors of the two end up independent:
they differ by √2 times the error on average, and by more on few samples."""

REPORTED = 0.3
"""The largest relative difference between the error in the report and the error of the outputs. In a deep network a
change of the inputs by 1e-6 changes the error by a tenth, for the same reason."""

ENORMOUS = 1e8
"""Values from this size on stand for infinity, in masks for example, and are compared by their places alone."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network on its way through the steps: what one step makes, later steps use."""

    entry: Entry

    @cached_property
    def module(self) -> nn.Module:
        return self.entry.model()

    @cached_property
    def network(self) -> rw.Network:
        return rw.capture(self.module, as_data(self.module, self.entry.samples(2)))

    @cached_property
    def fine(self) -> rw.Model:
        return self._quantized(rw.Quantize(rw.Weights(bits=16), rw.rounding.Nearest()))

    @cached_property
    def coarse(self) -> rw.Model:
        stage = rw.Quantize(rw.Weights(bits=8), rw.rounding.Nearest(), activations=rw.Activations(bits=8))
        return self._quantized(stage)

    def _quantized(self, stage: rw.Quantize) -> rw.Model:
        return rw.quantize(self.network, as_data(self.module, self.entry.samples(SAMPLES)), stage)


def capture(case: Case) -> float:
    one, other = (_run(case.module, case.entry.samples(SAMPLES, seed)) for seed in (1, 2))
    varies = max(_differences(one, other))
    assert varies > LIVELY, f"other inputs change the outputs by {varies:.3g} only; give the entry larger weights"
    assert case.network is not None
    return 0.0


def sixteen_bits(case: Case) -> float:
    call = case.entry.samples(SAMPLES)
    return _same(_run(case.fine, call), _run(case.module, call), CLOSE)


def batches(case: Case) -> float:
    calls = [case.entry.samples(count, seed=2) for count in (1, 5)]
    return max(_same(_run(case.fine, call), _run(case.module, call), CLOSE) for call in calls)


def layouts(case: Case) -> float:
    call = case.entry.samples(3, seed=3)
    expected = _run(case.module, call)
    laid = [pytree.tree_map_only(Tensor, lay, call) for lay in (_channels_last, _permuted, _sliced)]
    return max(_same(_run(case.fine, one), expected, CLOSE) for one in laid)


def eight_bits(case: Case) -> float:
    call = case.entry.samples(SAMPLES)
    measured = max(_differences(_run(case.coarse, call), _run(case.module, call))) ** 2
    assert measured < FAIR, f"the relative squared error is {measured:.3g}"
    reported = case.coarse.report.output_error
    difference = abs(reported - measured)
    assert difference < REPORTED * measured + 1e-6, f"the report says {reported:.3g}, measured {measured:.3g}"
    return measured


def save_and_load(case: Case) -> float:
    call = case.entry.samples(3, seed=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.rw"
        case.coarse.save(path)
        loaded = _tensors(rw.load(path), call)
    for one, other in zip(loaded, _tensors(case.coarse, call), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return 0.0


def onnx(case: Case) -> float:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        rw.export(case.coarse, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return max(_runs_alike(session, case, case.entry.samples(count, seed=5)) for count in (1, 3))


def _runs_alike(session: Any, case: Case, call: Call) -> float:
    given = [leaf for leaf in pytree.tree_leaves(_by_name(case.module, call)) if isinstance(leaf, Tensor)]
    names = [one.name for one in session.get_inputs()]
    assert len(names) == len(given), f"the file has the inputs {names}, and the call has {len(given)} tensors"
    outputs = session.run(None, {name: leaf.numpy() for name, leaf in zip(names, given, strict=True)})
    found = [torch.from_numpy(np.asarray(value)) for value in outputs]
    floats, expected = [value for value in found if value.is_floating_point()], _run(case.coarse, call)
    noise = _differences(expected, _run(case.module, call))
    return _same(floats, expected, *(CLOSE + INDEPENDENT * one for one in noise))


STEPS: dict[str, Callable[[Case], float]] = {
    "capture": capture,
    "16 bits": sixteen_bits,
    "batches": batches,
    "layouts": layouts,
    "8 bits": eight_bits,
    "save, load": save_and_load,
    "ONNX": onnx,
}

NEEDS = {"batches": "16 bits", "layouts": "16 bits", "save, load": "8 bits", "ONNX": "8 bits"}
"""A step that uses what another step makes. All of them use what capture makes."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        step: its name.
        ended: "passed", "refused" (by an error of the library), "failed", or "left out" (a step it needs did not pass).
        words: type and message of the error.
        difference: the largest relative difference, of a step that passed.
    """

    step: str
    ended: str
    words: str = ""
    difference: float = 0.0


def unexpected(entry: Entry, ended: Sequence[Outcome]) -> list[str]:
    """What is not as listed: a step that did not pass, or a refusal that did not come or has other facts."""
    found = []
    for outcome in ended:
        refusal, is_what = entry.refused.get(outcome.step), f"{outcome.step} {outcome.ended}: {outcome.words}"
        if refusal is None:
            if outcome.ended not in ("passed", "left out"):
                found.append(is_what)
        elif not (
            outcome.ended == "refused"
            and outcome.words.startswith(f"{refusal.kind.__name__}: ")
            and not missing(outcome.words, *refusal.facts)
        ):
            found.append(f"{is_what}; a {refusal.kind.__name__} with the facts {refusal.facts} is listed")
    return found


def outcomes(entry: Entry, steps: Sequence[str] = tuple(STEPS)) -> Iterator[Outcome]:
    """Run the steps, one after the other. A step that needs one that did not pass is left out."""
    case = Case(entry)
    without: set[str] = set()
    for step in steps:
        if {"capture", NEEDS.get(step)} & without:
            outcome = Outcome(step, "left out")
        else:
            outcome = _outcome(step, case)
        if outcome.ended != "passed":
            without.add(step)
        yield outcome


def _outcome(step: str, case: Case) -> Outcome:
    try:
        return Outcome(step, "passed", difference=STEPS[step](case))
    except rw.RoundwiseError as error:
        return Outcome(step, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # whatever it is, the other steps still run
        return Outcome(step, "failed", f"{type(error).__name__}: {error}")


def as_data(module: nn.Module, call: Call) -> Any:
    """The samples of a call in the form that `quantize` takes: a tuple, or a dict if some inputs are given by name."""
    args, kwargs = call
    return _by_name(module, call) if kwargs else args


def _by_name(module: nn.Module, call: Call) -> dict[str, Any]:
    """The values of a call by the names of the parameters, in the order of the parameters."""
    args, kwargs = call
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def _tensors(model: nn.Module | rw.Model, call: Call) -> list[Tensor]:
    """The outputs that are tensors."""
    args, kwargs = call
    with torch.no_grad():
        outputs = model(*args, **kwargs)
    # Other packages return classes of their own, which say how they become tuples.
    leaves = pytree.tree_leaves(outputs.to_tuple() if hasattr(outputs, "to_tuple") else outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _run(model: nn.Module | rw.Model, call: Call) -> list[Tensor]:
    """The outputs that are tensors of real numbers."""
    return [value for value in _tensors(model, call) if value.is_floating_point()]


def _differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """‖y − ŷ‖/‖y‖ of each output, without values that are infinite or stand for infinity."""
    shapes = [list(one.shape) for one in found], [list(one.shape) for one in expected]
    assert shapes[0] == shapes[1], f"the outputs have the shapes {shapes[0]}, not {shapes[1]}"
    assert expected, "the network has no outputs to compare"
    differences = []
    for one, other in zip(found, expected, strict=True):
        counts = other.isfinite() & (other.abs() < ENORMOUS)
        assert torch.equal(counts, one.isfinite() & (one.abs() < ENORMOUS)), "other values are infinite"
        difference, energy = (one[counts].double() - other[counts].double()).norm(), other[counts].double().norm()
        differences.append(float(difference / energy.clamp(min=1e-12)))
    return differences


def _same(found: list[Tensor], expected: list[Tensor], *allowed: float) -> float:
    """The largest difference of an output, none of which is larger than allowed: one limit for all, or one for each."""
    differences = _differences(found, expected)
    for difference, limit in zip(differences, allowed * (len(differences) if len(allowed) == 1 else 1), strict=True):
        assert difference <= limit, f"an output differs by {difference:.3g}; {limit:.3g} is allowed"
    return max(differences)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.clone()


def _permuted(tensor: Tensor) -> Tensor:
    """The same numbers, with the dimensions in reverse order in memory."""
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _sliced(tensor: Tensor) -> Tensor:
    """The same numbers, as every second one of a larger tensor."""
    return tensor.repeat_interleave(2, -1)[..., ::2] if tensor.dim() else tensor
