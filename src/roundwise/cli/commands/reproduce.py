"""`roundwise reproduce`: a paper's table, on your network and images."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import click
import torch
from torch import Tensor, nn

from roundwise.cli.models import load_model
from roundwise.cli.options import DataRequest, check_one_source, data_options, move, weight_options, weight_source
from roundwise.cli.outputs import check_apart, check_journal, check_place
from roundwise.cli.parameters import EXISTING_FILE, EXISTING_PATH, WRITABLE_FILE, Device, default
from roundwise.cli.runnable import Runnable
from roundwise.cli.terminal import exits, sample_progress, say, show_json
from roundwise.engine.network import Network, capture
from roundwise.errors import CalibrationError, FileFormatError, ModelError
from roundwise.evaluation.data import Dataset, load_data
from roundwise.evaluation.metrics import evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.evaluation.voc import is_voc
from roundwise.files import replacing
from roundwise.numerics.grid import BITS, PerChannel, PerTensor
from roundwise.reproduction import PAPERS, Journal, Settings, Study, of_others, page, run, run_key, runs
from roundwise.wording import number_of

HELP = """
Run a table of a paper again, on your network: every row over several seeds, beside the paper's figures.

\b
MODEL is as for `quantize`. --data has the calibration images, --test the labelled ones (or images with masks, in Pascal
VOC layout) to measure on; --imagenet FOLDER stands for --data FOLDER/train --test FOLDER/val.
\b
Examples:
  roundwise reproduce adaround table4 torchvision:resnet18 --pretrained --imagenet /data/imagenet --limit 1024
  roundwise reproduce adaround table7 torchvision:resnet18 --pretrained --imagenet /data/imagenet --limit 2048 \\
      --iterations 20000 --journal table7.jsonl --out table7.md
  roundwise reproduce adaround table1 net.py:build --data train.npz --test test.npz --bits 3
"""

DEFAULT = Settings()


class TablesCommand(click.Command):
    """A command whose help ends with the tables there are."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for paper, tables in PAPERS.items():
            with formatter.section(f"Tables of {paper}"):
                formatter.write_dl([(name, table.title) for name, table in tables.items()])
        super().format_epilog(ctx, formatter)


@click.command(
    "reproduce",
    cls=TablesCommand,
    help=HELP,
    epilog="Exit codes: 0 done; 1 it cannot be done, and the message on stderr says why; 2 wrong usage; 130 Ctrl-C.",
)
@click.argument("paper", type=click.Choice(list(PAPERS)))
@click.argument("table")
@click.argument("model")
@weight_options
@partial(data_options, required=False)
@click.option(
    "--test",
    type=EXISTING_PATH,
    help="What to measure on, of any kind that --data takes, with labels. --split, --input-key and --label-key are of "
    "both.",
)
@click.option("--imagenet", type=EXISTING_PATH, help="A folder with `train` and `val`, each one folder per class.")
@click.option("--labels", type=EXISTING_FILE, help="Labels of --test in a file of their own.")
@click.option(
    "--classes",
    "class_list",
    type=EXISTING_FILE,
    help="For --test with one folder per class: a text file with one folder's name a line for each of the network's "
    "classes, in its order." + default("sorted by name"),
)
@click.option("--bits", type=click.Choice([str(bits) for bits in BITS]), help="Of weights." + default(DEFAULT.bits))
@click.option("--per-channel", "by_channel", is_flag=True, help="A scale for each output channel of weights.")
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=DEFAULT.iterations,
    show_default=True,
    help="Of methods that learn by minibatches.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=DEFAULT.seeds,
    show_default=True,
    help="Runs of a row with chance in it; at most 3 where the paper gives no deviation.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples at a time.")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Where the network runs: cpu, cuda.")
@click.option("--journal", type=WRITABLE_FILE, help="Keeps finished runs, so that none is done twice.")
@click.option("--out", type=WRITABLE_FILE, help="Write the table's page here (.md).")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@exits
def command(
    paper: str,
    table: str,
    model: str,
    num_classes: int | None,
    test: Path | None,
    imagenet: Path | None,
    labels: Path | None,
    class_list: Path | None,
    bits: str | None,
    by_channel: bool,
    iterations: int,
    seeds: int,
    batch_size: int,
    device: torch.device,
    journal: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run `roundwise reproduce`."""
    tables = PAPERS[paper]
    if table not in tables:
        raise click.UsageError(f"{paper} has no '{table}'; there are {', '.join(tables)}.")
    check_one_source(class_list, labels)
    if out is not None:
        check_place("--out", out, (".md",))
    if journal is not None:
        check_journal("--journal", journal)
        if out is not None:
            check_apart("--journal", journal, "--out", out)
    options["data"], test = _places(options["data"], test, imagenet)
    known = Journal(journal)
    request, source = DataRequest.take(options), weight_source(options)
    loaded = load_model(model, source, num_classes)
    if not isinstance(loaded.network, nn.Module):
        raise ModelError(f"{model}: a .pt2 program cannot be run again and again here; give the module it came from.")
    network = move(loaded.network, device)
    assert isinstance(network, nn.Module)
    data, preprocessing_source = request.options(loaded.preprocessing, seed=0)
    calibration = load_data(request.data, data)
    testing = load_data(
        test, dataclasses.replace(data, want_labels=True, labels=labels, class_list=class_list, limit=None)
    )
    for name, dataset in (("calibration", calibration), ("test", testing)):
        say(f"{name}: {dataset.description}")
    if calibration.preprocessing is not None:
        say(f"images: {calibration.preprocessing} ({preprocessing_source})")
    if testing.labels is None and testing.masks is None:
        raise CalibrationError(f"{test} has neither labels nor masks, and a table is measured by one or the other.")
    _check_folders(request.data, test, testing)

    settings = Settings(
        bits=DEFAULT.bits if bits is None else int(bits),
        granularity=PerChannel() if by_channel else PerTensor(),
        iterations=iterations,
        seeds=seeds,
    )

    batches = list(calibration.batches(batch_size))
    captured = capture(network, torch.cat(batches[:2])[:2])
    with torch.no_grad():
        check_classes(_runnable(network, device)(next(iter(testing.batches(batch_size)))), testing)
    inputs, masks = Hashed(testing.batches(batch_size)), Hashed(testing.mask_batches(batch_size) or ())
    float_score = _score(network, testing, inputs, masks, device)
    say(f"float: {float_score:.2f} %")
    truth = masks.digest if testing.labels is None else hashlib.sha256(_bytes(testing.labels))
    content = _fingerprint(captured, batches, [inputs.digest.digest(), truth.digest()])

    def score(module: nn.Module) -> float:
        return _score(module, testing, testing.batches(batch_size), testing.mask_batches(batch_size), device)

    study = Study(
        network,
        batches,
        score,
        # A key of the journal: another word here, and what is finished counts for nothing.
        f"{model} on {test} ({len(testing)} sample{'s' * (len(testing) != 1)}), "
        f"calibrated on {len(calibration)} of {request.data} [{content}]",
        captured,
    )
    if journal is not None:
        _tell(study.name, journal, known, [run_key(study.name, *one) for one in runs(tables[table], settings)])
    results = run(study, tables[table], settings, known, tell=say)
    words = ["roundwise", *sys.argv[1:]]
    text = page(study, tables[table], settings, results, shlex.join(words), float_score)
    if out is not None:
        with replacing(out, FileFormatError) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        show_json(
            {
                "paper": paper,
                "table": table,
                "study": study.name,
                "float": float_score,
                "rows": [
                    {"name": r.row.name, "published": r.row.published, "scores": r.scores, "seconds": r.seconds}
                    for r in results
                ],
            }
        )
    else:
        click.echo(text)


@final
class Hashed:
    """Batches that leave a hash behind when they have been gone through: one of their samples, however many a batch."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = batches
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Tensor]:
        self.digest = hashlib.sha256()
        for batch in self.batches:
            self.digest.update(_bytes(batch))
            yield batch


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _fingerprint(captured: Network, batches: Sequence[Tensor], tests: Sequence[bytes]) -> str:
    """Of what is run: Roundwise's version, the network's operations and weights, calibration and test samples.

    A journal goes on only with these: files may change and keep their names.

    Args:
        tests: hashes of the test samples and of their labels or masks.
    """
    graph = captured.graph
    digest = hashlib.sha256(f"{version('roundwise')} {graph.operations} {graph.inputs}".encode())
    for part in tests:
        digest.update(part)
    for tensor in [*graph.constants.values(), *batches]:
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:12]


def _tell(study: str, path: Path, journal: Journal, keys: Sequence[str]) -> None:
    """What a journal has for these runs, and what it has of others."""
    if finished := sum(journal.get(key) is not None for key in keys):
        say(f"journal: {finished} of {number_of(len(keys), 'run')} finished before")
    if others := of_others(study, journal):
        say(
            f"journal: {number_of(others, 'run')} in {path} not used: of another network, other samples or labels, or "
            "another version of Roundwise"
        )


def _check_folders(data: Path, test: Path, testing: Dataset) -> None:
    """Whether calibration and test images are of the same classes, where the test images' folders count them.

    Raises:
        CalibrationError: a folder is missing in one of them.
    """
    if not testing.classes or not data.is_dir() or is_voc(data):
        return
    folders = {entry.name for entry in data.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if folders and (odd := folders.symmetric_difference(testing.classes)):
        raise CalibrationError(
            f"{data} has {len(folders)} folders, one per class, and {test} has {len(testing.classes)}; '{min(odd)}' is "
            "in one of them alone. Counting the folders would give wrong labels if a class is missing. Give --classes "
            "FILE with the folder names in the network's order of classes, one a line, or make the folders alike."
        )


def _places(data: Path | None, test: Path | None, imagenet: Path | None) -> tuple[Path, Path]:
    """Where calibration and test samples are."""
    if imagenet is not None:
        if data is not None or test is not None:
            raise click.UsageError("--imagenet stands for --data and --test; give either it or them.")
        data, test = imagenet / "train", imagenet / "val"
        for folder in (data, test):
            if not folder.is_dir():
                raise click.UsageError(f"--imagenet {imagenet}: there is no folder '{folder}'.")
    if data is None or test is None:
        raise click.UsageError("give --data and --test, or --imagenet.")
    return data, test


def _runnable(module: nn.Module, device: torch.device) -> Runnable:
    return Runnable("the network", lambda inputs: module(inputs.to(device)))


def _score(
    module: nn.Module, testing: Dataset, inputs: Iterable[Tensor], masks: Iterable[Tensor] | None, device: torch.device
) -> float:
    """Top-1 accuracy or mean IoU, in percent."""
    with sample_progress(len(testing)) as progress:
        measured = evaluate(
            _runnable(module, device),
            inputs,
            labels=testing.labels,
            masks=None if testing.masks is None else masks,
            progress=progress,
        )
    if measured.segmentation is not None:
        return 100 * measured.segmentation.mean_iou
    assert measured.accuracy is not None
    return 100 * measured.accuracy.top1
