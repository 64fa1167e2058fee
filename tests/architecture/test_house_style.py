"""The rules of ARCHITECTURE.md that a machine can keep and the linters do not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import roundwise

SOURCE = Path(roundwise.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

# The right-hand column of the words table, less `offset`, `delta` and `zero`, which often mean something else. Only
# names that a file *gives* are looked at: PyTorch's own operations have a `quant_min`.
UNUSED_WORDS = {
    "bitwidth",
    "cached_outs",
    "fp_out",
    "maxq",
    "n_bits",
    "n_levels",
    "num_bits",
    "qdq",
    "quant_max",
    "quant_min",
    "qweight",
    "w_q",
    "wbits",
    "x_int",
}


# A granularity is one object, so no function takes its parts.
UNUSED_ARGUMENTS = UNUSED_WORDS | {"group_size", "per_channel", "per_tensor"}


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a file gives to a variable, an attribute, a function or a class."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno


def public_arguments(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every argument of a public function and every annotated field: what a user may have to write."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name, args=arguments) if not name.startswith("_"):
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    yield argument.arg, argument.lineno
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node.lineno


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_has_at_most_six_hundred_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{path.name} has {lines} lines: it is two files"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_uses_the_words_of_the_words_table(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [(name, line) for name, line in bound_names(tree) if name.lower() in UNUSED_WORDS] == []
    assert [(name, line) for name, line in public_arguments(tree) if name.lower() in UNUSED_ARGUMENTS] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_begins_by_saying_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_work_is_left_as_a_note(path):
    # What is left to do belongs where somebody is asked to do it; in the code nobody is. The pattern names what is
    # looked for, and is itself no such note.
    notes = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b.*", path.read_text(encoding="utf-8"))
    assert notes == [], f"{path}: do it, or open an issue"
