"""Convert a graph to plain data that JSON can hold, and back: the part of a `.rw` file that describes the network.

A file may come from anywhere, so reading it allows nothing but computing on tensors:

- Operations are looked up by name: those of Roundwise (`artifacts/dialect.py`), PyTorch's ATEN, and arithmetic on
  sizes. Of ATEN, only operations that return new tensors and change nothing are allowed.
- PyTorch turns a graph into Python code, so every name that appears in the code must be an identifier.
- The known containers are tuples, lists and dicts. A named tuple gets a new class of the same name and fields. Any
  other type must already be registered with PyTorch's pytree by
  the program that reads the file; nothing is imported. (PyTorch's own descriptions of types name modules to import.)
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.artifacts.dialect import OPERATIONS, Operation, operation_of
from roundwise.errors import FileFormatError
from roundwise.graph.graph import CallStructure, ConstantInput, Graph, InputSpec

_ARITHMETIC = {
    operator: (
        *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "and_", "or_"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    ),
    math: ("ceil", "floor", "trunc"),
    torch: ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not"),
}
_ON_SIZES: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": getattr(module, name) for module, names in _ARITHMETIC.items() for name in names
}
_CONTAINERS: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list, "dict": dict, "ordered": OrderedDict}
_MODULE_NAME = re.compile(r"[\w \-+:/,@=]+")  # what a ModuleDict may be keyed with and cannot end a string
_WAY_OUT = "Save such a network with `torch.export.save(quantized.program, …)`."
_DAMAGED = "The file contradicts itself: get the original, or quantize the network again."


# ------------------------------------------------------------------------------------------------ to plain data


def graph_to_plain(graph: Graph) -> dict[str, Any]:
    """A description of the graph without its tensors.

    Raises:
        FileFormatError: the graph holds a value that has no plain form.
    """
    structure = graph.structure
    return {
        "nodes": [_node_to_plain(node) for node in graph.operations.nodes],
        "inputs": [_input_to_plain(spec) for spec in graph.inputs],
        "batch": graph.batch,
        "arguments": list(structure.arguments),
        "parameters": list(structure.parameters),
        "defaults": {name: _value_to_plain(value) for name, value in structure.defaults.items()},
        "in_spec": _spec_to_plain(structure.in_spec),
        "out_spec": None if structure.out_spec is None else _spec_to_plain(structure.out_spec),
    }


def _node_to_plain(node: fx.Node) -> dict[str, Any]:
    target = node.target if isinstance(node.target, str) else _target_to_name(node)
    args, kwargs = _value_to_plain(list(node.args)), {name: _value_to_plain(v) for name, v in node.kwargs.items()}
    return {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs}


def _target_to_name(node: fx.Node) -> str:
    operation = operation_of(node)
    if operation is not None:
        return operation.name
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target)
    for name, function in _ON_SIZES.items():
        if node.target is function:
            return name
    raise FileFormatError(f"operation '{node.name}' calls {node.target}, which a .rw file cannot hold. {_WAY_OUT}")


def _value_to_plain(value: Any) -> Any:
    match value:
        case fx.Node():
            return {"node": value.name}
        case list() | tuple():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [_value_to_plain(item) for item in value]}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case torch.dtype():
            return {"dtype": dtype_name(value)}
        case torch.device():
            return {"device": "cpu"}  # a loaded model is on the CPU
        case torch.layout() | torch.memory_format():
            return {"torch": str(value).removeprefix("torch.")}
    raise FileFormatError(
        f"the graph has the argument {value!r} of type {type(value).__name__}, which a .rw file cannot hold. {_WAY_OUT}"
    )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as `int8`."""
    return str(dtype).removeprefix("torch.")


def _input_to_plain(spec: InputSpec | ConstantInput) -> dict[str, Any]:
    if isinstance(spec, ConstantInput):
        return {"constant": spec.value}
    return {"name": spec.name, "shape": list(spec.shape), "dtype": dtype_name(spec.dtype)}


def _spec_to_plain(spec: pytree.TreeSpec) -> Any:
    """A pytree as plain data: "*" for a leaf, otherwise the container's name, its children, and its keys if any."""
    if spec.is_leaf():
        return "*"
    assert spec.type is not None
    children, keys = [_spec_to_plain(child) for child in spec.children()], spec.context
    if spec.type is namedtuple:
        return {"type": "namedtuple", "children": children, "name": keys.__name__, "keys": list(keys._fields)}
    kind_name = str(spec.type.__name__)
    if spec.type is _torch_result(kind_name):
        return {"type": "torch", "children": children, "name": kind_name}
    name = next((name for name, kind in _CONTAINERS.items() if spec.type is kind), None)
    if name is None:
        registered = pytree.SUPPORTED_SERIALIZED_TYPES.get(spec.type)
        name = None if registered is None else registered.serialized_type_name
        if registered is None or registered.to_dumpable_context is not None or not _is_plain_context(keys):
            raise FileFormatError(
                f"the model takes or returns a {spec.type.__name__}, which a .rw file cannot describe. Wrap the model "
                "so that it takes and returns tensors in tuples, lists and dicts."
            )
        if name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
            raise FileFormatError(
                f"the model takes or returns a {spec.type.__name__}, which was registered with PyTorch without a name "
                "for files. Register it with one: `torch.export.register_dataclass(…, serialized_type_name=…)`."
            )
    entry = {"type": name, "children": children}
    return entry if keys is None else {**entry, "keys": list(keys) if isinstance(keys, tuple) else keys}


def _torch_result(name: str) -> type | None:
    """The named tuple that PyTorch's operations of this name return, `max` for example."""
    kind = getattr(torch.return_types, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, tuple) else None


def _is_plain_context(keys: Any) -> bool:
    """Whether the context of a registered type is nothing, a name, or a list of names and lists of names."""
    return keys is None or isinstance(keys, str) or _are_names(keys)


def _are_names(keys: Any) -> bool:
    return isinstance(keys, list | tuple) and all(isinstance(key, str) or _are_names(key) for key in keys)


# ---------------------------------------------------------------------------------------------- from plain data


def graph_from_plain(description: dict[str, Any], tensors: dict[str, Tensor]) -> Graph:
    """The graph that `graph_to_plain` described, with the tensors that it reads.

    Raises:
        FileFormatError: the description has an operation, a type or a name that a file may not use. A description that
            is wrong in another way may raise any exception.
    """
    for name in tensors:
        _check_tensor_name(name)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in description["nodes"]:
        op, name, target = entry["op"], _identifier(entry["name"]), entry["target"]
        if op == "get_attr":
            if target not in tensors:
                raise FileFormatError(f"node '{name}' reads the tensor {target!r}, which is not there. {_DAMAGED}")
        elif op == "call_function":
            target = _function(target)
        elif op == "placeholder":
            _identifier(target)
        elif op != "output":
            raise FileFormatError(f"node '{name}' is of kind {op!r}, which no operation of a network is. {_DAMAGED}")
        args = tuple(_value_from_plain(value, nodes) for value in entry["args"]["list"])
        kwargs = {_identifier(key): _value_from_plain(value, nodes) for key, value in entry["kwargs"].items()}
        if op == "call_function" and entry["target"] in OPERATIONS:
            _check_arguments(name, OPERATIONS[entry["target"]], args, kwargs)
        nodes[name] = graph.create_node(op, target, args, kwargs, name=name)
    inputs = tuple(_input_from_plain(entry) for entry in description["inputs"])
    in_spec = pytree.tree_structure(_skeleton(description["in_spec"]))
    out_spec = None if description["out_spec"] is None else pytree.tree_structure(_skeleton(description["out_spec"]))
    arguments = [_identifier(name) for name in description["arguments"]]
    positional, named = in_spec.children()
    for name in named.context:
        _identifier(name)
    kinds = [node.op for node in graph.nodes]
    if kinds.count("output") != 1 or kinds[-1] != "output" or kinds.count("placeholder") != in_spec.num_leaves:
        raise FileFormatError(
            f"the network has {kinds.count('placeholder')} inputs and {kinds.count('output')} outputs among its "
            f"operations, but must have {in_spec.num_leaves} inputs, and one output as its last operation. {_DAMAGED}"
        )
    if len(inputs) != in_spec.num_leaves or len(arguments) != positional.num_children + named.num_children:
        raise FileFormatError(
            f"the network has {len(inputs)} inputs and {len(arguments)} names of arguments, but its call takes "
            f"{in_spec.num_leaves} inputs in {positional.num_children + named.num_children} arguments. {_DAMAGED}"
        )
    graph.lint()
    parameters = tuple(_identifier(name) for name in description["parameters"])
    defaults = {_identifier(name): _value_from_plain(value, {}) for name, value in description["defaults"].items()}
    structure, batch = CallStructure(tuple(arguments), in_spec, out_spec, parameters, defaults), description["batch"]
    return Graph(graph, tensors, inputs, structure, None if batch is None else int(batch))


def _identifier(name: Any) -> str:
    """Check a name that will appear in Python code, and return it."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise FileFormatError(f"{name!r} is not a name that a Python program can have. {_DAMAGED}")
    return name


def _check_tensor_name(name: str) -> None:
    """Check a name `part.part.…`: each part is an attribute of a module, or safe between quotation marks."""
    for part in name.split("."):
        if part.isidentifier():
            sound = not keyword.iskeyword(part) and not part.startswith("__") and not hasattr(fx.GraphModule, part)
        else:
            sound = _MODULE_NAME.fullmatch(part) is not None
        if not sound:
            raise FileFormatError(
                f"a tensor has the name {name!r}, but no module or parameter can be called '{part}' in the network's "
                "code. Rename it in the model and quantize it again."
            )


def _function(name: str) -> Callable[..., Any]:
    if name in OPERATIONS:
        return OPERATIONS[name].function
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    namespace, operation, overload = name.split(".") if name.count(".") == 2 else ("", "", "")
    if namespace == "aten":
        function = getattr(getattr(torch.ops.aten, operation, None), overload, None)
        if isinstance(function, torch._ops.OpOverload) and _only_computes(function):
            return function
    raise FileFormatError(
        f"the network has the operation '{name}', which this release does not run from a file. It runs the "
        f"operations of Roundwise ({', '.join(OPERATIONS)}), operations of PyTorch's 'aten' that only compute, and "
        f"arithmetic on sizes. {_WAY_OUT}"
    )


def _check_arguments(name: str, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        operation.check(args, kwargs)
    except TypeError as error:
        raise FileFormatError(f"node '{name}' cannot be computed: {error} {_DAMAGED}") from error


def _only_computes(function: torch._ops.OpOverload) -> bool:
    """Whether an operation returns new tensors or numbers and does nothing else."""
    schema = function._schema
    return bool(schema.returns) and not schema.is_mutable and schema.name != "aten::from_file"


def _value_from_plain(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return nodes[content]
        case "list":
            return [_value_from_plain(item, nodes) for item in content]
        case "tuple":
            return tuple(_value_from_plain(item, nodes) for item in content)
        case "float":
            return float(content)
        case "dtype":
            return dtype_named(content)
        case "device":
            return torch.device("cpu")
        case "torch" if isinstance(getattr(torch, content, None), torch.layout | torch.memory_format):
            return getattr(torch, content)
    raise FileFormatError(f"the graph has a value of kind {kind!r}, which no .rw file has. {_DAMAGED}")


def dtype_named(name: str) -> torch.dtype:
    """The dtype with a name such as `int8`.

    Raises:
        FileFormatError: there is no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FileFormatError(f"'{name}' is not a dtype of PyTorch {torch.__version__}. Install a newer PyTorch.")
    return dtype


def _input_from_plain(entry: dict[str, Any]) -> InputSpec | ConstantInput:
    if "constant" in entry:
        return ConstantInput(entry["constant"])
    return InputSpec(entry["name"], tuple(entry["shape"]), dtype_named(entry["dtype"]))


def _skeleton(entry: Any) -> Any:
    """A pytree with the structure that `_spec_to_plain` described; its leaves are 0."""
    if entry == "*":
        return 0
    name, children, keys = entry["type"], [_skeleton(child) for child in entry["children"]], entry.get("keys")
    if name == "namedtuple":
        return namedtuple(_identifier(entry["name"]), [_identifier(key) for key in keys])(*children)
    if name == "torch" and (result := _torch_result(entry["name"])) is not None:
        return result(children)
    if name in _CONTAINERS:
        return _CONTAINERS[name](children if keys is None else zip(keys, children, strict=True))
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    known = None if kind is None else pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    if kind is None or known is None or known.to_dumpable_context is not None or not _is_plain_context(keys):
        raise FileFormatError(
            f"the model takes or returns a {name}, but this type is not registered with PyTorch's pytree. Import the "
            "package that defines the type before you load the file."
        )
    return pytree.SUPPORTED_NODES[kind].unflatten_fn(children, keys)
