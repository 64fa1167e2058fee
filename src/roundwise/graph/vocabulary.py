"""All PyTorch operations that a network in a file may have: the vocabulary.

It is every operation of the table of families (`graph/operators.py`), and those below, which networks have and no
analysis asks about. A family that grows makes the vocabulary grow. An operation belongs here if it

- returns new tensors, or views of its operands, and changes nothing;
- depends on its operands and on nothing else: no file, no memory that nobody has written, and no random numbers
  unless an argument says that it runs in training;
- has a result whose shape follows from the shapes of its operands, and a kernel for tensors without numbers (`meta`);
- never reads or writes beside its operands, whatever its arguments are. Where PyTorch does not make sure of that, a
  rule in `artifacts/kernels.py` does. `tests/fuzz` tries each operation with thousands of random arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from roundwise.graph import operators
from roundwise.graph.operators import FAST_PATH, Operators

aten = torch.ops.aten

# ------------------------------------------------------------------------------------------------ number by number

POINTWISE: Operators = frozenset(
    {
        *(aten.acos.default, aten.asin.default, aten.atan.default, aten.tan.default),
        *(aten.cosh.default, aten.sinh.default, aten.erfc.default),
        *(aten.exp2.default, aten.expm1.default, aten.log10.default, aten.log1p.default, aten.log2.default),
        *(aten.ceil.default, aten.floor.default, aten.round.default, aten.round.decimals, aten.trunc.default),
        *(aten.acosh.default, aten.asinh.default, aten.atanh.default, aten.deg2rad.default, aten.rad2deg.default),
        *(aten.erfinv.default, aten.frac.default, aten.hypot.default, aten.logaddexp.default, aten.sinc.default),
        *(aten.digamma.default, aten.lgamma.default, aten.logaddexp2.default, aten.special_entr.default),
        *(aten.xlogy.Tensor, aten.xlogy.Scalar_Other, aten.xlogy.Scalar_Self, aten.heaviside.default),
        *(aten.max.other, aten.min.other, aten.fmax.default, aten.fmin.default, aten.clip.default, aten.clip.Tensor),
        *(aten.copysign.Tensor, aten.copysign.Scalar, aten.sgn.default, aten.positive.default),
        *(aten.float_power.Scalar, aten.float_power.Tensor_Scalar, aten.float_power.Tensor_Tensor),
        *(aten.true_divide.Tensor, aten.angle.default, aten.conj_physical.default),
        *(aten.sign.default, aten.glu.default, aten.logit.default, aten.nan_to_num.default),
        *(aten.isfinite.default, aten.isinf.default, aten.isnan.default),
        *(aten.bitwise_not.default, aten.pow.Scalar, aten.rsub.Scalar, aten.rsub.Tensor),
        *(aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar),
        *(aten.atan2.default, aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor),
        *(aten.addcdiv.default, aten.addcmul.default, aten.lerp.Scalar, aten.lerp.Tensor),
        *(aten.masked_fill.Scalar, aten.masked_fill.Tensor),
        *(aten.where.self, aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf),
    }
)
"""Functions of one or more tensors, element by element."""

COMPARISONS: Operators = frozenset(
    {
        *(aten.eq.Scalar, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar),
        *(aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
        *(aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default),
        *(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_or.Tensor, aten.bitwise_or.Scalar),
        *(aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar),
        *(aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor),
        *(aten.isneginf.default, aten.isposinf.default, aten.signbit.default),
    }
)
"""Functions that give truth values or combine them, element by element."""

WHOLE_DIVISIONS: Operators = frozenset(
    {
        *(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.floor_divide.Scalar),
        *(aten.fmod.Scalar, aten.fmod.Tensor, aten.remainder.Scalar, aten.remainder.Tensor),
    }
)
"""Divisions that are rounded, and their remainders: a processor cannot divide whole numbers by every number."""

CASTS: Operators = frozenset(
    {aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default, aten.copy.default}
)
"""The same numbers in another dtype, or in the shape of another tensor."""

# --------------------------------------------------------------------------------------------- sums and reductions

PRODUCTS_AND_NORMS: Operators = frozenset(
    {
        *(aten.baddbmm.default, aten.dot.default, aten.einsum.default, aten.mv.default, aten.outer.default),
        *(aten.cdist.default, aten.linalg_cross.default, aten.pairwise_distance.default),
        *(aten.cosine_similarity.default, aten.norm.Scalar, aten.norm.ScalarOpt_dim),
    }
)
"""Further sums of products."""

FURTHER_REDUCTIONS: Operators = frozenset(
    {
        *(
            aten.aminmax.default,
            aten.count_nonzero.default,
            aten.count_nonzero.dim_IntList,
            aten.median.dim,
            aten.nansum.default,
        ),
        *(aten.all.default, aten.all.dim, aten.any.default, aten.any.dim),
        *(aten.max.default, aten.max.dim, aten.min.default, aten.min.dim, aten.argmax.default, aten.argmin.default),
        *(aten.prod.default, aten.prod.dim_int, aten.cumsum.default, aten.cumprod.default),
        *(aten.std.default, aten.std.dim, aten.var.default, aten.var.dim),
        *(aten.std_mean.correction, aten.var_mean.correction),
    }
)
"""One number, or one running number, for all those along some dimensions."""

ORDERINGS: Operators = frozenset({aten.argsort.default, aten.sort.default, aten.sort.stable, aten.topk.default})
"""The numbers along a dimension by their size, and where each came from."""

FURTHER_SOFTMAXES: Operators = frozenset({aten._log_softmax.default, aten._safe_softmax.default})
"""Functions along one dimension that depend on all numbers there."""

BATCH_STATISTICS: Operators = frozenset({aten._native_batch_norm_legit.no_stats})
"""Normalization with the mean and the deviation of the batch itself."""

FURTHER_POOLS: Operators = frozenset({aten.max_pool2d_with_indices.default, aten._adaptive_avg_pool2d.default})
"""Maxima and averages over windows, in the form that decompositions give them."""

UPSAMPLES: Operators = frozenset(
    {
        *(aten.upsample_bicubic2d.vec, aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec),
        *(aten.upsample_nearest1d.vec, aten.upsample_nearest3d.vec),
        *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec),
        *(aten._upsample_bicubic2d_aa.vec, aten._upsample_bilinear2d_aa.vec),
        *(aten.grid_sampler.default, aten.grid_sampler_2d.default),
    }
)
"""Weighted averages or copies of neighbours, in another size."""

COMPLEX: Operators = frozenset(
    {
        *(aten.view_as_complex.default, aten.view_as_real.default, aten.complex.default, aten.polar.default),
        *(aten.real.default, aten.imag.default, aten._conj.default, aten._conj_physical.default),
        *(aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default),
        *(aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default),
        *(aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default),
    }
)
"""Complex numbers, and the Fourier transform."""

RECURRENT: Operators = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
"""Layers that go through a sequence step by step."""

# ------------------------------------------------------------------------------------------------- moves of numbers

FURTHER_MOVES: Operators = frozenset(
    {
        *(aten.expand_as.default, aten.reshape_as.default, aten.view_as.default),
        *(aten.movedim.int, aten.movedim.intlist, aten.numpy_T.default, aten.mT.default, aten.swapaxes.default),
        *(aten.broadcast_to.default, aten.repeat_interleave.self_int, aten.tile.default),
        *(aten.diagonal.default, aten.rot90.default, aten.tril.default, aten.triu.default),
        *(aten.meshgrid.default, aten.meshgrid.indexing),
        *(aten.as_strided.default, aten.view.dtype),
        *(aten.im2col.default, aten.col2im.default, aten.unfold.default),
        *(aten.reflection_pad1d.default, aten.reflection_pad2d.default),
        *(aten.replication_pad1d.default, aten.replication_pad2d.default),
        *(aten.select_scatter.default, aten.slice_scatter.default),
    }
)
"""Numbers at other places, some of them more than once or not at all."""

LOOKUPS: Operators = frozenset(
    {
        *(aten.embedding.default, aten.gather.default, aten.index.Tensor, aten.take_along_dim.default),
        *(aten.index_put.default, aten.scatter.src, aten.scatter.value),
        *(aten.one_hot.default, aten.scatter_add.default, aten.scatter_reduce.two),
    }
)
"""Numbers at places that another tensor tells."""

# --------------------------------------------------------------------------------------------------------- creation

CREATIONS: Operators = frozenset(
    {
        *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default),
        *(aten.eye.default, aten.eye.m, aten.fill.Scalar, aten.fill.Tensor),
        *(aten.full.default, aten.ones.default, aten.zeros.default, aten.scalar_tensor.default),
    }
)
"""Tensors whose numbers follow from the arguments."""

SIZES: Operators = frozenset({aten.sym_size.int})
"""The size of a dimension, as a number."""

ZEROED: Mapping[OpOverload, OpOverload] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
    aten.new_empty.default: aten.new_zeros.default,
}
"""Operations that give memory as they find it, and those with the same arguments that fill it with zeros.

The numbers of the first are undefined, so zeros are as good: no network that computes something can tell. A file has
the second, because the first would hand out what the program had in memory before.
"""


def _members(families: Mapping[str, Any]) -> set[OpOverload]:
    """All operations in the sets and mappings among some names."""
    members = (
        member
        for name, family in families.items()
        if name.isupper() and isinstance(family, frozenset | Mapping)
        for member in (family if isinstance(family, frozenset) else [*family.keys(), *family.values()])
    )
    return {member for member in members if isinstance(member, OpOverload)}


VOCABULARY: Operators = frozenset(_members(vars(operators)) | _members(globals())) - ZEROED.keys() - FAST_PATH
"""Every operation that a file may have, besides those of Roundwise (`artifacts/dialect.py`).

PyTorch's fast path for transformers is left out: it trusts the sizes that it is given.
"""
