"""Quantization that is trained with the network. One file per method, one line here, sorted by name."""

from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.training.lsq import LSQ
from roundwise.methods.training.lsq_plus import LSQPlus

LEARNED_QUANTIZATIONS: dict[str, type[LearnedQuantization]] = {"lsq": LSQ, "lsq-plus": LSQPlus}

__all__ = ["LEARNED_QUANTIZATIONS", "LSQ", "LSQPlus", "LearnedQuantization"]
