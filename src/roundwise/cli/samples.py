"""Options about the data: which samples are read, and how images are prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import click

from roundwise.cli.options import ADVANCED, DATA, choice, file, number, option
from roundwise.cli.parameters import EXISTING_PATH, channel_values, size
from roundwise.cli.terminal import say
from roundwise.data.arrays import Keys
from roundwise.data.dataset import DataOptions, Dataset
from roundwise.data.preprocessing import INTERPOLATIONS, Cover, Preprocessing, ShorterSide
from roundwise.loading.models import stated_preprocessing


@final
@dataclass(frozen=True)
class SampleOptions:
    """What the user said about the samples; None where nothing was said."""

    data: Path | None = option(
        DATA, "A folder of images, or an array file: .npy .npz .pt .safetensors.", type=EXISTING_PATH, metavar="PATH"
    )
    limit: int | None = number(DATA, "Use this many samples of --data, chosen at random.")
    size: tuple[int, int] | None = option(
        DATA, "Scale images to cover this size, then cut out the centre.", type=size, metavar="H[xW]"
    )
    preprocess_as: str | None = option(
        DATA, "Prepare images as for torchvision:NAME or timm:NAME.  [default: MODEL]", metavar="MODEL"
    )
    mean: tuple[float, ...] | None = option(
        ADVANCED, "Subtracted from pixels in 0 to 1.", type=channel_values, metavar="R,G,B"
    )
    std: tuple[float, ...] | None = option(
        ADVANCED, "Pixels are then divided by it.", type=channel_values, metavar="R,G,B"
    )
    resize: int | None = number(ADVANCED, "Length of an image's shorter side before --size cuts.")
    interpolation: str | None = choice(ADVANCED, f"{', '.join(INTERPOLATIONS)}.", INTERPOLATIONS)
    split: str | None = option(ADVANCED, "Of a Pascal VOC folder: a list in ImageSets/Segmentation.", metavar="NAME")
    input_key: str | None = option(ADVANCED, "Name of the inputs in a file of several arrays.", metavar="NAME")
    label_key: str | None = option(ADVANCED, "Name of the labels in it.", metavar="NAME")

    def require(self, otherwise: str = "") -> Path:
        """Make sure that there is data, and return its path.

        Args:
            otherwise: what the user can give in its place, for the message.

        Raises:
            click.UsageError: there is none.
        """
        if self.data is None:
            raise click.UsageError(f"Missing option '--data'. Give a folder of images, or a file of arrays{otherwise}.")
        return self.data

    def stated(self, own: tuple[Preprocessing, str] | None) -> tuple[Preprocessing, str] | None:
        """The preprocessing of the model after `--preprocess-as`, else the model's own, and where it is stated."""
        return own if self.preprocess_as is None else stated_preprocessing(self.preprocess_as)

    def reading(self, own: tuple[Preprocessing, str] | None, seed: int) -> tuple[DataOptions, str]:
        """How to read the data (labels and masks are left out), and where the preprocessing comes from.

        Args:
            own: the model's own preprocessing and its source, if the model states one.
            seed: for `--limit`.
        """
        base, source = self.stated(own) or (Preprocessing(), "the default, since the model states none")
        names = ("size", "resize", "mean", "std", "interpolation")
        changed = [f"--{name}" for name in names if getattr(self, name) is not None]
        if changed:
            source = f"{', '.join(changed)}; the rest is {source}"
        normalization = None
        if changed not in ([], ["--interpolation"]):
            channels = len(self.mean or self.std or base.mean)
            normalization = self._over(Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels))
        options = DataOptions(
            preprocessing=self._over(base),
            normalization=normalization,
            keys=Keys(self.input_key, self.label_key),
            split=self.split,
            want_labels=False,
            limit=self.limit,
            seed=seed,
        )
        return options, source

    def _over(self, base: Preprocessing) -> Preprocessing:
        """The base, changed as the options say."""
        changes: dict[str, object] = {
            name: value for name in ("mean", "std", "interpolation") if (value := getattr(self, name)) is not None
        }
        if self.size is not None:
            height, width = self.size
            changes |= {"crop": self.size, "resize": ShorterSide(height) if height == width else Cover(height, width)}
        if self.resize is not None:
            changes["resize"] = ShorterSide(self.resize)
        return replace(base, **changes)  # type: ignore[arg-type]


@final
@dataclass(frozen=True)
class LabelOptions:
    """Where labels come from, if not from the data itself.

    Raises:
        click.UsageError: from two places.
    """

    labels: Path | None = file(DATA, "One whole number per sample, in order: lines of a .txt, or an array.")
    class_list: Path | None = file(
        DATA,
        "For one folder per class: the folders' names in the network's order of classes, one a line.  "
        "[default: sorted by name]",
        "--classes",
    )

    def __post_init__(self) -> None:
        if self.class_list is not None and self.labels is not None:
            raise click.UsageError(
                f"--classes says which class a folder is, and --labels {self.labels} which class each sample is; give "
                "only one of them."
            )


@final
@dataclass(frozen=True)
class BatchOptions:
    """How many samples run through the network at a time."""

    batch_size: int = option(ADVANCED, "Samples at a time.", default=32, type=click.IntRange(1), metavar="N")


def describe(what: str, dataset: Dataset, preprocessing_source: str) -> None:
    """Tell the user what was read, and how images are prepared."""
    say(f"{what}: {dataset.description}")
    if dataset.preprocessing is not None:
        say(f"images: {dataset.preprocessing} ({preprocessing_source})")
