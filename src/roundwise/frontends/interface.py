"""What a front end must offer: everything that the library asks about a model before it has a graph of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch

from roundwise.graph.graph import Graph
from roundwise.graph.sizes import Dynamic


@final
@dataclass(frozen=True)
class Signature:
    """What a model's call takes.

    Attributes:
        required: names of the parameters that have no default.
        names: names of all parameters, in order.
        variadic: whether it takes any number of positional arguments.
        any_names: whether it takes arguments of any further names.
        batch: the number of samples in a batch, if the model takes only one number; else None.
        keyword_only: names of the parameters that are given by name only.
        defaults: of the parameters that have one, by name.
    """

    required: tuple[str, ...]
    names: tuple[str, ...]
    variadic: bool = False
    any_names: bool = False
    batch: int | None = None
    keyword_only: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Facts:
    """What is known of a model without running it.

    Attributes:
        signature: what its call takes.
        device: of its first tensor; the CPU if it has none.
        dtype: of its first parameter or buffer in floating point; float32 if it has none.
        size: bytes of the parameters and floating-point buffers; a shared tensor counts once.
    """

    signature: Signature
    device: torch.device
    dtype: torch.dtype
    size: int


class Frontend(ABC):
    """Reads models of one kind, and makes a `Graph` of them.

    A front end keeps nothing between calls, and leaves the model as it was.

    Attributes:
        reads: the kinds of models that it accepts, for messages: "an nn.Module".
    """

    reads: ClassVar[str]

    @abstractmethod
    def accepts(self, model: object) -> bool:
        """Whether the model is of a kind that this front end reads. Whether it can be read, `graph` finds out."""

    @abstractmethod
    def facts(self, model: Any) -> Facts:
        """Look at a model without running it.

        Raises:
            ModelError: nothing can be made of it, whatever the samples.
        """

    @abstractmethod
    def graph(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic | None = None) -> Graph:
        """Turn a model into a graph that computes what the model computes in evaluation.

        Args:
            model: of a kind that is accepted.
            args, kwargs: an example of its inputs, with at least 2 samples along the first dimension of every tensor.
            dynamic: the dimensions of inputs, besides the batch, that may have other sizes than in the example.

        Returns:
            A graph whose batch size is free, unless the model itself fixes it. Batch-norm and dropout are operations
            of their own wherever the model has them, and `Graph.training` says what else training needs. The graph's
            tensors may be the model's own.

        Raises:
            ModelError: the model has no values for its parameters, or they are on several devices.
            CalibrationError: the model does not run on the example.
            CaptureError: the model runs, but no graph computes the same; says where in its code and what to do.
            RecipeError: the inputs have no such dimensions as `dynamic` names.
        """
