"""`roundwise quantize --data-free`: where the size of an input comes from, and what does not go with it."""

import json

import pytest
import torch
from click.testing import CliRunner
from facts import has, missing
from recipes import quantizing

import roundwise as rw
from roundwise.cli.app import app
from roundwise.cli.commands import quantize as quantize_command

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def run(*arguments):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def test_it_quantizes_and_limits_of_inputs_come_from_mean_and_std(net, tmp_path):
    page = tmp_path / "page.html"
    result = run(
        net, "--data-free", "--input-size", "3x8x8", "--activations", 8, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.5,1",
        "--set", "ranges.candidates=5", "--json", "--report", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert has(shown["data"], "3×8×8", "--input-size")
    assert (shown["report"]["samples"], shown["report"]["stages"][1]["output_error"]) == (0, None)
    assert shown["recipe"]["stages"][1]["activations"]["ranges"] == {
        "method": "batch-norm", "deviations": 6.0, "channels": 0.995, "input_low": -2.0, "input_high": 2.0,
    }  # fmt: skip
    assert shown["recipe"]["stages"][1]["correction"] == {"method": "analytic-bias"}
    assert [rewrite["method"] for rewrite in shown["recipe"]["stages"][0]["methods"]] == [
        "cross-layer-equalization",
        "high-bias-absorption",
    ]
    assert has(page.read_text(), "3×8×8")


class CalledError(Exception):
    """Instead of a run."""


@pytest.fixture
def asked(monkeypatch):
    """What `quantize` is asked for, without the run."""
    found = []

    def note(network, inputs, recipe, **_):
        found.append((inputs, recipe))
        raise CalledError

    monkeypatch.setattr(quantize_command, "quantize", note)
    return found


def test_the_size_of_an_input_is_the_crop_that_is_asked_for(net, asked):
    run(net, "--data-free", "--size", "32")
    assert asked[0][0].example == (3, 32, 32)
    assert asked[0][1] == rw.Recipe.data_free()


def test_a_program_knows_its_inputs(asked, tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    result = run(tmp_path / "net.pt2", "--trust-program", "--data-free")
    assert isinstance(result.exception, CalledError), result.stderr
    assert [list(tensor.shape) for tensor in asked[0][0].example] == [[2, 4]]


def test_a_recipe_file_is_taken_as_it_is(net, asked, tmp_path):
    quantizing(rounding=rw.rounding.Nearest()).to_toml(tmp_path / "recipe.toml")
    run(net, "--data-free", "--input-size", "3x8x8", "--recipe", tmp_path / "recipe.toml")
    assert asked[0][1] == quantizing(rounding=rw.rounding.Nearest())


def test_settings_that_make_sense_only_together_can_be_given_one_after_the_other(net, asked):
    limits = [f"activations.ranges.{name}" for name in ("input_low=-1", "input_high=1")]
    options = ("--data-free", "--input-size", "3x8x8", "--activations", "8")
    run(net, *options, "--set", limits[0], "--set", limits[1])
    ranges = asked[0][1].stage(rw.Quantize).activations.ranges
    assert (ranges.input_low, ranges.input_high) == (-1.0, 1.0)


def test_a_size_that_nothing_states_has_to_be_given(net):
    result = run(net, "--data-free")
    assert result.exit_code == 1
    assert has(result.stderr, "--input-size 3x224x224")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ((), ("--data", "--data-free")),
        (("--data-free", "--limit", "5"), ("--data-free", "--limit")),
        (("--data-free", "--data", "."), ("--data-free", "--data")),
        (("--data-free", "--input-size", "3x0"), ("--input-size", "3x0")),
        (("--data", ".", "--input-size", "3x8x8"), ("--input-size", "--data-free")),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_wrong_usage(net, options, facts):
    result = run(net, *options)
    assert result.exit_code == 2
    assert not missing(result.stderr, *facts)
