"""What a method may ask to know about a layer's inputs and outputs, collected while the samples stream past.

A method names the statistic it needs as a type; the stream makes one of that type per layer, shows it every batch
through `add`, and hands it over. `Nothing` needs no pass over the samples at all, nor does what is expected from what
training left in the network.
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
