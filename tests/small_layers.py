"""Small layers and their objectives, for the tests of the searches and of what is around them."""

import dataclasses

import torch

from roundwise.numerics.quadratic import Quadratic
from roundwise.statistics import Gram, Nothing
from roundwise.testing import cases


def moments(case):
    gram = case.statistic(Gram)
    return gram.fit.merge(gram.held_out)


def errors(case, matrix, shift=0.0):
    """Mean squared error of every row's output, from the samples, in float64."""
    columns = case.layer.unfold(case.inputs.double())
    targets = case.layer.fold_outputs(case.targets.double())
    outputs = matrix.double() @ columns + (case.layer.bias_rows.double() + shift).unsqueeze(-1)
    return (outputs - targets).square().mean(-1)


def errors_of(case, answer):
    """The same for a solver's answer."""
    shift = 0.0 if answer.bias_shift is None else answer.bias_shift
    return errors(case, (answer.grid or case.grid()).dequantize(answer.codes), shift)


def some_matrix(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    step = case.weight.abs().mean() + 1e-20
    return case.weight + step * torch.randn(case.weight.shape, generator=generator)


def scale_of(case):
    """A size that squared errors can be compared with; products of squares near 1e-38 lose digits."""
    return 1e-20 + case.targets.float().square().mean().item() + case.weight.square().sum().item()


def linear_case(mean=0.0, samples=256):
    """A layer of 12 inputs, correlated, around a mean."""
    base = cases()[0]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + mean
    weight = torch.randn(1, 5, 12, generator=generator)
    layer = dataclasses.replace(base.layer, weight_shape=(5, 12), bias=torch.zeros(5))
    return dataclasses.replace(
        base, layer=layer, weight=weight, inputs=inputs, targets=layer.apply_matrix(weight, inputs), nonlinearity=None
    )


def whole_problem(case):
    return dataclasses.replace(case.problem(Nothing), statistics=case.statistic(Gram, [case.samples]))


def wide(rows=6, cols=60, seed=0):
    """A problem with correlated inputs, too wide to be exhausted."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(1, 300, cols, generator=generator) + 2 * torch.randn(1, 300, 1, generator=generator)
    weight = torch.randn(1, rows, cols, generator=generator)
    return Quadratic(weight, root.mT @ root / 300, torch.zeros(1, rows, cols), torch.zeros(1, rows))
