"""Run the rows of a table over seeds, one at a time, and write down what came out beside what the paper says.

A finished run is a line in a journal, so that a table of hours that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from roundwise.errors import FileFormatError, RecipeError
from roundwise.graph.capture import capture
from roundwise.graph.patterns import find_layers
from roundwise.grid import Granularity, PerTensor
from roundwise.pipeline import quantize, rewrite
from roundwise.recipe import Recipe, Weights, granularity_name


@final
@dataclass(frozen=True)
class Settings:
    """What a user may change about a table; the defaults are the paper's.

    Args:
        bits: of the weights.
        granularity: what shares a scale.
        iterations: of methods that learn by minibatches; 20,000 in the paper's Table 7, else 10,000.
        seeds: how often a row with chance in it is run.

    Raises:
        RecipeError: a number is out of range.
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    iterations: int = 10_000
    seeds: int = 5

    def __post_init__(self) -> None:
        Weights(bits=self.bits, granularity=self.granularity)  # raises
        for name in ("iterations", "seeds"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RecipeError(f"{name}={value!r}: it must be a whole number, 1 or more.")

    @property
    def weights(self) -> Weights:
        """The weights of every quantized layer."""
        return Weights(bits=self.bits, granularity=self.granularity)


@final
@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: the paper's, or ours where it says so.
        published: the paper's figure, in percent, as text; empty where there is none.
        recipe: what to do.
        first_layer_only: all other layers stay in float.
        runs: how many seeds; None takes the settings', 1 is for what has no chance in it.
    """

    name: str
    published: str
    recipe: Recipe
    first_layer_only: bool = False
    runs: int | None = 1


@final
@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        title: what it compares.
        rows: from settings to its lines.
        remark: where ours differs from the paper's, or empty.
        paper: the network and data of the paper's figures.
        published_float: the paper's figure for the float network.
    """

    title: str
    rows: Callable[[Settings], Sequence[Row]]
    remark: str = ""
    paper: str = "ResNet-18, ImageNet"
    published_float: str = "69.68"


@final
@dataclass(frozen=True, eq=False)
class Study:
    """A network and what it is measured on.

    Attributes:
        model: in float.
        calibration: as `quantize` takes it.
        score: from a network to its figure in percent: top-1 accuracy, mean IoU.
        name: of network and data, for the page and the journal.
    """

    model: nn.Module
    calibration: Any
    score: Callable[[nn.Module], float]
    name: str


@final
@dataclass(frozen=True)
class Result:
    """A row with the scores of its runs, in the order of their seeds, and the seconds that each took to quantize."""

    row: Row
    scores: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the scores."""
        return statistics.fmean(self.scores)

    def __str__(self) -> str:
        if len(self.scores) == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {statistics.stdev(self.scores):.2f}"


def run(
    study: Study,
    table: Table,
    settings: Settings,
    *,
    journal: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """All rows of a table; what the journal has already is not run again.

    Raises:
        FileFormatError: the journal cannot be read as one.
        RoundwiseError: as `quantize`.
    """
    known = _read(journal)
    results = []
    for row in table.rows(settings):
        scores, seconds = [], []
        for seed in range(settings.seeds if row.runs is None else row.runs):
            recipe = dataclasses.replace(row.recipe, seed=seed)
            key = _key(study, row, recipe)
            if key not in known:
                known[key] = _run_once(study, row, recipe)
                _append(journal, key, known[key])
                tell(f"{row.name}, seed {seed}: {known[key][0]:.2f} % in {known[key][1]:.0f} s")
            scores.append(known[key][0])
            seconds.append(known[key][1])
        results.append(Result(row, tuple(scores), tuple(seconds)))
    return results


def page(
    study: Study, table: Table, settings: Settings, results: Sequence[Result], command: str, float_score: float
) -> str:
    """A table's page as Markdown: the command, the hardware, the time, the paper's figures and ours."""
    total = sum(second for result in results for second in result.seconds)
    lines = [
        f"# {table.title}",
        "",
        f"    {command}",
        "",
        f"{study.name}; {settings.bits}-bit weights, {granularity_name(settings.granularity)}; minibatch methods with "
        f"{settings.iterations:,} iterations; {settings.seeds} seeds where there is chance. "
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, PyTorch "
        f"{torch.__version__}; {total:.0f} s for all quantizations together.",
        "",
        f"| row | paper ({table.paper}) | ours | runs | s per run |",
        "|---|---|---|---|---|",
        f"| float | {table.published_float} | {float_score:.2f} | 1 | |",
    ]
    lines += [
        f"| {r.row.name} | {r.row.published} | {r} | {len(r.scores)} | {statistics.median(r.seconds):.1f} |"
        for r in results
    ]
    if table.remark:
        lines += ["", table.remark]
    return "\n".join(lines) + "\n"


def _run_once(study: Study, row: Row, recipe: Recipe) -> tuple[float, float]:
    begin = time.perf_counter()
    if row.first_layer_only:
        recipe = dataclasses.replace(recipe, overrides={"*": None, first_layer(study): recipe.weights})
    quantized = quantize(study.model, study.calibration, recipe)
    seconds = time.perf_counter() - begin
    return study.score(quantized), seconds


def first_layer(study: Study) -> str:
    """The name of the first layer that can be quantized, in the order in which layers run."""
    example = next(iter(study.calibration.split(2) if hasattr(study.calibration, "split") else study.calibration))
    return find_layers(rewrite(capture(study.model, (example[:2],), {})))[0].name


def _key(study: Study, row: Row, recipe: Recipe) -> str:
    data: Mapping[str, Any] = {
        "study": study.name,
        "recipe": recipe.as_dict(),
        "first_layer_only": row.first_layer_only,
    }
    return json.dumps(data, sort_keys=True)


def _read(journal: Path | None) -> dict[str, tuple[float, float]]:
    if journal is None or not journal.is_file():
        return {}
    try:
        records: Iterable[dict[str, Any]] = [json.loads(line) for line in journal.read_text().splitlines() if line]
        return {record["run"]: (float(record["score"]), float(record["seconds"])) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{journal} is no journal of a reproduction ({type(error).__name__}: {error}). Give another name or remove "
            "the file."
        ) from error


def _append(journal: Path | None, key: str, outcome: tuple[float, float]) -> None:
    if journal is not None:
        with journal.open("a") as file:
            file.write(json.dumps({"run": key, "score": outcome[0], "seconds": outcome[1]}) + "\n")
