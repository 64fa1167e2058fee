"""What every contestant's process does: read a job, quantize one network, time it, read the weights back.

This file runs in the environments of the libraries that are compared, so it needs only torch, numpy and safetensors.
A script beside it calls `run` with a function that quantizes; the job comes as JSON in the first argument.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

EXIT_CANNOT = 3
"""The exit code of a script whose library cannot do what the job asks for."""


class CannotError(Exception):
    """The library cannot do what the job asks for; the text says why, in its own words where it has some."""


@dataclass(frozen=True)
class Job:
    """One run of one contestant.

    Attributes:
        contestant: which method of the library, as the table of contestants calls it.
        settings: that method's own settings.
        network: name of the network.
        networks: the file with the networks' code.
        images: folder with `calibration.npy`, `evaluation.npy` and `labels.npy`.
        bits, granularity: of the weights; the granularity is `per-tensor` or `per-channel`.
        seed: of everything random.
        threads: of PyTorch.
        result: file to write the weights to; the measurements go beside it, as JSON.
    """

    contestant: str
    settings: dict[str, Any]
    network: str
    networks: str
    images: str
    bits: int
    granularity: str
    seed: int
    threads: int
    result: str

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has its own scale."""
        return self.granularity == "per-channel"

    def generator(self) -> torch.Generator:
        """A source of random numbers for what the script itself draws, such as the order of the samples."""
        return torch.Generator().manual_seed(self.seed)


@dataclass
class Result:
    """What a quantization gives: the network, and what a reader of the table must know about how it was done."""

    model: nn.Module
    notes: list[str] = field(default_factory=list)


Quantize = Callable[[nn.Module, Tensor, Job], Result]


def run(quantize: Quantize, *packages: str) -> None:
    """Do the job in the first argument with `quantize`; `packages` are those whose versions matter."""
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  libraries draw from the global generator
    torch.manual_seed(job.seed)
    model = load_network(job)
    calibration = torch.from_numpy(np.load(Path(job.images) / "calibration.npy"))
    before = peak_memory()
    begin = time.perf_counter()
    try:
        result = quantize(model, calibration, job)
    except CannotError as error:
        print(f"cannot: {error}", file=sys.stderr)
        sys.exit(EXIT_CANNOT)
    seconds = time.perf_counter() - begin
    peak = peak_memory()
    seen = quantized_weights(folded(load_network(job)), result.model, calibration[:2])
    save_file(seen.tensors, job.result)
    record = {
        "accuracy_in_place": accuracy(result.model, Path(job.images)),
        "seconds": seconds,
        "peak_mib": peak,
        "peak_before_mib": before,
        "notes": [*result.notes, *seen.notes],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("torch", *packages)},
        },
    }
    Path(job.result).with_suffix(".json").write_text(json.dumps(record))


def peak_memory() -> float:
    """The most memory that this process has held until now, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the process that started this one, whose peak is inherited
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(lines[0].split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def load_network(job: Job) -> nn.Module:
    """The float network, in eval mode, batch-norm not folded."""
    spec = importlib.util.spec_from_file_location("networks_to_quantize", job.networks)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model: nn.Module = module.load(job.network)
    return model.requires_grad_(False)


def accuracy(model: nn.Module, images: Path, batch: int = 250) -> float:
    """Top-1 accuracy in percent of the library's own quantized network on all evaluation images."""
    pictures = torch.from_numpy(np.load(images / "evaluation.npy"))
    labels = torch.from_numpy(np.load(images / "labels.npy"))
    with torch.no_grad():
        hits = [
            model(some).argmax(1) == right
            for some, right in zip(pictures.split(batch), labels.split(batch), strict=True)
        ]
    return 100 * float(torch.cat(hits).float().mean())


def folded(model: nn.Module) -> fx.GraphModule:
    """The same function with each batch-norm folded into the convolution before it; layers keep their names."""
    traced = fx.symbolic_trace(copy.deepcopy(model))  # tracing itself copies no parameters
    for node in list(traced.graph.nodes):
        norm = traced.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        layer = traced.get_submodule(before.target)
        assert isinstance(layer, nn.Conv2d), f"{node.target} does not follow a convolution"
        assert len(before.users) == 1, f"{before.target} is read by others than {node.target}"
        assert norm.running_mean is not None, f"{node.target} keeps no statistics"
        assert norm.running_var is not None, f"{node.target} keeps no statistics"
        with torch.no_grad():
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = torch.zeros_like(norm.bias) if layer.bias is None else layer.bias
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            layer.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias, requires_grad=False)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        traced.delete_submodule(node.target)
    traced.recompile()
    return traced.eval()


def layers(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the convolutions and linear layers, in the order in which they run."""
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: names.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return names


class Recorder(TorchDispatchMode):
    """Notes the weights and biases that convolutions and matrix products are computed with, and batch-norms."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch wrote no types there
        self.operands: list[tuple[Tensor, Tensor | None]] = []
        self.batch_norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operation of PyTorch."""
        aten = torch.ops.aten
        if func is aten.convolution.default:
            self.operands.append((args[1], args[2]))
        elif func is aten.linear.default:
            self.operands.append((args[1], args[2] if len(args) > 2 else None))
        elif func is aten.addmm.default:
            self.operands.append((args[2].t(), args[0]))
        elif func is aten.mm.default:
            self.operands.append((args[1].t(), None))
        elif "batch_norm" in func.name():
            self.batch_norms += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Seen:
    """The weights that a network really computed with, by name in the float network."""

    tensors: dict[str, Tensor]
    notes: list[str]


def quantized_weights(reference: nn.Module, model: nn.Module, images: Tensor) -> Seen:
    """The weights and biases that `model` computes with, whatever form it keeps them in.

    Args:
        reference: the float network, folded; says how the layers are called and what shapes they have.
        model: the quantized network.
        images: a few samples to run it on.
    """
    with Recorder() as recorder, torch.no_grad():
        model(images)
    names = layers(reference, images)
    if len(names) != len(recorder.operands):
        raise RuntimeError(
            f"the quantized network ran {len(recorder.operands)} convolutions and matrix products, the float network "
            f"{len(names)}: its weights cannot be told apart."
        )
    tensors = {}
    for name, (weight, bias) in zip(names, recorder.operands, strict=True):
        layer = reference.get_submodule(name)
        if weight.shape != layer.weight.shape:
            raise RuntimeError(f"{name} has a weight of shape {weight.shape} where {layer.weight.shape} was expected.")
        tensors[f"{name}.weight"] = plain(weight)
        tensors[f"{name}.bias"] = torch.zeros(len(weight)) if bias is None else plain(bias)
    notes = [f"batch-norm not folded: {recorder.batch_norms} ran"] if recorder.batch_norms else []
    return Seen(tensors, notes)


def plain(tensor: Tensor) -> Tensor:
    """A copy as an ordinary float tensor."""
    return tensor.detach().as_subclass(Tensor).float().clone().contiguous()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The weights that a job wrote."""
    return load_file(path)
