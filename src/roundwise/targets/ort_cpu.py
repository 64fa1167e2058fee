"""ONNX Runtime on a CPU, by files of opset 21: fast, the default of `.onnx` files.

Where activations are quantized, weights of 2 to 4 bits are stored as INT8, the type that the integer kernels multiply.
Stored as INT4 they are turned into float in every run, and the layer computes in float. Measured in ONNX Runtime 1.31,
one thread, MobileNetV2 with 4-bit weights per channel and 8-bit activations: stored as INT8 it is 1.9 times as fast as
the float network, stored as INT4 it takes 2.6 times as long as that. The codes are the same; compressed, so are the
files (1.9 and 1.7 MB). With activations in float both take about the same time, so these weights stay INT4.
"""

import torch

from roundwise.targets.interface import INT4, INT8, INT16, UINT4, UINT8, UINT16, Target

ORT_CPU = Target(
    name="ort-cpu",
    title="ONNX Runtime on a CPU, fast",
    runtime="onnxruntime",
    # The types that DequantizeLinear takes. Opset 21 has nothing narrower than 4 bits: 2- and 3-bit codes take 4.
    weight_types=(UINT4, INT4, UINT8, INT8, UINT16, INT16),
    kernel_weight_types=(UINT8, INT8),
    signed_weight_bits=None,
    weight_zero_points=True,
    weight_groups=True,
    # Fewer than 8 bits have no kernels. Where codes are signed, ONNX Runtime 1.31 cannot move QuantizeLinear through
    # other operations (its issue 25526), so signed codes are moved to unsigned ones.
    activation_types=(UINT8, UINT16),
    moves_activation_codes=True,
    activation_zero_points=True,
    quantizes_outputs=False,
    dequantizes_for_each_reader=False,
    # In bfloat16 ONNX Runtime on a CPU has no convolutions and no matrix products, and opset 21 no convolutions.
    float_types=(torch.float16, torch.float32, torch.float64),
    bias_bits=32,
)
"""The default of `.onnx` files."""
