"""Compare a captured graph with its model in other ways of use than the usual one.

1. In other memory layouts, and for inputs that require gradients, if the model's code asks for these (`sizes.py`).
2. With one tensor for several inputs.
3. In training mode, if parts of the model are in it.

A graph that differs is right in the usual case: it takes contiguous inputs only, or the report says what is left out.
"""

from __future__ import annotations

import warnings

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from roundwise.errors import CalibrationError
from roundwise.frontends.checks import attempt, difference_of, run
from roundwise.frontends.double import Double
from roundwise.frontends.exporting import Inputs, take
from roundwise.frontends.settings import without_fast_path
from roundwise.graph.graph import Graph


def depends_on_layout(double: Double, graph: Graph, inputs: Inputs) -> bool:
    """Whether the model computes something else where the same values lie otherwise in memory.

    The graph was captured with contiguous inputs. It is compared with the model on two samples whose channels come
    last, whose dimensions stand in reverse order, and which are a part of a larger tensor.
    """
    batch = take(inputs, graph.batch or 2)
    for layout in (_channels_last, _reversed, _part_of_larger):
        with warnings.catch_warnings(action="ignore"), without_fast_path():
            try:
                expected = run(double.another(), pytree.tree_map_only(Tensor, layout, batch), copies=False)
            except CalibrationError:
                continue  # the model refuses that layout itself
        if difference_of(expected, graph, pytree.tree_map_only(Tensor, layout, batch)):
            return True
    return False


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else _reversed(tensor)


def _reversed(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def _part_of_larger(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor], -1).narrow(-1, 0, tensor.shape[-1]) if tensor.dim() else tensor.clone()


def note_on_gradients(double: Double, graph: Graph, inputs: Inputs) -> tuple[str, ...]:
    """A note if the model computes something else for inputs whose gradients are wanted."""
    batch = take(inputs, graph.batch or 2)
    wanting = pytree.tree_map_only(
        Tensor, lambda it: it.clone().requires_grad_(it.is_floating_point() or it.is_complex()), batch
    )
    try:
        with warnings.catch_warnings(action="ignore"), without_fast_path(), torch.enable_grad():
            expected = run(double.another(copies_weights=True), wanting)
    except CalibrationError:
        return ()
    difference = difference_of(pytree.tree_map_only(Tensor, Tensor.detach, expected), graph, batch)
    if not difference:
        return ()
    return (
        f"the model's code does something else for inputs that require gradients: on samples, {difference}. The "
        "network computes what the model computes for inputs that do not",
    )


def note_on_same_inputs(double: Double, graph: Graph, inputs: Inputs) -> tuple[str, ...]:
    """A note if the model computes something else where one tensor is given for several inputs.

    Its code may ask whether two inputs are the same object, or write to one and read the other.
    """
    leaves, spec = pytree.tree_flatten(take(inputs, graph.batch or 2))
    first: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    same = [
        first.setdefault((leaf.shape, leaf.dtype), leaf) if isinstance(leaf, Tensor) and leaf.dim() else leaf
        for leaf in leaves
    ]
    if all(one is other for one, other in zip(leaves, same, strict=True)):
        return ()
    distinct = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in same]
    try:
        with warnings.catch_warnings(action="ignore"), without_fast_path():
            expected = run(double.another(), pytree.tree_unflatten(same, spec), copies=False)
    except CalibrationError:
        return ()  # the model does not run on such values
    difference = difference_of(expected, graph, pytree.tree_unflatten(distinct, spec))
    if not difference:
        return ()
    return (
        f"the model's code does something else where one tensor is given for several inputs: on samples, {difference}. "
        "The network computes what the model computes for inputs of their own",
    )


_MOST_NAMES = 5
"""Most parts in training mode that a note names."""


def note_on_training(double: Double, graph: Graph, inputs: Inputs) -> tuple[str, ...]:
    """A note if parts of the model are in training mode, and it computes something else there.

    Random numbers may show no difference on a few samples, so parts that are known to differ count too.
    """
    known = [name for name in double.trained if _differs_in_training(double.module.get_submodule(name))]
    devices = {it.device for it in (*double.module.parameters(), *double.module.buffers()) if it.is_cuda}
    difference = ""
    with torch.random.fork_rng(devices), warnings.catch_warnings(action="ignore"), without_fast_path():
        batch = take(inputs, graph.batch or 2)
        expected, failure = attempt(double.in_the_models_modes(), batch)
        if failure is None:
            difference = difference_of(expected, graph, batch)
    if not known and not difference:
        return ()
    names = known or double.trained
    named = [
        f"'{name}' ({type(double.module.get_submodule(name)).__name__})" if name else "the model itself"
        for name in names[:_MOST_NAMES]
    ]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    seen = f": on samples, {difference}" if difference else ""
    return (
        f"in training mode when the model was captured: {', '.join(named)}{more}. As it is, the model computes "
        f"something else than the network{seen}. The network computes what the model computes after `model.eval()`",
    )


def _differs_in_training(part: nn.Module) -> bool:
    """Whether a module of PyTorch is known to compute something else in training mode."""
    match part:
        case nn.modules.dropout._DropoutNd():
            return part.p > 0
        case nn.modules.batchnorm._NormBase():
            return part.track_running_stats
        case nn.MultiheadAttention() | nn.RNNBase():
            return part.dropout > 0
    return isinstance(part, nn.RReLU)
