"""The `.rw` file: a safetensors file whose metadata describes the network. No pickle, no code.

    tensors     float constants as they are; codes packed to their bits: a 4-bit weight takes half a byte
    metadata    format      "roundwise"
                version     of this layout
                model       JSON: the graph's nodes, its inputs and outputs, which tensors are packed and how,
                            the recipe, the report, the versions of the software that made it
                sha256      of `model` and all tensors

Any safetensors reader can open it. Reading rebuilds the graph from operations that are looked up by name in PyTorch's
own operator library (`aten`, `quantized_decomposed`, arithmetic on sizes); a name outside it is refused, so that a file
cannot make the reader do anything that is not arithmetic on tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from roundwise.errors import FileFormatError
from roundwise.graph.capture import ConstantInput, Graph, InputSpec
from roundwise.graph.emit import code_bits
from roundwise.recipe import Recipe
from roundwise.report import Report

VERSION = "1"


@final
@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that a file holds."""

    graph: Graph
    report: Report
    recipe: Recipe
    versions: dict[str, str]


_SIZE_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")
        + ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")},
}
_NAMESPACES = ("aten", "quantized_decomposed")
_REFUSED = ("from_file", "_make_dep_token", "_print")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


# ------------------------------------------------------------------------------------------------------ writing


def write(contents: Contents, path: Path) -> None:
    """Write a file; the file appears complete or not at all.

    Raises:
        FileFormatError: the folder is missing, or the graph holds something that has no safe form in a file.
    """
    if not path.parent.is_dir():
        raise FileFormatError(f"cannot write {path}: the folder {path.parent} does not exist. Create it first.")
    graph = contents.graph
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Any]] = {}
    bits = code_bits(graph)
    for name, value in graph.constants.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"'{name}' is a piece of control flow ({type(value).__name__}), which a .rw file cannot hold. "
                "Use `torch.export.save(quantized.program, …)` instead."
            )
        value = value.cpu()
        if name in bits:
            packed[name] = {"bits": bits[name], "dtype": _dtype_name(value.dtype), "shape": list(value.shape)}
            value = pack(value, bits[name])
        tensors[name] = value.contiguous().clone()
    info = graph.signature
    description = {
        "nodes": [_node_to_json(node) for node in graph.operations.nodes],
        "inputs": [_input_to_json(spec) for spec in graph.inputs],
        "batch": graph.batch,
        "arguments": info.orig_args,
        "in_spec": _spec_to_json(info.in_spec),
        "out_spec": _spec_to_json(info.out_spec) if info.out_spec is not None else None,
        "packed": packed,
        "recipe": contents.recipe.as_dict(),
        "report": contents.report.as_dict(),
        "versions": contents.versions,
    }
    text = json.dumps(description, allow_nan=False)
    metadata = {"format": "roundwise", "version": VERSION, "model": text, "sha256": _digest(text, tensors)}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as a row of bytes, each code in `bits` bits, two's complement, lowest bit first.

    Example:
        >>> pack(torch.tensor([1, -1, 2], dtype=torch.int8), 4)
        tensor([241,   2], dtype=torch.uint8)
    """
    unsigned = (codes.to(torch.int64).numpy() & (2**bits - 1)).astype("<u2").reshape(-1, 1)
    each = np.unpackbits(unsigned.view(np.uint8), axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack(packed: Tensor, bits: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`; whether codes are signed follows from the dtype (int32 holds unsigned 16-bit codes)."""
    count = math.prod(shape)
    each = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    values = each.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))
    if dtype in (torch.int8, torch.int16):
        values = np.where(values >= 2 ** (bits - 1), values - 2**bits, values)
    return torch.from_numpy(values).to(dtype).reshape(shape)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    target = node.target if isinstance(node.target, str) else _target_to_name(node)
    args, kwargs = _value_to_json(list(node.args)), {name: _value_to_json(v) for name, v in node.kwargs.items()}
    return {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs}


def _target_to_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    for name, function in _SIZE_ARITHMETIC.items():
        if node.target is function:
            return name
    raise FileFormatError(
        f"operation '{node.name}' calls {node.target}, which a .rw file cannot hold. "
        "Use `torch.export.save(quantized.program, …)` instead."
    )


def _value_to_json(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"node": value.name}
        case list() | tuple():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [_value_to_json(item) for item in value]}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case torch.dtype():
            return {"dtype": _dtype_name(value)}
        case torch.device():
            return {"device": str(value)}
        case torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
    raise FileFormatError(f"a value of type {type(value).__name__} in the graph has no form in a .rw file: {value!r}.")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _input_to_json(spec: InputSpec | ConstantInput) -> dict[str, Any]:
    if isinstance(spec, ConstantInput):
        return {"constant": spec.value}
    return {"name": spec.name, "shape": list(spec.shape), "dtype": _dtype_name(spec.dtype)}


def _spec_to_json(spec: pytree.TreeSpec) -> Any:
    """Containers by name: a dict with its keys, a tuple, a list, or any type that PyTorch can write down itself."""
    return json.loads(pytree.treespec_dumps(spec))


# ------------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Contents:
    """Read a file that `write` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, changed, of a newer layout, or names an operation that is not
            arithmetic on tensors.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path} is not a complete Roundwise file: {error}. It was cut short, or is something else; write it again "
            "with `quantized.save(…)`."
        ) from error
    if metadata.get("format") != "roundwise" or "model" not in metadata:
        raise FileFormatError(f"{path} holds tensors but no quantized model; was it written by `quantized.save(…)`?")
    if metadata.get("version") != VERSION:
        raise FileFormatError(
            f"{path} has layout version {metadata.get('version')!r}; this release reads version {VERSION!r}. "
            "Install a newer Roundwise."
        )
    if metadata.get("sha256") != _digest(metadata["model"], tensors):
        raise FileFormatError(
            f"{path} was changed after it was written: its checksum does not fit its content. Get the original again."
        )
    try:
        return _rebuild(json.loads(metadata["model"]), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} describes no valid network: {type(error).__name__}: {error}.") from error


def _rebuild(description: dict[str, Any], tensors: dict[str, Tensor]) -> Contents:
    for name, how in description["packed"].items():
        tensors[name] = unpack(tensors[name], how["bits"], how["shape"], _dtype(how["dtype"]))
    for name in tensors:
        if not all(_IDENTIFIER.match(part) or part.isdecimal() for part in name.split(".")):
            raise FileFormatError(f"the tensor name {name!r} is not one.")
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in description["nodes"]:
        op, name, target = entry["op"], entry["name"], entry["target"]
        if op not in ("placeholder", "get_attr", "call_function", "output") or not _IDENTIFIER.match(name):
            raise FileFormatError(f"node {name!r} of kind {op!r} is not an operation of a network.")
        if op == "get_attr" and target not in tensors:
            raise FileFormatError(f"node '{name}' reads the tensor {target!r}, which the file does not hold.")
        if op == "placeholder" and not _IDENTIFIER.match(target):
            raise FileFormatError(f"the input name {target!r} is not one.")
        function = _function(target) if op == "call_function" else target
        args = tuple(_value_from_json(value, nodes) for value in entry["args"]["list"])
        kwargs = {key: _value_from_json(value, nodes) for key, value in entry["kwargs"].items()}
        if not all(map(_IDENTIFIER.match, kwargs)):
            raise FileFormatError(f"node '{name}' has an argument name that is not one.")
        nodes[name] = graph.create_node(op, function, args, kwargs, name=name)
    if not all(map(_IDENTIFIER.match, description["arguments"])):
        raise FileFormatError("an argument name of the model is not one.")
    in_spec = pytree.treespec_loads(json.dumps(description["in_spec"]))
    out_spec = pytree.treespec_loads(json.dumps(description["out_spec"])) if description["out_spec"] else None
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(description["arguments"], in_spec, out_spec)))
    inputs = tuple(_input_from_json(entry) for entry in description["inputs"])
    return Contents(
        Graph(graph, tensors, inputs, description["batch"]),
        Report.from_dict(description["report"]),
        Recipe.from_dict(description["recipe"]),
        description["versions"],
    )


def _function(name: str) -> Callable[..., Any]:
    if name in _SIZE_ARITHMETIC:
        return _SIZE_ARITHMETIC[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] in _NAMESPACES and parts[1] not in _REFUSED:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        overload = getattr(packet, parts[2], None)
        if isinstance(overload, torch._ops.OpOverload):
            return overload
    raise FileFormatError(
        f"the file asks for the operation '{name}', which this release does not run from a file: it is neither one of "
        f"PyTorch's ({', '.join(_NAMESPACES)}) nor arithmetic on sizes."
    )


def _value_from_json(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return nodes[content]
        case "list":
            return [_value_from_json(item, nodes) for item in content]
        case "tuple":
            return tuple(_value_from_json(item, nodes) for item in content)
        case "float":
            return float(content)
        case "dtype":
            return _dtype(content)
        case "device":
            return torch.device(content)
        case "torch" if isinstance(getattr(torch, content, None), torch.layout | torch.memory_format):
            return getattr(torch, content)
    raise FileFormatError(f"a value of unknown kind {kind!r} in the graph.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FileFormatError(f"'{name}' is not a dtype.")
    return dtype


def _input_from_json(entry: dict[str, Any]) -> InputSpec | ConstantInput:
    if "constant" in entry:
        return ConstantInput(entry["constant"])
    return InputSpec(entry["name"], tuple(entry["shape"]), _dtype(entry["dtype"]))
