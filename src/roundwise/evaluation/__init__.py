"""Read samples from files, preprocess them, and measure networks on them."""

from roundwise.evaluation.arrays import Keys
from roundwise.evaluation.data import Batches, DataOptions, Dataset, load_data
from roundwise.evaluation.metrics import Accuracy, Comparison, Evaluation, evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.evaluation.segmentation import Segmentation
from roundwise.loading.preprocessing import Cover, Fit, Preprocessing, ShorterSide, Stretch

__all__ = [
    "Accuracy",
    "Batches",
    "Comparison",
    "Cover",
    "DataOptions",
    "Dataset",
    "Evaluation",
    "Fit",
    "Keys",
    "Preprocessing",
    "Segmentation",
    "ShorterSide",
    "Stretch",
    "check_classes",
    "evaluate",
    "load_data",
]
