"""Errors that take no time to provoke: what provokes each, and the facts that its message must hold."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipes import quantizing
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import roundwise as rw
from roundwise.cli.recipes import RecipeOptions, build_recipe
from roundwise.data.arrays import Keys, read_labels
from roundwise.data.dataset import DataOptions, load_data
from roundwise.data.preprocessing import Preprocessing, read_image
from roundwise.engine.calibration import Signature, read_calibration
from roundwise.engine.store import ActivationStore
from roundwise.errors import RoundwiseError
from roundwise.evaluation import check_classes, evaluate
from roundwise.loading.models import load_model, load_program, stated_preprocessing
from roundwise.loading.weights import Random, load_weights
from roundwise.numerics.grid import check_groups
from roundwise.reproduction import Journal, Settings
from roundwise.runtimes import OnnxRuntime


@dataclasses.dataclass(frozen=True)
class Case:
    """An error: its type, what provokes it (given an empty folder), and the facts that its message holds."""

    kind: type[RoundwiseError]
    provoke: Callable[[Path], object]
    facts: tuple


def read(data, parameters=("x",), batch=None):
    store = ActivationStore(1 << 30, torch.device("cpu"))
    return read_calibration(data, Signature(parameters, parameters, batch=batch), 4, store)


def read_stages(*stages):
    return rw.Recipe.from_dict({"stages": list(stages)})


def linked(path, target):
    path.symlink_to(target)
    return path


def override(overrides):
    return read_stages({"stage": "quantize", "overrides": overrides})


def matched(overrides):
    rw.Quantize(overrides=overrides).overrides.check(LAYERS, (), ("conv2d", "linear"))


def array(folder, values, name="x.npy"):
    np.save(folder / name, values)
    return folder / name


def pickled(folder, content):
    torch.save(content, folder / "x.pt")
    return folder / "x.pt"


def text(folder, content, name="text.txt"):
    (folder / name).write_text(content)
    return folder / name


def images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"")
    return folder


def tensors(folder, name="w.safetensors", **values):
    save_file(values, folder / name)
    return folder / name


def options(**given):
    return build_recipe(RecipeOptions(**given))


@functools.cache
def quantized():
    return rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, NEAREST)


def saved(folder, change=lambda content: content):
    quantized().save(folder / "model.rw")
    (folder / "model.rw").write_bytes(change((folder / "model.rw").read_bytes()))
    return folder / "model.rw"


def exported(folder):
    return OnnxRuntime().open(rw.export(quantized(), folder / "net.onnx").path)


def newer(folder):
    path = saved(folder)
    save_file(load_file(path), path, {"format": "roundwise", "version": "9", "model": "{}", "sha256": ""})
    return path


def endless():
    data = {}
    data["stages"] = [data]
    return data


def odd_weights(folder):
    torch.save(nn.Linear(4, 2).state_dict() | {"weight": torch.ones(2, 4).to_sparse()}, folder / "weights.pt")
    return folder / "weights.pt"


def image(path, kind, size=(4, 4)):
    Image.new("1", size).save(path, kind)
    return path


def weighted(values):
    layer = nn.Linear(4, 2)
    del layer.weight
    layer.weight = nn.Parameter(values, requires_grad=False)
    return layer.eval()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Mine(rw.rewrites.GraphRewrite):
    exact = True
    measures_moments = False

    def apply(self, graph):
        return graph

    def note(self, graph):
        return ""


def model(folder, name, content=None):
    return load_model(f"{text(folder, FILE if content is None else content, 'net.py')}:{name}")


def broken(value):
    return lambda x: torch.full((len(x), 3), value)


FILE = """
from torch import nn

def needs(width):
    return nn.Linear(width, width)

def fails():
    raise ValueError("no such dataset")

def other():
    return "a string"

number = 7
"""
SAMPLES = torch.zeros(8, 4)
IMAGES = torch.zeros(6, 3, 4, 5)
NEAREST = quantizing(rounding=rw.rounding.Nearest())
LAYERS = ["features.0.conv", "features.1.conv", "classifier"]
CLASSES = torch.arange(6) % 3
IN_FILE = {"x": torch.zeros(6, 3), "y": torch.arange(6)}

SETTINGS = {
    "a recipe nested too deep": (
        lambda folder: rw.Recipe.from_toml(text(folder, "a = " + "[" * 50_000 + "]" * 50_000)),
        ("text.txt", 32),
    ),
    "a recipe with too many digits": (
        lambda folder: rw.Recipe.from_toml(text(folder, "seed = " + "9" * 5000)),
        ("text.txt", "2**63"),
    ),
    "a recipe with a number that is too large": (
        lambda folder: rw.Recipe.from_toml(text(folder, "seed = 0x" + "f" * 5000)),
        ("text.txt", "20000 bits"),
    ),
    "a recipe that is too large": (
        lambda folder: rw.Recipe.from_toml(text(folder, "#" * (5 << 20))),
        ("text.txt", "4,194,304"),
    ),
    "a recipe that contains itself": (lambda _: rw.Recipe.from_dict(endless()), (32,)),
    "a recipe in a folder's place": (lambda folder: rw.Recipe().to_toml(folder), ("folder",)),
    "bits of first and last layers that no grid has": (
        lambda _: rw.Quantize(edge_bits=9),
        ("edge_bits=9", 2, 8, 16),
    ),
    "bits that no grid has": (lambda _: rw.Weights(bits=9), ("bits=9", 2, 8, 16)),
    "a granularity by its name": (
        lambda _: rw.Weights(granularity="per-tensor"),
        ("'per-tensor'", "granularity=PerTensor()"),
    ),
    "a method by its name": (lambda _: quantizing(rounding="nearest"), ("'nearest'", "rounding=Nearest()")),
    "a number for activations": (lambda _: quantizing(activations=8), (8, "Activations(bits=8)")),
    "a number for a choice": (lambda _: rw.Activations(adapt_rounding=1), ("adapt_rounding=1", True, False)),
    "a group of one": (lambda _: rw.PerGroup(1), ("PerGroup(size=1)", 2, 32, 128)),
    "no iterations": (lambda _: rw.rounding.GramAdaRound(iterations=0), ("iterations=0", 1)),
    "too many iterations": (
        lambda _: rw.rounding.GramAdaRound(iterations=10**13),
        ("iterations=10000000000000", "1e+12"),
    ),
    "no reach": (lambda _: rw.rounding.StraightThrough(reach=0.0), ("reach=0.0",)),
    "an unknown distribution": (lambda _: rw.ranges.ACIQ("cauchy"), ("distribution='cauchy'", "'gauss'", "'laplace'")),
    "no tolerance": (lambda _: rw.rewrites.CrossLayerEqualization(tolerance=0.0), ("tolerance=0.0", 0.01)),
    "no share of channels": (lambda _: rw.rewrites.OutlierChannelSplitting(0.0), ("ratio=0.0", 0, 1)),
    "deviations below 0": (lambda _: rw.rewrites.HighBiasAbsorption(-1.0), ("deviations=-1.0", 3)),
    "no deviations": (lambda _: rw.activations.ActivationBatchNorm(deviations=0.0), ("deviations=0.0", 6)),
    "more than all channels": (lambda _: rw.activations.ActivationBatchNorm(channels=1.5), ("channels=1.5", 1)),
    "one limit of two": (lambda _: rw.activations.ActivationBatchNorm(input_low=1.0), ("input_low=1.0", "input_high")),
    "limits that are one": (
        lambda _: rw.activations.ActivationBatchNorm(input_low=1.0, input_high=1.0),
        ("input_low=1.0", "input_high=1.0"),
    ),
    "bits of activations that no grid has": (
        lambda _: rw.Activations(bits=32),
        ("Activations", "bits=32", 2, 8, 16, "activations=None"),
    ),
    "a fraction for a percentage": (
        lambda _: rw.activations.ActivationPercentile(0.999),
        ("covered=0.999", 50, 100, "99.9"),
    ),
    "other settings of a class that is no stage": (
        lambda _: rw.Recipe().with_settings(rw.Weights, bits=3),
        ("Weights", "with_settings(Quantize, weights=Weights(…))"),
    ),
    "other settings of a stage that is named": (
        lambda _: rw.Recipe().with_settings("quantize", rounding=rw.rounding.Nearest()),
        ("with_settings(Quantize, …)",),
    ),
    "a setting of the weights for a stage": (
        lambda _: rw.Recipe().with_settings(rw.Quantize, bits=3),
        ("'bits'", "weights=Weights(bits=…)"),
    ),
    "a setting that a stage does not have": (
        lambda _: rw.Recipe().with_settings(rw.Quantize, roundings=3),
        ("'roundings'", "'rounding'"),
    ),
    "other settings of a stage that is not there": (
        lambda _: rw.Recipe((rw.Rewrite(),)).with_settings(rw.Quantize, correction=None),
        ("Quantize", "Rewrite"),
    ),
    "a kind of stage by its name": (lambda _: rw.Recipe().stage("quantize"), ("stage(Quantize, …)",)),
    "two stages that quantize": (
        lambda _: rw.Recipe((rw.Quantize(), rw.Quantize())),
        ("stages[1]", "stages[0]", "overrides"),
    ),
    "two stages that quantize in a file": (
        lambda folder: rw.Recipe.from_toml(text(folder, 2 * '[[stages]]\nstage = "quantize"\n', "r.toml")),
        ("r.toml", "stages[1]", "stages[0]", "overrides"),
    ),
    "a rewrite of a quantized network": (
        lambda _: rw.Recipe((rw.Quantize(), rw.Rewrite((rw.rewrites.CrossLayerEqualization(),)))),
        ("stages[1]", "stages[0]", "Rewrite"),
    ),
    "a setting of a stage beside the stages": (
        lambda _: rw.Recipe.from_dict({"weights": {"bits": 3}}),
        ("'weights'", "[stages.weights]", "[[stages]]", 'stage = "quantize"'),
    ),
    "a method of a stage beside the stages": (
        lambda _: rw.Recipe.from_dict({"rounding": "nearest"}),
        ("'rounding'", "rounding = …", "[[stages]]", 'stage = "quantize"'),
    ),
    "no method by a word": (
        lambda _: read_stages({"stage": "quantize", "correction": "none"}),
        ("stages[0]", "correction", "'none'"),
    ),
    "a truth value in quotes": (
        lambda _: read_stages({"stage": "quantize", "weights": {"symmetric": "no"}}),
        ("stages[0]", "weights", "symmetric", "'no'", "true", "false"),
    ),
    "a number in quotes": (
        lambda _: read_stages({"stage": "quantize", "weights": {"bits": "4"}}),
        ("stages[0]", "weights", "bits", "'4'"),
    ),
    "a number out of range in a file": (
        lambda _: read_stages({"stage": "quantize", "activations": {"bits": 32}}),
        ("stages[0]", "activations", "bits=32"),
    ),
    "an override in a file that changes nothing": (
        lambda _: override({"features.0": {}}),
        ("stages[0]", "overrides 'features.0'", "weights=…"),
    ),
    "an override in a file that is out of range": (
        lambda _: override({"features.0": {"weights": {"bits": 9}}}),
        ("stages[0]", "overrides 'features.0'", "bits=9"),
    ),
    "a truth value for a function": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, progress=True),
        ("progress=True", "print"),
    ),
    "a recipe file in a folder that is not there": (
        lambda folder: rw.Recipe().to_toml(folder / "absent" / "r.toml"),
        ("absent", "r.toml"),
    ),
    "nothing for a recipe file": (lambda _: rw.Recipe.from_toml(None), ("None", "pathlib.Path")),
    "more than all percent": (lambda _: rw.activations.ActivationPercentile(100.5), ("covered=100.5", 100)),
    "one rewrite alone": (lambda _: rw.Rewrite(rw.rewrites.OutlierChannelSplitting()), ("methods", "tuple")),
    "a method of one's own in a file": (lambda _: quantizing(rewrites=(Mine(),)).as_toml(), ("Mine", "TOML")),
    "no stage": (lambda _: rw.Recipe(()), ("stages", "Rewrite(…)", "Quantize(…)")),
    "a stage by its name": (lambda _: rw.Recipe(("quantize",)), ("stages[0]", "'quantize'", "Quantize(…)")),
    "a stage that the recipe does not have": (
        lambda _: rw.Recipe((rw.Rewrite(),)).stage(rw.Quantize),
        ("Quantize", "Rewrite"),
    ),
    "an unknown stage": (lambda _: read_stages({"stage": "quantise"}), ("stages[0]", "'quantise'", "'quantize'")),
    "a stage without a name": (lambda _: read_stages({"rounding": "gptq"}), ("stages[0]", "'stage'", "quantize")),
    "a number as a recipe": (lambda _: rw.Recipe.from_dict(4), (4, "stages")),
    "an unknown setting": (
        lambda _: read_stages({"stage": "quantize", "wieghts": {}}),
        ("'wieghts'", "'weights'"),
    ),
    "an unknown method": (
        lambda _: read_stages({"stage": "quantize", "rounding": "gtpq"}),
        ("stages[0]", "'gtpq'", "'gptq'"),
    ),
    "a setting of another method": (
        lambda _: read_stages({"stage": "quantize", "rounding": {"method": "gptq", "steps": 5}}),
        ("'gptq'", "'steps'", "free_bias"),
    ),
    "a setting of a method without any": (
        lambda _: read_stages({"stage": "quantize", "rounding": {"method": "nearest", "steps": 5}}),
        ("'nearest'", "'steps'"),
    ),
    "a word instead of tables": (
        lambda _: read_stages({"stage": "rewrite", "methods": "ocs"}),
        ("methods", "'ocs'", "method"),
    ),
    "overrides that are a word": (
        lambda _: override("float"),
        ("overrides", "'float'", "[stages.overrides.classifier]"),
    ),
    "an override without quotes": (
        lambda _: override({"features": {"0": {"weights": {"bits": 8}}}}),
        ("'features'", '[stages.overrides."features.0".weights]'),
    ),
    "stages in single brackets": (
        lambda folder: rw.Recipe.from_toml(text(folder, '[stages]\nstage = "quantize"\n', "r.toml")),
        ("r.toml", "[[stages]]", 'stage = "quantize"'),
    ),
    "weights in double brackets": (
        lambda _: read_stages({"stage": "quantize", "weights": [{"bits": 3}]}),
        ("stages[0]", "weights", "Double brackets"),
    ),
    "a single method in place of a list": (
        lambda _: read_stages({"stage": "rewrite", "methods": {"method": "high-bias-absorption"}}),
        ("stages[0]", '[{ method = "high-bias-absorption" }]'),
    ),
    "a setting beside its method": (
        lambda _: read_stages({"stage": "quantize", "rounding": "adaround", "iterations": 9}),
        ("stages[0]", "'iterations'", 'rounding = { method = "adaround", iterations = 9 }'),
    ),
    "a setting beside the default method": (
        lambda _: read_stages({"stage": "quantize", "shrinkage": 0}),
        ("stages[0]", "'shrinkage'", 'rounding = { method = "gram-adaround", shrinkage = 0 }'),
    ),
    "a setting beside its granularity": (
        lambda _: read_stages({"stage": "quantize", "weights": {"granularity": "per-group", "size": 32}}),
        ("weights", "'size'", 'granularity = { kind = "per-group", size = 32 }'),
    ),
    "a setting beside its quantizer": (
        lambda _: read_stages({"stage": "finetune", "offset": "real"}),
        ("stages[0]", "'offset'", 'quantization = { method = "lsq-plus", offset = "real" }'),
    ),
    "bits beside the weights": (
        lambda _: read_stages({"stage": "quantize", "bits": 3}),
        ("stages[0]", "'bits'", "weights = { bits = 3 }", "activations = { bits = 3 }"),
    ),
    "bits of an override beside its weights": (
        lambda _: override({"features.0": {"bits": 8}}),
        ("overrides 'features.0'", "'bits'", "weights = { bits = 8 }"),
    ),
    "a setting of a method with a single one": (
        lambda _: read_stages({"stage": "compress", "macs": 0.5, "methods": [{"method": "spatial-svd", "round": 2}]}),
        ("'round'", "only setting", "'rounds'"),
    ),
    "an override that changes nothing": (lambda _: rw.Override(), ("weights=…", "activations=…")),
    "a method that only a program has": (
        lambda _: read_stages({"stage": "rewrite", "methods": [{"custom": "Mine()"}]}).stages[0].methods[0].apply(None),
        ("Mine()", "recipe.with_settings(Rewrite, methods=(…,))"),
    ),
    "no TOML": (lambda folder: rw.Recipe.from_toml(text(folder, "bits", "r.toml")), ("r.toml", "TOML")),
    "a layer that is not there": (
        lambda _: matched({"clasifier": None}),
        ("'clasifier'", 3, "'classifier'"),
    ),
    "a part of the model": (
        lambda _: matched({"features": None}),
        ("'features'", 3, 2, "'features.*'"),
    ),
    "a kind of operation that is not there": (
        lambda _: matched({"op:conv3d": None}),
        ("'op:conv3d'", "conv2d, linear"),
    ),
    "groups that do not fit": (
        lambda _: check_groups([("conv1", 27, rw.PerGroup(16)), ("conv2", 64, rw.PerGroup(16))]),
        ("'conv1'", 27, 16, 1, 2),
    ),
    "a dict as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, {"bits": 4}),
        ("dict", "Recipe.from_dict"),
    ),
    "a path as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, Path("recipe.toml")),
        ("Recipe.from_toml('recipe.toml')",),
    ),
    "a number as a recipe of a call": (lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, 4), ("int", "Recipe")),
    "a method as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, rw.rounding.Stochastic()),
        ("Stochastic", "Quantize(rounding=Stochastic())"),
    ),
    "a class of methods as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, rw.rounding.Stochastic),
        ("class Stochastic", "Quantize(rounding=Stochastic())"),
    ),
    "a method as a stage": (
        lambda _: rw.Recipe((rw.rewrites.HighBiasAbsorption(2.0),)),
        ("stages[0]", "Write Rewrite(methods=(HighBiasAbsorption(deviations=2.0, "),
    ),
    "a method of compression as a recipe": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, rw.compression.MagnitudePruning()),
        ("Compress(macs=0.5, methods=(MagnitudePruning(),))",),
    ),
    "a granularity as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, rw.PerTensor()),
        ("Quantize(weights=Weights(granularity=PerTensor()))",),
    ),
    "a class of stages as a recipe": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, rw.Quantize),
        ("class Quantize", "Quantize()"),
    ),
    "other settings of a method for its stage": (
        lambda _: rw.Recipe().with_settings(rw.Quantize, shrinkage=0),
        ("'shrinkage'", "rounding=GramAdaRound(shrinkage=…)"),
    ),
    "a dynamic size of no input": (
        lambda _: rw.quantize(nn.Linear(4, 2).eval(), SAMPLES, NEAREST, dynamic={"image": {2: "height"}}),
        ("'image'", "'input'", "{2: 'height'}"),
    ),
    "mean and std of other lengths": (lambda _: Preprocessing(mean=(0.5,)), ("mean", 1, "std", 3)),
    "a std of 0": (lambda _: Preprocessing(std=(0.5, 0.5, 0.0)), ("std", "0.5, 0.5, 0.0")),
    "an unknown interpolation": (lambda _: Preprocessing(interpolation="cubic"), ("'cubic'", "bicubic")),
    "a crop of nothing": (lambda _: Preprocessing(crop=(0, 5)), ("0×5", 1)),
    "a limit of nothing": (lambda _: DataOptions(limit=0), ("limit=0",)),
    "a seed of more than 64 bits": (lambda _: DataOptions(seed=2**64), (f"seed={2**64}", 64)),
    "labels and classes": (
        lambda _: DataOptions(labels="labels.txt", class_list="classes.txt"),
        ("labels.txt", "classes.txt"),
    ),
    "batches of nothing": (lambda folder: load_data(array(folder, SAMPLES)).batches(0), (0,)),
    "an option of no method": (lambda _: options(settings=["grid.scale=1"]), ("--set grid.scale=1", "'grid'")),
    "an option that is not there": (
        lambda _: options(settings=["iteration=5"]),
        ("--set iteration=5", "'iteration'", "'iterations'"),
    ),
    "bits as a setting of the rounding": (
        lambda _: options(settings=["bits=3"]),
        ("--set bits=3", "gram-adaround", "--bits 3"),
    ),
    "a setting of ranges as one of the rounding": (
        lambda _: options(settings=["candidates=50"]),
        ("--set candidates=50", "--set ranges.candidates=50"),
    ),
    "an option without a value": (lambda _: options(overrides=["0"]), ("--override 0", "NAME=VALUE")),
    "an override of no bits": (lambda _: options(overrides=["0=nine"]), ("--override 0=nine", "'nine'", "per-tensor")),
    "an override that says bits twice": (lambda _: options(overrides=["0=8,4"]), ("--override 0=8,4", "bits")),
    "bits of activations said twice": (
        lambda _: options(activations=8, settings=["activations.bits=4"]),
        ("--set activations.bits=4", "--activations 8"),
    ),
    "a reproduction without seeds": (lambda _: Settings(seeds=0), ("seeds=0", 1)),
}

SAMPLES_AND_LABELS = {
    "samples of an odd kind": (
        lambda _: read(torch.ones(8, 4).to_sparse()),
        ("sparse_coo", "to_dense()"),
    ),
    "samples of a dtype that only stores": (lambda _: read(SAMPLES.to(torch.float8_e4m3fn)), ("float8_e4m3fn",)),
    "samples with missing values": (
        lambda _: read(np.ma.masked_greater(np.arange(8.0).reshape(4, 2), 5)),
        ("[4, 2]", 2, "filled"),
    ),
    "a path": (lambda _: read("images/"), ("str", "DataLoader")),
    "nothing": (lambda _: read([]), ("DataLoader",)),
    "a dataset": (lambda _: read(TensorDataset(SAMPLES)), ("TensorDataset", "DataLoader(dataset, batch_size=32)")),
    "a list of paths": (lambda _: read(["a.png"]), ("str",)),
    "a number": (lambda _: read(torch.tensor(1.0)), (0, "tensor(1.)")),
    "objects": (lambda _: read(np.array([object()])), ("object", "[1]")),
    "shapes that differ": (lambda _: read([IMAGES, IMAGES[:, :2]]), (1, "[2, 4, 5]", "[3, 4, 5]")),
    "structures that differ": (lambda _: read([IMAGES, {"x": {"y": IMAGES}}]), (1, "TreeSpec")),
    "a sample with NaN": (
        lambda _: rw.quantize(nn.Conv2d(3, 2, 1).eval(), IMAGES.index_fill(0, torch.tensor(4), torch.nan)),
        (4, "NaN", 1, 6),
    ),
    "inputs of other numbers": (
        lambda _: read((IMAGES, torch.arange(5)), ("left", "right")),
        (0, "[6, 3, 4, 5]", "[5]"),
    ),
    "other keys": (
        lambda _: read([{"left": IMAGES, "other": IMAGES}], ("left", "right")),
        ("'left', 'other'", "'left', 'right'"),
    ),
    "a constant that changes": (lambda _: read([(IMAGES, 0.5), (IMAGES, 0.25)], ("x", "s")), (0.25, 1, 0.5)),
    "a remainder": (lambda _: read(IMAGES, batch=4), (4, 6, 2)),
    "a size of nothing": (lambda _: rw.DataFree((3, 0, 8)), ("(3, 0, 8)", "(3, 224, 224)")),
    "no samples to evaluate on": (lambda _: evaluate(nn.Identity(), [], labels=[1]), ()),
    "fewer labels than samples": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=[1]), (1, 8)),
    "more labels than samples": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=[1] * 9), (9, 8)),
    "a label that is no class": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=[0] * 7 + [4]), (4,)),
    "labels of floats": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=[0.5] * 8), ("float64 [8]",)),
    "a negative label": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=[0] * 7 + [-1]), (7, -1)),
    "words for labels": (lambda _: evaluate(nn.Identity(), [SAMPLES], labels=["a"] * 8), ("<U1 [8]",)),
    "masks of floats": (
        lambda _: evaluate(nn.Identity(), [IMAGES], masks=[torch.zeros(6, 4, 5)]),
        ("float32 [6, 4, 5]", 6, "[height, width]"),
    ),
    "folders that are not the classes": (
        lambda folder: check_classes(torch.zeros(1, 3), load_data(images(folder, "a/0.png", "b/0.png"))),
        (2, 3, "--classes"),
    ),
}

MODELS = {
    "a dict of weights": (lambda _: rw.quantize({"weight": SAMPLES}, SAMPLES), ("dict", "load_state_dict")),
    "lazy parameters": (lambda _: rw.quantize(nn.LazyLinear(4), SAMPLES), ("lazy",)),
    "weights without values": (
        lambda _: rw.quantize(nn.Linear(4, 2, device="meta").eval(), SAMPLES),
        ("'weight'", "'meta'"),
    ),
    "no layer": (lambda _: rw.quantize(nn.ReLU().eval(), SAMPLES), ("linear", "convolution")),
    "weights of an odd kind": (
        lambda _: rw.quantize(weighted(torch.ones(2, 4).to_sparse()), SAMPLES),
        ("'weight'", "sparse_coo", "[2, 4]", "to_dense()"),
    ),
    "a name with a quotation mark": (
        lambda _: rw.quantize(nn.Sequential(OrderedDict({'a"b': nn.Linear(4, 2)})).eval(), SAMPLES),
        ("'a\"b'",),
    ),
    "inputs of another dtype": (
        lambda _: quantized()(SAMPLES.double()),
        ("'input'", "float64 [8, 4]", "float32 [samples, 4]", "input.to(torch.float32)"),
    ),
    "inputs of another size": (
        lambda _: quantized()(SAMPLES[:, :3]),
        ("'input'", "dimension 1", 3, 4, "dynamic={'input': {1: 'size'}}"),
    ),
    "a sample without a batch": (lambda _: quantized()(SAMPLES[0]), ("'input'", "float32 [4]", "x.unsqueeze(0)")),
    "another dtype": (lambda _: quantized().half(), ("torch.float32", "torch.float16", "model.to(torch.float16)")),
    "outputs of other shapes": (
        lambda _: evaluate(nn.Identity(), [SAMPLES], against=lambda x: x[:, 1:]),
        ("[8, 4]", "[8, 3]"),
    ),
    "no outputs": (lambda _: evaluate(lambda _: "cat", [SAMPLES], against=nn.Identity()), ("str",)),
    "outputs of NaN": (lambda _: evaluate(broken(torch.nan), [SAMPLES], against=broken(1.0)), ("NaN", 24, 0)),
    "no class left": (lambda _: evaluate(broken(-torch.inf), [SAMPLES], labels=[0] * 8), ("−infinity", 3, 8, 0)),
    "outputs that are no scores": (
        lambda _: evaluate(nn.Identity(), [IMAGES], labels=CLASSES),
        ("[6, classes]", "[6, 3, 4, 5]"),
    ),
    "outputs that are no maps of scores": (
        lambda _: evaluate(nn.Identity(), [SAMPLES], masks=[torch.zeros(8, 1, 1, dtype=torch.int64)]),
        ("[8, classes, height, width]", "[8, 4]"),
    ),
    "no model": (lambda _: load_model("nonsense"), ("'nonsense'", "torchvision:NAME")),
    "weights instead of a model": (lambda _: load_model("w.pth"), ("'w.pth'", "--weights w.pth")),
    "a file that is not there": (lambda folder: load_model(f"{folder}/net.py:f"), ("net.py",)),
    "a file that does not run": (lambda folder: model(folder, "f", "x = 1\ny = ("), ("net.py", 2, "SyntaxError")),
    "a function that is not there": (lambda folder: model(folder, "fials"), ("net.py", "'fials'", "fails")),
    "a function with arguments": (lambda folder: model(folder, "needs"), ("net.py:needs", "width")),
    "a function that fails": (
        lambda folder: model(folder, "fails"),
        ("net.py:fails", 8, "ValueError: no such dataset"),
    ),
    "a function that gives something else": (
        lambda folder: model(folder, "other"),
        ("net.py:other", "str", "torch.nn.Module"),
    ),
    "a number instead of a model": (lambda folder: model(folder, "number"), ("net.py:number", "int")),
    "weights of another model": (
        lambda folder: load_weights(nn.Linear(4, 2), tensors(folder, weight=torch.zeros(2, 3), other=torch.zeros(1))),
        ("w.safetensors", "float32 [2, 3]", "float32 [2, 4]", "bias", "other", "--num-classes"),
    ),
    "preprocessing that nothing states": (
        lambda _: stated_preprocessing("net.py:f"),
        ("'net.py:f'", "torchvision:NAME", "timm:NAME"),
    ),
}

FILES = {
    "no file": (lambda folder: rw.load(folder / "absent.rw"), ("absent.rw", "No such file")),
    "nothing for a file": (lambda _: rw.load(None), ("None", "pathlib.Path")),
    "a model in a file of another kind": (
        lambda folder: quantized().save(folder / "model.pt"),
        ("model.pt", ".rw", "model.rw"),
    ),
    "a file cut short": (
        lambda folder: rw.load(saved(folder, lambda it: it[:99])),
        ("model.rw", "quantized.save(FILE)"),
    ),
    "a file that was changed": (
        lambda folder: rw.load(saved(folder, lambda it: it[:-1] + bytes([it[-1] ^ 1]))),
        ("model.rw", "checksum"),
    ),
    "a file of another version": (lambda folder: rw.load(newer(folder)), ("model.rw", 9)),
    "a file of tensors": (lambda folder: rw.load(tensors(folder, **IN_FILE)), ("w.safetensors",)),
    "a folder instead of a file": (lambda folder: quantized().save(folder), ()),
    "no folder for a file": (lambda folder: quantized().save(folder / "absent" / "model.rw"), ("absent", "model.rw")),
    "weights of an unknown kind": (
        lambda folder: load_weights(nn.Linear(4, 2), text(folder, "", "w.h5")),
        ("w.h5", "'.h5'", ".safetensors"),
    ),
    "weights that are none": (
        lambda folder: load_weights(nn.Linear(4, 2), text(folder, "hello", "w.safetensors")),
        ("w.safetensors",),
    ),
    "a device in place of a file": (
        lambda folder: quantized().save(linked(folder / "net.rw", "/dev/null")),
        ("net.rw", "device"),
    ),
    "weights of an odd kind in a file": (
        lambda folder: load_weights(nn.Linear(4, 2), odd_weights(folder)),
        ("weights.pt", "'weight'", "sparse_coo", "to_dense()"),
    ),
    "an image of a format that is not read": (
        lambda folder: read_image(image(folder / "x.png", "ICO")),
        ("x.png", "PNG", "JPEG"),
    ),
    "an image of too many pixels": (
        lambda folder: read_image(image(folder / "x.png", "PNG", (40_000, 3_000))),
        ("x.png", "40000×3000", 100_000_000),
    ),
    "no program": (lambda folder: load_program(folder / "net.pt2"), ("net.pt2",)),
    "a program that is none": (lambda folder: load_program(text(folder, "", "net.pt2")), ("net.pt2",)),
    "data of an unknown kind": (lambda folder: load_data(text(folder, "1", "x.csv")), ("x.csv", "'.csv'", ".npz")),
    "text for inputs": (lambda folder: load_data(array(folder, np.array(["a"]))), ("x.npy", "<U1 [1]", 64)),
    "a whole model for data": (
        lambda folder: load_data(pickled(folder, nn.Linear(2, 2))),
        ("x.pt", "'torch.nn.modules.linear.Linear'", "torch.save({'inputs': …, 'labels': …}, path)"),
    ),
    "a number beside arrays": (
        lambda folder: load_data(pickled(folder, {"x": SAMPLES, "y": 3})),
        ("x.pt", "'y'", "int", "tensor"),
    ),
    "no samples in a file": (lambda folder: load_data(array(folder, np.zeros((0, 3)))), ("x.npy", "[0, 3]")),
    "images of an unknown layout": (
        lambda folder: load_data(array(folder, np.zeros((6, 8), np.uint8))),
        ("x.npy", "uint8 [6, 8]", "float32"),
    ),
    "arrays that could all be inputs": (
        lambda folder: load_data(tensors(folder, a=IMAGES, b=SAMPLES)),
        ("--input-key", "'a'", "'b'"),
    ),
    "an array that is not there": (
        lambda folder: load_data(tensors(folder, **IN_FILE), DataOptions(keys=Keys(inputs="z"))),
        ("'z'", "'x'", "float32 [6, 3]"),
    ),
    "a key for a single array": (
        lambda folder: load_data(array(folder, np.zeros(3)), DataOptions(keys=Keys(inputs="x"))),
        ("x.npy",),
    ),
    "labels of another number": (
        lambda folder: load_data(tensors(folder, x=IMAGES, y=torch.arange(4))),
        ("w.safetensors", 4, 6),
    ),
    "a label below 0": (lambda folder: load_data(tensors(folder, x=IMAGES, y=CLASSES - 1)), ("w.safetensors", 0, -1)),
    "a text of no labels": (lambda folder: read_labels(text(folder, "1\ncat\n")), ("text.txt", 2, "'cat'")),
    "a folder without images": (lambda folder: load_data(text(folder, "").parent), (1, ".png")),
    "a class without images": (lambda folder: load_data(images(folder, "a/0.png", "b/0.txt")), ("b",)),
    "images beside classes": (lambda folder: load_data(images(folder, "0.png", "a/0.png")), (1, "'a'")),
    "a broken image": (
        lambda folder: next(iter(load_data(images(folder, "0.png")).batches(1))),
        ("0.png", "UnidentifiedImageError"),
    ),
    "a class that is listed twice": (
        lambda folder: load_data(
            images(folder / "data", "dog/0.png"), DataOptions(class_list=text(folder, "dog\ncat\ndog\n"))
        ),
        ("text.txt", "'dog'", 1, 3),
    ),
    "a split of something without": (
        lambda folder: load_data(images(folder, "0.png"), DataOptions(split="val")),
        ("'val'", "SegmentationClass"),
    ),
    "a score that is no percentage": (
        lambda folder: Journal(text(folder, '{"run": "a", "score": 101, "seconds": 1}\n', "runs.jsonl")),
        ("runs.jsonl", 1, "'score'", 100),
    ),
}

EXPORTS = {
    "a page in place of a folder": (lambda folder: rw.html_report(quantized(), folder), ("folder",)),
    "a name that is too long": (
        lambda folder: rw.html_report(quantized(), folder / ("a" * 300 + ".html")),
        ("a" * 300, 305, 255),
    ),
    "a name with a null character": (lambda folder: rw.html_report(quantized(), folder / "a\0b.html"), ("null",)),
    "a file without its suffix": (lambda folder: rw.export(quantized(), folder / "net"), ("net", ".onnx", ".rw")),
    "a target that there is not": (
        lambda folder: rw.export(quantized(), folder / "net.onnx", target="tensorrt2"),
        ("tensorrt2", "ort-cpu"),
    ),
    "a target for a format without targets": (
        lambda folder: rw.export(quantized(), folder / "net.rw", target="tensorrt"),
        ("tensorrt", "Roundwise"),
    ),
    "no folder for an export": (
        lambda folder: rw.export(quantized(), folder / "absent" / "net.onnx"),
        ("absent", "net.onnx"),
    ),
    "a model that is not quantized": (
        lambda folder: rw.export(nn.Linear(4, 2), folder / "net.onnx"),
        ("Linear", "quantize"),
    ),
    "a page without its suffix": (
        lambda folder: rw.html_report(quantized(), folder / "page"),
        ("page", ".html", "page.html"),
    ),
    "a page on a model that is not quantized": (
        lambda folder: rw.html_report(nn.Linear(4, 2), folder / "page.html"),
        ("Linear", "quantize"),
    ),
    "a folder instead of a page": (lambda folder: rw.html_report(quantized(), folder), ()),
}

TRAINING = {
    "labels that are asked for and missing": (
        lambda _: rw.finetune(nn.Linear(4, 2).eval(), SAMPLES, rw.Finetune(epochs=1, labels=0.5)),
        ("Finetune(labels=0.5)", "DataLoader"),
    ),
    "training data that can be read only once": (
        lambda _: rw.finetune(nn.Linear(4, 2).eval(), iter([SAMPLES]), rw.Finetune(epochs=1)),
        ("list_iterator", "once"),
    ),
}


class NoMethod(rw.compression.CompressionMethod):
    def reason(self, layer):
        return ""


class WrongPruning(rw.compression.Pruning):
    def reason(self, layer):
        return ""

    def keep(self, problem, counts):
        return [torch.arange(count) + problem.channels for count in counts]


COMPRESSION = {
    "no budget": (lambda _: rw.Compress(), ("macs", "parameters")),
    "two budgets": (lambda _: rw.Compress(macs=0.5, parameters=0.25), ("macs=0.5", "parameters=0.25")),
    "a budget of all": (lambda _: rw.Compress(macs=1.0), ("macs=1.0",)),
    "a share of time above 1": (lambda _: rw.Compress(latency=1.5), ("latency=1.5",)),
    "a budget of time and one of multiplications": (
        lambda _: rw.Compress(macs=0.5, latency=0.25),
        ("macs=0.5", "latency=0.25"),
    ),
    "a share of time beside a recipe": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, rw.Compress(macs=0.5), latency=0.5),
        ("latency",),
    ),
    "a budget of nothing": (lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0), ("macs=0",)),
    "a budget in text": (lambda _: rw.Compress(parameters="half"), ("parameters='half'",)),
    "ranks that are multiples of 0": (lambda _: rw.Compress(macs=0.5, multiple=0), ("multiple=0",)),
    "no methods of compression": (lambda _: rw.Compress(macs=0.5, methods=()), ("methods",)),
    "a class in place of a method of compression": (
        lambda _: rw.Compress(macs=0.5, methods=(rw.compression.SpatialSVD,)),
        ("methods[0]", "SpatialSVD()"),
    ),
    "a budget that neither channels nor chains can meet": (
        lambda _: rw.compress(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(),
            torch.randn(8, 8),
            rw.Compress(macs=0.01, methods=(rw.compression.ChannelPruning(), rw.compression.WeightSVD()), multiple=4),
        ),
        ("macs=0.01", "ChannelPruning", "WeightSVD", "multiples of 4"),
    ),
    "a budget that no number of channels can meet": (
        lambda _: rw.compress(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(),
            SAMPLES,
            rw.Compress(macs=0.1, methods=(rw.compression.ChannelPruning(),), multiple=4),
        ),
        ("macs=0.1", "ChannelPruning", 0.5, 4),
    ),
    "a layer to keep that is not there, in channel pruning": (
        lambda _: rw.compress(
            nn.Linear(4, 2).eval(),
            SAMPLES,
            rw.Compress(macs=0.5, methods=(rw.compression.MagnitudePruning(),), keep=("conv9",)),
        ),
        ("conv9", "weight"),
    ),
    "a pruning that keeps channels that do not exist": (
        lambda _: rw.compress(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(),
            SAMPLES,
            rw.Compress(macs=0.5, methods=(WrongPruning(),), multiple=4),
        ),
        ("WrongPruning", "'0'", 8),
    ),
    "a choice by a metric, and no metric": (
        lambda _: rw.compress(
            nn.Linear(4, 2).eval(), SAMPLES, rw.Compress(macs=0.5, choice=rw.compression.EqualAccuracyLoss())
        ),
        ("EqualAccuracyLoss()", "evaluate"),
    ),
    "a metric that is no function": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0.5, evaluate=0.9),
        ("evaluate=0.9",),
    ),
    "a metric that is not a number": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0.5, evaluate=lambda _: torch.nan),
        ("nan",),
    ),
    "a metric that fails": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0.5, evaluate=lambda _: 1 / 0),
        ("ZeroDivisionError",),
    ),
    "a metric in text": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0.5, evaluate=lambda _: "good"),
        ("'good'", "str"),
    ),
    "a choice by a metric for methods that remove channels": (
        lambda _: rw.Compress(
            macs=0.5, methods=(rw.compression.ChannelPruning(),), choice=rw.compression.EqualAccuracyLoss()
        ),
        ("EqualAccuracyLoss()", "ChannelPruning"),
    ),
    "one name to keep that is no tuple": (lambda _: rw.Compress(macs=0.5, keep="conv1"), ("keep", "'conv1'")),
    "rounds below 0": (lambda _: rw.compression.SpatialSVD(rounds=-1), ("SpatialSVD(rounds=-1)", 0)),
    "an unknown method of compression": (
        lambda _: read_stages({"stage": "compress", "macs": 0.5, "methods": ["spatial-sdv"]}),
        ("spatial-sdv", "spatial-svd"),
    ),
    "compression after codes were chosen": (
        lambda _: rw.Recipe((rw.Quantize(), rw.Compress(macs=0.5))),
        ("stages[1]", "Compress", "stages[0]"),
    ),
    "a budget that no rank can meet": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, macs=0.5),
        ("macs=0.5", 1, 8),
    ),
    "a recipe without compression": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, NEAREST),
        ("Compress", "Quantize"),
    ),
    "a layer to keep that is not there": (
        lambda _: rw.compress(nn.Linear(4, 2).eval(), SAMPLES, rw.Compress(macs=0.5, keep=("conv9",))),
        ("conv9", "weight"),
    ),
    "a method of compression that is no factorization": (
        lambda _: rw.compress(nn.Linear(8, 8).eval(), torch.randn(8, 8), rw.Compress(macs=0.5, methods=(NoMethod(),))),
        ("NoMethod", "Factorization"),
    ),
    "a method of compression that a file could not hold": (
        lambda _: rw.compress(
            nn.Linear(8, 8).eval(),
            torch.randn(8, 8),
            read_stages({"stage": "compress", "macs": 0.5, "methods": [{"custom": "Mine()"}]}),
        ),
        ("Mine()", "Compress"),
    ),
}

OTHERS = {
    "features that the network does not have": Case(
        rw.RecipeError,
        lambda _: rw.finetune(nn.Linear(4, 2).eval(), SAMPLES, rw.Finetune(epochs=1, features=("conv9",))),
        ("conv9", "linear"),
    ),
    "too little disk": Case(
        rw.MemoryBudgetError,
        lambda _: ActivationStore(500, torch.device("cpu")).check_disk(10**20),
        (500, "TMPDIR"),
    ),
    "a file that no runtime can load": Case(
        rw.InferenceError,
        lambda folder: OnnxRuntime().open(text(folder, "no model", "net.onnx")),
        ("net.onnx", "ONNX Runtime"),
    ),
    "inputs that a file does not take": Case(
        rw.InferenceError,
        lambda folder: exported(folder).run({"y": np.zeros((8, 3), np.float32)}),
        ("net.onnx", "y float32 [8, 3]", "input tensor(float)"),
    ),
    "a model that decides by values": Case(
        rw.CaptureError, lambda _: rw.quantize(Branching().eval(), SAMPLES), ("provoked.py", "x.sum() > 0")
    ),
}

SOURCES = {
    "random weights for a function": (
        lambda _: load_model("net.py:f", Random()),
        ("net.py:f", "--pretrained", "--random-weights"),
    ),
    "weights for a program": (lambda _: load_model("net.pt2", Random()), (".pt2", "--weights")),
    "a number of classes for a function": (
        lambda _: load_model("net.py:f", num_classes=3),
        ("net.py:f", "--num-classes"),
    ),
}

CASES = OTHERS | {
    name: Case(kind, *case)
    for kind, table in (
        (rw.RecipeError, SETTINGS | SOURCES | COMPRESSION),
        (rw.CalibrationError, SAMPLES_AND_LABELS | TRAINING),
        (rw.ModelError, MODELS),
        (rw.FileFormatError, FILES),
        (rw.ExportError, EXPORTS),
    )
    for name, case in table.items()
}
