"""Run published tables again: each row of a table is a recipe, and a study gives the network and the images."""

from roundwise.reproduction.adaround import ADAROUND
from roundwise.reproduction.journal import Journal, Outcome
from roundwise.reproduction.study import (
    Result,
    Row,
    Settings,
    Study,
    Table,
    TaskLoss,
    finished,
    of_others,
    page,
    quantize_row,
    run,
    run_key,
    run_once,
    runs,
)

PAPERS: dict[str, dict[str, Table]] = {"adaround": ADAROUND}

__all__ = [
    "PAPERS",
    "Journal",
    "Outcome",
    "Result",
    "Row",
    "Settings",
    "Study",
    "Table",
    "TaskLoss",
    "finished",
    "of_others",
    "page",
    "quantize_row",
    "run",
    "run_key",
    "run_once",
    "runs",
]
