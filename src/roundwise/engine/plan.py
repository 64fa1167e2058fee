"""What a pass will take, known before it starts: one batch runs through the float network and is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Container
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.engine.schedule import Schedule
from roundwise.engine.store import ActivationStore, held_bytes
from roundwise.engine.unit import Pair
from roundwise.engine.values import Executor, Values, count
from roundwise.events import Plan


class Forecast(NamedTuple):
    """The plan, and the estimated seconds of each segment and, at the end, of the steps after the last unit."""

    plan: Plan
    costs: list[float]


@torch.no_grad()
def rehearse(
    schedule: Schedule,
    executor: Executor,
    store: ActivationStore,
    batch: Values,
    samples: int,
    quantized: Container[fx.Node],
) -> Forecast:
    """Run one batch without quantizing anything.

    Args:
        schedule: the pass.
        executor: runs its steps.
        store: says how much may be held.
        batch: the inputs of the first batch; not changed.
        samples: of all batches.
        quantized: tensors that will be quantized, so that both streams hold them.
    """
    values = dict(batch)
    share = count(values) / samples
    twice = _Twice(schedule.tainted, quantized)
    widest, widest_layer, working = 0, "the input", _live_bytes(values, twice)
    costs: list[float] = []
    for segment in [*schedule.segments, None]:
        start = time.perf_counter()
        for step in schedule.tail if segment is None else segment.steps:
            value = executor.run(step, values, tainted=not step.shared)
            values[step.key] = value
            working = max(working, _live_bytes(values, twice))
            executor.release(step.key, values)
        middle = time.perf_counter()
        costs.append(2 * (middle - start) / share)
        if segment is None:
            break
        task, unit = segment.task, segment.task.unit
        output = executor.unit_output(unit, values)
        seconds = time.perf_counter() - middle
        values[unit.output] = Pair(output, output)
        live = _live_bytes(values, twice)
        if live > widest:
            widest, widest_layer = live, unit.name
        layer = unit.layers[-1].map
        rows = layer.as_rows(output).shape[0] if len(unit.nodes) == 1 else output.shape[0]
        positions = math.ceil(rows * layer.positions(output) / count(values)) if len(unit.nodes) == 1 else 1
        working = max(working, _live_bytes(values, twice) + task.bytes_needed(samples, positions))
        work = task.work(math.ceil(rows / count(values)), samples)
        costs[-1] += 3 * seconds / share + work * seconds / rows
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


class _Twice(NamedTuple):
    """The tensors of which the two streams hold different values."""

    tainted: Container[fx.Node]
    quantized: Container[fx.Node]


def _live_bytes(values: Values, twice: _Twice) -> int:
    """What one batch holds in both streams."""
    once: list[Tensor] = []
    again: list[Tensor] = []
    for node, pair in values.items():
        one = pair.quantized if pair.float is None else pair.float
        tensors = [leaf for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)]
        once += tensors
        if pair.float is not None and (node in twice.tainted or node in twice.quantized):
            again += tensors
    return held_bytes(once) + held_bytes(again)
