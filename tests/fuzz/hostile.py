"""Hostile `.rw` files: files with a right checksum, each with a few mistakes or with a program of an attacker.

A file follows from its number alone, so that any of them can be made again. There are four kinds:

    edits       a saved network, in which entries of the description, nodes or tensors were changed
    inserts     a saved network with operations put in, each with arguments of the kinds that its schema names
    programs    nothing but such operations, on tensors with numbers that lead out of bounds
    layouts     the safetensors file itself: its header, its metadata, its text of JSON
"""

import copy
import functools
import hashlib
import json
import math
import random
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import roundwise as rw
from roundwise.artifacts import plain
from roundwise.artifacts.dialect import OPERATIONS
from roundwise.artifacts.kernels import check_arguments
from roundwise.artifacts.schema import bind_values
from roundwise.graph.vocabulary import VOCABULARY

OPERATORS = sorted(map(str, VOCABULARY))
BY_NAME = {str(operator): operator for operator in VOCABULARY}
SCHEMAS = {str(operator): operator._schema for operator in VOCABULARY}
ON_SIZES = [f"operator.{name}" for name in ("getitem", "add", "mul", "floordiv", "pow", "mod", "lt", "eq", "truediv")]
ON_SIZES += ["math.ceil", "math.floor", "torch.sym_max", "torch.sym_not"]
FORBIDDEN = [
    *("aten.set_.source_Tensor", "aten.as_strided.default", "aten.empty.memory_format", "aten.new_empty.default"),
    *("aten.from_file.default", "aten.resize.default", "aten._unsafe_index.Tensor", "aten.max_unpool2d.default"),
    *("aten.adaptive_max_pool2d_backward.default", "aten._sparse_csr_tensor_unsafe.default", "aten.randn.default"),
    *(
        "aten.empty_like.default",
        "aten.bincount.default",
        "aten._pad_packed_sequence.default",
        "os.system",
        "aten.add_.Tensor",
    ),
]
WHOLE = [0, 1, 2, 3, 4, 5, 7, 8, -1, -2, -3, -4, 16, 100, 1 << 16, 1 << 20, 1 << 24]
WHOLE_FAR = [1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), -(1 << 62)]
REAL = [0.0, 1.0, 0.5, 2.0, -1.0, 1e-5, 1e-300, 1e300, 5e-324, "nan", "inf", "-inf", 3.7]
EVIL = [
    "",
    "x",
    "\x1b[31mred",
    "a\nb",
    "<script>alert(1)</script>",
    "\u202egnp",
    "[/red]",
    "__class__",
    "lambda",
    "9" * 300,
]
EVIL += ["'); import os; os.system('x') #", "{{ 7 * 7 }}", "../../x", "*", "a.b.c", "\x00"]
CODE = ["inf", "nan", "torch", "fx_pytree", "device", "input", "_out_spec", "_buffers.x", "training", "\uff53elf"]
TEXTS = ["none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular", "floor", "trunc", "ij", "xy"]
TEXTS += ["ab,bc->ac", "ab->ba", "a,b->ab", "bij,bjk->bik", "...a,a", "zzz", ""]
DTYPES = ["float32", "float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex64", "complex128", "quint8", "float8_e4m3fn", "uint16", "bits8"]


class Small(nn.Module):
    """A convolution, a normalization, attention, and arithmetic on sizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 5)

    def forward(self, x, words):
        x = nn.functional.max_pool2d(self.norm(self.stem(x)).relu(), 2).flatten(2).transpose(1, 2)
        x = x + self.table(words)[:, None] + torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return {"scores": self.head(x), "mean": (x.mean(1), x.shape[0])}


@functools.cache
def bases() -> tuple[tuple[dict, dict, dict], ...]:
    """Saved networks: the metadata, the description and the tensors of each."""
    torch.manual_seed(0)
    images, words = torch.randn(8, 3, 6, 6), torch.arange(8)
    recipes = (
        rw.Quantize(rw.Weights(bits=3, symmetric=False), rw.rounding.Nearest(), activations=rw.Activations(bits=8)),
        rw.Quantize(rw.Weights(granularity=rw.PerGroup(3)), rw.rounding.Nearest(), overrides={"head": None}),
    )
    made = [rw.quantize(Small().eval(), {"x": images, "words": words}, rw.Recipe([recipe])) for recipe in recipes]
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    made.append(rw.quantize(layers, images, rw.Recipe([rw.Quantize(rounding=rw.rounding.Nearest())])))
    return tuple(_parts(model) for model in made)


def _parts(model: rw.Model) -> tuple[dict, dict, dict]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.rw"
        model.save(path)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        return metadata, json.loads(metadata["model"]), load_file(path)


def digest(text: str, tensors: dict) -> str:
    """The checksum that a file with this content needs."""
    total = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name, value in sorted(tensors.items()):
        total.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        if value.numel():
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write(path: Path, metadata: dict, text: str, tensors: dict) -> None:
    """A file with a right checksum."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, path, metadata | {"model": text, "sha256": digest(text, tensors)})


def make(number: int, path: Path) -> str:
    """Write the hostile file with a number; return its kind."""
    chance = random.Random(number)  # noqa: S311  nothing is secret
    metadata, description, tensors = copy.deepcopy(chance.choice(bases()))
    kind = chance.choices(["edits", "inserts", "programs", "layouts"], [25, 15, 55, 5])[0]
    text = None
    if kind == "edits":
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            edits = [_edit_entry, _edit_entry, _edit_node, _edit_tensor, _edit_packed, _edit_name]
            chance.choice(edits)(chance, description, tensors)
    elif kind == "inserts":
        _insert(chance, description, tensors)
    elif kind == "programs":
        _program(chance, description, tensors)
    else:
        text = _layout(chance, metadata, description)
    try:
        write(path, metadata, json.dumps(description) if text is None else text, tensors)
    except Exception:  # what safetensors cannot write needs no reading
        write(path, metadata, "{}", {})
    if kind == "layouts" and chance.random() < 0.5:
        _break_header(chance, path)
    return kind


# ----------------------------------------------------------------------------------------------------------- edits


def _leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _leaves(item, (*path, place))
    else:
        yield path


def _value(chance: random.Random):
    return chance.choice(
        [
            *(chance.choice(WHOLE), chance.choice(WHOLE_FAR), chance.choice(EVIL), {"float": str(chance.choice(REAL))}),
            *(None, True, 0.5, -1.5, 1e308, [], {}, {"list": []}, {"dtype": chance.choice(DTYPES)}, [1, 2], 10**30),
            *({"device": "cuda"}, {"torch": "sparse_coo"}, {"torch": "channels_last"}, {"tuple": [1]}, "*"),
        ]
    )


def _edit_entry(chance, description, tensors):
    """Another value for an entry of the description, or none."""
    part = chance.choice(["graph", "graph", "report", "recipe", "packed", "versions"])
    places = list(_leaves(description[part]))
    if not places:
        return
    path = chance.choice(places)
    owner = description[part]
    for key in path[:-1]:
        owner = owner[key]
    if not path:
        description[part] = _value(chance)
    elif chance.random() < 0.1:
        del owner[path[-1]]
    elif chance.random() < 0.1 and isinstance(owner, dict):
        owner[chance.choice(EVIL)] = owner.pop(path[-1])
    else:
        owner[path[-1]] = _value(chance)


def _edit_node(chance, description, tensors):
    """Another operation for a node, another place, or an argument more or less."""
    nodes = description["graph"]["nodes"]
    node = chance.choice(nodes)
    names = [str(one.get("name")) for one in nodes]
    what = chance.randrange(6)
    if what == 0:
        node["target"] = chance.choice([chance.choice(OPERATORS), *OPERATIONS, *ON_SIZES, chance.choice(FORBIDDEN)])
    elif what == 1:
        place = chance.randrange(len(nodes))
        nodes.remove(node)
        nodes.insert(place, node)
    elif what == 2:
        nodes.insert(chance.randrange(len(nodes)), copy.deepcopy(node))
    elif what == 3:
        nodes.remove(node)
    else:
        arguments = node.get("args", {}).get("list", []) if isinstance(node.get("args"), dict) else []
        value = {"node": chance.choice(names)} if chance.random() < 0.6 else _value(chance)
        if arguments and chance.random() < 0.8:
            arguments[chance.randrange(len(arguments))] = value
        else:
            arguments.append(value)


def _edit_tensor(chance, description, tensors):
    """Other numbers, another shape, dtype or name for a tensor."""
    name = chance.choice(sorted(tensors))
    tensor, what = tensors[name], chance.randrange(6)
    if what == 0 and tensor.numel():
        tensor = tensor.clone()
        far = [float("nan"), -1.0, 0.0, float("inf"), 1e38] if tensor.is_floating_point() else [0, 255, 1 << 7, 3]
        tensor.reshape(-1)[chance.randrange(tensor.numel())] = chance.choice(far)
        tensors[name] = tensor
    elif what == 1:
        tensors[name] = tensor.reshape(-1)[: chance.randrange(tensor.numel() + 1)]
    elif what == 2:
        tensors[name] = tensor.to(chance.choice([torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]))
    elif what == 3:
        del tensors[name]
    elif what == 4:
        tensors[chance.choice(EVIL) or "y"] = tensors.pop(name)
    else:
        tensors[name] = torch.zeros(
            [chance.choice([0, 1, 2, 3, 4, 9]) for _ in range(chance.randrange(5))], dtype=tensor.dtype
        )


def _edit_name(chance, description, tensors):
    """Another name, everywhere: for a tensor the name of another one, nearly; for an input anything."""
    nodes, names = description["graph"]["nodes"], sorted(tensors)
    if chance.random() < 0.3:
        node = chance.choice([node for node in nodes if node["op"] == "placeholder"])
        arguments = description["graph"]["arguments"]
        new = chance.choice([chance.choice(EVIL), *CODE, *(str(one["name"]) for one in nodes)])
        if chance.random() < 0.5:
            node["target"] = new
        else:
            arguments[chance.randrange(len(arguments))] = new
        return
    old, other = chance.choice(names), chance.choice(names)
    wide = other[:-1] + chr(ord(other[-1]) + 0xFEE0)  # the full-width form, which Python reads as the letter
    new = chance.choice([wide, f"{other}.data", f"{other}.real", f"{other}.a", "a" + ".a" * 200, *CODE])
    tensors[new] = tensors.pop(old)
    if old in description["packed"]:
        description["packed"][new] = description["packed"].pop(old)
    for node in nodes:
        if node["op"] == "get_attr" and node["target"] == old:
            node["target"] = new


def _edit_packed(chance, description, tensors):
    """Other bits, shapes and dtypes for packed codes."""
    if not description["packed"]:
        return
    entry = description["packed"][chance.choice(sorted(description["packed"]))]
    key = chance.choice(["bits", "shape", "dtype"])
    far = {
        "bits": [0, 1, 8, 16, 17, -1, True, 3],
        "dtype": DTYPES,
        "shape": [[1 << 50], [1 << 20, 1 << 20], [], [0], [-1, -4]],
    }
    entry[key] = chance.choice(far[key])
    if chance.random() < 0.5:
        entry["bits"] = 0


# -------------------------------------------------------------------------------------------- operations put in


def _supply(chance: random.Random) -> dict[str, torch.Tensor]:
    """Tensors for a hostile program: shapes that fit together, and numbers that lead out of bounds."""
    torch.manual_seed(chance.randrange(1 << 30))
    size = chance.choice([2, 4, 4, 4, 5])
    supply = {
        "m": torch.randn(size, size),
        "v": torch.randn(size),
        "c3": torch.randn(3),
        "one": torch.randn(1),
        "scalar": torch.tensor(chance.choice([0.5, 3.0, float("nan"), 1e30])),
        "image": torch.randn(2, 3, 8, 8),
        "series": torch.randn(2, 3, 8),
        "volume": torch.randn(1, 3, 4, 4, 4),
        "kernel": torch.randn(6, 3, 3, 3),
        "kernel1": torch.randn(6, 3, 3),
        "complex": torch.randn(size, size, dtype=torch.complex64),
        "pairs": torch.randn(size, size, 2),
        "grid": torch.randn(2, 5, 5, 2) * chance.choice([1.0, 1e20, float("nan"), float("inf")]),
        "places": torch.randint(0, size, (size, size)),
        "place": torch.tensor([0, 1]),
        "beyond": torch.tensor([[chance.choice([9, -9, 1 << 40, -(1 << 62), (1 << 63) - 1])] * size] * size),
        "smallest": torch.full((size,), -(1 << 63)),
        "minus": torch.full((size,), -1),
        "zeros": torch.zeros(size, dtype=torch.int64),
        "mask": torch.randn(size, size) > 0,
        "bytes": torch.randint(0, 255, (size, size), dtype=torch.uint8),
        "half": torch.randn(size, size, dtype=torch.float16),
        "double": torch.randn(2, 3, 8, 8, dtype=torch.float64),
        "nothing": torch.zeros(0, size),
        "gates": torch.randn(4 * size, size),
        "gate": torch.randn(4 * size),
        "state": torch.randn(1, size, size),
        "sequence": torch.randn(size, size, size),
    }
    return {f"t_{name}": supply[name] for name in chance.sample(sorted(supply), chance.randrange(6, len(supply)))}


def _kind(kind):
    wraps = []
    while kind.kind() in ("OptionalType", "ListType"):
        wraps.append(kind.kind())
        kind = kind.getElementType()
    return kind.kind(), wraps


def _atom(chance, kind, tensors):
    if chance.random() < 0.02:
        return _value(chance)
    if kind == "TensorType":
        return {"node": chance.choice(tensors)} if chance.random() < 0.94 else chance.choice([1, 0, -1, 2.5, True])
    if kind in ("IntType", "SymIntType"):
        return chance.choice(WHOLE[:12]) if chance.random() < 0.85 else chance.choice([*WHOLE, *WHOLE_FAR])
    if kind in ("FloatType", "NumberType"):
        value = chance.choice(REAL if chance.random() < 0.6 else WHOLE)
        return {"float": value} if isinstance(value, str) else value
    if kind == "ScalarTypeType":
        return {"dtype": chance.choice(DTYPES)}
    return {
        "BoolType": chance.random() < 0.5,
        "StringType": chance.choice(TEXTS),
        "LayoutType": {"torch": chance.choice(["strided", "sparse_coo"])},
        "DeviceObjType": {"device": chance.choice(["cpu", "cuda", "meta"])},
        "MemoryFormatType": {"torch": chance.choice(["contiguous_format", "channels_last", "preserve_format"])},
    }.get(kind)


def _argument(chance, argument, tensors):
    kind, wraps = _kind(argument.real_type)
    if "OptionalType" in wraps[:1] and chance.random() < 0.4:
        return None
    if "ListType" in wraps:
        count = argument.N if argument.N and chance.random() < 0.8 else chance.choice([0, 1, 1, 2, 2, 3, 4, 5])
        return {"list": [_atom(chance, kind, tensors) for _ in range(count)]}
    return _atom(chance, kind, tensors)


def _default(argument):
    """Whether the default of an argument can be left as it is."""
    return argument.has_default_value()


def _call(chance, name, tensors, target=None):
    """A node that calls an operation of the vocabulary with arguments of the right kinds."""
    target = target or chance.choice(OPERATORS)
    args, kwargs, positional = [], {}, True
    for argument in SCHEMAS[target].arguments:
        leave = _default(argument) and chance.random() < 0.6
        if leave or argument.kwarg_only or not positional:
            positional = positional and not leave
            if not leave and (argument.kwarg_only or not positional):
                kwargs[argument.name] = _argument(chance, argument, tensors)
            continue
        args.append(_argument(chance, argument, tensors))
    return {"op": "call_function", "name": name, "target": target, "args": {"list": args}, "kwargs": kwargs}


def _accepted(node, values):
    """What a node gives without numbers if the checks of a loaded file let it pass, else None."""
    function = BY_NAME[node["target"]]
    try:
        args = [plain._value_from_plain(value, values) for value in node["args"]["list"]]
        kwargs = {name: plain._value_from_plain(value, values) for name, value in node["kwargs"].items()}
        check_arguments(function, bind_values(function, args, kwargs), 1 << 28)
        args = [torch.device("meta") if isinstance(value, torch.device) else value for value in args]
        if any(argument.name == "device" for argument in function._schema.arguments if argument.kwarg_only):
            kwargs["device"] = torch.device("meta")
        result = function(*args, **kwargs)
    except Exception:
        return None
    leaves = result if isinstance(result, list | tuple) else [result]
    return result if all(leaf.numel() <= 1 << 22 for leaf in leaves if isinstance(leaf, torch.Tensor)) else None


def _likely_call(chance, name, values):
    """A node as `_call` makes them, of many the first that would pass the checks; and what it gives."""
    target = chance.choice(OPERATORS)
    names = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
    for _ in range(60):
        node = _call(chance, name, [*names, *names[-3:], *names[-1:]], target)
        result = _accepted(node, values)
        if result is not None:
            return node, result
    return node, None


def _insert(chance, description, tensors):
    """Operations between those of a network; the last ones read the new results."""
    nodes = description["graph"]["nodes"]
    place = chance.randrange(next(i for i, node in enumerate(nodes) if node["op"] == "call_function"), len(nodes))
    names = [node["name"] for node in nodes[:place]]
    for count in range(chance.choice([1, 1, 2])):
        node = _call(chance, f"new{count}", names)
        nodes.insert(place + count, node)
        names += [node["name"]] * 3
    text = json.dumps(nodes[place + count + 1 :]).replace(
        json.dumps({"node": chance.choice(names)}), json.dumps({"node": node["name"]})
    )
    nodes[place + count + 1 :] = json.loads(text)


def _replace_number(value, other) -> bool:
    """Put something in the place of the first whole number in plain data."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if type(item) is int:
            value[key] = other
            return True
        if isinstance(item, dict | list) and _replace_number(item, other):
            return True
    return False


def _program(chance, description, tensors):
    """A program of an attacker, on one input and tensors of the attacker's."""
    supply = _supply(chance)
    shape = chance.choice([[None, 4], [None, 3, 8, 8], [None, 5, 4], [None]])
    dtype = chance.choice(["float32", "float32", "int64"])
    nodes = [{"op": "placeholder", "name": "x", "target": "x", "args": {"list": []}, "kwargs": {}}]
    nodes += [{"op": "get_attr", "name": name, "target": name, "args": {"list": []}, "kwargs": {}} for name in supply]
    sizes = [2 if size is None else size for size in shape]
    values = {"x": torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")}
    values |= {name: value.to("meta") for name, value in supply.items()}
    made = []
    for count in range(chance.choice([1, 1, 2, 3])):
        if chance.random() < 0.15:  # a number that depends on the number of samples
            size = {"op": "call_function", "name": f"s{count}", "target": "aten.sym_size.int", "kwargs": {}}
            nodes.append({**size, "args": {"list": [{"node": "x"}, 0]}})
            factor = {"list": [{"node": f"s{count}"}, chance.choice([*WHOLE, *WHOLE_FAR])]}
            target = chance.choice(ON_SIZES[1:])
            nodes.append({"op": "call_function", "name": f"t{count}", "target": target, "args": factor, "kwargs": {}})
        node, result = _likely_call(chance, f"y{count}", values)
        if isinstance(result, list | tuple):
            place = {"list": [{"node": node["name"]}, chance.randrange(max(1, len(result)))]}
            taken = {
                "op": "call_function",
                "name": f"z{count}",
                "target": "operator.getitem",
                "args": place,
                "kwargs": {},
            }
            values[taken["name"]] = result[place["list"][1]] if result else None
            nodes.append(node)
            node = taken
        elif result is not None:
            values[node["name"]] = result
        if nodes[-1]["name"] == f"t{count}":
            _replace_number(node["args"], {"node": f"t{count}"})
        nodes.append(node)
        made.append({"node": node["name"]})
    tensors.clear()
    tensors.update(supply)
    outputs = [one["node"] for one in made]
    description["packed"], description["graph"] = {}, _graph(nodes, outputs, shape, dtype)


def _graph(nodes, outputs, shape=(None, 4), dtype="float32"):
    """The plain form of a graph with one input, whose result is one tensor or a tuple of them."""
    results = {"list": [{"tuple": [{"node": name} for name in outputs]}]}
    children = ["*"] * len(outputs)
    return {
        "nodes": [*nodes, {"op": "output", "name": "output", "target": "output", "args": results, "kwargs": {}}],
        "inputs": [{"name": "x", "shape": list(shape), "dtype": dtype, "variable": []}],
        "batch": None,
        "limits": {"batches": [1, None], "contiguous": False},
        "arguments": ["x"],
        "parameters": [],
        "defaults": {},
        "in_spec": {
            "type": "tuple",
            "children": [{"type": "tuple", "children": ["*"]}, {"type": "dict", "children": [], "keys": []}],
        },
        "out_spec": "*" if len(outputs) == 1 else {"type": "tuple", "children": children},
    }


def described() -> tuple[dict, dict]:
    """The description and the tensors of a small network, as it was saved."""
    _, description, tensors = copy.deepcopy(bases()[2])
    return description, tensors


def program(nodes: list[dict], tensors: dict, outputs: list[str] | None = None) -> tuple[dict, dict]:
    """The description and the tensors of a program with an input `x` of shape [samples, 4].

    Args:
        nodes: the operations, in plain form.
        tensors: by the names of the nodes that give them.
        outputs: the names of the nodes that it returns; None for the last one.
    """
    description, _ = described()
    first = [{"op": "placeholder", "name": "x", "target": "x", "args": {"list": []}, "kwargs": {}}]
    rest = {"op": "get_attr", "args": {"list": []}, "kwargs": {}}
    first += [{**rest, "name": name, "target": f"t_{name}"} for name in tensors]
    description["packed"] = {}
    description["graph"] = _graph([*first, *nodes], outputs or [nodes[-1]["name"]])
    return description, {f"t_{name}": tensor for name, tensor in tensors.items()}


def written(path: Path, parts: tuple[dict, dict], text: str | None = None) -> Path:
    """A file with a right checksum; its text may be another than that of the description."""
    description, tensors = parts
    write(path, bases()[2][0], json.dumps(description) if text is None else text, tensors)
    return path


# --------------------------------------------------------------------------------------------------------- layouts


def _layout(chance, metadata, description):
    """A text that is no description, or is one in a shape that takes much memory; or metadata of another file."""
    text = json.dumps(description)
    what = chance.randrange(7)
    if what == 0:
        metadata.pop(chance.choice(["format", "version"]))
    elif what == 1:
        metadata[chance.choice(["format", "version"])] = chance.choice(EVIL)
    elif what == 2:
        return text.replace("[]", "[" * 50_000 + "]" * 50_000, 1)
    elif what == 3:
        return text.replace("[]", f"[{'[],' * 200_000}0]", 1)
    elif what == 4:
        return text.replace("0", chance.choice(["NaN", "Infinity", "1e999", "9" * 5000]), 1)
    elif what == 5:
        return text[: chance.randrange(len(text))]
    else:
        entry = {
            "op": "call_function",
            "name": "a",
            "target": "aten.relu.default",
            "args": {"list": [{"node": "x"}]},
            "kwargs": {},
        }
        description["graph"]["nodes"][-1:-1] = [entry | {"name": f"a{i}"} for i in range(chance.choice([100, 60_000]))]
    return json.dumps(description)


def _break_header(chance, path):
    """Bytes of the header changed: offsets, lengths, dtypes."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(8) if chance.random() < 0.2 else 8 + int(length * (1 - math.sqrt(chance.random())))
        content[min(place, len(content) - 1)] = chance.choice(b'0123456789{}[]",:aA\x00\xff')
    path.write_bytes(content)
