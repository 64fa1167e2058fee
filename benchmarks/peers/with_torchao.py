"""torchao: its graph-mode (PT2E) quantization, which has 2- to 8-bit weights for convolutions; rounding to nearest.

`quantize_` with `IntxWeightOnlyConfig`, its other way, has no scale per tensor, and gives a convolution a scale for
each output channel *and* position in the kernel, which is another grid than the one that is compared here. Its GPTQ
takes no convolutions.
"""

from __future__ import annotations

import torch
from job import Job, Result, folded, run
from torch import Tensor, fx, nn
from torch.export import Dim
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer


class WeightsOnly(Quantizer):
    """Asks torchao to quantize the weights of convolutions and linear layers and nothing else."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        per_channel = job.per_channel
        self.spec = QuantizationSpec(
            torch.int8,
            (PerChannelMinMaxObserver if per_channel else MinMaxObserver).with_args(eps=1e-12),
            quant_min=-(2 ** (job.bits - 1)),
            quant_max=2 ** (job.bits - 1) - 1,
            qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
            ch_axis=0 if per_channel else None,
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the weights."""
        for node in model.graph.nodes:
            if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={node.args[1]: self.spec}, _annotated=True
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Every annotation is fine."""


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Result:
    """Export, prepare, look at the weights, convert; the samples' values do not matter."""
    images = calibration[:4]
    program = torch.export.export(folded(model), (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    prepared = prepare_pt2e(program.module(), WeightsOnly(job))
    prepared(images)
    return Result(
        convert_pt2e(prepared),
        [
            "PT2E with a quantizer for weights alone: nearest, min-max ranges, no use of samples; IntxWeightOnlyConfig "
            "has no scale per tensor and, for convolutions, none per channel; its GPTQ takes no convolutions"
        ],
    )


if __name__ == "__main__":
    run(quantize, "torchao")
