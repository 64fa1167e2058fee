"""Train a quantized network with Hugging Face's accelerate.

pip install "roundwise[loops]"
python examples/train_with_accelerate.py
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw


def main(epochs: int = 3) -> rw.Model:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randn(256, 3, 8, 8)  # your training images

    accelerator = Accelerator(cpu=True)
    module = rw.trainable(model, images, rw.Quantize(rw.Weights(bits=3), activations=rw.Activations(bits=3)))
    optimizer = torch.optim.Adam(module.parameter_groups(lr=3e-3))
    loader = DataLoader(TensorDataset(images), batch_size=32, shuffle=True)
    prepared, optimizer, loader, teacher = accelerator.prepare(module, optimizer, loader, model)

    for _ in range(epochs):
        prepared.train()
        teacher.eval()
        for (batch,) in loader:
            with torch.no_grad():
                targets = teacher(batch).log_softmax(1)
            loss = F.kl_div(prepared(batch).log_softmax(1), targets, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    small = accelerator.unwrap_model(prepared).finish(images)
    print(small.report)
    assert isinstance(small, rw.Model)
    return small


if __name__ == "__main__":
    main()
