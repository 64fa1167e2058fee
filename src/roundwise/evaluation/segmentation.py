"""How good a segmentation is, from counts of pixels.

With n_ij the number of pixels of class i that are predicted as class j, over all images,

    IoU_i           n_ii / (Σ_j n_ij + Σ_j n_ji − n_ii)      intersection over union of truth and prediction
    mean IoU        (1/|C|) Σ_{i ∈ C} IoU_i                  C: the classes that occur in truth or prediction
    pixel accuracy  Σ_i n_ii / Σ_ij n_ij

As in Pascal VOC, the counts are summed over all images before anything is divided; the mean of the images' IoU would be
another figure. Pixels that the masks mark with 255 (outlines of objects in VOC, and padding) are not counted. A class
that neither occurs nor is predicted has no IoU, 0 / 0, and is left out of the mean. A class that only occurs, or is
only predicted, counts with 0.

Scores of another resolution are first resized to that of the masks, bilinearly (corners not aligned), as most networks
do before their output. torchmetrics is not used; `metrics.py` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from roundwise.data.labels import described
from roundwise.data.preprocessing import IGNORE
from roundwise.errors import CalibrationError


@final
@dataclass(frozen=True)
class Segmentation:
    """Shares of the pixels with a label, 0 to 1.

    Attributes:
        mean_iou: the mean over the classes that have an IoU.
        pixel_accuracy: share of the pixels whose class is predicted correctly.
        iou: of each class, in the order of the network; None if a class neither occurs nor is predicted.

    References:
        Everingham et al., IJCV 111 (2015), for the IoU over all images; Long et al., CVPR 2015, arXiv:1411.4038,
        Section 5, for its mean and the pixel accuracy.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: tuple[float | None, ...]


@final
class Confusion:
    """The counts n_ij, a batch at a time, in int64."""

    def __init__(self) -> None:
        self.counts: Int[Tensor, "classes classes"] | None = None

    def add(self, scores: Float[Tensor, "N classes h w"], masks: Int[Tensor, "N height width"], first: int) -> None:
        """Count a batch's pixels.

        Args:
            scores: of 2 to 255 classes, at any resolution; the class of the largest score is predicted.
            masks: the class of each pixel, counted from 0, or 255.
            first: the number of the first sample in the batch, for messages.

        Raises:
            CalibrationError: the masks are not one map of whole numbers for each sample, or hold a label that is
                neither a class nor 255.
        """
        samples, classes = scores.shape[:2]
        if masks.ndim != 3 or len(masks) != samples or masks.is_floating_point() or masks.dtype == torch.bool:
            raise CalibrationError(
                f"the masks are {described(masks)} for a batch of {samples} samples, but a mask is one map [height, "
                "width] of whole numbers, the classes of the pixels. Give one such map for each sample."
            )
        truth = masks.cpu().to(torch.int64)
        wrong = (truth != IGNORE) & ((truth < 0) | (truth >= classes))
        if bool(wrong.any()):
            sample, row, column = wrong.nonzero()[0].tolist()
            raise CalibrationError(
                f"the mask of sample {first + sample} has label {int(truth[sample, row, column])} in row {row}, column "
                f"{column} ({int(wrong[sample].sum())} pixels of it have labels like that), but the network has "
                f"{classes} classes, counted from 0. Either these masks belong to other classes than the network's, or "
                f"pixels that do not count are marked with something else than {IGNORE}: mark them with {IGNORE}."
            )
        if scores.shape[2:] != masks.shape[1:]:
            wide = scores.float() if scores.dtype.itemsize < 4 else scores
            wide = wide.clamp(min=torch.finfo(wide.dtype).min)  # minus infinity times a weight of 0 would be NaN
            scores = F.interpolate(wide, size=masks.shape[1:], mode="bilinear", align_corners=False)
        predicted = scores.argmax(1).cpu()
        counted = truth != IGNORE
        pairs = truth[counted] * classes + predicted[counted]
        counts = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        self.counts = counts if self.counts is None else self.counts + counts

    def segmentation(self) -> Segmentation:
        """The shares of the pixels counted so far.

        Raises:
            CalibrationError: no pixel was counted.
        """
        if self.counts is None or int(self.counts.sum()) == 0:
            raise CalibrationError(
                f"there is nothing to measure: every pixel of every mask is {IGNORE}, which means that it does not "
                "count. Give masks with the classes of pixels."
            )
        counts = self.counts.double()
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        iou = tuple(float(h / u) if float(u) > 0 else None for h, u in zip(hits.unbind(), union.unbind(), strict=True))
        known = [share for share in iou if share is not None]
        return Segmentation(sum(known) / len(known), float(hits.sum() / counts.sum()), iou)
