"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, final

from roundwise.errors import InferenceError
from roundwise.runtimes.interface import Array, FileInput, OpenFile, Runtime

SILENT = 4
"""Log level at which ONNX Runtime prints fatal errors only. Errors that matter are raised as exceptions."""


@final
@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """ONNX Runtime; without arguments, a session as users create it by default.

    Args:
        optimize: whether ONNX Runtime may rewrite and fuse operations; without it, it takes the graph literally.
        entries: of the session's configuration, such as `{"session.disable_quant_qdq": "1"}`.
        threads: that compute one operation together; None leaves the number to ONNX Runtime.
    """

    optimize: bool = True
    entries: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None

    title: ClassVar[str] = "ONNX Runtime"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = "onnx"

    @property
    def version(self) -> str:
        return str(_package().__version__)

    def open(self, path: Path) -> OnnxFile:
        runtime = _package()
        options = runtime.SessionOptions()
        options.log_severity_level = SILENT
        if not self.optimize:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        try:
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base.
            if "NOT_IMPLEMENTED" in str(error):
                raise InferenceError(
                    f"{path} has an operation that ONNX Runtime {runtime.__version__} does not compute on the CPU in "
                    f"this dtype: {error}. It has no convolutions in float64, for example: quantize `model.float()`, "
                    "with samples in float32."
                ) from error
            raise InferenceError(
                f"{path} cannot be loaded by ONNX Runtime {runtime.__version__}: {error} Check that it is a complete "
                "ONNX file, with its data file beside it if it has one."
            ) from error
        return OnnxFile(path, session)


@final
class OnnxFile(OpenFile):
    """A file that ONNX Runtime has loaded."""

    def __init__(self, path: Path, session: Any) -> None:
        self._path, self._session = path, session

    @property
    def inputs(self) -> Sequence[str]:
        return [entry.name for entry in self._session.get_inputs()]

    @property
    def details(self) -> Sequence[FileInput]:
        return [
            FileInput(
                entry.name,
                _dtype(entry.type),
                tuple(size if isinstance(size, int) else size or "" for size in entry.shape),
            )
            for entry in self._session.get_inputs()
        ]

    @property
    def outputs(self) -> Sequence[str]:
        return [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        try:
            results: list[Array] = self._session.run(None, dict(inputs))
        except Exception as error:  # ONNX Runtime's exceptions have no common base.
            found = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in inputs.items())
            raise InferenceError(
                f"ONNX Runtime cannot run {self._path} on {found or 'no inputs'}: {error} Give what the network takes: "
                f"{', '.join(f'{one.name} {one.type} {one.shape}' for one in self._session.get_inputs())}."
            ) from error
        return results


def _dtype(onnx_type: str) -> str:
    """What NumPy calls a type such as `tensor(float)`."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _package() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InferenceError('ONNX Runtime is not installed here. Run: pip install "roundwise[onnx]"') from error
    package: ModuleType = onnxruntime
    return package
