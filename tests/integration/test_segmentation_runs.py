"""Segmentation from end to end: images with masks in, mean IoU of the float and of the quantized network out."""

import json

import pytest
import torch
from click.testing import CliRunner
from facts import has
from recipes import quantizing
from vocfiles import classes_of, write_voc

import roundwise as rw
from roundwise.cli.app import app
from roundwise.data.dataset import DataOptions, load_data
from roundwise.data.preprocessing import Preprocessing, ShorterSide
from roundwise.evaluation import evaluate
from roundwise.loading.runnable import open_runnable

pytest.importorskip("onnxruntime")

# The images show their masks: with x = 255 times the first channel, the class c that is nearest to x has the largest
# score 2 c x − c², so that this network makes no mistake where a pixel counts.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            classes = torch.arange(4.0)
            self.classifier.weight.zero_()
            self.classifier.weight[:, 0, 0, 0] = 2 * 255 * classes
            self.classifier.bias.copy_(-classes.square())

    def forward(self, x):
        return {"out": self.classifier(x), "aux": x.mean(1, keepdim=True)}

def build():
    return Net()

def fewer():
    return nn.Conv2d(3, 3, 1)
"""

AS_STORED = ("--mean", "0,0,0", "--std", "1,1,1")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, a data set with two splits, and what one run of `quantize` made of them."""
    folder = tmp_path_factory.mktemp("segmentation")
    (folder / "net.py").write_text(NET)
    names = [f"{index}.0" for index in range(6)]
    write_voc(folder / "voc", [classes_of(seed=seed) for seed in range(6)], {"train": names[:4], "val": names[4:]})
    quantized = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "voc", *AS_STORED, "--bits", 2, "--per-tensor",
        "--ranges", "min-max", "--rounding", "nearest", "--out", folder / "net.rw", "--out", folder / "net.onnx",
    )  # fmt: skip
    assert quantized.exit_code == 0, quantized.stderr
    assert f"4 images in {folder}/voc, split 'train'" in quantized.stderr
    return folder


@pytest.mark.parametrize("name", ["net.rw", "net.onnx"])
def test_mean_iou_is_told_of_the_quantized_and_of_the_float_network(folder, name):
    common = ("evaluate", folder / name, "--against", f"{folder}/net.py:build", "--data", folder / "voc", *AS_STORED)
    result = run(*common, "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert has(figures["data"], 2, f"{folder}/voc", "'val'")
    assert figures["comparison"]["segmentation"] == {"mean_iou": 1.0, "pixel_accuracy": 1.0, "iou": [1.0] * 4}
    # Two bits are too few for the weights of four classes; what they give is measured here once more, by hand.
    data = load_data(folder / "voc", DataOptions(preprocessing=Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)))
    (inputs,), (truth,) = data.batches(2), data.mask_batches(2)
    predicted = rw.load(folder / "net.rw")(inputs)["out"].argmax(1)
    counted = truth != 255
    iou = [
        ((predicted == c) & (truth == c)).sum().item() / (((predicted == c) & counted) | (truth == c)).sum().item()
        for c in range(4)
    ]
    assert figures["segmentation"]["iou"] == pytest.approx(iou)
    assert figures["segmentation"]["mean_iou"] == pytest.approx(sum(iou) / 4)
    assert 0 < figures["segmentation"]["mean_iou"] < 1
    text = run(*common).stdout
    assert has(text, "IoU", f"{sum(iou) / 4:.2%}", 4, "100.00%")


def test_another_split_is_measured_where_it_is_asked_for(folder):
    result = run("evaluate", folder / "net.rw", "--data", folder / "voc", "--split", "train", *AS_STORED)
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, 4, "'train'")
    assert has(result.stdout, "IoU")


def test_without_masks_the_same_images_are_compared(folder):
    common = ("evaluate", folder / "net.rw", "--against", folder / "net.rw", "--data", folder / "voc", *AS_STORED)
    result = run(*common, "--no-labels", "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["data"] == f"2 images in {folder}/voc, split 'val'"
    assert figures["segmentation"] is None


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("net.rw", ("--split", "test"), "has no list ImageSets/Segmentation/test.txt. There are train, val"),
        ("net.rw", ("--classes", "net.py"), "masks say the class of each pixel"),
        ("net.py:fewer", (), "the mask of sample 0 has label 3"),
    ],
)
def test_what_cannot_be_measured_ends_with_1(folder, monkeypatch, model, options, message):
    monkeypatch.chdir(folder)
    result = run("evaluate", model, "--data", "voc", *AS_STORED, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_deeplab_is_captured_quantized_exported_and_measured(tmp_path):
    from roundwise.loading.vision import import_collection

    try:
        models = import_collection("torchvision")
    except rw.ModelError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    network = models.get_model(
        "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    ).eval()
    write_voc(tmp_path / "voc", [classes_of(90, 120, seed=seed) for seed in range(4)])
    data = load_data(tmp_path / "voc", DataOptions(preprocessing=Preprocessing(ShorterSide(65), (65, 65))))

    quantized = rw.quantize(network, data.batches(4), quantizing(rounding=rw.rounding.Nearest()))
    convolutions = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert {layer.name for layer in quantized.report.layers} == set(convolutions)
    rw.export(quantized, tmp_path / "deeplab.onnx")
    exported = open_runnable(str(tmp_path / "deeplab.onnx"), None, torch.device("cpu"))

    masks = data.mask_batches(3)
    assert masks is not None
    against_float = evaluate(quantized, data.batches(3), masks=masks, against=network)
    assert against_float.segmentation is not None
    assert against_float.comparison is not None
    assert against_float.comparison.segmentation is not None
    assert 0 < against_float.comparison.output_error < 1
    own = network(next(iter(data.batches(4))))["out"].argmax(1)
    truth = torch.cat(list(data.mask_batches(4)))
    right = ((own == truth).sum() / (truth != 255).sum()).item()
    assert against_float.comparison.segmentation.pixel_accuracy == pytest.approx(right, abs=1e-3)

    against_quantized = evaluate(exported, data.batches(3), masks=masks, against=quantized)
    assert against_quantized.comparison is not None
    assert against_quantized.comparison.output_error < 1e-9
    assert against_quantized.comparison.same_class > 0.999
    assert against_quantized.segmentation.mean_iou == pytest.approx(against_float.segmentation.mean_iou, abs=1e-3)
