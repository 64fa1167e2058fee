"""The settings of the stage `Compress`: make layers smaller, so that the network needs less arithmetic or memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from roundwise.errors import RecipeError
from roundwise.methods.compressing import CompressionMethod, Pruning, RatioChoice
from roundwise.methods.compression import (
    COMPRESSION_METHODS,
    RATIO_CHOICES,
    BackwardElimination,
    OutputError,
    SpatialSVD,
    WeightSVD,
)
from roundwise.recipe.checks import check_choice, check_whole_number

CostUnit = Literal["macs", "parameters", "latency"]
"""What a budget counts: multiplications of one sample, numbers in weights and biases, or seconds of one sample."""

DEFAULT_METHODS: tuple[CompressionMethod, ...] = (SpatialSVD(), WeightSVD(pointwise=False), BackwardElimination())
"""SVDs suit linear layers and convolutions with large kernels, fewer channels suit networks of 1 × 1 and depthwise
convolutions. Chains of 1 × 1 convolutions make outputs worse than the choice of sizes expects: MobileNetV2 at 75 % of
its MACs classifies 71.8 % of the images correctly with them, and 77.1 % without.
"""

FACTORIZATIONS: tuple[CompressionMethod, ...] = (SpatialSVD(), WeightSVD())
"""What is taken by default where no channels are removed: without data, where the weights cannot make up for channels
that are gone, and with a choice that cuts one layer at a time."""


@final
@dataclass(frozen=True)
class Compress:
    """Make layers smaller: replace them by chains of smaller layers, as far as a budget asks for it.

    Give one of `macs`, `parameters` and `latency`. The weights of the new layers are fitted to the outputs of the
    original network on the samples; without samples, they approximate the original weights. Batch-norms stay as they
    are. `Rewrite()` before this stage folds them, as `roundwise.compress` does by default; leave it out where
    `Finetune` follows and batch-norms shall be trained.

    Args:
        macs: the share of the network's multiplications that is left, above 0 and below 1.
        parameters: the share of the numbers in weights and biases of layers that is left, likewise.
        latency: the share of the time of layers that is left, likewise. Each layer, and each chain that could replace
            it, is run and timed alone in ONNX Runtime on this machine, one sample at a time. Times are never quite the
            same, so the choice of sizes may differ between runs.
        methods: alternatives. Methods that remove channels, such as `ChannelPruning`, say what each group of channels
            could lose; others, such as `SpatialSVD`, what each layer could be replaced by. One choice is made among all
            of these. A layer may lose channels and then be replaced. By default spatial SVD, weight SVD (but not of
            1 × 1 convolutions), and `BackwardElimination`; with `EqualAccuracyLoss`, both kinds of SVD alone.
        choice: how the sizes of the layers are chosen.
        multiple: ranks, and numbers of channels that are left, are multiples of this number, because runtimes compute 8
            or 16 channels at a time.
        keep: names of layers that stay as they are; globs such as `"features.0.*"` too.

    Raises:
        RecipeError: a setting is out of range or of the wrong type, or not exactly one budget is given.
    """

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    methods: Sequence[CompressionMethod] = DEFAULT_METHODS
    choice: RatioChoice = OutputError()
    multiple: int = 8
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            found = " and ".join(f"{name}={share!r}" for name, share in given.items()) or "no budget"
            raise RecipeError(
                f"Compress: found {found}; exactly one of macs, parameters and latency must say how much of the "
                "network is left. Give for instance macs=0.5."
            )
        for name, share in given.items():
            if type(share) not in (int, float) or not 0 < share < 1:
                raise RecipeError(f"Compress: {name}={share!r}: it must be the share that is left, between 0 and 1.")
        if not isinstance(self.methods, list | tuple) or not self.methods:
            raise RecipeError(
                f"Compress: methods is {self.methods!r}; it must be a tuple of at least one object, such as "
                "(SpatialSVD(),)."
            )
        if self.methods is DEFAULT_METHODS and self.choice.evaluates:
            object.__setattr__(self, "methods", FACTORIZATIONS)
        for number, method in enumerate(self.methods):
            check_choice(f"Compress: methods[{number}]", method, CompressionMethod, COMPRESSION_METHODS)
        object.__setattr__(self, "methods", tuple(self.methods))
        check_choice("Compress: choice", self.choice, RatioChoice, RATIO_CHOICES)
        pruning = [type(method).__name__ for method in self.methods if isinstance(method, Pruning)]
        if pruning and self.choice.evaluates:
            raise RecipeError(
                f"Compress: {self.choice!r} measures networks in which one layer is cut, and {pruning[0]} removes "
                "channels of several layers at once. Take choice=OutputError(), or a method such as SpatialSVD()."
            )
        check_whole_number("Compress: multiple", self.multiple, at_least=1)
        if not isinstance(self.keep, list | tuple) or not all(isinstance(name, str) for name in self.keep):
            raise RecipeError(
                f"Compress: keep is {self.keep!r}; it must be a tuple of names of layers, such as ('classifier',)."
            )
        object.__setattr__(self, "keep", tuple(self.keep))

    @property
    def budget(self) -> tuple[CostUnit, float]:
        """What the budget counts, and the share that may be left."""
        ((unit, share),) = self._given().items()
        return unit, share

    def _given(self) -> dict[CostUnit, float]:
        budgets: dict[CostUnit, float | None] = {
            "macs": self.macs,
            "parameters": self.parameters,
            "latency": self.latency,
        }
        return {name: share for name, share in budgets.items() if share is not None}
