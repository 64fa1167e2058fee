"""Batches to train on: from tensors, a `DataLoader` or any iterable; shuffled by (seed, epoch), so that runs repeat.

    tensors, or a tuple or dict of them     cut into batches here, in a new order each epoch
    DataLoader of a map-style data set      its data set, its way of making batches and its workers; the order is ours
    any other iterable of batches           as it comes; it must start anew for each epoch

From the first two, a part of the samples is held out: training never sees them, and they decide which state is kept.
Of other iterables the first batches of the first epoch are kept for that; they are trained on too, and the report says
so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from roundwise.engine.calibration import BATCH, inputs_and_labels
from roundwise.engine.processes import Processes
from roundwise.errors import CalibrationError
from roundwise.frontends import Signature

HELD_OUT = 0.1
"""A tenth of the samples is held out. With more, fewer are trained on; with fewer, their loss is less certain."""

MOST_HELD_OUT = 1024
"""At most 1,024 samples are held out: evaluating on more takes longer, and decides no better."""


class TrainingBatch(NamedTuple):
    """One batch: how the network is called, and the labels if there are any."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return next((len(t) for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)), 0)

    def changed(self, change: Callable[[Any], Any] | None) -> TrainingBatch:
        """The batch with the inputs that a function makes of its inputs: of a tensor, or a tuple or dict of them.

        Raises:
            CalibrationError: the function does not return the same number of inputs, with the same number of samples.
        """
        if change is None:
            return self
        given: Any = self.kwargs or (self.args[0] if len(self.args) == 1 else self.args)
        made = change((*self.args, self.kwargs) if self.args and self.kwargs else given)
        if self.args and self.kwargs:
            args, kwargs = tuple(made[:-1]), made[-1]
        elif self.kwargs:
            args, kwargs = (), made
        else:
            args, kwargs = (made,) if len(self.args) == 1 else tuple(made), {}
        batch = TrainingBatch(args, kwargs, self.labels)
        if pytree.tree_structure((args, kwargs)) != pytree.tree_structure((self.args, self.kwargs)) or (
            batch.samples != self.samples
        ):
            raise CalibrationError(
                f"augmentation was given {type(given).__name__} with {self.samples} samples and returned a "
                f"{type(made).__name__} with {batch.samples}; the network takes inputs as before. Return as many "
                "inputs and samples as the function is given."
            )
        return batch

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        moved: TrainingBatch = pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), tuple(self))
        return TrainingBatch(*moved)


@final
@dataclass(frozen=True, eq=False)
class TrainingData:
    """What is trained on, and what is held out.

    Attributes:
        epoch: gives the raw batches of an epoch by its number, from a batch on.
        held_out: raw batches.
        batches: in an epoch; None if it is not known before.
        samples: in an epoch; None if it is not known before.
        resumable: whether a batch is the same whenever its epoch is run again.
        note: for the report, or empty.
        signature: what the model's call takes.
    """

    epoch: Callable[[int, int], Iterable[Any]]
    held_out: Sequence[Any]
    batches: int | None
    samples: int | None
    resumable: bool
    note: str
    signature: Signature

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """The batches of an epoch from number `start` on.

        Raises:
            CalibrationError: a batch does not hold the model's inputs.
        """
        return map(self._read, self.epoch(epoch, start))

    def held_out_batches(self) -> Iterator[TrainingBatch]:
        """The batches that are held out."""
        return map(self._read, self.held_out)

    def _read(self, raw: Any) -> TrainingBatch:
        return TrainingBatch(*inputs_and_labels(raw, self.signature))


def training_data(
    data: Any, signature: Signature, batch_size: int, seed: int, processes: Processes = Processes()
) -> TrainingData:
    """Samples in any form that `quantize` takes, or a data loader, as something to train on.

    Args:
        data: the samples.
        signature: what the model's call takes.
        batch_size: samples in a batch, over all processes; a data loader has its own.
        seed: of the order of samples.
        processes: each gets its part of every batch; of an iterable, every n-th batch.

    Raises:
        CalibrationError: there are no samples, or the data can be read only once.
    """
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        return _of_dataset(data.dataset, signature, data.batch_size or batch_size, seed, data, processes)
    if isinstance(data, Tensor | tuple | Mapping) or _is_array(data):
        return _of_dataset(_Rows(data), signature, batch_size, seed, None, processes)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return _of_dataset(data, signature, batch_size, seed, None, processes)
    return _of_iterable(data, signature, processes)


def training_batches(data: Any, signature: Signature) -> Iterator[TrainingBatch]:
    """All samples in batches, in order; none is held out."""
    one = isinstance(data, Tensor | tuple | Mapping) or _is_array(data)
    if one:
        rows = _Rows(data)
        data = (rows.__getitems__(list(range(at, min(at + BATCH, len(rows))))) for at in range(0, len(rows), BATCH))
    return (TrainingBatch(*inputs_and_labels(raw, signature)) for raw in data)


def some_samples(data: Any, count: int, seed: int) -> Any:
    """At most `count` of the samples, for calibration: chosen at random, or the first of an iterable.

    Samples that are held out are not among them: a network that was calibrated on these would look better on them than
    it is, and better than a trained one. An iterable has no others that could be read first.
    """
    with torch.device("cpu"):  # whatever the default device is, as in the rest of a run
        return _some_samples(data, count, seed)


def _some_samples(data: Any, count: int, seed: int) -> Any:
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        dataset, collate, size = data.dataset, data.collate_fn, data.batch_size or BATCH
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        dataset, collate, size = data, torch.utils.data.default_collate, BATCH
    elif isinstance(data, Tensor | tuple | Mapping) or _is_array(data):
        rows = _Rows(data)
        return rows.__getitems__(_chosen(len(rows), count, seed))
    else:
        return _first(data, count)
    indices = _chosen(len(dataset), count, seed)  # type: ignore[arg-type]
    batches = (indices[at : at + size] for at in range(0, len(indices), size))
    return [collate(_Batched(dataset).__getitems__(batch)) for batch in batches]


def _chosen(samples: int, count: int, seed: int) -> list[int]:
    _, trained = _divided(samples, seed) if samples > 1 else ([], [0] * samples)
    return sorted(trained[:count])


def _divided(samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Which samples are held out, and which are trained on, both in random order."""
    held = min(MOST_HELD_OUT, max(1, round(HELD_OUT * samples)))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:held], order[held:]


def _first(data: Any, count: int) -> list[Any]:
    batches, seen = [], 0
    for batch in data:
        batches.append(batch)
        seen += next((len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 0)
        if seen >= count:
            break
    return batches


@final
class _Rows(Dataset[Any]):
    """Tensors, nested in any way, as a data set of their rows."""

    def __init__(self, data: Any) -> None:
        leaves, self._spec = pytree.tree_flatten(data)
        self._leaves = [torch.as_tensor(leaf) if _is_array(leaf) else leaf for leaf in leaves]
        lengths = {len(leaf) for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim()}
        if len(lengths) != 1:
            raise CalibrationError(
                f"the tensors to train on have {sorted(lengths)} samples; their first dimensions must agree. Give "
                "tensors with the same number of samples."
            )
        (self._length,) = lengths

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: list[int]) -> Any:
        """A batch at once, which is faster than one sample after the other."""
        chosen = torch.tensor(indices)
        leaves = [leaf[chosen] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._spec)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])


def _of_dataset(
    dataset: Any,
    signature: Signature,
    batch_size: int,
    seed: int,
    loader: DataLoader[Any] | None,
    processes: Processes,
) -> TrainingData:
    samples = len(dataset)
    if samples < 2:
        raise CalibrationError(
            f"there are {samples} samples to train on; one at least must be held out. Give a few hundred or more."
        )
    kept, trained = map(sorted, _divided(samples, seed))
    settings: dict[str, Any] = {"batch_size": None, "collate_fn": _same}
    if loader is not None:
        settings |= {"collate_fn": loader.collate_fn, "num_workers": loader.num_workers}
        settings |= {"pin_memory": loader.pin_memory, "worker_init_fn": loader.worker_init_fn}
    elif not isinstance(dataset, _Rows):
        settings["collate_fn"] = torch.utils.data.default_collate
    fetch = dataset if isinstance(dataset, _Rows) else _Batched(dataset)

    least = 2 * processes.count  # batch-norm cannot take statistics from one sample

    def loaded(batches: list[list[int]], epoch: int) -> Iterable[Any]:
        return DataLoader(_Indexed(fetch, batches), generator=torch.Generator().manual_seed(seed + epoch), **settings)

    def epoch(number: int, start: int) -> Iterable[Any]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number + 1)
        shuffled = [trained[at] for at in torch.randperm(len(trained), generator=generator).tolist()]
        whole = _cut(shuffled, batch_size, least)[start:]
        return loaded([batch[processes.rank :: processes.count] for batch in whole], number)

    held_out = list(loaded(_cut(kept, batch_size, 1)[processes.rank :: processes.count], 0))
    if processes.count > 1 and len(trained) < least:
        raise CalibrationError(
            f"there are {len(trained)} samples to train on, for {processes.count} processes, each of which needs 2 in "
            "every batch. Give more samples, or start fewer processes."
        )
    batches = len(_cut(trained, batch_size, least))
    return TrainingData(epoch, held_out, batches, len(trained), True, "", signature)


def _cut(indices: Sequence[int], size: int, least: int) -> list[list[int]]:
    """Batches of indices; the last one is left out if it has fewer than `least`."""
    cut = [list(indices[at : at + size]) for at in range(0, len(indices), size)]
    return cut[:-1] if len(cut) > 1 and len(cut[-1]) < least else cut


def _of_iterable(data: Any, signature: Signature, processes: Processes) -> TrainingData:
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"there is nothing to train on in a {type(data).__name__}. Give a tensor, a DataLoader, or an iterable of "
            "batches."
        )
    if isinstance(data, Iterator):
        raise CalibrationError(
            f"the data to train on is a {type(data).__name__}, which can be read only once; each epoch reads it anew. "
            "Give a list of batches, or a DataLoader."
        )
    held = list(itertools.islice(data, 4))
    if not held:
        raise CalibrationError("there are no samples to train on: the data is empty. Give at least one batch.")
    note = (
        "the data is an iterable of batches, so nothing could be held out: its first batches, which are trained on "
        "too, decided which state was kept"
    )

    def epoch(_: int, start: int) -> Iterator[Any]:
        rounds = zip(*[iter(data)] * processes.count, strict=False)  # a batch for each process
        return (batches[processes.rank] for batches in itertools.islice(rounds, start, None))

    held = held[processes.rank :: processes.count]
    return TrainingData(epoch, held, None, None, False, note, signature)


@final
class _Batched:
    """A map-style data set that gives lists of samples."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, indices: list[int]) -> Any:
        if hasattr(self._dataset, "__getitems__"):
            return self._dataset.__getitems__(indices)
        return [self._dataset[index] for index in indices]


@final
class _Indexed(Dataset[Any]):
    """Batches by number: each a list of indices into a data set."""

    def __init__(self, source: Any, batches: list[list[int]]) -> None:
        self._source, self._batches = source, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        return self._source.__getitems__(self._batches[number])


def _same(batch: Any) -> Any:
    return batch


def _is_array(data: Any) -> bool:
    return type(data).__module__ == "numpy"
