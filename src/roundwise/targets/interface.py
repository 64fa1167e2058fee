"""What a target is: the integers, the float types and the placement of quantizers that a runtime can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from roundwise.errors import RecipeError
from roundwise.numerics.grid import Codebook, Granularity, PerGroup
from roundwise.recipe.settings import Activations, Weights
from roundwise.recipe.stages import Quantize

if TYPE_CHECKING:  # A recipe names its target, and so imports this package.
    from roundwise.recipe.recipe import Recipe


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


UINT4, INT4 = IntegerType("UINT4", 4, signed=False), IntegerType("INT4", 4, signed=True)
UINT8, INT8 = IntegerType("UINT8", 8, signed=False), IntegerType("INT8", 8, signed=True)
UINT16, INT16 = IntegerType("UINT16", 16, signed=False), IntegerType("INT16", 16, signed=True)


@final
@dataclass(frozen=True)
class Target:
    """What one runtime can hold.

    Attributes:
        name: as in the table.
        title: one line for people: which runtime, on which hardware.
        runtime: that files are checked in before they are kept, by its name in the table of runtimes; None where the
            target's own runtime cannot be run, so that files are checked in ONNX Runtime taking the file literally.
        weight_types: in which the codes of weights are stored, narrowest first.
        kernel_weight_types: the types of weights that the runtime's integer kernels multiply. Where activations are
            quantized, weights of fewer bits are stored in one of these, if each scale serves a channel or the whole
            tensor. Empty: each weight in the narrowest type that holds its codes.
        signed_weight_bits: the most bits of signed weights that the runtime multiplies exactly; None where that is as
            many as `weight_types` have.
        weight_zero_points: whether zero points of weights may be other than 0.
        weight_groups: whether neighbouring columns of a weight may have a scale of their own (`PerGroup`).
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
    title: str
    runtime: str | None
    weight_types: tuple[IntegerType, ...]
    kernel_weight_types: tuple[IntegerType, ...]
    signed_weight_bits: int | None
    weight_zero_points: bool
    weight_groups: bool
    activation_types: tuple[IntegerType, ...]
    moves_activation_codes: bool
    activation_zero_points: bool
    quantizes_outputs: bool
    dequantizes_for_each_reader: bool
    float_types: tuple[torch.dtype, ...]
    bias_bits: int | None

    def weight_type(self, qmin: int, qmax: int, *, for_kernels: bool = False, at_least: int = 0) -> IntegerType | None:
        """The type in which codes of a weight are stored, or None where no type holds them.

        Args:
            qmin, qmax: the smallest and the largest code.
            for_kernels: whether integer kernels shall multiply them; False takes the narrowest type.
            at_least: the fewest bits of the type.
        """
        types = [kind for kind in self.weight_types if kind.bits >= at_least and kind.holds(qmin, qmax)]
        fast = [kind for kind in types if kind in self.kernel_weight_types] if for_kernels else []
        return next(iter((*fast, *types)), None)

    def activation_type(self, qmin: int, qmax: int) -> tuple[IntegerType, int] | None:
        """The narrowest type that holds these codes of an activation, and by how much codes are moved; or None.

        Example:
            >>> from roundwise.targets import TARGETS
            >>> kind, moved = TARGETS["ort-cpu"].activation_type(-128, 127)
            >>> kind.name, moved
            ('UINT8', 128)
        """
        span = qmax - qmin
        lows = (qmin, 0, -((span + 1) // 2)) if self.moves_activation_codes else (qmin,)
        for kind in self.activation_types:
            for low in lows:
                if kind.holds(low, low + span):
                    return kind, low - qmin
        return None

    def weight_fault(self, qmin: int, qmax: int, *, zero_points: bool, groups: bool) -> str | None:
        """Why the target cannot hold such codes of a weight, and what to do; None where it can.

        Args:
            qmin, qmax: the smallest and the largest code.
            zero_points: whether zero points may be other than 0.
            groups: whether neighbouring columns have a scale of their own.
        """
        if zero_points and not self.weight_zero_points:
            return self._zero_points_fault()
        if self.weight_type(qmin, qmax) is None:
            return self._types_fault(qmin, qmax, self.weight_types)
        if groups and not self.weight_groups:
            return (
                f"the target '{self.name}' holds one scale per tensor or per channel of a weight, and none per group. "
                "Choose granularity=PerChannel()."
            )
        bits, most = (qmax - qmin).bit_length(), self.signed_weight_bits
        if most is not None and qmin < 0 and most < bits <= INT8.bits:
            return (
                f"signed weights of {bits} bits can overflow the 16-bit sums of the target '{self.name}', and results "
                f"would be wrong without a warning. Choose bits={most} or fewer, or symmetric=False."
            )
        return None

    def activation_fault(self, qmin: int, qmax: int, *, zero_points: bool) -> str | None:
        """Why the target cannot hold such codes of an activation, and what to do; None where it can."""
        if zero_points and not self.activation_zero_points:
            return self._zero_points_fault()
        if self.activation_type(qmin, qmax) is None:
            return self._types_fault(qmin, qmax, self.activation_types)
        return None

    def _types_fault(self, qmin: int, qmax: int, types: tuple[IntegerType, ...]) -> str:
        return (
            f"codes from {qmin} to {qmax} fit none of the types that the target '{self.name}' stores them in "
            f"({', '.join(one.name for one in types)}). Choose another number of bits, or the other setting of "
            "`symmetric`."
        )

    def _zero_points_fault(self) -> str:
        return (
            f"asymmetric codes have zero points other than 0, which the target '{self.name}' cannot hold. Choose "
            "symmetric=True."
        )

    def check(self, recipe: Recipe) -> None:
        """Make sure, before a run, that the target can hold what the recipe asks for.

        Raises:
            RecipeError: names the setting that it cannot hold, and what it can.
        """
        for where, book, granularity in _requests(recipe):
            shifted = not book.symmetric
            if granularity is None:
                fault = self.activation_fault(book.qmin, book.qmax, zero_points=shifted)
            else:
                groups = isinstance(granularity, PerGroup)
                fault = self.weight_fault(book.qmin, book.qmax, zero_points=shifted, groups=groups)
            if fault is not None:
                raise RecipeError(f"{where}: {fault}")


def _requests(recipe: Recipe) -> Iterator[tuple[str, Codebook, Granularity | None]]:
    """What each part of a recipe asks for: the name of the part, codes, and of weights what shares a scale."""
    for stage in recipe.stages:
        if not isinstance(stage, Quantize):
            continue
        granularity = stage.weights.granularity
        yield "weights", stage.weights.codebook, granularity
        if stage.activations is not None:
            yield "activations", stage.activations.codebook, None
        if stage.edge_bits is not None:
            yield "edge_bits: weights", Codebook(stage.edge_bits, stage.weights.symmetric), granularity
            if stage.activations is not None:
                symmetric = stage.activations.codebook.symmetric
                yield "edge_bits: activations", Codebook(stage.edge_bits, symmetric), None
        for name, override in stage.exceptions.items():
            if isinstance(override.weights, Weights):
                yield f"overrides['{name}'].weights", override.weights.codebook, override.weights.granularity
            if isinstance(override.activations, Activations):
                yield f"overrides['{name}'].activations", override.activations.codebook, None
