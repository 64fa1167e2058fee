"""What training must know of a network, and evaluation does not show.

A graph computes what the network computes in evaluation. To train the network on, one needs more:

- which of its tensors are parameters, what the model calls them, and which of them are trained;
- how batch-norm updates its running statistics;
- what the network does in training only, and the graph therefore does not contain.

Dropout and batch-norm need no entry here: their operations are in the graph, with their probabilities and settings.
Where they are taken out for inference, a record stays at the operation whose values they changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final

from torch import Tensor


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
@dataclass(frozen=True, eq=False)
class FoldedBatchNorm:
    """A batch-norm that was folded into the layer before it, in the form that training needs to bring it back.

    It stays at the layer's calls, in `meta["batch_norm"]`. Folding multiplied each output channel by a = γ/√(σ² + ε).
    Later edits may scale and shift the channels further, and the moments of the layer's output follow them; what is
    kept here does not change with such edits.

    Attributes:
        name: of the batch-norm in the model, such as `layer1.0.bn1`.
        gain: |a| of each channel, float64 `[channels]`.
        variance: σ², the running variance of each channel, float64 `[channels]`.
        eps: ε.
        momentum: the weight of the newest batch in the running statistics; None for the average over all batches.
        affine: whether it has γ and β.
        batches: the number of batches in the running statistics so far.
        trainable: whether γ and β are trained.
    """

    name: str
    gain: Tensor
    variance: Tensor
    eps: float
    momentum: float | None
    affine: bool
    batches: int = 0
    trainable: bool = True


@final
@dataclass(frozen=True)
class DroppedDropout:
    """Dropout that was dropped, in the form that training needs to bring it back.

    It stays at the operation that gives the values, in `meta["dropout"]`.

    Attributes:
        operation: the name of the ATEN operation: `dropout`, `feature_dropout`, `alpha_dropout`, …
        probability: that a value becomes 0.
        readers: the names of the operations that read the values through it; empty where all of them do.
    """

    operation: str
    probability: float
    readers: tuple[str, ...]


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
