"""Sizes chosen by a metric: what is evaluated, what is chosen, what is said, and how bad metrics end."""

import pytest
import torch
from facts import has, raises
from torch import nn

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.events import NetworkEvaluated, PassStarted

CHOICE = rw.compression.EqualAccuracyLoss()


@pytest.fixture(scope="module")
def images():
    noise = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, 1) * 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(24, 16, 3), nn.Flatten(), nn.Linear(1024, 12)).eval()


class Agreement:
    """A metric: minus the distance from the outputs of a network; and what it was called with."""

    def __init__(self, model, images):
        self.images, self.wanted, self.networks, self.scores = images, model(images).detach(), [], []

    def __call__(self, network):
        self.networks.append(network)
        self.scores.append(-float((network(self.images) - self.wanted).square().mean()))
        return self.scores[-1]


def stage(**settings):
    return rw.Compress(**{"macs": 0.6, "multiple": 4, "choice": CHOICE} | settings)


def entries(model):
    return {one.name: one for one in model.report.stages[-1].compressed}


@pytest.mark.parametrize("data", ["images", "none"])
def test_each_layer_alone_is_evaluated_and_no_layer_loses_more_than_needed(model, images, data):
    metric, events = Agreement(model, images), []
    given = images if data == "images" else rw.DataFree((3, 10, 10))
    small = rw.compress(model, given, stage(), evaluate=metric, progress=events.append)
    told = [event for event in events if isinstance(event, NetworkEvaluated)]
    assert metric.scores[1:-1] == [event.score for event in told]
    assert metric.scores[0] == pytest.approx(0, abs=1e-9)
    assert [event.index for event in told] == list(range(told[0].total))
    counts = {name: sum(event.name == name for event in told) for name in entries(small)}
    assert all(0 < count <= 9 for count in counts.values())
    (purpose,) = [e.purpose for e in events if isinstance(e, PassStarted) and str(len(told)) in e.purpose]
    assert has(purpose, 4, 9)

    before, after = small.report.stages[-1].macs
    assert after <= 0.6 * before
    scores = {(event.name, event.size): event.score for event in told}
    chosen = {name: f"{one.method} {one.size[0]}" for name, one in entries(small).items() if one.method}
    worst = min(scores[item] for item in chosen.items())
    for name, one in entries(small).items():
        better = [size for (other, size), score in scores.items() if other == name and score > worst]
        assert one.method or not better  # a layer stays only where all of its sizes lose more


def test_networks_that_are_evaluated_have_one_chain_and_are_fitted(model, images):
    metric = Agreement(model, images)
    rw.compress(model, images, stage(), evaluate=metric)
    blind = Agreement(model, images)
    rw.compress(model, rw.DataFree((3, 10, 10)), stage(), evaluate=blind)
    for network in metric.networks[1:-1]:
        assert sum(tensor.dim() > 1 for tensor in network.state_dict().values()) == 5
    means = [sum(one.scores[1:-1]) / len(one.scores[1:-1]) for one in (metric, blind)]
    assert means[0] > means[1]


def test_the_report_tells_the_metric_before_and_after_whatever_the_choice(model, images):
    metric = Agreement(model, images)
    small = rw.compress(model, images, rw.Compress(macs=0.6, multiple=4), evaluate=lambda net: 7 + metric(net))
    assert len(metric.scores) == 2
    assert any(has(note, 7, f"{7 + metric.scores[1]:.4g}") for note in small.report.notes)


def test_a_metric_may_return_a_tensor_with_one_number(model, images):
    metric = Agreement(model, images)
    small = rw.compress(
        model, images, stage(keep=("2", "4", "6"), macs=0.98), evaluate=lambda net: torch.tensor(metric(net))
    )
    assert small.report.stages[-1].compressed


def test_parameters_count_where_they_are_the_budget(model, images):
    small = rw.compress(model, images, stage(macs=None, parameters=0.5), evaluate=Agreement(model, images))
    before, after = small.report.stages[-1].parameters
    assert after <= 0.5 * before


def failing(_):
    raise ZeroDivisionError("division by zero")


def worse_after_the_first():
    scores = iter([1.0])
    return lambda _: next(scores, float("nan"))


@pytest.mark.parametrize(
    ("metric", "facts"),
    [
        (failing, ("ZeroDivisionError", "evaluate")),
        (lambda _: float("nan"), ("nan",)),
        (lambda _: float("inf"), ("inf",)),
        (lambda _: "0.9", ("'0.9'", "str")),
        (lambda _: None, ("None",)),
        (lambda _: True, ("bool",)),
        (lambda _: torch.zeros(3), ("Tensor",)),
        (worse_after_the_first(), ("nan", "layer '0'")),
    ],
)
def test_a_metric_that_fails_is_an_error_that_names_the_network(model, images, metric, facts):
    with raises(RecipeError, *facts):
        rw.compress(model, images, stage(), evaluate=metric)


def test_a_budget_that_cannot_be_met_ends_before_networks_are_evaluated(model, images):
    metric = Agreement(model, images)
    with raises(RecipeError, "macs=0.01"):
        rw.compress(model, images, stage(macs=0.01), evaluate=metric)
    assert len(metric.scores) == 1
