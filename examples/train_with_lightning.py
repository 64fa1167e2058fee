"""Train a quantized network in Lightning: `rw.trainable` is an `nn.Module` like any other.

pip install "roundwise[loops]"
python examples/train_with_lightning.py
"""

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw


class Distilled(lightning.LightningModule):
    """Lowers the difference between the outputs of the network in training and those of the float network."""

    def __init__(self, module: nn.Module, teacher: nn.Module, lr: float) -> None:
        super().__init__()
        self.module, self.teacher, self.lr = module, teacher.requires_grad_(False), lr

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        (images,) = batch
        self.teacher.eval()  # Lightning sets all parts to training mode
        targets, outputs = self.teacher(images).log_softmax(1), self.module(images).log_softmax(1)
        loss = F.kl_div(outputs, targets, reduction="batchmean", log_target=True)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: Any = self.module.parameter_groups(lr=self.lr)  # type: ignore[operator]
        return torch.optim.Adam(groups)


def main(epochs: int = 3) -> rw.Model:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randn(256, 3, 8, 8)  # your training images

    module = rw.trainable(model, images, rw.Quantize(rw.Weights(bits=3), activations=rw.Activations(bits=3)))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    loader = DataLoader(TensorDataset(images), batch_size=32, shuffle=True)
    trainer.fit(Distilled(module, model, lr=3e-3), loader)
    small = module.finish(images)
    print(small.report)
    return small


if __name__ == "__main__":
    main()
