"""ATen operations are listed in one table, `graph/operators.py`; everything else asks it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import roundwise
from roundwise.graph import operators

SOURCE = Path(roundwise.__file__).parent

# Files that may list operations of their own, and why.
EXCEPTIONS = {
    "graph/operators.py": "the table",
    "graph/transforms/write_out.py": "how each operation is written out",
    "graph/vocabulary.py": "the rest of the table: operations that no analysis asks about",
    "frontends/exporting.py": "which in-place operations `torch.export` leaves, and how to take them apart",
    "frontends/in_place.py": "which operations of a program that is not pure yet give a view or a copy",
    "frontends/dropout.py": "which pure operation of dropout stands for one in place",
    "frontends/training.py": "the two forms in which `torch.export` gives batch-norm",
    "artifacts/kernels.py": "what PyTorch does not check by itself, operation by operation",
    "exporters/onnx/decompose.py": "which operations PyTorch's ONNX exporter translates in part only",
    "artifacts/dialect.py": "what the operations of the file format are called in PyTorch",
}
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if str(path.relative_to(SOURCE)) not in EXCEPTIONS]

FAMILIES = {
    name: value for name, value in vars(operators).items() if name.isupper() and isinstance(value, frozenset | dict)
}


def is_operation(expression: ast.expr) -> bool:
    """Whether an expression is `aten.relu.default` or `torch.ops.aten.relu.default`."""
    parts = ast.unparse(expression).removeprefix("torch.ops.").split(".")
    return isinstance(expression, ast.Attribute) and parts[0] == "aten" and len(parts) == 3


def lists_of_operations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every set, dict, list or tuple that holds two or more ATen operations."""
    for node in ast.walk(tree):
        match node:
            case ast.Set(elts=elements) | ast.List(elts=elements) | ast.Tuple(elts=elements):
                found = [is_operation(element) for element in elements]
            case ast.Dict(keys=keys, values=values):
                found = [is_operation(element) for element in [*filter(None, keys), *values]]
            case _:
                continue
        if sum(found) > 1:
            yield node.lineno, ast.unparse(node)[:80]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_no_other_file_lists_operations(path):
    assert list(lists_of_operations(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_a_list_of_operations_would_be_found():
    source = (
        "A = frozenset({aten.relu.default, torch.ops.aten.tanh.default})\nB = x in (aten.add.Tensor, aten.sub.Tensor)"
    )
    assert [line for line, _ in lists_of_operations(ast.parse(source))] == [1, 2]
    assert list(lists_of_operations(ast.parse("call(aten.relu.default, (x, y), [aten.add.Tensor])"))) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_holds_operations_of_pytorch_that_write_to_nothing(name):
    family = FAMILIES[name]
    members = list(family) if isinstance(family, frozenset) else [*family.keys(), *family.values()]
    operations = [member for member in members if isinstance(member, torch._ops.OpOverload)]
    assert operations
    assert [str(one) for one in operations if one._schema.is_mutable] == []
