"""Forecast the memory and time of a pass: run one batch through the float network, and measure."""

from __future__ import annotations

import math
import time
from collections.abc import Container
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.schedule import Schedule
from roundwise.engine.store import ActivationStore, held_bytes
from roundwise.engine.values import Executor, Values, count
from roundwise.events import Plan


class Forecast(NamedTuple):
    """The forecast of a pass.

    Attributes:
        plan: for the user.
        costs: estimated seconds of each segment, and of the steps after the last unit at the end.
    """

    plan: Plan
    costs: list[float]


@torch.no_grad()
def forecast(
    schedule: Schedule,
    executor: Executor,
    store: ActivationStore,
    batch: Values,
    samples: int,
    quantized: Container[fx.Node],
) -> Forecast:
    """Run one batch in float, and estimate from it the memory and time of the pass over all batches.

    Args:
        schedule: the order of the pass.
        executor: runs the steps.
        store: gives the memory budget.
        batch: the inputs of the first batch; not changed.
        samples: number of samples in all batches.
        quantized: tensors that will be quantized, so that each stream holds its own value.

    Raises:
        MemoryBudgetError: the temporary folder has too little space for the activations that exceed the budget.
    """
    values = dict(batch)
    share = count(values) / samples
    separate = _SeparateValues(schedule.differing, quantized)
    widest, widest_layer, working = 0, "the input", _live_bytes(values, separate)
    costs: list[float] = []
    for segment in [*schedule.segments, None]:
        start = time.perf_counter()
        for step in schedule.tail if segment is None else segment.steps:
            value = executor.run(step, values, differing=not step.shared)
            values[step.key] = value
            working = max(working, _live_bytes(values, separate))
            executor.release(step.key, values)
        middle = time.perf_counter()
        costs.append(2 * (middle - start) / share)
        if segment is None:
            break
        task, unit = segment.task, segment.task.unit
        output = executor.unit_output(unit, values)
        seconds = time.perf_counter() - middle
        values[unit.output] = StreamPair(output, output)
        live = _live_bytes(values, separate)
        if live > widest:
            widest, widest_layer = live, unit.name
        layer = unit.layers[-1].map
        items = layer.as_items(output).shape[0] if len(unit.nodes) == 1 else output.shape[0]
        positions = math.ceil(items * layer.positions(output) / count(values)) if len(unit.nodes) == 1 else 1
        working = max(working, _live_bytes(values, separate) + task.bytes_needed(samples, positions))
        work = task.work(math.ceil(items / count(values)), samples)
        costs[-1] += 3 * seconds / share + work * seconds / max(1, items)  # no items: the layer reads an empty tensor
        for node in unit.nodes:
            executor.release(node, values)
    plan = Plan(
        layers=tuple(layer.name for segment in schedule.segments for layer in segment.task.unit.layers),
        samples=samples,
        widest_bytes=math.ceil(widest / share),
        widest_layer=widest_layer,
        working_bytes=max(working, widest),
        memory_budget=store.budget,
        seconds=sum(costs),
    )
    store.check_disk(plan.spilled_bytes)
    return Forecast(plan, costs)


class _SeparateValues(NamedTuple):
    """The tensors for which each stream will hold a value of its own."""

    differing: Container[fx.Node]
    quantized: Container[fx.Node]


def _live_bytes(values: Values, separate: _SeparateValues) -> int:
    """The bytes that one batch will hold in both streams together."""
    first: list[Tensor] = []
    second: list[Tensor] = []
    for node, pair in values.items():
        value = pair.current if pair.reference is None else pair.reference
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        first += tensors
        if pair.reference is not None and (node in separate.differing or node in separate.quantized):
            second += tensors
    return held_bytes(first) + held_bytes(second)
