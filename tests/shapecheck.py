"""The type checker of the test runs: it checks functions and dataclasses whose annotations state shapes, and no others.

`--jaxtyping-packages` in pyproject.toml puts it on every function of the packages listed there. Settings are left
alone: a wrong one is a `RecipeError`, which has tests of its own.
"""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype

F = TypeVar("F", bound=Callable[..., object])


def check(function: F) -> F:
    """`beartype` for a function with a `Float[Tensor, "rows cols"]` among its annotations."""
    states_shapes = any("[Tensor, " in str(annotation) for annotation in function.__annotations__.values())
    return beartype(function) if states_shapes else function
