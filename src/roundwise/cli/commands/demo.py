"""`roundwise demo`: all steps in a minute, on data that comes with scikit-learn.

    1. train     a small MobileNet-like network on 1,297 images of handwritten digits, 8 × 8 pixels
    2. quantize  its weights to 4, 3 and 2 bits, one scale per tensor: round to nearest, and GramAdaRound
    3. compare   their accuracy on 500 other images
    4. deploy    the 4-bit network: save it, export it to ONNX, run that in ONNX Runtime, compare with our own outputs

One scale per tensor makes it hard on purpose: after batch-norm folding, some channels of a depthwise convolution have
far larger weights than others. Every figure that is printed is measured in the run.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar, final

import click
import torch
from rich.console import Console
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import roundwise as rw
from roundwise.cli.options import OUTPUT, as_command, option
from roundwise.errors import RoundwiseError
from roundwise.runtimes import OnnxRuntime
from roundwise.wording import human_bytes

T = TypeVar("T")

BITS = (4, 3, 2)
DEPLOYED_BITS = 4
EPOCHS = 15
CALIBRATION_IMAGES = 256
TEST_IMAGES = 500


HELP = """
Train a small network on images of digits, quantize it to 4, 3 and 2 bits, compare, export to ONNX, run that.

\b
  roundwise demo --out demo/
"""


@final
@dataclass(frozen=True)
class DemoOptions:
    """Where the files go."""

    out: Path = option(
        OUTPUT,
        "Write the files to this folder.",
        default=Path("roundwise-demo"),
        type=click.Path(file_okay=False, path_type=Path),
    )


@as_command(HELP)
def command(options: DemoOptions) -> None:
    """Run `roundwise demo`."""
    run(options.out, Console())


@final
@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], float32 `[n, 1, 8, 8]`, and their labels, int64 `[n]`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def accuracy(self, classes: Tensor) -> float:
        """The share of the test images, 0 to 1, whose class is right."""
        return (classes == self.test_labels).float().mean().item()


@final
@dataclass(frozen=True)
class Row:
    """One line of the comparison: test accuracies, 0 to 1, and how long GramAdaRound took."""

    bits: int
    nearest: float
    adaround: float
    seconds: float


def run(folder: Path, console: Console) -> None:
    """Train, quantize, compare and deploy, and tell about it.

    Args:
        folder: for the files that are written; made if it does not exist.
        console: where to tell.

    Raises:
        RoundwiseError: scikit-learn is not installed.
    """
    started = perf_counter()
    with one_thread():
        digits = load_digits()
        console.print("[bold]1. Train[/] a small convolutional network on handwritten digits.")
        model = train(digits, console)
        float_accuracy = digits.accuracy(classify(model, digits.test_images))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        tell(console, f"{parameters:,} parameters; {float_accuracy:.1%} of {TEST_IMAGES} test images right.")

        console.print(f"\n[bold]2. Quantize[/] its weights with {CALIBRATION_IMAGES} of the images, without labels.")
        rows, deployed = quantize_all(model, digits, console)

        console.print("\n[bold]3. Compare[/] on the test images, which were used in neither step.")
        console.print(Padding.indent(comparison(float_accuracy, rows), 3))
        tell(console, meaning(float_accuracy, rows))

        console.print(f"\n[bold]4. Deploy[/] the {DEPLOYED_BITS}-bit network.")
        for line in deploy(deployed, digits, folder):
            tell(console, line)

    console.print(f"\nThat took {perf_counter() - started:.0f} seconds. What to do next:")
    for words in (
        f"inspect {folder / 'digits.rw'}",
        "quantize YOUR_FILE.py:YOUR_FUNCTION --data YOUR_IMAGES --out model.onnx",
        "quantize --help",
    ):
        console.print(f"   {program()} {words}", highlight=False, markup=False, soft_wrap=True)  # whole, to be copied


# --------------------------------------------------------------------------------------------------------- 1. train


def load_digits() -> Digits:
    """Scikit-learn's digits, shuffled and split in the same way every time."""
    try:
        from sklearn.datasets import load_digits as bundled_digits
    except ImportError as error:
        raise RoundwiseError(
            'The demo uses images from scikit-learn, which is not installed here. Run: pip install "roundwise[demo]"'
        ) from error
    bunch = bundled_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:-TEST_IMAGES], order[-TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


def small_network() -> nn.Module:
    """A stem, four depthwise-separable blocks and a linear classifier: MobileNet's plan, for 8 × 8 pixels."""

    def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(
            convolution(inputs, inputs, kernel=3, stride=stride, groups=inputs),
            convolution(inputs, outputs, kernel=1),
        )

    return nn.Sequential(
        convolution(1, 24, kernel=3),
        separable(24, 48),
        separable(48, 96, stride=2),
        separable(96, 96),
        separable(96, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def train(digits: Digits, console: Console) -> nn.Module:
    """Ordinary training: cross-entropy, AdamW, one cycle of the learning rate. The same network every time."""
    batch_size = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-4)
        steps = EPOCHS * -(-len(digits.train_images) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
        for _ in progress(range(EPOCHS), f"{EPOCHS} epochs", console):
            for batch in torch.randperm(len(digits.train_images)).split(batch_size):
                loss = F.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


# ------------------------------------------------------------------------------------------------------ 2. quantize


def quantize_all(model: nn.Module, digits: Digits, console: Console) -> tuple[list[Row], rw.Model]:
    """Every bit width with both roundings, and the network that goes on to be deployed."""
    rows, quantized = [], {}
    for bits in progress(BITS, f"{', '.join(map(str, BITS))} bits", console):
        nearest = quantize(model, digits, bits, rw.rounding.Nearest())
        started = perf_counter()
        quantized[bits] = quantize(model, digits, bits, rw.rounding.GramAdaRound())
        seconds = perf_counter() - started
        accuracies = [digits.accuracy(classify(network, digits.test_images)) for network in (nearest, quantized[bits])]
        rows.append(Row(bits, accuracies[0], accuracies[1], seconds))
    return rows, quantized[DEPLOYED_BITS]


def quantize(
    model: nn.Module, digits: Digits, bits: int, rounding: rw.rounding.Nearest | rw.rounding.GramAdaRound
) -> rw.Model:
    """One call of `rw.quantize`."""
    weights = rw.Weights(bits=bits, granularity=rw.PerTensor())
    recipe = rw.Recipe((rw.Rewrite(()), rw.Quantize(weights, rounding)), batch_size=CALIBRATION_IMAGES)
    return rw.quantize(model, digits.train_images[:CALIBRATION_IMAGES], recipe)


def classify(network: nn.Module, images: Tensor) -> Tensor:
    """The most likely class of each image."""
    with torch.inference_mode():
        classes: Tensor = network(images).argmax(1)
    return classes


# ------------------------------------------------------------------------------------------------------- 3. compare


def comparison(float_accuracy: float, rows: list[Row]) -> Table:
    """The table of accuracies."""
    table = Table()
    for heading in ("weights", "float", "nearest", "GramAdaRound", "seconds"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    for row in rows:
        accuracies = [f"{accuracy:.1%}" for accuracy in (float_accuracy, row.nearest, row.adaround)]
        table.add_row(f"{row.bits} bits", *accuracies, f"{row.seconds:.1f}")
    return table


def meaning(float_accuracy: float, rows: list[Row]) -> str:
    """A sentence about the bit width at which the rounding matters most."""
    row = max(rows, key=lambda row: row.adaround - row.nearest)
    lost_nearest = 100 * (float_accuracy - row.nearest)
    lost_adaround = 100 * (float_accuracy - row.adaround)
    return (
        f"At {row.bits} bits, rounding to nearest costs {lost_nearest:.1f} points of accuracy and GramAdaRound "
        f"{lost_adaround:.1f}: the same size, other codes. "
        f"(One image is {100 / TEST_IMAGES:.1f} points.)"
    )


# -------------------------------------------------------------------------------------------------------- 4. deploy


def deploy(quantized: rw.Model, digits: Digits, folder: Path) -> Iterator[str]:
    """Save, export and run in ONNX Runtime; yields a line about each."""
    folder.mkdir(parents=True, exist_ok=True)
    saved, exported = folder / "digits.rw", folder / "digits.onnx"
    quantized.save(saved)
    report = quantized.report
    yield (
        f"weights: {human_bytes(report.float_bytes)} in float, {human_bytes(report.quantized_bytes)} quantized; "
        f"{saved} has {human_bytes(saved.stat().st_size)}"
    )
    rw.export(quantized, exported)
    yield f"{exported} has {human_bytes(exported.stat().st_size)}, with {DEPLOYED_BITS}-bit weights inside"

    file = OnnxRuntime().open(exported)
    (outputs,) = file.run({file.inputs[0]: digits.test_images.numpy()})
    classes = torch.from_numpy(outputs).argmax(1)
    agreeing = int((classes == classify(quantized, digits.test_images)).sum())
    yield (
        f"ONNX Runtime runs it: {digits.accuracy(classes):.1%} of the test images right, "
        f"and the same class as here for {agreeing} of {TEST_IMAGES}"
    )


# ------------------------------------------------------------------------------------------------ around the story


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: a network this small gains nothing from more, and is slow if other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def program() -> str:
    """How the user's shell starts Roundwise: by its name, or by its path if the shell does not find the name."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "roundwise" and shutil.which("roundwise") is None else "roundwise"


def tell(console: Console, line: str) -> None:
    """Print a line, indented and unchanged: rich neither colours its numbers nor reads its paths as markup."""
    wrapped = textwrap.fill(line, console.width, initial_indent="   ", subsequent_indent="   ")
    console.print(wrapped, highlight=False, markup=False)


def progress(items: Iterable[T], label: str, console: Console) -> Iterable[T]:
    """The items, with a bar that disappears when it is full; on a terminal only."""
    return track(items, f"   {label}", console=console, transient=True, disable=not console.is_terminal)
