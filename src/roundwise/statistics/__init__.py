"""Statistics: what methods can know about the inputs and outputs of a layer, or about the values of an activation.

A method declares the type of the statistic that it needs. The stream makes an empty one for each layer, calls its `add`
with every batch, and gives it to the method. `Nothing`, `ExpectedMeans` and `ExpectedValues` need no samples.
"""

from roundwise.statistics.base import Addend, Nothing, Statistic
from roundwise.statistics.blocks import BlockSamples, BlockStatistic
from roundwise.statistics.expected import ExpectedMeans, ExpectedValues
from roundwise.statistics.gram import Gram
from roundwise.statistics.means import Means
from roundwise.statistics.samples import Samples
from roundwise.statistics.values import Extremes, Histogram, ValueStatistic

__all__ = [
    "Addend",
    "BlockSamples",
    "BlockStatistic",
    "ExpectedMeans",
    "ExpectedValues",
    "Extremes",
    "Gram",
    "Histogram",
    "Means",
    "Nothing",
    "Samples",
    "Statistic",
    "ValueStatistic",
]
