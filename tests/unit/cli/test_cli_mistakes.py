"""Mistakes on the command line: wrong usage ends with 2, and a name with a slip is told beside the right one."""

import pytest
from commandline import failed, run

import roundwise as rw

QUANTIZE = ("quantize", "net.py:build", "--data", "inputs.npy")
MISTAKES = {
    "a command": (("quantise",), ("'quantise'", "Did you mean 'quantize'?")),
    "the beginning of a method": (("methods", "gram"), ("'gram'", "Did you mean 'gram-adaround'?")),
    "a method in capitals": (("methods", "TabuSearch"), ("Did you mean 'tabu-search'?",)),
    "a method of an option": (
        ("quantize", "net.py:build", "--rounding", "GramAdaround"),
        ("'GramAdaround'", "Did you mean 'gram-adaround'?"),
    ),
    "a setting": (
        ("quantize", "net.py:build", "--data", "inputs.npy", "--set", "tol=1"),
        ("--set tol=1", "'tol'", "iterations"),
    ),
    "an override": (
        ("quantize", "net.py:build", "--data", "inputs.npy", "--override", "6:8"),
        ("--override 6:8", "NAME=VALUE"),
    ),
    "the file of a model": (("quantize", "nett.py:build", "--data", "inputs.npy"), ("'nett.py'", "net.py")),
    "a device": (("quantize", "net.py:build", "--device", "gpu"), ("'gpu'", "cpu", "Did you mean 'cuda'?")),
}


@pytest.mark.parametrize(("arguments", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_on_the_command_line_is_wrong_usage(arguments, facts, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert failed(run(*arguments), 2, *facts)


def test_a_file_of_another_kind_is_not_the_one_that_was_meant(tmp_path, monkeypatch):
    for name in ("net.py", "nets.pt", "node.npz"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    result = run("quantize", "net.py:build", "--weights", "net.pt")
    assert failed(result, 2, "'net.pt'", "nets.pt", "net.py")  # the last one has the same name but for its ending
    assert "Did you mean" not in run("quantize", "net.py:build", "--weights", "nope.pt2").stderr


def test_a_recipe_file_that_cannot_be_used_is_no_wrong_usage(folder, tmp_path):
    rw.Recipe([rw.Rewrite()]).to_toml(tmp_path / "recipe.toml")
    data = "--data", folder / "inputs.npy"
    assert failed(run("quantize", f"{folder}/net.py:build", *data, "--recipe", tmp_path / "recipe.toml"), 1, "Quantize")


def test_a_method_that_needs_data_is_told_how_to_be_replaced_on_the_command_line(folder):
    said = run("quantize", f"{folder}/net.py:build", "--data-free", "--input-size", "3x8x8", "--rounding", "gptq")
    assert failed(said, 1, "GPTQ", "--rounding nearest", "rounding=Nearest()")


def test_a_slip_in_a_public_name_is_told_beside_the_right_one():
    with pytest.raises(AttributeError, match="quantize"):
        rw.quantise  # noqa: B018
    assert not hasattr(rw, "__nothing__")
