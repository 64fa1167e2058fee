"""A program for `test_parallel_training.py`: trains a small network, alone or as one of several processes.

Writes the gradients of the first step, the losses, and the result's outputs to the file that is named.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import roundwise as rw


def main(path, loss, journal):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    images, labels = torch.randn(101, 3, 6, 6), torch.randint(0, 4, (101,))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    gradients = []

    def note(optimizer, *_):
        if not gradients:
            gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    register_optimizer_step_pre_hook(note)
    quantize = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest(), activations=rw.Activations(bits=3))
    settings = {"epochs": 2, "batch_size": 16, "labels": 0.3, "dampening": 0.1, "weight_average": 0.9, "loss": loss}
    stages = (quantize, rw.Finetune(optimizer="sgd", learning_rate=0.01, **settings))
    result = rw.finetune(model, (images, labels), stages, journal=journal or None)
    epochs = [(one.loss, one.held_out, one.accuracy) for one in result.report.stages[-1].epochs]
    with torch.no_grad():
        found = {"gradients": gradients, "epochs": epochs, "outputs": result(images)}
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(found, f"{path}.{rank}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
