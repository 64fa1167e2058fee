"""ONNX Runtime on a CPU, by the smallest files: weights of 2 to 4 bits are INT4, half a byte each.

With quantized activations such a file is slower than the float network (`targets/ort_cpu.py` has figures): choose it
where the size counts and the time does not. The codes are those of `ort-cpu`.
"""

from dataclasses import replace

from roundwise.targets.ort_cpu import ORT_CPU

ORT_SMALL = replace(
    ORT_CPU, name="ort-small", title="ONNX Runtime on a CPU, smallest file, slow", kernel_weight_types=()
)
