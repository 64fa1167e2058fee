"""What is run on the small networks: every table of the paper, and Figure 4, each with its network, images and bits.

Tables 1 to 5 are at 2 bits, where the roundings of ResNet-20's first layer differ as those of ResNet-18's do at 4;
Tables 6 to 8 and the appendix at 3 bits, where nearest rounding falls as far as in the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

import segments
import torch
from torch import Tensor
from torch.nn import functional as F

from roundwise.methods.rounding import GramAdaRound
from roundwise.numerics.grid import Granularity, PerChannel, PerTensor
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.reproduction import PAPERS, Row, Settings, Study, Table

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import networks  # where the networks and images are

ITERATIONS = 200
"""Of methods that learn by minibatches; the paper's 10,000 are for machines with more time."""

FIRST_LAYER_ITERATIONS = 1000
"""The same for rows that quantize the first layer alone."""

SEEDS = 5

FIGURE4 = Table(
    "Figure 4: AdaRound by the number of images and their domain",
    lambda s: [
        Row("AdaRound in Gram space", "", Recipe((Rewrite(()), Quantize(weights=s.weights, rounding=GramAdaRound()))))
    ],
)

TABLES = PAPERS["adaround"] | {"figure4": FIGURE4}

DOMAINS = {
    "resnet20": ("CIFAR-10", "ImageNet"),
    "mobilenet_v1_075": ("ImageNet", "CIFAR-10"),
    "mobilenet_v2": ("ImageNet", "CIFAR-10"),
    "segmenter": ("CIFAR-10", "ImageNet"),
}
"""The images that a network was trained on, and the others."""

ALL = 2048
"""Calibration images: of CIFAR-10 there are so many, of ImageNet 1000."""

TRAINING = 1024
"""Pictures that the head is trained on."""

LARGE = 256
"""Images of CIFAR-10 that are brought to a MobileNet's size: all would take a gigabyte."""

CIFAR_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
CIFAR_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
"""What `samples.py` normalizes by for ResNet-20."""


@final
@dataclass(frozen=True)
class Part:
    """A table on one network.

    Attributes:
        table: of `TABLES`.
        network: as `networks.load` knows it; "segmenter" is the one for segmentation, see `segments.py`.
        bits, granularity: of weights.
        samples: calibration images.
        tests: images to measure on, taken evenly.
        domain: where the calibration images are from.
        draw: which of them are taken: 0 is the first ones, others are drawn.
    """

    table: str
    network: str = "resnet20"
    bits: int = 3
    samples: int = 512
    tests: int = 5000
    domain: str = "CIFAR-10"
    draw: int = 0
    granularity: Granularity = PerTensor()

    @property
    def name(self) -> str:
        """Of the study."""
        drawn = f", draw {self.draw}" if self.draw else ""
        return f"{self.network}, {self.tests} test images, {self.samples} calibration images of {self.domain}{drawn}"

    def settings(self, iterations: int = ITERATIONS, seeds: int = SEEDS) -> Settings:
        """For the rows of the table."""
        return Settings(self.bits, self.granularity, iterations, seeds, max(iterations, FIRST_LAYER_ITERATIONS))


PARTS = [
    Part("table6"),
    *(Part(f"table{number}", bits=2) for number in (4, 5, 3, 2)),
    Part("table1", bits=2, tests=2000),
    *(
        Part("figure4", samples=count, domain=domain, draw=draw)
        for domain, counts in (("CIFAR-10", (64, 256, 1024, 2048)), ("ImageNet", (64, 256, 1000)))
        for count in counts
        for draw in (1, 2, 3)
    ),
    *(
        Part("figure4", "mobilenet_v1_075", 4, count, tests=650, domain=domain, draw=1, granularity=PerChannel())
        for domain in ("ImageNet", "CIFAR-10")
        for count in (64, 256)
    ),
    Part("table7"),
    Part("table8", "segmenter", tests=500),
    Part("table7-equalized", "mobilenet_v2", 4, 256, tests=650, domain="ImageNet"),
    Part("ranges"),
]


@functools.lru_cache(maxsize=1)
def study(part: Part, device: str = "cpu") -> Study:
    """The network and images of a part; one at a time is kept."""
    if part.network == "segmenter":
        return _segmentation(part, device)
    own = part.domain == DOMAINS[part.network][0]
    task = networks.load(part.network, ALL if own else 1, device)
    images = task.calibration if own else _foreign(part.network).to(device)
    if part.draw:
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(part.draw)).to(device)]
    some = (
        torch.arange(part.tests, device=device) * len(task.labels) // part.tests
    )  # evenly: they may be sorted by class
    tests = task.images[some].contiguous(memory_format=torch.channels_last)  # half the time on a CPU
    task = dataclasses.replace(task, images=tests, labels=task.labels[some])
    return Study(task.model, images[: part.samples].clone(), task.accuracy, part.name)


@functools.cache
def float_score(network: str, tests: int, device: str = "cpu") -> float:
    """Top-1 accuracy in percent before anything is quantized."""
    of = study(next(part for part in PARTS if (part.network, part.tests) == (network, tests)), device)
    return of.score(of.model)


def _segmentation(part: Part, device: str) -> Study:
    task, count = networks.load("resnet20", ALL), max(part.samples, TRAINING)
    pictures, masks = segments.placed(task.calibration, networks.calibration_labels(), count, seed=1)
    model = segments.train(task.model, pictures[:TRAINING], masks[:TRAINING]).to(device)
    images, truth = (some.to(device) for some in segments.placed(task.images, task.labels, part.tests, seed=2))
    score = functools.partial(segments.mean_iou, images=images, masks=truth)
    return Study(model, pictures[: part.samples].to(device), score, part.name)


def _foreign(network: str) -> Tensor:
    """Images of the other domain in the network's size and range."""
    if network == "resnet20":
        photographs = networks.load("mobilenet_v1_075", ALL).calibration
        small = F.interpolate(photographs, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
        return ((small + 1) / 2 - CIFAR_MEAN) / CIFAR_STD
    small = networks.load("resnet20", LARGE).calibration * CIFAR_STD + CIFAR_MEAN
    return F.interpolate(small, size=(224, 224), mode="bilinear", align_corners=False) * 2 - 1
