"""Which sizes of the inputs a captured graph depends on.

Capture fixes all sizes but the batch, and the dimensions that the user wants to be dynamic. If the model's code
computes with a size (`x.sum((2, 3)) / x.shape[2]`, `F.interpolate(y, size=x.shape[-2:])`), the result is a number in
the graph, and another size would give wrong outputs. PyTorch's own operations take any size, and stay in the graph:

1. `SizeWatch` sees during capture whether Python code reads a size other than that of the batch.
2. If it reads none, the graph does not depend on sizes, as far as Python code goes. Then `free_sizes` runs model and
   graph on samples of another size, which also shows what PyTorch's decompositions have written into the graph.
   Dimensions in which both agree are free. A size of 1 is tried too: the layout in memory may depend on it.
3. All other dimensions are fixed.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, final

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from roundwise.errors import RecipeError
from roundwise.frontends.scripted import Scripted
from roundwise.graph.graph import InputSpec
from roundwise.graph.sizes import Dynamic, Range, VariableSize

_READS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.nbytes.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.numel,
    Tensor.nelement,
    Tensor.stride,
    Tensor.__len__,
    Tensor.__iter__,
    Tensor.unbind,
    Tensor.split,
    Tensor.storage_offset,
    Tensor.is_same_size,
    Tensor.unsafe_split,
    torch.is_same_size,
    torch.unsafe_split,
    torch.numel,
    torch.unbind,
    torch.split,
}
"""Functions that tell Python code a size, or return as many tensors as a size says."""

_CHUNKS = {Tensor.chunk, Tensor.unsafe_chunk, torch.chunk, torch.unsafe_chunk}
"""Functions that give as many tensors as they are asked for, or fewer where a size is too small."""

_LAYOUT_READS = {
    Tensor.is_contiguous,
    Tensor.stride,
    Tensor.dim_order,
    Tensor.storage_offset,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor._is_view,
    vars(torch._C.TensorBase)["_base"].__get__,
}
"""Functions that tell Python code how a tensor lies in memory."""

_GRADIENT_READS = {vars(torch._C.TensorBase)[name].__get__ for name in ("requires_grad", "is_leaf", "grad_fn")}
"""Functions that tell Python code whether the gradient of a tensor is wanted."""

_COMPUTE_WITH_SIZES = {
    F.multi_head_attention_forward,
    F.local_response_norm,
    F.max_unpool1d,
    F.max_unpool2d,
    F.max_unpool3d,
    F.lp_pool1d,
    F.lp_pool2d,
    F.lp_pool3d,
    F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d_with_indices,
    torch.stft,
    torch.istft,
    torch.tensordot,
}
"""Functions of PyTorch, written in Python, whose own code computes with sizes."""

_POOLS = {
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d_with_indices,
}
"""Functions that keep a size if they are given None for it."""

_HARMLESS = {
    method.__code__
    for kind in (nn.RNNBase, nn.RNN, nn.LSTM, nn.GRU)
    for method in vars(kind).values()
    if inspect.isfunction(method)
}
"""Code of PyTorch that reads sizes only to check them, or for the batch and the features."""

_MACHINERY = ("torch._export", "torch.export", "torch.fx", "torch.overrides", "torch.utils", "roundwise")
"""Modules whose code runs between a model's code and the function that it calls, while the model is captured."""

_SMALL = 64
"""Try half of a size from 64 on, and twice a smaller one: a larger input takes longer, and a smaller one may not do."""


@final
class SizeWatch(TorchFunctionMode):
    """Sees whether a model's code reads a size that is a number during capture, and what else it asks of tensors.

    Attributes:
        reads: whether it reads such a size.
        asks_layout: whether it asks how a tensor lies in memory.
        asks_gradient: whether it asks if the gradient of a tensor is wanted.
        attends: whether attention runs along a dimension whose size is a symbol, which is the batch if no other is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # What TorchScript has compiled asks without a call that can be seen here.
        scripted = any(isinstance(part, Scripted) for part in model.modules())
        self._model, self.reads, self.asks_layout, self.asks_gradient = model, scripted, scripted, scripted
        self.attends = False
        own = (model.forward, type(model).__call__, model._call_impl)
        codes = [inspect.unwrap(one).__code__ if hasattr(one, "__code__") else None for one in own]
        # PyTorch's own `__call__` also runs other modules, around the model for instance.
        self._codes = set(codes) - {nn.Module.__call__.__code__, nn.Module._call_impl.__code__}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # a branch or loop, in which nothing may be noted down
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward and args[0].dim() == 3:
            self.attends = self.attends or isinstance(args[0].shape[0], torch.SymInt)
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.reads = True  # the model's code may go on: `try: y = x + table`
            raise
        if func in _CHUNKS:
            self.reads = self.reads or len(result) != (args[1] if len(args) > 1 else kwargs.get("chunks"))
        if not self.reads and func in _READS:
            frame = _caller(sys._getframe(1))
            self.reads = self._is_of_inputs(args) and _tells_a_number(result, frame) and self._is_by_model(frame)
        self.reads = self.reads or _computes_with_sizes(func, args, kwargs)
        if func in _LAYOUT_READS:
            self.asks_layout = self.asks_layout or self._is_by_model(_caller(sys._getframe(1)))
        elif func in _GRADIENT_READS:
            self.asks_gradient = self.asks_gradient or self._is_by_model(_caller(sys._getframe(1)))
        return result

    def _is_of_inputs(self, args: tuple[Any, ...]) -> bool:
        """Whether it is the size of a value that may depend on the inputs, not of a parameter or buffer."""
        value = args[0] if args else None
        return not isinstance(value, nn.Parameter) and all(value is not buffer for buffer in self._model.buffers())

    def _is_by_model(self, frame: FrameType | None) -> bool:
        """Whether the model or one of its hooks is running, and not the machinery around it or harmless code."""
        if frame is not None and frame.f_code in _HARMLESS:
            return False
        while frame is not None:
            called = frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self")
            if frame.f_code in self._codes or (called and type(called) is type(self._model)):
                return True
            frame = frame.f_back
        return None in self._codes


def _caller(frame: FrameType) -> FrameType:
    """The frame that called a function of PyTorch, behind those of other modes that stand in between."""
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_MACHINERY):
        frame = frame.f_back
    return frame


def has_control_flow(operations: fx.Graph) -> bool:
    """Whether a graph has branches or loops, into which the watch does not see."""
    return any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in operations.nodes)


def _computes_with_sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of PyTorch, whose own code the watch does not see, makes numbers of sizes."""
    if func is F.interpolate:
        return bool(kwargs.get("recompute_scale_factor"))
    return func in _COMPUTE_WITH_SIZES or (func in _POOLS and None in pytree.tree_leaves((args[1:2], kwargs)))


def _tells_a_number(result: Any, frame: FrameType) -> bool:
    """Whether code learns a number from a size: not if it is the batch alone."""
    if isinstance(result, torch.SymInt):
        return not result.node.expr.is_Symbol
    if isinstance(result, tuple) and len(result) and isinstance(result[0], torch.SymInt) and _takes_first(frame):
        return not result[0].node.expr.is_Symbol
    return not isinstance(result, tuple) or any(not isinstance(size, torch.SymInt) for size in result)


def _takes_first(frame: FrameType) -> bool:
    """Whether the code continues with `[0]`, as in `x.shape[0]`."""
    following = [one for one in dis.get_instructions(frame.f_code) if one.offset > frame.f_lasti][:2]
    if len(following) < 2 or following[0].argval != 0 or not following[0].opname.startswith("LOAD_"):
        return False
    return following[1].opname == "BINARY_SUBSCR" or following[1].argrepr == "[]"


# --------------------------------------------------------------------------------------------------------- the user's


def dynamic_leaves(arguments: Mapping[str, Any], dynamic: Dynamic) -> list[dict[int, str]]:
    """For each leaf of the inputs the names of its dynamic dimensions.

    Args:
        arguments: of a call, by the names of the parameters.
        dynamic: by the names of inputs. A tensor in a container has the name `batch_pixels` or `images_0`.

    Raises:
        RecipeError: there is no such input or dimension, or the dimension is the batch or has size 1.
    """
    paths, _ = pytree.tree_flatten_with_path(dict(arguments))
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
    tensors = {name: leaf for name, (_, leaf) in zip(names, paths, strict=True) if isinstance(leaf, Tensor)}
    for name, dims in dynamic.items():
        if name not in tensors:
            raise RecipeError(
                f"dynamic names the input {name!r}, but the inputs are {', '.join(map(repr, tensors))}. Write "
                f"dynamic={{{next(iter(tensors), 'x')!r}: {{2: 'height'}}}}: the name of the input, the dimension, and "
                "a name for its size."
            )
        given: Any = dims
        if not isinstance(given, Mapping) or not all(
            type(dim) is int and isinstance(size, str) and size.isidentifier() for dim, size in given.items()
        ):
            raise RecipeError(
                f"dynamic[{name!r}] is {dims!r}; it must give a name for each dimension that is dynamic, such as "
                "{2: 'height', 3: 'width'}."
            )
        shape = list(tensors[name].shape)
        for dim, size in dims.items():
            if not 1 <= dim < len(shape) or size == "batch":
                raise RecipeError(
                    f"dynamic[{name!r}] names dimension {dim} {size!r}, but input {name!r} has the shape "
                    f"{['samples', *shape[1:]]}. Give a dimension from 1 to {len(shape) - 1}, and another name than "
                    "'batch': dimension 0 is the batch, which is always dynamic."
                )
            if shape[dim] < 2:
                raise RecipeError(
                    f"dynamic[{name!r}] names dimension {dim}, which has size {shape[dim]} in the samples: PyTorch "
                    "takes a size of 1 for a constant. Give samples with 2 or more there."
                )
    return [dict(dynamic.get(name, {})) for name in names]


# ---------------------------------------------------------------------------------------------------------- other sizes


def free_sizes(
    specs: Sequence[InputSpec], leaves: Sequence[Tensor], agree: Callable[[list[Tensor]], bool | None]
) -> list[tuple[VariableSize, ...]]:
    """For each input the dimensions that may have any size, found by trying.

    Dimensions of one size are tried together: an image is as wide as it is high, and a mask as long as its sequence.

    Args:
        specs: of the inputs that are tensors.
        leaves: a batch of samples for them.
        agree: whether model and graph give the same for other inputs; None if the model does not run on them.
    """
    found: list[list[VariableSize]] = [[] for _ in specs]
    named = [{size.dim for size in spec.variable} for spec in specs]
    places: dict[int, list[tuple[int, int]]] = {}
    for number, leaf in enumerate(leaves):
        for dim in range(1, leaf.dim()):
            if dim not in named[number] and leaf.shape[dim] > 1:
                places.setdefault(leaf.shape[dim], []).append((number, dim))
    for size, dims in places.items():
        for other in (size // 2, 2 * size) if size >= _SMALL else (2 * size,):
            answer = agree(resized(leaves, dict.fromkeys(dims, other)))
            if answer is not None:
                low = 2 if answer and agree(resized(leaves, dict.fromkeys(dims, 1))) is False else 1
                for number, dim in dims if answer else ():
                    found[number].append(VariableSize(dim, sizes=Range(low)))
                break
    return [(*spec.variable, *free) for spec, free in zip(specs, found, strict=True)]


def resized(leaves: Sequence[Tensor], sizes: Mapping[tuple[int, int], int]) -> list[Tensor]:
    """Tensors with other sizes in some dimensions (number of the tensor, dimension).

    A larger one holds other values in the new places than in the old ones, so that it matters which of them a graph
    reads.
    """
    changed = list(leaves)
    for (number, dim), size in sizes.items():
        leaf = changed[number]
        index = torch.arange(size, device=leaf.device)
        new = index[leaf.shape[dim] :] % leaf.shape[dim]
        kept = leaf.index_select(dim, index[: leaf.shape[dim]])
        changed[number] = torch.cat([kept, _other_values(leaf.index_select(dim, new), leaf)], dim) if len(new) else kept
    return changed


def _other_values(values: Tensor, leaf: Tensor) -> Tensor:
    """Values from an input, mixed, each of them another one than in `values`. They are the same in every run.

    Values of the input are those that the model takes: indices of a table, numbers of one sign. If the input has one
    value only, as many masks have, 0 stands in the new places, or 1 in place of 0.
    """
    if not values.numel():
        return values
    flat = leaf.reshape(-1)
    places = torch.randint(flat.numel(), values.shape, generator=torch.Generator().manual_seed(0))
    drawn = flat[places.to(leaf.device)]
    one, others = flat[0], flat[flat != flat[0]]
    other = others[0] if len(others) else (one == 0).to(leaf.dtype)
    return torch.where(drawn == values, torch.where(values == one, other, one), drawn)
