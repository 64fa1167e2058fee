"""What a network that came from a file may do: compute, within bounds, what its shapes say.

A `Guard` rehearses the network (`artifacts/rehearsal.py`) when it is loaded, and before a call with inputs of shapes
that it has not seen. It compares the first such call with the rehearsal (`artifacts/confirmation.py`). The bound on
memory grows with what the user gave and stored:

    limit = 256 MiB + 1024 · bytes of the inputs + 64 · bytes of the file                                          (1)

A network needs far less: its widest results are some ten times as large as an image, and smaller than its weights. A
file that asks for more must be trusted with a number, `rw.load(path, memory_limit=…)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.artifacts.codes import check_stored
from roundwise.artifacts.confirmation import Confirmation, Forms, has_views, in_own_memory
from roundwise.artifacts.rehearsal import META, rehearse, without_numbers
from roundwise.artifacts.schema import DTYPES, UnsafeError, bytes_of
from roundwise.graph.graph import ConstantInput, Graph, InputSpec
from roundwise.wording import human_bytes

FREE, PER_INPUT, PER_STORED = 256 << 20, 1 << 10, 1 << 6
"""The limit in bytes: the first, plus the second for each byte of inputs, plus the third for each byte of the file."""

LARGEST_INPUTS = 1 << 30
"""Bytes of the inputs that a file may say its network takes. With more, an export of the file takes more memory: it
runs the network on inputs of that size, which nobody has given."""

REHEARSED_BATCH = 2
"""Samples in the rehearsal of a network that is loaded. Two, because the size 1 fits where others do not."""

_AUTOCAST = ("cpu", "cuda")
"""The devices for which autocast is looked at. It changes the dtypes of results."""

_REMEMBERED = 256
"""Shapes of inputs for which a network is known to be safe. With more, the first ones are forgotten."""


@final
@dataclass(frozen=True)
class Memory:
    """How much memory a call of a network may take.

    Attributes:
        stored: bytes of the file that it came from.
        limit: bytes that the user allows; None for equation 1.
    """

    stored: int
    limit: int | None = None

    def of(self, inputs: Sequence[Any]) -> int:
        """Bytes for a call with these inputs."""
        if self.limit is not None:
            return self.limit
        return FREE + PER_INPUT * _bytes(inputs) + PER_STORED * self.stored


def _bytes(values: Sequence[Any]) -> int:
    return sum(bytes_of(value) for value in values if isinstance(value, Tensor))


@final
class Guard:
    """Rehearses one network.

    Raises:
        UnsafeError: an operation must not run, with the inputs that the network says it takes.
    """

    def __init__(self, graph: Graph, memory: Memory) -> None:
        for name, value in graph.constants.items():
            if value.dtype not in DTYPES or value.layout is not torch.strided:
                raise UnsafeError(f"the tensor {name!r} is in {value.dtype} and {value.layout}, which no file may have")
        self._memory = memory
        self._safe: dict[tuple[Any, ...], None] = {}
        self._graph = graph
        self._has_views = has_views(graph.operations)
        self.check_batch(REHEARSED_BATCH)
        check_stored(graph)
        # From here on only shapes count, and a guard must not keep tensors alive.
        blank = {name: without_numbers(value) for name, value in graph.constants.items()}
        self._graph = dataclasses.replace(graph.copy(), constants=blank)

    def check_batch(self, samples: int) -> None:
        """Raise unless a call with this many samples is safe, or with the network's own number if that is fixed.

        Raises:
            UnsafeError: an operation must not run.
        """
        batches = self._graph.limits.batches
        batch = self._graph.batch or next(one for one in (samples, 5, batches.low) if batches.holds(one))
        leaves = [
            torch.empty([batch if n is None else n for n in spec.shape], dtype=spec.dtype, device=META)
            if isinstance(spec, InputSpec)
            else spec.value
            for spec in self._graph.inputs
        ]
        stated = _bytes(leaves)
        if self._memory.limit is None and stated > LARGEST_INPUTS:
            raise UnsafeError(
                f"the network states inputs of {human_bytes(stated)} for {batch} samples; at most "
                f"{human_bytes(LARGEST_INPUTS)} are taken without a memory_limit"
            )
        self.check(leaves)

    def check(self, leaves: Sequence[Any], forms: Forms | None = None) -> None:
        """Raise unless a call with inputs of these shapes and dtypes is safe.

        Args:
            leaves: the inputs, one for each placeholder.
            forms: is filled in with the forms of all results, if it is given.

        Raises:
            UnsafeError: an operation must not run, or an input is not a tensor where one is wanted.
        """
        inputs = [
            torch.empty(leaf.shape, dtype=leaf.dtype, device=META) if isinstance(leaf, Tensor) else leaf
            for leaf in self._strided(leaves)
        ]
        rehearse(self._graph, inputs, self._memory.of(inputs), forms)

    def call(self, module: fx.GraphModule, leaves: Sequence[Any]) -> Any:
        """What a module of the graph gives for these inputs.

        Args:
            module: runs the graph.
            leaves: the inputs, one for each placeholder.

        Raises:
            UnsafeError: an operation must not run on inputs of these shapes, or gives something else than it should.
        """
        leaves = self._strided(leaves)
        if self._has_views:
            leaves = [in_own_memory(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        kinds = ((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else None for leaf in leaves)
        key = (*kinds, torch.get_default_dtype(), *(torch.is_autocast_enabled(one) for one in _AUTOCAST))
        if key in self._safe:
            args, kwargs = pytree.tree_unflatten(list(leaves), self._graph.structure.in_spec)
            return module(*args, **kwargs)
        forms: Forms = {}
        self.check(leaves, forms)
        result = Confirmation(module, forms).call(leaves)
        if len(self._safe) >= _REMEMBERED:
            self._safe.pop(next(iter(self._safe)), None)  # another thread may have forgotten it
        self._safe[key] = None
        return result

    def _strided(self, leaves: Sequence[Any]) -> list[Any]:
        """The inputs: tensors, and the values of those that are fixed.

        Raises:
            UnsafeError: an input is not a tensor where one is wanted.
        """
        inputs: list[Any] = []
        for spec, leaf in zip(self._graph.inputs, leaves, strict=True):
            if isinstance(spec, ConstantInput):
                inputs.append(spec.value)
            elif isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                inputs.append(leaf)
            else:
                raise UnsafeError(
                    f"the input '{spec.name}' is a {type(leaf).__name__}, not a tensor in rows and columns"
                )
        return inputs
