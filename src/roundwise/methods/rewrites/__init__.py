"""Rewrites: float graph to float graph, the same outputs unless asked otherwise. One file per method, one line here.

`ALWAYS` are applied to every network; those in `REWRITES` where the recipe asks for them, in the order of the recipe.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from roundwise.graph.graph import Graph
from roundwise.graph.transforms.fold_batchnorm import fold_batchnorm
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.rewrites.cross_layer_equalization import CrossLayerEqualization
from roundwise.methods.rewrites.high_bias_absorption import HighBiasAbsorption
from roundwise.methods.rewrites.outlier_channel_splitting import OutlierChannelSplitting
from roundwise.wording import no_such_name

ALWAYS: tuple[Callable[[Graph], Graph], ...] = (fold_batchnorm,)

REWRITES: dict[str, type[GraphRewrite]] = {
    "cross-layer-equalization": CrossLayerEqualization,
    "high-bias-absorption": HighBiasAbsorption,
    "outlier-channel-splitting": OutlierChannelSplitting,
}

__all__ = [
    "ALWAYS",
    "REWRITES",
    "CrossLayerEqualization",
    "GraphRewrite",
    "HighBiasAbsorption",
    "OutlierChannelSplitting",
    "fold_batchnorm",
]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.rewrites", __all__)
