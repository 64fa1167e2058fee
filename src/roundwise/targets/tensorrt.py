"""TensorRT 10, by ONNX files: signed INT8 for weights and activations, and all zero points 0.

From NVIDIA's documentation ("Working with Quantized Types"): quantization is symmetric, codes are INT8 from −128 to
127, with one scale per tensor for activations, and one per tensor or per channel for weights. A zero point other than 0
is refused when the file is parsed. Biases stay in float.

TensorRT also reads INT4 weights in blocks, for layers whose inputs are in float. Here weights of fewer bits are stored
as INT8. Files are run and compared in ONNX Runtime, which takes them literally; TensorRT itself was not run.
"""

import torch

from roundwise.targets.interface import INT8, Target

TENSORRT = Target(
    name="tensorrt",
    title="TensorRT 10 on NVIDIA GPUs",
    runtime=None,
    weight_types=(INT8,),
    kernel_weight_types=(INT8,),
    signed_weight_bits=None,
    weight_zero_points=False,
    weight_groups=False,
    activation_types=(INT8,),
    moves_activation_codes=False,
    activation_zero_points=False,
    quantizes_outputs=False,
    dequantizes_for_each_reader=False,
    float_types=(torch.float16, torch.float32),
    bias_bits=None,
)
