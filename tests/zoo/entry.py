"""What the zoo knows of a network: how it is built, its inputs, and which steps are refused, with which error."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roundwise.errors import RoundwiseError
from roundwise.loading.vision import import_collection

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""`(args, kwargs)` of a call."""


@dataclass(frozen=True)
class Refusal:
    """The error that a step must end with.

    Attributes:
        kind: its type.
        facts: names and numbers that its message must hold.
    """

    kind: type[RoundwiseError]
    facts: tuple[str | int, ...]


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        name: unique among those of its source.
        source: the package that it comes from; "plain" for PyTorch alone.
        build: makes the module, with random weights.
        inputs: `(args, kwargs)` with this number of samples.
        refused: the steps that the library refuses for this network. A step that is not listed must pass.
    """

    name: str
    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Call]
    refused: Mapping[str, Refusal] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The module in evaluation mode, the same each time."""
        torch.manual_seed(0)
        return randomize(self.build()).eval()

    def samples(self, count: int, seed: int = 1) -> Call:
        """Inputs, the same each time."""
        torch.manual_seed(seed)
        return self.inputs(count)


def package(name: str) -> Any:
    """A package that networks come from.

    The others import torchvision, which may need help on a machine without a GPU: `import_collection` gives it.
    """
    models = import_collection("torchvision")
    return models if name == "torchvision" else importlib.import_module(name)


def randomize(model: nn.Module) -> nn.Module:
    """Give batch-norms and biases numbers such as training leaves; a new network has zeros and ones."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.weight, 0.8, 1.2),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.uniform_(-0.1, 0.1)
    return model


def with_signal(model: nn.Module) -> nn.Module:
    """Give layers weights that pass a signal on.

    Some packages start the last layer, or the scale of a branch, at or near zero. The outputs then hardly depend on the
    inputs, and are the same whatever a step does to the network.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                kind = "relu" if isinstance(module, nn.Conv2d) else "linear"
                nn.init.kaiming_normal_(module.weight, nonlinearity=kind)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.endswith("bias") and float(parameter.abs().max()) < 0.01:
                parameter.uniform_(0.5, 1.0)
    return model


def images(size: int = 32, channels: int = 3) -> Callable[[int], Call]:
    """Inputs of a network that takes images."""
    return lambda count: ((torch.randn(count, channels, size, size),), {})


def numbers(*shape: int) -> Callable[[int], Call]:
    """Inputs of a network that takes one tensor of real numbers of this shape for each sample."""
    return lambda count: ((torch.randn(count, *shape),), {})


def tokens(length: int = 12, vocabulary: int = 50, *, mask: bool = True) -> Callable[[int], Call]:
    """Inputs of a language model by name, the last of them padding."""

    def make(count: int) -> Call:
        kwargs: dict[str, Tensor] = {"input_ids": torch.randint(1, vocabulary, (count, length))}
        if mask:
            kwargs["attention_mask"] = (torch.arange(length) < length - 3).long().repeat(count, 1)
        return (), kwargs

    return make
