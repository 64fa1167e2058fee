"""How accurate a network is, and how close two networks are.

    top-k          share of the samples whose label is among the k largest outputs
    mean IoU       how well regions are found, for samples with masks instead of labels (`segmentation.py`)
    same class     share of the predictions (largest output) on which two networks agree
    output error   Σ‖y − ŷ‖² / Σ‖y‖² of the worst output of floats, where y is of the network compared with
    same integers  share of equal numbers among outputs of integers and truth values, if there are any

Accuracy needs labels. Agreement needs none, is measured on every sample, and changes before accuracy does: use it where
labels are few. torchmetrics is not used: it imports all of torchvision (and fails where that fails), its top-k accuracy
leaves open which of several equal scores come first, and its Jaccard index counts pixels in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roundwise.data.dataset import Batches
from roundwise.data.labels import as_labels
from roundwise.data.preprocessing import IGNORE
from roundwise.errors import CalibrationError, ModelError
from roundwise.evaluation.outputs import Outputs, outputs_of, paired, wide
from roundwise.evaluation.segmentation import Confusion, Segmentation
from roundwise.numerics.output_error import ErrorSums
from roundwise.report import OutputReport, worst_error
from roundwise.wording import number_of

Network = Callable[[Tensor], Any]


@final
@dataclass(frozen=True)
class Accuracy:
    """Shares of the samples, 0 to 1.

    A label is among the top k if fewer than k classes come before it: those with a larger score, and those with an
    equal score and a lower number. (A saturated or coarsely quantized network has many equal scores.) So top-1 is
    argmax. Scores are compared in their own precision. `top5` is None with fewer than 6 classes.
    """

    top1: float
    top5: float | None


@final
@dataclass(frozen=True)
class Comparison:
    """A network compared with another one, whose outputs are taken as the truth.

    Attributes:
        accuracy: of the other network, if there are labels.
        same_class: share of equal predictions, 0 to 1: per sample, or per position for outputs with positions (as in
            segmentation); None if the outputs are not one tensor of class scores.
        output_error: Σ‖y − ŷ‖² / Σ‖y‖² of the output of floats for which it is largest. It is infinite if one network
            alone gives minus infinity somewhere; where both do, they agree.
        segmentation: of the other network, if there are masks.
        same_integers: share of equal numbers, 0 to 1, in outputs of integers or truth values, such as chosen classes;
            None if there are none. They have no error, since such numbers are often names.
        outputs: the error of each output, with a note on what was left out and what it says nothing about.
    """

    accuracy: Accuracy | None
    same_class: float | None
    output_error: float
    segmentation: Segmentation | None = None
    same_integers: float | None = None
    outputs: tuple[OutputReport, ...] = ()


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
            outputs = self.comparison.outputs
            if sum(not one.whole for one in outputs) > 1:
                rows += [(f"  of '{one.name}'", f"{one.error:.3g}") for one in outputs if not one.whole]
            if self.comparison.same_integers is not None:
                rows.append(("same integers", f"{self.comparison.same_integers:.2%}"))
            rows += [(f"note on '{one.name}'", one.note) for one in outputs if one.note]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _rows(accuracy: Accuracy | None, segmentation: Segmentation | None, suffix: str) -> list[tuple[str, str]]:
    rows = []
    if accuracy is not None:
        rows.append((f"top-1{suffix}", f"{accuracy.top1:.2%}"))
        if accuracy.top5 is not None:
            rows.append((f"top-5{suffix}", f"{accuracy.top5:.2%}"))
    if segmentation is not None:
        found = sum(share is not None for share in segmentation.iou)
        occur = f"({found} of {len(segmentation.iou)} classes occur)"
        rows.append((f"mean IoU{suffix}", f"{segmentation.mean_iou:.2%} {occur}"))
        rows.append((f"pixel accuracy{suffix}", f"{segmentation.pixel_accuracy:.2%}"))
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

    Modules run in eval mode and then get their own mode back. Sums are kept in float64.

    Args:
        network: called with one batch of inputs.
        batches: inputs `[N, …]`, in the order of the labels. Floats must be finite.
        labels: the class of each sample, counted from 0, as whole numbers; needs outputs `[N, classes]`.
        masks: for segmentation, one batch of masks for each batch of inputs: the class of each pixel, counted from 0,
            or 255 where it does not count. Needs scores `[N, classes, h, w]`: the only output, or the one named "out",
            as torchvision's networks name it. Scores of another resolution are resized to that of the masks,
            bilinearly.
        against: another network with the same outputs, for instance the one before quantization. Outputs with names
            are paired by their names, others in order.
        progress: called after each batch with the number of samples done.

    Raises:
        CalibrationError: there are no samples, or more or fewer than labels or masks; an input is NaN or infinite; a
            label is not a whole number from 0, or no class of the network; no pixel of any mask counts.
        ModelError: the outputs do not fit what is measured: NaN, infinity (minus infinity may rule out classes, but not
            all of them), other shapes or names, no tensors.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> evaluate(nn.Identity(), [scores], labels=torch.tensor([1, 1])).accuracy
        Accuracy(top1=0.5, top5=None)
    """
    samples = 0
    truths = None if labels is None else as_labels(labels, None, "evaluate", CalibrationError)
    numbers = batches.indices if isinstance(batches, Batches) else None
    own, other, differences = _Scores(), _Scores(), _Differences()
    with torch.no_grad(), _eval_mode(network), _eval_mode(against):
        for inputs, mask in _with_masks(batches, masks):
            first, count = samples, len(inputs)
            if count == 0:
                continue
            _check_finite(inputs, first, numbers)
            samples += count
            truth = None if truths is None else truths[first:samples]
            if truths is not None and len(truths) < samples:
                raise CalibrationError(
                    f"{number_of(len(truths), 'label')} for {samples} samples or more, so some samples have none. "
                    "Give one label for each sample, in the order of the samples."
                )
            outputs = outputs_of(network(inputs), "the network", first)
            own.add(outputs, count, truth, mask, first)
            if against is not None:
                reference = outputs_of(against(inputs), "the network compared with", first)
                other.add(reference, count, truth, mask, first)
                differences.add(outputs, reference)
            if progress is not None:
                progress(samples)
    if samples == 0:
        raise CalibrationError(
            "there are no samples to evaluate on: the batches are empty. Give a list of batches, a DataLoader, or "
            "`load_data(…).batches(32)`. (An iterator that was read before gives nothing the second time.)"
        )
    if truths is not None:
        as_labels(truths, samples, "evaluate", CalibrationError)
    comparison = None if against is None else differences.comparison(other.accuracy, other.segmentation)
    return Evaluation(samples, own.accuracy, comparison, own.segmentation)


def _with_masks(batches: Iterable[Tensor], masks: Iterable[Tensor] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each batch of inputs with its masks, or with None if there are none."""
    if masks is None:
        for inputs in batches:
            yield inputs, None
        return
    for number, (inputs, mask) in enumerate(zip_longest(batches, masks)):
        if inputs is None or mask is None:
            rest = "masks, but no more inputs" if inputs is None else "inputs, but no more masks"
            raise CalibrationError(f"batch {number} has {rest}. Give one batch of masks for each batch of inputs.")
        yield inputs, mask


def _check_finite(inputs: Tensor, first: int, numbers: Sequence[int] | None) -> None:
    """Refuse NaN and infinity: a clamp or an 8-bit activation would hide them, and the result would mean nothing."""
    bad = ~torch.isfinite(wide(inputs)).reshape(len(inputs), -1)
    if not bool(bad.any()):
        return
    where = int(bad.any(1).nonzero()[0])
    number = first + where if numbers is None else numbers[first + where]
    kind = "NaN" if bool(wide(inputs)[where].isnan().any()) else "infinity"
    raise CalibrationError(
        f"sample {number} contains {kind}: {int(bad.sum())} values in {int(bad.any(1).sum())} of the {len(inputs)} "
        "samples of its batch are not finite, so the outputs would say nothing about the network. Remove or repair "
        "such samples."
    )


@contextmanager
def _eval_mode(network: Network | None) -> Iterator[None]:
    """Put a module into eval mode, and every part of it back into its own mode afterwards."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:  # not .eval(): the modules of exported programs refuse it, and have no mode to change
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@final
class _Scores:
    """Counts of what one network predicts correctly."""

    def __init__(self) -> None:
        self.samples = self.top1 = self.top5 = self.classes = 0
        self.confusion = Confusion()
        self.has_masks = False

    def add(self, outputs: Outputs, count: int, labels: Tensor | None, masks: Tensor | None, first: int) -> None:
        """Count a batch of `count` samples, the first of which has the number `first`."""
        scores = outputs.scores
        if labels is not None:
            if scores is None or scores.ndim != 2 or len(scores) != count:
                raise ModelError(
                    f"accuracy needs one output [{count}, classes]; the network gives {outputs}. Leave out the labels "
                    "and compare with another network, which works for any outputs."
                )
            self.samples, self.classes = self.samples + count, scores.shape[1]
            if int(labels.max()) >= self.classes:
                raise CalibrationError(
                    f"a label is {int(labels.max())}, but the network has {self.classes} classes, counted from 0: "
                    "these labels belong to other classes than the network's. Number the classes as in its training."
                )
            places = _places(scores, labels)
            self.top1 += int((places == 0).sum())
            self.top5 += int((places < 5).sum())
        if masks is not None:
            if scores is None or scores.ndim != 4 or len(scores) != count or not 2 <= scores.shape[1] <= IGNORE:
                raise ModelError(
                    f"mean IoU needs one output [{count}, classes, height, width], or one named 'out' among several, "
                    f"with 2 to {IGNORE} classes; the network gives {outputs}. Leave out the masks and compare with "
                    "another network, which works for any outputs."
                )
            self.has_masks = True
            self.confusion.add(scores, masks, first)

    @property
    def accuracy(self) -> Accuracy | None:
        if self.samples == 0:
            return None
        return Accuracy(self.top1 / self.samples, self.top5 / self.samples if self.classes > 5 else None)

    @property
    def segmentation(self) -> Segmentation | None:
        return self.confusion.segmentation() if self.has_masks else None


def _places(scores: Float[Tensor, "N classes"], labels: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """How many classes come before each label: of a larger score, or of an equal score and with a lower number."""
    labels = labels.to(scores.device).unsqueeze(1)
    own = scores.gather(1, labels)
    lower = torch.arange(scores.shape[1], device=scores.device) < labels
    return ((scores > own) | ((scores == own) & lower)).sum(1)


@final
class _Differences:
    """Sums over pairs of outputs."""

    def __init__(self) -> None:
        self.outputs: dict[str, ErrorSums] = {}
        self.same = self.predictions = self.equal = self.integers = 0

    def add(self, outputs: Outputs, reference: Outputs) -> None:
        for name, found, wanted in paired(outputs, reference):
            self.outputs.setdefault(name, ErrorSums()).add(found, wanted)
            if not found.is_floating_point():
                self.equal += int((found.cpu() == wanted.cpu()).sum())
                self.integers += found.numel()
        scores, wanted_scores = outputs.scores, reference.scores
        if scores is not None and wanted_scores is not None and scores.ndim >= 2 and scores.shape[1] > 1:
            agree = scores.argmax(1).cpu() == wanted_scores.argmax(1).cpu()
            self.same += int(agree.sum())
            self.predictions += agree.numel()

    def comparison(self, accuracy: Accuracy | None, segmentation: Segmentation | None) -> Comparison:
        errors = {name: sums.result() for name, sums in self.outputs.items()}
        outputs = tuple(OutputReport(name, one.error, one.whole, one.note) for name, one in errors.items())
        return Comparison(
            accuracy=accuracy,
            same_class=self.same / self.predictions if self.predictions else None,
            output_error=worst_error(outputs),
            segmentation=segmentation,
            same_integers=self.equal / self.integers if self.integers else None,
            outputs=outputs,
        )
