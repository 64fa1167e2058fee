"""Published tables, run again: each row of a table is a recipe, and a study says on which network and images."""

from roundwise.reproduction.adaround import ADAROUND
from roundwise.reproduction.study import Result, Row, Settings, Study, Table, page, run

PAPERS: dict[str, dict[str, Table]] = {"adaround": ADAROUND}

__all__ = ["PAPERS", "Result", "Row", "Settings", "Study", "Table", "page", "run"]
