"""Run the rows of a table over seeds, one at a time, and write down what came out beside what the paper says."""

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
from roundwise.engine.planning import plan_layers
from roundwise.engine.rewriting import folded
from roundwise.errors import RecipeError
from roundwise.methods.rounding import Given
from roundwise.numerics.grid import Granularity, PerTensor
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Weights, granularity_name
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.reproduction.journal import Journal, Outcome
from roundwise.reproduction.taskloss import (
    GaussNewton,
    PredictedClasses,
    TaskHessian,
    solve_qubo_cem,
    solve_qubo_tabu,
    task_hessian,
)
from roundwise.statistics import Nothing
from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class Settings:
    """What a user may change about a table; the defaults are the paper's.

    Args:
        bits: of the weights.
        granularity: what shares a scale.
        iterations: of methods that learn by minibatches; 20,000 in the paper's Table 7, else 10,000.
        first_layer_iterations: of the same in rows that quantize the first layer alone, which cost less; None: as many.
        seeds: how often a row with chance in it is run.

    Raises:
        RecipeError: a number is out of range.
    """

    bits: int = 4
    granularity: Granularity = PerTensor()
    iterations: int = 10_000
    seeds: int = 5
    first_layer_iterations: int | None = None

    def __post_init__(self) -> None:
        Weights(bits=self.bits, granularity=self.granularity)  # raises
        counts = {name: getattr(self, name) for name in ("iterations", "seeds")}
        if self.first_layer_iterations is not None:
            counts["first_layer_iterations"] = self.first_layer_iterations
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise RecipeError(f"{name}={value!r}: it must be a whole number, 1 or more.")

    @property
    def weights(self) -> Weights:
        """The weights of every quantized layer."""
        return Weights(bits=self.bits, granularity=self.granularity)


@final
@dataclass(frozen=True)
class TaskLoss:
    """The first layer rounded by the Hessian of the task loss (Eq. 13), in place of the recipe's rounding.

    The Hessian is the Gauss-Newton one, which for ReLU networks is the exact one, with the float network's own classes
    as labels: calibration samples have none.

    Args:
        search: how the binary problem is solved.
        samples: calibration samples that the Hessian is a mean over, at most.
    """

    search: Literal["cross-entropy-method", "tabu"] = "cross-entropy-method"
    samples: int = 256


FEW = 3
"""Seeds of a row with chance in it that the paper does not have, or gives no deviation of."""


@final
@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: the paper's, or ours where it says so.
        published: the paper's figure, in percent, as text; empty where there is none.
        recipe: what to do.
        first_layer_only: all other layers stay in float.
        runs: how many seeds; None takes the settings' where the paper has a deviation to compare with, else at most
            `FEW` of them; 1 is for what has no chance in it.
        best: the paper's figure for the best of the runs; where there is one, the page has ours too.
        task_loss: rounds the first layer instead of the recipe.
    """

    name: str
    published: str
    recipe: Recipe
    first_layer_only: bool = False
    runs: int | None = 1
    best: str = ""
    task_loss: TaskLoss | None = None

    def count(self, settings: Settings) -> int:
        """How often it is run."""
        if self.runs is not None:
            return self.runs
        return settings.seeds if "±" in self.published else min(settings.seeds, FEW)


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
        calibration: samples in one tensor, or a list of batches.
        score: from a network to its figure in percent: top-1 accuracy, mean IoU.
        name: of network and data, for the page and the journal.
        graph: the model, captured already; None: captured when it is first wanted.
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
            ModelError: there is none.
        """
        return plan_layers(folded(self.captured.graph), Quantize())[0].layer.name

    @functools.cached_property
    def captured(self) -> Network:
        """The network, captured once for all rows."""
        return self.graph or capture(self.model, self.samples(2))

    @functools.cached_property
    def hessians(self) -> dict[int, TaskHessian]:
        """Of the task loss by the first layer's weights; by the number of samples. They take minutes: kept."""
        return {}


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

    @property
    def deviation(self) -> float:
        """Of the scores, from sample to sample; 0 of one alone."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    def __str__(self) -> str:
        if len(self.scores) == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


def runs(table: Table, settings: Settings) -> Iterator[tuple[Row, int]]:
    """Every row with every seed that it is run with."""
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
    """All rows of a table; what the journal has already is not run again.

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
    """What a journal has of a table; a row of which no run is finished is left out."""
    results = []
    for row in table.rows(settings):
        known = [journal.get(run_key(study, one, seed)) for one, seed in runs(table, settings) if one.name == row.name]
        outcomes = [outcome for outcome in known if outcome is not None]
        if outcomes:
            results.append(Result(row, tuple(o.score for o in outcomes), tuple(o.seconds for o in outcomes)))
    return results


def run_once(study: Study, row: Row, seed: int) -> Outcome:
    """One row with one seed."""
    study.captured  # noqa: B018  made before the clock runs, since it serves all rows
    begin = time.perf_counter()
    quantized = quantize_row(study, row, seed)
    seconds = time.perf_counter() - begin
    return Outcome(study.score(quantized), seconds)


def quantize_row(study: Study, row: Row, seed: int) -> Model:
    """The network of one row and seed.

    Where nothing looks at the samples, two of them do as well as all: the codes are the same.
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
        # Whoever asks for this table knows that it takes hours for large layers, as it did the paper.
        hessian = task_hessian(
            study.captured, layer, samples, PredictedClasses(), curvature=GaussNewton(), limit=sys.maxsize
        )
        study.hessians[by.samples] = hessian
    search = solve_qubo_tabu if by.search == "tabu" else solve_qubo_cem
    return Given(search(hessian, hessian.grid(weights), seed=seed))


def _looks_at_samples(recipe: Recipe) -> bool:
    stage = recipe.stage(Quantize)
    methods = (stage.rounding, stage.weights.rounding, stage.weights.ranges, stage.correction)
    needs = any(it is not None and it.needs is not Nothing for it in methods)
    rewrites = recipe.stage(Rewrite).methods_before(stage)
    return needs or stage.activations is not None or any(one.measures_moments for one in rewrites)


def run_key(study: str, row: Row, seed: int) -> str:
    """What tells one run from another: the name of the study, and all settings."""
    data: dict[str, Any] = {
        "study": study,
        "recipe": dataclasses.replace(row.recipe, seed=seed).as_dict(),
        "first_layer_only": row.first_layer_only,
    }
    if row.task_loss is not None:
        data["task_loss"] = dataclasses.asdict(row.task_loss)
    return json.dumps(data, sort_keys=True)


def of_others(study: str, journal: Journal) -> int:
    """How many runs in a journal are of other studies."""
    return sum(f'"study": {json.dumps(study)}' not in key for key in journal)


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
    """The accelerator where the model lies on one; the processor, as the system names it, and how many cores it has."""
    cores = number_of(os.cpu_count() or 1, "core")
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    on = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    accelerator = f"{torch.cuda.get_device_name(on)}, " if on.type == "cuda" else ""
    return f"{accelerator}{name}, {cores}"
