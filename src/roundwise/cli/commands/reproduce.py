"""`roundwise reproduce`: a paper's table, on your network and images."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import final

import click
import torch
from torch import Tensor, nn

from roundwise.cli.measuring import check_first_batch, measure
from roundwise.cli.options import (
    ADVANCED,
    DATA,
    METHOD,
    OUTPUT,
    RunOptions,
    as_command,
    choice,
    flag,
    number,
    option,
)
from roundwise.cli.outputs import check_apart, check_journal, check_place
from roundwise.cli.parameters import EXISTING_PATH, writable
from roundwise.cli.samples import BatchOptions, LabelOptions, SampleOptions, describe
from roundwise.cli.terminal import say, show_json
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import Dataset, load_data
from roundwise.data.voc import is_voc
from roundwise.engine.network import Network, capture
from roundwise.errors import CalibrationError, FileFormatError, ModelError
from roundwise.evaluation.metrics import Evaluation
from roundwise.files import replacing
from roundwise.loading.models import move
from roundwise.loading.runnable import Runnable, run_on
from roundwise.numerics.grid import BITS, PerChannel, PerTensor
from roundwise.reproduction import PAPERS, Journal, Settings, Study, of_others, page, run, run_key, runs
from roundwise.wording import number_of

DEFAULT = Settings()

HELP = """
Run a table of a paper again, on your network: every row with several seeds, beside the paper's figures.

\b
  roundwise reproduce adaround table4 timm:resnet18 --pretrained --imagenet imagenet/ --limit 1024
  roundwise reproduce adaround table7 timm:resnet18 --pretrained --imagenet imagenet/ \\
      --limit 2048 --iterations 20000 --journal table7.jsonl --out table7.md
  roundwise reproduce adaround table1 net.py:build --data train.npz --test test.npz --bits 3

MODEL is as for `quantize`. --data has the calibration images, --test the images to measure on, with labels, or with
masks in Pascal VOC layout. --split, --input-key and --label-key apply to both, --labels and --classes to --test only.

\b
""" + "\n".join(
    f"  {paper} {name:<18}{table.title}" for paper, tables in PAPERS.items() for name, table in tables.items()
)


@final
@dataclass(frozen=True)
class TableOptions:
    """What a user can change about a table, and where its results go."""

    test: Path | None = option(
        DATA, "Labelled samples to measure on, of any kind that --data takes.", type=EXISTING_PATH, metavar="PATH"
    )
    imagenet: Path | None = option(
        DATA,
        "A folder with `train` and `val`, for --data and --test. Each has one folder per class.",
        type=EXISTING_PATH,
        metavar="FOLDER",
    )
    bits: int = choice(METHOD, "Bits of a weight.", BITS, metavar="N", default=DEFAULT.bits)
    by_channel: bool = flag(METHOD, "One scale per output channel, instead of one per tensor.", "--per-channel")
    iterations: int = number(METHOD, "Of methods that learn by minibatches.", default=DEFAULT.iterations)
    seeds: int = number(
        METHOD,
        "Runs of a row that depends on the seed; at most 3 if the paper gives no deviation.",
        default=DEFAULT.seeds,
    )
    out: Path | None = option(OUTPUT, "Write the table's page (.md).", type=writable, metavar="FILE")
    journal: Path | None = option(
        ADVANCED, "Keep finished runs here, so that none is done twice.", type=writable, metavar="FILE"
    )

    def check_files(self) -> None:
        """Make sure that the page and the journal can be written.

        Raises:
            click.UsageError: a name is wrong, or both names mean the same file.
            ExportError: the folder or the file cannot be written to.
        """
        if self.out is not None:
            check_place("--out", self.out, (".md",))
        if self.journal is not None:
            check_journal("--journal", self.journal)
            if self.out is not None:
                check_apart("--journal", self.journal, "--out", self.out)

    def places(self, data: Path | None) -> tuple[Path, Path]:
        """Where calibration and test samples are.

        Raises:
            click.UsageError: the options do not say so, or say it twice.
        """
        test = self.test
        if self.imagenet is not None:
            if data is not None or test is not None:
                raise click.UsageError("--imagenet stands for --data and --test; give either it or them.")
            data, test = self.imagenet / "train", self.imagenet / "val"
            for folder in (data, test):
                if not folder.is_dir():
                    raise click.UsageError(f"--imagenet {self.imagenet}: there is no folder '{folder}'. Create it.")
        if data is None or test is None:
            raise click.UsageError("the samples are missing: give --data and --test, or --imagenet.")
        return data, test


@as_command(
    HELP, click.Argument(["paper"], type=click.Choice(list(PAPERS))), *map(click.Argument, (["table"], ["model"]))
)
def command(
    paper: str,
    table: str,
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    options: TableOptions,
    labels: LabelOptions,
    batch: BatchOptions,
    where: RunOptions,
) -> None:
    """Run `roundwise reproduce`."""
    if table not in PAPERS[paper]:
        raise click.UsageError(f"{paper} has no '{table}'. Choose one of {', '.join(PAPERS[paper])}.")
    wanted = PAPERS[paper][table]
    options.check_files()
    place, test = options.places(samples.data)
    known = Journal(options.journal)
    loaded = weights.load(model)
    if not isinstance(loaded.network, nn.Module):
        raise ModelError(f"{model}: a .pt2 program cannot be run again and again here; give the module it came from.")
    network = move(loaded.network, where.device)
    assert isinstance(network, nn.Module)
    reading, source = samples.reading(loaded.preprocessing, seed=0)
    calibration = load_data(place, reading)
    labelled = dataclasses.replace(
        reading, want_labels=True, labels=labels.labels, class_list=labels.class_list, limit=None
    )
    testing = load_data(test, labelled)
    describe("calibration", calibration, source)
    say(f"test: {testing.description}")
    if testing.labels is None and testing.masks is None:
        raise CalibrationError(
            f"{test} has neither labels nor masks, and a table is measured by one or the other. Give --labels FILE."
        )
    _check_folders(place, test, testing)

    settings = Settings(
        options.bits, PerChannel() if options.by_channel else PerTensor(), options.iterations, options.seeds
    )
    batches = list(calibration.batches(batch.batch_size))
    captured = capture(network, torch.cat(batches[:2])[:2])
    runnable = run_on(where.device, "the network", network)
    check_first_batch(runnable, testing, batch.batch_size)
    float_score, hashes = _score_and_hashes(runnable, testing, batch.batch_size)
    say(f"float: {float_score:.2f} %")
    content = _fingerprint(captured, batches, hashes)
    study = Study(
        network,
        batches,
        lambda quantized: _percent(measure(run_on(where.device, "the network", quantized), testing, batch.batch_size)),
        # A key of the journal: if one word of it changes, no finished run counts any more.
        f"{model} on {test} ({len(testing)} sample{'s' * (len(testing) != 1)}), "
        f"calibrated on {len(calibration)} of {place} [{content}]",
        captured,
    )
    if options.journal is not None:
        _tell(study.name, options.journal, known, [run_key(study.name, *one) for one in runs(wanted, settings)])
    results = run(study, wanted, settings, known, tell=say)
    text = page(study, wanted, settings, results, shlex.join(["roundwise", *sys.argv[1:]]), float_score)
    if options.out is not None:
        with replacing(options.out, FileFormatError) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if not where.as_json:
        click.echo(text)
        return
    rows = [
        {"name": r.row.name, "published": r.row.published, "scores": r.scores, "seconds": r.seconds} for r in results
    ]
    show_json({"paper": paper, "table": table, "study": study.name, "float": float_score, "rows": rows})


def _percent(measured: Evaluation) -> float:
    """Mean IoU, or top-1 accuracy, in percent."""
    if measured.segmentation is not None:
        return 100 * measured.segmentation.mean_iou
    assert measured.accuracy is not None
    return 100 * measured.accuracy.top1


def _score_and_hashes(network: Runnable, testing: Dataset, batch_size: int) -> tuple[float, list[bytes]]:
    """The network's score, and hashes of the samples and of their labels or masks, all of which are read once."""
    samples, truth = hashlib.sha256(), hashlib.sha256()
    masks = testing.mask_batches(batch_size)
    measured = measure(
        network,
        testing,
        batch_size,
        inputs=_hashed(testing.batches(batch_size), samples),
        masks=None if masks is None else _hashed(masks, truth),
    )
    if testing.labels is not None:
        truth.update(_bytes(testing.labels))
    return _percent(measured), [samples.digest(), truth.digest()]


def _hashed(batches: Iterable[Tensor], digest: hashlib._Hash) -> Iterator[Tensor]:
    for batch in batches:
        digest.update(_bytes(batch))
        yield batch


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _fingerprint(captured: Network, batches: Sequence[Tensor], tests: Sequence[bytes]) -> str:
    """A hash of Roundwise's version, the network's operations and weights, calibration and test samples.

    Runs in a journal count only with the same fingerprint: files may change and keep their names.
    """
    graph = captured.graph
    digest = hashlib.sha256(f"{version('roundwise')} {graph.operations} {graph.inputs}".encode())
    for part in tests:
        digest.update(part)
    for tensor in [*graph.constants.values(), *batches]:
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


def _tell(study: str, path: Path, journal: Journal, keys: Sequence[str]) -> None:
    """Say how many of these runs a journal holds already, and how many others."""
    if finished := sum(journal.get(key) is not None for key in keys):
        say(f"journal: {finished} of {number_of(len(keys), 'run')} finished before")
    if others := of_others(study, journal):
        say(
            f"journal: {number_of(others, 'run')} in {path} not used: of another network, other samples or labels, or "
            "another version of Roundwise"
        )


def _check_folders(data: Path, test: Path, testing: Dataset) -> None:
    """Make sure that calibration and test images are of the same classes, if the test images' folders count them.

    Raises:
        CalibrationError: a folder is missing in one of them.
    """
    if not testing.classes or not data.is_dir() or is_voc(data):
        return
    folders = {entry.name for entry in data.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if folders and (odd := folders.symmetric_difference(testing.classes)):
        raise CalibrationError(
            f"{data} has {len(folders)} folders, one per class, and {test} has {len(testing.classes)}; '{min(odd)}' is "
            "in one of them only. If a class is missing, folders counted by name give wrong labels. Give --classes "
            "FILE with the folder names in the network's order of classes, one a line, or make the folders alike."
        )
