"""The printed report: it names each rounding method that chose codes."""

import torch
from torch import nn

import roundwise as rw


def test_the_printed_report_names_each_rounding_method_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    other = rw.Weights(rounding=rw.rounding.Floor())
    recipe = rw.Quantize(rounding=rw.rounding.Nearest(), overrides={"1": other})
    shown = str(rw.quantize(model, torch.randn(8, 8), recipe).report)
    assert shown.count("nearest, floor") == 1
