"""What training must know of a network, and evaluation does not show.

A graph computes what the network computes in evaluation. To train the network on, one needs more:

- which of its tensors are parameters, what the model calls them, and which of them are trained;
- how batch-norm updates its running statistics;
- what the network does in training only, and the graph therefore does not contain.

Dropout needs no entry here: its operations stay in the graph, with their probabilities, until `drop_dropout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final


@final
@dataclass(frozen=True)
class TensorOrigin:
    """Where a constant of a graph comes from.

    Attributes:
        names: what the model calls the tensor; several names if it is shared (tied weights, shared modules), and none
            if it is a constant in the model's code. For a computed tensor: what it was computed from.
        kind: "parameter" or "buffer" of the model; "constant" in its code; or "computed" from others when the graph
            was normalized, such as the weight of a layer with weight normalization.
        trainable: whether the model's parameter asks for gradients; of a computed tensor, whether any of its sources
            does.
    """

    names: tuple[str, ...]
    kind: Literal["parameter", "buffer", "constant", "computed"]
    trainable: bool = False


@final
@dataclass(frozen=True)
class RunningStatistics:
    """How one batch-norm module updates its running mean and variance in training.

    Attributes:
        momentum: the weight of the newest batch; None for the average over all batches so far. (The `momentum`
            argument of the operation is 0.0 then: PyTorch captures it so.)
        counter: what the model calls its number of batches so far; None if it does not count them.
        batches: that number.
    """

    momentum: float | None
    counter: str | None = None
    batches: int = 0


@final
@dataclass(frozen=True)
class TrainingInformation:
    """What training must know of a graph besides its operations.

    Attributes:
        origins: of the graph's constants, by their names in the graph. A constant that a rewrite has added has none.
        running_statistics: of each batch-norm that updates them, by the name of its running mean in the graph.
        notes: what the model does in training and the graph does not contain, in sentences for a report.
    """

    origins: Mapping[str, TensorOrigin] = field(default_factory=dict)
    running_statistics: Mapping[str, RunningStatistics] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def with_origins(self, origins: Mapping[str, TensorOrigin]) -> TrainingInformation:
        """The same, with the origins of more constants."""
        return replace(self, origins={**self.origins, **origins})
