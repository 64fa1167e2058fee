"""Calibration samples, however they come, as equal batches of the inputs that the model takes.

Accepted: one tensor or array (a model with one input); a tuple (positional inputs) or a dict (inputs by name) of them;
or any iterable of such batches, a `DataLoader` for instance. Whatever the incoming batches are, the samples are cut
anew into batches of the recipe's size, so that the same samples give the same codes however they were handed over.

Labels are recognised and dropped by one rule: *a batch that is a tuple or list gives its first values to the inputs
that `forward` requires; what is left over is not used*, and the report says so. A dict gives the values whose keys are
parameters of `forward`; where the model has one required input and no key is named like it, a value under one of the
usual names (`image`, `pixel_values`, …) is taken, and else the dict itself is the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from roundwise.errors import CalibrationError
from roundwise.memory import ActivationStore

USUAL_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "data", "input_values", "input_ids")

Batch = list[Any]
"""The leaves of one batch of inputs: tensors with samples along dimension 0, or constants."""


@final
@dataclass(frozen=True)
class Calibration:
    """All samples, in batches of equal size (but the last).

    Attributes:
        batches: the inputs' leaves, batch by batch.
        spec: how `(args, kwargs)` are put together from the leaves.
        samples: how many samples there are.
        notes: what was left unused, for the report.
    """

    batches: list[Batch]
    spec: pytree.TreeSpec
    samples: int
    notes: tuple[str, ...] = ()

    def example(self, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the first `count` samples (repeated if there are fewer)."""
        leaves = []
        for leaf in self.batches[0]:
            if _is_batched(leaf):
                repeats = -(-count // leaf.shape[0])
                leaf = leaf.repeat(repeats, *[1] * (leaf.dim() - 1))[:count]
            leaves.append(leaf)
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


@final
@dataclass(frozen=True)
class Signature:
    """What a model's call takes: names of required and of all parameters; whether it takes any number of them."""

    required: tuple[str, ...]
    names: tuple[str, ...]
    variadic: bool = False

    @classmethod
    def of(cls, model: nn.Module | ExportedProgram) -> Signature:
        """Read from `forward`, or from the arguments that a program was exported with."""
        if isinstance(model, ExportedProgram):
            args, kwargs = model.call_spec.in_spec.children()
            positional = tuple(f"argument {i}" for i in range(args.num_children))
            return cls(positional + tuple(kwargs.context), positional + tuple(kwargs.context))
        parameters = inspect.signature(model.forward).parameters.values()
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        required = tuple(p.name for p in plain if p.default is p.empty)
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return cls(required, tuple(p.name for p in plain), variadic)


def read_calibration(data: Any, signature: Signature, batch_size: int, store: ActivationStore) -> Calibration:
    """Read all samples.

    Args:
        data: see the module's text.
        signature: what the model takes.
        batch_size: samples per batch that come out.
        store: takes the samples into custody (those that are not slices of one tensor of the caller's).

    Raises:
        CalibrationError: none, not finite, not alike, or not the model's inputs.
    """
    notes: dict[str, None] = {}
    spec: pytree.TreeSpec | None = None
    first: Batch = []
    pending: list[Batch] = []
    batches: list[Batch] = []
    seen = 0
    single = _single_batch(data)
    keep = store.adopt if single else store.hold
    for index, raw in enumerate([data] if single else _iterate(data)):
        leaves, this = pytree.tree_flatten(_inputs(raw, signature, notes))
        leaves = [_tensor(leaf) for leaf in leaves]
        count = _check(leaves, index, seen, first)
        if spec is None:
            spec, first = this, leaves
        elif this != spec:
            raise CalibrationError(
                f"batch {index} of the calibration samples has another structure than the first: {this} against "
                f"{spec}. Let every batch give the same inputs."
            )
        seen += count
        if count:
            pending.append(leaves)
        if sum(map(_count, pending)) >= batch_size:
            full = _cut(_join(pending), batch_size)
            rest = full.pop() if _count(full[-1]) < batch_size else []
            batches += [_keep(batch, keep) for batch in full]
            pending = [rest] if rest else []
    if pending:
        rest = _join(pending)
        batches.append(_keep(rest, keep))
    if not seen or spec is None:
        raise CalibrationError(
            "there are no calibration samples: the data is empty. (An iterator that was read before gives nothing the "
            "second time; hand over the list or the DataLoader itself.) A few hundred samples are usual; the paper "
            "takes 1024."
        )
    return Calibration(batches, spec, seen, tuple(notes))


def _single_batch(data: Any) -> bool:
    return isinstance(data, Tensor | np.ndarray | tuple | Mapping)


def _iterate(data: Any) -> Iterator[Any]:
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"calibration samples of type {type(data).__name__} are not understood. Give a tensor, an array, or an "
            "iterable of batches such as a DataLoader. (The command line reads files and folders.)"
        )
    return iter(data)


def _inputs(raw: Any, signature: Signature, notes: dict[str, None]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` of one batch."""
    if isinstance(raw, Tensor | np.ndarray):
        return (raw,), {}
    if isinstance(raw, tuple | list):
        takes = len(raw) if signature.variadic else max(1, len(signature.required))
        if len(raw) > takes:
            notes[
                f"each batch held {len(raw)} values and the model requires {takes}: the first {takes} were used, the "
                "rest taken for labels"
            ] = None
        return tuple(raw[:takes]), {}
    if isinstance(raw, Mapping):
        return _inputs_by_name(raw, signature, notes)
    raise CalibrationError(
        f"a calibration batch is a {type(raw).__name__}; it must be a tensor, or a tuple, list or dict of tensors."
    )


def _inputs_by_name(
    raw: Mapping[Any, Any], signature: Signature, notes: dict[str, None]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    named = {name: raw[name] for name in signature.names if name in raw}
    usual = [name for name in USUAL_NAMES if name in raw]
    if named and set(signature.required) <= set(named):
        chosen: tuple[tuple[Any, ...], dict[str, Any]] = ((), named)
        # One required input by name is the same as by position; so all ways to hand over samples agree.
        if len(named) == 1 and next(iter(named)) == signature.names[0]:
            chosen = (tuple(named.values()), {})
        used = set(named)
    elif len(signature.required) == 1 and len(usual) == 1:
        chosen, used = ((raw[usual[0]],), {}), {usual[0]}
    elif len(signature.required) == 1:
        return (dict(raw),), {}
    else:
        raise CalibrationError(
            f"a calibration batch has the keys {', '.join(map(repr, raw))}, but the model's forward requires "
            f"{', '.join(map(repr, signature.required))}. Name the keys like the parameters, or give tuples."
        )
    left = [str(key) for key in raw if key not in used]
    if left:
        notes[f"not used of each batch: {', '.join(left)}"] = None
    return chosen


def _tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _is_batched(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _check(leaves: Batch, index: int, seen: int, first: Batch) -> int:
    """The number of samples in a batch, after all its tensors were found to be sound."""
    tensors = [leaf for leaf in leaves if _is_batched(leaf)]
    if not tensors:
        raise CalibrationError(
            f"batch {index} of the calibration samples holds no tensor with a batch dimension: {leaves!r}."
        )
    count = int(tensors[0].shape[0])
    if any(tensor.shape[0] != count for tensor in tensors):
        raise CalibrationError(
            f"the inputs in batch {index} disagree on the number of samples: "
            f"{', '.join(str(list(t.shape)) for t in tensors)}. The first dimension of every tensor counts samples."
        )
    for tensor in tensors:
        bad = ~torch.isfinite(tensor) if tensor.is_floating_point() else None
        if bad is not None and bad.any():
            where = int(bad.reshape(count, -1).any(1).nonzero()[0])
            kind = "NaN" if tensor[where].isnan().any() else "infinity"
            raise CalibrationError(
                f"calibration sample {seen + where} contains {kind} ({int(bad.sum())} such values in batch {index}). "
                "Every statistic would be spoilt by it: remove or repair the sample."
            )
    known = [leaf for leaf in first if _is_batched(leaf)]
    for tensor, reference in zip(tensors, known, strict=False):
        if tensor.shape[1:] != reference.shape[1:] or tensor.dtype != reference.dtype:
            raise CalibrationError(
                f"the samples in batch {index} have shape {list(tensor.shape[1:])} and dtype {tensor.dtype}, those "
                f"before {list(reference.shape[1:])} and {reference.dtype}. Bring all samples to one shape and dtype."
            )
    return count


def _count(batch: Batch) -> int:
    return next((int(leaf.shape[0]) for leaf in batch if _is_batched(leaf)), 0)


def _join(pending: list[Batch]) -> Batch:
    if len(pending) == 1:
        return pending[0]
    return [torch.cat(list(parts)) if _is_batched(parts[0]) else parts[0] for parts in zip(*pending, strict=True)]


def _cut(batch: Batch, size: int) -> list[Batch]:
    """Slices of `size` samples; the last one may be shorter."""
    starts = range(0, _count(batch), size)
    return [[leaf[start : start + size] if _is_batched(leaf) else leaf for leaf in batch] for start in starts]


def _keep(batch: Batch, keep: Callable[[Tensor], Tensor]) -> Batch:
    return [keep(leaf) if _is_batched(leaf) else leaf for leaf in batch]


def take(calibration: Calibration, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` of at most `count` samples, copied."""
    batch = calibration.batches[0]
    leaves = [leaf[:count].clone() if _is_batched(leaf) else leaf for leaf in batch]
    args, kwargs = pytree.tree_unflatten(leaves, calibration.spec)
    return args, kwargs
