"""A network from a file runs on what the rehearsal said that its operations give, and on no other memory."""

import pytest
import torch
from facts import raises
from fuzz.hostile import program, written

import roundwise as rw
from roundwise.artifacts.confirmation import in_own_memory

X = {"node": "x"}
BFLOAT16 = torch.zeros(1, 8, 2, dtype=torch.bfloat16)


def node(name, target, *args):
    return {"op": "call_function", "name": name, "target": target, "args": {"list": list(args)}, "kwargs": {}}


def value(name):
    return {"node": name}


def many(*items):
    return {"list": list(items)}


def sampled(name):
    """The number of samples."""
    return node(name, "aten.sym_size.int", X, 0)


PROGRAMS = {
    "statistics of a batch in another dtype": (
        [
            node("n", "aten._native_batch_norm_legit.no_stats", value("b"), None, None, True, 0.1, 1e-5),
            node("s", "operator.getitem", value("n"), 1),
        ],
        {"b": BFLOAT16},
        ("'s'", "torch.bfloat16 [8]", "torch.float32 [8]"),
    ),
    "statistics of layers in another dtype": (
        [
            node("n", "aten.native_layer_norm.default", value("b"), many(2), None, None, 1e-5),
            node("s", "operator.getitem", value("n"), 1),
        ],
        {"b": BFLOAT16},
        ("'s'",),
    ),
    "a sum over no dimensions": (
        [node("s", "aten.nansum.default", value("z"), many())],
        {"z": torch.zeros(8)},
        ("'s'", "[]", "[8]"),
    ),
}


@pytest.mark.parametrize(("nodes", "tensors", "facts"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_result_of_another_form_than_in_the_rehearsal_is_refused(nodes, tensors, facts, tmp_path):
    nodes = [*nodes, node("y", "aten.relu.default", value("s"))]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, tensors)))
    for _ in range(2):
        with raises(rw.ModelError, *facts):
            model(torch.ones(2, 4))


def test_an_image_without_numbers_is_divided_as_in_the_rehearsal(tmp_path):
    nodes = [
        *(
            sampled("s"),
            node("e", "operator.mul", value("s"), 4),
            node("i", "aten.slice.Tensor", value("m"), 1, 0, value("e")),
        ),
        *(node("p", "aten.pixel_unshuffle.default", value("i"), 8), node("y", "aten.relu.default", value("p"))),
    ]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, {"m": torch.zeros(1, 8, 64)})))
    assert model(torch.ones(2, 4)).shape == (64, 1, 8)
    with raises(rw.ModelError, "'p'"):
        model(torch.ones(0, 4))


def test_results_that_nobody_reads_may_have_any_form(tmp_path):
    nodes = [
        node("n", "aten.native_layer_norm.default", value("b"), many(2), None, None, 1e-5),
        node("y", "operator.getitem", value("n"), 0),
    ]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, {"b": BFLOAT16})))
    assert model(torch.ones(2, 4)).shape == BFLOAT16.shape


def test_what_was_confirmed_with_one_default_dtype_is_not_known_with_another_one(tmp_path):
    nodes = [
        node("f", "aten.full.default", many(8), 1.0),
        node("s", "aten.view.dtype", value("f"), {"dtype": "float32"}),
        node(
            "n",
            "aten._native_batch_norm_legit_no_training.default",
            *(value("i"), *2 * [None], *2 * [value("s")], 0.1, 1.0),
        ),
        node("y", "operator.getitem", value("n"), 0),
    ]
    model, x = rw.load(written(tmp_path / "model.rw", program(nodes, {"i": torch.ones(1, 8, 1)}))), torch.ones(2, 4)
    assert model(x).shape == (1, 8, 1)
    torch.set_default_dtype(torch.float64)
    try:
        with raises(rw.ModelError, "'n'", "[16]", "[8]"):
            model(x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_under_autocast_a_network_computes_what_it_was_rehearsed_for_or_nothing(tmp_path):
    nodes = [node("y", "aten.linear.default", X, value("w"))]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, {"w": torch.ones(3, 4)})))
    assert model(torch.ones(2, 4)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), raises(rw.ModelError, "'y'", "torch.bfloat16", "Autocast"):
        model(torch.ones(2, 4))
    assert model(torch.ones(2, 4)).dtype == torch.float32


DATA = torch.arange(64.0).view(16, 4)
VIEWS = {
    "of rows": DATA[8:10],
    "of columns": DATA.T[:, 6:8].T,
    "of part of a row": DATA[3:5, :],
    "alone": DATA[8:10].clone(),
}


@pytest.mark.parametrize("given", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("again", [1, 2])
def test_a_view_into_an_input_sees_the_input_and_nothing_beside_it(given, again, tmp_path):
    nodes = [node("y", "aten.as_strided.default", X, many(2, 4), many(4, 1), 0)]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, {})))
    for _ in range(again):
        found = model(given)
    assert torch.equal(found, given)


def test_a_view_beyond_an_input_is_refused_where_the_memory_goes_on(tmp_path):
    nodes = [node("y", "aten.as_strided.default", X, many(4), many(1), 8)]
    with raises(rw.FileFormatError, "'y'"):
        rw.load(written(tmp_path / "model.rw", program(nodes, {})))
    sizes = [sampled("s"), node("e", "operator.mul", value("s"), 2)]
    nodes = [*sizes, node("y", "aten.as_strided.default", X, many(4), many(1), value("e"))]
    model = rw.load(written(tmp_path / "model.rw", program(nodes, {})))
    assert torch.equal(model(DATA[8:10]), DATA[9])


@pytest.mark.parametrize("tensor", [DATA[1:], DATA[:2], DATA.T, DATA.expand(2, 16, 4), DATA[:, :2]])
def test_a_tensor_that_shares_its_memory_is_copied(tensor):
    own = in_own_memory(tensor)
    assert torch.equal(own, tensor)
    assert own.untyped_storage().nbytes() == 4 * tensor.numel()
    assert in_own_memory(own) is own
