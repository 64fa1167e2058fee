"""Fold batch-norm into the linear layer or convolution beside it.

In evaluation a batch-norm is an affine map of each channel, with a = γ / √(σ² + ε):

    bn(z) = a z + (β − a μ)

*After* a layer it always folds, channel by channel of the output:

    bn(W x + b) = (a W) x + (a b + β − a μ)

*Before* a layer, the scale goes into the columns and the shift through the weights into the bias:

    W bn(x) + b = (W a) x + (b + W (β − a μ))

which is exact if every tap of every output sees a value: where a convolution pads, the padded zeros would have been
zeros *after* the batch-norm, and a transposed convolution leaves taps out at its borders and between its strides. There
only a batch-norm without shift folds. The fold is computed in float64 and stored in the weight's own dtype.

A batch-norm stays, and goes on working, where its layer's output is used by others too, where the layer's weight is
shared with a call that is not followed by the same batch-norm, where its channels are not the layer's (a linear layer
on sequences), where its statistics come from the batch, and where the folded weights would overflow their dtype.

What a batch-norm after a layer tells of that layer's outputs, their means and deviations, stays behind as
`Graph.moments`. Where several calls share the weight it is true of all of them together and of none alone, and goes.

References:
    Krishnamoorthi 2018, arXiv:1806.08342, Section 3.2; Nagel et al., ICCV 2019, arXiv:1906.04721, Section 5.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, fx

from roundwise.errors import ModelError
from roundwise.graph.analysis.layers import find_layers, has_channels_second, linear_map
from roundwise.graph.analysis.moments import BATCH_NORM, batchnorm_moments
from roundwise.graph.edit import LayerEdit, bypass
from roundwise.graph.graph import Graph, bind
from roundwise.graph.training import FoldedBatchNorm, RunningStatistics


class _Affine(NamedTuple):
    """What a batch-norm does to each channel, float64 `[channels]`."""

    scale: Tensor
    shift: Tensor


def fold_batchnorm(graph: Graph) -> Graph:
    """Return an equal graph with every batch-norm folded that can be folded exactly."""
    graph = graph.copy()
    weights = [layer.node.args[1] for layer in find_layers(graph)]
    for fold in (_fold_after, _fold_before):
        for weight in weights:
            assert isinstance(weight, fx.Node)
            while fold(graph, weight):  # batch-norms may follow each other
                pass
    graph.prune()
    return graph


def _fold_after(graph: Graph, weight: fx.Node) -> bool:
    """Fold the batch-norm after every call of a weight, if it is the same one; say whether it was."""
    calls, norms = list(weight.users), []
    for call in calls:
        layer, users = linear_map(graph, call), list(call.users)
        if layer is None or call.args[1] is not weight or not has_channels_second(call, layer):
            return False
        if len(users) != 1 or users[0].target is not BATCH_NORM or users[0].args[0] is not call:
            return False
        norms.append(users[0])
    if any(norm.args[1:] != norms[0].args[1:] for norm in norms) or any(
        _form(call) != _form(calls[0]) for call in calls
    ):
        return False
    affine, moments = _affine(graph, norms[0]), batchnorm_moments(graph, norms[0])
    if affine is None:
        return False
    edit = LayerEdit(graph, *calls)
    edit.scale_outputs(affine.scale)
    edit.shift_outputs(affine.shift)
    if not edit.is_finite():
        return False
    edit.store()
    record = _record(graph, norms[0], affine)
    for call, norm in zip(calls, norms, strict=True):
        # A second batch-norm after the first changes the channels once more; only one of them can be brought back.
        call.meta["batch_norm"] = record if "batch_norm" not in call.meta else None
        bypass(graph, norm)
    if moments is not None and len(calls) == 1:
        graph.record_moments(str(weight.target), moments)
    return True


def _fold_before(graph: Graph, weight: fx.Node) -> bool:
    """Fold the batch-norm before a weight's only call; say whether it was."""
    call, *others = weight.users
    layer, norm = linear_map(graph, call), call.args[0]
    if others or layer is None or not isinstance(norm, fx.Node) or norm.target is not BATCH_NORM:
        return False
    affine = _affine(graph, norm)
    if affine is None or set(norm.users) != {call} or not has_channels_second(norm, layer):
        return False
    if affine.shift.any() and (layer.pads or layer.transposed):
        return False
    edit = LayerEdit(graph, call)
    edit.absorb((edit.matrix * layer.columns_of_channels(affine.shift).unsqueeze(1)).sum(-1).flatten())
    edit.scale_inputs(affine.scale)
    if not edit.is_finite():
        return False
    edit.store()
    bypass(graph, norm)
    return True


def _record(graph: Graph, norm: fx.Node, affine: _Affine) -> FoldedBatchNorm:
    """What training must know of a batch-norm to bring it back."""
    a = bind(norm)
    variance, statistics = graph.constant(a["running_var"]), str(a["running_mean"].target)
    assert variance is not None
    running = graph.training.running_statistics.get(statistics, RunningStatistics(a["momentum"]))
    origin = graph.training.origins.get(str(a["weight"].target)) if a["weight"] is not None else None
    return FoldedBatchNorm(
        name=statistics.rpartition(".")[0],
        gain=affine.scale.abs(),
        variance=variance.double(),
        eps=a["eps"],
        momentum=running.momentum,
        affine=a["weight"] is not None,
        batches=running.batches,
        trainable=origin is None or origin.trainable,
    )


def _form(call: fx.Node) -> tuple[object, ...]:
    """What must agree between the calls of one weight to give them one new bias and the same matrix."""
    return call.target, bind(call)["bias"], bind(call).get("groups"), bind(call).get("transposed")


def _affine(graph: Graph, norm: fx.Node) -> _Affine | None:
    """None where the batch-norm takes its statistics from the batch, or where one of its tensors is no constant."""
    a = bind(norm)
    constants = {name: graph.constant(a[name]) for name in ("weight", "bias", "running_mean", "running_var")}
    gamma, beta, mean, variance = constants.values()
    if (
        a["training"]
        or mean is None
        or variance is None
        or any(value is None and a[name] is not None for name, value in constants.items())
    ):
        return None
    for name, value in constants.items():
        if value is not None and not value.isfinite().all():
            raise ModelError(
                f"'{a[name].target}', the {name} of a batch-norm, has "
                f"{int((~value.isfinite()).sum())} numbers of {value.numel()} that are NaN or infinite. Such channels "
                "compute nothing: load sound weights and statistics."
            )
    if (variance < 0).any():
        raise ModelError(
            f"'{a['running_var'].target}', the running_var of a batch-norm, has {int((variance < 0).sum())} negative "
            f"numbers of {variance.numel()}. No variance is negative: load sound statistics."
        )
    scale = (variance.double() + a["eps"]).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -scale * mean.double()
    return _Affine(scale, shift if beta is None else shift + beta.double())
