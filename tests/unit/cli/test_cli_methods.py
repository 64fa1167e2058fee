"""`roundwise methods`: every method of every table, and what its docstring says."""

import dataclasses
import re

import pytest
from commandline import failed, run

from roundwise.cli.commands.methods import KINDS
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS

TABLES = (ROUNDING_SOLVERS, RANGE_ESTIMATORS, ACTIVATION_RANGES, REWRITES, CORRECTIONS)
NAMED = [(kind, name, method) for kind, (_, table) in KINDS.items() for name, method in table.items()]


def words(*arguments):
    result = run("methods", *arguments)
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def first_line(method):
    return method.__doc__.strip().partition("\n")[0]


def test_every_method_of_every_table_is_listed():
    text = words()
    for table in TABLES:
        for name, method in table.items():
            assert f"{name} {first_line(method)}" in text


@pytest.mark.parametrize(("kind", "name", "method"), NAMED)
def test_a_method_is_explained_with_each_setting_its_type_its_default_and_its_description(kind, name, method):
    text = words(name)
    assert f"{name}: {kind}: {first_line(method)}" in text
    for setting in dataclasses.fields(method) if dataclasses.is_dataclass(method) else ():
        described = re.search(rf"{setting.name}: {re.escape(str(setting.type))} = (\S+) +(\S+)", text)
        assert described is not None, setting.name
        assert described[1].removesuffix("()") in str(setting.default)
        assert " ".join(method.__doc__.split()).find(described[2]) > 0
    assert ("References:" in method.__doc__) <= ("References:" in text)


def test_an_unknown_method_is_wrong_usage_and_gets_the_nearest_names():
    assert failed(run("methods", "gram-adaruond"), 2, "'gram-adaruond'", "gram-adaround")
    assert failed(run("methods", "?"), 2, "'?'", "roundwise methods")
