"""Brevitas: GPTQ, and learned rounding with the trainer of its ImageNet example."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant.scaled_int import (
    Int8WeightPerChannelFloat,
    Int8WeightPerChannelFloatMSE,
    Int8WeightPerTensorFloat,
    Int8WeightPerTensorFloatMSE,
)
from brevitas_examples.imagenet_classification.ptq.learned_round_utils import apply_learned_round
from job import Job, Result, folded, run
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64
"""Samples in a batch of the loader; the size that Brevitas' ImageNet example calibrates with."""

QUANTIZERS = {
    (False, "stats"): Int8WeightPerTensorFloat,
    (False, "mse"): Int8WeightPerTensorFloatMSE,
    (True, "stats"): Int8WeightPerChannelFloat,
    (True, "mse"): Int8WeightPerChannelFloatMSE,
}


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Result:
    """With the method and ranges that the job names."""
    method, ranges = job.settings["method"], job.settings["ranges"]
    network = with_quantizers(folded(model), job, ranges)
    data = TensorDataset(calibration, torch.zeros(len(calibration), dtype=torch.long))
    loader = DataLoader(data, batch_size=BATCH, shuffle=method == "gptq", generator=job.generator())
    notes = [f"ranges: {ranges}; codes {-(2 ** (job.bits - 1))} to {2 ** (job.bits - 1) - 1}"]
    with torch.no_grad():
        network(calibration[:BATCH])  # its quantizers choose their scales in a first pass
    if method == "gptq":
        gptq(network, loader)
        notes.insert(0, "GPTQ, no act-order, damping 0.01")
    else:
        iterations = job.settings["iterations"]
        batch = job.settings["batch_size"]
        learn_rounding(network, loader, iterations, batch)
        notes.insert(
            0, f"learned rounding (hard sigmoid), {iterations:,} steps per layer, batch {batch}, Adam 1e-3, float16"
        )
    return Result(network.eval(), notes)


def with_quantizers(model: fx.GraphModule, job: Job, ranges: str) -> nn.Module:
    """Each convolution and linear layer with a quantizer for its weights; nothing else is quantized."""
    settings: dict[str, Any] = {
        "weight_quant": QUANTIZERS[job.per_channel, ranges],
        "weight_bit_width": job.bits,
        "weight_narrow_range": False,  # as in its ImageNet example
        "return_quant_tensor": False,
    }
    network: nn.Module = layerwise_quantize(
        model, {nn.Conv2d: (qnn.QuantConv2d, settings), nn.Linear: (qnn.QuantLinear, settings)}
    )
    return network


def gptq(model: nn.Module, loader: DataLoader[Any]) -> None:
    """Layer after layer, each pass over the samples ending at the layer in turn."""
    with torch.no_grad(), gptq_mode(model, use_quant_activations=False, create_weight_orig=False) as mode:
        for _ in range(mode.num_layers):
            for images, _labels in loader:
                mode.model(images)
            mode.update()


def learn_rounding(model: nn.Module, loader: DataLoader[Any], iterations: int, batch: int) -> None:
    """As the ImageNet example does, with its defaults."""
    arguments = Namespace(
        learned_round="hard_sigmoid",
        learned_round_mode="layerwise",
        learned_round_loss="regularised_mse",
        learned_round_iters=iterations,
        learned_round_lr=1e-3,
        learned_round_lr_scheduler=None,
        learned_round_batch_size=batch,
    )
    with torch.enable_grad():
        apply_learned_round(model.requires_grad_(True), loader, arguments)


if __name__ == "__main__":
    run(quantize, "brevitas")
