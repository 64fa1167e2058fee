"""ONNX Runtime on x86 processors without VNNI instructions (Intel before 2019, AMD before 2022): exact there.

The integer kernels for unsigned activations a (0 … 255) and signed weights w multiply with VPMADDUBSW. This instruction
adds the products of two neighbouring columns in 16 bits, and clips the sum:

    clip(a₁ w₁ + a₂ w₂, −32768, 32767)

With 8-bit weights the sum reaches 2 · 255 · 128 = 65,280 in magnitude, so results may be wrong, without a warning. With
7-bit weights (−64 … 63) it reaches 2 · 255 · 64 = 32,640, so every sum is exact. Hence signed weights have 7 bits at
most. Fewer are exact as well: with weights of 4 bits, files for this target and for `ort-cpu` are the same.

Unsigned weights (`symmetric=False`) may have 8 bits: according to ONNX Runtime's documentation ("Quantize ONNX
models"), its kernels for unsigned activations and unsigned weights do not clip. Weights of 16 bits are multiplied in
float. Machines with VNNI hide the effect, so tests compute it in NumPy.
"""

from dataclasses import replace

from roundwise.targets.ort_cpu import ORT_CPU

ORT_CPU_AVX2 = replace(
    ORT_CPU,
    name="ort-cpu-avx2",
    title="ONNX Runtime on x86 without VNNI, exact",
    signed_weight_bits=7,
)
