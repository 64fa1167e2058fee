"""What the report says about compression: one entry per layer of the network that was compressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.wording import error_in_words, milliseconds, number_of, table


@final
@dataclass(frozen=True)
class CompressionReport:
    """One layer of a compressed network: cut into smaller ones, or left as it is.

    Attributes:
        name: the layer's name in the model.
        operation, shape: of the layer before.
        method: by the name that recipes use, such as "spatial-svd", or "channel-pruning + spatial-svd" for a layer that
            lost channels and was then replaced; empty if the layer was left as it is.
        size: what the method chose: the rank, or the numbers of output and of input channels that are left, or these
            and the rank; empty if the layer was left.
        macs, parameters: before and after: multiplications of one sample, and numbers in weight and bias.
        predicted: what the choice expected: the relative error of the network's outputs from this layer alone. Without
            data, the share of the layer's squared weights that is lost. NaN if it was left.
        error_weights: relative error of the layer's output with factors of the weights alone; NaN without data.
        error: relative error of the layer's output, on all samples, in the network whose earlier layers are cut too;
            NaN without data.
        seconds: time spent on the layer.
        note: the reason why a layer was left; what was worse than expected.
        latency: before and after: seconds that the layer, or its chain, takes alone on one sample in ONNX Runtime; NaN
            where the budget was not a latency.
    """

    name: str
    operation: str
    shape: tuple[int, ...]
    method: str
    size: tuple[int, ...]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    predicted: float
    error_weights: float
    error: float
    seconds: float
    note: str = ""
    latency: tuple[float, float] = (math.nan, math.nan)

    @property
    def outcome(self) -> str:
        """A line for people who watch the run."""
        what = f"{self.method}, size {'×'.join(map(str, self.size))}" if self.method else "its weights are fitted"
        return (
            f"{what}: error {error_in_words(self.error_weights)} → {error_in_words(self.error)}, "
            f"{self.macs[1] / self.macs[0]:.0%} of the MACs, {self.seconds:.1f} s"
        )


def total_macs(entries: Sequence[CompressionReport]) -> tuple[int, int]:
    """Multiplications of one sample in all layers, before and after."""
    return sum(one.macs[0] for one in entries), sum(one.macs[1] for one in entries)


def total_parameters(entries: Sequence[CompressionReport]) -> tuple[int, int]:
    """Numbers in weights and biases of all layers, before and after."""
    return sum(one.parameters[0] for one in entries), sum(one.parameters[1] for one in entries)


def total_latency(entries: Sequence[CompressionReport]) -> tuple[float, float]:
    """Seconds of all layers, each alone, before and after; NaN where they were not measured."""
    return sum(one.latency[0] for one in entries), sum(one.latency[1] for one in entries)


def compression_in_words(entries: Sequence[CompressionReport]) -> list[str]:
    """The entries of a stage as lines of the report, with an empty one at the end."""
    measured = any(not math.isnan(one.error) for one in entries)
    time, time_left = total_latency(entries)
    timed = not math.isnan(time)
    costs = "MACs", "parameters", *(("latency",) if timed else ())
    header = "layer", "operation", "shape", "method", "size", *costs, "predicted"
    header = *header, *(("weights", "fitted") if measured else ())
    lines = table(header, [_row(one, measured=measured, timed=timed) for one in entries], {0, 1, 2, 3})
    (macs, macs_left), (parameters, parameters_left) = total_macs(entries), total_parameters(entries)
    lines.append(
        f"{sum(bool(one.method) for one in entries)} of {number_of(len(entries), 'layer')} cut; "
        f"MACs {macs:,} → {macs_left:,} ({macs_left / max(1, macs):.1%}), "
        f"parameters {parameters:,} → {parameters_left:,} ({parameters_left / max(1, parameters):.1%})."
    )
    if timed:
        lines.append(
            f"latency of all layers, each alone, on one sample in ONNX Runtime: {milliseconds(time)} → "
            f"{milliseconds(time_left)} ({time_left / max(time, 1e-12):.1%})."
        )
    if measured:
        lines.append(
            "predicted: relative error of the network's output from this layer alone, as the choice of sizes expected "
            "it. weights, fitted: relative error of the layer's output, Σ‖y − ŷ‖²/Σ‖y‖², with factors of the weights "
            "alone and with those fitted to the samples; earlier layers are cut too."
        )
    else:
        lines.append("predicted: the share of the layer's squared weights that is lost.")
    lines += [f"layer '{one.name}'{'' if one.method else ' stays'}: {one.note}" for one in entries if one.note]
    return [*lines, ""]


def _row(entry: CompressionReport, *, measured: bool, timed: bool) -> tuple[str, ...]:
    costs = entry.macs, entry.parameters, *((entry.latency,) if timed else ())
    errors = (entry.predicted, entry.error_weights, entry.error) if measured else (entry.predicted,)
    return (
        entry.name,
        entry.operation,
        "×".join(map(str, entry.shape)),
        entry.method or "as it was",
        "×".join(map(str, entry.size)),
        *(f"{after / (before or 1):.0%}" for before, after in costs),
        *(error_in_words(error) if entry.method else "" for error in errors),
    )
