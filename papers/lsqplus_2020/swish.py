"""A small network with swish (SiLU) throughout for CIFAR-10, in the manner of EfficientNet, and its training.

Each block widens its channels by a 1×1 convolution, filters them one by one (depthwise), weighs them by a gate that
reads their means (squeeze and excitation), and narrows them again. Swish gives a few small negative values: what LSQ+'s
offset is for.

Reference:
    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv:1905.11946.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ((24, 1, 1), (32, 2, 2), (48, 2, 2), (64, 2, 1))
"""Channels, number of blocks, and stride of the first of them. More or wider blocks are more accurate and slower."""

WIDENING = 4
"""A block is four times as wide inside."""


class Gate(nn.Module):
    """Squeeze and excitation: a factor for each channel, from the means of all channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        factors: Tensor = torch.sigmoid(self.expand(F.silu(self.reduce(means))))
        return x * factors


class Block(nn.Module):
    """Widen, filter, weigh, narrow; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inside = WIDENING * inputs
        self.expand, self.bn1 = nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.filter = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        self.bn2, self.gate = nn.BatchNorm2d(inside), Gate(inside, max(4, inputs // 4))
        self.narrow, self.bn3 = nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn1(self.expand(x)))
        y = self.gate(F.silu(self.bn2(self.filter(y))))
        result: Tensor = self.bn3(self.narrow(y))
        return x + result if self.shortcut else result


class SwishNet(nn.Module):
    """For images of 32 × 32.

    Args:
        width: multiplies all numbers of channels.
        classes: number of logits.
    """

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        channels = round(16 * width)
        self.stem, self.bn = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        blocks = []
        for wide, count, stride in BLOCKS:
            for number in range(count):
                outputs = round(wide * width)
                blocks.append(Block(channels, outputs, stride if number == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        last = round(192 * width)
        self.head, self.head_bn = nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.silu(self.bn(self.stem(x))))
        y = F.silu(self.head_bn(self.head(y))).mean((2, 3))
        logits: Tensor = self.classifier(y)
        return logits


def augmented(images: Tensor) -> Tensor:
    """Images that are flipped and shifted by up to 4 pixels at random, with PyTorch's generator."""
    flips = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(flips.to(images.device), images.flip(-1), images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = (torch.randint(0, 9, (len(images),)).tolist() for _ in range(2))
    return torch.stack([one[:, y : y + 32, x : x + 32] for one, y, x in zip(padded, top, left, strict=True)])


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    seed: int = 0,
    tell: Callable[[str], object] = print,
) -> None:
    """Train a float network on labels: SGD with momentum 0.9, batches of 128, a learning rate that falls to 0."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps, step = epochs * (len(images) // 128), 0
    model.train()
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(images)).split(128):
            if len(chosen) < 128:
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
            loss = F.cross_entropy(model(augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        tell(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / max(1, len(losses)):.4f}")
    model.eval()
