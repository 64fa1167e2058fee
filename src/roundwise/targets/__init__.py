"""What a runtime can hold, known before a run starts. One profile per file."""

from roundwise.targets.interface import IntegerType, Target
from roundwise.targets.ort_cpu import ORT_CPU

__all__ = ["TARGETS", "IntegerType", "Target"]

TARGETS: dict[str, Target] = {target.name: target for target in (ORT_CPU,)}
"""Each target by its name."""
