"""The settings of the stage `Finetune`: train the network on, with or without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.training import LEARNED_QUANTIZATIONS, LSQPlus
from roundwise.recipe.checks import check_choice, check_whole_number

KINDS = ("weights", "biases", "norms", "scales")
"""The kinds of parameters: weights of layers; biases; scales and shifts of normalizations; scales and offsets of
quantizers."""


@final
@dataclass(frozen=True)
class Finetune:
    """Train the network on, as the stages before have made it: its weights, and the scales of its quantizers.

    It learns from the float network's outputs, so it needs no labels; `labels` says how much those count that the data
    has. The state with the smallest loss on held-out samples is kept, which may be the one before training.

    Args:
        epochs: passes over the samples. More of them cost more time and gain less each.
        learning_rate: of weights, biases and normalizations at the start; it falls to 0 along half a cosine.
        scales_rate: the learning rate of scales and offsets, as a multiple of `learning_rate`. They are smaller numbers
            than weights are, and all weights of a channel hang on one.
        optimizer: "adam", or "sgd" with momentum 0.9 and a learning rate ten times as large.
        weight_decay: of the weights; biases, normalizations and scales have none.
        batch_size: samples in a step; a `DataLoader` has its own.
        only: kinds of parameters to train: "weights", "biases", "norms", "scales"; None trains all of them. Scales,
            biases and norms alone learn in minutes from a thousand images. Without "weights", all codes stay as they
            are.
        quantization: how weights and activations are quantized in training.
        labels: share of the labels' cross-entropy in the loss, 0 to 1; the rest is distillation. Without labels it does
            not count.
        loss: "kl" takes outputs as logits, "mse" as numbers; "auto" takes floating-point outputs as logits if they have
            two or more channels.
        features: names of layers or tensors inside the network, or globs of them, which training makes like the float
            network's too; empty compares outputs only. Outputs of a few blocks, such as `("layer1.*.conv2",)`, are
            usual.
        features_weight: of their mean difference in the loss, relative to the spread of the float network's values.
        dampening: pulls weights towards their codes, by a loss with this weight that rises from a quarter of the time
            on; 0 is without. For depthwise networks below 5 bits, where weights jump to and fro between two codes.
        freezing: weights that change their code against the last change in more than this share of the steps stay at
            the code that they had most of the time; None freezes none.
        weight_average: with 0.999, what is evaluated and kept is a running average of the parameters over about 1,000
            steps, with 0.99 over 100; 0 keeps the parameters themselves.
        precision: "bfloat16" computes products in it during training, which is faster on GPUs and takes less memory.
            Parameters, and all evaluations, stay in float32.
        recompute: compute activations again in the backward pass instead of keeping them: less memory, for a third more
            time.
        batch_norm: statistics that batch-norms use in training: "batch" are those of each batch, as in usual training;
            "running" are the network's own, which stay as they are. "auto" takes "batch" where weights are trained,
            and "running" elsewhere: with few samples, or samples unlike those that the network was trained on,
            statistics of batches change the network more than training can gain.
        batch_norm_batches: with statistics of batches, running statistics are estimated anew before each evaluation and
            at the end, on this many batches, augmented as in training; 0 keeps those of training.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    scales_rate: float = 0.1
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    batch_size: int = 64
    only: Sequence[str] | None = None
    quantization: LearnedQuantization = LSQPlus()
    labels: float = 0.0
    loss: Literal["auto", "kl", "mse"] = "auto"
    features: Sequence[str] = ()
    features_weight: float = 1.0
    dampening: float = 0.0
    freezing: float | None = None
    weight_average: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    batch_norm: Literal["auto", "batch", "running"] = "auto"
    batch_norm_batches: int = 50

    def __post_init__(self) -> None:
        check_whole_number("epochs", self.epochs, at_least=1)
        check_whole_number("batch_size", self.batch_size, at_least=2)
        check_whole_number("batch_norm_batches", self.batch_norm_batches, at_least=0)
        check_choice("quantization", self.quantization, LearnedQuantization, LEARNED_QUANTIZATIONS)
        if type(self.learning_rate) not in (int, float) or not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"learning_rate={self.learning_rate!r}: it must be a number above 0, such as 0.001.")
        limits = {"scales_rate": 1e6, "weight_decay": 1e6, "labels": 1.0, "features_weight": 1e6, "dampening": 1e6}
        for name, most in limits.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise RecipeError(f"{name}={value!r}: it must be a number from 0 to {most:,g}.")
        if self.freezing is not None and (type(self.freezing) is not float or not 0 < self.freezing < 1):
            raise RecipeError(f"freezing={self.freezing!r}: it must be a number between 0 and 1, or None.")
        if type(self.weight_average) not in (int, float) or not 0 <= self.weight_average < 1:
            raise RecipeError(f"weight_average={self.weight_average!r}: it must be a number from 0 to below 1.")
        if type(self.recompute) is not bool:
            raise RecipeError(f"recompute={self.recompute!r}: it must be True or False.")
        words = {
            "optimizer": ("adam", "sgd"),
            "loss": ("auto", "kl", "mse"),
            "precision": ("float32", "bfloat16"),
            "batch_norm": ("auto", "batch", "running"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise RecipeError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}.")
        if not isinstance(self.features, list | tuple) or not all(type(name) is str for name in self.features):
            raise RecipeError(
                f"features={self.features!r}: give a tuple of names of layers or tensors, such as ('layer1.0.conv2',), "
                "or an empty one."
            )
        object.__setattr__(self, "features", tuple(self.features))
        if self.features and self.recompute:
            raise RecipeError(
                f"features={self.features!r} with recompute=True: recomputing throws away the tensors that are "
                "compared. Choose one of the two."
            )
        if self.only is not None:
            if not isinstance(self.only, list | tuple) or not self.only or set(self.only) - set(KINDS):
                raise RecipeError(f"only={self.only!r}: give a tuple of some of {', '.join(KINDS)}, or None for all.")
            object.__setattr__(self, "only", tuple(self.only))

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch-norms use their running statistics in training, which then stay as they are."""
        if self.batch_norm == "auto":
            return self.only is not None and "weights" not in self.only
        return self.batch_norm == "running"
