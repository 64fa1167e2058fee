"""Names of a file that become names in Python code.

PyTorch runs a graph as Python code, in which a tensor is `self.part.part` and an input is a variable. A name that means
something else there than in the file would make the code run another network than the one that was checked:

- Python brings identifiers into the form NFKC: it reads the full-width letter U+FF57 as `w`. So names must be in that
  form.
- A tensor `a.data` would replace the numbers of the tensor `a`. So no name of a tensor begins with another one.
- `inf` and `torch` have a meaning in the code that PyTorch writes. So no argument of the network has such a name.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Collection
from typing import Any

from torch import fx, nn

from roundwise.errors import FileFormatError
from roundwise.graph.graph import RESERVED

DAMAGED = "The file contradicts itself: get the original, or quantize the network again."

MOST_PARTS = 64
"""Parts of a tensor's name: modules within modules. Networks have some ten."""

_MODULES = (1000, 2)
"""Modules that a network may have, and for each of its tensors. PyTorch takes some 3 KiB for each."""

_MODULE_NAME = re.compile(r"[\w \-+:/,@=]+")  # what a ModuleDict may be keyed with and cannot end a string

_OWN = frozenset(name for name in dir(fx.GraphModule(nn.Module(), fx.Graph())) if name.startswith("_")) | {
    "_in_spec",
    "_out_spec",
}
"""What a module with code keeps under names of its own."""


def identifier(name: Any) -> str:
    """Check a name that will appear in Python code, and return it.

    Raises:
        FileFormatError: Python code cannot have this name, or reads it as another one.
    """
    if not isinstance(name, str) or not _is_identifier(name) or name == "self":
        raise FileFormatError(f"{name!r} is not a name that a Python program can have. {DAMAGED}")
    return name


def argument_name(name: Any) -> str:
    """Check the name of an argument of the network, and return it.

    Raises:
        FileFormatError: the argument cannot have this name.
    """
    if identifier(name) in RESERVED:
        raise FileFormatError(
            f"the network has an argument '{name}', but the code that runs the network means something else by this "
            "name. Rename the argument in the model and quantize it again."
        )
    return str(name)


def check_tensor_names(names: Collection[str]) -> None:
    """Check names `part.part.…`: each part is an attribute of a module, or safe between quotation marks.

    Raises:
        FileFormatError: a tensor cannot have its name, or the names need more modules than a network has.
    """
    modules: set[str] = set()
    most = _MODULES[0] + _MODULES[1] * len(names)
    for name in names:
        parts = name.split(".")
        if len(parts) > MOST_PARTS:
            raise FileFormatError(
                f"a tensor has a name of {len(parts)} parts, {name[:60]!r}…; at most {MOST_PARTS} are read. {DAMAGED}"
            )
        for number, part in enumerate(parts):
            if not _is_attribute(part) or (number == 0 and part in _OWN):
                raise FileFormatError(
                    f"a tensor has the name {name!r}, but no module or parameter can be called {part!r} in the "
                    "network's code. Rename it in the model and quantize it again."
                )
        modules |= {".".join(parts[:end]) for end in range(1, len(parts))}
        if len(modules) > most:
            raise FileFormatError(
                f"the names of {len(names)} tensors need more than {most} modules, which no network has. {DAMAGED}"
            )
    for name in names:
        if name in modules:
            raise FileFormatError(f"{name!r} is the name of a tensor and the beginning of another one. {DAMAGED}")


def _is_attribute(part: str) -> bool:
    if part.isidentifier():
        return _is_identifier(part) and not part.startswith("__") and not hasattr(fx.GraphModule, part)
    return _MODULE_NAME.fullmatch(part) is not None


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
