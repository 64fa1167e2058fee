"""Run the rows of a table with several seeds, one run at a time, and write the results beside those of the paper."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import nn

from roundwise.api import quantize
from roundwise.artifacts.model import Model
from roundwise.engine.network import Network, capture
from roundwise.engine.rewriting import folded
from roundwise.engine.tasks import tasks_of_layers
from roundwise.errors import RecipeError
from roundwise.methods.rounding import Given
from roundwise.numerics.grid import Granularity, PerTensor
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Weights, granularity_name
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.reproduction.journal import Journal, Outcome
from roundwise.reproduction.taskloss import (
    CROSS_ENTROPY,
    TABU,
    GaussNewton,
    PredictedClasses,
    TaskHessian,
    solve_qubo,
    task_hessian,
)
from roundwise.statistics import Nothing
from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class Settings:
    """What a user can change about a table; the defaults are those of the paper.

    Args:
        bits: of the weights.
        granularity: what shares a scale.
        iterations: of methods that learn by minibatches; in the paper 10,000, and 20,000 in Table 7.
        seeds: the number of runs of a row whose result depends on the seed.
        first_layer_iterations: instead of `iterations` in rows that quantize the first layer alone, which take less
            time; None: the same number.

    Raises:
        RecipeError: a number is out of range.
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    iterations: int = 10_000
    seeds: int = 5
    first_layer_iterations: int | None = None

    def __post_init__(self) -> None:
        self.weights  # noqa: B018  raises RecipeError
        for name in ("iterations", "seeds", "first_layer_iterations"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and (name, value) != ("first_layer_iterations", None):
                raise RecipeError(f"{name}={value!r}: it must be a whole number, 1 or more.")

    @property
    def weights(self) -> Weights:
        """How the weights of every layer are quantized."""
        return Weights(bits=self.bits, granularity=self.granularity)


@final
@dataclass(frozen=True)
class TaskLoss:
    """Round the first layer by the Hessian of the task loss (Eq. 13), instead of the rounding of the recipe.

    The Hessian is the Gauss-Newton one, which is exact for ReLU networks. Calibration samples have no labels, so the
    classes that the float network predicts are the labels.

    Args:
        search: how the binary problem is solved.
        samples: the Hessian is a mean over at most this many calibration samples.
    """

    search: Literal["cross-entropy-method", "tabu"] = "cross-entropy-method"
    samples: int = 256


FEW = 3
"""The most runs of a row for which the paper has no figure, or a figure without deviation."""


@final
@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of the row.
        published: the figure of the paper, in percent, as text; empty if there is none.
        recipe: how the network is quantized.
        first_layer_only: whether all other layers stay in float.
        runs: the number of seeds. None takes the number of the settings if the paper gives a deviation, otherwise at
            most `FEW` of them. 1 is for rows that do not depend on the seed.
        best: the paper's figure for the best run; if there is one, the page also has the best of ours.
        task_loss: if given, it rounds the first layer instead of the recipe.
    """

    name: str
    published: str
    recipe: Recipe
    first_layer_only: bool = False
    runs: int | None = 1
    best: str = ""
    task_loss: TaskLoss | None = None

    def count(self, settings: Settings) -> int:
        """The number of runs."""
        if self.runs is not None:
            return self.runs
        return settings.seeds if "±" in self.published else min(settings.seeds, FEW)


@final
@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        title: what the table compares.
        rows: gives the rows for settings.
        remark: how our table differs from that of the paper, or empty.
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
    """A network, and the data that it is calibrated and measured on.

    Attributes:
        model: the float network.
        calibration: samples in one tensor, or a list of batches.
        score: gives the figure of a network in percent: top-1 accuracy or mean IoU.
        name: of network and data, for the page and the journal.
        graph: the captured model; None captures it when it is first needed.
    """

    model: nn.Module
    calibration: torch.Tensor | Sequence[torch.Tensor]
    score: Callable[[nn.Module], float]
    name: str
    graph: Network | None = None

    def samples(self, count: int) -> torch.Tensor:
        """The first `count` calibration samples, or all if there are fewer."""
        if isinstance(self.calibration, torch.Tensor):
            return self.calibration[:count]
        return torch.cat(list(self.calibration))[:count]

    @functools.cached_property
    def first_layer(self) -> str:
        """The name of the first layer that can be quantized, in the order in which layers run.

        Raises:
            ModelError: there is no layer that can be quantized.
        """
        return tasks_of_layers(folded(self.captured.graph), Quantize())[0].layer.name

    @functools.cached_property
    def captured(self) -> Network:
        """The captured network, the same for all rows."""
        return self.graph or capture(self.model, self.samples(2))

    @functools.cached_property
    def hessians(self) -> dict[int, TaskHessian]:
        """Hessians of the task loss, by their number of samples; kept, since each takes minutes."""
        return {}


@final
@dataclass(frozen=True)
class Result:
    """The scores of a row's runs, in the order of the seeds, and the seconds that each run took to quantize."""

    row: Row
    scores: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """The sample standard deviation of the scores; 0 for a single run."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    def __str__(self) -> str:
        if len(self.scores) == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


def runs(table: Table, settings: Settings) -> Iterator[tuple[Row, int]]:
    """All runs of a table: each row with each of its seeds."""
    for row in table.rows(settings):
        for seed in range(row.count(settings)):
            yield row, seed


def run(
    study: Study,
    table: Table,
    settings: Settings,
    journal: Journal,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Run all rows of a table. Runs that the journal has are not repeated.

    Raises:
        RoundwiseError: as `quantize`.
    """
    for row, seed in runs(table, settings):
        key = run_key(study.name, row, seed)
        if journal.get(key) is None:
            outcome = run_once(study, row, seed)
            journal.add(key, outcome)
            tell(f"{row.name}, seed {seed}: {outcome.score:.2f} % in {outcome.seconds:.0f} s")
    return finished(study.name, table, settings, journal)


def finished(study: str, table: Table, settings: Settings, journal: Journal) -> list[Result]:
    """The results of a table that a journal has. A row without a finished run is left out."""
    results = []
    for row in table.rows(settings):
        known = [journal.get(run_key(study, row, seed)) for seed in range(row.count(settings))]
        outcomes = [outcome for outcome in known if outcome is not None]
        if outcomes:
            results.append(Result(row, tuple(o.score for o in outcomes), tuple(o.seconds for o in outcomes)))
    return results


def run_once(study: Study, row: Row, seed: int) -> Outcome:
    """Run one row with one seed."""
    study.captured  # noqa: B018  before the clock starts, since all rows share it
    begin = time.perf_counter()
    quantized = quantize_row(study, row, seed)
    seconds = time.perf_counter() - begin
    return Outcome(study.score(quantized), seconds)


def quantize_row(study: Study, row: Row, seed: int) -> Model:
    """Quantize the network as one row and seed say.

    Methods that do not look at samples get two of them, which saves time and gives the same codes.
    """
    recipe = dataclasses.replace(row.recipe, seed=seed)
    if row.first_layer_only:
        weights = recipe.stage(Quantize).weights
        if row.task_loss is not None:
            weights = dataclasses.replace(weights, rounding=_by_task_loss(study, row.task_loss, weights, seed))
        recipe = recipe.with_settings(Quantize, overrides={"*": None, study.first_layer: weights})
    return quantize(study.captured, study.calibration if _looks_at_samples(recipe) else study.samples(2), recipe)


def _by_task_loss(study: Study, by: TaskLoss, weights: Weights, seed: int) -> Given:
    hessian = study.hessians.get(by.samples)
    if hessian is None:
        samples, layer = study.samples(by.samples), study.first_layer
        # No limit: for large layers this table takes hours, as it did in the paper.
        hessian = task_hessian(
            study.captured, layer, samples, PredictedClasses(), curvature=GaussNewton(), limit=sys.maxsize
        )
        study.hessians[by.samples] = hessian
    search = TABU if by.search == "tabu" else CROSS_ENTROPY
    return Given(solve_qubo(hessian, hessian.grid(weights), search, seed=seed))


def _looks_at_samples(recipe: Recipe) -> bool:
    stage = recipe.stage(Quantize)
    methods = (stage.rounding, stage.weights.rounding, stage.weights.ranges, stage.correction)
    needs = any(it is not None and it.needs is not Nothing for it in methods)
    rewrites = recipe.stage(Rewrite).methods_before(stage)
    return needs or stage.activations is not None or any(one.measures_moments for one in rewrites)


def run_key(study: str, row: Row, seed: int) -> str:
    """The key of a run in the journal: the name of the study, and all settings."""
    data: dict[str, Any] = {
        "study": study,
        "recipe": dataclasses.replace(row.recipe, seed=seed).as_dict(),
        "first_layer_only": row.first_layer_only,
    }
    if row.task_loss is not None:
        data["task_loss"] = dataclasses.asdict(row.task_loss)
    return json.dumps(data, sort_keys=True)


def of_others(study: str, journal: Journal) -> int:
    """The number of runs in a journal that belong to other studies."""
    return sum(f'"study": {json.dumps(study)}' not in key for key in journal)


def page(
    study: Study, table: Table, settings: Settings, results: Sequence[Result], command: str, float_score: float
) -> str:
    """The page of a table in Markdown: the command, the hardware, the time, the figures of the paper and ours."""
    total = sum(second for result in results for second in result.seconds)
    lines = [
        f"# {table.title}",
        "",
        f"    {command}",
        "",
        f"{study.name}; {settings.bits}-bit weights, {granularity_name(settings.granularity)}; minibatch methods with "
        f"{_iterations(settings)}; up to {number_of(settings.seeds, 'seed')} where there is chance. "
        f"{_machine(study.model)}, {number_of(torch.get_num_threads(), 'thread')}, PyTorch {torch.__version__}; "
        f"{total:.0f} s for all quantizations together.",
        "",
        f"| row | paper ({table.paper}) | ours | runs | s per run |",
        "|---|---|---|---|---|",
        f"| float | {table.published_float} | {float_score:.2f} | 1 | |",
    ]
    for r in results:
        seconds = statistics.median(r.seconds)
        lines.append(f"| {r.row.name} | {r.row.published} | {r} | {len(r.scores)} | {seconds:.1f} |")
        if r.row.best:
            lines.append(f"| {r.row.name} (best) | {r.row.best} | {max(r.scores):.2f} | {len(r.scores)} | |")
    if table.remark:
        lines += ["", table.remark]
    return "\n".join(lines) + "\n"


def _iterations(settings: Settings) -> str:
    first = settings.first_layer_iterations
    return f"{settings.iterations:,} iterations" + (f" ({first:,} for the first layer alone)" if first else "")


def _machine(model: nn.Module) -> str:
    """The accelerator that holds the model, if any; the name of the processor, and its number of cores."""
    cores = number_of(os.cpu_count() or 1, "core")
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    on = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    accelerator = f"{torch.cuda.get_device_name(on)}, " if on.type == "cuda" else ""
    return f"{accelerator}{name}, {cores}"
