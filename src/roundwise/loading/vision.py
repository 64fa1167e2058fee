"""The two model collections, torchvision and timm: their names, their networks, their preprocessing.

Both are imported when they are first used; timm imports torchvision itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import nn

from roundwise.data.preprocessing import Preprocessing, of_timm, of_torchvision
from roundwise.errors import ModelError

COLLECTIONS = ("torchvision", "timm")

_OPERATORS: list[torch.library.Library] = []  # an operator exists as long as its library object does


def import_collection(collection: str) -> ModuleType:
    """Import torchvision's models, or timm.

    Raises:
        ModelError: the package is not installed, or does not work here.
    """
    try:
        models = _import_torchvision()
        return models if collection == "torchvision" else importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name not in COLLECTIONS:
            raise
        raise ModelError(f'{error.name} is not installed here. Run: pip install "roundwise[vision]"') from error


def _import_torchvision() -> ModuleType:
    """torchvision.models, even if torchvision cannot load its compiled operators.

    torchvision's usual wheels are built for PyTorch with CUDA. With a PyTorch for CPUs their library of operators
    does not load, and the import ends with "operator torchvision::nms does not exist", because torchvision describes
    two operators that nobody has defined then. Classification networks use neither, so the two are defined here by name
    only. Networks that need them (non-maximum suppression in detectors) still fail when they run.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ModelError(
                f"torchvision does not work with PyTorch {torch.__version__}: {error}. Install the versions of both "
                "that belong together."
            ) from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")
    _OPERATORS.append(library)
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.models")


def check_name(collection: str, name: str) -> ModuleType:
    """Make sure that the collection has a model of this name; return the collection's package.

    Raises:
        ModelError: it has not; the nearest names are listed.
    """
    package = import_collection(collection)
    names: list[str] = package.list_models()
    # timm's names may carry a tag that says how the weights were trained: resnet50.a1_in1k
    plain = name.partition(".")[0] if collection == "timm" else name
    if plain not in names:
        near = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Choose one of {collection}.list_models()."
        raise ModelError(f"{collection} has no model '{name}' among its {len(names)}. {hint}")
    if plain != name:
        tagged = package.list_models(f"{plain}.*", pretrained=True)
        if name not in tagged:
            there = ", ".join(tagged) or f"{plain}, without a tag"
            raise ModelError(f"timm has no weights '{name}' for its model '{plain}'. Choose one of {there}.")
    return package


def build(collection: str, name: str, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """Build one of the collection's networks, with downloaded or with random weights.

    Raises:
        ModelError: the name is unknown, or the download fails.
    """
    package = check_name(collection, name)
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with warnings.catch_warnings():
            # From inception_v3 and googlenet, about how they initialise weights that a file will replace.
            warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
            if collection == "timm":
                model = package.create_model(name, pretrained=pretrained, **settings)
            elif pretrained:
                model = package.get_model(name, weights="DEFAULT", **settings)
            else:
                builder = package.get_model_builder(name)
                if "weights_backbone" in inspect.signature(builder).parameters:
                    settings["weights_backbone"] = None  # its default would be a download
                model = builder(weights=None, **settings)
    except Exception as error:
        reason = f"({type(error).__name__}: {error})"
        if not pretrained:
            raise ModelError(f"{collection} cannot build '{name}' {reason}. Choose another model.") from error
        raise ModelError(
            f"{collection} could not download the weights of '{name}' {reason}. Without an internet connection, "
            "download them elsewhere and give the file with --weights."
        ) from error
    assert isinstance(model, nn.Module)
    return model


def preprocessing_of(collection: str, name: str) -> tuple[Preprocessing, str] | None:
    """How the collection prepares images for this model, and where it says so; None if it does not say.

    Raises:
        ModelError: the name is unknown.
    """
    package = check_name(collection, name)
    if collection == "timm":
        # The entry for the name with its tag, or for the name's default tag.
        return _of_timm_config(package.get_pretrained_cfg(name).to_dict(), name)
    # Some models of torchvision come without any trained weights.
    default = getattr(package.get_model_weights(name), "DEFAULT", None)
    found = None if default is None else of_torchvision(default.transforms())
    return None if found is None else (found, f"torchvision's {default}")


def preprocessing_of_module(model: nn.Module) -> tuple[Preprocessing, str] | None:
    """As `preprocessing_of`, for a network that was built by timm elsewhere and carries its configuration."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or "timm" not in sys.modules:
        return None
    return _of_timm_config(config, str(config.get("architecture", type(model).__name__)))


def _of_timm_config(config: dict[str, Any], name: str) -> tuple[Preprocessing, str] | None:
    resolve = importlib.import_module("timm.data").resolve_data_config
    found = of_timm(resolve(pretrained_cfg=config))
    return None if found is None else (found, f"timm's configuration of {name}")
