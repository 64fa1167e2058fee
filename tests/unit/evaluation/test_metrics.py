"""What `evaluate` measures, and what it refuses to."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from facts import has, raises
from torch import nn

from roundwise import CalibrationError, ModelError
from roundwise.data.dataset import DataOptions, load_data
from roundwise.evaluation import Accuracy, evaluate

INFINITY = float("inf")


def test_top_1_and_top_5_count_labels_among_the_largest_outputs():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(6, 1)
    accuracy = evaluate(nn.Identity(), [scores], labels=torch.arange(6)).accuracy
    assert accuracy == Accuracy(top1=1 / 6, top5=5 / 6)


def test_top_5_of_five_classes_says_nothing_and_is_left_out():
    scores = torch.eye(5)
    assert evaluate(nn.Identity(), [scores], labels=torch.arange(5)).accuracy == Accuracy(top1=1.0, top5=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_of_equal_scores_the_first_is_predicted_as_argmax_has_it(dtype):
    torch.manual_seed(0)
    scores = torch.randint(3, (500, 10)).to(dtype)  # ties in nearly every row
    labels = torch.randint(10, (500,))
    accuracy = evaluate(nn.Identity(), scores.split(64), labels=labels, against=lambda x: {"out": x}).accuracy
    ranked = scores.double().sort(dim=1, descending=True, stable=True).indices
    top1, top5 = ((ranked[:, :k] == labels[:, None]).any(1).double().mean().item() for k in (1, 5))
    assert accuracy == Accuracy(pytest.approx(top1), pytest.approx(top5))
    assert accuracy.top1 == pytest.approx((scores.double().argmax(1) == labels).double().mean().item())


def test_where_all_scores_are_equal_the_first_classes_are_the_top():
    accuracy = evaluate(nn.Identity(), [torch.zeros(10, 10)], labels=torch.arange(10)).accuracy
    assert accuracy == Accuracy(top1=0.1, top5=0.5)


def test_scores_are_compared_in_their_own_precision():
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)  # equal as float32
    assert evaluate(nn.Identity(), [scores], labels=[1]).accuracy == Accuracy(1.0, None)
    assert evaluate(nn.Identity(), [scores], labels=[0]).accuracy == Accuracy(0.0, None)


def test_batches_make_no_difference():
    torch.manual_seed(0)
    model, other = nn.Linear(4, 7), nn.Linear(4, 7)
    inputs, labels = torch.randn(20, 4), torch.randint(7, (20,))
    whole = evaluate(model, [inputs], labels=labels, against=other)
    parts = evaluate(model, inputs.split(6), labels=labels, against=other)
    assert whole.accuracy == parts.accuracy
    assert whole.samples == parts.samples == 20
    assert whole.comparison is not None
    assert parts.comparison is not None
    assert whole.comparison.output_error == pytest.approx(parts.comparison.output_error, rel=1e-6)


def test_a_network_agrees_with_itself():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    comparison = evaluate(model, [torch.randn(9, 4)], against=model).comparison
    assert comparison is not None
    assert (comparison.same_class, comparison.output_error) == (1.0, 0.0)


def test_the_output_error_is_relative_to_the_network_compared_with():
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    evaluation = evaluate(lambda x: 1.1 * x, [inputs], against=nn.Identity(), labels=torch.tensor([0, 1]))
    assert evaluation.comparison is not None
    assert evaluation.comparison.output_error == pytest.approx(0.01, rel=1e-5)
    assert evaluation.comparison.same_class == 1.0
    assert evaluation.comparison.accuracy == evaluation.accuracy == Accuracy(top1=0.5, top5=None)


def test_an_error_beside_outputs_that_are_zero_is_one():
    evaluation = evaluate(lambda x: x + 1, [torch.zeros(2, 3)], against=nn.Identity())
    assert evaluation.comparison is not None
    assert evaluation.comparison.output_error == 1.0


def test_outputs_with_positions_agree_by_position():
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1, 0, 0] = 1.0
    comparison = evaluate(lambda x: scores, [torch.zeros(1, 3)], against=lambda x: torch.zeros(1, 2, 2, 2)).comparison
    assert comparison is not None
    assert comparison.same_class == 0.75


def test_several_outputs_are_compared_but_have_no_class():
    def two(x):
        return {"a": x, "b": (2 * x, "text")}

    comparison = evaluate(two, [torch.ones(2, 3)], against=two).comparison
    assert comparison is not None
    assert comparison.same_class is None
    assert comparison.output_error == 0.0


Pair = namedtuple("Pair", ("a", "b"))


@pytest.mark.parametrize("ordered", [lambda a, b: {"b": b, "a": a}, lambda a, b: {"a": a, "b": b}, Pair])
def test_outputs_with_names_are_paired_by_them(ordered):
    comparison = evaluate(
        lambda x: {"a": x, "b": 2 * x}, [torch.ones(2, 3)], against=lambda x: ordered(x, 2 * x)
    ).comparison
    assert comparison is not None
    assert comparison.output_error == 0.0


def test_outputs_are_paired_in_order_where_one_network_gives_no_names():
    comparison = evaluate(
        lambda x: {"output_0": x, "output_1": 2 * x}, [torch.ones(2, 3)], against=lambda x: (x, 2 * x)
    ).comparison
    assert comparison is not None
    assert comparison.output_error == 0.0


def test_outputs_of_other_names_cannot_be_compared():
    with raises(ModelError, "a [2, 3]", "b [2, 3]", "c [2, 3]"):
        evaluate(lambda x: {"a": x, "b": x}, [torch.ones(2, 3)], against=lambda x: {"a": x, "c": x})


def test_outputs_of_integers_have_a_share_of_equal_numbers():
    def classes(*chosen):
        return lambda x: (x, torch.tensor(chosen))

    evaluation = evaluate(classes(0, 1, 2, 3), [torch.eye(4)], against=classes(0, 1, 2, 0))
    assert evaluation.comparison is not None
    assert evaluation.comparison.output_error == 0.0
    assert evaluation.comparison.same_integers == 0.75
    assert has(evaluation, "75.00%")
    plain = evaluate(nn.Identity(), [torch.eye(4)], against=nn.Identity())
    assert plain.comparison is not None
    assert plain.comparison.same_integers is None
    assert not has(plain, "75.00%")


def test_integers_cannot_be_compared_with_floats():
    with raises(ModelError, "[2, 2], [2, 2]"):
        evaluate(lambda x: (x, x), [torch.eye(2)], against=lambda x: (x, x.long()))


def test_modules_run_in_eval_mode_and_keep_their_own():
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm1d(3))
    model[1].eval()
    comparison = evaluate(model, [torch.ones(2, 3)], against=nn.Identity()).comparison
    assert comparison is not None
    assert comparison.output_error < 1e-6
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_no_gradients_are_kept():
    seen = []
    model = nn.Linear(2, 2)
    evaluate(lambda x: seen.append(model(x).requires_grad) or x, [torch.zeros(1, 2)], against=nn.Identity())
    assert seen == [False]


def test_progress_tells_how_many_samples_are_done():
    done = []
    evaluate(nn.Identity(), torch.zeros(5, 2).split(2), labels=torch.zeros(5, dtype=torch.int64), progress=done.append)
    assert done == [2, 4, 5]


def test_half_precision_outputs_are_measured():
    scores = torch.eye(6, dtype=torch.bfloat16)
    accuracy = evaluate(nn.Identity(), [scores], labels=torch.arange(6), against=nn.Identity()).accuracy
    assert accuracy == Accuracy(1.0, 1.0)


def test_the_text_has_every_figure():
    scores = torch.eye(8)
    text = str(evaluate(lambda x: x, [scores], labels=torch.arange(8), against=lambda x: x.flip(0)))
    assert [line.split("  ")[0].strip() for line in text.splitlines()] == [
        "samples",
        "top-1",
        "top-5",
        "top-1, compared with",
        "top-5, compared with",
        "same class",
        "output error",
    ]


# ------------------------------------------------------------------------------------------------------- bad input


def test_no_samples_are_an_error():
    with pytest.raises(CalibrationError):
        evaluate(nn.Identity(), [], labels=torch.tensor([1]))


@pytest.mark.parametrize("labels", [3, 5])
def test_more_or_fewer_labels_than_samples_are_an_error(labels):
    with raises(CalibrationError, labels, 4):
        evaluate(nn.Identity(), [torch.zeros(4, 2)], labels=torch.zeros(labels, dtype=torch.int64))


def test_a_label_that_is_no_class_is_an_error():
    with raises(CalibrationError, 7, 2):
        evaluate(nn.Identity(), [torch.zeros(2, 2)], labels=torch.tensor([0, 7]))


@pytest.mark.parametrize("outputs", [torch.zeros(2), torch.zeros(2, 3, 4), torch.zeros(1, 3), (torch.zeros(2, 3),) * 2])
def test_accuracy_needs_one_row_of_scores_for_each_sample(outputs):
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    with raises(ModelError, "[2, classes]", ", ".join(str(list(output.shape)) for output in given)):
        evaluate(lambda _: outputs, [torch.zeros(2, 5)], labels=torch.tensor([0, 1]))


def test_outputs_of_different_shapes_cannot_be_compared():
    with raises(ModelError, "[2, 3]", "[2, 4]"):
        evaluate(lambda _: torch.zeros(2, 3), [torch.zeros(2)], against=lambda _: torch.zeros(2, 4))


@pytest.mark.parametrize(("value", "kind"), [("nan", "NaN"), ("inf", "infinity")])
def test_outputs_that_are_not_finite_are_an_error_that_says_whose(value, kind):
    broken, sound = (lambda _: torch.tensor([[float(value), 1.0]])), (lambda _: torch.ones(1, 2))
    said = []
    for network, other in ((broken, sound), (sound, broken)):
        with raises(ModelError, kind, 1, 2) as caught:
            evaluate(network, [torch.zeros(1, 2)], against=other)
        said.append(str(caught.value))
    assert said[0] != said[1]
    with raises(ModelError, kind) as caught:
        evaluate(broken, [torch.zeros(1, 2)], against=broken)
    assert str(caught.value) == said[0]  # the network itself comes first


def test_outputs_without_numbers_are_an_error():
    with raises(ModelError, "str"):
        evaluate(lambda _: "cat", [torch.zeros(1, 2)], against=nn.Identity())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_inputs_must_be_finite_and_the_sample_is_named(value):
    inputs = torch.zeros(6, 3)
    inputs[4, 1] = float(value)
    kind = "NaN" if value == "nan" else "infinity"

    def swallows(x):  # as a clamp does, or an 8-bit activation
        return x.nan_to_num(0.0, 0.0, 0.0)

    with raises(CalibrationError, 4, kind, 1, 3):
        evaluate(swallows, inputs.split(3), against=swallows)


def test_a_sample_that_is_not_finite_has_its_number_in_the_file(tmp_path):
    array = np.zeros((50, 2), dtype=np.float32)
    array[17] = np.nan
    np.save(tmp_path / "x.npy", array)
    for seed in range(20):
        dataset = load_data(tmp_path / "x.npy", DataOptions(limit=40, seed=seed))
        if 17 in dataset.indices and dataset.indices.index(17) != 17:
            with raises(CalibrationError, 17, "NaN"):
                evaluate(nn.Identity(), dataset.batches(8), against=nn.Identity())
            return
    raise AssertionError("no seed moved the sample")


def test_minus_infinity_rules_classes_out_but_not_all_of_them():
    scores = torch.tensor([[-INFINITY, 1.0, 2.0], [0.0, -INFINITY, -INFINITY]])
    evaluation = evaluate(lambda _: scores, [torch.zeros(2, 1)], labels=[2, 0], against=lambda _: scores)
    assert evaluation.accuracy == Accuracy(1.0, None)
    assert evaluation.comparison is not None
    assert evaluation.comparison.output_error == 0.0
    other = scores.clone()
    other[0, 0] = 0.0
    comparison = evaluate(lambda _: other, [torch.zeros(2, 1)], against=lambda _: scores).comparison
    assert comparison is not None
    assert comparison.output_error == INFINITY
    scores[1, 0] = -INFINITY
    with raises(ModelError, "−infinity", 3, 1, 2):
        evaluate(lambda _: scores, [torch.zeros(2, 1)], labels=[2, 0])


@pytest.mark.parametrize(
    ("labels", "facts"),
    [
        (torch.eye(2, dtype=torch.int64), ("int64 [2, 2]", "argmax")),
        (torch.tensor([0.0, 1.0]), ("float32 [2]",)),
        (torch.tensor([False, True]), ("bool [2]",)),
        (torch.tensor([0, -1]), (1, -1)),
        (torch.tensor(1), ("int64 []",)),
        (1, ("int64 []",)),
        (np.array([0.5, 1.0]), ("float64 [2]",)),
        (np.array(["a", "b"]), ("<U1 [2]",)),
        ([0.0, 1.0], ("float64 [2]",)),
        (["cat", "dog"], ("<U3 [2]",)),
        ([[0], [1, 2]], ("numbers",)),
        (torch.tensor([0, 1]).to_sparse(), ("sparse_coo",)),
    ],
)
def test_labels_are_one_whole_number_for_each_sample(labels, facts):
    with raises(CalibrationError, *facts):
        evaluate(nn.Identity(), [torch.eye(2)], labels=labels)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 0],
        (0, 0),
        np.array([0, 0]),
        np.array([0, 0])[::-1],
        np.broadcast_to(0, 2),
        np.array([0, 0], dtype=">u2"),
        torch.zeros(2, 1, dtype=torch.uint8),
    ],
)
def test_labels_may_be_of_any_integers(labels):
    assert evaluate(nn.Identity(), [torch.eye(2)], labels=labels).accuracy == Accuracy(0.5, None)


def test_an_empty_batch_counts_nothing():
    batches = [torch.zeros(0, 2), torch.eye(2), torch.zeros(0, 2)]
    evaluation = evaluate(nn.Identity(), batches, labels=[0, 1], against=nn.Identity())
    assert (evaluation.samples, evaluation.accuracy) == (2, Accuracy(1.0, None))
    with pytest.raises(CalibrationError):
        evaluate(nn.Identity(), [torch.zeros(0, 2)], labels=torch.zeros(0, dtype=torch.int64))
