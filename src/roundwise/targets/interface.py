"""What a target is: the integers, the float types and the placement of quantizers that a runtime can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch

from roundwise.errors import RecipeError
from roundwise.numerics.grid import Codebook
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Activations, Weights
from roundwise.recipe.stages import Quantize


@final
@dataclass(frozen=True)
class IntegerType:
    """An integer type in which a runtime stores codes.

    Example:
        >>> IntegerType("INT4", bits=4, signed=True).holds(-8, 7)
        True
    """

    name: str
    bits: int
    signed: bool

    @property
    def smallest(self) -> int:
        """The smallest number of this type."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def largest(self) -> int:
        """The largest number of this type."""
        return (1 << self.bits - 1) - 1 if self.signed else (1 << self.bits) - 1

    def holds(self, qmin: int, qmax: int) -> bool:
        """Whether all codes from `qmin` to `qmax` are numbers of this type."""
        return self.smallest <= qmin and qmax <= self.largest


@final
@dataclass(frozen=True)
class Target:
    """What one runtime can hold.

    Attributes:
        name: as in the table.
        weight_types: in which the codes of weights are stored, narrowest first.
        weight_zero_points: whether zero points of weights may be other than 0.
        activation_types: in which the codes of tensors between operations are stored, narrowest first.
        moves_activation_codes: whether signed codes of activations may be stored in an unsigned type and the other way
            round, codes and zero point moved by the same number: they stand for the same real numbers.
        activation_zero_points: whether zero points of activations may be other than 0.
        quantizes_outputs: whether each output of the network ends in a quantizer; False leaves outputs in float.
        dequantizes_for_each_reader: whether each operation that reads a quantized tensor has a dequantize operation of
            its own; False shares one among all readers.
        float_types: in which networks can compute.
        bias_bits: integer layers keep the bias as an integer of this many bits, in steps of the scale of the input
            times that of the weight. So weights of a layer with a large bias cannot have tiny scales. None: in float.
    """

    name: str
    weight_types: tuple[IntegerType, ...]
    weight_zero_points: bool
    activation_types: tuple[IntegerType, ...]
    moves_activation_codes: bool
    activation_zero_points: bool
    quantizes_outputs: bool
    dequantizes_for_each_reader: bool
    float_types: tuple[torch.dtype, ...]
    bias_bits: int | None

    def weight_type(self, qmin: int, qmax: int) -> IntegerType | None:
        """The narrowest type that holds these codes of a weight, or None."""
        return next((kind for kind in self.weight_types if kind.holds(qmin, qmax)), None)

    def activation_type(self, qmin: int, qmax: int) -> IntegerType | None:
        """The narrowest type that holds these codes of an activation, moved if the target allows it; or None."""
        ranges = [(qmin, qmax)]
        if self.moves_activation_codes:
            middle = (qmax - qmin + 1) // 2
            ranges += [(0, qmax - qmin), (-middle, qmax - qmin - middle)]
        types = (kind for kind in self.activation_types if any(kind.holds(low, high) for low, high in ranges))
        return next(types, None)

    def check(self, recipe: Recipe) -> None:
        """Make sure, before a run, that the target can hold what the recipe asks for.

        Raises:
            RecipeError: names the setting that it cannot hold, and what it can.
        """
        for where, codebook in _codebooks(recipe):
            activations = where.endswith("activations")
            kind = self.activation_type if activations else self.weight_type
            types = self.activation_types if activations else self.weight_types
            zero_points = self.activation_zero_points if activations else self.weight_zero_points
            if kind(codebook.qmin, codebook.qmax) is None:
                raise RecipeError(
                    f"{where}: codes from {codebook.qmin} to {codebook.qmax} fit none of the types that the target "
                    f"'{self.name}' stores them in ({', '.join(one.name for one in types)}). Choose another number of "
                    "bits, or the other setting of `symmetric`."
                )
            if not codebook.symmetric and not zero_points:
                raise RecipeError(
                    f"{where}: asymmetric codes have zero points other than 0, which the target '{self.name}' cannot "
                    "hold. Choose symmetric=True."
                )


def _codebooks(recipe: Recipe) -> Iterator[tuple[str, Codebook]]:
    """What each part of a recipe asks for, with the name of the part."""
    for stage in recipe.stages:
        if not isinstance(stage, Quantize):
            continue
        yield "weights", stage.weights.codebook
        if stage.activations is not None:
            yield "activations", stage.activations.codebook
        if stage.edge_bits is not None:
            yield "edge_bits: weights", Codebook(stage.edge_bits, stage.weights.symmetric)
            if stage.activations is not None:
                yield "edge_bits: activations", Codebook(stage.edge_bits, stage.activations.symmetric)
        for name, override in stage.exceptions.items():
            if isinstance(override.weights, Weights):
                yield f"overrides['{name}'].weights", override.weights.codebook
            if isinstance(override.activations, Activations):
                yield f"overrides['{name}'].activations", override.activations.codebook
