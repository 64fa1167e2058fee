"""What `evaluate` measures, and what it refuses to."""

import pytest
import torch
from torch import nn

from roundwise import CalibrationError, ModelError
from roundwise.evaluation import Accuracy, evaluate


def test_top_1_and_top_5_count_labels_among_the_largest_outputs():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(6, 1)
    accuracy = evaluate(nn.Identity(), [scores], labels=torch.arange(6)).accuracy
    assert accuracy == Accuracy(top1=1 / 6, top5=5 / 6)


def test_top_5_of_five_classes_says_nothing_and_is_left_out():
    scores = torch.eye(5)
    assert evaluate(nn.Identity(), [scores], labels=torch.arange(5)).accuracy == Accuracy(top1=1.0, top5=None)


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


def test_an_error_beside_outputs_that_are_zero_is_infinite():
    evaluation = evaluate(lambda x: x + 1, [torch.zeros(2, 3)], against=nn.Identity())
    assert evaluation.comparison is not None
    assert evaluation.comparison.output_error == float("inf")


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
    with pytest.raises(CalibrationError, match="no samples"):
        evaluate(nn.Identity(), [], labels=torch.tensor([1]))


@pytest.mark.parametrize("labels", [3, 5])
def test_more_or_fewer_labels_than_samples_are_an_error(labels):
    with pytest.raises(CalibrationError, match=rf"{labels} labels, but .*4 samples"):
        evaluate(nn.Identity(), [torch.zeros(4, 2)], labels=torch.zeros(labels, dtype=torch.int64))


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(CalibrationError, match="a label is 7, but the network has 2 classes"):
        evaluate(nn.Identity(), [torch.zeros(2, 2)], labels=torch.tensor([0, 7]))


@pytest.mark.parametrize("outputs", [torch.zeros(2), torch.zeros(2, 3, 4), torch.zeros(1, 3), (torch.zeros(2, 3),) * 2])
def test_accuracy_needs_one_row_of_scores_for_each_sample(outputs):
    with pytest.raises(ModelError, match=r"needs one output \[2, classes\]; the network gives \["):
        evaluate(lambda _: outputs, [torch.zeros(2, 5)], labels=torch.tensor([0, 1]))


def test_outputs_of_different_shapes_cannot_be_compared():
    with pytest.raises(ModelError, match=r"\[2, 3\] and \[2, 4\]"):
        evaluate(lambda _: torch.zeros(2, 3), [torch.zeros(2)], against=lambda _: torch.zeros(2, 4))


@pytest.mark.parametrize("who", ["the network gives", "the network compared with gives"])
def test_nan_in_the_outputs_is_an_error_that_says_whose(who):
    broken, sound = (lambda _: torch.tensor([[float("nan"), 1.0]])), (lambda _: torch.ones(1, 2))
    first, second = (broken, sound) if who == "the network gives" else (sound, broken)
    with pytest.raises(ModelError, match=f"{who} NaN in 1 of 2 outputs"):
        evaluate(first, [torch.zeros(1, 2)], against=second)


def test_outputs_without_numbers_are_an_error():
    with pytest.raises(ModelError, match="returns a str without tensors"):
        evaluate(lambda _: "cat", [torch.zeros(1, 2)], against=nn.Identity())
