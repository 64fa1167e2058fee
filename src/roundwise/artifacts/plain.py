"""Convert a graph to plain data that JSON can hold, and back: the part of a `.rw` file that describes the network.

A file may come from anywhere, so reading it allows nothing but computing on tensors:

- Operations are looked up by name in lists: those of Roundwise (`artifacts/dialect.py`), those of PyTorch that
  networks have (`graph/vocabulary.py`), and arithmetic on sizes.
- PyTorch turns a graph into Python code, so every name that appears in the code is checked (`artifacts/names.py`).
- The known containers are tuples, lists and dicts. A named tuple gets a new class of the same name and fields. Any
  other type must already be registered with PyTorch's pytree by
  the program that reads the file; nothing is imported. (PyTorch's own descriptions of types name modules to import.)
"""

from __future__ import annotations

import enum
import math
import operator
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.artifacts.dialect import OPERATIONS, operation_of
from roundwise.artifacts.names import DAMAGED, argument_name, check_tensor_names, identifier
from roundwise.artifacts.schema import DTYPES, LARGEST, MEMORY_FORMATS
from roundwise.errors import FileFormatError
from roundwise.graph.graph import CallStructure, ConstantInput, Graph, InputSpec
from roundwise.graph.sizes import Limits, Range, VariableSize
from roundwise.graph.vocabulary import VOCABULARY, ZEROED

_ARITHMETIC = {
    operator: (
        *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "and_", "or_"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    ),
    math: ("ceil", "floor", "trunc"),
    torch: ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not"),
}
_OPERATORS = {str(operator): operator for operator in VOCABULARY}
_ON_SIZES: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": getattr(module, name) for module, names in _ARITHMETIC.items() for name in names
}
_CONTAINERS: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list, "dict": dict, "ordered": OrderedDict}
MOST_NODES = 20_000
"""Operations of a network, with its inputs and tensors. The largest ones of common collections have some 5,000."""

_MOST_CONTAINERS = 1000
"""Tuples, lists and dicts, in each other, that a network takes and returns. Networks need some ten."""

_FLOATS = {str(value): value for value in (math.inf, -math.inf, math.nan)}
_NAMED = {str(value).removeprefix("torch."): value for value in (torch.strided, *MEMORY_FORMATS)}
_DTYPES = {str(value).removeprefix("torch."): value for value in DTYPES}
_WAY_OUT = "Save such a network with `torch.export.save(quantized.program, …)`."


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
        "limits": {"batches": _range_to_plain(graph.limits.batches), "contiguous": graph.limits.contiguous},
        "arguments": list(structure.arguments),
        "parameters": list(structure.parameters),
        # Of another default, the file cannot say whether it was given.
        "defaults": {name: _value_to_plain(it) for name, it in structure.defaults.items() if _is_constant(it)},
        "in_spec": _spec_to_plain(structure.in_spec),
        "out_spec": None if structure.out_spec is None else _spec_to_plain(structure.out_spec),
    }


def _is_constant(value: Any) -> bool:
    """Whether a value that is not a tensor has a plain form."""
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(_is_constant, value))
    plain = isinstance(value, bool | int | float | str | torch.dtype | None)
    return plain and not isinstance(value, enum.Enum)


def _node_to_plain(node: fx.Node) -> dict[str, Any]:
    target = node.target if isinstance(node.target, str) else _target_to_name(node)
    args, kwargs = _value_to_plain(list(node.args)), {name: _value_to_plain(v) for name, v in node.kwargs.items()}
    if node.target in ZEROED:
        known = {argument.name for argument in ZEROED[node.target]._schema.arguments}  # type: ignore[index]
        kwargs = {name: value for name, value in kwargs.items() if name in known}
    return {"op": node.op, "name": node.name, "target": target, "args": args, "kwargs": kwargs}


def _target_to_name(node: fx.Node) -> str:
    operation = operation_of(node)
    if operation is not None:
        return operation.name
    target = ZEROED.get(node.target, node.target)  # type: ignore[call-overload]  # nothing else is a key
    if target in VOCABULARY:
        return str(target)
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
        return {"constant": _value_to_plain(spec.value)}
    variable = [{"dim": one.dim, "name": one.name, "sizes": _range_to_plain(one.sizes)} for one in spec.variable]
    return {"name": spec.name, "shape": list(spec.shape), "dtype": dtype_name(spec.dtype), "variable": variable}


def _range_to_plain(numbers: Range) -> list[int | None]:
    return [numbers.low, numbers.high]


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
    if keys is None:
        return entry
    if name in _CONTAINERS:
        return {**entry, "keys": [_key_to_plain(key) for key in keys]}
    return {**entry, "keys": list(keys) if isinstance(keys, tuple) else keys}


def _key_to_plain(key: Any) -> Any:
    if not _is_constant(key):
        raise FileFormatError(
            f"the model takes or returns a dict with the key {key!r} of type {type(key).__name__}, which a .rw file "
            "cannot hold. Wrap the model so that keys are text, numbers, or tuples of them."
        )
    return _value_to_plain(key)


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
    check_tensor_names(tensors)
    if len(description["nodes"]) > MOST_NODES:
        raise FileFormatError(
            f"the network has {len(description['nodes'])} operations; at most {MOST_NODES} are read, because Python "
            "needs some kilobytes of memory for each. Split the network."
        )
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    targets, called = set(), ""
    for entry in description["nodes"]:
        op, name, target = entry["op"], identifier(entry["name"]), entry["target"]
        if op in ("placeholder", "get_attr") and (entry["args"]["list"] or entry["kwargs"]):
            raise FileFormatError(f"node '{name}' is of kind {op!r} and has arguments, which it cannot have. {DAMAGED}")
        if op == "get_attr":
            if target not in tensors:
                raise FileFormatError(f"node '{name}' reads the tensor {target!r}, which is not there. {DAMAGED}")
        elif op == "call_function":
            target, called = _function(target), name
        elif op == "placeholder":
            if identifier(target) in targets or called:
                raise FileFormatError(
                    f"the input '{name}' stands behind the operation '{called}', or another input is called {target!r} "
                    f"too. {DAMAGED}"
                )
            targets.add(target)
        elif op != "output":
            raise FileFormatError(f"node '{name}' is of kind {op!r}, which no operation of a network is. {DAMAGED}")
        args = tuple(_value_from_plain(value, nodes) for value in entry["args"]["list"])
        kwargs = {identifier(key): _value_from_plain(value, nodes) for key, value in entry["kwargs"].items()}
        nodes[name] = graph.create_node(op, target, args, kwargs, name=name)
        if op == "placeholder":
            # The code calls an input by its target, and everything else by its name. Only names are unique.
            nodes[name].target = nodes[name].name
    inputs = tuple(_input_from_plain(entry) for entry in description["inputs"])
    _check_containers(description["in_spec"], description["out_spec"])
    in_spec = pytree.tree_structure(_skeleton(description["in_spec"]))
    out_spec = None if description["out_spec"] is None else pytree.tree_structure(_skeleton(description["out_spec"]))
    arguments = [argument_name(name) for name in description["arguments"]]
    positional, named = in_spec.children()
    for name in named.context:
        argument_name(name)
    kinds = [node.op for node in graph.nodes]
    if kinds.count("output") != 1 or kinds[-1] != "output" or kinds.count("placeholder") != in_spec.num_leaves:
        raise FileFormatError(
            f"the network has {kinds.count('placeholder')} inputs and {kinds.count('output')} outputs among its "
            f"operations, but must have {in_spec.num_leaves} inputs, and one output as its last operation. {DAMAGED}"
        )
    if len(inputs) != in_spec.num_leaves or len(arguments) != positional.num_children + named.num_children:
        raise FileFormatError(
            f"the network has {len(inputs)} inputs and {len(arguments)} names of arguments, but its call takes "
            f"{in_spec.num_leaves} inputs in {positional.num_children + named.num_children} arguments. {DAMAGED}"
        )
    _check_output(list(graph.nodes)[-1], out_spec)
    graph.lint()
    parameters = tuple(identifier(name) for name in description["parameters"])
    defaults = {identifier(name): _constant(value) for name, value in description["defaults"].items()}
    structure, batch = CallStructure(tuple(arguments), in_spec, out_spec, parameters, defaults), description["batch"]
    if batch is not None and not _is_size(batch):
        raise FileFormatError(f"the network takes {batch!r} samples, which is no number of samples. {DAMAGED}")
    limits = Limits(_range_from_plain(description["limits"]["batches"]), bool(description["limits"]["contiguous"]))
    return Graph(graph, tensors, inputs, structure, batch, limits)


def _check_output(output: fx.Node, out_spec: pytree.TreeSpec | None) -> None:
    """Raise unless the output node has one value for each leaf of what the network returns."""
    rest, found = list(output.args[:1]), 0
    while rest:
        value = rest.pop()
        if isinstance(value, list | tuple):
            rest += value
        found += not isinstance(value, list | tuple) or not value
    wanted = found if out_spec is None else out_spec.num_leaves
    if out_spec is not None and output.args and not isinstance(output.args[0], list | tuple):
        # PyTorch would take the tensor itself for the list, and make a tensor of each row.
        raise FileFormatError(f"the network's output is '{output.args[0]}' and not a list of values. {DAMAGED}")
    if len(output.args) != 1 or output.kwargs or found != wanted or found > MOST_NODES:
        raise FileFormatError(
            f"the network's output has {found} values; it must have {wanted}, and at most {MOST_NODES}. {DAMAGED}"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST


def _function(name: str) -> Callable[..., Any]:
    if name in OPERATIONS:
        return OPERATIONS[name].function
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    if name in _OPERATORS:
        return _OPERATORS[name]
    raise FileFormatError(
        f"the network has the operation {name!r}, which this release does not run from a file. It runs the "
        f"operations of Roundwise ({', '.join(OPERATIONS)}), {len(VOCABULARY)} operations of PyTorch's 'aten' that "
        f"only compute, and arithmetic on sizes. {_WAY_OUT}"
    )


def _value_from_plain(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return nodes[content]
        case "list":
            return [_value_from_plain(item, nodes) for item in content]
        case "tuple":
            return tuple(_value_from_plain(item, nodes) for item in content)
        case "float" if content in _FLOATS:
            return _FLOATS[content]
        case "dtype":
            return dtype_named(content)
        case "device":
            return torch.device("cpu")
        case "torch" if content in _NAMED:
            return _NAMED[content]
    raise FileFormatError(f"the graph has a value of kind {kind!r}, which no .rw file has. {DAMAGED}")


def dtype_named(name: str) -> torch.dtype:
    """The dtype with a name such as `int8`.

    Raises:
        FileFormatError: there is no such dtype.
    """
    if name not in _DTYPES:
        raise FileFormatError(f"{name!r} is not a dtype of a .rw file, which has {', '.join(_DTYPES)}. {DAMAGED}")
    return _DTYPES[name]


def _input_from_plain(entry: dict[str, Any]) -> InputSpec | ConstantInput:
    if "constant" in entry:
        value = _constant(entry["constant"])
        if isinstance(value, tuple | torch.dtype):
            raise FileFormatError(f"an input of the network is fixed to {value!r}, which no input can be. {DAMAGED}")
        return ConstantInput(value)
    name, shape = identifier(entry["name"]), tuple(entry["shape"])
    # An input may be empty, such as a cache before the first step. The number of samples may not be 0.
    if not all(_is_size(size) or (size == 0 if place else size is None) for place, size in enumerate(shape)):
        raise FileFormatError(f"the input '{name}' has the shape {list(shape)}, which no input can have. {DAMAGED}")
    return InputSpec(name, shape, dtype_named(entry["dtype"]), _variable_from_plain(name, entry["variable"], shape))


def _variable_from_plain(name: str, entries: Any, shape: tuple[int | None, ...]) -> tuple[VariableSize, ...]:
    """The dimensions of an input that may have other sizes."""
    variable = []
    for one in entries:
        dim, size = one["dim"], str(one["name"])
        if type(dim) is not int or not 0 < dim < len(shape) or (size and not size.isidentifier()):
            raise FileFormatError(
                f"dimension {dim!r} of the input '{name}', called {size!r}, is no dimension that it can have. {DAMAGED}"
            )
        variable.append(VariableSize(dim, size, _range_from_plain(one["sizes"])))
    return tuple(variable)


def _constant(entry: Any) -> Any:
    """The value of an input that is not a tensor, a default, or a key."""
    value = _value_from_plain(entry, {})
    if not _is_constant(value):
        raise FileFormatError(f"the network has the input or key {value!r}, which no network can have. {DAMAGED}")
    return value


def _check_containers(*entries: Any) -> None:
    """Raise if inputs and outputs have more containers than a network needs: each may become a class of its own."""
    rest, count = list(entries), 0
    while rest:
        entry = rest.pop()
        if isinstance(entry, dict):
            count += 1
            rest += entry["children"]
    if count > _MOST_CONTAINERS:
        raise FileFormatError(
            f"the network takes and returns {count} containers; at most {_MOST_CONTAINERS} are read. {DAMAGED}"
        )


def _range_from_plain(ends: Any) -> Range:
    """A range of sizes or of numbers of samples."""
    low, high = ends
    if not _is_size(low) or not (high is None or (_is_size(high) and high >= low)):
        raise FileFormatError(f"sizes range from {low!r} to {high!r}, which no sizes do. {DAMAGED}")
    return Range(low, high)


def _skeleton(entry: Any) -> Any:
    """A pytree with the structure that `_spec_to_plain` described; its leaves are 0."""
    if entry == "*":
        return 0
    name, children, keys = entry["type"], [_skeleton(child) for child in entry["children"]], entry.get("keys")
    if name == "namedtuple":
        return namedtuple(identifier(entry["name"]), [identifier(key) for key in keys])(*children)
    if name == "torch" and (result := _torch_result(entry["name"])) is not None:
        return result(children)
    if name in _CONTAINERS:
        if keys is None:
            return _CONTAINERS[name](children)
        return _CONTAINERS[name](zip([_constant(key) for key in keys], children, strict=True))
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    known = None if kind is None else pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    if kind is None or known is None or known.to_dumpable_context is not None or not _is_plain_context(keys):
        raise FileFormatError(
            f"the model takes or returns a {name}, but this type is not registered with PyTorch's pytree. Import the "
            "package that defines the type before you load the file."
        )
    return pytree.SUPPORTED_NODES[kind].unflatten_fn(children, keys)
