"""The report of a run: one entry per stage, with one entry per quantized layer and per quantized activation.

A layer's error is *relative*, and measured at the layer's output against the output y of the reference network:

    error = Σ ‖y − ŷ‖² / Σ ‖y‖²        over all calibration samples, before the nonlinearity,

where ŷ is the layer's output in the network so far, whose earlier layers are already quantized. So it contains the
error that comes from earlier layers. `error_nearest` is the same error with this layer's weights rounded to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

from roundwise.errors import FileFormatError
from roundwise.report_compression import (
    CompressionReport,
    compression_in_words,
    total_latency,
    total_macs,
    total_parameters,
)
from roundwise.report_data import from_plain, to_plain
from roundwise.report_training import EpochReport, best_epoch, training_in_words
from roundwise.wording import error_in_words, human_bytes, number_of, table


@final
@dataclass(frozen=True)
class WeightSummary:
    """A layer's float weights and grid in a few hundred bytes, enough for a figure of both.

    Each scale, with its zero point, is a grid from a smallest to a largest number. The summary keeps the finest and the
    coarsest of these grids, and the ranges in which the ends of all of them lie.

    Attributes:
        smallest, largest: the smallest and the largest weight.
        counts: number of weights in bins of equal width from `smallest` to `largest`; one bin if all are equal.
        scales: number of scales.
        finest, coarsest: the smallest and the largest scale, each with its zero point.
        lower_ends: the lowest and the highest lower end of all grids.
        upper_ends: the lowest and the highest upper end of all grids.
        clipped: share of the weights that lie more than half a step outside of their grid, 0 to 1.
    """

    smallest: float
    largest: float
    counts: tuple[int, ...]
    scales: int
    finest: tuple[float, int]
    coarsest: tuple[float, int]
    lower_ends: tuple[float, float]
    upper_ends: tuple[float, float]
    clipped: float


@final
@dataclass(frozen=True)
class LayerReport:
    """One quantized layer.

    Attributes:
        name: the layer's name in the model.
        operation: `linear`, `conv2d`, `conv_transpose1d`, …
        shape: shape of the weight tensor.
        bits, granularity, symmetric, ranges, rounding: how it was quantized, with the names that recipes use.
        error_nearest: relative output error with nearest rounding; NaN without data. With 256 samples or more it is
            estimated: `error`, times the ratio of both errors on at least 128 of the samples.
        error: relative output error with the chosen rounding, on all samples; NaN without data.
        flips: share of the weights whose code is not the nearest one on the layer's final grid, 0 to 1.
        seconds: time spent on ranges and rounding.
        note: further information ("used by 2 calls; …"), or empty.
        summary: the weights and their grid; None in files of earlier releases.
    """

    name: str
    operation: str
    shape: tuple[int, ...]
    bits: int
    granularity: str
    symmetric: bool
    ranges: str
    rounding: str
    error_nearest: float
    error: float
    flips: float
    seconds: float
    note: str = ""
    summary: WeightSummary | None = field(default=None, repr=False)  # its many numbers would hide the other fields

    @property
    def weights(self) -> int:
        """Number of weights in the layer."""
        return math.prod(self.shape)

    @property
    def outcome(self) -> str:
        """A line for people who watch the run."""
        return (
            f"error {error_in_words(self.error_nearest)} → {error_in_words(self.error)}, "
            f"{self.flips:.1%} flipped, {self.seconds:.1f} s"
        )


@final
@dataclass(frozen=True)
class ActivationReport:
    """One quantized activation: a tensor between operations.

    Attributes:
        name: name of the operation or input in the graph that gives it.
        bits, symmetric: of its codes.
        scale, zero_point: step in real units per code; the code of 0.0.
        low, high: its smallest and largest value for the calibration samples; or the expected limits, if the range was
            estimated without samples.
        shared_with: other activations with the same scale and zero point, because a concatenation joins them.
    """

    name: str
    bits: int
    symmetric: bool
    scale: float
    zero_point: int
    low: float
    high: float
    shared_with: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class KeptFloat:
    """A parameter that stayed in float, and the reason."""

    name: str
    weights: int
    reason: str


@final
@dataclass(frozen=True)
class OutputReport:
    """One output of the network, compared with the network that the stage was given.

    Attributes:
        name: its place in the result: `output`, `output_1` in a tuple, `logits` in a dict.
        error: Σ‖y − ŷ‖²/Σ‖y‖². Values that both networks mask with the same huge or infinite number are left out; the
            error is infinite if only one of them is infinite somewhere. For whole numbers, the share that differs.
        whole: whether it is of whole numbers or truth values.
        note: what was left out, and what the error says nothing about, because few values hold nearly all of Σ‖y‖².
    """

    name: str
    error: float
    whole: bool = False
    note: str = ""

    @property
    def figure(self) -> str:
        """The error in words."""
        return f"{self.error:.3%} of the numbers differ" if self.whole else f"relative error {self.error:.5f}"


def worst_error(outputs: Iterable[OutputReport]) -> float:
    """The largest error of the outputs of floats; of those of whole numbers if there are no others; 0 without any."""
    outputs = list(outputs)
    return max([one.error for one in outputs if not one.whole] or [one.error for one in outputs], default=0.0)


@final
@dataclass(frozen=True)
class StageReport:
    """The report of one stage of the recipe.

    Attributes:
        stage: name of the stage: `compress`, `rewrite`, `quantize`, `finetune`.
        seconds: wall time of each activity.
        notes: notes about the stage as a whole.
        output_error: relative error of the network's output, Σ‖y − ŷ‖²/Σ‖y‖², on the calibration samples, against the
            network that the stage was given, and after training against the float network; of several outputs, that of
            the one with the largest error. None if it was not measured.
        layers: the layers that the stage quantized, in the order in which they run.
        kept_float: the parameters with two or more dimensions that stay in float, each with the reason.
        activations: the activations that the stage quantized, in order. All errors include theirs.
        outputs: the error of each output of the network, if it was measured.
        epochs: the epochs of training, with the state before it as epoch 0.
        compressed: the layers of the network that the stage was given, cut or left, in the order in which they run.
    """

    stage: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_error: float | None = None
    layers: tuple[LayerReport, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()
    activations: tuple[ActivationReport, ...] = ()
    outputs: tuple[OutputReport, ...] = ()
    epochs: tuple[EpochReport, ...] = ()
    compressed: tuple[CompressionReport, ...] = ()

    @property
    def best_epoch(self) -> EpochReport | None:
        """The epoch whose network was kept: that with the smallest held-out loss; None without training."""
        return best_epoch(self.epochs)

    @property
    def macs(self) -> tuple[int, int]:
        """Multiplications of one sample before and after compression, in all layers."""
        return total_macs(self.compressed)

    @property
    def latency(self) -> tuple[float, float]:
        """Seconds that all layers take, each alone, before and after compression to a latency; else NaN."""
        return total_latency(self.compressed)

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers in weights and biases of all layers before and after compression."""
        return total_parameters(self.compressed)


@final
@dataclass(frozen=True)
class Report:
    """The report of a run. `print(report)` gives a table; `as_dict()` gives plain data for scripts.

    Attributes:
        stages: the report of each stage of the recipe, in order.
        samples: number of calibration samples; 0 for a run without data, in which no error is measured.
        float_bytes: size of the model's parameters and buffers before the run.
        quantized_bytes: size of codes (packed to their bits), scales, zero points and float parameters after the run.
        setup_seconds: wall time before the first stage: `read`, `capture`.
        peak_activation_bytes: the largest number of bytes held between layers at any time, in memory and on disk.
        setup_notes: notes about the samples and the captured network.
    """

    stages: tuple[StageReport, ...]
    samples: int
    float_bytes: int
    quantized_bytes: int
    setup_seconds: dict[str, float]
    peak_activation_bytes: int
    setup_notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """The quantized layers of all stages."""
        return tuple(layer for stage in self.stages for layer in stage.layers)

    @property
    def activations(self) -> tuple[ActivationReport, ...]:
        """The quantized activations of all stages; empty if activations stay in float."""
        return tuple(activation for stage in self.stages for activation in stage.activations)

    @property
    def kept_float(self) -> tuple[KeptFloat, ...]:
        """The parameters with two or more dimensions that are still float after the last stage that quantizes."""
        return next((stage.kept_float for stage in reversed(self.stages) if stage.layers), ())

    @property
    def float_share(self) -> float:
        """The share of the network's weights that stay in float, 0 to 1: of `layers` and `kept_float` together."""
        kept = sum(one.weights for one in self.kept_float)
        return kept / (kept + sum(layer.weights for layer in self.layers)) if kept else 0.0

    @property
    def output_error(self) -> float:
        """The error of the last stage that measured one; NaN if no stage did."""
        return next((s.output_error for s in reversed(self.stages) if s.output_error is not None), math.nan)

    @property
    def outputs(self) -> tuple[OutputReport, ...]:
        """The outputs that `output_error` is about."""
        return next((stage.outputs for stage in reversed(self.stages) if stage.outputs), ())

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes about the run as a whole, and about what the errors of its outputs say nothing about."""
        stages = [note for stage in self.stages for note in stage.notes]
        return (*self.setup_notes, *stages, *(f"output '{one.name}': {one.note}" for one in self.outputs if one.note))

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each activity, over all stages."""
        total = dict(self.setup_seconds)
        for stage in self.stages:
            for name, seconds in stage.seconds.items():
                total[name] = total.get(name, 0.0) + seconds
        return total

    @property
    def measured(self) -> bool:
        """Whether errors were measured: False for a run without data."""
        return self.samples > 0

    @property
    def layer_notes(self) -> list[str]:
        """The notes about single layers; each note once, with the names of the layers that have it."""
        names: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.note:
                names.setdefault(layer.note, []).append(layer.name)
        count = len(self.layers)

        def join(layers: list[str]) -> str:
            if len(layers) == count > 1:
                return f"all {count} layers"
            return f"layer{'s' if len(layers) > 1 else ''} " + ", ".join(f"'{layer}'" for layer in layers)

        return [f"{join(layers)}: {note}" for note, layers in names.items()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: dicts, lists, strings and numbers, and None for an error that is NaN or infinite."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `as_dict`, also for data read from JSON; an error that is None becomes NaN.

        Raises:
            FileFormatError: the data are not those of a report.
        """
        try:
            return from_plain(data, cls)
        except Exception as error:  # data can be wrong in any way
            raise FileFormatError(
                f"there is no report in this {type(data).__name__}: {type(error).__name__}: {error}. Give what "
                "`Report.as_dict` returned, written by this release."
            ) from error

    def __str__(self) -> str:
        errors = ("nearest", "chosen") if self.measured else ()
        header = ("layer", "operation", "shape", "bits", "granularity", *errors, "flips", "seconds")
        rows = [
            (
                layer.name,
                layer.operation,
                "×".join(map(str, layer.shape)),
                str(layer.bits),
                layer.granularity,
                *((error_in_words(layer.error_nearest), error_in_words(layer.error)) if errors else ()),
                f"{layer.flips:.1%}",
                f"{layer.seconds:.1f}",
            )
            for layer in self.layers
        ]
        cut = [line for stage in self.stages if stage.compressed for line in compression_in_words(stage.compressed)]
        lines = list(cut)
        if self.layers or not cut:
            lines += table(header, rows, left={0, 1, 2, 4})
        solvers = ", ".join(dict.fromkeys(layer.rounding for layer in self.layers))
        lines.append(
            (f"{number_of(len(self.layers), 'layer')} quantized " if self.layers or not cut else "done ")
            + (f"by {solvers} " if solvers else "")
            + (f"from {number_of(self.samples, 'sample')}" if self.measured else "without data")
            + f" in {sum(self.seconds.values()):.1f} s; "
            f"weights {human_bytes(self.float_bytes)} → {human_bytes(self.quantized_bytes)}; "
            + (
                "no error was measured, since there was no data."
                if not self.measured
                else "the error of the network's output was not measured."
                if math.isnan(self.output_error)
                else f"relative error of the network's output {error_in_words(self.output_error)}."
            )
        )
        if self.kept_float:
            count, weights = len(self.kept_float), sum(kept.weights for kept in self.kept_float)
            lines.append(
                f"{number_of(count, 'parameter')} with {number_of(weights, 'weight')} "
                f"{'stay' if count > 1 else 'stays'} in float: {self.float_share:.1%} of all weights."
            )
        if self.activations:
            bits = "/".join(map(str, sorted({activation.bits for activation in self.activations})))
            lines.append(
                f"{number_of(len(self.activations), 'activation')} quantized to {bits} bits"
                + ("; errors include theirs." if self.measured else ".")
            )
        if self.measured and (self.layers or not cut):
            lines.append(
                "nearest, chosen: relative error of the layer's output before its nonlinearity, Σ‖y − ŷ‖²/Σ‖y‖², with "
                "nearest and with the chosen rounding of this layer; earlier layers are quantized as chosen."
            )
        lines += [training_in_words(stage.epochs) for stage in self.stages if stage.epochs]
        if len(self.outputs) > 1:
            lines += [f"output '{one.name}': {one.figure}" for one in self.outputs]
        lines += self.layer_notes
        lines += [
            f"kept in float: {kept.name} ({number_of(kept.weights, 'weight')}): {kept.reason}"
            for kept in self.kept_float
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
