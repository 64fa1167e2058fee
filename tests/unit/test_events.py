"""What events and reports say to people: which number is the name of a layer, and errors that are not 0."""

import dataclasses

import torch
from facts import has
from torch import nn

import roundwise as rw

SAMPLES = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def run(**settings):
    events = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    stage = rw.Quantize(rw.Weights(**settings), rw.rounding.Nearest())
    return events, rw.quantize(model, SAMPLES, stage, progress=events.append)


def test_events_say_that_a_number_is_the_name_of_a_layer():
    plan, *others = run()[0]
    assert has(dataclasses.replace(plan.plan, widest_layer="2"), "layer '2'")
    assert has(dataclasses.replace(plan.plan, widest_layer="the input"), "(at the input;")
    assert [has(event, f"layer '{name}'") for event, name in zip(others, "0022", strict=True)] == 4 * [True]


def test_small_errors_are_told_in_significant_digits():
    events, model = run(bits=16)
    for layer in model.report.layers:
        assert 0 < layer.error < 1e-5
        for shown in (str(model.report), "\n".join(map(str, events))):
            assert has(shown, f"{layer.error:.3g}")
    assert has(model.report, f"{model.report.output_error:.3g}")
