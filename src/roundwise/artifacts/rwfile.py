"""The `.rw` file: a safetensors file whose metadata describes the network. No pickle, no code.

    tensors     float constants unchanged; codes and zero points packed to their bits: a 4-bit weight takes half a byte
    metadata    format      "roundwise"
                version     of this layout
                model       JSON: the graph's nodes, its inputs and outputs, which tensors are packed and how,
                            the recipe, the report, the versions of the software that made it
                sha256      of `model` and all tensors

Any safetensors reader can open it. The checksum detects damage by accident. It does not stop an attacker. So

1. a file is read within limits: a description of limited length and depth (`description.py`), and codes that take a
   small multiple of the file's size in memory;
2. a graph is made of names in a list, and of nothing that Python would run (`plain.py`);
3. it is run without numbers before it runs with them (`guard.py`), when it is loaded and when it is called.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roundwise.artifacts.codes import CODE_DTYPES
from roundwise.artifacts.description import LONGEST, from_text, to_text
from roundwise.artifacts.emit import packed_bits
from roundwise.artifacts.guard import Guard, Memory
from roundwise.artifacts.names import DAMAGED
from roundwise.artifacts.plain import dtype_name, dtype_named, graph_from_plain, graph_to_plain
from roundwise.artifacts.schema import DTYPES, UnsafeError
from roundwise.errors import FileFormatError
from roundwise.files import replacing
from roundwise.graph.graph import Graph
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report
from roundwise.wording import human_bytes, number_of, printable

VERSION = "2"
"""The version of the layout. Version 1 was that of Roundwise 0.1; its files name quantization operations of PyTorch."""

_PACKED_DTYPES = (*CODE_DTYPES, torch.int64)
"""The dtypes of codes and of zero points, in memory."""

_MOST_UNPACKED = 32
"""How much memory codes may take, as a multiple of the file's size. 2-bit codes take 4 times as much as in the file,
and 4-bit zero points 16 times, but those have scales beside them that take as much in memory as in the file."""

_LONGEST_HEADER = 4 * LONGEST
"""Bytes of the safetensors header, which has the description and an entry for each tensor."""

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
        if value.dtype not in DTYPES or value.layout is not torch.strided:
            raise FileFormatError(
                f"'{name}' is a tensor in {value.dtype} and {value.layout}, which a .rw file cannot hold. Save such a "
                "network with `torch.export.save(quantized.program, …)`."
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
    _check_readable(description["graph"], contents.graph.constants)
    text = to_text(description)
    metadata = {"format": "roundwise", "version": VERSION, "model": text, "sha256": _digest(text, tensors)}
    with replacing(path, FileFormatError, (SafetensorError,)) as temporary:
        save_file(tensors, temporary, metadata)


def _check_readable(description: dict[str, Any], constants: dict[str, Tensor]) -> None:
    """Raise if the file could not be read again."""
    try:
        Guard(graph_from_plain(description, dict(constants)), Memory(0, limit=1 << 62))
    except UnsafeError as error:
        raise FileFormatError(
            f"the network cannot be saved to a .rw file, because it could not be read again: {error}. Save it with "
            "`torch.export.save(quantized.program, …)`."
        ) from error


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
    _check_count(packed, bits, count)
    if bits == 0:
        return torch.zeros(shape, dtype=dtype)

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


def _check_count(packed: Tensor, bits: int, count: int) -> None:
    """Raise unless some bytes are this many codes."""
    if not 0 <= bits <= 16 or packed.dtype != torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise FileFormatError(
            f"{packed.numel()} bytes of {packed.dtype} are not {count} codes of {bits} bits. The file contradicts "
            "itself: get the original, or quantize the network again."
        )


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
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the file's own pages would change with the file, and a file that is cut would end the process.
            # Besides, PyTorch puts a copy at an address where sums are rounded in the same order as before saving.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a dict
            _check_truth_values(tensors)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error}. Check the path, and whether you may read it.") from error
    except SafetensorError as error:
        raise FileFormatError(
            f"{path} is not a complete Roundwise file: {printable(str(error))[:500]}. It is truncated, or has another "
            "format; get the original, or quantize again (`roundwise quantize … -o FILE`, or `quantized.save(FILE)` in "
            "Python)."
        ) from error
    except Exception as error:  # of a dtype that this PyTorch does not have, for example
        raise no_network(path, error) from error
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
    stored = path.stat().st_size
    try:
        return _rebuild(from_text(metadata["model"]), tensors, stored)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {printable(str(error))}") from error
    except Exception as error:  # a file can be wrong in any way
        raise no_network(path, error) from error


def no_network(path: Path, error: Exception) -> FileFormatError:
    """The exception for a file that is as it was written, and from which no network can be built."""
    if isinstance(error, UnsafeError):
        return FileFormatError(
            f"{path} describes a network that is not run: {printable(str(error))[:1000]}. If you trust it and it needs "
            "more memory, say how much with `rw.load(path, memory_limit=…)`; otherwise quantize the network again."
        )
    return FileFormatError(
        f"{path} describes no network that can run ({type(error).__name__}: {printable(str(error))[:500]}), and was "
        "not damaged later: what wrote it was wrong. Quantize the network again, and report it if Roundwise wrote this "
        "file."
    )


def _check_truth_values(tensors: dict[str, Tensor]) -> None:
    """Raise if a byte of a truth value is neither 0 nor 1: compiled code may do anything with such a value."""
    for name, value in tensors.items():
        if value.dtype is torch.bool and value.numel() and value.view(torch.uint8).max() > 1:
            raise UnsafeError(f"the tensor {name!r} has a truth value that is neither 0 nor 1")


def _check_header(path: Path) -> None:
    """Raise if a file states a header that is too long to be read safely."""
    if path.exists() and not path.is_file():
        raise FileFormatError(f"cannot read {path}: it is not a regular file. Give the name of a .rw file.")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except (OSError, ValueError) as error:  # a ValueError for a name with a zero byte
        raise FileFormatError(f"cannot read {path}: {error}. Check the path, and whether you may read it.") from error
    if _LONGEST_HEADER < length < path.stat().st_size:
        raise FileFormatError(
            f"{path} has a header of {human_bytes(length)}; at most {human_bytes(_LONGEST_HEADER)} are read. It is not "
            "a file that Roundwise wrote; get the original."
        )


def _other_version(path: Path, found: str | None) -> str:
    message = f"{path} has layout version {found!r}; this release reads version {VERSION!r} only."
    if found == "1":
        return (
            f"{message} Version '1' is that of Roundwise 0.1, whose files name operations that PyTorch is removing. "
            "Quantize the network again with this release."
        )
    return f"{message} Install a newer Roundwise."


def _rebuild(description: dict[str, Any], tensors: dict[str, Tensor], stored: int) -> Contents:
    _unpack_all(description["packed"], tensors, stored)
    return Contents(
        graph_from_plain(description["graph"], tensors),
        Report.from_dict(description["report"]),
        Recipe.from_dict(description["recipe"]),
        {str(name): str(version) for name, version in description["versions"].items()},
    )


def _unpack_all(packed: dict[str, Any], tensors: dict[str, Tensor], stored: int) -> None:
    """Replace packed codes by codes, if they do not take more memory than the file allows."""
    sizes: dict[str, tuple[int, list[int], torch.dtype]] = {}
    for name, how in packed.items():
        bits, shape, dtype = how["bits"], how["shape"], dtype_named(how["dtype"])
        whole = isinstance(shape, list) and all(type(number) is int for number in (bits, *shape))
        if name not in tensors or not whole or dtype not in _PACKED_DTYPES or min(shape, default=0) < 0:
            raise FileFormatError(
                f"{name!r} is said to hold codes of {bits!r} bits, of the shape {shape!r} and in {dtype}, which no "
                f"codes have. {DAMAGED}"
            )
        _check_count(tensors[name], bits, math.prod(shape))
        sizes[name] = bits, shape, dtype
    taken = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in sizes.values())
    if taken > _MOST_UNPACKED * stored:
        raise FileFormatError(
            f"its codes would take {human_bytes(taken)} in memory, more than {_MOST_UNPACKED} times the "
            f"{human_bytes(stored)} of the file. {DAMAGED}"
        )
    for name, how in sizes.items():
        tensors[name] = unpack(tensors[name], *how)
