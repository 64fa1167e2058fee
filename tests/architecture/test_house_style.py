"""The rules of ARCHITECTURE.md that a machine can keep and the linters do not."""

import ast
import re
from pathlib import Path

import pytest

import roundwise
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.methods.training import LEARNED_QUANTIZATIONS

TABLES = [ACTIVATION_RANGES, CORRECTIONS, LEARNED_QUANTIZATIONS, RANGE_ESTIMATORS, REWRITES, ROUNDING_SOLVERS]
METHODS = [pytest.param(name, kind, id=kind.__name__) for table in TABLES for name, kind in table.items()]
SOURCE = Path(roundwise.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_has_at_most_six_hundred_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{path.name} has {lines} lines: it is two files"


def test_the_default_method_and_its_inner_loop_stay_short():
    # People read these two files from top to bottom: longer, they say things twice, or what belongs elsewhere.
    pages = [SOURCE / "methods" / "rounding" / "gram_adaround.py", SOURCE / "methods" / "reconstruction" / "loop.py"]
    lines = {page.name: len(page.read_text(encoding="utf-8").splitlines()) for page in pages}
    assert sum(lines.values()) <= 350, lines


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_begins_by_saying_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_work_is_left_as_a_note(path):
    # What is left to do belongs where somebody is asked to do it; in the code nobody is. The pattern names what is
    # looked for, and is itself no such note.
    notes = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b.*", path.read_text(encoding="utf-8"))
    assert notes == [], f"{path}: do it, or open an issue"


@pytest.mark.parametrize(("name", "kind"), METHODS)
def test_the_file_of_a_method_has_the_methods_name_in_its_table(name, kind):
    assert kind.__module__.rpartition(".")[2] == name.replace("-", "_")
