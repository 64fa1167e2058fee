"""How good a network is, and how close two networks are.

    top-k      share of the samples whose label is among the k largest outputs; of equal ones, the first are larger
    mean IoU   how well regions are found, where samples have masks instead of labels (`segmentation.py`)
    same class share of the predictions (largest output) on which both networks agree
    output error   Σ‖y − ŷ‖² / Σ‖y‖², y the outputs of floats of the network compared with
    same integers  share of equal numbers among outputs that are no floats, where a network has such

Accuracy needs labels; agreement needs none, is measured on every sample, and moves before accuracy does: use it where
labels are few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roundwise.errors import CalibrationError, ModelError
from roundwise.evaluation.arrays import as_labels
from roundwise.evaluation.data import Batches
from roundwise.evaluation.outputs import Outputs, outputs_of, paired, wide
from roundwise.evaluation.segmentation import IGNORE, Confusion, Segmentation
from roundwise.wording import number_of

Network = Callable[[Tensor], Any]


@final
@dataclass(frozen=True)
class Accuracy:
    """Shares of the samples, 0 to 1, by scores in their own precision.

    A label is among the top k if fewer than k classes come before it: those with a larger score, and of those with an
    equal one (a saturated or coarsely quantized network has many) the ones of lower number. So top-1 is argmax.
    `top5` is None where there are fewer than 6 classes, of which 5 say nothing.
    """

    top1: float
    top5: float | None


@final
@dataclass(frozen=True)
class Comparison:
    """One network held against another, which is taken as the truth.

    Attributes:
        accuracy: of the other network, where there are labels.
        same_class: share of equal predictions, 0 to 1: per sample, or per position where outputs have positions (as in
            segmentation); None where the outputs are not one tensor of class scores.
        output_error: Σ‖y − ŷ‖² / Σ‖y‖² over all outputs of floats. Where both give minus infinity, that is no error;
            where one alone does, the error is infinite.
        segmentation: of the other network, where there are masks.
        same_integers: share of equal numbers, 0 to 1, in outputs of whole numbers or truth values, such as chosen
            classes; None where there are none. No error is measured of these: they are names as often as amounts.
    """

    accuracy: Accuracy | None
    same_class: float | None
    output_error: float
    segmentation: Segmentation | None = None
    same_integers: float | None = None


@final
@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured on `samples` samples. `print(evaluation)` is for people, `as_dict()` for scripts."""

    samples: int
    accuracy: Accuracy | None
    comparison: Comparison | None
    segmentation: Segmentation | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data: dicts and numbers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [("samples", f"{self.samples:,}"), *_rows(self.accuracy, self.segmentation, "")]
        if self.comparison is not None:
            rows += _rows(self.comparison.accuracy, self.comparison.segmentation, ", compared with")
            if self.comparison.same_class is not None:
                rows.append(("same class", f"{self.comparison.same_class:.2%}"))
            rows.append(("output error", f"{self.comparison.output_error:.3g}"))
            if self.comparison.same_integers is not None:
                rows.append(("same integers", f"{self.comparison.same_integers:.2%}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _rows(accuracy: Accuracy | None, segmentation: Segmentation | None, suffix: str) -> list[tuple[str, str]]:
    rows = []
    if accuracy is not None:
        named = ((f"top-1{suffix}", accuracy.top1), (f"top-5{suffix}", accuracy.top5))
        rows += [(name, f"{share:.2%}") for name, share in named if share is not None]
    if segmentation is not None:
        found = sum(share is not None for share in segmentation.iou)
        rows += [
            (f"mean IoU{suffix}", f"{segmentation.mean_iou:.2%} ({found} of {len(segmentation.iou)} classes occur)"),
            (f"pixel accuracy{suffix}", f"{segmentation.pixel_accuracy:.2%}"),
        ]
    return rows


def evaluate(
    network: Network,
    batches: Iterable[Tensor],
    *,
    labels: Int[Tensor, "samples"] | np.ndarray[Any, Any] | Sequence[int] | None = None,
    masks: Iterable[Int[Tensor, "N height width"]] | None = None,
    against: Network | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a network over batches of inputs and measure it.

    Modules run in eval mode and are left in the mode they were in. Sums are kept in float64.

    Args:
        network: called with one batch of inputs.
        batches: inputs `[N, …]`, in the order of the labels; where they are floats, finite ones.
        labels: class of each sample, counted from 0, as whole numbers; needs outputs `[N, classes]`.
        masks: for segmentation, one batch of masks for each batch of inputs: the class of each pixel, counted from 0,
            or 255 where it does not count. Needs scores `[N, classes, h, w]`: the one output, or the one named "out"
            where outputs have names, as torchvision's do. Scores of another resolution than the masks are resized to
            it, bilinearly.
        against: another network with the same outputs, for instance the one before quantization. Outputs with names
            are paired by these, others in order.
        progress: called with the number of samples done after each batch.

    Raises:
        CalibrationError: no samples; inputs that are NaN or infinite; more or fewer samples than labels or masks;
            labels that are no whole numbers from 0, or no class of the network; masks of which no pixel counts.
        ModelError: outputs that do not allow what is asked for: NaN, infinity (minus infinity may stand for classes
            that are ruled out, but not for all of them), other shapes or names, no tensors.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> evaluate(nn.Identity(), [scores], labels=torch.tensor([1, 1])).accuracy
        Accuracy(top1=0.5, top5=None)
    """
    samples = 0
    truths = None if labels is None else as_labels(labels, None, "evaluate", CalibrationError)
    numbers = batches.indices if isinstance(batches, Batches) else None
    own, other, differences = _Hits(), _Hits(), _Differences()
    regions, other_regions = Confusion(), Confusion()
    with torch.no_grad(), _Evaluating(network), _Evaluating(against):
        for inputs, truth in _with_masks(batches, masks):
            count = len(inputs)
            if count == 0:
                continue
            _check_finite(inputs, samples, numbers)
            outputs = outputs_of(network(inputs), "the network", samples)
            reference = None if against is None else outputs_of(against(inputs), "the network compared with", samples)
            if truths is not None:
                if samples + count > len(truths):
                    raise CalibrationError(f"{number_of(len(truths), 'label')}, but {samples + count} samples or more.")
                expected = truths[samples : samples + count]
                own.add(outputs, expected, count)
                if reference is not None:
                    other.add(reference, expected, count)
            if truth is not None:
                regions.add(_map_of_scores(outputs, count), truth, samples)
                if reference is not None:
                    other_regions.add(_map_of_scores(reference, count), truth, samples)
            if reference is not None:
                differences.add(outputs, reference)
            samples += count
            if progress is not None:
                progress(samples)
    if samples == 0:
        raise CalibrationError("There are no samples to evaluate on.")
    if truths is not None and len(truths) != samples:
        raise CalibrationError(
            f"{number_of(len(truths), 'label')}, but {number_of(samples, 'sample')}; one for each is needed."
        )
    accuracy = None if truths is None else own.accuracy(samples)
    segmentation = None if masks is None else regions.segmentation()
    if against is None:
        return Evaluation(samples, accuracy, None, segmentation)
    comparison = Comparison(
        accuracy=None if truths is None else other.accuracy(samples),
        same_class=differences.same_class,
        output_error=differences.output_error,
        segmentation=None if masks is None else other_regions.segmentation(),
        same_integers=differences.same_integers,
    )
    return Evaluation(samples, accuracy, comparison, segmentation)


def _with_masks(batches: Iterable[Tensor], masks: Iterable[Tensor] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each batch of inputs with its masks, or with None where there are none."""
    if masks is None:
        for inputs in batches:
            yield inputs, None
        return
    for number, (inputs, truth) in enumerate(zip_longest(batches, masks)):
        if inputs is None or truth is None:
            rest = "masks, but no more inputs" if inputs is None else "inputs, but no more masks"
            raise CalibrationError(f"batch {number} has {rest}; each batch of inputs needs one of masks.")
        yield inputs, truth


def _check_finite(inputs: Tensor, first: int, numbers: Sequence[int] | None) -> None:
    """Networks swallow what is not finite (a clamp, an 8-bit activation), and would be measured on nothing."""
    finite = torch.isfinite(wide(inputs))
    if bool(finite.all()):
        return
    bad = ~finite.reshape(len(inputs), -1)
    where = int(bad.any(1).nonzero()[0])
    number = first + where if numbers is None else numbers[first + where]
    kind = "NaN" if bool(wide(inputs)[where].isnan().any()) else "infinity"
    raise CalibrationError(
        f"sample {number} contains {kind}: {int(bad.sum())} values in {int(bad.any(1).sum())} of the "
        f"{len(inputs)} samples of its batch are not finite. What a network makes of these says nothing about it: "
        "remove or repair such samples."
    )


class _Evaluating:
    """Puts a module into eval mode, and every part of it back into its own mode afterwards."""

    def __init__(self, network: Network | None) -> None:
        self.modules = list(network.modules()) if isinstance(network, nn.Module) else []
        self.modes = [module.training for module in self.modules]

    def __enter__(self) -> None:
        # Not .eval(): the modules of exported programs refuse it, and have no mode to change.
        for module in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, training in zip(self.modules, self.modes, strict=True):
            module.training = training


class _Hits:
    """Counts of labels among the largest outputs."""

    def __init__(self) -> None:
        self.top1 = self.top5 = self.classes = 0

    def add(self, outputs: Outputs, labels: Tensor, count: int) -> None:
        scores = outputs.scores
        if scores is None or scores.ndim != 2 or len(scores) != count:
            raise ModelError(
                f"accuracy needs one output [{count}, classes]; the network gives {outputs}. Leave out the labels and "
                "compare with another network, which works for any outputs."
            )
        self.classes = scores.shape[1]
        if int(labels.max()) >= self.classes:
            raise CalibrationError(
                f"a label is {int(labels.max())}, but the network has {self.classes} classes, counted from 0: these "
                "labels belong to other classes than the network's."
            )
        places = _places(scores, labels)
        self.top1 += int((places == 0).sum())
        self.top5 += int((places < 5).sum())

    def accuracy(self, samples: int) -> Accuracy:
        return Accuracy(self.top1 / samples, self.top5 / samples if self.classes > 5 else None)


def _places(scores: Float[Tensor, "N classes"], labels: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """How many classes come before each label: those of larger score, and of equal ones those of lower number."""
    labels = labels.to(scores.device).unsqueeze(1)
    own = scores.gather(1, labels)
    lower = torch.arange(scores.shape[1], device=scores.device) < labels
    return ((scores > own) | ((scores == own) & lower)).sum(1)


class _Differences:
    """Sums over pairs of outputs."""

    def __init__(self) -> None:
        self.error = self.energy = 0.0
        self.same = self.predictions = 0
        self.equal = self.integers = 0

    def add(self, outputs: Outputs, reference: Outputs) -> None:
        for found, wanted in paired(outputs, reference):
            if found.is_floating_point():
                error, energy = _squares(found, wanted)
                self.error += error
                self.energy += energy
            else:
                self.equal += int((found.cpu() == wanted.cpu()).sum())
                self.integers += found.numel()
        scores, wanted_scores = outputs.scores, reference.scores
        if scores is not None and wanted_scores is not None and scores.ndim >= 2 and scores.shape[1] > 1:
            agree = scores.argmax(1).cpu() == wanted_scores.argmax(1).cpu()
            self.same += int(agree.sum())
            self.predictions += agree.numel()

    @property
    def same_class(self) -> float | None:
        return self.same / self.predictions if self.predictions else None

    @property
    def same_integers(self) -> float | None:
        return self.equal / self.integers if self.integers else None

    @property
    def output_error(self) -> float:
        if self.energy == 0.0:
            return 0.0 if self.error == 0.0 else float("inf")
        return self.error / self.energy


def _squares(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Σ(y − ŷ)² and Σy², over finite y; minus infinity is an error unless both give it."""
    y, y_hat = wanted.detach().cpu().double(), found.detach().cpu().double()
    ruled_out = y.isinf()
    if bool((ruled_out != y_hat.isinf()).any()):
        return float("inf"), float(y[~ruled_out].square().sum())
    if bool(ruled_out.any()):
        y, y_hat = y[~ruled_out], y_hat[~ruled_out]
    return float((y - y_hat).square().sum()), float(y.square().sum())


def _map_of_scores(outputs: Outputs, count: int) -> Tensor:
    scores = outputs.scores
    if scores is None or scores.ndim != 4 or len(scores) != count or not 2 <= scores.shape[1] <= IGNORE:
        raise ModelError(
            f"mean IoU needs one output [{count}, classes, height, width], or one named 'out' among several, with 2 to "
            f"{IGNORE} classes; the network gives {outputs}. Leave out the masks and compare with another network, "
            "which works for any outputs."
        )
    return scores
