"""AIMET's AdaRound, with its defaults for everything that the job does not say."""

from __future__ import annotations

import operator
import tempfile
from pathlib import Path

import torch
from job import Job, Result, folded, run
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

library = torch.library.Library("torchvision", "DEF")  # what torchvision without its compiled part looks for
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import aimet_torch.common  # noqa: E402  after the operators above, which it looks for
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters  # noqa: E402
from aimet_torch.nn.modules.custom import Add  # noqa: E402
from aimet_torch.quantsim import QuantizationSimModel  # noqa: E402

CONFIGURATIONS = Path(next(iter(aimet_torch.common.__path__))) / "quantsim_config"
BATCH = 32
"""Samples in a batch of the loader; a step of AIMET's AdaRound draws 32 samples of all, which is fixed in its code."""


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Result:
    """As AIMET's documentation does: AdaRound, then a simulation with the encodings that AdaRound chose."""
    iterations = job.settings.get("iterations")
    prepared = named(folded(model))
    file = CONFIGURATIONS / ("default_config_per_channel.json" if job.per_channel else "default_config.json")
    loader: DataLoader[Tensor] = DataLoader(
        list(calibration), batch_size=BATCH, shuffle=True, generator=job.generator()
    )
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=iterations, forward_fn=lambda network, images: network(images)
    )
    example = calibration[:1]
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        rounded = Adaround.apply_adaround(
            prepared,
            example,
            parameters,
            folder,
            "weights",
            default_param_bw=job.bits,
            default_config_file=str(file),
        )
        simulated = QuantizationSimModel(rounded, example, default_param_bw=job.bits, config_file=str(file))
        simulated.set_and_freeze_param_encodings(str(Path(folder) / "weights.encodings"))
    for module in simulated.model.modules():
        for quantizers in ("input_quantizers", "output_quantizers"):
            if hasattr(module, quantizers):
                setattr(module, quantizers, nn.ModuleList([None] * len(getattr(module, quantizers))))
    steps = f"{iterations:,} steps" if iterations else "its default steps (15,000 below 8 bits)"
    return Result(
        simulated.model,
        [
            f"{steps} per layer, batch 32, Adam 1e-3; ranges: post_training_tf_enhanced; configuration: {file.name}",
            f"symmetric: {symmetries(simulated.model)}",
        ],
    )


def named(model: fx.GraphModule) -> fx.GraphModule:
    """Functional ReLUs and additions as modules, since AIMET finds a layer's activation function among modules."""
    graph = model.graph
    for number, node in enumerate(list(graph.nodes)):
        if node.op != "call_function" or node.target not in (nn.functional.relu, operator.add):
            continue
        name, module = (f"relu_{number}", nn.ReLU()) if node.target is nn.functional.relu else (f"add_{number}", Add())
        model.add_submodule(name, module)
        inputs = node.args[:1] if isinstance(module, nn.ReLU) else node.args
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, inputs))
        graph.erase_node(node)
    model.recompile()
    return model


def symmetries(model: nn.Module) -> str:
    """How the weights' quantizers really are set."""
    quantizers = [
        module.param_quantizers["weight"]
        for module in model.modules()
        if hasattr(module, "param_quantizers") and "weight" in module.param_quantizers
    ]
    return ", ".join(sorted({f"{q.symmetric} (codes {q.qmin} to {q.qmax})" for q in quantizers if q is not None}))


if __name__ == "__main__":
    run(quantize, "aimet-torch")
