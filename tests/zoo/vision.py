"""Networks of torchvision and timm, with the smallest settings that keep their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entry import Entry, images, package, with_signal
from torch import nn


def _torchvision(function: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: with_signal(getattr(package("torchvision"), function)(**settings))


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: with_signal(package("timm").create_model(name, num_classes=10, **settings))


def _resnext() -> nn.Module:
    models = package("torchvision")
    return with_signal(models.ResNet(models.resnet.Bottleneck, [1] * 4, num_classes=10, groups=4, width_per_group=4))


TORCHVISION = (
    Entry("resnext", "torchvision", _resnext, images(32)),
    Entry("mobilenet_v2", "torchvision", _torchvision("mobilenet_v2", width_mult=0.25, num_classes=10), images(32)),
    Entry("mobilenet_v3_small", "torchvision", _torchvision("mobilenet_v3_small", num_classes=10), images(32)),
    Entry("shufflenet_v2", "torchvision", _torchvision("shufflenet_v2_x0_5", num_classes=10), images(32)),
    Entry("squeezenet", "torchvision", _torchvision("squeezenet1_1", num_classes=10), images(32)),
    Entry("googlenet", "torchvision", _torchvision("googlenet", num_classes=10, init_weights=False), images(64)),
    Entry(
        "densenet",
        "torchvision",
        _torchvision("DenseNet", growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=10),
        images(32),
    ),
    Entry("regnet_y", "torchvision", _torchvision("regnet_y_400mf", num_classes=10), images(32)),
    Entry(
        "vision_transformer",
        "torchvision",
        _torchvision(
            "VisionTransformer",
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            mlp_dim=64,
            num_classes=10,
        ),
        images(32),
    ),
    Entry(
        "swin",
        "torchvision",
        _torchvision(
            "SwinTransformer",
            patch_size=[2, 2],
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=[4, 4],
            num_classes=10,
        ),
        images(32),
    ),
)

TIMM = tuple(
    Entry(name, "timm", _timm(name, **settings), images(size))
    for name, size, settings in (
        ("resnet10t", 32, {}),
        ("resnest14d", 64, {}),
        ("res2net50_14w_8s", 32, {"layers": (1, 1, 1, 1)}),
        ("efficientnet_lite0", 32, {}),
        ("mobilenetv4_conv_small_050", 32, {}),
        ("convnext_atto", 32, {"depths": (1, 1, 2, 1)}),
        ("mobilevit_xxs", 64, {}),
        ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 2}),
        ("xcit_nano_12_p16_224", 64, {"img_size": 64, "depth": 2}),
    )
)
