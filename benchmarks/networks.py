"""The trained networks and real images that benchmarks and marked tests measure on.

They lie outside the project, in the folder named by ROUNDWISE_DATA (by default `../shared` beside the checkout), which
holds `models/networks.py` and `data/samples.py`.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import roundwise as rw

ROOT = Path(os.environ.get("ROUNDWISE_DATA", Path(__file__).parents[1].parent / "shared"))

GRANULARITIES: dict[str, rw.PerTensor | rw.PerChannel] = {"per-tensor": rw.PerTensor(), "per-channel": rw.PerChannel()}
"""What `--granularity` of a benchmark takes."""


def available() -> bool:
    """Whether the folder is there."""
    return (ROOT / "models" / "networks.py").is_file()


@dataclass(frozen=True)
class Task:
    """A trained network with images to calibrate on and labelled ones to evaluate on."""

    model: nn.Module
    calibration: Tensor
    images: Tensor
    labels: Tensor

    def right(self, model: nn.Module, batch: int = 250) -> Tensor:
        """Which evaluation images a model classifies rightly."""
        with torch.no_grad():
            return torch.cat([model(images).argmax(1) for images in self.images.split(batch)]) == self.labels

    def accuracy(self, model: nn.Module, batch: int = 250) -> float:
        """Top-1 accuracy in percent on all evaluation images."""
        return percent(self.right(model, batch))


def percent(right: Tensor) -> float:
    """The share of true entries, in percent."""
    return 100 * float(right.float().mean())


def packed(right: Tensor) -> str:
    """Truth values as text for a journal, so that two runs can be compared image by image."""
    return f"{len(right)}:{base64.b64encode(np.packbits(right.cpu().numpy()).tobytes()).decode()}"


def unpacked(text: str) -> Tensor:
    """The inverse of `packed`."""
    count, _, bits = text.partition(":")
    return torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count))).bool()


def load(network: str, samples: int, device: torch.device | str = "cpu") -> Task:
    """The network and its images on a device, in float32 as such; `samples` of them to calibrate on."""
    torch.backends.cudnn.allow_tf32 = False
    if not available():
        raise SystemExit(f"{ROOT} holds no models/networks.py; set ROUNDWISE_DATA to the folder that does.")
    model = _module("models/networks.py").load(network).to(device)
    data = _module("data/samples.py")
    if network == "resnet20":
        images = data.cifar10("calibration")[0][:samples], *data.cifar10("evaluation")
    else:
        images = data.imagenet_calibration(samples), *data.imagenet_evaluation()
    return Task(model, *(part.to(device) for part in images))


def calibration_labels() -> Tensor:
    """The classes of ResNet-20's calibration images; those of the other networks' are not known."""
    labels: Tensor = _module("data/samples.py").cifar10("calibration")[1]
    return labels


def device_name(device: torch.device | str) -> str:
    """What the hardware calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
