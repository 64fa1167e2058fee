"""The `.rw` file: a safetensors file whose metadata describes the network. No pickle, no code.

    tensors     float constants unchanged; codes and zero points packed to their bits: a 4-bit weight takes half a byte
    metadata    format      "roundwise"
                version     of this layout
                model       JSON: the graph's nodes, its inputs and outputs, which tensors are packed and how,
                            the recipe, the report, the versions of the software that made it
                sha256      of `model` and all tensors

Any safetensors reader can open it. The checksum detects damage by accident. It does not stop an attacker; so
`artifacts/plain.py` runs nothing from a file but arithmetic on tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roundwise.artifacts.emit import packed_bits
from roundwise.artifacts.plain import dtype_name, dtype_named, graph_from_plain, graph_to_plain
from roundwise.errors import FileFormatError
from roundwise.files import replacing
from roundwise.graph.graph import Graph
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report
from roundwise.wording import number_of

VERSION = "2"
"""The version of the layout. Version 1 was that of Roundwise 0.1; its files name quantization operations of PyTorch."""

_CHUNK = 1 << 20
"""Codes that are packed at once: a multiple of 8, so that chunks end on whole bytes. More take more memory."""


@final
@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of a file."""

    graph: Graph
    report: Report
    recipe: Recipe
    versions: dict[str, str]


_NOT_IN_FILES = (torch.complex128, torch.complex32)
"""The dtypes of networks that safetensors does not know."""

# ------------------------------------------------------------------------------------------------------ writing


def write(contents: Contents, path: Path) -> None:
    """Write a file; it appears complete or not at all.

    Raises:
        FileFormatError: the file cannot be written, or the graph holds a value that a `.rw` file cannot store.
    """
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Any]] = {}
    bits = packed_bits(contents.graph)
    for name, value in contents.graph.constants.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"'{name}' is a piece of control flow ({type(value).__name__}), which a .rw file cannot hold. "
                "Save such a network with `torch.export.save(quantized.program, …)`."
            )
        if value.dtype in _NOT_IN_FILES:
            raise FileFormatError(
                f"'{name}' is of {dtype_name(value.dtype)}, which a .rw file cannot hold. Convert that tensor of the "
                "model to complex64, or save the network with `torch.export.save(quantized.program, …)`."
            )
        value = value.cpu()
        if name in bits:
            packed[name] = {"bits": bits[name], "dtype": dtype_name(value.dtype), "shape": list(value.shape)}
            value = pack(value, bits[name])
        tensors[name] = value.contiguous().clone()
    description = {
        "graph": graph_to_plain(contents.graph),
        "packed": packed,
        "recipe": contents.recipe.as_dict(),
        "report": contents.report.as_dict(),
        "versions": contents.versions,
    }
    graph_from_plain(description["graph"], tensors)  # raises if the file could not be read again
    text = json.dumps(description)
    metadata = {"format": "roundwise", "version": VERSION, "model": text, "sha256": _digest(text, tensors)}
    with replacing(path, FileFormatError, (SafetensorError,)) as temporary:
        save_file(tensors, temporary, metadata)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bytes: each code takes `bits` bits, in two's complement, lowest bit first.

    Example:
        >>> pack(torch.tensor([1, -1, 2], dtype=torch.int8), 4)
        tensor([241,   2], dtype=torch.uint8)
    """

    def pack_chunk(chunk: Tensor) -> Tensor:
        unsigned = (chunk.to(torch.int32).numpy() & (2**bits - 1)).astype("<u2").reshape(-1, 1)
        each = np.unpackbits(unsigned.view(np.uint8), axis=1, bitorder="little")[:, :bits]
        return torch.from_numpy(np.packbits(each, bitorder="little"))

    return torch.cat([pack_chunk(chunk) for chunk in codes.reshape(-1).split(_CHUNK)])


def unpack(packed: Tensor, bits: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The inverse of `pack`. Codes are signed if the dtype is int8 or int16 (int32 holds unsigned 16-bit codes).

    Raises:
        FileFormatError: the number of bytes does not match the number of codes.
    """
    count = math.prod(shape)
    if not 0 <= bits <= 16 or packed.dtype != torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise FileFormatError(
            f"{packed.numel()} bytes of {packed.dtype} are not {count} codes of {bits} bits. The file contradicts "
            "itself: get the original, or quantize the network again."
        )

    if bits == 0:  # an expanded tensor takes no memory, even if the file states a very large size
        return torch.zeros((), dtype=dtype).expand(shape)

    def unpack_chunk(start: int) -> Tensor:
        size = min(_CHUNK, count - start)
        part = packed[start * bits // 8 : -(-(start + size) * bits // 8)].numpy()
        each = np.zeros((size, 16), np.uint8)
        each[:, :bits] = np.unpackbits(part, count=size * bits, bitorder="little").reshape(size, bits)
        values = np.packbits(each, axis=1, bitorder="little").view("<u2").reshape(-1).astype(np.int32)
        if dtype in (torch.int8, torch.int16):
            values = np.where(values >= 2 ** (bits - 1), values - 2**bits, values)
        return torch.from_numpy(values).to(dtype)

    chunks = [unpack_chunk(start) for start in range(0, count, _CHUNK)]
    return torch.cat([torch.empty(0, dtype=dtype), *chunks]).reshape(shape)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Contents:
    """Read a file that `write` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, changed, of another layout version, or names an operation that
            is not arithmetic on tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error}. Check the path, and whether you may read it.") from error
    except SafetensorError as error:
        raise FileFormatError(
            f"{path} is not a complete Roundwise file: {error}. It is truncated, or has another format; get the "
            "original, or quantize again (`roundwise quantize … -o FILE`, or `quantized.save(FILE)` in Python)."
        ) from error
    if metadata.get("format") != "roundwise" or "model" not in metadata:
        raise FileFormatError(
            f"{path} holds {number_of(len(tensors), 'tensor')} but does not say what network they belong to. Give a "
            "file that `quantized.save(…)` or `roundwise quantize … -o FILE` wrote."
        )
    if metadata.get("version") != VERSION:
        raise FileFormatError(_other_version(path, metadata.get("version")))
    if metadata.get("sha256") != _digest(metadata["model"], tensors):
        raise FileFormatError(
            f"{path} was changed after it was written: its checksum does not match its content. Get the original again."
        )
    try:
        return _rebuild(json.loads(metadata["model"]), tensors)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except Exception as error:  # a file can be wrong in any way
        raise no_network(path, error) from error


def no_network(path: Path, error: Exception) -> FileFormatError:
    """The exception for a file that is as it was written, and from which no network can be built."""
    return FileFormatError(
        f"{path} describes no network that can run ({type(error).__name__}: {error}), and was not damaged later: "
        "what wrote it was wrong. Quantize the network again, and report it if Roundwise wrote this file."
    )


def _other_version(path: Path, found: str | None) -> str:
    message = f"{path} has layout version {found!r}; this release reads version {VERSION!r} only."
    if found == "1":
        return (
            f"{message} Version '1' is that of Roundwise 0.1, whose files name operations that PyTorch is removing. "
            "Quantize the network again with this release."
        )
    return f"{message} Install a newer Roundwise."


def _rebuild(description: dict[str, Any], tensors: dict[str, Tensor]) -> Contents:
    for name, how in description["packed"].items():
        tensors[name] = unpack(tensors[name], how["bits"], how["shape"], dtype_named(how["dtype"]))
    return Contents(
        graph_from_plain(description["graph"], tensors),
        Report.from_dict(description["report"]),
        Recipe.from_dict(description["recipe"]),
        {str(name): str(version) for name, version in description["versions"].items()},
    )
