"""Every factorization of the table: its settings, its chains, its predictions, its answers."""

import dataclasses
import itertools
import random

import pytest
import torch
from torch import nn

import roundwise as rw
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.factorize import factorize
from roundwise.graph.transforms.normalize import normalize
from roundwise.methods.compressing import Factorization, FactorizationProblem, LayerOptions
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.numerics.regression import Regression
from roundwise.testing import SETTINGS_CHECKS

METHODS = {name: kind for name, kind in COMPRESSION_METHODS.items() if issubclass(kind, Factorization)}
METHOD = pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
LAYERS = {
    "linear": (nn.Linear(10, 12), (10,)),
    "conv1d": (nn.Conv1d(6, 7, 3, stride=2, padding=1), (6, 11)),
    "conv2d": (nn.Conv2d(6, 7, 3, padding=1), (6, 8, 8)),
    "conv2d strided, no bias": (nn.Conv2d(6, 7, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (6, 9, 8)),
    "conv2d dilated, same": (nn.Conv2d(5, 7, 3, padding="same", dilation=2), (5, 9, 9)),
    "conv2d 1 x 1 strided": (nn.Conv2d(10, 12, 1, stride=2), (10, 7, 7)),
    "conv3d": (nn.Conv3d(4, 5, 3, padding=1), (4, 5, 5, 5)),
}
LAYER = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
REFUSED = {
    "transposed": nn.ConvTranspose2d(6, 8, 3),
    "grouped": nn.Conv2d(6, 8, 3, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6),
}


def captured(module, shape):
    graph = normalize(TorchExport().graph(nn.Sequential(module).eval(), (torch.randn(2, *shape),), {}))
    (layer,) = find_layers(graph)
    return graph, layer


def problem_of(graph, layer, seed=0):
    """A layer with inputs that depend on each other, and a metric with directions that count more."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.map.to_matrix(graph.constants[layer.weight])[0].double()
    rows, cols = weight.shape
    root = torch.randn(cols, cols, dtype=torch.float64, generator=generator)
    second = root @ root.T / cols
    noise = 0.1 * torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    cross = (weight + noise) @ second
    energy = ((weight + noise) * cross).sum(1)
    means = [torch.randn(size, dtype=torch.float64, generator=generator) for size in (cols, rows)]
    metric_root = torch.randn(rows, 2 * rows, dtype=torch.float64, generator=generator)
    metric = metric_root @ metric_root.T / rows
    return FactorizationProblem(layer.name, layer.map, Regression(second, cross, energy, *means, 1000), metric)


def applied(graph, layer, method, problem, size):
    """The graph with the chain that the method gives."""
    answer = method.factorize(problem, size)
    bias = problem.regression.bias(answer.matrix).float()
    maps = list(method.parts(layer.map, size))
    maps[-1] = dataclasses.replace(maps[-1], bias=bias)
    parts = [(part, weight.float()) for part, weight in zip(maps, answer.weights, strict=True)]
    return factorize(graph, {layer.name: parts}).graph, answer, bias


@METHOD
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


@METHOD
@pytest.mark.parametrize("module", REFUSED.values(), ids=REFUSED)
def test_it_refuses_layers_that_it_cannot_cut(kind, module):
    _, layer = captured(module, (6, 9, 9))
    assert kind().reason(layer.map)


@METHOD
@LAYER
def test_the_chain_computes_the_matrix_and_the_bias_that_were_chosen(kind, case):
    module, shape = case
    graph, layer = captured(module, shape)
    method = kind()
    if method.reason(layer.map):
        pytest.skip("not for this layer")
    problem, samples = problem_of(graph, layer), torch.randn(3, *shape)
    for size in (method.sizes(layer.map, 2)[0], method.sizes(layer.map, 2)[-1]):
        cut, answer, bias = applied(graph, layer, method, problem, size)
        wanted = dataclasses.replace(layer.map, bias=bias).apply_matrix(answer.matrix.float().unsqueeze(0), samples)
        torch.testing.assert_close(cut.module()(samples), wanted, rtol=1e-3, atol=1e-3)


@METHOD
@LAYER
def test_its_largest_size_gives_the_best_map(kind, case):
    graph, layer = captured(*case)
    method = kind()
    if method.reason(layer.map):
        pytest.skip("not for this layer")
    if kind is rw.compression.CP:
        pytest.skip("its ranks end where it has as many parameters as the layer")
    problem = problem_of(graph, layer)
    largest = method.sizes(layer.map, 1)[-1]
    answer = method.factorize(problem, largest)
    torch.testing.assert_close(answer.matrix, problem.regression.best(), rtol=1e-3, atol=1e-3)


@METHOD
@LAYER
def test_predicted_errors_fall_with_the_size_and_are_kept_by_the_answer(kind, case):
    graph, layer = captured(*case)
    method = kind()
    if method.reason(layer.map):
        pytest.skip("not for this layer")
    problem, sizes = problem_of(graph, layer), method.sizes(layer.map, 2)
    errors, regression = method.errors(problem, sizes), problem.regression
    for (size, error), (other, smaller) in itertools.permutations(zip(sizes, errors, strict=True), 2):
        if all(one <= two for one, two in zip(size, other, strict=True)):
            assert error >= smaller - 1e-6 * max(errors)
    for size, predicted in zip(sizes, errors, strict=True):
        difference = method.factorize(problem, size).matrix - regression.best()
        error = float((problem.metric * (difference @ regression.second @ difference.T)).sum())
        assert error <= predicted * (1 + 1e-3) + 1e-5 * errors[0]


@METHOD
@LAYER
def test_it_beats_truncated_weights_where_inputs_depend_on_each_other(kind, case):
    graph, layer = captured(*case)
    method = kind()
    if method.reason(layer.map):
        pytest.skip("not for this layer")
    problem = problem_of(graph, layer)
    white = Regression.white(regression_weight(graph, layer), torch.zeros(len(problem.metric)))
    blind = FactorizationProblem(layer.name, layer.map, white, torch.eye(len(problem.metric)).double())
    size, best, second = method.sizes(layer.map, 2)[0], problem.regression.best(), problem.regression.second
    errors = []
    for given in (problem, blind):
        difference = method.factorize(given, size).matrix - best
        errors.append(float((problem.metric * (difference @ second @ difference.T)).sum()))
    assert errors[0] < errors[1]


def regression_weight(graph, layer):
    return layer.map.to_matrix(graph.constants[layer.weight])[0].double()


# ------------------------------------------------------------------------------------------------ choices of ratios

CHOICE = pytest.mark.parametrize("kind", RATIO_CHOICES.values(), ids=RATIO_CHOICES)
OPTIONS = [
    LayerOptions("a", (100.0, 60.0, 30.0), (0.0, 1.0, 9.0)),
    LayerOptions("b", (50.0, 40.0, 10.0), (0.0, 0.1, 2.0)),
    LayerOptions("c", (70.0,), (0.0,)),
]


@CHOICE
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_the_settings_of_a_choice_hold_to(check, kind):
    check(kind)


@CHOICE
@pytest.mark.parametrize("budget", [110, 115, 140, 170, 219, 220, 500])
def test_a_choice_is_within_the_budget(kind, budget):
    chosen = kind().choose(OPTIONS, budget)
    assert sum(one.costs[number] for one, number in zip(OPTIONS, chosen, strict=True)) <= budget
    if budget >= 220:
        assert chosen == [0, 0, 0]


def test_equal_accuracy_loss_finds_the_smallest_loss_that_every_layer_can_keep_to():
    for draw in range(50):
        generator = random.Random(draw)  # noqa: S311
        layers = [
            LayerOptions(
                str(number),
                (100.0, *(generator.uniform(5, 95) for _ in range(4))),
                (0.0, *(generator.choice([-0.01, 0.0, 0.1, 0.2, 0.3, 0.5]) for _ in range(4))),
            )
            for number in range(3)
        ]
        least = sum(min(one.costs) for one in layers)
        budget = least + generator.random() * (300 - least)
        chosen = RATIO_CHOICES["equal-accuracy-loss"]().choose(layers, budget)
        assert sum(one.costs[number] for one, number in zip(layers, chosen, strict=True)) <= budget
        worst = max(one.errors[number] for one, number in zip(layers, chosen, strict=True))
        every = itertools.product(range(5), repeat=3)
        within = [
            max(0.0, *(one.errors[number] for one, number in zip(layers, choice, strict=True)))
            for choice in every
            if sum(one.costs[number] for one, number in zip(layers, choice, strict=True)) <= budget
        ]
        assert max(0.0, worst) == min(within)


def test_weight_svd_may_leave_1_x_1_convolutions():
    method = rw.compression.WeightSVD(pointwise=False)
    for name, case in LAYERS.items():
        _, layer = captured(*case)
        assert bool(method.reason(layer.map)) == ("1 x 1" in name)
