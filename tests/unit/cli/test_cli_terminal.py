"""Progress, and results as JSON."""

import io
import json

import torch
from facts import has
from rich.console import Console

from roundwise.cli.terminal import layer_progress, show_json
from roundwise.events import LayerFinished, LayerStarted, Plan, Planned
from roundwise.report import LayerReport

PLAN = Plan(("first", "second"), 8, 2**20, "first", 2**10, 2**30, 90.0)
LAYER = LayerReport("first", "conv2d", (1, 2), 4, "per-channel", True, "min-max", "nearest", 0.1, 0.05, 0.25, 1.5)


def test_progress_on_a_terminal_is_a_bar_with_the_layer_and_the_time_left(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("roundwise.cli.terminal.Console", lambda stderr: terminal)
    with layer_progress() as show:
        show(Planned(PLAN))
        show(LayerStarted("first", 0, 2))
        show(LayerFinished(LAYER, 0, 2, 75.0))
        show(LayerStarted("second", 1, 2))
    text = screen.getvalue()
    assert has(text, 2, 8, "second", "1/2", "1 minute and 15 seconds")


def test_progress_elsewhere_is_plain_lines(capsys):
    with layer_progress() as show:
        for event in (Planned(PLAN), LayerStarted("first", 0, 2), LayerFinished(LAYER, 0, 2, 75.0)):
            show(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [str(PLAN), str(LayerFinished(LAYER, 0, 2, 75.0))]


def test_json_never_holds_what_json_cannot(capsys):
    show_json({"a": float("nan"), "b": [float("inf"), (1, None)], "c": torch.float32})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, [1, None]], "c": "torch.float32"}
