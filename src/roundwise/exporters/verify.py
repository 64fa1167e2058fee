"""Compare an exported file with the model that it was made from; whatever runs the file.

The figure that decides is, for each output,

    relative difference = max |y_model − y_file| / max |y_model|,        over all samples and batch sizes.

*Float activations.* Two correct runtimes differ only by the order of their sums: by 4e-7 for ResNet-20, 1e-6 for
MobileNetV2, 8e-4 for ResNet-20 in float16 (whose numbers are 5e-4 apart). If the scale of one channel is wrong by a
tenth, ResNet-20 differs by 5e-3 to 2e-2; a wrong axis or zero point gives far more. `TOLERANCE` lies between the two;
in float16 there is little room.

*Quantized activations.* Two correct runtimes differ by more. A sum that is larger by 1e-7 can lie on the other side of
the middle between two codes, and from there the difference grows from layer to layer: to 1 % of the largest output with
8-bit activations in ResNet-20, to 10 % with 4-bit ones. Means of codes often lie in the middle exactly. So the network
is also exported without the quantizers of activations, and that file is held to `TOLERANCE`: the weights are judged
strictly. For the file with quantizers, the tolerance is measured on the network itself: every result of every operation
is changed by a millionth (in float16 by a thousandth), a few times; the largest difference of the outputs times
`SENSITIVITY` passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from roundwise.artifacts import dialect
from roundwise.artifacts.binding import Arguments
from roundwise.errors import ExportError
from roundwise.exporters.names import input_names, output_leaves, output_names
from roundwise.runtimes.interface import Array
from roundwise.wording import number_of

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}
"""Largest relative difference that passes, by the least precise float type in the program."""

INTEGER_TOLERANCE = 0.01
"""Largest share of the elements of an integer or boolean output that may differ.

Some may: an argmax between two nearly equal numbers can go either way.
"""

SENSITIVITY = 5.0
"""The tolerance of a network with quantized activations, in multiples of the difference that small changes make."""

CHANGE = 1e-6
"""Relative size of those small changes."""

DRAWS = 3
"""How many times the network is run with small changes, other ones each time; the largest difference counts."""


@final
@dataclass(frozen=True)
class OutputDifference:
    """How far one output of the file is from the model's.

    Attributes:
        name: of the output.
        max_difference: largest absolute difference, in the output's own units.
        relative_difference: that, relative to the model's largest magnitude in this output. For integers and booleans:
            the share of elements that differ.
        tolerance: the largest `relative_difference` that passes.
        samples: how many were compared, all batch sizes together.
        class_disagreements: of these, how many have their largest value elsewhere; for outputs `[samples, classes]`.
        largest_margin: among those, the largest lead of the model's class over the file's, in the output's units. A
            margin below `max_difference` is a tie within the numerical error.
    """

    name: str
    max_difference: float
    relative_difference: float
    tolerance: float
    samples: int
    class_disagreements: int = 0
    largest_margin: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether the difference is what two runtimes may differ by."""
        return self.relative_difference <= self.tolerance

    def __str__(self) -> str:
        text = f"'{self.name}' differs by at most {self.max_difference:.2g} ({self.relative_difference:.2g} relative)"
        if self.class_disagreements:
            text += (
                f", with another predicted class for {self.class_disagreements} of {number_of(self.samples, 'sample')} "
                f"(largest margin {self.largest_margin:.2g})"
            )
        return text


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """Inputs, the model's outputs for them, and how far a file's outputs may differ.

    Attributes:
        names: of the outputs.
        inputs: by their names in the file; one set for each batch size.
        outputs: the model's, in the order of `names`, for each set of inputs.
        tolerance: the largest relative difference that passes.
        verified_on: what the inputs are, in words.
    """

    names: tuple[str, ...]
    inputs: list[dict[str, Array]]
    outputs: list[list[Array]]
    tolerance: float
    verified_on: str

    def compare(self, results: list[list[Array]]) -> tuple[OutputDifference, ...]:
        """How far each output of a file is from the model's, over all sets of inputs."""
        return _compare(self.names, self.outputs, results, tolerance=self.tolerance)


def make_reference(
    model: Callable[..., Any],
    program: ExportedProgram,
    samples: Arguments | None,
    source: str,
    tolerance: float | None = None,
) -> Reference:
    """Run the model on samples, at their batch size and at two others.

    Args:
        model: gives the reference outputs.
        program: from which the file is made; quantizers are operators in it (`dialect.with_operators`).
        samples: `(args, kwargs)`; None takes random numbers.
        source: what the samples are, in words.
        tolerance: largest relative difference that passes; None takes `TOLERANCE` for the program's float type, and
            with quantized activations at least what the network's sensitivity explains.

    Raises:
        ExportError: the samples are not the model's inputs.
    """
    if samples is None:
        samples, source = _random_samples(program), "random samples (seed 0; the model carries no others)"
    sizes, feeds, references = _run_model(model, program, samples)
    if tolerance is None:
        tolerance = max(TOLERANCE[_precision(program)], SENSITIVITY * _sensitivity(program, feeds, references))
    verified_on = f"{sizes[0]} {source}, in batches of {', '.join(map(str, sizes))}"
    return Reference(output_names(program), feeds, references, tolerance, verified_on)


def _run_model(
    model: Callable[..., Any], program: ExportedProgram, samples: Arguments
) -> tuple[list[int], list[dict[str, Array]], list[list[Array]]]:
    """The batch sizes; for each of them the inputs of the file, and the model's outputs."""
    names = input_names(program)
    leaves, spec = pytree.tree_flatten(_in_order(samples, program))
    if spec != program.call_spec.in_spec:
        raise ExportError(
            f"The samples to verify on are put together as {spec}, but the model takes {program.call_spec.in_spec}. "
            "Give (positional inputs, inputs by name), as in `samples=((x,), {})`."
        )
    shapes = _input_shapes(program)
    given = [(shapes[name][0], len(leaf)) for leaf, name in zip(leaves, names, strict=True) if shapes.get(name)]
    dynamic = [count for size, count in given if isinstance(size, torch.SymInt)]
    # 2 is what programs are usually traced with, 1 what people run first.
    sizes = list(dict.fromkeys((dynamic[0], 2, 1))) if dynamic else [given[0][0] if given else 1]
    feeds, references = [], []
    for size in sizes:
        resized = [_resize(leaf, shapes.get(name), size) for leaf, name in zip(leaves, names, strict=True)]
        args, kwargs = pytree.tree_unflatten(resized, spec)
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(*args, **kwargs))
        feeds.append({name: _array(leaf) for name, leaf in zip(names, resized, strict=True) if name is not None})
        references.append([_array(outputs[leaf]) for leaf in output_leaves(program)])
    return sizes, feeds, references


def _in_order(samples: Arguments, program: ExportedProgram) -> Arguments:
    """Inputs by name in the order in which the program has them."""
    args, kwargs = samples
    assert program.call_spec.in_spec is not None
    order = program.call_spec.in_spec.child(1).context
    return tuple(args), {name: kwargs[name] for name in order if name in kwargs} | kwargs


def _input_shapes(program: ExportedProgram) -> dict[str | None, tuple[Any, ...]]:
    """The shape of each input; a dimension may be a symbol."""
    names = set(input_names(program))
    return {node.name: tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name in names}


def _resize(leaf: Any, shape: tuple[Any, ...] | None, size: int) -> Any:
    """The sample tensor with `size` samples (or as many as the program insists on), by cutting or repeating."""
    if not shape:
        return leaf
    wanted = size if isinstance(shape[0], torch.SymInt) else shape[0]
    return leaf if len(leaf) == wanted else leaf[torch.arange(wanted, device=leaf.device) % len(leaf)]


def _random_samples(program: ExportedProgram) -> Arguments:
    """Four samples: normal numbers, and zeros and ones where integers are asked for."""
    generator = torch.Generator().manual_seed(0)
    leaves: list[Any] = []
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name in input_names(program):
        if name is None:
            leaves.append(None)
            continue
        fake = values[name]
        shape = [
            size if isinstance(size, int) else 4 if dimension == 0 else size.node.hint
            for dimension, size in enumerate(fake.shape)
        ]
        if fake.is_floating_point():
            leaf = torch.randn(shape, generator=generator).to(fake.dtype)
        else:
            leaf = torch.randint(0, 2, shape, generator=generator).to(fake.dtype)
        leaves.append(leaf.to(fake.device))
    assert program.call_spec.in_spec is not None
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return args, kwargs


def quantizes_activations(program: ExportedProgram) -> bool:
    """Whether anything but weights is quantized."""
    return any(node.target is dialect.operator_for(dialect.QUANTIZE) for node in program.graph.nodes)


@final
class _Changed(TorchDispatchMode):
    """Every operation's results in floating point times 1 + a little, drawn for each number."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return pytree.tree_map_only(Tensor, self._change, func(*args, **(kwargs or {})))

    def _change(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        # Relative, and no less than neighbouring numbers of the dtype differ by.
        size = max(CHANGE, torch.finfo(value.dtype).eps) if value.dtype.itemsize < 4 else CHANGE
        return value * (1 + size * torch.randn(value.shape, generator=self._generator)).to(value)


def _sensitivity(program: ExportedProgram, feeds: list[dict[str, Array]], references: list[list[Array]]) -> float:
    """The largest relative difference that small changes of all results make; 0 without quantizers."""
    if not quantizes_activations(program):
        return 0.0
    module, names = program.module(), output_names(program)
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    largest = 0.0
    for seed in range(DRAWS):
        results = []
        for feed in feeds:
            leaves = [torch.from_numpy(feed[name]).to(device) if name else None for name in input_names(program)]
            assert program.call_spec.in_spec is not None
            args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
            with torch.no_grad(), _Changed(seed):
                outputs = pytree.tree_leaves(module(*args, **kwargs))
            results.append([_array(outputs[leaf]) for leaf in output_leaves(program)])
        differences = _compare(names, references, results, tolerance=math.inf)
        largest = max([largest, *(difference.relative_difference for difference in differences)])
    return largest


def _compare(
    names: tuple[str, ...], references: list[list[Array]], results: list[list[Array]], *, tolerance: float
) -> tuple[OutputDifference, ...]:
    """The difference of each output over all batch sizes."""
    by_output = zip(zip(*references, strict=True), zip(*results, strict=True), strict=True)
    return tuple(
        _difference(name, expected, found, tolerance) for name, (expected, found) in zip(names, by_output, strict=True)
    )


def _difference(name: str, expected: tuple[Array, ...], found: tuple[Array, ...], tolerance: float) -> OutputDifference:
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ExportError(
                f"Output '{name}' of the exported file has shape {list(other.shape)} where the model gives "
                f"{list(one.shape)}: the exporter has probably frozen a size that the model reads off its inputs. "
                "Nothing was kept. Write such a size as −1 in the model's views, or report it with the model."
            )
    samples = sum(map(_length, expected))
    y, y_file = (np.concatenate([run.reshape(-1) for run in runs]) for runs in (expected, found))
    if y.dtype.kind != "f":
        differing = y != y_file
        share = float(differing.mean()) if differing.size else 0.0
        largest = float(np.abs(y.astype(np.float64) - y_file).max(initial=0))
        return OutputDifference(name, largest, share, INTEGER_TOLERANCE, samples)
    y, y_file = y.astype(np.float64), y_file.astype(np.float64)
    with np.errstate(invalid="ignore"):
        # Infinities and NaN must be the same ones at the same places; no finite difference stands for them.
        same = (y == y_file) | (np.isnan(y) & np.isnan(y_file))
        difference = np.where(same, 0.0, np.nan_to_num(np.abs(y - y_file), nan=np.inf, posinf=np.inf))
    largest = float(difference.max(initial=0))
    magnitude = float(np.abs(y[np.isfinite(y)]).max(initial=0))
    relative = largest / magnitude if magnitude else (0.0 if largest == 0 else math.inf)
    margins = np.concatenate([_margins(one, other) for one, other in zip(expected, found, strict=True)])
    return OutputDifference(name, largest, relative, tolerance, samples, len(margins), float(margins.max(initial=0)))


def _margins(expected: Array, found: Array) -> Array:
    """For each sample with another predicted class: the lead of the model's class over the file's class."""
    if expected.ndim != 2 or not expected.size:
        return np.zeros(0)
    rows = np.arange(len(expected))
    ours, theirs = expected.argmax(1), found.argmax(1)
    lead = expected[rows, ours].astype(np.float64) - expected[rows, theirs]
    disagreeing: Array = lead[ours != theirs]
    return disagreeing


def _precision(program: ExportedProgram) -> torch.dtype:
    """The least precise float type that the program computes in."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    half = any(isinstance(value, Tensor) and value.dtype is torch.float16 for value in values)
    return torch.float16 if half else torch.float32


def _array(value: Any) -> Array:
    array: Array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
    return array


def _length(array: Array) -> int:
    return len(array) if array.ndim else 1
