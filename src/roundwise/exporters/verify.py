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

*The default session.* What counts is the run that users make: a session with the runtime's default settings. Kernels
round where the file does not say so: between sums and codes, biases to integers, the inputs of matrix products to 8
bits. So it has a tolerance of its own, also measured on the network: the largest difference of the outputs that such
roundings make, times `KERNELS` (`exporters/sensitivity.py`). A file whose default session differs by more is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roundwise.artifacts.binding import Arguments
from roundwise.errors import ExportError
from roundwise.exporters.names import constant_inputs, input_names, output_leaves, output_names
from roundwise.exporters.sensitivity import changed_outputs, quantizes_activations
from roundwise.frontends.program import batch_range
from roundwise.numerics.output_error import INTEGER_TOLERANCE, ErrorSums
from roundwise.runtimes.interface import Array
from roundwise.wording import number_of

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}
"""Largest relative difference that passes, by the least precise float type in the program."""

SENSITIVITY = 5.0
"""The tolerance of a network with quantized activations, in multiples of the difference that small changes make."""

KERNELS = 2.0
"""The tolerance of a runtime's default session, in multiples of the difference that roundings in kernels make."""


@final
@dataclass(frozen=True)
class OutputDifference:
    """How far one output of the file is from the model's.

    Attributes:
        name: of the output.
        max_difference: largest absolute difference, in the output's own units.
        relative_difference: that, relative to the model's largest magnitude in this output, or in one of its channels
            if that is worse (`numerics/output_error.py`). For integers and booleans: the share of elements that differ.
        tolerance: the largest `relative_difference` that passes.
        samples: how many were compared, all batch sizes together.
        class_disagreements: of these, how many have their largest value elsewhere; for outputs `[samples, classes]`.
        largest_margin: among those, the largest lead of the model's class over the file's, in the output's units. A
            margin below `max_difference` is a tie within the numerical error.
        error: Σ(y − ŷ)²/Σy², where ŷ is of the file.
        error_tolerance: the largest `error` that passes.
        note: what was left out of the figures, such as a mask of −1e9 that both give.
    """

    name: str
    max_difference: float
    relative_difference: float
    tolerance: float
    samples: int
    class_disagreements: int = 0
    largest_margin: float = 0.0
    error: float = 0.0
    error_tolerance: float = math.inf
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the difference is what two runtimes may differ by."""
        return self.relative_difference <= self.tolerance and self.error <= self.error_tolerance

    def __str__(self) -> str:
        text = f"'{self.name}' differs by at most {self.max_difference:.2g} ({self.relative_difference:.2g} relative)"
        if self.class_disagreements:
            text += (
                f", with another predicted class for {self.class_disagreements} of {number_of(self.samples, 'sample')} "
                f"(largest margin {self.largest_margin:.2g})"
            )
        return f"{text}; {self.note}" if self.note else text


class Tolerance(NamedTuple):
    """What passes.

    Attributes:
        floats: the largest relative difference of outputs of floats.
        whole: that of whole numbers and truth values: the share that differs.
        error: the largest Σ(y − ŷ)²/Σy² of outputs of floats. It finds faults in few channels of many, which are below
            the largest difference that chance makes.
    """

    floats: float
    whole: float
    error: float = math.inf


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """Inputs, the model's outputs for them, and how far a file's outputs may differ.

    Attributes:
        names: of the outputs.
        inputs: by their names in the file; one set for each batch size.
        outputs: the model's, in the order of `names`, for each set of inputs.
        tolerance: what passes if the runtime computes what the file says.
        kernel_tolerance: what passes with the runtime's default settings.
        verified_on: what the inputs are, in words.
    """

    names: tuple[str, ...]
    inputs: list[dict[str, Array]]
    outputs: list[list[Array]]
    tolerance: Tolerance
    kernel_tolerance: Tolerance
    verified_on: str

    def compare(self, results: list[list[Array]], *, kernels: bool = False) -> tuple[OutputDifference, ...]:
        """How far each output of a file is from the model's, over all sets of inputs.

        Args:
            results: the file's outputs for each set of inputs.
            kernels: whether they are of a session with default settings.
        """
        tolerance = self.kernel_tolerance if kernels else self.tolerance
        return _compare(self.names, self.outputs, results, tolerance=tolerance)


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
    _refuse_empty_proof(program, feeds, references, source)
    exact = kernels = Tolerance(TOLERANCE[_precision(program)] if tolerance is None else tolerance, INTEGER_TOLERANCE)
    if tolerance is None:
        if quantizes_activations(program):
            found = _sensitivity(program, feeds, references, kernels=False)
            exact = Tolerance(max(exact.floats, SENSITIVITY * found.floats), exact.whole)
        found = _sensitivity(program, feeds, references, kernels=True)
        kernels = Tolerance(
            floats=max(exact.floats, KERNELS * found.floats),
            whole=max(exact.whole, KERNELS * found.whole),
            error=max(exact.floats**2, KERNELS**2 * found.error),
        )
    verified_on = f"{sizes[0]} {source}, in batches of {', '.join(map(str, sizes))}"
    return Reference(output_names(program), feeds, references, exact, kernels, verified_on)


def _refuse_empty_proof(
    program: ExportedProgram, feeds: list[dict[str, Array]], references: list[list[Array]], source: str
) -> None:
    """Raise if a comparison on these inputs would prove nothing."""
    for name, array in feeds[0].items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ExportError(
                f"The {source} for input '{name}' hold {int(np.isnan(array).sum()):,} NaN among {array.size:,} values. "
                "NaN spreads to the outputs, and a comparison of NaN proves nothing. Give samples of finite numbers."
            )
    infinite = [name for name, array in feeds[0].items() if array.dtype.kind == "f" and np.isinf(array).any()]
    for name, array in zip(output_names(program), references[0], strict=True):
        if array.dtype.kind != "f" or not array.size:
            continue
        if not np.isfinite(array).any() or (infinite and np.isnan(array).any()):
            also = f", and input '{infinite[0]}' holds infinite values" if infinite else ""
            raise ExportError(
                f"On the {source}, {int((~np.isfinite(array)).sum()):,} of {array.size:,} values of the model's output "
                f"'{name}' are NaN or infinite{also}. A comparison on them proves nothing. Give samples for which the "
                "model's outputs are finite."
            )


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
    for leaf, name in zip(leaves, names, strict=True):
        if isinstance(leaf, Tensor) and leaf.dim() and not leaf.shape[0]:
            raise ExportError(
                f"The samples to verify on are empty: input '{name}' has shape {list(leaf.shape)}. Give one or more."
            )
    given = [(shapes[name][0], len(leaf)) for leaf, name in zip(leaves, names, strict=True) if shapes.get(name)]
    dynamic = [count for size, count in given if isinstance(size, torch.SymInt)]
    # 2 is what programs are usually traced with, 1 what people run first.
    few = [size for size in (2, 1) if batch_range(program).holds(size)]
    sizes = list(dict.fromkeys((dynamic[0], *few))) if dynamic else [given[0][0] if given else 1]
    batches = [
        [_resize(leaf, shapes.get(name), size) for leaf, name in zip(leaves, names, strict=True)] for size in sizes
    ]
    larger = [_enlarge(leaf, shapes.get(name), program) for leaf, name in zip(batches[0], names, strict=True)]
    if any(new is not old for new, old in zip(larger, batches[0], strict=True)):
        batches.append(larger)
    feeds, references = [], []
    for resized in batches:
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


def _enlarge(leaf: Any, shape: tuple[Any, ...] | None, program: ExportedProgram) -> Any:
    """The sample tensor with twice the size in each dynamic dimension besides the batch, or as much as it may have."""
    for dim, size in enumerate(shape or ()):
        if dim and isinstance(size, torch.SymInt):
            limit = program.range_constraints[size.node.expr].upper
            wanted = min(2 * leaf.shape[dim], int(limit)) if limit.is_Integer else 2 * leaf.shape[dim]
            leaf = leaf.index_select(dim, torch.arange(wanted, device=leaf.device) % leaf.shape[dim])
    return leaf


def _random_samples(program: ExportedProgram) -> Arguments:
    """Four samples: normal numbers, and zeros and ones where integers are asked for."""
    generator = torch.Generator().manual_seed(0)
    leaves: list[Any] = []
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, constant in zip(input_names(program), constant_inputs(program), strict=True):
        if name is None:
            leaves.append(constant)
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


def _sensitivity(
    program: ExportedProgram, feeds: list[dict[str, Array]], references: list[list[Array]], *, kernels: bool
) -> Tolerance:
    """The largest differences that small changes make."""
    names, nothing = output_names(program), Tolerance(math.inf, math.inf)
    draws = changed_outputs(program, feeds, kernels=kernels)
    found = [one for results in draws for one in _compare(names, references, results, tolerance=nothing)]
    whole = [array.dtype.kind != "f" for array in references[0]] * len(draws)
    floats, others = ([one for one, is_whole in zip(found, whole, strict=True) if is_whole == kind] for kind in (0, 1))
    return Tolerance(
        floats=max((one.relative_difference for one in floats), default=0.0),
        whole=max((one.relative_difference for one in others), default=0.0),
        error=max((one.error for one in floats), default=0.0),
    )


def _compare(
    names: tuple[str, ...], references: list[list[Array]], results: list[list[Array]], *, tolerance: Tolerance
) -> tuple[OutputDifference, ...]:
    """The difference of each output over all batch sizes."""
    by_output = zip(zip(*references, strict=True), zip(*results, strict=True), strict=True)
    return tuple(
        _difference(name, expected, found, tolerance) for name, (expected, found) in zip(names, by_output, strict=True)
    )


def _difference(
    name: str, expected: tuple[Array, ...], found: tuple[Array, ...], tolerance: Tolerance
) -> OutputDifference:
    sums = ErrorSums()
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ExportError(
                f"Output '{name}' of the exported file has shape {list(other.shape)} where the model gives "
                f"{list(one.shape)}: the exporter has probably frozen a size that the model reads off its inputs. "
                "Nothing was kept. Write such a size as −1 in the model's views, or report it with the model."
            )
        sums.add(torch.from_numpy(np.array(other)), torch.from_numpy(np.array(one)))
    error = sums.result()
    margins = np.concatenate([_margins(one, other) for one, other in zip(expected, found, strict=True)])
    return OutputDifference(
        name=name,
        max_difference=error.largest_difference,
        relative_difference=error.relative_difference,
        tolerance=tolerance.whole if error.whole else tolerance.floats,
        samples=sum(map(_length, expected)),
        class_disagreements=0 if error.whole else len(margins),
        largest_margin=0.0 if error.whole else float(margins.max(initial=0)),
        error=error.error,
        error_tolerance=math.inf if error.whole else tolerance.error,
        note=error.note,
    )


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
