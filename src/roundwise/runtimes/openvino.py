"""OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, final

import numpy as np

from roundwise.errors import InferenceError
from roundwise.runtimes.interface import Array, FileInput, OpenFile, Runtime


@final
@dataclass(frozen=True)
class OpenVino(Runtime):
    """OpenVINO; float operations compute in float32, also where the processor has bfloat16.

    Args:
        threads: that compute one operation together; None leaves the number to OpenVINO.
    """

    threads: int | None = None

    title: ClassVar[str] = "OpenVINO"
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"

    @property
    def version(self) -> str:
        return str(_package().__version__).partition("-")[0]

    def open(self, path: Path) -> OpenVinoFile:
        package = _package()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        try:
            return OpenVinoFile(path, package.Core().compile_model(package.Core().read_model(path), "CPU", settings))
        except Exception as error:  # OpenVINO's exceptions have no common base.
            raise InferenceError(
                f"{path} cannot be loaded by OpenVINO {self.version}: {error} Check that it is complete; an .xml file "
                "needs the .bin file of the same name beside it."
            ) from error


@final
class OpenVinoFile(OpenFile):
    """A file that OpenVINO has loaded."""

    def __init__(self, path: Path, compiled: Any) -> None:
        self._path, self._compiled, self._request = path, compiled, compiled.create_infer_request()

    @property
    def inputs(self) -> Sequence[str]:
        return [entry.any_name for entry in self._compiled.inputs]

    @property
    def details(self) -> Sequence[FileInput]:
        return [
            FileInput(
                entry.any_name,
                np.dtype(entry.element_type.to_dtype()).name,
                tuple(size.get_length() if size.is_static else "" for size in entry.partial_shape),
            )
            for entry in self._compiled.inputs
        ]

    @property
    def outputs(self) -> Sequence[str]:
        return [entry.any_name for entry in self._compiled.outputs]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        try:
            results = self._request.infer(dict(inputs))
            return [np.array(results[entry]) for entry in self._compiled.outputs]
        except Exception as error:  # OpenVINO's exceptions have no common base.
            found = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in inputs.items())
            takes = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in self.details)
            raise InferenceError(
                f"OpenVINO cannot run {self._path} on {found or 'no inputs'}: {error} Give what the network takes: "
                f"{takes}."
            ) from error


def _package() -> ModuleType:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise InferenceError('OpenVINO is not installed here. Run: pip install "roundwise[openvino]"') from error
    package: ModuleType = openvino
    return package
