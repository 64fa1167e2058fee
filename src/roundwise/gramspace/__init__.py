"""Solving a layer's rounding problem from second moments, without its samples."""

from roundwise.gramspace.descent import Choices, descend
from roundwise.gramspace.quadratic import Quadratic
from roundwise.gramspace.solution import WORK, Freedom, Search, Slope, solve
from roundwise.gramspace.tabu import walk

__all__ = ["WORK", "Choices", "Freedom", "Quadratic", "Search", "Slope", "descend", "solve", "walk"]
