"""ONNX Runtime on a CPU, by files of opset 21."""

import torch

from roundwise.targets.interface import IntegerType, Target

ORT_CPU = Target(
    name="ort-cpu",
    # The types that DequantizeLinear takes. Opset 21 has nothing narrower than 4 bits: 2- and 3-bit codes take 4.
    weight_types=(
        IntegerType("UINT4", 4, signed=False),
        IntegerType("INT4", 4, signed=True),
        IntegerType("UINT8", 8, signed=False),
        IntegerType("INT8", 8, signed=True),
        IntegerType("UINT16", 16, signed=False),
        IntegerType("INT16", 16, signed=True),
    ),
    weight_zero_points=True,
    # Fewer than 8 bits have no kernels. Where codes are signed, ONNX Runtime 1.31 cannot move QuantizeLinear through
    # other operations (its issue 25526), so signed codes are moved to unsigned ones.
    activation_types=(IntegerType("UINT8", 8, signed=False), IntegerType("UINT16", 16, signed=False)),
    moves_activation_codes=True,
    activation_zero_points=True,
    quantizes_outputs=False,
    dequantizes_for_each_reader=False,
    # In bfloat16 ONNX Runtime on a CPU has no convolutions and no matrix products, and opset 21 no convolutions.
    float_types=(torch.float16, torch.float32, torch.float64),
    bias_bits=32,
)
"""The default of `.onnx` files."""
