"""The outputs of a network as the measures see them: tensors, their names if there are any, and the class scores.

Infinity is not a score: the arithmetic overflowed. Minus infinity, the logarithm of 0, is one: networks give it to
classes that they rule out. If they rule out all classes, there is nothing to predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.utils._pytree import SequenceKey, tree_flatten_with_path, tree_leaves

from roundwise.data.dataset import Dataset
from roundwise.errors import CalibrationError, ModelError
from roundwise.numerics.output_error import as_tensor
from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class Outputs:
    """The tensors in a network's result, in order; at least one is of floats.

    Attributes:
        tensors: of floats, integers or truth values; complex numbers as two floats each.
        names: for each tensor, its place in the result: `{"head": (a, b)}` has head_0 and head_1, as in ONNX exports;
            None if the result is a tensor or a sequence, which has only an order.
        scores: the tensor that predictions are made from: the one named "out" (the segmentation networks of torchvision
            also return an "aux", for training), otherwise the only one of floats, otherwise None.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    scores: Tensor | None

    def __str__(self) -> str:
        shapes = [str(list(tensor.shape)) for tensor in self.tensors]
        if self.names is not None:
            shapes = [f"{name} {shape}" for name, shape in zip(self.names, shapes, strict=True)]
        return ", ".join(shapes)


def outputs_of(result: Any, who: str = "the network", first: int = 0) -> Outputs:
    """Find the tensors in what a network returned for a batch.

    Args:
        result: a tensor, or tensors in tuples, lists, dicts and the like.
        who: the name of the network, for messages.
        first: the number of the first sample in the batch, for messages.

    Raises:
        ModelError: no tensor is of floats; one has NaN or infinity; all scores of a sample or position are minus
            infinity.
    """
    names, leaves = _flattened(result)
    kept = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor | float | complex)]
    tensors = tuple(wide(tensor) for i in kept if (tensor := as_tensor(leaves[i])) is not None)
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not floats:
        raise ModelError(
            f"{who} returns a {type(result).__name__} without tensors of floats, so there is nothing to measure. Wrap "
            "it in a module that returns its scores as a tensor of floats."
        )
    for tensor in floats:
        _check_numbers(tensor, who, first)
    named = result.get("out") if isinstance(result, Mapping) else None
    real = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    scores = wide(real[0]) if len(real) == len(floats) == 1 else None
    if isinstance(named, Tensor) and named.is_floating_point():
        scores = wide(named)
    if scores is not None:
        _check_scores(scores, who, first)
    return Outputs(tensors, None if names is None else tuple(names[i] for i in kept), scores)


def paired(outputs: Outputs, reference: Outputs) -> list[tuple[str, Tensor, Tensor]]:
    """Pair the outputs of two networks, with their names: by name if both give names, otherwise in order.

    Raises:
        ModelError: the names, shapes or kinds of numbers differ.
    """
    order, other = list(range(len(outputs.tensors))), list(range(len(reference.tensors)))
    alike = len(order) == len(other)
    if outputs.names is not None and reference.names is not None:
        order.sort(key=outputs.names.__getitem__)
        other.sort(key=reference.names.__getitem__)
        alike = [outputs.names[i] for i in order] == [reference.names[i] for i in other]
    pairs = [(outputs.tensors[i], reference.tensors[j]) for i, j in zip(order, other, strict=False)]
    if not alike or any(a.shape != b.shape or a.is_floating_point() != b.is_floating_point() for a, b in pairs):
        raise ModelError(
            f"the outputs cannot be compared: {outputs} and {reference}. Both networks must give outputs of the same "
            "names (where they have names), shapes and kinds of numbers."
        )
    names = reference.names or outputs.names or [str(number) for number in other]
    return [(names[j], *pair) for j, pair in zip(other, pairs, strict=True)]


def check_classes(result: Any, dataset: Dataset) -> None:
    """Check that a network has as many classes as the folders, or the list of classes, that number the labels.

    Args:
        result: what the network returns for any batch. Outputs without scores `[N, classes]` are left to `evaluate`.
        dataset: labels from arrays or files of labels are not checked: they do not say how many classes there are.

    Raises:
        CalibrationError: the network has more or fewer classes.
        ModelError: as `outputs_of`.
    """
    scores = outputs_of(result).scores
    if dataset.counted is None or scores is None or scores.ndim != 2 or scores.shape[1] == dataset.counted:
        return
    network = f"the network has {number_of(scores.shape[1], 'class')}"
    if dataset.classes:
        raise CalibrationError(
            f"{number_of(dataset.counted, 'folder')}, one per class, but {network}: "
            "counting the folders would give wrong labels. Give --classes FILE (in Python, "
            "DataOptions(class_list=…)) with the folder names in the network's order of classes, one a line."
        )
    raise CalibrationError(
        f"the list of classes has {number_of(dataset.counted, 'line')}, but {network}: a class's "
        "label is its line, so a line too many (a heading, a comment) or a missing one shifts the labels after it. "
        "Write one line for each class of the network, in its order, also for those without a folder."
    )


def _flattened(result: Any) -> tuple[list[str] | None, list[Any]]:
    """The names of a result's leaves, or None if it is a leaf itself or a sequence; and the leaves."""
    try:
        paths = tree_flatten_with_path(result)[0]
    except ValueError:  # a container type that was registered without a function for its keys
        return None, tree_leaves(result)
    leaves = [leaf for _, leaf in paths]
    if any(not path or isinstance(path[0], SequenceKey) for path, _ in paths):
        return None, leaves
    names = (
        [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path] for path, _ in paths
    )
    return ["_".join(name) for name in names], leaves


def wide(tensor: Tensor) -> Tensor:
    """Convert floats of 8 bits, which PyTorch cannot compare, to float32; nothing is rounded."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


_WAY_OUT = "Check its weights and the preprocessing of these samples; where float16 overflows, use float32."


def _check_numbers(tensor: Tensor, who: str, first: int) -> None:
    for kind, wrong in (("NaN", tensor.isnan()), ("infinity", tensor == float("inf"))):
        if bool(wrong.any()):
            raise ModelError(
                f"{who} gives {kind} in {int(wrong.sum())} of {tensor.numel()} outputs, in the batch starting with "
                f"sample {first}, so nothing measured on them would mean anything. {_WAY_OUT}"
            )


def _check_scores(scores: Tensor, who: str, first: int) -> None:
    # Of three dimensions the second may be one of positions, as in language models.
    if scores.ndim < 2 or scores.ndim == 3 or scores.shape[1] < 2:
        return
    nothing = (scores == -float("inf")).all(1)
    if bool(nothing.any()):
        raise ModelError(
            f"{who} gives −infinity for all {scores.shape[1]} classes in {int(nothing.sum())} of {nothing.numel()} "
            f"cases, in the batch starting with sample {first}: it rules out every class, so nothing is predicted. "
            f"{_WAY_OUT}"
        )
