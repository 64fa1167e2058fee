"""Quantization that is trained with the network. One file per method, one line here, sorted by name."""

from typing import TYPE_CHECKING

from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.training.lsq import LSQ
from roundwise.methods.training.lsq_plus import LSQPlus
from roundwise.wording import no_such_name

LEARNED_QUANTIZATIONS: dict[str, type[LearnedQuantization]] = {"lsq": LSQ, "lsq-plus": LSQPlus}

__all__ = ["LEARNED_QUANTIZATIONS", "LSQ", "LSQPlus", "LearnedQuantization"]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.training", __all__)
