"""What was done, in figures: one record per layer and per activation, an entry per stage, and the whole.

An error is always *relative and measured at the layer's output*, against the float network's output y:

    error = Σ ‖y − ŷ‖² / Σ ‖y‖²        over all calibration samples, before the activation function,

where ŷ is what the layer gives in the network whose earlier layers are quantized already. So it contains the error that
the layer inherits; `error_nearest` is the same with this layer's weights rounded to nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import cattrs

from roundwise.wording import human_bytes, number_of


@final
@dataclass(frozen=True)
class WeightSummary:
    """A layer's float weights and the grids they were put on, in a few hundred bytes: enough to draw both.

    Each scale, with its zero point, is a grid of its own. Of these the finest and the coarsest are kept, and how far
    the ends of all of them spread.

    Attributes:
        smallest, largest: weight.
        counts: of weights in bins of equal width from `smallest` to `largest`; one bin where all are equal.
        scales: how many there are.
        finest, coarsest: the smallest and the largest scale, each with its zero point.
        lower_ends: the lowest and the highest among the smallest numbers that the grids reach.
        upper_ends: the lowest and the highest among the largest numbers that the grids reach.
        clipped: share of the weights more than half a step beyond their grid's ends, 0 to 1.
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
        shape: of the weight tensor.
        bits, granularity, symmetric, ranges, rounding: how it was quantized, in the recipe's words.
        error_nearest: relative output error with nearest rounding; NaN where there was no data to measure it on. Of 256
            samples and more, from how the two compare on 128 to 256 of them.
        error: relative output error with the rounding that was chosen, on all samples; NaN likewise.
        flips: share of the weights whose code is not the nearest one on the layer's final grid, 0 to 1.
        seconds: spent on ranges and rounding.
        note: anything a reader must know ("shared by 2 calls", …), or empty.
        summary: of the weights and their grid; None in files of earlier releases.
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
    summary: WeightSummary | None = field(default=None, repr=False)  # a page of bins would hide the rest

    @property
    def weights(self) -> int:
        """How many weights the layer has."""
        return math.prod(self.shape)


@final
@dataclass(frozen=True)
class ActivationReport:
    """One quantized tensor between operations.

    Attributes:
        name: of the operation or input that gives it, in the graph.
        bits, symmetric: of its codes.
        scale, zero_point: step in real units per code; the code of 0.0.
        low, high: the smallest and the largest value that the calibration samples showed; or that was expected, where
            the range was not read off them.
        shared_with: other tensors that have the same scale and zero point, since a concatenation joins them.
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
    """A parameter that stayed in float, and why."""

    name: str
    weights: int
    reason: str


@final
@dataclass(frozen=True)
class StageReport:
    """What one stage of the recipe did.

    Attributes:
        stage: its name in the table of stages: `rewrite`, `quantize`.
        seconds: wall time by what it was spent on.
        notes: what a reader must know about this stage as a whole.
        output_error: relative error of the network's outputs, Σ‖y − ŷ‖²/Σ‖y‖², on the calibration samples, against the
            network that the stage was given; None where it was not measured.
        layers: the layers that the stage quantized, in the order in which they ran.
        kept_float: float parameters with more than one dimension that remain, each with the reason.
        activations: the tensors between operations that the stage quantized, in order. All errors are measured with
            them quantized.
    """

    stage: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_error: float | None = None
    layers: tuple[LayerReport, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()
    activations: tuple[ActivationReport, ...] = ()


@final
@dataclass(frozen=True)
class Report:
    """The whole run. `print(report)` gives a table; `as_dict()` gives plain data for scripts.

    Attributes:
        stages: an entry for each stage of the recipe, in order.
        samples: how many calibration samples there were; 0 where it went without data, and no error was measured.
        float_bytes: size of the model's parameters and statistics before.
        quantized_bytes: size of codes (packed to their bits), scales, zero points and float parameters after.
        setup_seconds: wall time before the first stage: `read`, `capture`.
        peak_activation_bytes: the most that the run held between layers at any time, memory and disk together.
        setup_notes: what a reader must know about the samples and the captured network.
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
        """The quantized tensors between operations; none where activations stay in float."""
        return tuple(activation for stage in self.stages for activation in stage.activations)

    @property
    def kept_float(self) -> tuple[KeptFloat, ...]:
        """Float parameters with more than one dimension that remain after the last stage that quantizes."""
        return next((stage.kept_float for stage in reversed(self.stages) if stage.layers), ())

    @property
    def output_error(self) -> float:
        """The error of the last stage that measured one; NaN where none did."""
        return next((s.output_error for s in reversed(self.stages) if s.output_error is not None), math.nan)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the run as a whole."""
        return (*self.setup_notes, *(note for stage in self.stages for note in stage.notes))

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by what it was spent on, over all stages."""
        total = dict(self.setup_seconds)
        for stage in self.stages:
            for name, seconds in stage.seconds.items():
                total[name] = total.get(name, 0.0) + seconds
        return total

    @property
    def measured(self) -> bool:
        """Whether there was data to measure errors on."""
        return self.samples > 0

    @property
    def layer_notes(self) -> list[str]:
        """What a reader must know about single layers, each note once, with the names of those that have it."""
        names: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.note:
                names.setdefault(layer.note, []).append(layer.name)
        count = len(self.layers)

        def told(those: list[str]) -> str:
            return f"all {count} layers" if len(those) == count > 1 else ", ".join(those)

        return [f"{told(those)}: {note}" for note, those in names.items()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: dicts, lists, strings and numbers, and None for an error that is no finite number."""
        plain: dict[str, Any] = _CONVERTER.unstructure(self)
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `as_dict`, also after a trip through JSON; an error that is None becomes NaN."""
        return _CONVERTER.structure(data, cls)

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
                *((f"{layer.error_nearest:.5f}", f"{layer.error:.5f}") if errors else ()),
                f"{layer.flips:.1%}",
                f"{layer.seconds:.1f}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        left = {0, 1, 2, 4}

        def line(cells: tuple[str, ...]) -> str:
            padded = (
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        lines = [line(header), "  ".join("─" * width for width in widths), *map(line, rows), ""]
        lines.append(
            f"{number_of(len(self.layers), 'layer')} quantized "
            + (f"from {number_of(self.samples, 'sample')}" if self.measured else "without data")
            + f" in {sum(self.seconds.values()):.1f} s; "
            f"weights {human_bytes(self.float_bytes)} → {human_bytes(self.quantized_bytes)}; "
            + (
                f"relative error of the network's output {self.output_error:.5f}."
                if self.measured
                else "no error was measured, since there was nothing to measure it on."
            )
        )
        if self.activations:
            bits = "/".join(map(str, sorted({activation.bits for activation in self.activations})))
            lines.append(
                f"{number_of(len(self.activations), 'activation')} quantized to {bits} bits"
                + ("; errors are measured with them." if self.measured else ".")
            )
        if self.measured:
            lines.append(
                "nearest, chosen: relative error of the layer's output before its activation function, "
                "Σ‖y − ŷ‖²/Σ‖y‖², with the layers before it quantized as chosen."
            )
        lines += self.layer_notes
        lines += [
            f"kept in float: {kept.name} ({number_of(kept.weights, 'weight')}): {kept.reason}"
            for kept in self.kept_float
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


# JSON has no NaN. Errors are not finite where there was no data, or where a network in float16 overflows.
_CONVERTER = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
_CONVERTER.register_unstructure_hook(float, lambda value: value if math.isfinite(value) else None)
_CONVERTER.register_structure_hook(float, lambda value, _: math.nan if value is None else float(value))
