"""Read calibration samples in any common form, and cut them into batches of equal size.

These forms are accepted: one tensor or array, for a model with one input; a tuple (positional inputs) or a dict (inputs
by name) of tensors; or an iterable of such batches, such as a `DataLoader`. The samples are always cut into new
contiguous batches of the recipe's size. Kernels may round differently for another batch size or memory layout; with
batches of our own, the same samples give the same codes in whatever form they come.

Labels are dropped: `inputs.py` has the rule that finds them.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from roundwise.engine.inputs import check_single_batch, inputs_of_batch
from roundwise.engine.store import ActivationStore
from roundwise.errors import CalibrationError
from roundwise.frontends import Signature
from roundwise.graph.sizes import Range
from roundwise.tensor_kinds import odd_kind, what_to_do

BATCH, INPUT_BYTES = 32, 4 << 20
"""The default batch: at most 32 samples, and on a CPU at most 4 MiB of inputs.

Activations are larger than inputs (8 times in MobileNetV2), and larger batches do not make a CPU faster."""


LARGEST_SAMPLE = 1 << 31
"""Numbers in one made-up sample, at most: twice as many take 16 GiB."""


@final
@dataclass(frozen=True, eq=False)
class DataFree:
    """Give this instead of calibration samples if there are none: it says what an input looks like.

    The network is captured on random numbers of this shape, and they show whether rewrites keep its outputs. No method
    learns from them, and no error is measured on them. Methods that need samples raise an error.

    Args:
        example: the size of one sample, such as `(3, 224, 224)`, for a network with one input that has the dtype of its
            weights; otherwise inputs with any content, in one of the forms that calibration samples may have.

    Raises:
        CalibrationError: the example is a size in which a number is not a positive whole number, or which is too
            large; or it is code.
    """

    example: Any

    def __post_init__(self) -> None:
        size = self.example
        if any(callable(leaf) for leaf in pytree.tree_leaves(size)):
            raise CalibrationError(
                f"DataFree is given a {type(size).__name__}, which says nothing of the size of an input. Give the size "
                "of one sample, such as (3, 224, 224), or inputs with any content."
            )
        if not all(isinstance(leaf, np.generic | int | float | str | None) for leaf in pytree.tree_leaves(size)):
            return
        flat = isinstance(size, tuple | list) and not any(isinstance(number, bool) for number in size)
        try:
            whole = tuple(map(operator.index, size)) if flat else ()
        except TypeError:
            whole = ()
        if not whole or min(whole) < 1:
            raise CalibrationError(
                f"DataFree({size!r}): the size of one sample has positive whole numbers, such as (3, 224, 224). For "
                "several inputs give a tuple or a dict of tensors of any content."
            )
        if math.prod(whole) > LARGEST_SAMPLE:
            raise CalibrationError(
                f"DataFree({size!r}): one sample would hold {math.prod(whole):.3g} numbers; at most "
                f"{LARGEST_SAMPLE:,} are possible. Give the size of one sample that the network takes."
            )
        object.__setattr__(self, "example", whole)

    def samples(self, dtype: torch.dtype = torch.float32, count: int = 2) -> Any:
        """Inputs like the example: normally distributed numbers for floating-point tensors, and all else unchanged.

        Args:
            dtype: of the inputs, if the example is a size.
            count: number of samples, if the example is a size.
        """
        generator, example = torch.Generator().manual_seed(0), self.example
        if isinstance(example, tuple | list) and all(type(number) is int for number in example):
            return torch.randn(count, *example, generator=generator).to(dtype)

        def like(leaf: Any) -> Any:
            value = _tensor(leaf)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return torch.randn(value.shape, generator=generator).to(value.dtype)

        return pytree.tree_map(like, example)


Batch = list[Any]
"""The leaves of one batch of inputs: tensors with samples along dimension 0, or constants."""


@final
@dataclass(frozen=True)
class NotFinite:
    """Values among the samples that are NaN or infinite.

    Attributes:
        sample: number of the first sample that has any.
        found: the values, in words.
    """

    sample: int
    found: str


@final
@dataclass(frozen=True)
class Calibration:
    """All samples, in batches of equal size; the last batch may be smaller.

    Attributes:
        batches: the leaves of the inputs, for each batch.
        spec: the pytree that makes `(args, kwargs)` from the leaves.
        samples: number of samples.
        notes: for the report: which values of the data were not used.
        not_finite: the first values that are NaN or infinite; None if all are finite. `graph_for` decides whether the
            samples can be used.
    """

    batches: list[Batch]
    spec: pytree.TreeSpec
    samples: int
    notes: tuple[str, ...] = ()
    not_finite: NotFinite | None = None

    def example(self, count: int, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with the first `count` samples (repeated if there are fewer), on a device."""
        leaves = []
        for leaf in self.first(count):
            if _is_batched(leaf):
                repeats = -(-count // leaf.shape[0])
                leaf = leaf.repeat(repeats, *[1] * (leaf.dim() - 1))[:count]
            leaves.append(leaf.to(device) if isinstance(leaf, Tensor) else leaf)
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def within(self, sizes: Range, *, chosen: bool) -> Calibration:
        """The same samples in batches of the sizes that the network takes.

        Args:
            sizes: of batches.
            chosen: whether the user chose the size of the batches.

        Raises:
            CalibrationError: the chosen size is too large, or the samples cannot be cut into such batches.
        """
        counts = [_count(batch) for batch in self.batches]
        if all(map(sizes.holds, counts)):
            return self
        most = max(counts)
        if chosen and not sizes.holds(most):
            raise CalibrationError(
                f"the recipe has batch_size={most}, and the model's code takes batches of {sizes} samples. Choose a "
                "batch_size in this range."
            )
        size = min(most, sizes.high or most)
        batches = [part for batch in self.batches for part in _cut(batch, size)]
        # Give samples of the last full batch to the rest, if this is too small to be a batch.
        if _count(batches[-1]) < sizes.low and len(batches) > 1:
            rest = _join(batches[-2:])
            batches[-2:] = [rest] if sizes.holds(_count(rest)) else _cut(rest, _count(rest) - sizes.low)
        if not all(sizes.holds(_count(batch)) for batch in batches):
            batches = [part for batch in self.batches for part in _cut_evenly(batch, size)]
        if not all(sizes.holds(_count(batch)) for batch in batches):
            raise CalibrationError(
                f"{self.samples} calibration samples cannot be cut into batches of {sizes} samples, the only ones for "
                "which the model's code does what it does for these. Give more samples."
            )
        return replace(self, batches=batches)

    def first(self, count: int) -> Batch:
        """The leaves of the first batches, joined: as few batches as hold `count` samples, or all batches."""
        return _join(self.batches[: -(-count // _count(self.batches[0]))])

    @property
    def alike(self) -> bool:
        """Whether there are several samples, and each is the same as the first, in all inputs."""
        first = self.batches[0]
        pairs = (pair for batch in self.batches for pair in zip(batch, first, strict=True))
        return self.samples > 1 and all(bool((a == b[:1]).all()) for a, b in pairs if _is_batched(a))

    def last(self, count: int) -> Calibration:
        """The last batches: as few as hold `count` samples, or all batches."""
        chosen: list[Batch] = []
        for batch in reversed(self.batches):
            if sum(map(_count, chosen)) < count:
                chosen.insert(0, batch)
        return Calibration(chosen, self.spec, sum(map(_count, chosen)))

    def batch_with(self, sample: int, device: torch.device | str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with the batch that has a sample, on a device."""
        batch = self.batches[sample // _count(self.batches[0])]
        args, kwargs = pytree.tree_unflatten(
            [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in batch], self.spec
        )
        return args, kwargs


def read_calibration(data: Any, signature: Signature, batch_size: int | None, store: ActivationStore) -> Calibration:
    """Read all samples.

    Args:
        data: the samples, in one of the forms that the module's docstring lists.
        signature: the inputs of the model.
        batch_size: samples per batch; ignored if the model takes one fixed number of samples. None means 32, or fewer
            if samples are large and the network runs on a CPU.
        store: holds the samples, except slices of a tensor that the caller keeps anyway.

    Raises:
        CalibrationError: there are no samples; or they differ in shape or dtype, or do not fit the model's inputs.
    """
    batch_size = signature.batch or batch_size
    notes: dict[str, None] = {}
    spec: pytree.TreeSpec | None = None
    first: Batch = []
    pending: list[Batch] = []
    batches: list[Batch] = []
    not_finite: NotFinite | None = None
    seen = 0
    single = _single_batch(data)
    if isinstance(data, tuple):
        check_single_batch(data, signature)
    for index, raw in enumerate([data] if single else _iterate(data)):
        leaves, this = pytree.tree_flatten(inputs_of_batch(raw, signature, notes))
        leaves = [_tensor(leaf) for leaf in leaves]
        if spec is None:
            spec, first = this, leaves
            batch_size = batch_size or _default_batch_size(first, store.device)
        elif this != spec:
            raise CalibrationError(
                f"batch {index} of the calibration samples has another structure than the first: {this} instead of "
                f"{spec}. Give the same inputs in every batch."
            )
        count = _check(leaves, index, first)
        not_finite = not_finite or _find_not_finite(leaves, index, seen, count)
        seen += count
        if count:
            pending.append(leaves)
        assert batch_size is not None
        if sum(map(_count, pending)) >= batch_size:
            full = _cut(_join(pending), batch_size)
            pending = [full.pop()] if _count(full[-1]) < batch_size else []
            batches += [[_keep(leaf, store, single) for leaf in batch] for batch in full]
    if pending:
        batches.append([_keep(leaf, store, single) for leaf in _join(pending)])
    if not seen or spec is None:
        raise CalibrationError(
            "there are no calibration samples: the data is empty. (An iterator that was read before is empty the "
            "second time; give the list or the DataLoader itself.) A few hundred samples are usual; the paper uses "
            "1024."
        )
    if signature.batch and seen % signature.batch:
        raise CalibrationError(
            f"the program was exported for batches of exactly {signature.batch} samples, and {seen} samples leave a "
            f"remainder of {seen % signature.batch}. Give a multiple of {signature.batch}, or export the program with "
            "a dynamic first dimension."
        )
    return Calibration(batches, spec, seen, tuple(notes), not_finite)


def _default_batch_size(batch: Batch, device: torch.device) -> int:
    if device.type != "cpu":
        return BATCH
    sample: int = sum(math.prod(leaf.shape[1:]) * leaf.element_size() for leaf in batch if _is_batched(leaf))
    return max(1, min(BATCH, INPUT_BYTES // max(1, sample)))


def _single_batch(data: Any) -> bool:
    return isinstance(data, Tensor | np.ndarray | tuple | Mapping)


def _iterate(data: Any) -> Iterator[Any]:
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise CalibrationError(
            f"calibration samples were given as a {type(data).__name__}, a Dataset of single samples. Wrap it: "
            "`DataLoader(dataset, batch_size=32)`."
        )
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"calibration samples cannot be read from a {type(data).__name__}. Give a tensor, an array, or an iterable "
            "of batches such as a DataLoader. (The command line reads files and folders.)"
        )
    return iter(data)


def _tensor(leaf: Any) -> Any:
    """An array, or a tensor of any class, as a plain tensor without gradient; other values are returned unchanged.

    Raises:
        CalibrationError: it is of a kind that cannot be cut into batches, or has no values in places.
    """
    if isinstance(leaf, np.ndarray):
        return _tensor_of_array(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    if (kind := odd_kind(leaf)) is not None:
        raise CalibrationError(
            f"the calibration samples are in a {kind} tensor, which cannot be cut into batches of samples and run "
            f"through the model. {what_to_do(kind)}"
        )
    return leaf.detach().as_subclass(Tensor)


def _tensor_of_array(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the array's memory if the array's strides and byte order are those that tensors have."""
    if np.ma.is_masked(array):
        raise CalibrationError(
            f"the calibration samples are in a masked array of shape {list(array.shape)}, in which "
            f"{int(np.ma.getmaskarray(array).sum())} values are missing. Leave out such samples, or fill the missing "
            "values with array.filled(…)."
        )
    try:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        whole = all(stride >= 0 and stride % max(1, array.itemsize) == 0 for stride in array.strides)
        with warnings.catch_warnings():  # a read-only array is enough: nothing writes to the tensor
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(array if whole else array.copy())
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"a calibration batch is an array of dtype {array.dtype} and shape {list(array.shape)}, for which "
            "PyTorch has no tensor. Convert it to numbers first, for instance with array.astype('float32')."
        ) from error


def _is_batched(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _check(leaves: Batch, index: int, first: Batch) -> int:
    """Check all tensors of a batch; return the number of its samples."""
    tensors = [leaf for leaf in leaves if _is_batched(leaf)]
    if not tensors:
        raise CalibrationError(
            f"batch {index} of the calibration samples is {leaves!r}, without a tensor whose first dimension counts "
            "samples. Give tensors of shape [samples, …]: x.unsqueeze(0) makes a batch of the single sample x."
        )
    count = int(tensors[0].shape[0])
    if any(tensor.shape[0] != count for tensor in tensors):
        raise CalibrationError(
            f"the inputs in batch {index} disagree on the number of samples: "
            f"{', '.join(str(list(t.shape)) for t in tensors)}. The first dimension of every tensor counts samples, so "
            "it must be the same in all of them."
        )
    for leaf, reference in zip(leaves, first, strict=True):
        _check_alike(leaf, reference, index)
    return count


def _find_not_finite(leaves: Batch, index: int, seen: int, count: int) -> NotFinite | None:
    """The values of a batch that are NaN or infinite, of the first tensor that has any; None if all are finite."""
    for tensor in filter(_is_batched, leaves):
        if not tensor.is_floating_point() or torch.isfinite(tensor).all():
            continue
        bad = ~torch.isfinite(tensor).reshape(count, -1)
        where = int(bad.any(1).nonzero()[0])
        kind = "NaN" if tensor[where].isnan().any() else "infinity"
        return NotFinite(
            seen + where,
            f"calibration sample {seen + where} contains {kind}: {int(bad.sum())} values in "
            f"{int(bad.any(1).sum())} of {count} samples (batch {index}) are not finite",
        )
    return None


def _check_alike(leaf: Any, reference: Any, index: int) -> None:
    """Raise unless a batch has the constants, shapes and dtypes of the first one."""
    if not _is_batched(leaf) or not _is_batched(reference):
        if leaf is not reference and (type(leaf) is not type(reference) or leaf != reference):
            raise CalibrationError(
                f"an input without a batch dimension is {leaf!r} in batch {index} and {reference!r} in the first. It "
                "becomes a constant of the quantized network, so it must be the same in all batches."
            )
    elif leaf.shape[1:] != reference.shape[1:] or leaf.dtype != reference.dtype:
        raise CalibrationError(
            f"the samples in batch {index} have shape {list(leaf.shape[1:])} and dtype {leaf.dtype}, the samples "
            f"before them {list(reference.shape[1:])} and {reference.dtype}. Bring all samples to one shape and dtype."
        )


def _count(batch: Batch) -> int:
    return next((int(leaf.shape[0]) for leaf in batch if _is_batched(leaf)), 0)


def _join(pending: list[Batch]) -> Batch:
    if len(pending) == 1:
        return pending[0]
    return [torch.cat(list(parts)) if _is_batched(parts[0]) else parts[0] for parts in zip(*pending, strict=True)]


def _cut_evenly(batch: Batch, size: int) -> list[Batch]:
    """A batch in as few parts as have at most this size, of equal size; the last one may be smaller."""
    count = _count(batch)
    return _cut(batch, -(-count // -(-count // size)))


def _cut(batch: Batch, size: int) -> list[Batch]:
    """Slices of `size` samples; the last one may be smaller."""
    starts = range(0, _count(batch), size)
    return [[leaf[start : start + size] if _is_batched(leaf) else leaf for leaf in batch] for start in starts]


def _keep(leaf: Any, store: ActivationStore, single: bool) -> Any:
    """Let the store hold a contiguous tensor. A slice of the caller's own tensor is not copied."""
    if not isinstance(leaf, Tensor):
        return leaf
    if not _is_batched(leaf):
        return leaf.to(store.device)
    # Through one dimension, since strides of dimensions of size 1 can make a contiguous tensor look channels-last.
    plain = leaf.contiguous().view(-1).view(leaf.shape)
    return store.adopt(plain) if single and leaf.is_contiguous() else store.hold(plain)


def copy_samples(calibration: Calibration, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A copy of the first samples, at most `count`, as `(args, kwargs)`."""
    leaves = [leaf[:count].clone() if _is_batched(leaf) else leaf for leaf in calibration.first(count)]
    args, kwargs = pytree.tree_unflatten(leaves, calibration.spec)
    return args, kwargs


def inputs_and_labels(raw: Any, signature: Signature) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """`(args, kwargs)` of one batch, and its labels if it has any: whole numbers, one for each sample."""
    args, kwargs = inputs_of_batch(raw, signature, {})
    args, kwargs = pytree.tree_map(_tensor, (args, kwargs))
    if isinstance(raw, Mapping):
        used = {id(value) for value in (*args, *kwargs.values())}
        rest = [value for name, value in raw.items() if id(value) not in used and name not in kwargs]
    else:
        rest = list(raw[len(args) :]) if isinstance(raw, tuple | list) else []
    candidates = [_tensor(value) for value in rest]
    samples = next((len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if _is_batched(leaf)), 0)
    for value in candidates:
        if isinstance(value, Tensor) and not value.is_floating_point() and list(value.shape) == [samples]:
            return args, kwargs, value.to(torch.int64)
    return args, kwargs, None
