"""Mean IoU: what is counted, what is left out, and what is refused."""

import numpy as np
import pytest
import torch
from facts import has, raises
from torch import nn
from torch.nn import functional as F

from roundwise import CalibrationError, ModelError
from roundwise.evaluation import Segmentation, evaluate


def scores_for(predicted, classes):
    """Scores whose largest is the given class, at every pixel."""
    return F.one_hot(torch.as_tensor(predicted), classes).movedim(-1, 1).float()


def measured(predicted, truth, classes):
    return evaluate(nn.Identity(), [scores_for(predicted, classes)], masks=[torch.as_tensor(truth)]).segmentation


def test_iou_is_the_intersection_over_the_union_of_truth_and_prediction():
    segmentation = measured([[[0, 0, 1], [1, 1, 1]]], [[[0, 1, 1], [0, 1, 0]]], 2)
    # Class 0: both in 1 pixel, either in 4. Class 1: both in 2, either in 5.
    assert segmentation == Segmentation(mean_iou=(1 / 4 + 2 / 5) / 2, pixel_accuracy=3 / 6, iou=(1 / 4, 2 / 5))


def test_classes_that_are_ruled_out_stay_so_where_scores_are_resized():
    scores = torch.tensor([0.0, 1.0, -float("inf")]).view(1, 3, 1, 1).repeat(1, 1, 2, 3)
    segmentation = evaluate(
        lambda _: scores, [torch.zeros(1, 1)], masks=[torch.ones(1, 7, 9, dtype=torch.int64)]
    ).segmentation
    assert segmentation == Segmentation(mean_iou=1.0, pixel_accuracy=1.0, iou=(None, 1.0, None))


def test_scores_of_double_precision_are_resized_as_such():
    scores = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64).view(1, 2, 1, 1).repeat(1, 1, 2, 2)
    segmentation = evaluate(nn.Identity(), [scores], masks=[torch.ones(1, 4, 4, dtype=torch.int64)]).segmentation
    assert segmentation is not None
    assert segmentation.pixel_accuracy == 1.0


def test_counts_agree_with_the_definition_by_sets_of_pixels():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(6, (5, 7, 8), generator=generator)
    predicted = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6, truth, torch.randint(6, truth.shape, generator=generator)
    )
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    result = evaluate(nn.Identity(), scores_for(predicted, 6).split(2), masks=truth.split(2)).segmentation
    assert result is not None
    pixels = {tuple(where) for where in (truth != 255).nonzero().tolist()}
    for label in range(6):
        true = {tuple(where) for where in (truth == label).nonzero().tolist()}
        found = pixels & {tuple(where) for where in (predicted == label).nonzero().tolist()}
        assert result.iou[label] == pytest.approx(len(true & found) / len(true | found), rel=1e-12)
    assert result.mean_iou == pytest.approx(np.mean(result.iou), rel=1e-12)
    assert result.pixel_accuracy == pytest.approx(float((truth == predicted).sum()) / len(pixels), rel=1e-12)


def test_pixels_marked_255_do_not_count_whatever_is_predicted_there():
    truth = [[[0, 1, 255, 255]]]
    assert measured([[[0, 1, 0, 1]]], truth, 3) == measured([[[0, 1, 2, 2]]], truth, 3)
    assert measured([[[0, 1, 2, 2]]], truth, 3) == Segmentation(1.0, 1.0, (1.0, 1.0, None))


def test_a_class_in_neither_truth_nor_prediction_is_left_out_of_the_mean():
    assert measured([[[0, 0, 2]]], [[[0, 0, 2]]], 4) == Segmentation(1.0, 1.0, (1.0, None, 1.0, None))


def test_a_class_that_occurs_or_is_predicted_but_never_both_counts_with_zero():
    assert measured([[[0, 0, 1]]], [[[0, 0, 2]]], 4) == Segmentation(1 / 3, 2 / 3, (1.0, 0.0, 0.0, None))


def test_pixels_are_counted_over_all_images_before_anything_is_divided():
    predicted, truth = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 0, 1]], [[0, 1, 1, 1]]])
    whole = measured(predicted, truth, 2)
    split = evaluate(nn.Identity(), scores_for(predicted, 2).split(1), masks=truth.split(1)).segmentation
    assert whole == split == Segmentation((4 / 5 + 3 / 4) / 2, 7 / 8, (4 / 5, 3 / 4))


def test_scores_of_another_resolution_are_resized_bilinearly():
    scores = torch.stack([torch.zeros(2, 2), torch.tensor([[-1.0, 4.0], [-3.0, 7.0]])])[None]
    # Class 1 scores -1, 0.25, 2.75, 4 and -3, -0.5, 4.5, 7 against 0. The nearest would be -1, -1, 4, 4 in the first
    # row; with corners aligned, the second would be -3, 0.33, 3.67, 7.
    truth = torch.tensor([[[0, 1, 1, 1], [0, 0, 1, 1]]])
    segmentation = evaluate(nn.Identity(), [scores], masks=[truth]).segmentation
    assert segmentation == Segmentation(1.0, 1.0, (1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_masks_may_be_of_any_whole_numbers(dtype):
    masks = torch.tensor([[[0, 1, 255]]]).to(dtype)
    assert evaluate(nn.Identity(), [scores_for([[[0, 1, 0]]], 2)], masks=[masks]).segmentation == Segmentation(
        1.0, 1.0, (1.0, 1.0)
    )


def test_half_precision_scores_are_resized_in_single_precision():
    scores = torch.tensor([[[[258.0, 258.0]], [[253.0, 260.0]]]]).bfloat16()
    # Class 1 scores 253, 254.75, 258.25 and 260 against 258; in bfloat16 the third would be 258, and a draw.
    segmentation = evaluate(nn.Identity(), [scores], masks=[torch.tensor([[[0, 0, 1, 1]]])]).segmentation
    assert segmentation == Segmentation(1.0, 1.0, (1.0, 1.0))


def test_the_output_named_out_is_the_one_that_counts():
    truth = torch.tensor([[[0, 1, 1]]])
    right, wrong = scores_for(truth, 2), scores_for(1 - truth, 2)
    evaluation = evaluate(
        lambda _: {"aux": wrong, "out": right},
        [right],
        masks=[truth],
        against=lambda _: {"aux": right, "out": wrong},
    )
    assert evaluation.segmentation == Segmentation(1.0, 1.0, (1.0, 1.0))
    assert evaluation.comparison is not None
    assert evaluation.comparison.segmentation == Segmentation(0.0, 0.0, (0.0, 0.0))
    assert evaluation.comparison.same_class == 0.0


def test_both_networks_are_in_the_text_and_in_the_dict():
    truth = torch.tensor([[[0, 1, 1, 1]]])
    evaluation = evaluate(
        lambda x: x, [scores_for([[[0, 0, 1, 1]]], 4)], masks=[truth], against=lambda x: 1 - 2 * x.roll(1, 1)
    )
    text = str(evaluation)
    assert has(text, "58.33%", 2, 4, "75.00%")
    figures = evaluation.as_dict()
    assert figures["segmentation"] == {
        "mean_iou": pytest.approx((1 / 2 + 2 / 3) / 2),
        "pixel_accuracy": 0.75,
        "iou": (0.5, pytest.approx(2 / 3), None, None),
    }
    assert len(figures["comparison"]["segmentation"]["iou"]) == 4


def test_without_masks_there_is_no_mean_iou():
    evaluation = evaluate(nn.Identity(), [scores_for([[[0, 1]]], 2)], against=nn.Identity())
    assert evaluation.segmentation is None
    assert evaluation.comparison is not None
    assert evaluation.comparison.segmentation is None
    assert "IoU" not in str(evaluation)


@pytest.mark.parametrize("label", [21, 254, -100])
def test_a_label_that_is_neither_a_class_nor_255_is_an_error_that_says_where(label):
    masks = torch.zeros(4, 2, 3, dtype=torch.int64)
    masks[3, 1, 2] = label
    scores = torch.randn(4, 21, 2, 3, generator=torch.Generator().manual_seed(0))
    with raises(CalibrationError, 3, label, 1, 2, 21, 255):
        evaluate(nn.Identity(), scores.split(2), masks=masks.split(2))


def test_masks_of_which_no_pixel_counts_are_an_error():
    with raises(CalibrationError, 255):
        measured([[[0, 1]]], [[[255, 255]]], 2)


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        (torch.zeros(2, 3), "float32 [2, 3]"),
        (torch.zeros(2, 2, 3), "float32 [2, 2, 3]"),
        (torch.zeros(2, 2, 3, dtype=torch.bool), "bool [2, 2, 3]"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), "int64 [1, 2, 3]"),
        (torch.zeros(2, 1, 2, 3, dtype=torch.int64), "int64 [2, 1, 2, 3]"),
    ],
)
def test_masks_that_are_not_one_map_of_classes_for_each_sample_are_an_error(masks, found):
    with raises(CalibrationError, found, 2, "[height, width]"):
        evaluate(nn.Identity(), [torch.zeros(2, 4, 2, 3)], masks=[masks])


@pytest.mark.parametrize(("batches", "masks"), [(2, 1), (1, 2)])
def test_more_or_fewer_masks_than_inputs_are_an_error(batches, masks):
    with raises(CalibrationError, 1):
        evaluate(
            nn.Identity(),
            [torch.zeros(1, 2, 2, 2)] * batches,
            masks=[torch.zeros(1, 2, 2, dtype=torch.int64)] * masks,
        )


@pytest.mark.parametrize(
    "outputs",
    [
        torch.zeros(2, 5),
        torch.zeros(()),
        torch.zeros(1, 5, 2, 2),
        torch.zeros(2, 1, 2, 2),
        torch.zeros(2, 256, 2, 2),
        (torch.zeros(2, 5, 2, 2), torch.zeros(2, 5, 2, 2)),
        {"aux": torch.zeros(2, 5, 2, 2), "main": torch.zeros(2, 5, 2, 2)},
    ],
    ids=lambda value: type(value).__name__ + str(list(getattr(value, "shape", ()))),
)
def test_mean_iou_needs_one_map_of_scores_for_each_class(outputs):
    with raises(ModelError, "[2, classes, height, width]", 255):
        evaluate(lambda _: outputs, [torch.zeros(2, 3)], masks=[torch.zeros(2, 2, 2, dtype=torch.int64)])
