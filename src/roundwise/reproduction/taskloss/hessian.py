"""The Hessian of the task loss by one layer's weights.

With the cross-entropy L = −Σ_k t_k log p_k between targets t and the network's probabilities p = softmax(z), and d the
change of the layer's weights, all in one vector, a second order expansion gives

    E [L(w + d) − L(w)]  ≈  gᵀ d + ½ dᵀ H d                                                 (Eq. 12)

and for a network that has converged g ≈ 0, which leaves

    dᵀ H d,        H = E ∂²L/∂w²                                                            (Eq. 13)

*Exact*: the gradient is differentiated once more, one weight after the other, each time for a whole batch of samples.
So the cost is that of some four passes through the network for every weight. H need not be positive where activation
functions are smooth: the loss may curve down, and what the expansion promises there may lie outside its reach.

*Gauss–Newton*: with J = ∂z/∂w, for each sample,

    H = E [ Jᵀ (diag p − p pᵀ) J  +  Σ_k (p_k − t_k) ∂²z_k/∂w² ]

and the first term alone is never negative. It does not depend on targets, and takes one backward pass for each sample
and class. Where the logits are linear in the layer's weights (it is the last one) the second term is zero. It is zero
too where t = p, that is for the network's own probabilities: then both kinds are the same, and g = 0 exactly. And where
all that follows the layer is piecewise linear (ReLU, max pooling, other layers), as in a ResNet, so are the logits in
the weights of one layer, and derivatives see no second term either: there `GaussNewton()` gives the exact H (and
sooner: for ResNet-20's first layer and 32 images in 8 seconds of one core instead of 119).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from roundwise.data.labels import as_labels
from roundwise.engine.calibration import Batch, Calibration, DataFree, read_calibration
from roundwise.engine.network import Network, facts_of, graph_of
from roundwise.engine.rewriting import folded
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.graph import Graph
from roundwise.numerics.grid import Grid
from roundwise.recipe.checks import check_whole_number
from roundwise.recipe.settings import Weights
from roundwise.statistics import Nothing
from roundwise.wording import did_you_mean

LIMIT = 2048
"""Weights of a layer that is not too large: the paper's, ResNet-18's first, has 9,408; ResNet-20's first has 432."""


@final
@dataclass(frozen=True)
class PredictedClasses:
    """In place of labels: for every sample the class that the float network gives the highest probability."""


@final
@dataclass(frozen=True)
class PredictedProbabilities:
    """In place of labels: the float network's probabilities, so that the loss is least at the float weights."""


@final
@dataclass(frozen=True)
class ExactHessian:
    """All second derivatives: one double backward pass for every weight and batch."""


@final
@dataclass(frozen=True)
class GaussNewton:
    """Without the logits' own curvature, so never negative: one backward pass for every sample and class."""


@final
@dataclass(frozen=True, eq=False)
class TaskHessian:
    """How the task loss changes with one layer's weights, to second order; means over the samples.

    Attributes:
        layer: its name.
        weight: the float matrix, after rewrites such as batch-norm folding.
        hessian: H, symmetric; the order of weights is that of `weight.flatten()`.
        gradient: g.
        samples: how many samples it is a mean over.
    """

    layer: str
    weight: Float[Tensor, "groups rows cols"]
    hessian: Float[Tensor, "weights weights"]
    gradient: Float[Tensor, "weights"]
    samples: int

    def grid(self, weights: Weights) -> Grid:
        """The grid that a recipe with these weights gives the layer.

        Raises:
            RecipeError: its ranges are chosen by looking at the layer's inputs, or it does not fit the layer.
        """
        if weights.ranges.needs is not Nothing:
            raise RecipeError(
                f"{weights.ranges!r} chooses a grid by the layer's inputs, which are not known here. Take MinMax() or "
                "WeightMSE(), which look at weights alone."
            )
        return weights.ranges.estimate(self.weight, weights.codebook, weights.granularity, Nothing(), self.layer)

    def cost(self, matrix: Float[Tensor, "groups rows cols"], *, first_order: bool = False) -> float:
        """dᵀ H d (Eq. 13), twice the expected rise of the loss, for these weights in place of the float ones.

        Args:
            matrix: weights, such as `grid.dequantize(codes)`.
            first_order: add 2 gᵀ d, so that the sum is twice Eq. 12.
        """
        difference = (matrix.double() - self.weight.double()).flatten()
        cost = difference @ self.hessian.double() @ difference
        return float(cost + 2 * self.gradient.double() @ difference if first_order else cost)


def task_hessian(
    model: nn.Module | ExportedProgram | Network,
    layer: str,
    inputs: Any,
    labels: Tensor | Sequence[int] | PredictedClasses | PredictedProbabilities,
    *,
    curvature: ExactHessian | GaussNewton = ExactHessian(),
    batch_size: int = 32,
    limit: int = LIMIT,
) -> TaskHessian:
    """The Hessian of the cross-entropy by the weights of one layer of a classifier (Eq. 13).

    All other layers stay in float, and so does this one: H is taken at the trained weights. The gradient comes with it,
    and whether to use it is for `solve_qubo` to be told; the paper drops it.

    Args:
        model: as for `quantize`; it returns logits `[samples, classes]`.
        layer: its name as in recipes and reports.
        inputs: samples as for `quantize`.
        labels: the class of every sample, or what of the network's own to take instead.
        curvature: `ExactHessian()` or `GaussNewton()`.
        batch_size: samples that are differentiated at a time; `GaussNewton` takes them one by one.
        limit: the most weights that the layer may have.

    Raises:
        RecipeError: there is no such layer, or a setting is none of its choices.
        CalibrationError: samples as for `quantize`; labels that are missing, too few or too many, or no classes.
        ModelError: too many weights, no logits, or logits that cannot be differentiated by the weights.
        CaptureError: as for `quantize`.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 3.1.
        Schraudolph, Neural Computation 14(7), 2002, for Gauss–Newton.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
        >>> task = task_hessian(model, "0", torch.randn(4, 1, 4, 4), torch.tensor([0, 2, 1, 0]))
        >>> task.hessian.shape
        torch.Size([18, 18])
    """
    facts = facts_of(model)
    if not isinstance(curvature, ExactHessian | GaussNewton):
        raise RecipeError(f"curvature is {curvature!r}; it must be ExactHessian() or GaussNewton().")
    check_whole_number("batch_size", batch_size, at_least=1)
    check_whole_number("limit", limit, at_least=1)
    if isinstance(inputs, DataFree):
        raise CalibrationError("the task loss is a mean over samples: give inputs, where `DataFree` has none.")
    with isolated_torch_state(facts.device), ActivationStore(default_budget(facts.device), facts.device) as store:
        samples = read_calibration(inputs, facts.signature, batch_size, store)
        targets = _read_labels(labels, samples.samples)
        graph = folded(graph_of(model, *samples.example(2, facts.device)))
        chosen = _find(graph, layer)
        network = _Network(graph, chosen, samples, store)
        _check_size(chosen, network.weight, limit)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # other kernels of attention have one derivative only
            accumulate = _exact if isinstance(curvature, ExactHessian) else _gauss_newton
            gradient, hessian = accumulate(network, targets)
    count = samples.samples
    matrix = network.weight.reshape(chosen.map.matrix_shape).float()
    return TaskHessian(chosen.name, matrix, (hessian + hessian.T) / (2 * count), gradient / count, count)


Targets = Callable[[Tensor, int], Tensor]
"""From logits `[samples, classes]` and the number of samples before them, the probabilities that are the targets."""


@final
class _Network:
    """The float network as a function of one layer's weights."""

    def __init__(self, graph: Graph, layer: Layer, samples: Calibration, store: ActivationStore) -> None:
        self.layer, self._samples, self._store = layer, samples, store
        graph = graph.copy()
        value = graph.constants[layer.weight]
        # A constant for the layer alone: what else reads a shared weight stays as it is.
        node = graph.add_constant(f"{layer.weight}_varied", value)
        nodes = {node.name: node for node in graph.operations.nodes}
        for call in (nodes[call.name] for call in layer.calls):
            call.args = (call.args[0], node, *call.args[2:])
        self._module, self._name, self._batch = graph.module(), str(node.target), graph.batch
        self.weight = layer.map.to_matrix(value).flatten()

    def vector(self) -> Tensor:
        """The weights, to differentiate by."""
        return self.weight.clone().requires_grad_()

    def zeros(self, *shape: int) -> Tensor:
        """To sum derivatives in: float32 or better."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.zeros(shape, dtype=dtype, device=self.weight.device)

    def batches(self, *, single: bool) -> Iterator[Batch]:
        """The samples' leaves; one sample at a time where that is asked for and the network takes it."""
        for batch in self._samples.batches:
            leaves = [self._store.fetch(leaf) if isinstance(leaf, Tensor) else leaf for leaf in batch]
            count = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())
            step = 1 if single and self._batch is None else count
            for at in range(0, count, step):
                yield [leaf[at : at + step] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]

    def logits(self, vector: Tensor, leaves: Batch) -> Tensor:
        """`[samples, classes]`, float32 or better."""
        weight = self.layer.map.to_weight(vector.reshape(self.layer.map.matrix_shape))
        args, kwargs = pytree.tree_unflatten(leaves, self._samples.spec)
        logits = functional_call(self._module, {self._name: weight}, args, kwargs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(
                f"the network returns {found}; a cross-entropy needs logits, one tensor [samples, classes]. Wrap the "
                "network in a module that returns them alone."
            )
        if not logits.requires_grad:
            raise ModelError(
                f"the network's logits do not depend on the weights of layer '{self.layer.name}' in a way that can be "
                "differentiated: an operation in between has no gradient, or the layer serves another output. Choose "
                "another layer, or round this one by its own output's error (`quantize`)."
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _exact(network: _Network, targets: Targets) -> tuple[Tensor, Tensor]:
    """Sums over the samples of the gradient and of the Hessian."""
    size, seen = network.weight.numel(), 0
    gradient, hessian = network.zeros(size), network.zeros(size, size)
    for leaves in network.batches(single=False):
        vector = network.vector()
        logits = network.logits(vector, leaves)
        loss = -(targets(logits.detach(), seen) * logits.log_softmax(1)).sum()
        seen += len(logits)
        try:
            (slope,) = torch.autograd.grad(loss, vector, create_graph=True)
            gradient += slope.detach()
            for index in range(size if slope.requires_grad else 0):
                (row,) = torch.autograd.grad(slope[index], vector, retain_graph=True)
                hessian[index] += row
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise ModelError(
                f"the loss cannot be differentiated twice by the weights of layer '{network.layer.name}': {error}. "
                "Take curvature=GaussNewton(), which needs first derivatives only."
            ) from error
    return gradient, hessian


def _gauss_newton(network: _Network, targets: Targets) -> tuple[Tensor, Tensor]:
    """The same, the Hessian without the curvature of the logits."""
    size, seen = network.weight.numel(), 0
    gradient, hessian = network.zeros(size), network.zeros(size, size)
    for leaves in network.batches(single=True):
        vector = network.vector()
        logits = network.logits(vector, leaves)
        probabilities = logits.detach().softmax(1)
        error = probabilities - targets(logits.detach(), seen)
        seen += len(logits)
        for sample, p in enumerate(probabilities):
            rows = [torch.autograd.grad(logit, vector, retain_graph=True)[0] for logit in logits[sample]]
            jacobian = torch.stack(rows).to(hessian)
            mean = p @ jacobian
            gradient += error[sample] @ jacobian
            centred = jacobian - mean  # Jᵀ (diag p − p pᵀ) J = Σ_k p_k (J_k − m)ᵀ (J_k − m),  m = Σ_k p_k J_k
            hessian.addmm_(centred.T * p, centred)
    return gradient, hessian


def _find(graph: Graph, name: str) -> Layer:
    layers = {layer.name: layer for layer in find_layers(graph)}
    if name not in layers:
        raise RecipeError(
            f"the model has no layer {name!r} to quantize. Choose one of: {', '.join(layers) or '(it has none)'}."
            f"{did_you_mean(name, layers)}"
        )
    return layers[name]


def _check_size(layer: Layer, weight: Tensor, limit: int) -> None:
    if not torch.isfinite(weight).all():
        broken = int((~torch.isfinite(weight)).sum())
        raise ModelError(
            f"layer '{layer.name}' has {broken} weights that are NaN or infinite, of {weight.numel()}, so the loss "
            "has no value. Load sound weights."
        )
    count = weight.numel()
    if count > limit:
        size = count * count * torch.promote_types(weight.dtype, torch.float32).itemsize
        raise ModelError(
            f"layer '{layer.name}' has {count:,} weights, more than limit={limit:,}: the Hessian of the task loss "
            f"would be a matrix of {count:,} × {count:,} numbers, {size / 2**20:,.0f} MiB, and the exact one takes "
            f"{count:,} double backward passes for every batch. Round this layer by its own output's error, which "
            "needs neither (`quantize` with GramAdaRound() or CrossEntropyMethod()), or raise the limit."
        )


def _read_labels(labels: object, samples: int) -> Targets:
    """The targets that labels stand for.

    Raises:
        CalibrationError: they are no labels, or not one for each sample.
    """
    if isinstance(labels, PredictedProbabilities):
        return lambda logits, _: logits.softmax(1)
    if isinstance(labels, PredictedClasses):
        return lambda logits, _: nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits)
    if labels is None:
        raise CalibrationError(
            "there are no labels. Give the class of every sample; PredictedClasses() or PredictedProbabilities() takes "
            "the network's own predictions."
        )
    classes = as_labels(labels, samples, "task_hessian", CalibrationError)

    def targets(logits: Tensor, before: int) -> Tensor:
        here, count = classes[before : before + len(logits)], logits.shape[1]
        wrong = here >= count
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise CalibrationError(
                f"the label of sample {before + first} is {int(here[first])}, but the network has {count} classes, "
                f"0 to {count - 1}. Number the classes as the network was trained on them."
            )
        return nn.functional.one_hot(here, count).to(logits)

    return targets
