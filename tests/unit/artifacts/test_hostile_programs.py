"""A file may hold any program of an attacker: it is refused in words, or computes what it says."""

import json

import pytest
import torch
from facts import raises
from fuzz.hostile import described, program, written

import roundwise as rw

SMALLEST = -(1 << 63)
FAR = torch.full((4, 4), 1 << 40)


def call(target, *args, **kwargs):
    """One operation that reads the input `x`, tensors by their names in `{…}`, and gives the result."""
    return [{"op": "call_function", "name": "y", "target": target, "args": {"list": list(args)}, "kwargs": kwargs}]


def value(name):
    return {"node": name}


def many(*items):
    return {"list": list(items)}


X = value("x")


def sizes(*steps):
    """Arithmetic on the number of samples, and a tensor of zeros of the size that comes out."""
    nodes = call("aten.sym_size.int", X, 0)
    nodes[0]["name"] = "s0"
    for number, (target, *args) in enumerate(steps):
        nodes += call(target, *args)
        nodes[-1]["name"] = f"s{number + 1}"
    return nodes + call("aten.zeros.default", many(value(f"s{len(steps)}")))


MATRIX, SERIES = torch.ones(4, 4), torch.ones(1, 2, 6)
IMAGE, STATISTICS = torch.ones(1, 3, 8, 8), torch.ones(1)
KERNEL = torch.ones(2, 3, 3, 3)
NORM = "aten._native_batch_norm_legit_no_training.default"
ADDRESSES = {"image": IMAGE, "kernel": KERNEL, "one": STATISTICS, "matrix": MATRIX, "series": SERIES}
NAMED = {name: value(name) for name in ADDRESSES}
image, kernel, one, matrix, series = NAMED.values()

REFUSED = {
    # memory of others, read or written
    "an operation that trusts the places it is given": (call("aten.adaptive_max_pool2d_backward.default", X, X, X), ()),
    "a sparse matrix without checks": (call("aten._sparse_csr_tensor_unsafe.default", X, X, X, many(4, 4)), ()),
    "memory as it was found": (call("aten.empty.memory_format", many(1 << 20)), ("aten.empty.memory_format",)),
    "memory as it was found, in a shape": (call("aten.new_empty.default", X, many(9)), ("aten.new_empty.default",)),
    "a view before the tensor": (call("aten.as_strided.default", X, many(4), many(-1), 3), ("stride", -1)),
    "bytes as truth values": (call("aten.view.dtype", X, {"dtype": "bool"}), ("y",)),
    "another storage": (call("aten.set_.source_Tensor", X, X), ("aten.set_",)),
    "a resize": (call("aten.resize.default", X, many(1 << 20)), ("aten.resize",)),
    "places without checks": (call("aten._unsafe_index.Tensor", X, many(X)), ("aten._unsafe_index",)),
    "statistics of other channels": (call(NORM, image, None, None, one, one, 0.1, 1e-5), ("[1]", "[3]", "y")),
    "sizes that are not the tensor's": (
        call("aten.native_group_norm.default", image, None, None, 1, 3, 1 << 20, 1, 1e-5),
        (1 << 20, "[1, 3, 8, 8]"),
    ),
    "weights of too few gates": (
        call("aten.lstm.input", series, many(series, series), many(one, one), False, 1, 0.0, False, False, False),
        ("y",),
    ),
    "windows beyond all memory": (
        call("aten.conv2d.default", image, kernel, None, many(1, 1), many(0, 0), many(1 << 62, 1 << 62)),
        (1 << 62, "dilation"),
    ),
    "windows whose square has more than 64 bits": (
        call("aten.max_pool2d.default", image, many(1 << 31, 1 << 31)),
        (1 << 31,),
    ),
    "a negative size": (call("aten.broadcast_to.default", one, many(0, -4, 100)), ("[0, -4, 100]", "y")),
    "another negative size": (call("aten.expand.default", one, many(-4, 0, 1)), ("-4", "y")),
    "a negative padding": (call("aten.conv2d.default", image, kernel, None, many(1, 1), many(-1, -1)), (-1, "padding")),
    "no groups": (call("aten.conv2d.default", image, kernel, None, many(1), many(0), many(1), 0), (0, "groups")),
    "a scale near zero": (call("aten.upsample_nearest2d.default", image, many(8, 8), 1e-300, 1e-300), ("scales_h",)),
    "a scale that is no number": (
        call("aten.upsample_nearest2d.vec", image, None, many({"float": "nan"}, 1.0)),
        ("scale_factors",),
    ),
    "a mode that does not exist": (call("aten.grid_sampler.default", image, image, 7, 0, False), (7,)),
    "a pad that reads before the tensor": (call("aten.pad.default", image, many(-9, 9), "reflect"), (-9,)),
    "statistics that are written": (
        call("aten.batch_norm.default", image, None, None, value("three"), value("three"), True, 0.1, 1e-5, False),
        ("y", "running"),
    ),
    "statistics of each image that are written": (
        call("aten.instance_norm.default", image, None, None, value("three"), value("three"), True, 0.1, 1e-5, False),
        ("y", "running"),
    ),
    "one of two statistics that are written": (
        call("aten.instance_norm.default", image, None, None, None, value("three"), True, 0.1, 1e-5, False),
        ("y", "running"),
    ),
    # the end of the process
    "whole numbers divided by −1": (call("aten.div.Tensor_mode", value("far"), -1, rounding_mode="trunc"), (-1,)),
    "whole numbers divided by a number that becomes −1": (
        call("aten.div.Tensor_mode", value("short"), (1 << 32) - 1, rounding_mode="trunc"),
        ((1 << 32) - 1, "torch.int32"),
    ),
    "whole numbers divided by a tensor": (call("aten.remainder.Tensor", value("far"), value("far")), ()),
    "a number for a dtype": (call("aten.full.default", many(2), 1.0, dtype=124), (124, "dtype")),
    "a number for a layout": (call("aten.zeros.default", many(2), layout=3), (3, "layout")),
    "a number for a memory format": (call("aten.clone.default", X, memory_format=77), (77, "memory_format")),
    "a number for a tensor of a layer": (call("aten.linear.default", X, 3), ("y",)),
    "a truth value for a number": (call("aten.softmax.int", X, True), ("dim", "True")),
    "an argument twice": (call("aten.relu.default", X, self=X), ("self",)),
    "an argument that does not exist": (call("aten.relu.default", X, other=X), ("other",)),
    "memory of a driver": (call("aten.zeros.default", many(2), pin_memory=True), ("y",)),
    "a sparse layout": (call("aten.zeros.default", many(2), layout={"torch": "sparse_coo"}), ("torch",)),
    "a dtype that kernels do not know": (call("aten.to.dtype", X, {"dtype": "bits8"}), ("bits8",)),
    "attention over nothing": (
        call("aten.scaled_dot_product_attention.default", value("nothing"), value("nothing"), value("nothing")),
        ("[1, 0, 4]",),
    ),
    # more memory than the machine has
    "zeros": (call("aten.zeros.default", many(1 << 20, 1 << 20)), ("4.0 TiB",)),
    "a count": (call("aten.arange.default", 1e15), ()),
    "an expansion": (call("aten.expand.default", one, many(1 << 40)), (1 << 40,)),
    "an expansion within bounds of each size": (call("aten.expand.default", one, many(*[1 << 30] * 2)), ()),
    "repetitions": (call("aten.repeat.default", one, many(1 << 31)), ("8.0 GiB",)),
    "a padding": (call("aten.constant_pad_nd.default", one, many(0, 1 << 31)), ("8.0 GiB",)),
    "a sum of all products": (call("aten.einsum.default", "ab,cd,ac,bd->", many(*[value("wide")] * 4)), ("16.0 GiB",)),
    "many pieces": (
        [*call("aten.expand.default", one, many(1 << 22)), dict(*call("aten.split.Tensor", value("y"), 1), name="z")],
        (1 << 22, "z"),
    ),
    "many dimensions": (call("aten.expand.default", one, many(*[1] * 60)), (60,)),
    "nothing, many times": (
        call("aten.adaptive_max_pool2d.default", image, many((1 << 31) - 1, 0)),
        ("24.0 GiB", str((1 << 31) - 1)),
    ),
    "nothing, expanded": (call("aten.expand.default", one, many(1 << 30, 1 << 20, 0)), ("PiB",)),
    "columns for places of the padding": (
        call("aten.conv2d.default", value("dot"), value("window"), None, many(1, 1), many(200, 200)),
        ("own copies",),
    ),
    "columns for places of the padding in float32": (
        call("aten.conv2d.default", value("pixel"), value("tile"), None, many(1), many(1000)),
        ("own copies",),
    ),
    "columns of as many channels as the result has": (
        [
            *[dict(*call("aten.expand.default", value("point"), many(1, 100, 100)), name="w")],
            *[dict(*call("aten.expand.default", value("point"), many(1, 1, 10_000)), name="i")],
            *call("aten.conv_transpose1d.default", value("i"), value("w")),
        ],
        ("own copies",),
    ),
    "a size that grows with the samples": (sizes(("operator.mul", value("s0"), 1 << 32)), ()),
    "a power": (sizes(("operator.pow", 10, 1 << 40)), (1 << 40,)),
    "a text many times": (sizes(("operator.mul", "a", 1 << 40)), ("'a'",)),
    "a list many times": (sizes(("operator.mul", many(1), 1 << 40)), ("[1]",)),
    # others
    "random numbers": (call("aten.dropout.default", X, 0.5, True), ("y",)),
    "arithmetic by name": ([dict(*call("operator.add", 1, 2), kwargs={"a": 1})], ("y",)),
    "a result that is not there": (call("operator.getitem", X, 0), ("y",)),
}
TENSORS = ADDRESSES | {
    "far": torch.full((4, 4), SMALLEST),
    "three": torch.ones(3),
    "dot": torch.ones(1, 1, 1, 1, dtype=torch.float64),
    "window": torch.ones(1, 1, 40, 40, dtype=torch.float64),
    "pixel": torch.ones(1, 8, 1, 1),
    "tile": torch.ones(1, 8, 3, 3),
    "point": torch.ones(1, 1, 1, dtype=torch.float64),
    "short": torch.full((4,), -(1 << 31), dtype=torch.int32),
    "nothing": torch.ones(1, 0, 4),
    "wide": torch.ones(256, 256),
}


def hostile(path, nodes, tensors=None):
    return written(path / "model.rw", program(nodes, TENSORS if tensors is None else tensors))


@pytest.mark.parametrize(("nodes", "facts"), REFUSED.values(), ids=REFUSED)
def test_a_program_that_could_do_harm_is_refused_when_it_is_loaded(nodes, facts, tmp_path):
    with raises(rw.FileFormatError, "model.rw", *facts):
        rw.load(hostile(tmp_path, nodes))


LOOKUPS = {
    "gather": call("aten.gather.default", matrix, 0, value("far")),
    "gather of one place": call("aten.gather.default", matrix, 1, value("same")),
    "index": call("aten.index.Tensor", matrix, many(value("far"))),
    "index_put": call("aten.index_put.default", matrix, many(value("far")), value("one")),
    "index_select": call("aten.index_select.default", matrix, 0, value("row")),
    "embedding": call("aten.embedding.default", matrix, value("far")),
    "scatter": call("aten.scatter.value", matrix, 0, value("far"), 1.0),
    "scatter of a tensor": call("aten.scatter.src", matrix, 1, value("far"), value("matrix")),
}


@pytest.mark.parametrize("beyond", [4, 1 << 40, -5, SMALLEST])
@pytest.mark.parametrize("nodes", LOOKUPS.values(), ids=LOOKUPS)
def test_places_beyond_a_table_are_an_error_of_the_call(nodes, beyond, tmp_path):
    far = torch.full((4, 4), beyond)
    tensors = ADDRESSES | {"far": far, "row": far[0].clone(), "same": far[:, :1].clone()}
    model = rw.load(hostile(tmp_path, nodes, tensors))
    with raises(rw.ModelError, "out of"):
        model(torch.ones(2, 4))


@pytest.mark.parametrize("view", [(many(9), many(1), 1 << 20), (many(9), many(1 << 30), 0), (many(17), many(1), 0)])
def test_a_view_beyond_the_memory_of_its_tensor_is_refused(view, tmp_path):
    nodes = [dict(*call("aten.mul.Tensor", matrix, 2.0), name="z"), *call("aten.as_strided.default", value("z"), *view)]
    with pytest.raises(rw.RoundwiseError, match=r"y|storage"):
        rw.load(hostile(tmp_path, nodes))(torch.ones(2, 4))


def test_a_table_is_looked_up_at_its_own_places(tmp_path):
    nodes = call("aten.embedding.default", matrix, value("row"))
    model = rw.load(hostile(tmp_path, nodes, {"matrix": torch.eye(4), "row": torch.tensor([2, 0])}))
    assert torch.equal(model(torch.ones(2, 4)), torch.eye(4)[[2, 0]])


def test_a_size_that_only_some_calls_have_is_refused_in_those_calls(tmp_path):
    steps = ("operator.eq", value("s0"), 7), ("operator.mul", value("s1"), 1 << 40), ("operator.add", value("s2"), 1)
    model = rw.load(hostile(tmp_path, sizes(*steps)))
    for samples in (1, 2, 8):
        assert model(torch.ones(samples, 4)).shape == (1,)
    with raises(rw.ModelError, "'y'", "aten.zeros.default", (1 << 40) + 1):
        model(torch.ones(7, 4))
    assert model(torch.ones(2, 4)).shape == (1,)


def test_a_network_that_needs_more_memory_is_loaded_with_a_limit_of_the_user(tmp_path):
    path = hostile(tmp_path, call("aten.zeros.default", many(1 << 28)))
    with raises(rw.FileFormatError, "1.0 GiB", "memory_limit"):
        rw.load(path)
    assert rw.load(path, memory_limit=2 << 30).report is not None
    with raises(rw.FileFormatError, "16 Bytes"):
        rw.load(hostile(tmp_path, call("aten.relu.default", X)), memory_limit=16)


def test_a_file_does_not_choose_how_large_its_inputs_are_in_an_export(tmp_path):
    description, tensors = program(call("aten.relu.default", X), {})
    description["graph"]["inputs"][0]["shape"] = [None, 1 << 14, 1 << 14]
    with raises(rw.FileFormatError, "2.0 GiB", "1.0 GiB"):
        rw.load(written(tmp_path / "model.rw", (description, tensors)))


def test_no_samples_are_no_reason_to_refuse_a_call(tmp_path):
    model = rw.load(hostile(tmp_path, call("aten.relu.default", X)))
    assert model(torch.ones(0, 4)).shape == (0, 4)


def test_many_small_results_that_are_kept_count_together(tmp_path):
    nodes = []
    for number in range(40):
        nodes += [dict(*call("aten.zeros.default", many(1 << 22)), name=f"y{number}")]
    description = program(nodes, {}, outputs=[f"y{number}" for number in range(40)])
    with raises(rw.FileFormatError, "together"):
        rw.load(written(tmp_path / "model.rw", description))
    dropped = program(nodes, {}, outputs=["y39"])
    assert rw.load(written(tmp_path / "model.rw", dropped))(torch.ones(1, 4)).shape == (1 << 22,)


def test_a_network_that_was_copied_or_whose_activations_are_float_is_still_guarded(tmp_path):
    import copy
    import pickle

    steps = ("operator.eq", value("s0"), 7), ("operator.mul", value("s1"), 1 << 40), ("operator.add", value("s2"), 1)
    model = rw.load(hostile(tmp_path, sizes(*steps)))
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.with_float_activations()):  # noqa: S301
        with raises(rw.ModelError, "'y'"):
            one(torch.ones(7, 4))


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "\u202egnp.exe", "\x9b2J", "\ud800"])
def test_texts_that_a_terminal_would_obey_are_refused_and_not_printed(text, tmp_path):
    for part in ("report", "recipe", "versions", "node"):
        description, tensors = program(call("aten.relu.default", X), {})
        if part == "report":
            description["report"]["setup_notes"] = [text]
        elif part == "recipe":
            description["recipe"]["stages"][1]["rounding"] = {"custom": text}
        elif part == "versions":
            description["versions"][text] = "1"
        else:
            description["graph"]["nodes"][1]["target"] = text
        with raises(rw.FileFormatError, "model.rw") as caught:
            rw.load(written(tmp_path / "model.rw", (description, tensors)))
        assert text not in str(caught.value)


def test_a_report_holds_values_of_its_types(tmp_path):
    for entry in ({"samples": "8"}, {"samples": True}, {"setup_notes": [5]}, {"stages": 5}, {"float_bytes": 1.5}):
        description, tensors = program(call("aten.relu.default", X), {})
        description["report"] |= entry
        with raises(rw.FileFormatError, "model.rw"):
            rw.load(written(tmp_path / "model.rw", (description, tensors)))


def test_a_description_is_read_within_limits(tmp_path):
    description, tensors = program(call("aten.relu.default", X), {})
    for number in ("NaN", "Infinity", str(1 << 64), "1" * 5000):
        text = json.dumps(description).replace('"samples": ', f'"samples": {number}, "more": ', 1)
        assert number in text
        with raises(rw.FileFormatError, "model.rw"):
            rw.load(written(tmp_path / "model.rw", (description, tensors), text))
    description["report"]["setup_notes"] = ["a" * (17 << 20)]
    with raises(rw.FileFormatError, "17.0 MiB", "8.0 MiB"):
        rw.load(written(tmp_path / "model.rw", (description, tensors)))


def test_too_many_operations_are_refused(tmp_path):
    nodes = [dict(*call("aten.relu.default", X), name=f"y{number}") for number in range(20_001)]
    with raises(rw.FileFormatError, 20003):
        rw.load(written(tmp_path / "model.rw", program(nodes, {}, outputs=["y1"])))


CODES = {
    "a scale that is no number": (lambda d, t: t["0.weight_scale"].fill_(float("nan")), ("nan",)),
    "an infinite scale": (lambda d, t: t["0.weight_scale"].fill_(float("inf")), ("inf",)),
    "a negative scale": (lambda d, t: t["0.weight_scale"].neg_(), ("-0.",)),
    "no scale": (lambda d, t: t["0.weight_scale"].zero_(), ("0.0",)),
    "too few scales": (lambda d, t: t.update({"0.weight_scale": t["0.weight_scale"][:1]}), ("[1]",)),
    "scales of another dtype": (
        lambda d, t: t.update({"0.weight_scale": t["0.weight_scale"].double()}),
        ("torch.float64",),
    ),
    "codes beyond their range": (lambda d, t: argument(d, -2, 3), (3,)),
    "a range of too many bits": (lambda d, t: argument(d, -2, 1 << 20), (1 << 20,)),
    "a number where a dtype belongs": (lambda d, t: argument(d, -1, 124), (124, "dtype")),
    "a dtype that holds no real numbers": (lambda d, t: argument(d, -1, {"dtype": "int8"}), ("torch.int8",)),
    "an axis that is not there": (lambda d, t: argument(d, 3, 9), (9,)),
    "any size of no bits": (lambda d, t: d["packed"]["0.weight_zero_point"].update(shape=[1 << 50]), ("8.0 PiB",)),
}


def argument(description, place, new):
    node = next(n for n in description["graph"]["nodes"] if n["target"] == "roundwise.dequantize_per_channel")
    node["args"]["list"][place] = new


@pytest.mark.parametrize(("change", "facts"), CODES.values(), ids=CODES)
def test_codes_and_scales_are_checked(change, facts, tmp_path):
    description, tensors = described()
    change(description, tensors)
    with raises(rw.FileFormatError, "model.rw", *facts):
        rw.load(written(tmp_path / "model.rw", (description, tensors)))


@pytest.mark.parametrize("levels", [4, 40])
def test_a_size_that_doubles_when_it_is_written_out_is_not_exported(levels, tmp_path):
    steps = [dict(*call("aten.sym_size.int", X, 0), name="d0")]
    for level in range(levels):
        last = value(f"d{level}")
        steps.append(dict(*call("operator.floordiv", last, 3), name=f"a{level}"))
        steps.append(dict(*call("operator.mod", last, 5), name=f"b{level}"))
        steps.append(dict(*call("operator.add", value(f"a{level}"), value(f"b{level}")), name=f"d{level + 1}"))
    model = rw.load(hostile(tmp_path, [*steps, *call("aten.add.Tensor", X, value(f"d{levels}"))]))
    assert model(torch.ones(3, 4)).shape == (3, 4)
    if levels == 4:
        assert torch.equal(model.program.module()(torch.ones(7, 4)), model(torch.ones(7, 4)))
    else:
        with raises(rw.ExportError, "1000"):
            model.program  # noqa: B018


def test_a_network_that_counts_its_samples_is_no_program_for_any_number_of_them(tmp_path):
    steps = [dict(*call("aten.sym_size.int", X, 0), name="s"), dict(*call("operator.mod", value("s"), 2), name="d")]
    model = rw.load(hostile(tmp_path, [*steps, *call("aten.sum.dim_IntList", matrix, many(value("d")))]))
    assert model(torch.ones(3, 4)).shape == (4,)
    with raises(rw.ExportError, "x.size()[0] % 2"):
        model.program()


STORED = torch.arange(16.0).reshape(4, 4)
RETURN_THEIR_OPERAND = {
    "einsum": ("aten.einsum.default", "ij->ji", many(value("w"))),
    "conj_physical": ("aten.conj_physical.default", value("w")),
    "type_as": ("aten.type_as.default", value("w"), value("w")),
    "dropout": ("aten.dropout.default", value("w"), 0.5, False),
}


@pytest.mark.parametrize("operation", RETURN_THEIR_OPERAND.values(), ids=RETURN_THEIR_OPERAND)
def test_what_a_caller_does_to_an_output_changes_no_later_call(operation, tmp_path):
    """Also of operations that return their operand, though their schema says that they make a tensor."""
    network = rw.load(written(tmp_path / "net.rw", program(call(*operation), {"w": STORED})))
    before = network(torch.ones(2, 4)).clone()
    network(torch.ones(2, 4)).fill_(777)
    assert torch.equal(network(torch.ones(2, 4)), before)


def test_torch_compile_leaves_the_checks_of_each_call(tmp_path):
    power = sizes(("operator.mul", value("s0"), value("s0")), ("operator.mul", value("s1"), value("s1")))
    network = rw.load(written(tmp_path / "net.rw", program(power, {})))
    compiled = torch.compile(network, backend="eager", dynamic=True)
    assert compiled(torch.ones(2, 4)).shape == (16,)
    with raises(rw.ModelError, 1_600_000_000):
        compiled(torch.ones(200, 4))
