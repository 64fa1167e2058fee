"""From a module of your own to a 4-bit ONNX file: the main job, in one script that needs no downloads.

    python examples/quantize_a_module.py [FOLDER]

Replace `ResidualNetwork` by your trained model and `photographs` by a few hundred inputs of the kind it will meet.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import roundwise as rw


class ResidualNetwork(nn.Module):
    """Stands for your trained model: a stem, one residual block, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).relu()
        features = (features + self.second(self.first(features))).relu()
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = ResidualNetwork().eval()
    photographs = torch.rand(64, 3, 32, 32)

    recipe = rw.Recipe(
        (
            rw.Quantize(
                weights=rw.Weights(bits=4, granularity=rw.PerChannel()),
                rounding=rw.rounding.GramAdaRound(),
                overrides={"classifier": rw.Weights(bits=8)},
            ),
        )
    )
    quantized = rw.quantize(model, photographs, recipe)
    print(quantized.report)

    folder.mkdir(parents=True, exist_ok=True)
    quantized.save(folder / "model.rw")
    assert torch.equal(rw.load(folder / "model.rw")(photographs), quantized(photographs))

    rw.export(quantized, folder / "model.onnx")  # runs it in ONNX Runtime and compares before it leaves it there
    print(f"wrote {folder / 'model.rw'} and {folder / 'model.onnx'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
