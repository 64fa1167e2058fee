"""The stages of a recipe: each takes a network and hands on another. These are settings only; `engine/` runs them.

Compress    makes layers smaller (`recipe/compress.py`)
Rewrite     changes how the network computes, not what: folds batch-norm, equalizes channels, absorbs biases
Quantize    chooses ranges and codes of weights, ranges of activations, corrections of biases
Finetune    trains the network on: its weights, and the scales of its quantizers (`recipe/finetune.py`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from roundwise.errors import RecipeError
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.interfaces import Correction, GraphRewrite, RoundingSolver
from roundwise.methods.rewrites import REWRITES, CrossLayerEqualization, HighBiasAbsorption
from roundwise.methods.rounding import ROUNDING_SOLVERS, GramAdaRound
from roundwise.numerics.grid import BITS, PerTensor
from roundwise.recipe.checks import check_choice
from roundwise.recipe.compress import Compress
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.settings import Activations, Override, Overrides, Weights


@final
@dataclass(frozen=True)
class Rewrite:
    """Bring the float network into the form that is quantized best. Its outputs stay the same.

    Batch-norms are folded into the layers before them in any case, before the methods below.

    Args:
        methods: applied in order. None takes what the next `Quantize` needs: `CrossLayerEqualization` where one scale
            serves a whole weight tensor, and after it `HighBiasAbsorption` where activations are quantized too. An
            empty sequence is none.
        undo_harmful: whether a method is undone if, on a few samples, the network that the next `Quantize` makes is
            far worse with it than without it (`engine/undoing.py`). The report says so. Without samples, none is.

    Raises:
        RecipeError: a method is not an object of the right kind, or a setting is of the wrong type.
    """

    methods: Sequence[GraphRewrite] | None = None
    undo_harmful: bool = True

    def __post_init__(self) -> None:
        if type(self.undo_harmful) is not bool:
            raise RecipeError(f"Rewrite: undo_harmful={self.undo_harmful!r}: it must be True or False.")
        if self.methods is None:
            return
        if not isinstance(self.methods, list | tuple):
            raise RecipeError(
                f"Rewrite: methods is {self.methods!r}; it must be a tuple of objects, such as "
                "(CrossLayerEqualization(),), or empty for none."
            )
        for number, one in enumerate(self.methods):
            check_choice(f"Rewrite: methods[{number}]", one, GraphRewrite, REWRITES)
        object.__setattr__(self, "methods", tuple(self.methods))

    def methods_before(self, following: Quantize | None) -> Sequence[GraphRewrite]:
        """The methods; where they were left open, those that the next `Quantize` needs.

        With one scale for a whole tensor, equalization is the difference between a network and noise: MobileNetV2 with
        4-bit weights classifies 78.0 % of the images correctly instead of 0.3 %. With a scale for each channel it
        changes nothing that can be told apart: 78.7 ± 1.2 % instead of 79.0 ± 0.7 % (deviations over runs), while the
        per-channel clamps that it leaves cost run time.

        Equalization makes nearly constant channels larger, up to a bound. Where activations are quantized, they widen
        the range of the whole tensor, so absorption takes the constants away again.
        """
        if self.methods is not None:
            return self.methods
        if following is None or not isinstance(following.weights.granularity, PerTensor):
            return ()
        equalized = CrossLayerEqualization()
        return (equalized,) if following.activations is None else (equalized, HighBiasAbsorption())


@final
@dataclass(frozen=True)
class Quantize:
    """Choose integer codes for the weights, and ranges for the activations where these are quantized too.

    Args:
        weights: for every layer that no override names.
        rounding: the solver for every layer that does not name its own.
        activations: how tensors between operations are quantized; None leaves them in float.
        correction: what each layer's bias does about an error that the codes leave; None leaves it to the solver.
        overrides: exceptions. A key is the name of a layer or of a tensor, a glob of names (`"features.0.*"`), or a
            kind of operation (`"op:linear"`, `"op:add"`). A value is `Weights`, `Activations`, an `Override` of both,
            or None to leave the layer's weights in float. For activations, a layer or a kind of operation means the
            tensors that it reads. Of several matches the last one counts, and it counts alone: `Weights(bits=8)` has
            the defaults for everything else (`dataclasses.replace(weights, bits=8)` changes the bits only).

        edge_bits: bits of the weights of the first and the last layers, and of the activations that they read; None
            treats them as all others. 8 is usual where the others have 4 bits or fewer: it costs little, and these
            layers hurt most. First layers are those that no layer comes before; last ones, those that no layer comes
            after. An override that names such a layer counts more; a glob or a kind of operation counts less. What
            stays in float stays so.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    weights: Weights = Weights()
    rounding: RoundingSolver[Any] = GramAdaRound()
    activations: Activations | None = None
    correction: Correction[Any] | None = None
    overrides: Mapping[str, Override | Weights | Activations | None] = field(default_factory=lambda: Overrides({}))
    edge_bits: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Weights):
            raise RecipeError(f"weights is {self.weights!r}; it must be an object such as Weights(bits=4).")
        check_choice("rounding", self.rounding, RoundingSolver, ROUNDING_SOLVERS)
        if self.correction is not None:
            check_choice("correction", self.correction, Correction, CORRECTIONS)
        if not isinstance(self.activations, Activations | None):
            raise RecipeError(
                f"activations is {self.activations!r}; it must be an object such as Activations(bits=8), or None to "
                "leave them in float."
            )
        if self.edge_bits is not None and (type(self.edge_bits) is not int or self.edge_bits not in BITS):
            raise RecipeError(
                f"edge_bits={self.edge_bits!r}: the first and the last layers can have 2 to 8 bits, or 16. Give 8, as "
                "is usual, or None to treat them as all others."
            )
        if not isinstance(self.overrides, Overrides):
            object.__setattr__(self, "overrides", Overrides(self.overrides))

    @property
    def exceptions(self) -> Overrides:
        """The overrides, by their type."""
        assert isinstance(self.overrides, Overrides)
        return self.overrides


Stage = Compress | Rewrite | Quantize | Finetune

STAGES: dict[str, type[Stage]] = {
    "compress": Compress,
    "rewrite": Rewrite,
    "quantize": Quantize,
    "finetune": Finetune,
}
