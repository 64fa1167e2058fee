"""Qualcomm's HTP through ONNX Runtime's QNN execution provider: signed INT8 weights, unsigned activations.

From ONNX Runtime's documentation of the provider: activations are UINT8 or UINT16 with one scale per tensor, weights
are INT8 with zero point 0, one scale per tensor or per channel.

Quantizers stand where integer operations read (`graph/analysis/activations.py`), and outputs stay in float. What
computes in float here, such as softmax and the last layer's output, ONNX Runtime may leave to the CPU. Files are run
and compared in ONNX Runtime on a CPU, which takes them literally; QNN itself was not run.
"""

import torch

from roundwise.targets.interface import INT8, UINT8, UINT16, Target

QNN = Target(
    name="qnn",
    title="Qualcomm HTP, through ONNX Runtime's QNN provider",
    runtime=None,
    weight_types=(INT8,),
    kernel_weight_types=(INT8,),
    signed_weight_bits=None,
    weight_zero_points=False,
    weight_groups=False,
    activation_types=(UINT8, UINT16),
    moves_activation_codes=True,
    activation_zero_points=True,
    quantizes_outputs=False,
    dequantizes_for_each_reader=False,
    float_types=(torch.float16, torch.float32),
    bias_bits=32,
)
