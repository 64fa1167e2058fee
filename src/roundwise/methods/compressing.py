"""What a method of structured compression is given, and what it answers.

A *factorization* replaces one layer by a chain of smaller ones. It sees the layer as a matrix with the moments of its
inputs and outputs, and a metric S that says how much the network's output feels the layer's errors:

    error of a map M  =  E (y − M x − b)ᵀ S (y − M x − b)

A *pruning* says which channels stay of those that the same layers give. It sees all layers that read them, likewise.

A *choice of ratios* says how small each layer becomes, from what each size costs and how large its error would be.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.numerics.channel_selection import Reader
from roundwise.numerics.regression import Regression

Size = tuple[int, ...]
"""What a method can choose of a layer: one rank, or several."""


@final
@dataclass(frozen=True, eq=False)
class FactorizationProblem:
    """Everything that a factorization may look at.

    Attributes:
        name: the layer's name in the model.
        layer: its linear map, with one group; columns of matrices are ordered (input channels, kernel).
        regression: the moments of inputs of the network so far, and of targets of the original network. Without
            samples, those of white inputs.
        metric: S, symmetric and positive definite, float64.
    """

    name: str
    layer: LinearMap
    regression: Regression
    metric: Float[Tensor, "rows rows"]


@final
@dataclass(frozen=True, eq=False)
class Factorized:
    """A factorization's answer.

    Attributes:
        weights: of each layer of the chain, in order, shaped as `parts` says.
        matrix: what the chain computes, as one matrix with the columns of the layer. The engine chooses the bias.
    """

    weights: tuple[Tensor, ...]
    matrix: Float[Tensor, "rows cols"]


class CompressionMethod(ABC):
    """A way to make layers smaller. Implementations are frozen dataclasses; their fields are the method's settings."""

    @abstractmethod
    def reason(self, layer: LinearMap) -> str:
        """Why the method cannot change the layer, as a clause such as "it is grouped"; empty if it can."""


class Factorization(CompressionMethod):
    """Replaces one layer by a chain of layers. The engine leaves out sizes that would not make the layer cheaper."""

    @abstractmethod
    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        """The sizes to choose from, each rank a multiple of a number (or as large as a rank can be)."""

    @abstractmethod
    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        """The layers of the chain, without biases."""

    @abstractmethod
    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        """The error for each size; an upper bound is enough."""

    @abstractmethod
    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        """The chain's weights, with a small error."""


@final
@dataclass(frozen=True, eq=False)
class PruningProblem:
    """Everything that a pruning may look at.

    Attributes:
        name: of the first layer that gives the channels.
        channels: how many there are.
        readers: the layers that read them, with moments of their inputs in the original network. Without samples, those
            of white inputs.
    """

    name: str
    channels: int
    readers: tuple[Reader, ...]


class Pruning(CompressionMethod):
    """Chooses channels that stay. The engine removes the others, and fits the weights that read those that stay."""

    @abstractmethod
    def keep(self, problem: PruningProblem, counts: Sequence[int]) -> Sequence[Int[Tensor, "count"]]:
        """The channels that stay for each count, in rising order."""


@final
@dataclass(frozen=True)
class LayerOptions:
    """What can be chosen for one layer. The first option leaves it as it is, with error 0.

    Attributes:
        name: of the layer.
        costs: of each option, in the unit of the budget.
        errors: predicted for each option. For a choice that evaluates, how much lower the result of `evaluate` is if
            this layer alone is cut; below 0 where it is higher.
    """

    name: str
    costs: tuple[float, ...]
    errors: tuple[float, ...]


class RatioChoice(ABC):
    """Chooses an option for each layer. Implementations are frozen dataclasses.

    Attributes:
        evaluates: whether options are compared by `evaluate`, the user's function, instead of by predicted errors.
    """

    evaluates: ClassVar[bool] = False

    @abstractmethod
    def choose(self, layers: Sequence[LayerOptions], budget: float) -> list[int]:
        """The number of the option for each layer; the sum of costs is within the budget, as it is for some choice."""


def without_taps(layer: LinearMap) -> str:
    """Why a method that cuts the kernel off cannot cut a layer: it has several groups, or one tap; empty if it can."""
    if layer.transposed or layer.groups > 1:
        return "it is a transposed convolution" if layer.transposed else f"it has {layer.groups} groups"
    if math.prod(layer.kernel) == 1:
        return "its kernel has one tap" if layer.dims else "it is a linear layer"
    return ""


def without_two_dimensions(layer: LinearMap) -> str:
    """Why a method that cuts the kernel in two cannot cut a layer: it has no two dimensions to cut; empty if it can."""
    if layer.transposed or layer.groups > 1 or not layer.dims:
        return without_taps(layer)
    if sum(k > 1 for k in layer.kernel) < 2 or layer.kernel[0] == 1:
        return f"its kernel is {'×'.join(map(str, layer.kernel))}"
    return ""
