"""Products of a value with a constant, written as sums over shared dimensions, become linear layers.

A matrix product, `einsum` or `tensordot` with one constant operand multiplies and sums over dimensions. Name each
dimension by a letter, as `einsum` does: `oi,bit->bot` is `matrix @ x`. The letters of the value fall into two kinds,
and so do those of the constant:

    summed    in both operands, not in the result         →  the inputs of the layer
    kept      in the value and the result                 →  samples and positions
    made      in the constant and the result              →  the outputs of the layer

With them, the product is

    1. permute the value to (kept…, summed…), and flatten the summed dimensions into one
    2. linear, whose weight is the constant as a matrix [made, summed]
    3. unflatten the made dimensions, and permute to the order of the result

Steps that change nothing are left out. A letter that is in all three, a product for each group, makes no linear layer;
nor does one that stands twice in an operand, or is summed in one operand only. A product with a vector makes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.graph import bind
from roundwise.graph.operators import TENSOR_PRODUCTS

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Contraction:
    """A product of a value and a constant, with a letter for each dimension.

    Attributes:
        value, constant, result: the letters of the dimensions, in order.
    """

    value: str
    constant: str
    result: str

    @property
    def summed(self) -> str:
        """The dimensions over which the product sums, in the order of the constant."""
        return "".join(letter for letter in self.constant if letter in self.value and letter not in self.result)

    @property
    def kept(self) -> str:
        """The dimensions of the value that the result has, in the order of the result."""
        return "".join(letter for letter in self.result if letter in self.value)

    @property
    def made(self) -> str:
        """The dimensions of the constant that the result has, in the order of the result."""
        return "".join(letter for letter in self.result if letter in self.constant)

    def is_linear(self, shape: torch.Size) -> bool:
        """Whether it is a linear layer for values of this shape, whose sizes may be symbols."""
        once = all(len(set(letters)) == len(letters) for letters in (self.value, self.constant, self.result))
        sets = set(self.value), set(self.constant), set(self.result)
        grouped = bool(sets[0] & sets[1] & sets[2])
        complete = sets[0] ^ sets[1] == sets[2]
        sizes = [shape[self.value.index(letter)] for letter in self.summed]
        fixed = all(isinstance(size, int) for size in sizes)
        return once and complete and not grouped and fixed and all((self.summed, self.kept, self.made))

    def matrix(self, constant: Tensor) -> Tensor:
        """The weight of the layer, `[made, summed]`."""
        order = [self.constant.index(letter) for letter in self.made + self.summed]
        rows = math.prod(constant.shape[self.constant.index(letter)] for letter in self.made)
        return constant.permute(order).reshape(rows, -1)


def contraction_of(node: fx.Node, value: int) -> Contraction | None:
    """The contraction that an operation computes; None if it is none, or depends on broadcasting.

    Args:
        node: an `einsum`, or one of `TENSOR_PRODUCTS`.
        value: which of the two operands is not constant, 0 or 1.
    """
    if node.target is aten.einsum.default:
        equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
        assert isinstance(operands, list | tuple)
        inputs, arrow, result = equation.partition("->")
        letters = inputs.split(",")
        if len(letters) != 2 or "." in equation:
            return None
        if not arrow:  # the letters that stand once, in alphabetical order
            result = "".join(sorted(letter for letter in {*inputs} - {","} if inputs.count(letter) == 1))
    elif node.target in TENSOR_PRODUCTS:
        arguments = bind(node)
        letters = ["abcdefghijkl"[: _dims(arguments["self"])], "ABCDEFGHIJKL"[: _dims(arguments["other"])]]
        pairs = arguments.get("dims_self", [-1]), arguments.get("dims_other", [-1])  # `inner` sums over the last ones
        for one, other in zip(*pairs, strict=True):
            letters[1] = letters[1].replace(letters[1][other], letters[0][one])
        result = "".join(it for it in letters[0] + letters[1] if (it in letters[0]) != (it in letters[1]))
    else:
        return None
    return Contraction(letters[value], letters[1 - value], result)


def contraction_with_matrix_first(dims: int) -> Contraction:
    """`matrix @ value`, for a value with this many dimensions."""
    stacks = "abcdefgh"[: dims - 2]
    return Contraction(stacks + "ij", "oi", stacks + "oj")


def _dims(node: Any) -> int:
    return int(node.meta["val"].dim())


def linear_from(graph: fx.Graph, product: fx.Node, value: fx.Node, weight: fx.Node, how: Contraction) -> fx.Node:
    """Add the operations that compute a contraction with a linear layer, before the product; returns the result.

    Args:
        graph: in which the product stands.
        product: the operation that they will replace; its place in the user's code is theirs.
        value: the operand that is not constant.
        weight: holds `how.matrix` of the constant.
        how: the contraction.
    """

    def call(target: Any, source: fx.Node, *rest: Any) -> fx.Node:
        node = graph.call_function(target, (source, *rest))
        node.meta = {**product.meta, "val": target(source.meta["val"], *rest)}
        return node

    def permuted(source: fx.Node, letters: str, order: str) -> fx.Node:
        if letters == order:
            return source
        return call(aten.permute.default, source, [letters.index(letter) for letter in order])

    with graph.inserting_before(product):
        rows = permuted(value, how.value, how.kept + how.summed)
        if len(how.summed) > 1:
            rows = call(aten.flatten.using_ints, rows, -len(how.summed), -1)
        linear = graph.call_function(aten.linear.default, (rows, weight))
        shape = rows.meta["val"].shape[:-1]
        outputs = weight.meta["val"].shape[0]
        linear.meta = {**product.meta, "val": rows.meta["val"].new_empty((*shape, outputs))}
        result = linear
        if len(how.made) != 1:
            wanted = product.meta["val"].shape
            sizes = [int(wanted[how.result.index(letter)]) for letter in how.made]
            result = call(aten.unflatten.int, linear, -1, sizes)
        return permuted(result, how.kept + how.made, how.result)
