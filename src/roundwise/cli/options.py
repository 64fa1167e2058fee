"""Options that several commands share, and the settings that they amount to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

import click
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from roundwise.cli.parameters import EXISTING_FILE, EXISTING_PATH, ChannelValues, Size, default
from roundwise.cli.weights import FromFile, Pretrained, Random, WeightSource
from roundwise.evaluation.arrays import INPUT_KEYS, LABEL_KEYS, Keys
from roundwise.evaluation.data import DataOptions
from roundwise.evaluation.preprocessing import INTERPOLATIONS, Cover, Preprocessing, ShorterSide

F = TypeVar("F", bound=Callable[..., Any])


_WEIGHTS = (
    click.option(
        "--weights",
        type=EXISTING_FILE,
        help="A state dict: .safetensors, or .pt, .pth, .bin, .ckpt with nothing but tensors in it.",
    ),
    click.option("--pretrained", is_flag=True, help="Download the weights that torchvision or timm offer."),
    click.option("--random-weights", is_flag=True, help="Leave the network untrained, to try things out."),
    click.option(
        "--num-classes",
        type=click.IntRange(1),
        help="Classes of a torchvision or timm network, where --weights were trained for another number than usual.",
    ),
)

_DATA = (
    click.option(
        "--split",
        help="Of a folder in Pascal VOC layout: the list in ImageSets/Segmentation that names the images."
        + default("val to evaluate, train to quantize"),
    ),
    click.option(
        "--limit", type=click.IntRange(1), help="Use this many samples of --data, chosen at random." + default("all")
    ),
    click.option(
        "--input-key",
        help="Name of the inputs in a file with several arrays." + default(", ".join(INPUT_KEYS)),
    ),
    click.option("--label-key", help="Name of the labels." + default(", ".join(LABEL_KEYS))),
    click.option(
        "--size",
        type=Size(),
        help="The network's input size: images are scaled to cover it, and the centre is cut out.",
    ),
    click.option(
        "--resize",
        type=click.IntRange(1),
        help="Length of the shorter side before the centre of --size is cut out; 256 goes with 224.",
    ),
    click.option("--mean", type=ChannelValues(), help="Subtracted from pixels in 0 to 1; one value for grey images."),
    click.option("--std", type=ChannelValues(), help="What pixels are divided by afterwards."),
    click.option("--interpolation", type=click.Choice(list(INTERPOLATIONS)), help="How images are scaled."),
    click.option(
        "--preprocess-as",
        metavar="MODEL",
        help="Prepare images as torchvision:NAME or timm:NAME does."
        + default("as MODEL itself where it says so; else ImageNet's mean and std, size unchanged"),
    ),
)


def weight_options(function: F) -> F:
    """Where the weights of a named network come from."""
    for option in reversed(_WEIGHTS):
        function = option(function)
    return function


def data_options(function: F, *, required: bool = True) -> F:
    """Which samples are read, and what is done to images."""
    for option in reversed(_DATA):
        function = option(function)
    return click.option(
        "--data",
        required=required,
        type=EXISTING_PATH,
        help="A folder of images (flat, one folder per class, or in Pascal VOC layout with masks), or .npy, .npz, .pt, "
        ".safetensors: there, uint8 arrays are images, others are taken as they are.",
    )(function)


def weight_source(options: dict[str, Any], seed: int = 0) -> WeightSource | None:
    """Take the options of `weight_options` out of `options` (but for `num_classes`).

    Raises:
        click.UsageError: more than one was given.
    """
    file, pretrained, random = (options.pop(name) for name in ("weights", "pretrained", "random_weights"))
    if sum((file is not None, pretrained, random)) > 1:
        raise click.UsageError("--weights, --pretrained and --random-weights exclude each other.")
    if pretrained:
        return Pretrained()
    if random:
        return Random(seed)
    return None if file is None else FromFile(file)


@final
@dataclass(frozen=True)
class DataRequest:
    """What `data_options` were given; None, or False, where nothing was."""

    data: Path
    split: str | None
    limit: int | None
    keys: Keys
    size: tuple[int, int] | None
    resize: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str | None
    preprocess_as: str | None

    @classmethod
    def take(cls, options: dict[str, Any]) -> DataRequest:
        """Take the options of `data_options` out of `options`."""
        keys = Keys(options.pop("input_key"), options.pop("label_key"))
        names = ("data", "split", "limit", "size", "resize", "mean", "std", "interpolation", "preprocess_as")
        return cls(keys=keys, **{name: options.pop(name) for name in names})

    def options(self, own: tuple[Preprocessing, str] | None, seed: int) -> tuple[DataOptions, str]:
        """How to read the data (but for labels and masks), and where the preprocessing came from.

        Args:
            own: the model's own preprocessing and its source, where it states one.
            seed: for `--limit`.
        """
        if self.preprocess_as is not None:
            from roundwise.cli.models import stated_preprocessing

            own = stated_preprocessing(self.preprocess_as)
        base, source = own or (Preprocessing(), "the default, since the model states none")
        preprocessing, changed = self.changed(base)
        if changed:
            source = f"{', '.join(changed)}; the rest is {source}"
        normalization = None
        if {"--size", "--resize", "--mean", "--std"} & set(changed):
            channels = len(self.mean or self.std or base.mean)
            normalization, _ = self.changed(Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels))
        options = DataOptions(
            preprocessing=preprocessing,
            normalization=normalization,
            keys=self.keys,
            split=self.split,
            want_labels=False,
            limit=self.limit,
            seed=seed,
        )
        return options, source

    def changed(self, base: Preprocessing) -> tuple[Preprocessing, list[str]]:
        """The base with what the options say, and the options that said something.

        Raises:
            RecipeError: mean and std do not go together.
        """
        changed = [f"--{name}" for name in ("size", "resize", "mean", "std", "interpolation") if getattr(self, name)]
        preprocessing = base
        if self.size is not None:
            height, width = self.size
            scaled = ShorterSide(height) if height == width else Cover(height, width)
            preprocessing = replace(preprocessing, crop=self.size, resize=scaled)
        if self.resize is not None:
            preprocessing = replace(preprocessing, resize=ShorterSide(self.resize))
        values = {
            name: value for name in ("mean", "std", "interpolation") if (value := getattr(self, name)) is not None
        }
        return replace(preprocessing, **values), changed


def move(network: nn.Module | ExportedProgram, to: torch.device) -> nn.Module | ExportedProgram:
    """A network on a device."""
    if isinstance(network, nn.Module):
        return network.to(to)
    moved: ExportedProgram = move_to_device_pass(network, to)
    return moved


def check_one_source(class_list: Path | None, labels: Path | None) -> None:
    """Make sure that labels come from one place.

    Raises:
        click.UsageError: from both a list of classes and a file of labels.
    """
    if class_list is not None and labels is not None:
        raise click.UsageError(
            f"--classes says what class a folder is, and --labels {labels} what each sample is; give one."
        )
