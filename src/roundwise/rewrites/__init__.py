"""Rewrites: float graph to float graph, the same outputs. One file per method, one line here."""

from collections.abc import Callable

from roundwise.graph.graph import Graph
from roundwise.rewrites.fold_batchnorm import fold_batchnorm

REWRITES: dict[str, Callable[[Graph], Graph]] = {
    "fold-batchnorm": fold_batchnorm,
}

__all__ = ["REWRITES", "fold_batchnorm"]
