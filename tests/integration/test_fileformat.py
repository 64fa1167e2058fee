"""A `.rw` file holds what was saved, in the bits that were promised, and nothing can be made of it but a network."""

import collections
import functools
import hashlib
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.utils._pytree as pytree
from facts import has, raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipes import quantizing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from thirds import in_thirds
from torch import nn
from zoo import CASES

import roundwise as rw
from roundwise.artifacts import rwfile as fileformat
from roundwise.artifacts.guard import Guard, Memory
from roundwise.artifacts.plain import graph_from_plain, graph_to_plain
from roundwise.artifacts.rwfile import pack, unpack
from roundwise.artifacts.signature import CallSignature
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.transforms.normalize import normalize
from roundwise.methods.interfaces import Rounding, RoundingSolver
from roundwise.numerics.grid import BITS, Codebook
from roundwise.statistics import Nothing

SAMPLES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
NEAREST = quantizing(rounding=rw.rounding.Nearest())


class Net(nn.Module):
    """Modules whose names are no identifiers, a float layer, arithmetic on sizes, and a structure of outputs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"3x3": nn.Conv2d(3, 4, 3), "1-by-1 +ß": nn.Conv2d(4, 4, 1)})
        self.kept = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x).relu()
        x = x.flatten(2).transpose(1, 2)
        positions = torch.arange(x.shape[1], device=x.device).view(1, -1, 1).expand(x.shape[0], -1, 1)
        x = self.head(self.kept[0](x) + positions)
        return {"scores": x.view(x.shape[0] * x.shape[1], -1), "parts": (x[:, 0], [x.amax(1), None]), 3: "three"}


def outputs_equal(one, other):
    left, right = pytree.tree_flatten(one), pytree.tree_flatten(other)
    assert left[1] == right[1]
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left[0], right[0], strict=True)
    )


@functools.cache
def quantized():
    torch.manual_seed(0)
    weights = rw.Weights(bits=3, symmetric=False)
    overrides = {"kept.0": None, "head": rw.Weights(bits=5, granularity=rw.PerTensor(), rounding=rw.rounding.Floor())}
    recipe = quantizing(weights, rw.rounding.Stochastic(), overrides, seed=7, memory_budget=1 << 20)
    return rw.quantize(Net().eval(), SAMPLES, recipe)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.rw"
    quantized().save(path)
    return path


# ---------------------------------------------------------------------------------------------- what comes back


def test_what_was_saved_comes_back_bit_by_bit(saved):
    loaded = rw.load(saved)
    assert outputs_equal(loaded(SAMPLES), quantized()(SAMPLES))
    assert loaded.report == quantized().report
    assert loaded.recipe == quantized().recipe
    assert loaded.versions == quantized().versions
    assert set(loaded.versions) == {"roundwise", "torch", "numpy", "python"}
    for name, value in quantized().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    assert outputs_equal(loaded.program.module()(SAMPLES[:3]), quantized()(SAMPLES[:3]))


def test_a_float_network_gives_the_same_bits_after_loading(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(53, 37), nn.ReLU(), nn.Linear(37, 19)).eval()
    small = rw.compress(model, torch.randn(64, 53), rw.Compress(parameters=0.8, multiple=1))
    small.save(tmp_path / "small.rw")
    loaded = rw.load(tmp_path / "small.rw")
    for sample in torch.randn(100, 1, 53):  # for one sample, the order of a sum depends on where the weights lie
        torch.testing.assert_close(loaded(sample), small(sample), rtol=0, atol=0)


def test_a_loaded_model_saves_to_the_same_content(saved, tmp_path):
    again = tmp_path / "again.rw"
    rw.load(str(saved)).save(str(again))
    assert metadata(again) == metadata(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_come_back(dtype, tmp_path):
    model = rw.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)).eval().to(dtype), SAMPLES.to(dtype), NEAREST)
    model.save(tmp_path / "model.rw")
    assert torch.equal(rw.load(tmp_path / "model.rw")(SAMPLES.to(dtype)), model(SAMPLES.to(dtype)))


def test_a_model_of_named_inputs_is_called_by_name_after_loading(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, left, right, scale=2.0):
            return self.linear(left - right) * scale

    model = rw.quantize(Two().eval(), {"right": SAMPLES, "left": SAMPLES + 1}, NEAREST)
    model.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    expected = model(left=SAMPLES, right=0 * SAMPLES)
    assert torch.equal(loaded(right=0 * SAMPLES, left=SAMPLES), expected)
    assert torch.equal(loaded(SAMPLES, 0 * SAMPLES), expected)


@dataclass(frozen=True)
class Mine(RoundingSolver[Nothing]):
    """A solver that no table knows."""

    strength: float = 0.5
    needs: ClassVar[type] = Nothing
    traits: ClassVar[rw.rounding.Traits] = rw.rounding.Traits()

    def solve(self, problem, generator):
        return Rounding(problem.grid.quantize(problem.weight))


def test_the_recipe_keeps_methods_that_are_not_known_here_by_their_text(tmp_path):
    weights = rw.Weights(bits=8, rounding=Mine(2.0))
    recipe = quantizing(
        rounding=Mine(), overrides={"0": weights, "1": rw.Weights(rounding=rw.rounding.Ceil()), "2": None}
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    rw.quantize(model.eval(), SAMPLES, recipe).save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw").recipe
    stage = loaded.stage(rw.Quantize)
    assert stage.rounding.text == "Mine(strength=0.5)"
    assert stage.overrides["0"].weights.rounding.text == "Mine(strength=2.0)"
    assert stage.overrides["0"].weights.bits == 8
    assert loaded.stage(rw.Quantize).overrides["1"] == recipe.stage(rw.Quantize).overrides["1"]
    assert stage.overrides["2"].weights == "float"
    assert loaded.as_dict() == recipe.as_dict()
    with raises(rw.RecipeError, "Mine(strength=2.0)", "rounding"):
        rw.quantize(model, SAMPLES, loaded)


@pytest.mark.parametrize("name", in_thirds(sorted(CASES.keys() - {"ControlFlowOperator"}), start=1))
def test_every_network_that_can_be_captured_has_a_form_in_a_file_and_is_allowed_to_run(name):
    case = CASES[name]
    args, kwargs = case.inputs(6)
    graph = normalize(TorchExport().graph(case.build(), args, kwargs))
    read = graph_from_plain(json.loads(json.dumps(graph_to_plain(graph))), dict(graph.constants))
    guard, leaves = Guard(read, Memory(1 << 16)), CallSignature.of(read).leaves(args, kwargs)
    guard.check_batch(23)
    expected = pytree.tree_leaves(graph.module()(*args, **kwargs))
    for _ in range(2):  # the first call is compared with the rehearsal
        assert outputs_equal(pytree.tree_leaves(guard.call(read.module(), leaves)), expected)


class Uninitialized(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        y = torch.empty(2).fill_(2.0) + torch.empty_like(x).fill_(1.0)[..., :2] + x.new_empty(2).fill_(0.5)
        return self.layer(x) + y


def test_memory_as_it_was_found_is_saved_as_zeros(tmp_path):
    model = rw.quantize(Uninitialized().eval(), SAMPLES, NEAREST)
    model.save(tmp_path / "model.rw")
    text = metadata(tmp_path / "model.rw")["model"]
    assert not [target for target in re.findall(r'"target": "([^"]*)"', text) if "empty" in target]
    assert "aten.zeros.default" in text
    assert torch.equal(rw.load(tmp_path / "model.rw")(SAMPLES), model(SAMPLES))


# --------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("symmetric", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("bits", BITS)
def test_a_code_takes_the_bits_that_it_has(bits, symmetric, tmp_path):
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    recipe = quantizing(rw.Weights(bits=bits, symmetric=symmetric), rw.rounding.Nearest())
    result = rw.quantize(model.eval(), torch.randn(4, 64), recipe)
    result.save(tmp_path / "model.rw")
    stored = load_file(tmp_path / "model.rw")
    assert stored["0.weight_codes"].dtype == torch.uint8
    assert stored["0.weight_codes"].numel() == 64 * 32 * bits // 8
    assert stored["0.weight_zero_point"].numel() == (0 if symmetric else 32 * bits // 8)
    assert sum(value.nbytes for value in stored.values()) == result.report.quantized_bytes
    assert torch.equal(rw.load(tmp_path / "model.rw")(torch.eye(64)), result(torch.eye(64)))


def test_a_file_is_as_small_as_its_codes(tmp_path):
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    rw.quantize(model.eval(), torch.randn(4, 512), NEAREST).save(tmp_path / "model.rw")
    weights, outputs = 2 * 512 * 512, 2 * 512
    assert (tmp_path / "model.rw").stat().st_size < weights / 2 + 8 * outputs + 12_000


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    shape=st.lists(st.integers(0, 7), max_size=3),
    seed=st.integers(0, 1000),
)
def test_packing_is_undone_by_unpacking(bits, symmetric, shape, seed):
    book = Codebook(bits, symmetric)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(book.qmin, book.qmax + 1, shape, generator=generator).to(book.dtype)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, shape, book.dtype), codes)


def test_packing_in_pieces_is_packing_at_once():
    count = (1 << 21) + 100  # more codes than are packed at a time
    codes = torch.randint(-4, 4, (count,)).to(torch.int8)
    packed = pack(codes, 3)
    assert torch.equal(torch.cat([pack(piece, 3) for piece in codes.split(100_000)]), packed)
    assert torch.equal(unpack(packed, 3, [count], torch.int8), codes)


# --------------------------------------------------------------------------------------------------- how it is written


def test_a_file_is_plain_safetensors_and_holds_no_pickle(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert set(header["__metadata__"]) == {"format", "version", "model", "sha256"}
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "U8", "I64"}
    for opcode in (b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"cposix", b"cbuiltins", b"c__builtin__"):
        assert opcode not in content[: 8 + length]


def test_a_file_can_be_read_by_whom_the_folder_allows(saved, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert saved.stat().st_mode == plain.stat().st_mode


def test_saving_over_a_file_replaces_it(saved):
    before = saved.read_bytes()
    rw.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), SAMPLES, NEAREST).save(saved)
    assert saved.read_bytes() != before
    assert len(rw.load(saved).report.layers) == 1
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("a bug")]
)
def test_a_save_that_fails_leaves_the_old_file_and_no_other(saved, monkeypatch, failure):
    before = saved.read_bytes()

    def half_written(tensors, path, metadata):
        Path(path).write_bytes(before[:100])
        raise failure

    monkeypatch.setattr(fileformat, "save_file", half_written)
    expected = rw.FileFormatError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected):
        quantized().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_places_that_cannot_be_written_are_errors_that_say_so(tmp_path, monkeypatch):
    with raises(rw.FileFormatError, tmp_path / "missing" / "model.rw"):
        quantized().save(tmp_path / "missing" / "model.rw")
    (tmp_path / "folder").mkdir()
    with raises(rw.FileFormatError, tmp_path / "folder"):
        quantized().save(tmp_path / "folder")

    def refuse(*_, **__):
        raise failure

    monkeypatch.setattr(Path, "touch", refuse)
    failure = PermissionError(13, "Permission denied")
    with raises(rw.FileFormatError, "model.rw", "Permission denied"):
        quantized().save(tmp_path / "model.rw")
    failure = FileNotFoundError(2, "No such file or directory")  # as in /proc, which is a folder
    with raises(rw.FileFormatError, "model.rw", tmp_path):
        quantized().save(tmp_path / "model.rw")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class Answer(nn.Module):
    def __init__(self, structure):
        super().__init__()
        self.linear, self.structure = nn.Linear(6, 2), structure

    def forward(self, x):
        return self.structure(self.linear(x))


def test_an_output_of_a_type_that_no_file_can_describe_is_refused_on_saving(tmp_path):
    model = rw.quantize(Answer(lambda x: collections.defaultdict(list, a=x)).eval(), SAMPLES, NEAREST)
    assert type(model(SAMPLES)) is collections.defaultdict
    with raises(rw.FileFormatError, "defaultdict", ".rw"):
        model.save(tmp_path / "model.rw")
    assert list(tmp_path.iterdir()) == []


class Registered:
    """As a library's own kind of output: known to PyTorch by name, with its keys."""

    def __init__(self, **entries):
        self.entries = entries


@pytest.fixture
def registered():
    name = "test_fileformat.Registered"
    pytree.register_pytree_node(
        Registered,
        lambda value: (list(value.entries.values()), list(value.entries)),
        lambda values, keys: Registered(**dict(zip(keys, values, strict=True))),
        serialized_type_name=name,
    )
    yield name
    pytree._deregister_pytree_node(Registered)


def test_an_output_of_a_registered_type_comes_back_where_it_is_registered(registered, tmp_path):
    path = tmp_path / "model.rw"
    rw.quantize(Answer(lambda x: Registered(a=x, b=x + 1)).eval(), SAMPLES, NEAREST).save(path)
    loaded = rw.load(path)(SAMPLES)
    assert isinstance(loaded, Registered)
    assert list(loaded.entries) == ["a", "b"]


# ------------------------------------------------------------------------------------------------- damaged files


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_file_that_was_cut_short_is_refused(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for size in (0, 1, 7, 8, 9, length, 8 + length, 9 + length, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:size])
        with raises(rw.FileFormatError, "model.rw", "header"):
            rw.load(saved)
    saved.write_bytes(content + b"\0")
    with raises(rw.FileFormatError, "model.rw", "header"):
        rw.load(saved)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / "model.rw"
    quantized().save(path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 1 << 62), mask=st.integers(1, 255))
def test_a_byte_that_was_changed_is_noticed(content, tmp_path, where, mask):
    changed = bytearray(content)
    changed[where % len(changed)] ^= mask
    path = tmp_path / "changed.rw"
    path.write_bytes(changed)
    try:
        loaded = rw.load(path)
    except rw.FileFormatError:
        return
    # Some bytes may be written in two ways: white space, or the case of a digit in an escaped letter.
    assert outputs_equal(loaded(SAMPLES), quantized()(SAMPLES))
    assert loaded.report == quantized().report
    assert loaded.recipe == quantized().recipe


@pytest.mark.parametrize("share", [0.999, 0.5, 0.0])
def test_a_byte_that_was_changed_among_the_weights_is_always_refused(share, saved):
    changed = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(changed[:8], "little")  # behind the header, whose length comes first
    changed[start + int(share * (len(changed) - start))] ^= 1
    saved.write_bytes(changed)
    with raises(rw.FileFormatError, "model.rw", "checksum"):
        rw.load(saved)


def test_other_files_are_refused_with_the_reason(tmp_path, saved):
    with raises(rw.FileFormatError, "missing.rw", "No such file"):
        rw.load(tmp_path / "missing.rw")
    with raises(rw.FileFormatError, tmp_path):
        rw.load(tmp_path)
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle.pt")
    with raises(rw.FileFormatError, "pickle.pt", "header"):
        rw.load(tmp_path / "pickle.pt")
    save_file({"a": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with raises(rw.FileFormatError, "weights.safetensors"):
        rw.load(tmp_path / "weights.safetensors")
    for version in (1, 3):
        save_file(load_file(saved), saved, metadata(saved) | {"version": str(version)})
        with raises(rw.FileFormatError, "model.rw", version, 2):
            rw.load(saved)


# ----------------------------------------------------------------------------------------- files made with intent


def forge(path, change):
    """Change the description (and tensors) of a file and put a right checksum on it."""
    tensors, data = load_file(path), metadata(path)
    description = json.loads(data["model"])
    change(description, tensors)
    text = json.dumps(description)
    save_file(tensors, path, data | {"model": text, "sha256": digest(text, tensors)})


def digest(text, tensors):
    """The checksum that a file with this content needs."""
    total = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        if value.numel():
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def node(description, op):
    return next(node for node in description["graph"]["nodes"] if node["op"] == op)


def operation(name):
    def change(description, tensors):
        node(description, "call_function")["target"] = name

    return change


def rename_tensor(new):
    """Gives the bias of the first layer, which is a plain tensor, another name."""

    def change(description, tensors):
        (attribute,) = [n for n in description["graph"]["nodes"] if n["target"] == "layers.3x3.bias"]
        tensors[new] = tensors.pop(attribute["target"])
        attribute["target"] = new

    return change


def set_in(op, key, value):
    def change(description, tensors):
        node(description, op)[key] = value

    return change


def in_graph(key, value):
    def change(description, tensors):
        description["graph"][key] = value

    return change


def repacked(**entries):
    def change(description, tensors):
        name = next(name for name, how in description["packed"].items() if how["bits"] == 3)
        description["packed"][name].update(entries)

    return change


CODE = "__import__('os').system('touch hacked')"
IMPORT = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": ["a"]}


def container(kind, keys, children=("*",)):
    return {"type": kind, "children": list(children), "keys": keys}


KWARGS = {"type": "tuple", "children": [{"type": "tuple", "children": []}, container("dict", [f"x':{CODE},'y"])]}
FORGED = {
    "an operation of Python": (operation("builtins.eval"), ("builtins.eval",)),
    "an operation of the operating system": (operation("os.system"), ("os.system",)),
    "a method by its dotted name": (operation("operator.attrgetter"), ("operator.attrgetter",)),
    "an operation of another library": (operation("prims.add.default"), ("prims.add.default",)),
    "an operation that reads files": (operation("aten.from_file.default"), ("aten.from_file.default",)),
    "an operation that writes into its input": (operation("aten.add_.Tensor"), ("aten.add_.Tensor",)),
    "an operation that prints": (operation("aten._print.default"), ("aten._print.default",)),
    "an attribute of a namespace": (operation("aten.__class__.__init__"), ("aten.__class__.__init__",)),
    "an operation that does not exist": (operation("aten.nothing.default"), ("aten.nothing.default",)),
    "another kind of node": (set_in("call_function", "op", "call_method"), ("call_method",)),
    "a call of a module": (set_in("call_function", "op", "call_module"), ("call_module",)),
    "a node's name with code": (set_in("call_function", "name", f"x = {CODE}"), (f"x = {CODE}",)),
    "an input's name with code": (set_in("placeholder", "target", f"x={CODE}"), (f"x={CODE}",)),
    "an input named like a keyword": (set_in("placeholder", "target", "lambda"), ("lambda",)),
    "an argument's name with code": (in_graph("arguments", [f"x={CODE}"]), (f"x={CODE}",)),
    "a keyword's name with code": (in_graph("in_spec", KWARGS), (f"x':{CODE},'y",)),
    "a keyword argument with code": (set_in("call_function", "kwargs", {f"x={CODE}, y": 1}), (f"x={CODE}, y",)),
    "too many arguments": (in_graph("arguments", ["x", "y"]), ()),
    "a tensor that ends a string": (rename_tensor(f'a").{CODE}#'), ('a").__import__(', "touch hacked")),
    "a tensor that escapes its module": (rename_tensor("__class__.x"), ("__class__.x",)),
    "a tensor in the place of a method": (rename_tensor("forward"), ("forward",)),
    "a tensor in the place of all tensors": (rename_tensor("_parameters.x"), ()),
    "a tensor without a name": (rename_tensor("a..b"), ("a..b",)),
    "a type that was not registered": (in_graph("out_spec", container("os.system", ["a"])), ("os.system",)),
    "a type that would import a module": (
        in_graph("out_spec", container("collections.defaultdict", IMPORT)),
        ("collections.defaultdict",),
    ),
    "keys that would import a module": (
        in_graph("out_spec", container("collections.defaultdict", ["this", "s"])),
        ("collections.defaultdict",),
    ),
    "PyTorch's own description of a type": (
        in_graph("in_spec", [1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]),
        ("model.rw",),
    ),
    "inputs that do not fit": (in_graph("inputs", []), ("inputs",)),
    "a value that comes later": (set_in("call_function", "args", {"list": [{"node": "output"}]}), ("output",)),
    "no nodes": (in_graph("nodes", []), ("operations",)),
    "two results": (lambda d, _: d["graph"]["nodes"].append(dict(d["graph"]["nodes"][-1], name="more")), ("outputs",)),
    "a dtype that is a function": (set_in("call_function", "args", {"list": [{"dtype": "load"}]}), ("load", "dtype")),
    "a constant that is a function": (set_in("call_function", "args", {"list": [{"torch": "load"}]}), ("torch",)),
    "codes of too many bits": (repacked(bits=64), (41, 108, 64)),
    "more codes than bytes": (repacked(shape=[1 << 40]), (41, 1 << 40, 3)),
    "codes of a negative number": (repacked(shape=[-1, -108]), ("model.rw", "[-1, -108]")),
    "codes of no dtype": (repacked(dtype="os"), ("os", "dtype")),
    "no graph": (lambda description, _: description.pop("graph"), ("model.rw", "'packed'", "graph")),
    "a report of other fields": (lambda description, _: description["report"].update(hacked=1), ("hacked",)),
    "a recipe of other fields": (lambda description, _: description["recipe"].update(hacked=1), ("'hacked'",)),
    "a list instead of a graph": (lambda description, _: description.update(graph=[]), ("model.rw", "TypeError")),
}


@pytest.mark.parametrize(("change", "facts"), FORGED.values(), ids=FORGED)
def test_a_forged_file_is_refused_and_runs_nothing(change, facts, saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    forge(saved, change)
    with raises(rw.FileFormatError, *facts) as caught:
        rw.load(saved)
    assert not has(caught.value, "checksum")
    assert [path.name for path in tmp_path.iterdir()] == ["model.rw"]
    assert "this" not in sys.modules


def test_forging_nothing_gives_a_good_file(saved):
    forge(saved, lambda description, tensors: None)
    assert outputs_equal(rw.load(saved)(SAMPLES), quantized()(SAMPLES))


def test_nodes_nested_without_end_are_refused(saved):
    tensors, data = load_file(saved), metadata(saved)
    text = data["model"].replace('"args": {"list": []}', f'"args": {{"list": {"[" * 100_000}{"]" * 100_000}}}', 1)
    assert text != data["model"]
    save_file(tensors, saved, data | {"model": text, "sha256": digest(text, tensors)})
    with raises(rw.FileFormatError, "model.rw", "RecursionError"):
        rw.load(saved)
