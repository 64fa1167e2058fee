"""What a method of each kind is given, and what it answers; `methods/compressing.py` is that for compression.

The problem of rounding comes first. Given a weight matrix W, a grid, and statistics of the layer's inputs x̂ (in the
network whose earlier layers are already quantized) and targets y (the float network's outputs), choose integer codes q
such that

    E ‖ f_a(y) − f_a(ŵ(q) x̂ + b) ‖²                                         (Eq. 25 without λ f_reg)

is small, where ŵ(q) = s (q − z), and f_a is the nonlinearity that follows the layer, if one does. The regularizer f_reg
belongs to one way of choosing codes (`numerics/search/relaxation.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roundwise.graph.graph import Graph
from roundwise.graph.matrix import LinearMap
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.graph.unit import Unit
from roundwise.numerics.grid import Codebook, Granularity, Grid
from roundwise.numerics.quantizer import Quantizer
from roundwise.statistics import BlockStatistic, Statistic, ValueStatistic

S = TypeVar("S", bound=Statistic)
V = TypeVar("V", bound=ValueStatistic)
B = TypeVar("B", bound=BlockStatistic)


@final
@dataclass(frozen=True)
class Problem(Generic[S]):
    """Everything that a rounding solver may look at.

    Attributes:
        name: the layer's name in the model.
        weight: float32 matrix; rows are output channels. Groups are those of a grouped convolution, each of which is a
            problem of its own; other layers have one.
        bias: float32; zeros where the layer has none.
        grid: what codes mean, chosen before by a `RangeEstimator`.
        statistics: what the solver's `needs` asked for.
        nonlinearity: the function that reads this layer's output, if nothing else reads it; or None.
        bias_is_free: whether the layer has a bias that nothing else uses, so that a solver may shift it.
    """

    name: str
    weight: Float[Tensor, "groups rows cols"]
    bias: Float[Tensor, "groups rows"]
    grid: Grid
    statistics: S
    nonlinearity: Nonlinearity | None = None
    bias_is_free: bool = False


@final
@dataclass(frozen=True)
class Rounding:
    """A solver's answer.

    Attributes:
        codes: int32, each within the grid's codebook.
        grid: what the codes mean, if it is not the problem's grid; with the same codebook and granularity.
        bias_shift: to be added to the layer's bias, float32; only where the problem's `bias_is_free`.
        note: a sentence for the layer's entry in the report, or empty.
    """

    codes: Int[Tensor, "groups rows cols"]
    grid: Grid | None = None
    bias_shift: Float[Tensor, "groups rows"] | None = None
    note: str = ""


@final
@dataclass(frozen=True)
class Traits:
    """What the engine must know about a rounding solver; the defaults are those of rounding to nearest.

    Attributes:
        floor_or_ceil: whether each code is one of the two next to its weight, as in the paper (Eq. 9); False where it
            may be any code of the grid.
        float_inputs: whether the statistic is given the layer's inputs x in the float network (Eq. 21); False gives it
            x̂, the inputs in the network so far.
        addition_aware: where the layer's output is added to another branch r, whether targets are y + r − r̂ instead of
            y, so that the layer makes up for that branch's error too. r̂ is the branch in the network so far.
        gradient_steps, batch_size: number of steps that run the layer forward and backward, and the samples in each;
            for the plan's estimate of time. 0 for solvers that work on the statistic alone.
    """

    floor_or_ceil: bool = True
    float_inputs: bool = False
    addition_aware: bool = False
    gradient_steps: int = 0
    batch_size: int = 0


class RoundingSolver(ABC, Generic[S]):
    """Chooses codes for one layer. Implementations are frozen dataclasses; their fields are the method's settings.

    Attributes:
        needs: the statistic that `solve` finds in its problem; the stream collects it.
    """

    needs: ClassVar[type[Statistic]]

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What the engine must know; a class attribute is enough where it does not depend on settings."""

    @abstractmethod
    def solve(self, problem: Problem[S], generator: torch.Generator) -> Rounding:
        """Return codes for the problem; any randomness comes from `generator`, which lives on the CPU."""


def estimated_work(solver: RoundingSolver[Any], items_per_sample: int, samples: int) -> float:
    """About what it costs to collect the solver's statistic and to solve, for the plan's estimate of time.

    The unit is one forward pass of the layer over one item: an image for a convolution, a position for a linear layer
    (`Samples` explains items). The stream has measured how long that takes. An error of a factor of two does no harm.

    Args:
        solver: of the layer.
        items_per_sample: items that one calibration sample becomes at this layer, at least 1.
        samples: number of calibration samples.
    """
    traits = solver.traits
    # A backward pass costs about as much as a forward pass, since only the weights need a gradient.
    steps = 2.0 * traits.gradient_steps * min(traits.batch_size, samples)
    return (solver.needs.forward_passes * samples + steps) * items_per_sample


@final
@dataclass(frozen=True)
class BlockProblem(Generic[B]):
    """Everything that a solver of a block of layers may look at.

    Attributes:
        unit: the block; `unit.forward(weights, inputs)` gives its output.
        weights: for each layer by its name, the float32 matrix `[groups, rows, cols]`.
        grids: for each layer by its name, the codes' meaning, chosen before by a `RangeEstimator`.
        statistics: what the solver's `needs` asked for.
    """

    unit: Unit
    weights: Mapping[str, Float[Tensor, "groups rows cols"]]
    grids: Mapping[str, Grid]
    statistics: B

    def forward(self, matrices: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The block's output with other weights, given as matrices; gradients flow to them."""
        weights = {layer.name: layer.map.to_weight(matrices[layer.name]) for layer in self.unit.layers}
        return self.unit.forward(weights, inputs)


class BlockSolver(ABC, Generic[B]):
    """Chooses codes for all layers of a block together. Implementations are frozen dataclasses.

    This is a seam for solvers of one's own: no built-in solver implements it, and no recipe reaches it.
    `tests/integration/test_units.py` has a solver that does.

    Attributes:
        needs: the statistic that `solve` finds in its problem; the stream collects it.
    """

    needs: ClassVar[type[BlockStatistic]]

    @abstractmethod
    def solve(self, problem: BlockProblem[B], generator: torch.Generator) -> Mapping[str, Rounding]:
        """Return codes for each layer by its name; any randomness comes from `generator`, which lives on the CPU."""


class RangeEstimator(ABC, Generic[S]):
    """Chooses a grid for one layer's weights. Implementations are frozen dataclasses.

    Attributes:
        needs: the statistic that `estimate` is given; the stream collects it.
    """

    needs: ClassVar[type[Statistic]]

    @abstractmethod
    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: S,
        layer: str,
    ) -> Grid:
        """Return scales and zero points; `layer` is for messages."""


class Correction(ABC, Generic[S]):
    """Shifts a layer's bias once its codes are chosen. Implementations are frozen dataclasses.

    Attributes:
        needs: the statistic that `shift` is given; the stream collects it.
    """

    needs: ClassVar[type[Statistic]]

    @abstractmethod
    def shift(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"],
        statistics: S,
    ) -> Float[Tensor, "groups rows"]:
        """What to add to the bias, float32.

        Args:
            weight: what the codes stand for.
            bias: the layer's own, with what the rounding solver has added to it.
            statistics: of the layer's inputs and targets.
        """

    @abstractmethod
    def note(self, statistics: S) -> str:
        """A sentence about the correction for the layer's entry in the report, or empty."""


class GraphRewrite(ABC):
    """Changes how the float network computes, not what. Implementations are frozen dataclasses.

    The network is run before and after on a few samples. Its outputs must stay the same, unless the rewrite declares
    that it is not exact; then the report says how far they moved.

    `exact` and `measures_moments` are class attributes, or properties where they depend on a setting.
    """

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether outputs stay the same, but for rounding errors; False where the method changes them on purpose."""

    @property
    @abstractmethod
    def measures_moments(self) -> bool | Literal["where-unknown"]:
        """Whether `graph.moments` is measured on samples before `apply`.

        True measures the moments of all layers, and there must be samples. False leaves those that batch-norms give.
        "where-unknown" adds those of the other layers for this rewrite alone, if there are samples.
        """

    @abstractmethod
    def apply(self, graph: Graph) -> Graph:
        """Return another graph, in normal form as this one is, with the same inputs and outputs; leave this one alone.

        Change a copy by means of `graph/edit.py`: then all operations keep `meta["val"]`, and the moments of layers'
        outputs follow.
        """

    @abstractmethod
    def note(self, graph: Graph) -> str:
        """What the report says about applying this to the graph, such as how many layers it changes; may be empty."""


class ActivationRanges(ABC, Generic[V]):
    """Chooses the range of one tensor between operations. Implementations are frozen dataclasses.

    Attributes:
        needs: the statistic that `limits` is given; the stream collects it.
    """

    needs: ClassVar[type[ValueStatistic]]

    @abstractmethod
    def limits(self, values: V, codebook: Codebook) -> tuple[float, float]:
        """The smallest and the largest value that codes shall stand for; 0.0 is added to the interval if it is outside.

        Args:
            values: of all calibration samples; finite, at least one, and not all zero. Or what is expected of them.
            codebook: the integers that codes may take.
        """


class WeightQuantizer(nn.Module, ABC):
    """A module from a weight to the quantized weight, back in float, with parameters that are trained.

    Attributes:
        codes: int32 `[groups, rows, cols]`, where the codes stay as they are and only scales are trained; None, at the
            start, rounds the weight.
    """

    codes: Tensor | None

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The grid that training has reached."""


class ActivationQuantizer(nn.Module, ABC):
    """A module from an activation to the quantized activation, back in float, with parameters that are trained."""

    @property
    @abstractmethod
    def quantizer(self) -> Quantizer:
        """The quantizer that training has reached."""

    @property
    @abstractmethod
    def shift(self) -> float:
        """δ, where the module computes `quantizer.fake_quantize(x − δ) + δ`: other than 0 for a real offset."""


class LearnedQuantization(ABC):
    """How weights and activations are quantized while the network is trained. Implementations are frozen dataclasses.

    The modules that it makes start from a grid that was chosen before.
    """

    @abstractmethod
    def weight(self, grid: Grid, layer: LinearMap) -> WeightQuantizer:
        """A module for the weight of a layer."""

    @abstractmethod
    def activation(self, quantizer: Quantizer, device: torch.device) -> ActivationQuantizer:
        """A module for an activation."""
