"""What a runtime can hold, known before a run starts. One profile per file."""

from roundwise.targets.interface import IntegerType, Target
from roundwise.targets.ort_cpu import ORT_CPU
from roundwise.targets.ort_cpu_avx2 import ORT_CPU_AVX2
from roundwise.targets.ort_small import ORT_SMALL
from roundwise.targets.qnn import QNN
from roundwise.targets.tensorrt import TENSORRT

__all__ = ["TARGETS", "IntegerType", "Target"]

TARGETS: dict[str, Target] = {target.name: target for target in (ORT_CPU, ORT_SMALL, ORT_CPU_AVX2, TENSORRT, QNN)}
"""Each target by its name."""
