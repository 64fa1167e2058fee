"""Names of a file mean the same in the code that PyTorch runs as in the file."""

import pytest
import torch
from facts import raises
from fuzz.hostile import program, written
from torch import nn

import roundwise as rw

X = {"node": "x"}


def node(name, target, *args, op="call_function"):
    return {"op": op, "name": name, "target": target, "args": {"list": list(args)}, "kwargs": {}}


def named(path, names, numbers=1):
    """A file with a tensor of each name, the first of which is the result."""
    nodes = [node(f"t{place}", name, op="get_attr") for place, name in enumerate(names)]
    description, _ = program([*nodes, node("y", "aten.mul.Tensor", {"node": "t0"}, 1.0)], {})
    return written(path / "model.rw", (description, {name: torch.ones(numbers + i) for i, name in enumerate(names)}))


LOOKALIKES = [
    "\uff57",
    "a.\uff57",
    "_\uff3fclass\uff3f\uff3f",
    "\uff46\uff4f\uff52ward",
    "\u00aa",
    "\ufb01",
    "a.\u212a",
]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_tensor_whose_name_python_reads_as_another_one_is_refused(name, tmp_path):
    with raises(rw.FileFormatError, name):
        rw.load(named(tmp_path, [name]))


@pytest.mark.parametrize("names", [["a", "a.data"], ["a.data", "a"], ["b.a", "b.a.c.d"]])
def test_a_tensor_that_would_be_a_part_of_another_one_is_refused(names, tmp_path):
    with raises(rw.FileFormatError, min(names)):
        rw.load(named(tmp_path, names))


@pytest.mark.parametrize("name", ["_out_spec", "_modules", "_buffers.x", "forward", "a.__class__"])
def test_a_tensor_in_the_place_of_what_a_module_needs_is_refused(name, tmp_path):
    with raises(rw.FileFormatError, name):
        rw.load(named(tmp_path, [name]))


@pytest.mark.parametrize(
    ("names", "found"), [(["a" + 64 * ".a"], 65), ([f"m{i}" + ".a" * 60 for i in range(20)], 1040)]
)
def test_names_that_need_more_modules_than_networks_have_are_refused(names, found, tmp_path):
    with raises(rw.FileFormatError, found):
        rw.load(named(tmp_path, names))


def test_names_of_other_alphabets_are_saved_and_read(tmp_path):
    network = nn.ModuleDict({"größe": nn.Linear(4, 4), "σ": nn.ReLU(), "1-\uff57": nn.Linear(4, 2)})
    quantized = rw.quantize(Chain(network).eval(), torch.randn(8, 4), NEAREST)
    quantized.save(tmp_path / "model.rw")
    loaded, x = rw.load(tmp_path / "model.rw"), torch.randn(3, 4)
    assert {name.split(".")[1] for name in loaded.weights} == {"größe", "1-\uff57"}
    assert torch.equal(loaded(x), quantized(x))


NEAREST = rw.Recipe([rw.Quantize(rounding=rw.rounding.Nearest())])


class Chain(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


def two_inputs(targets, names=("x", "q"), arguments=("x", "q"), between=()):
    """A program that divides its second input, after a tensor that cannot be divided."""
    description, tensors = program([node("y", "aten.relu.default", {"node": names[1]})], {"w": torch.ones(2, 4)})
    graph, child = description["graph"], ["*", "*"]
    graph["inputs"] = [{"name": name, "shape": [None, 4], "dtype": "float32", "variable": []} for name in "xq"]
    graph["arguments"], graph["in_spec"]["children"][0]["children"] = list(arguments), child
    places = [node(name, target, op="placeholder") for name, target in zip(names, targets, strict=True)]
    graph["nodes"][:1] = [places[0], *between, places[1]]
    return description, tensors


@pytest.mark.parametrize("targets", [("x", "x"), ("q", "q")])
def test_two_inputs_of_one_name_are_refused(targets, tmp_path):
    with raises(rw.FileFormatError, targets[0], "'q'"):
        rw.load(written(tmp_path / "model.rw", two_inputs(targets)))


def test_an_input_behind_an_operation_is_refused(tmp_path):
    between = [node("z", "aten.relu.default", X)]
    with raises(rw.FileFormatError, "'q'", "'z'"):
        rw.load(written(tmp_path / "model.rw", two_inputs(("x", "z"), between=between)))


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        (("x", "q"), ("q", "x")),
        (("input", "input_1"), ("input", "input_1")),
        (("x", "q"), ("q", "w")),
        (("x", "q"), "ab"),
    ],
)
def test_an_input_is_what_its_node_reads_whatever_else_the_file_calls_it(names, targets, tmp_path):
    model = rw.load(written(tmp_path / "model.rw", two_inputs(targets, names)))
    assert torch.equal(model(torch.zeros(2, 4), torch.full((2, 4), 5.0)), torch.full((2, 4), 5.0))


@pytest.mark.parametrize("name", ["inf", "nan", "torch", "pytree", "\uff49nf", "self", "class"])
def test_an_argument_that_the_code_would_read_for_something_else_is_refused(name, tmp_path):
    with raises(rw.FileFormatError, name):
        rw.load(written(tmp_path / "model.rw", two_inputs(("x", "q"), arguments=("x", name))))


class Builtins(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, input, max, type):  # noqa: A002  the names are what is tested
        return self.layer(input) + max["range"] * type


def test_arguments_with_the_names_of_functions_are_saved_and_read(tmp_path):
    samples = [{"input": torch.randn(2, 4), "max": {"range": torch.randn(2, 4)}, "type": torch.ones(2, 4)}]
    quantized = rw.quantize(Builtins().eval(), samples, NEAREST)
    quantized.save(tmp_path / "model.rw")
    rw.load(tmp_path / "model.rw").save(tmp_path / "again.rw")
    assert torch.equal(rw.load(tmp_path / "again.rw")(**samples[0]), quantized(**samples[0]))
