"""NNCF: post-training quantization with its own setting for the bits of weights.

`nncf.compress_weights`, its way to weights alone, keeps convolutions at 8 bits in every 4-bit mode. `nncf.quantize` has
weights of 4 bits for one of its devices (NPU), together with 8-bit activations; its weights are measured like everyone
else's, in the float network.
"""

from __future__ import annotations

import nncf
import torch
from job import CannotError, Job, Result, folded, run
from nncf.common.quantization.structs import QuantizationScheme
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
from torch import Tensor, nn

BATCH = 32
"""Samples in a batch; NNCF counts batches, so all samples are read."""

COMPRESS = "nncf.compress_weights keeps convolutions at 8 bits in its 4-bit modes"


class Plain(nn.Module):
    """A traced network in a module of its own, so that NNCF takes it for an ordinary PyTorch module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Same as the network's."""
        outputs: Tensor = self.network(images)
        return outputs


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Result:
    """With `nncf.quantize`'s defaults but for the bits and granularity of weights, and the device that has such."""
    batches = list(calibration[torch.randperm(len(calibration), generator=job.generator())].split(BATCH))
    weights = QuantizationParameters(num_bits=job.bits, mode=QuantizationScheme.SYMMETRIC, per_channel=job.per_channel)
    try:
        with torch.enable_grad():
            network = nncf.quantize(
                Plain(folded(model)),
                nncf.Dataset(batches),
                target_device=nncf.TargetDevice.NPU,
                subset_size=len(batches),
                advanced_parameters=AdvancedQuantizationParameters(weights_quantization_params=weights),
            )
    except ValueError as error:
        if "incompatible" not in str(error):
            raise  # then it failed, which is another thing than having no 3-bit weights for this device
        raise CannotError(f"nncf.quantize: {' '.join(str(error).split())} And {COMPRESS}.") from error
    return Result(
        network,
        [
            "nearest, min-max ranges, fast bias correction, target_device=NPU; its own network has 8-bit activations; "
            + COMPRESS
        ],
    )


if __name__ == "__main__":
    QuantizedFunctionsCPU.get("Quantize_forward")  # compiles NNCF's C++ once, outside the time that is measured
    run(quantize, "nncf")
