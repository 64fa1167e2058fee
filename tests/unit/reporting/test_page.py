"""The report as a page: complete, harmless, and its figures are the report's."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from facts import has, raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.errors import ExportError
from roundwise.methods.rounding.nearest import Nearest
from roundwise.numerics.grid import Grid
from roundwise.numerics.summary import summarize
from roundwise.report import (
    ActivationReport,
    KeptFloat,
    LayerReport,
    Report,
    StageReport,
    WeightSummary,
)
from roundwise.report_training import EpochReport
from roundwise.reporting.charts import Axis
from roundwise.reporting.page import render

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
EVIL = "<script>alert(1)</script> & \"quoted\" 'too' \ud800"


class Page(HTMLParser):
    """A page's elements and texts; tags that do not balance are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


@dataclasses.dataclass
class Result:
    """What a page needs of a quantized network."""

    report: Report
    recipe: rw.Recipe = dataclasses.field(default_factory=rw.Recipe)
    versions: dict = dataclasses.field(default_factory=lambda: {"roundwise": "9.9", "torch": "8.8"})


SUMMARY = WeightSummary(-1.0, 2.0, (1, 5, 2), 1, (0.25, 0), (0.25, 0), (-2.0, -2.0), (1.75, 1.75), 0.125)


def layer(**changes):
    base = LayerReport(
        "first", "conv2d", (8, 4), 4, "per-tensor", True, "min-max", "nearest", 0.1, 0.05, 0.25, 1.5, "", SUMMARY
    )
    return dataclasses.replace(base, **changes)


def result(*layers, **changes):
    seconds = {"capture": 1.0, "rounding": 3.0}
    of_stage = {
        name: changes.pop(name) for name in ("kept_float", "activations", "output_error", "notes") if name in changes
    }
    stage = StageReport("quantize", seconds, layers=layers, **{"output_error": 0.01, **of_stage})
    return Result(dataclasses.replace(Report((stage,), 32, 4096, 1024, {}, 2048), **changes))


def rendered(given, **options):
    return render(given, **{"title": "a network", "facts": {}, "accuracy": {}, **options})


def page(given, **options):
    return Page(rendered(given, **options))


def weight_figure(of):
    """The SVG of a layer's weights."""
    (figure,) = re.findall(r'<svg class="weights".*?</svg>', rendered(result(of)), re.DOTALL)
    return figure


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 4)).eval()
    recipe = quantizing(
        weights=rw.Weights(bits=3, granularity=rw.PerTensor(), symmetric=False),
        rounding=rw.rounding.Nearest(),
        overrides={"3": rw.Weights(bits=16, granularity=rw.PerGroup(8)), "4": None},
    )
    return rw.quantize(network, torch.randn(16, 3, 4, 4), recipe)


# ---------------------------------------------------------------------------------------------- a page of a real run


def test_the_pages_table_has_the_reports_figures(quantized, tmp_path):
    rw.html_report(quantized, tmp_path / "report.html", title="net", facts={"model": "net.py"})
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    (table,) = (table for table in shown.tables if "error, chosen" in table[0])
    column = {name: index for index, name in enumerate(table[0])}
    assert len(table) == 1 + len(quantized.report.layers)
    for row, of in zip(table[1:], quantized.report.layers, strict=True):
        assert row[column["layer"]] == of.name
        assert row[column["bits"]] == str(of.bits)
        assert row[column["granularity"]] == of.granularity
        assert float(row[column["error, nearest"]].replace("−", "-")) == pytest.approx(of.error_nearest, rel=1e-3)
        assert float(row[column["error, chosen"]].replace("−", "-")) == pytest.approx(of.error, rel=1e-3)
        assert float(row[column["SQNR, dB"]]) == pytest.approx(-10 * math.log10(of.error), abs=0.06)
    text = " ".join(shown.texts)
    (kept,) = quantized.report.kept_float
    for part in ("net.py", "16", kept.name, kept.reason, quantized.versions["torch"]):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_pages_recipe_is_the_recipe(quantized, tmp_path):
    shown = page(quantized)
    (toml,) = (text for text in shown.texts if "[stages.weights]" in text)
    (tmp_path / "recipe.toml").write_text(toml, encoding="utf-8")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == quantized.recipe


def test_a_page_of_a_loaded_network_is_the_same(quantized, tmp_path):
    quantized.save(tmp_path / "net.rw")
    given = {"title": "net", "facts": {}, "accuracy": {}}
    assert render(rw.load(tmp_path / "net.rw"), **given) == render(quantized, **given)


def test_a_page_loads_nothing_and_runs_its_own_script_alone(quantized):
    text = render(quantized, title="net", facts={}, accuracy={})
    shown = Page(text)
    loading = {"src", "href", "xlink:href", "srcset", "data", "action", "style"}
    assert [name for name, attributes in shown.elements if loading & attributes.keys()] == []
    assert not {"link", "img", "iframe", "object", "embed", "use", "image", "base"} & {e for e, _ in shown.elements}
    assert re.search(r"url\(|@import|https?://|//\w", text.replace("// ", "")) is None
    assert shown.count("script") == 1
    (policy,) = (a["content"] for e, a in shown.elements if e == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy


def test_tables_have_heads_and_figures_titles(quantized):
    shown = page(quantized)
    for (tag, attributes), (following, _) in zip(shown.elements, shown.elements[1:], strict=False):
        if tag == "svg" and "aria-hidden" not in attributes:
            assert attributes["role"] == "img"
            assert following == "title"
        if tag == "table":
            assert following == "caption"
        if tag == "th":
            assert attributes["scope"] in ("row", "col")


# -------------------------------------------------------------------------------------------------------- training

EPOCHS = (
    EpochReport(0, None, 0.5, 0.7, None),
    EpochReport(1, 0.4, 0.3, 0.75, 0.02),
    EpochReport(2, 0.35, 0.25, 0.8125, 0.0123),
    EpochReport(3, 0.3, 0.26, 0.8, 0.01),
)


def trained(epochs):
    given = result(layer())
    stages = (*given.report.stages, StageReport("finetune", {"training": 2.0}, output_error=0.004, epochs=epochs))
    given.report = dataclasses.replace(given.report, stages=stages)
    return given


def test_the_curves_of_training_have_a_point_for_each_epoch_that_has_a_value():
    shown = page(trained(EPOCHS))
    curves = [a["class"] for tag, a in shown.elements if tag == "path" and a.get("class", "").startswith("curve")]
    assert sorted(curves) == ["curve chosen", "curve chosen", "curve chosen", "curve nearest"]
    titles = [text for text in shown.texts if text.startswith("epoch ")]
    assert sum("held-out: " in title for title in titles) == 2 * len(EPOCHS)  # losses and accuracies
    assert sum("training: " in title for title in titles) == len(EPOCHS) - 1
    assert "epoch 2, held-out: 0.25" in titles
    (table,) = (table for table in shown.tables if "held-out loss" in table[0])
    assert [row[0] for row in table[1:]] == ["0", "1", "2 (kept)", "3"]
    assert "70.0 % → 81.2 %" in " ".join(shown.texts)


def test_without_labels_or_quantizers_there_are_no_such_curves():
    plain = tuple(dataclasses.replace(epoch, accuracy=None, oscillating=None) for epoch in EPOCHS)
    shown = page(trained(plain))
    titles = [text for text in shown.texts if text.startswith("epoch ")]
    assert len(titles) == 2 * len(plain) - 1
    assert "accuracy by epoch" not in " ".join(shown.texts)


def test_many_epochs_and_losses_that_no_axis_holds_have_a_page():
    for losses in ([0.0] * 3, [math.nan] * 3, [1e-5 + index for index in range(210)]):
        epochs = tuple(EpochReport(number, None, loss) for number, loss in enumerate(losses))
        found = [attributes for tag, attributes in page(trained(epochs)).elements if tag == "circle"]
        assert all(math.isfinite(float(one[name])) for one in found for name in ("cx", "cy"))


def test_the_report_says_in_words_what_training_reached():
    text = str(trained(EPOCHS).report)
    assert has(text, "training: 3 epochs", "number 2", "0.5 → 0.25", "70.00% → 81.25%", "1.23%")
    assert trained(EPOCHS).report.output_error == 0.004
    worse = (EPOCHS[0], dataclasses.replace(EPOCHS[1], held_out=0.6))
    assert has(str(trained(worse).report), "training: 1 epoch", "none", "0.5")


# ------------------------------------------------------------------------------------------------- strange reports


def test_names_from_outside_are_shown_and_do_nothing_else(tmp_path):
    given = result(
        layer(name=EVIL, operation=EVIL, granularity=EVIL, ranges=EVIL, rounding=EVIL, note=EVIL),
        layer(name="plain"),
        kept_float=(KeptFloat(EVIL, 3, EVIL),),
        notes=(EVIL,),
        setup_seconds={EVIL: 1.0},
    )
    given.versions[EVIL] = EVIL
    given.recipe = quantizing(overrides={EVIL.replace("\ud800", ""): None})
    shown = page(given, title=EVIL, facts={EVIL: EVIL}, accuracy={EVIL: (0.5, 0.25)})
    assert shown.count("script") == 1
    assert all(not name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert EVIL in shown.texts
    rw.html_report(given, tmp_path / "a & b<i>.html", title=EVIL)  # what no file can hold is no reason to fail
    assert "\\ud800" in (tmp_path / "a & b<i>.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("of_layers", "told"),
    [
        (("", "", ""), []),
        (("free", "", "free"), ["layers 'a', 'c': free"]),
        (("free", "shared", "free"), ["layers 'a', 'c': free", "layer 'b': shared"]),
        (("free", "free", "free"), ["all 3 layers: free"]),
        (("free",), ["layer 'a': free"]),
    ],
)
def test_a_note_is_told_once_with_the_layers_that_have_it(of_layers, told):
    given = result(*(layer(name=name, note=note) for name, note in zip("abc", of_layers, strict=False)))
    assert given.report.layer_notes == told
    assert [line for line in str(given.report).splitlines() if line in told] == told
    assert [text for text in page(given).texts if text in told] == told


@pytest.mark.parametrize("count", [1, 2, 21, 110])
def test_any_number_of_layers_has_a_mark_in_every_chart(count):
    layers = tuple(layer(name=f"layers.{index}", error=0.001 * (index + 1)) for index in range(count))
    shown = page(result(*layers))
    marks = [(tag, attributes["class"]) for tag, attributes in shown.elements if tag in ("circle", "rect")]
    assert marks.count(("circle", "chosen")) == 2 * count  # errors and decibels
    assert marks.count(("rect", "nearest")) == count
    labels = [text for text in shown.texts if text.isdigit() and int(text) <= count]
    assert len(labels) >= 4 * min(count, 11)


@pytest.mark.parametrize("error", [0.0, math.nan, math.inf, 1.7e308, 1e-300, 5e-324])
def test_errors_that_no_axis_holds_are_told(error):
    given = result(layer(error=error, error_nearest=error), output_error=error)
    shown = page(given)
    numbers = [value for _, attributes in shown.elements for name, value in attributes.items() if name in ("cy", "y")]
    assert all(math.isfinite(float(value)) for value in numbers)
    told = {0.0: "0", 1e-300: "1e−300", 5e-324: "4.941e−324"}
    expected = "NaN" if math.isnan(error) else told.get(error, "∞")
    (table,) = (table for table in shown.tables if "error, chosen" in table[0])
    assert table[1][table[0].index("error, chosen")] == expected


def test_an_error_of_zero_stands_below_all_others_and_overflow_above():
    axis = Axis.of([0.0, 1e-5, 0.1, math.inf, math.nan], log=True)
    heights = [axis.y(value) for value in (math.inf, 0.1, 1e-5, 0.0)]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4
    assert axis.y(math.nan) == axis.y(math.inf)


def test_a_network_without_seconds_bytes_or_layers_has_a_page_too():
    for given in (
        result(setup_seconds={}, float_bytes=0, quantized_bytes=0),
        result(layer(seconds=0.0, flips=0.0), setup_seconds={"capture": 0.0}),
    ):
        shown = page(given)
        text = " ".join(shown.texts)
        assert "a network" in text
        assert not re.search(r"\b(nan|inf)\b|∞", text, re.IGNORECASE)
        assert ("first" in shown.texts) == bool(given.report.layers)


def test_words_that_hold_for_all_layers_are_said_once():
    same = rendered(result(layer(), layer(name="second")))
    assert "per-tensor" in same
    assert "<td>per-tensor</td>" not in same
    assert "<td>per-channel</td>" in rendered(result(layer(), layer(granularity="per-channel")))


def test_a_layer_that_nearest_served_better_is_marked():
    assert 'class="worse"' in rendered(result(layer(error=0.2)))
    assert 'class="worse"' not in rendered(result(layer(error=0.1)))


def test_accuracy_is_told_where_it_was_measured():
    shown = " ".join(page(result(layer()), accuracy={"top-1": (0.81, 0.795)}).texts)
    assert "81.0 % → 79.5 %" in shown
    assert "top-1" not in " ".join(page(result(layer())).texts)


def test_a_recipe_with_a_method_of_ones_own_is_shown_and_said_to_be_no_file():
    @dataclasses.dataclass(frozen=True)
    class Mine(rw.rounding.RoundingSolver):
        needs = Nearest.needs
        traits = Nearest.traits

        def solve(self, problem, generator):
            raise NotImplementedError  # nobody solves anything here: the page only has to name the method

    given = result(layer())
    given.recipe = quantizing(rounding=Mine())
    shown = page(given)
    assert any("Mine()" in text for text in shown.texts)
    assert not any("[weights]" in text for text in shown.texts)


# ---------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(("bits", "drawn"), [(2, 4), (4, 16), (16, 0)])
def test_points_of_a_grid_are_drawn_where_they_can_be_told_apart(bits, drawn):
    scale = 4 / 2**bits
    ends = ((-2.0, -2.0), (2.0 - scale, 2.0 - scale))
    summary = dataclasses.replace(
        SUMMARY, finest=(scale, 0), coarsest=(scale, 0), lower_ends=ends[0], upper_ends=ends[1]
    )
    figure = weight_figure(layer(bits=bits, summary=summary))
    assert figure.count("v9") == drawn
    assert ('class="band"' in figure) == (drawn == 0)
    assert has(figure, 2**bits)
    assert len(figure) < 3000


def test_several_scales_show_the_finest_and_the_coarsest_grid():
    summary = dataclasses.replace(SUMMARY, scales=8, finest=(0.01, 0))
    assert re.findall(r"<title>(\w+) grid: 16 points", weight_figure(layer(summary=summary))) == ["finest", "coarsest"]


@pytest.mark.parametrize(
    "change",
    [
        {"finest": (1e290, 0), "coarsest": (1e290, 0)},
        {"counts": (1,) * 1000},
        {"smallest": -1e308, "largest": 1e308},
    ],
)
def test_a_figure_of_any_summary_is_small(change):
    of = layer(bits=16, summary=dataclasses.replace(SUMMARY, **change))
    assert len(weight_figure(of)) < 50_000


def test_a_long_name_does_not_widen_every_line():
    of = result(layer(name="a" * 100_000), *(layer(name=str(number)) for number in range(50)))
    assert len(str(of.report)) < 200_000


def test_times_that_no_axis_holds_have_a_page():
    assert "<svg" in rendered(result(layer(seconds=2.5e-323)))


def test_weights_that_are_all_equal_have_a_figure():
    for value in (0.0, 3.0, -1e-30):
        weight = torch.full((1, 2, 3), value)
        summary = summarize(weight, Grid.symmetric(torch.tensor([[[1.0]]]), 4))
        assert summary.counts == (6,)
        Page(weight_figure(layer(summary=summary)))


# -------------------------------------------------------------------------------------------- the summary of a layer


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 8, 1), (1, 8, 4)], ids=["per tensor", "per channel", "per group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_summary_tells_what_the_weights_and_the_grid_are(blocks, symmetric):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, 64, generator=generator)
    scale = torch.rand(blocks, generator=generator) / 10 + 0.1
    zero_point = torch.zeros(blocks, dtype=torch.int32) if symmetric else torch.full(blocks, 5, dtype=torch.int32)
    grid = Grid(scale, zero_point, dataclasses.replace(Grid.symmetric(scale, 4).codebook, symmetric=symmetric))
    summary = summarize(weight, grid)
    assert sum(summary.counts) == 512
    assert (summary.smallest, summary.largest) == (weight.min().item(), weight.max().item())
    assert summary.scales == scale.numel()
    assert (summary.finest[0], summary.coarsest[0]) == pytest.approx((scale.min().item(), scale.max().item()))
    qmin, qmax = torch.tensor(grid.codebook.qmin), torch.tensor(grid.codebook.qmax)
    lower, upper = (grid.dequantize(code.expand(1, 8, 64)) for code in (qmin, qmax))
    assert summary.lower_ends == pytest.approx((lower.min().item(), lower.max().item()))
    assert summary.upper_ends == pytest.approx((upper.min().item(), upper.max().item()))
    outside = (weight - grid.fake_quantize(weight)).abs() > grid.scales(64) * 0.5001
    assert summary.clipped == pytest.approx(outside.float().mean().item(), abs=0.002)


def test_a_summary_counts_as_numpy_does():
    weight = torch.randn(3, 50, 70, generator=torch.Generator().manual_seed(1))
    summary = summarize(weight, Grid.symmetric(torch.tensor([[[0.1]]]), 4))
    counts = torch.histogram(weight.double().flatten(), bins=48).hist
    assert summary.counts == tuple(counts.int().tolist())


def test_a_report_keeps_summaries_through_json_and_reads_reports_without(quantized):
    report = quantized.report
    assert all(of.summary is not None for of in report.layers)
    data = json.loads(json.dumps(report.as_dict()))
    assert Report.from_dict(data) == report
    for record in data["stages"][1]["layers"]:
        del record["summary"]
    old = Report.from_dict(data)
    assert [of.summary for of in old.layers] == [None, None]
    assert page(Result(old)).count("svg") < page(Result(report)).count("svg")


# ---------------------------------------------------------------------------------------------------------- writing


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    with raises(ExportError, "report.html", "No space left"):
        rw.html_report(result(layer()), path)
    assert path.read_text(encoding="utf-8") == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_needs_a_file_in_a_folder_that_is_there(tmp_path):
    with raises(ExportError, tmp_path):
        rw.html_report(result(layer()), tmp_path)
    with raises(ExportError, tmp_path / "absent" / "report.html"):
        rw.html_report(result(layer()), tmp_path / "absent" / "report.html")


def test_quantized_activations_have_a_table_and_float_ones_no_heading():
    activation = ActivationReport("relu <&>", 8, False, 0.5, 3, -1.5, 126.0, ("other", "third"))
    found = page(result(layer(), activations=(activation,)))
    rows = [row for table in found.tables for row in table]
    assert ["relu <&>", "8, unsigned", "−1.5 … 126", "0.5", "3", "other, third"] in rows
    assert "Activations" in found.texts
    assert "Activations" not in page(result(layer())).texts
