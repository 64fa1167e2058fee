"""How long whole networks take in ONNX Runtime, before and after compression."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from roundwise import export, quantize
from roundwise.artifacts.model import Model
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Rewrite
from roundwise.runtimes import OnnxRuntime, time_file
from roundwise.wording import milliseconds

RUNS = 20
"""The two networks run in turn, 20 times each. The fastest run counts: other programs only make runs slower."""


def latency_in_words(network: Any, sample: Any, small: Model) -> str:
    """The time of one sample through the network and through the one that was made of it, for people.

    Args:
        network: before, as `quantize` takes it.
        sample: one sample, as `quantize` takes samples.
        small: after.

    Raises:
        ExportError: one of them cannot be written as an ONNX file.
        InferenceError: ONNX Runtime cannot run a file.
    """
    before = quantize(network, sample, Recipe((Rewrite(),)))
    runtime, values = OnnxRuntime(threads=1), [one for one in pytree.tree_leaves(sample) if isinstance(one, Tensor)]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, model in enumerate((before, small)):
            path = Path(folder) / f"{number}.onnx"
            export(model, path)
            files.append(runtime.open(path))
        arrays = [dict(zip(file.inputs, [one.cpu().numpy() for one in values], strict=False)) for file in files]
        pairs = [
            [min(time_file(file, array, runs=1, warm_up=1).seconds) for file, array in zip(files, arrays, strict=True)]
            for _ in range(RUNS)
        ]
    was, now = (min(seconds) for seconds in zip(*pairs, strict=True))
    return (
        f"{milliseconds(was)} → {milliseconds(now)} ({now / was:.1%}), the whole network on one sample and one thread "
        f"in ONNX Runtime {runtime.version}"
    )
