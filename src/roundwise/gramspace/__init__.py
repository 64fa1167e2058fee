"""Solving a layer's rounding problem from second moments, without its samples."""

from roundwise.gramspace.descent import Choices, descend
from roundwise.gramspace.quadratic import Quadratic
from roundwise.gramspace.solution import WORK, Follow, Freedom, Search, solve

__all__ = ["WORK", "Choices", "Follow", "Freedom", "Quadratic", "Search", "descend", "solve"]
