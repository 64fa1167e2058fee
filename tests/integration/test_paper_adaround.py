"""The paper's tables and figures on the small networks: what the pages and expected.json say still holds."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from recipes import quantizing
from torch import nn

from roundwise.methods.rounding import Stochastic
from roundwise.recipe.settings import Weights
from roundwise.reproduction import PAPERS, Row, Settings, Study, quantize_row, run_once

FOLDER = Path(__file__).parents[2] / "papers" / "adaround_2020"
sys.path.append(str(FOLDER))
import figures  # noqa: E402  these three lie beside the pages
import networks  # noqa: E402
import plan  # noqa: E402

EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
NOT_EXPECTED = EXPECTED.pop("not expected")
PARTS = {part.table: part for part in plan.PARTS if part.table != "figure4"}


@pytest.mark.parametrize("table", PAPERS["adaround"])
def test_every_row_of_every_table_is_expected_or_named_as_not(table):
    rows = {row.name for row in PAPERS["adaround"][table].rows(Settings())}
    not_expected = NOT_EXPECTED.get(table, {})
    assert {*EXPECTED.get(table, {}), *not_expected} == rows
    assert all(not_expected.values()), "without a reason"


def test_expected_figures_are_percentages_with_room_for_other_machines():
    for entry in (entry for rows in EXPECTED.values() for entry in rows.values()):
        assert 0 <= entry["score"] <= 100
        assert entry["tolerance"] >= 0.5
        assert entry["runs"] >= 1


@pytest.mark.parametrize("table", EXPECTED)
def test_a_table_has_a_page_with_the_expected_figures(table):
    page = (FOLDER / "tables" / f"{table}.md").read_text(encoding="utf-8")
    for name, entry in EXPECTED[table].items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert line.split("|")[3].split()[0] == f"{entry['score']:.2f}"
        assert int(line.split("|")[4]) == entry["runs"]


def test_what_the_readme_shows_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    shown = {link for link in links if link.endswith((".png", ".md"))}
    assert {f"figures/{name}.png" for name in figures.FIGURES} <= shown
    assert {f"tables/{name}.md" for name in EXPECTED} <= shown
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_figures_are_there_for_paper_too():
    assert [name for name in figures.FIGURES if not (FOLDER / "figures" / f"{name}.svg").is_file()] == []


def test_the_draws_of_figure_1_are_those_of_table_1():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    study = Study(model, torch.randn(4, 1, 8, 8), lambda _: 0.0, "a small network")
    draws, weights = figures.Draws(3), Weights(bits=2)
    quantize_row(study, Row("", "", quantizing(weights, draws)), 0)
    stochastic = quantize_row(study, Row("stochastic", "", quantizing(weights, Stochastic())), 2)
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        first, _, last = (
            nn.functional.conv2d(images, drawn.reshape(4, 1, 3, 3), model[0].bias).relu() for drawn in draws.weights
        )
        assert torch.allclose(stochastic(images), last, atol=1e-5)
        assert not torch.allclose(first, last, atol=1e-5)


def test_figure_2_is_drawn(tmp_path):
    figures.draw("figure2", {}, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"figure2.png", "figure2.svg"}


CHEAP = {
    "table1": ["nearest", "ceil", "floor"],
    "table2": ["local MSE (cross-entropy method), first layer"],
    "table6": ["nearest", "bias correction", "AdaRound in Gram space"],
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not networks.available(), reason=f"no networks in {networks.ROOT}; set ROUNDWISE_DATA")
@pytest.mark.parametrize(("table", "name"), [(table, name) for table, names in CHEAP.items() for name in names])
def test_a_cheap_row_comes_out_as_expected(table, name):
    part, expected = PARTS[table], EXPECTED[table][name]
    (row,) = (row for row in plan.TABLES[table].rows(part.settings()) if row.name == name)
    assert run_once(plan.study(part), row, 0).score == pytest.approx(expected["score"], abs=expected["tolerance"])
