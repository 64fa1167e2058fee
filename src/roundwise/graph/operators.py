"""The table of operator families: which ATen operations are layers, which only move numbers, which reduce, and so on.

Every analysis asks this table. Where PyTorch adds an operation, or a model brings one that no family holds yet, this is
the file to change. An operation may belong to several families; large families are unions of small ones.

The functions at the end read what an operation does off its arguments, where the name of the operation is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from roundwise.graph.graph import bind

aten = torch.ops.aten

Operators = frozenset[OpOverload]

# ------------------------------------------------------------------------------------------------ layers, functions

WEIGHTED: Operators = frozenset(
    {
        aten.linear.default,
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
        aten.convolution.default,
    }
)
"""The operations that are layers, if their weight is constant. All take `(input, weight, bias, …)`."""

LAYER_OPERATIONS: Mapping[str, OpOverload] = {
    "linear": aten.linear.default,
    "conv1d": aten.conv1d.default,
    "conv2d": aten.conv2d.default,
    "conv3d": aten.conv3d.default,
    "conv1d with named padding": aten.conv1d.padding,
    "conv2d with named padding": aten.conv2d.padding,
    "conv3d with named padding": aten.conv3d.padding,
    "conv_transpose1d": aten.conv_transpose1d.default,
    "conv_transpose2d": aten.conv_transpose2d.input,
    "conv_transpose3d": aten.conv_transpose3d.input,
}
"""The operation for each kind of layer, as `LinearMap.operation` names it; "same" and "valid" are named paddings."""

NORMALIZATIONS: Operators = frozenset(
    {
        aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.layer_norm.default,
        aten.native_layer_norm.default,
        aten.group_norm.default,
        aten.native_group_norm.default,
        aten.instance_norm.default,
        aten.rms_norm.default,
    }
)
"""Operations that divide by a standard deviation or a root mean square."""

DROPOUTS: Operators = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
    }
)
"""Operations that set random numbers to zero in training, and do nothing in evaluation."""

RECTIFIERS: Operators = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default})
"""The identity from 0 up, and a multiple of it below: f(s x) = s f(x) for every s > 0."""

CLAMPS: Operators = frozenset(
    {
        aten.relu.default,
        aten.relu6.default,
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_min.default,
    }
)
"""Limits from below and above; `clamp_limits` says which."""

EXTREMES: Operators = frozenset({aten.minimum.default, aten.maximum.default})
"""Clamps whose limit may be a tensor, with one number for each channel."""

NONLINEARITIES: Operators = (
    RECTIFIERS
    | CLAMPS
    | {
        aten.elu.default,
        aten.celu.default,
        aten.selu.default,
        aten.gelu.default,
        aten.silu.default,
        aten.mish.default,
        aten.softplus.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.sigmoid.default,
        aten.tanh.default,
    }
)
"""Element-wise functions that may stand for f_a in Eq. 25 of the AdaRound paper."""

FUNCTIONS: Operators = NONLINEARITIES | {
    aten.abs.default,
    aten.clamp_max.default,
    aten.cos.default,
    aten.erf.default,
    aten.exp.default,
    aten.hardshrink.default,
    aten.log.default,
    aten.log_sigmoid.default,
    aten.logical_not.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.rsqrt.default,
    aten.sin.default,
    aten.softshrink.default,
    aten.sqrt.default,
    aten.square.default,
    aten.threshold.default,
    aten.to.dtype,
    aten._to_copy.default,
}
"""Functions of one tensor, element by element; a `prelu` has a slope for each channel as well."""

# ---------------------------------------------------------------------------------------------- sums and products

SUMS: Operators = frozenset({aten.add.Tensor, aten.sub.Tensor})
"""Element by element, of two tensors or of a tensor and a number."""

PRODUCTS: Operators = frozenset({aten.mul.Tensor})
"""Element by element, likewise."""

OF_TWO: Operators = SUMS | PRODUCTS | EXTREMES | {aten.div.Tensor, aten.pow.Tensor_Tensor}
"""All functions of two tensors, element by element."""

MATRIX_PRODUCTS: Operators = frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default})
"""Products of matrices: of the first two arguments."""

FACTORS: Mapping[Any, tuple[int, int]] = {
    **dict.fromkeys(sorted(MATRIX_PRODUCTS, key=str), (0, 1)),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}
"""Products of matrices, with or without a sum, and which arguments are multiplied."""

MATRIX_INPUTS: Mapping[Any, int] = {aten.linear.default: 0, aten.mm.default: 0, aten.addmm.default: 1}
"""Products of a layer's inputs and its weight: which argument holds the inputs."""

TENSOR_PRODUCTS: Operators = frozenset({aten.inner.default, aten.tensordot.default})
"""Sums of products over dimensions of two tensors that the arguments, or the name, tell."""

ATTENTION: Operators = frozenset({aten.scaled_dot_product_attention.default})
"""softmax(q kᵀ / √d) v as one operation."""

FAST_PATH: Operators = frozenset(
    {
        aten._nested_tensor_from_mask.default,
        aten._native_multi_head_attention.default,
        aten._transformer_encoder_layer_fwd.default,
    }
)
"""PyTorch's fast path for transformers in evaluation; the first operation drops the places that a mask marks."""

# ----------------------------------------------------------------------------------------- averages and reductions

AVERAGE_POOLS: Operators = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
"""Averages over windows, which may take in zeros around the values."""

ADAPTIVE_AVERAGE_POOLS: Operators = frozenset(
    {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
)
"""Averages over windows of which the number is given."""

MEANS: Operators = frozenset({aten.mean.default, aten.mean.dim})
"""Averages over whole dimensions."""

BILINEAR_UPSAMPLES: Operators = frozenset({aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default})
"""Weighted averages of neighbours."""

AVERAGES: Operators = AVERAGE_POOLS | ADAPTIVE_AVERAGE_POOLS | MEANS | BILINEAR_UPSAMPLES
"""All operations that give averages of the numbers that they are given."""

MAX_POOLS: Operators = frozenset(
    {
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.adaptive_max_pool2d.default,
    }
)
"""Maxima over windows."""

NEAREST_UPSAMPLES: Operators = frozenset({aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default})
"""Copies of the nearest number."""

WINDOW_DIMS: Mapping[Any, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
    aten.adaptive_avg_pool3d.default: 3,
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
    aten.upsample_bilinear2d.default: 2,
    aten.upsample_bilinear2d.vec: 2,
    aten.upsample_nearest2d.default: 2,
    aten.upsample_nearest2d.vec: 2,
}
"""Operations on windows of the last dimensions, each channel by itself, and how many dimensions that is."""

REDUCTIONS: Operators = MEANS | {
    aten.amax.default,
    aten.amin.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.linalg_vector_norm.default,
    aten.logsumexp.default,
    aten.std.correction,
    aten.var.correction,
}
"""One number for all those along the dimensions `dim`, or along all dimensions where there is no such argument."""

SOFTMAXES: Operators = frozenset({aten.softmax.int, aten.log_softmax.int, aten._softmax.default})
"""Functions along one dimension, `dim`, that depend on all numbers there."""

# ------------------------------------------------------------------------------------------------- moves of numbers

RESHAPES: Operators = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
    }
)
"""All numbers in the same order, in another shape."""

VIEWS: Operators = frozenset({aten.view.default, aten._unsafe_view.default})
"""Reshapes that fail where a copy would be needed."""

SIZED_RESHAPES: Operators = VIEWS | {aten.reshape.default}
"""Reshapes whose second argument is the whole new shape."""

SQUEEZES: Operators = frozenset({aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default})
"""Dimensions of size 1 come or go."""

PERMUTATIONS: Operators = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
"""Dimensions in another order."""

IDENTITIES: Operators = frozenset(
    {aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default}
)
"""The same tensor, or a copy of it."""

COPIES: Operators = frozenset({aten.contiguous.default, aten.clone.default})
"""A copy, which may lie otherwise in memory."""

EXPANSIONS: Operators = frozenset({aten.expand.default, aten.repeat.default})
"""Copies along dimensions."""

SELECTIONS: Operators = frozenset({aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.index_select.default})
"""Some of the places along one dimension."""

REORDERINGS: Operators = frozenset({aten.roll.default, aten.flip.default})
"""The places along some dimensions, `dims`, in another order."""

PIXEL_SHUFFLES: Operators = frozenset({aten.pixel_shuffle.default, aten.pixel_unshuffle.default})
"""Groups of channels become places, or places channels."""

SHUFFLES: Operators = REORDERINGS | PIXEL_SHUFFLES | {aten.channel_shuffle.default}
"""All numbers, in another order."""

JOINS: Operators = frozenset({aten.cat.default, aten.stack.default})
"""Several tensors become one."""

SPLITS: Operators = frozenset(
    {aten.chunk.default, aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.unbind.int}
)
"""Operations that move numbers into several tensors, which `getitem` then takes apart."""

DIMENSION_DROPPING: Operators = frozenset({aten.select.int, aten.unbind.int})
"""Selections and splits of single places, whose dimension is gone."""

PADS: Operators = frozenset({aten.constant_pad_nd.default, aten.pad.default})
"""Numbers around the tensor; they are moves as well if those are 0 (the default) or taken from the tensor."""

MOVES: Operators = (
    RESHAPES
    | SQUEEZES
    | PERMUTATIONS
    | COPIES
    | EXPANSIONS
    | SELECTIONS
    | SHUFFLES
    | NEAREST_UPSAMPLES
    | MAX_POOLS
    | JOINS
)
"""Operations that give one tensor with some of the numbers that they were given, and no others but zeros."""

MATRIX_COPIES: Operators = frozenset(
    {aten.expand.default, aten.repeat.default, aten.view.default, aten.reshape.default, aten.clone.default}
)
"""Operations by which a matrix is copied for each sample."""

STRIDED_READS: Operators = frozenset(
    {aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default}
)
"""Operations that give numbers of the memory behind a tensor, in an order of their own."""

MEMORY_READS: Operators = STRIDED_READS | {aten.view_as_complex.default, aten.view.dtype, aten.view_copy.dtype}
"""Operations that read the memory behind their first argument in its order."""

ALWAYS_CONTIGUOUS: Operators = MATRIX_PRODUCTS | {
    aten.linear.default,
    aten.embedding.default,
    aten.contiguous.default,
}
"""Operations whose result lies in memory in the same order, however their arguments do."""

LIKE: Operators = frozenset(
    {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default}
)
"""Operations that give a tensor of the shape of their input, with other numbers."""

OF_A_SHAPE: Operators = LIKE | frozenset(
    {
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
    }
)
"""Operations that take no more than the shape of their input."""

INTEGER_OF_TWO: Operators = SUMS | PRODUCTS | MATRIX_PRODUCTS
"""Operations that hardware computes on the codes of both operands."""

# --------------------------------------------------------------------------------------- what the arguments tell


def clamp_limits(node: fx.Node) -> tuple[float, float] | None:
    """The ends of the range if the operation is a clamp between numbers, else None.

    Example:
        >>> graph = fx.Graph()
        >>> clamp_limits(graph.call_function(aten.hardtanh.default, (graph.placeholder("x"), 0.0, 6.0)))
        (0.0, 6.0)
    """
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target not in CLAMPS:
        return None
    arguments = bind(node)
    hardtanh = node.target is aten.hardtanh.default
    low, high = (arguments.get(name) for name in (("min_val", "max_val") if hardtanh else ("min", "max")))
    if not all(end is None or isinstance(end, int | float) for end in (low, high)):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def padded_number(pad: fx.Node) -> float | None:
    """The number that a padding puts around a tensor; None where it takes numbers from the tensor itself."""
    arguments = bind(pad)
    return float(arguments["value"] or 0) if arguments.get("mode", "constant") == "constant" else None
