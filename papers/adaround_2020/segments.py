"""Table 8's stand-in: a network that tells where in a picture which of CIFAR-10's classes is, trained here in a minute.

The paper has DeepLabV3+ on Pascal VOC; neither can be had offline. A picture is a black square with an image of
CIFAR-10 at a random place in it, and each pixel's class is that of the image, or the background. The network is
ResNet-20's trunk, as trained, and a head of two convolutions, which is trained on pictures of the calibration images.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roundwise.evaluation.segmentation import Confusion

CLASSES = 11
"""The background, and CIFAR-10's ten."""

SIDE, IMAGE = 40, 32
"""Pixels of a picture, and of the image somewhere in it."""

STRIDE = 4
"""Of ResNet-20's trunk."""

STEPS, BATCH, LEARNING_RATE = 400, 32, 3e-3


@final
class Segmenter(nn.Module):
    """From images to the scores of classes for each pixel."""

    def __init__(self, trunk: nn.Module, hidden: int = 64) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Sequential(
            nn.Conv2d(64, hidden, 5, padding=2, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, CLASSES, 1),
        )

    def features(self, x: Tensor) -> Tensor:
        """What ResNet-20 sees at every fourth pixel, before it takes the mean."""
        trunk: Any = self.trunk
        x = F.relu(trunk.bn1(trunk.conv1(x)))
        features: Tensor = trunk.layer3(trunk.layer2(trunk.layer1(x)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.features(x))
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)


def placed(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` pictures float32 [count, 3, 40, 40] of images drawn at random, and their masks int64 [count, 40, 40]."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(images), (count,), generator=generator)
    corners = torch.randint(SIDE - IMAGE + 1, (count, 2), generator=generator)
    black = images.amin((0, 2, 3))  # whatever the images are normalized by
    pictures = black.view(1, 3, 1, 1).expand(count, 3, SIDE, SIDE).contiguous()
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for number, (chosen, (y, x)) in enumerate(zip(which.tolist(), corners.tolist(), strict=True)):
        place = slice(y, y + IMAGE), slice(x, x + IMAGE)
        pictures[number, :, *place] = images[chosen]
        masks[number, *place] = labels[chosen] + 1
    return pictures, masks


def train(trunk: nn.Module, images: Tensor, masks: Tensor, seed: int = 0) -> Segmenter:
    """A head for the trunk, which stays as it is; in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Segmenter(trunk).eval()
    with torch.no_grad():
        seen = torch.cat([network.features(batch) for batch in images.split(BATCH)])
    truth = masks[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.head.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    network.head.train()
    for _ in range(STEPS):
        batch = torch.randint(len(seen), (BATCH,), generator=generator)
        loss = F.cross_entropy(network.head(seen[batch]), truth[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def mean_iou(network: nn.Module, images: Tensor, masks: Tensor, batch: int = 50) -> float:
    """In percent, over all pixels of all images."""
    confusion = Confusion()
    with torch.no_grad():
        for number, (some, truth) in enumerate(zip(images.split(batch), masks.split(batch), strict=True)):
            confusion.add(network(some), truth, number * batch)
    return 100 * confusion.segmentation().mean_iou
