"""Measure networks on samples: accuracy, mean IoU, and agreement with another network."""

from roundwise.evaluation.metrics import Accuracy, Comparison, Evaluation, evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.evaluation.segmentation import Segmentation

__all__ = [
    "Accuracy",
    "Comparison",
    "Evaluation",
    "Segmentation",
    "check_classes",
    "evaluate",
]
