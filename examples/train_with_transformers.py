"""Train a quantized network with the Trainer of Hugging Face's transformers.

pip install "roundwise[loops]"
python examples/train_with_transformers.py
"""

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import roundwise as rw


class Distilled(nn.Module):
    """The Trainer wants a model that returns its loss."""

    def __init__(self, module: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._teacher = [teacher]  # in a list, so that it is no part of this module and stays in evaluation mode

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            targets = self._teacher[0](images).log_softmax(1)
        logits = self.module(images)
        loss = F.kl_div(logits.log_softmax(1), targets, reduction="batchmean", log_target=True)
        return {"loss": loss, "logits": logits}


def main(epochs: int = 3) -> rw.Model:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randn(256, 3, 8, 8)  # your training images

    module = rw.trainable(model, images, rw.Quantize(rw.Weights(bits=3), activations=rw.Activations(bits=3)))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        optimizer = torch.optim.Adam(module.parameter_groups(lr=3e-3))
        Trainer(
            model=Distilled(module, model),
            args=settings,
            train_dataset=[{"images": image} for image in images],
            optimizers=(optimizer, None),
        ).train()
    small = module.finish(images)
    print(small.report)
    return small


if __name__ == "__main__":
    main()
