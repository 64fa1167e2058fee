"""A bad call of the Python API ends in an error that says what was found and what to do.

Where Python itself refuses a call (a missing, unknown or superfluous argument), a `TypeError` names the argument.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import missing
from torch import nn
from torch.utils.data import TensorDataset

import roundwise as rw

X = torch.randn(16, 4)
NEAREST = rw.Quantize(rounding=rw.rounding.Nearest())


def net(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@functools.cache
def made() -> rw.Model:
    return rw.quantize(net(), X, NEAREST)


def broken() -> nn.Module:
    model = net()
    nn.init.constant_(model[0].weight, math.nan)
    return model


def quantized(data: Any = X, recipe: Any = NEAREST, model: Any = None, **more: Any) -> rw.Model:
    return rw.quantize(net() if model is None else model.eval(), data, recipe, **more)


def stages(*settings: Any) -> rw.Recipe:
    return rw.Recipe.from_dict({"stages": list(settings)})


Row = tuple[Callable[[Path], object], tuple[object, ...]]

MODELS: dict[str, Row] = {
    "no model": (lambda _: rw.quantize(None, X, NEAREST), ("NoneType", "nn.Module")),
    "model and data exchanged": (lambda _: rw.quantize(X, net(), NEAREST), ("Tensor", "nn.Module")),
    "a lambda": (lambda _: rw.quantize(lambda x: x, X, NEAREST), ("function", "nn.Module")),
    "a function": (lambda _: rw.quantize(torch.relu, X, NEAREST), ("nn.Module",)),
    "a name": (lambda _: rw.quantize("resnet18", X, NEAREST), ("str", "nn.Module")),
    "a path": (lambda folder: rw.quantize(folder / "net.pt", X, NEAREST), ("nn.Module",)),
    "a class": (lambda _: rw.quantize(nn.Linear, X, NEAREST), ("type", "nn.Module")),
    "weights": (lambda _: rw.quantize(net().state_dict(), X, NEAREST), ("OrderedDict", "load_state_dict")),
    "a list of models": (lambda _: rw.quantize([net()], X, NEAREST), ("list", "nn.Module")),
    "a report": (lambda _: rw.quantize(made().report, X, NEAREST), ("Report", "nn.Module")),
    "a quantized network": (lambda _: rw.quantize(made(), X, NEAREST), ("already", "float model")),
    "a list of modules": (lambda _: quantized(model=nn.ModuleList([net()])), ("forward", "ModuleList")),
    "a module without forward": (lambda _: quantized(model=nn.Module()), ("forward",)),
    "no layers": (lambda _: quantized(model=nn.ReLU()), ("no layer", "convolution")),
    "the meta device": (lambda _: quantized(model=net().to("meta")), ("'0.weight'", "meta")),
    "lazy parameters": (lambda _: quantized(model=nn.LazyLinear(3)), ("lazy",)),
    "weights that are NaN": (lambda _: quantized(model=broken()), ("'0'", 32, "NaN")),
    "another dtype": (lambda _: quantized(model=net().double()), ("float32 [2, 4]",)),
    "capture of a name": (lambda _: rw.capture("net", X), ("str", "nn.Module")),
    "capture of a quantized network": (lambda _: rw.capture(made(), X), ("already",)),
    "capture without samples": (lambda _: rw.capture(net(), None), ("NoneType", "DataLoader")),
    "other samples than captured": (lambda _: rw.quantize(rw.capture(net(), X), X[:, :3], NEAREST), ("4", "3")),
    "no graph": (lambda _: rw.Model(net(), None, None, {}), ("Sequential", "rw.quantize(model, data)")),
}

DATA: dict[str, Row] = {
    "no data": (lambda _: quantized(None), ("NoneType", "DataLoader")),
    "an empty list": (lambda _: quantized([]), ("DataLoader",)),
    "an empty tuple": (lambda _: quantized(()), ("[samples, …]",)),
    "an empty dict": (lambda _: quantized({}), ("[samples, …]",)),
    "an empty tensor": (lambda _: quantized(X[:0]), ("empty",)),
    "an empty generator": (lambda _: quantized(x for x in ()), ("iterator",)),
    "text": (lambda _: quantized("images/"), ("str", "DataLoader")),
    "bytes": (lambda _: quantized(b"images"), ("bytes",)),
    "a path": (lambda folder: quantized(folder), ("DataLoader",)),
    "a number of samples": (lambda _: quantized(100), ("int", "DataLoader")),
    "a function": (lambda _: quantized(lambda: X), ("function",)),
    "a class": (lambda _: quantized(torch.Tensor), ("DataLoader",)),
    "a model": (lambda _: quantized(net()), ("Linear",)),
    "numbers": (lambda _: quantized([1.0, 2.0]), ("float", "tensor")),
    "lists of numbers": (lambda _: quantized(X.tolist()), ("[samples, …]",)),
    "a generator of numbers": (lambda _: quantized(iter([1, 2])), ("int",)),
    "nothing in a list": (lambda _: quantized([None]), ("NoneType",)),
    "a single number": (lambda _: quantized(torch.tensor(1.0)), ("tensor(1.)", "unsqueeze")),
    "a dataset": (lambda _: quantized(TensorDataset(X)), ("TensorDataset", "DataLoader(dataset, batch_size=32)")),
    "another size": (lambda _: quantized(X[:, :3]), ("float32 [2, 3]",)),
    "single samples": (lambda _: quantized([X[0], X[1]]), ("float32 [2]",)),
    "whole numbers": (lambda _: quantized(X.long()), ("int64 [2, 4]",)),
    "truth values": (lambda _: quantized(X > 0), ("bool [2, 4]",)),
    "complex numbers": (lambda _: quantized(X.to(torch.complex64)), ("complex64 [2, 4]",)),
    "NaN": (lambda _: quantized(X * math.nan), ("NaN", 64, 16)),
    "infinity": (lambda _: quantized(X + math.inf), ("infinity", 64, 16)),
    "several sizes": (lambda _: quantized([X, X[:, :3]]), ("[3]", "[4]", 1)),
    "several dtypes": (lambda _: quantized([X, X.double()]), ("float64", "float32", 1)),
    "too few inputs": (lambda _: quantized(model=nn.Bilinear(4, 4, 2)), ("'input2'",)),
    "text by name": (lambda _: quantized({"input": "abc"}), ("'abc'",)),
    "another name": (lambda _: quantized([{"foo": X}], model=nn.Bilinear(4, 4, 2)), ("'foo'", "'input1', 'input2'")),
    "objects in an array": (lambda _: quantized(np.array([object()])), ("object", "[1]")),
    "text in an array": (lambda _: quantized(np.array(["a"])), ("<U1", "[1]")),
    "sparse": (lambda _: quantized(X.to_sparse()), ("sparse_coo", "to_dense")),
    "on the meta device": (lambda _: quantized(X.to("meta")), ("meta",)),
    "no size": (lambda _: rw.DataFree(None), ("(3, 224, 224)",)),
    "a size as text": (lambda _: rw.DataFree("3x224"), ("(3, 224, 224)",)),
    "an empty size": (lambda _: rw.DataFree(()), ("()", "(3, 224, 224)")),
    "a size below 1": (lambda _: rw.DataFree((-1, 4)), (-1, "(3, 224, 224)")),
    "half a pixel": (lambda _: rw.DataFree((3.5,)), (3.5,)),
    "a size that is not a number": (lambda _: rw.DataFree((math.nan,)), ("nan",)),
    "a flag for a size": (lambda _: rw.DataFree((True,)), (True,)),
    "a model for a size": (lambda _: rw.DataFree(net()), ("Sequential", "(3, 224, 224)")),
    "a size that the model does not take": (lambda _: rw.quantize(net(), rw.DataFree((9,))), ("[2, 9]", "DataFree")),
    "a method that needs data": (
        lambda _: quantized(rw.DataFree((4,)), rw.Quantize(rounding=rw.rounding.GPTQ())),
        ("GPTQ",),
    ),
}

BITS = (0, 1, 9, -4, 64, 4.0, 4.5, True, None, "4", [4], math.nan)
RECIPES: dict[str, Row] = {
    **{f"{bits!r} bits of weights": (lambda _, it=bits: rw.Weights(bits=it), (f"bits={bits!r}", 8)) for bits in BITS},
    **{
        f"{bits!r} bits of activations": (lambda _, it=bits: rw.Activations(bits=it), (f"{bits!r}",))
        for bits in (0, 1, 33, 8.0, True, None, "8", math.nan)
    },
    **{
        f"groups of {size!r}": (lambda _, it=size: rw.PerGroup(it), (f"size={size!r}", 32))
        for size in (0, -1, 1, 1.5, True, None, "32", math.nan)
    },
    "groups that do not divide": (
        lambda _: quantized(recipe=rw.Quantize(rw.Weights(granularity=rw.PerGroup(3)))),
        ("3", "4"),
    ),
    "a recipe by name": (lambda _: quantized(recipe="fast"), ("str", "Quantize(…)")),
    "bits for a recipe": (lambda _: quantized(recipe=4), ("int", "Quantize(…)")),
    "a dict for a recipe": (lambda _: quantized(recipe={"bits": 4}), ("dict", "Recipe.from_dict")),
    "a stage's class": (lambda _: quantized(recipe=rw.Quantize), ("class Quantize", "Write Quantize()")),
    "settings for a recipe": (lambda _: quantized(recipe=rw.Weights(bits=4)), ("Weights", "Quantize(…)")),
    "a method for a recipe": (
        lambda _: quantized(recipe=rw.rounding.Nearest()),
        ("Nearest", "Quantize(rounding=Nearest())"),
    ),
    "a model for a recipe": (lambda _: quantized(recipe=net()), ("Sequential", "Quantize(…)")),
    "no stage": (lambda _: quantized(recipe=[]), ("[]", "Quantize(…)")),
    "a stage by name": (lambda _: quantized(recipe=["quantize"]), ("'quantize'", "Quantize(…)")),
    "nothing for a stage": (lambda _: rw.Recipe([None]), ("None", "Quantize(…)")),
    "no stages": (lambda _: rw.Recipe(None), ("None", "Quantize(…)")),
    "quantized twice": (lambda _: quantized(recipe=[NEAREST, NEAREST]), ("Quantize",)),
    "a rewrite of integers": (lambda _: quantized(recipe=[NEAREST, rw.Rewrite()]), ("Rewrite", "Quantize")),
    "a seed as text": (lambda _: rw.Recipe(seed="one"), ("seed='one'",)),
    "half a seed": (lambda _: rw.Recipe(seed=1.5), ("seed=1.5",)),
    "no seed": (lambda _: rw.Recipe(seed=None), ("seed=None",)),
    "a batch of nothing": (lambda _: rw.Recipe(batch_size=0), ("batch_size=0",)),
    "a batch as text": (lambda _: rw.Recipe(batch_size="32"), ("batch_size='32'",)),
    "a flag for a batch": (lambda _: rw.Recipe(batch_size=True), ("batch_size=True",)),
    "memory below 0": (lambda _: rw.Recipe(memory_budget=-1), ("memory_budget=-1",)),
    "memory as text": (lambda _: rw.Recipe(memory_budget="8 GB"), ("memory_budget='8 GB'",)),
    "memory as a float": (lambda _: rw.Recipe(memory_budget=1e9), ("memory_budget=1000000000.0",)),
    "granularity by name": (lambda _: rw.Weights(granularity="per-channel"), ("PerChannel()",)),
    "granularity as a class": (lambda _: rw.Weights(granularity=rw.PerChannel), ("PerChannel()",)),
    "no granularity": (lambda _: rw.Weights(granularity=None), ("None", "PerChannel()")),
    "ranges by name": (lambda _: rw.Weights(ranges="minmax"), ("'minmax'", "MinMax()")),
    "ranges as a class": (lambda _: rw.Weights(ranges=rw.ranges.MinMax), ("ranges=MinMax()",)),
    "a solver for ranges": (lambda _: rw.Weights(ranges=rw.rounding.Nearest()), ("Nearest()", "MinMax()")),
    "symmetric as text": (lambda _: rw.Weights(symmetric="yes"), ("symmetric='yes'",)),
    "rounding by name": (lambda _: rw.Quantize(rounding="nearest"), ("rounding=Nearest()",)),
    "rounding as a class": (lambda _: rw.Quantize(rounding=rw.rounding.Nearest), ("rounding=Nearest()",)),
    "no rounding": (lambda _: rw.Quantize(rounding=None), ("rounding is None",)),
    "bits for weights": (lambda _: rw.Quantize(4), ("4", "Weights")),
    "a dict for weights": (lambda _: rw.Quantize({"bits": 4}), ("Weights",)),
    "bits for activations": (lambda _: rw.Quantize(activations=8), ("8", "Activations")),
    "activations as a class": (lambda _: rw.Quantize(activations=rw.Activations), ("Activations",)),
    "a correction by name": (lambda _: rw.Quantize(correction="bias"), ("'bias'", "EmpiricalBias()")),
    "overrides as text": (lambda _: rw.Quantize(overrides="first"), ("'first'",)),
    "overrides as a list": (lambda _: rw.Quantize(overrides=["first"]), ("['first']",)),
    "an override of text": (lambda _: rw.Quantize(overrides={"first": "float"}), ("'first'", "'float'")),
    "an override of a number": (lambda _: rw.Quantize(overrides={1: None}), (1,)),
    "an override of no layer": (
        lambda _: quantized(recipe=rw.Quantize(overrides={"foo": None})),
        ("'foo'", "0", "2"),
    ),
    "overrides of all layers": (lambda _: quantized(recipe=rw.Quantize(overrides={"*": None})), ("overrides", 2)),
    "an Override of text": (lambda _: rw.Override("8"), ("'8'",)),
    "an Override of bits": (lambda _: rw.Override(weights=4), ("4",)),
    "rewrites by name": (lambda _: rw.Rewrite("equalize"), ("'equalize'", "(CrossLayerEqualization(),)")),
    "rewrites by names": (lambda _: rw.Rewrite(["equalize"]), ("'equalize'", "CrossLayerEqualization()")),
    "a rewrite as a class": (
        lambda _: rw.Rewrite((rw.rewrites.CrossLayerEqualization,)),
        ("CrossLayerEqualization()",),
    ),
    "no recipe in a file": (lambda folder: rw.Recipe.from_toml(folder / "absent.toml"), ("absent.toml",)),
    "a folder for a file": (lambda folder: rw.Recipe.from_toml(folder), ()),
    "nothing for a file": (lambda _: rw.Recipe.from_toml(None), ("None",)),
    "no folder for a recipe": (lambda folder: rw.Recipe().to_toml(folder / "absent" / "a.toml"), ("absent",)),
    "no dict": (lambda _: rw.Recipe.from_dict(None), ("None",)),
    "a list for a dict": (lambda _: rw.Recipe.from_dict([]), ("[]",)),
    "an unknown key": (lambda _: rw.Recipe.from_dict({"foo": 1}), ("'foo'",)),
    "text for stages": (lambda _: rw.Recipe.from_dict({"stages": "quantize"}), ("'quantize'",)),
    "an unknown stage": (lambda _: stages({"stage": "prune"}), ("'prune'", "quantize")),
    "a stage without name": (lambda _: stages({}), ("stage",)),
    "a number for a stage": (lambda _: stages(3), (3,)),
    "a misspelled key": (lambda _: stages({"stage": "quantize", "weigths": {}}), ("weigths", "weights")),
    "bits in words": (lambda _: stages({"stage": "quantize", "weights": {"bits": "four"}}), ("'four'",)),
    "an unknown method": (lambda _: stages({"stage": "quantize", "rounding": "best"}), ("'best'", "nearest")),
    "a number for a method": (lambda _: stages({"stage": "quantize", "rounding": 3}), (3,)),
    "progress by name": (lambda _: quantized(progress="yes"), ("'yes'",)),
    "a flag for progress": (lambda _: quantized(progress=True), (True,)),
}

METHODS: dict[str, Row] = {
    "no iterations": (lambda _: rw.rounding.AdaRound(iterations=0), ("AdaRound", 0)),
    "iterations below 0": (lambda _: rw.rounding.AdaRound(iterations=-1), ("AdaRound", -1)),
    "iterations as text": (lambda _: rw.rounding.AdaRound(iterations="many"), ("iterations='many'",)),
    "iterations as a float": (lambda _: rw.rounding.AdaRound(iterations=1e3), ("iterations=1000.0",)),
    "a rate that is not a number": (lambda _: rw.rounding.AdaRound(learning_rate=math.nan), ("nan",)),
    "an infinite rate": (lambda _: rw.rounding.AdaRound(learning_rate=math.inf), ("inf",)),
    "shrinkage below 0": (lambda _: rw.rounding.GramAdaRound(shrinkage=-1), ("shrinkage", -1)),
    "shrinkage as text": (lambda _: rw.rounding.GramAdaRound(shrinkage="a"), ("shrinkage='a'",)),
    "a ridge below 0": (lambda _: rw.rounding.GPTQ(ridge=-1), ("ridge", -1)),
    "no ridge": (lambda _: rw.rounding.GPTQ(ridge=None), ("ridge=None",)),
    "a flag as text": (lambda _: rw.rounding.GPTQ(free_bias="yes"), ("free_bias='yes'",)),
    "no codes": (lambda _: rw.rounding.Given(None), ("codes=None",)),
    "codes in a list": (lambda _: rw.rounding.Given([1, 2]), ("codes=[1, 2]",)),
    "codes in an array": (lambda _: rw.rounding.Given(np.zeros(3)), ("codes=",)),
    "codes of another layer": (
        lambda _: quantized(recipe=rw.Quantize(rounding=rw.rounding.Given(torch.zeros(1, 2, 2).int()))),
        ("'0'", "[1, 2, 2]", "[1, 8, 4]"),
    ),
    "candidates as text": (lambda _: rw.ranges.WeightMSE(candidates="a"), ("candidates='a'",)),
    "no candidates": (lambda _: rw.ranges.OutputMSE(0), ("candidates=0", 1)),
    "an unknown distribution": (lambda _: rw.ranges.ACIQ("cauchy"), ("'cauchy'", "'laplace'")),
    "more than all": (lambda _: rw.activations.ActivationPercentile(101), (101,)),
    "a percentile as text": (lambda _: rw.activations.ActivationPercentile("99"), ("'99'",)),
    "a percentile that is not a number": (lambda _: rw.activations.ActivationPercentile(math.nan), ("nan",)),
    "a momentum above 1": (lambda _: rw.activations.ActivationMovingAverage(2.0), (2.0,)),
    "a tolerance below 0": (lambda _: rw.rewrites.CrossLayerEqualization(tolerance=-1.0), (-1.0,)),
    "an unknown way": (lambda _: rw.rewrites.CrossLayerEqualization("x"), ("'x'",)),
    "unknown moments": (lambda _: rw.rewrites.HighBiasAbsorption(moments="foo"), ("'foo'", "'data'")),
    "a share below 0": (lambda _: rw.rewrites.OutlierChannelSplitting(-1.0), (-1.0,)),
}

FILES: dict[str, Row] = {
    "no limit of memory": (lambda _: rw.load("a.rw", memory_limit=math.nan), ("memory_limit=nan",)),
    "a negative limit of memory": (lambda _: rw.load("a.rw", memory_limit=-1), ("memory_limit=-1",)),
    "a truth value for a limit of memory": (lambda _: rw.load("a.rw", memory_limit=True), ("memory_limit=True",)),
    "no file": (lambda folder: rw.load(folder / "absent.rw"), ("absent.rw",)),
    "a folder": (lambda folder: rw.load(folder), ()),
    "an empty name": (lambda _: rw.load(""), ()),
    "nothing for a name": (lambda _: rw.load(None), ("None",)),
    "a number for a name": (lambda _: rw.load(3), (3,)),
    "bytes for a name": (lambda _: rw.load(b"a.rw"), ("b'a.rw'",)),
    "a list of names": (lambda folder: rw.load([folder / "a.rw"]), ("a.rw",)),
    "a model for a name": (lambda _: rw.load(made()), ()),
    "a name that no file has": (lambda _: rw.load("a\0b"), ()),
    "saved to nothing": (lambda _: made().save(None), ("None",)),
    "saved to a number": (lambda _: made().save(3), (3,)),
    "saved to a folder": (lambda folder: made().save(folder), ()),
    "saved where no folder is": (lambda folder: made().save(folder / "absent" / "a.rw"), ("absent",)),
    "saved to no name": (lambda _: made().save(""), ()),
    "no report in nothing": (lambda _: rw.Report.from_dict(None), ("NoneType", "as_dict")),
    "no report in a dict": (lambda _: rw.Report.from_dict({}), ("'stages'", "as_dict")),
    "a report with more": (lambda _: rw.Report.from_dict({**made().report.as_dict(), "more": 1}), ("more",)),
    "exported to nothing": (lambda _: rw.export(made(), None), ("None",)),
    "exported to a number": (lambda _: rw.export(made(), 3), (3,)),
    "exported to a list": (lambda folder: rw.export(made(), [folder]), ()),
    "an unknown format": (lambda folder: rw.export(made(), folder / "a.tflite"), ("'.tflite'", ".onnx")),
    "model and path exchanged": (lambda folder: rw.export(folder / "a.onnx", made()), ("Model",)),
    "a float model": (lambda folder: rw.export(net(), folder / "a.onnx"), ("Sequential", "quantize")),
    "no folder to export to": (lambda folder: rw.export(made(), folder / "absent" / "a.onnx"), ("absent",)),
    "compared on text": (lambda folder: rw.export(made(), folder / "a.onnx", samples="x"), ("str", "((x,), {})")),
    "compared on an array": (
        lambda folder: rw.export(made(), folder / "a.onnx", samples=X.numpy()),
        ("ndarray", "((x,), {})"),
    ),
    "compared on a list": (lambda folder: rw.export(made(), folder / "a.onnx", samples=[X]), ("list", "((x,), {})")),
    "compared on a tuple": (lambda folder: rw.export(made(), folder / "a.onnx", samples=(X,)), ("((x,), {})",)),
    "compared on a dict": (lambda folder: rw.export(made(), folder / "a.onnx", samples={"input": X}), ("dict",)),
    "compared on another size": (
        lambda folder: rw.export(made(), folder / "a.onnx", samples=X[:, :3]),
        ("[16, 3]", "[samples, 4]"),
    ),
    "compared on whole numbers": (lambda folder: rw.export(made(), folder / "a.onnx", samples=X.long()), ("int64",)),
    "compared on nothing": (lambda folder: rw.export(made(), folder / "a.onnx", samples=X[:0]), ("[0, 4]",)),
    "compared on a number": (lambda folder: rw.export(made(), folder / "a.onnx", samples=X[0, 0]), ("[]",)),
    "compared on NaN": (lambda folder: rw.export(made(), folder / "a.onnx", samples=X * math.nan), ("NaN", 64)),
    "no tolerance": (lambda folder: rw.export(made(), folder / "a.onnx", tolerance="small"), ("'small'",)),
    "a tolerance below 0": (lambda folder: rw.export(made(), folder / "a.onnx", tolerance=-1), (-1,)),
    "a flag for tolerance": (lambda folder: rw.export(made(), folder / "a.onnx", tolerance=True), (True,)),
    "a tolerance of NaN": (lambda folder: rw.export(made(), folder / "a.onnx", tolerance=math.nan), ("nan",)),
    "nothing to compare": (lambda folder: rw.export(made(), folder / "a.rw", samples=X), (".rw", "samples")),
    "a page on nothing": (lambda folder: rw.html_report(None, folder / "a.html"), ("NoneType", "quantize")),
    "a page on a float model": (lambda folder: rw.html_report(net(), folder / "a.html"), ("Sequential", "quantize")),
    "page and model exchanged": (lambda folder: rw.html_report(folder / "a.html", made()), ()),
    "a page to nothing": (lambda _: rw.html_report(made(), None), ("None",)),
    "a page to a folder": (lambda folder: rw.html_report(made(), folder), ()),
    "a number for a title": (lambda folder: rw.html_report(made(), folder / "a.html", title=3), ("title=3",)),
    "text for facts": (lambda folder: rw.html_report(made(), folder / "a.html", facts="x"), ("facts='x'",)),
    "a number for accuracies": (lambda folder: rw.html_report(made(), folder / "a.html", accuracy=3), ("accuracy=3",)),
    "one accuracy": (lambda folder: rw.html_report(made(), folder / "a.html", accuracy={"top-1": 0.5}), (0.5, 0.694)),
}

CALLS: dict[str, Row] = {
    "an array": (lambda _: made()(X.numpy()), ("'input'", "from_numpy")),
    "lists": (lambda _: made()(X.tolist()), ("'input'", "a list")),
    "text": (lambda _: made()("x"), ("'input'", "'x'")),
    "nothing": (lambda _: made()(None), ("'input'", "None")),
    "a dict": (lambda _: made()({"input": X}), ("'input'", "a dict")),
    "a batch beyond all memory": (lambda _: made().example(10**30), (10**30,)),
    "a sample beyond all memory": (lambda _: rw.DataFree((3, 10**30)), (10**30, 1 << 31)),
    "a batch of none": (lambda _: made().example(0), ("batch=0",)),
    "a batch below 0": (lambda _: made().example(-1), ("batch=-1",)),
    "half a batch": (lambda _: made().example(2.5), ("batch=2.5",)),
    "a batch as text": (lambda _: made().example("x"), ("batch='x'",)),
    "half precision": (lambda _: made().half(), ("float32", "float16")),
    "double precision": (lambda _: made().double(), ("float32", "float64")),
}

SIGNATURES: dict[str, Row] = {
    "quantize()": (lambda _: rw.quantize(), ("'model'", "'data'")),
    "no data": (lambda _: rw.quantize(net()), ("'data'",)),
    "bits of quantize": (lambda _: rw.quantize(net(), X, bits=4), ("'bits'",)),
    "a fourth argument": (lambda _: rw.quantize(net(), X, NEAREST, print), (4,)),
    "capture without samples": (lambda _: rw.capture(net()), ("'samples'",)),
    "a misspelled setting": (lambda _: rw.Quantize(wieghts=rw.Weights()), ("'wieghts'",)),
    "a setting of weights": (lambda _: rw.Weights(foo=1), ("'foo'",)),
    "a setting of activations": (lambda _: rw.Activations(foo=1), ("'foo'",)),
    "a setting of a recipe": (lambda _: rw.Recipe(bits=4), ("'bits'",)),
    "PerGroup()": (lambda _: rw.PerGroup(), ("'size'",)),
    "PerChannel(1)": (lambda _: rw.PerChannel(1), ("positional",)),
    "MinMax(1)": (lambda _: rw.ranges.MinMax(1), ("positional",)),
    "DataFree()": (lambda _: rw.DataFree(), ("'example'",)),
    "load()": (lambda _: rw.load(), ("'path'",)),
    "save()": (lambda _: made().save(), ("'path'",)),
    "export()": (lambda _: rw.export(made()), ("'path'",)),
    "another option of export": (lambda folder: rw.export(made(), folder / "a.onnx", opset=13), ("'opset'",)),
    "no input": (lambda _: made()(), ("'input'",)),
    "a superfluous input": (lambda _: made()(X, X), ("3",)),
    "an unknown input": (lambda _: made()(y=X), ("'y'",)),
    "Report()": (lambda _: rw.Report(), ("'stages'",)),
    "Grid()": (lambda _: rw.Grid(), ("'scale'",)),
}

REFUSED = {
    f"{kind}: {name}": row
    for kind, table in {
        "model": MODELS,
        "data": DATA,
        "recipe": RECIPES,
        "method": METHODS,
        "file": FILES,
        "call": CALLS,
    }.items()
    for name, row in table.items()
}


@pytest.mark.parametrize(("call", "facts"), REFUSED.values(), ids=REFUSED)
def test_a_bad_call_says_what_was_found_and_what_to_do(call, facts, tmp_path):
    with pytest.raises(rw.RoundwiseError) as caught:
        call(tmp_path)
    message = str(caught.value)
    assert not missing(message, *facts), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("call", "facts"), SIGNATURES.values(), ids=SIGNATURES)
def test_a_call_that_python_refuses_names_the_argument(call, facts, tmp_path):
    with pytest.raises(TypeError) as caught:
        call(tmp_path)
    assert not missing(str(caught.value), *facts), caught.value


def test_a_misspelled_name_is_an_error_that_names_the_right_one():
    with pytest.raises(AttributeError) as caught:
        rw.quantise  # noqa: B018
    assert not missing(str(caught.value), "'quantise'", "'quantize'")


NAMESPACES = {
    "activations": ("ActivationMinMAX", "ActivationMinMax"),
    "compression": ("SpatialSvd", "SpatialSVD"),
    "corrections": ("EmpiricBias", "EmpiricalBias"),
    "ranges": ("Aciq", "ACIQ"),
    "rewrites": ("CrossLayerEqualisation", "CrossLayerEqualization"),
    "rounding": ("Gptq", "GPTQ"),
    "training": ("LSQplus", "LSQPlus"),
}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_misspelled_method_is_an_error_that_names_the_right_one(namespace):
    wrong, right = NAMESPACES[namespace]
    with pytest.raises(AttributeError) as caught:
        getattr(getattr(rw, namespace), wrong)
    assert not missing(str(caught.value), f"rw.{namespace}", f"'{wrong}'", f"'{right}'"), caught.value


def test_what_the_users_own_data_raises_comes_through():
    def batches():
        yield X
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quantized(batches())


def test_the_table_is_long():
    assert len(REFUSED) + len(SIGNATURES) >= 200
