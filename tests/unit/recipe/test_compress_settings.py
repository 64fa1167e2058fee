"""Which methods a stage takes by default."""

import pytest
import torch
from torch import nn

import roundwise as rw
from roundwise.methods.compressing import Pruning


def removes_channels(stage):
    return any(isinstance(method, Pruning) for method in stage.methods)


def test_channels_are_removed_by_default_unless_networks_with_one_smaller_layer_are_compared():
    assert removes_channels(rw.Compress(macs=0.5))
    assert removes_channels(rw.Compress(macs=0.5, choice=rw.compression.SameRatio()))
    assert not removes_channels(rw.Compress(macs=0.5, choice=rw.compression.EqualAccuracyLoss()))


@pytest.mark.parametrize("data", [torch.randn(16, 3, 6, 6), rw.DataFree((3, 6, 6))], ids=["data", "no data"])
def test_no_channels_are_removed_by_default_without_data(data):
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3)
    small = rw.compress(nn.Sequential(*layers).eval(), data, macs=0.7)
    (stage,) = (stage for stage in small.recipe.stages if isinstance(stage, rw.Compress))
    assert removes_channels(stage) == isinstance(data, torch.Tensor)
    before, after = small.report.stages[-1].macs
    assert after <= 0.7 * before


def test_the_default_is_kept_in_recipe_files(tmp_path):
    recipe = rw.Recipe((rw.Rewrite(), rw.Compress(latency=0.5)))
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
