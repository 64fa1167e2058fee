"""Whatever can be run on a batch of inputs: a network by its name, a .rw file, an .onnx file, a .pt2 program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roundwise.artifacts.model import load
from roundwise.data.labels import described
from roundwise.data.preprocessing import Preprocessing
from roundwise.errors import FileFormatError, InferenceError, ModelError, RoundwiseError
from roundwise.loading.models import load_model, move
from roundwise.loading.training import refuse_training_onnx, refuse_training_program
from roundwise.loading.weights import WeightSource
from roundwise.runtimes import Runtime, runtime_for


@final
@dataclass(frozen=True)
class Runnable:
    """A network to call with one batch of inputs.

    Attributes:
        name: as the user wrote it.
        preprocessing: how its own library prepares images, and where that is stated; None if nothing states it.
        notes: what the user must know, one sentence each.

    Raises:
        ModelError: the network fails on its inputs; the message has their shape, and the cause.
    """

    name: str
    function: Callable[[Tensor], Any]
    preprocessing: tuple[Preprocessing, str] | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, inputs: Tensor) -> Any:
        try:
            return self.function(inputs)
        except (Exception, SystemExit) as error:  # any code can run in here
            if isinstance(error, RoundwiseError) and not isinstance(error, InferenceError):
                raise
            raise ModelError(
                f"{self.name} fails on inputs {described(inputs)}: {type(error).__name__}: {error}. Give inputs that "
                "it accepts: see --size and --preprocess-as for images, and --batch-size if its batch size is fixed."
            ) from error


def takes_weights(spec: str) -> bool:
    """Whether weights are given beside this model, rather than inside its file."""
    return Path(spec).suffix.lower() not in (".rw", ".pt2") and runtime_for(Path(spec)) is None


def open_runnable(
    spec: str, source: WeightSource | None, device: torch.device, num_classes: int | None = None
) -> Runnable:
    """Load what `spec` names, ready to be called.

    Args:
        spec: a `.rw` file, a file that a runtime reads (`.onnx`), or whatever `load_model` takes.
        source, num_classes: for networks whose weights come from elsewhere; ignored for files that hold their own.
        device: where it runs; files of a runtime run on the CPU.

    Raises:
        RoundwiseError: it cannot be loaded.
    """
    path = Path(spec)
    runtime = runtime_for(path)
    if runtime is not None or path.suffix.lower() == ".rw":
        if not path.is_file():
            raise FileFormatError(f"{path}: there is no such file. Check the path.")
        if runtime is not None:
            return Runnable(spec, RuntimeNetwork(path, runtime()))
        return run_on(device, spec, load(path).to(device))
    if not takes_weights(spec):
        source, num_classes = None, None
    loaded = load_model(spec, source, num_classes)
    if not isinstance(loaded.network, nn.Module):
        refuse_training_program(spec, loaded.network)
    network = run_on(device, spec, move(loaded.network, device))
    return replace(network, preprocessing=loaded.preprocessing, notes=loaded.notes)


def run_on(device: torch.device, name: str, network: nn.Module | ExportedProgram) -> Runnable:
    """A network that is on a device, to be called with inputs that may be elsewhere."""
    module = network if isinstance(network, nn.Module) else network.module()
    return Runnable(name, lambda inputs: module(inputs.to(device)))


@final
class RuntimeNetwork:
    """A network file in a runtime on the CPU, called with a tensor like a module; several outputs come by their names.

    Raises:
        InferenceError: the runtime is not installed, or cannot load the file.
        ModelError: the file does not have one input, or is one for training.
    """

    def __init__(self, path: Path, runtime: Runtime) -> None:
        self.file = runtime.open(path)
        if path.suffix.lower() == ".onnx":
            refuse_training_onnx(path)
        if len(self.file.inputs) != 1:
            names = ", ".join(f"'{name}'" for name in self.file.inputs) or "none"
            raise ModelError(
                f"{path} takes {len(self.file.inputs)} inputs ({names}); evaluation gives a network one input. "
                "Export a network with one input."
            )
        (self.input,) = self.file.inputs
        # Our exports call an output "x_output" where the input is "x" already; networks compared with know it as "x".
        self.outputs = [self.input if name == f"{self.input}_output" else name for name in self.file.outputs]

    def __call__(self, inputs: Tensor) -> Any:
        array = np.ascontiguousarray(inputs.numpy())
        results = [torch.from_numpy(np.array(result)) for result in self.file.run({self.input: array})]
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))
