"""Networks of transformers and diffusers, with small configurations and random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from entry import Call, Entry, images, numbers, package, tokens
from torch import nn

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
CAUSAL = {**SMALL, "num_key_value_heads": 1, "use_cache": False, "head_dim": 8}
WITHOUT_CACHE = {"use_cache": False}


def _transformers(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = package("transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


def _diffusers(model: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(package("diffusers"), model)(**settings)


def _whisper_encoder() -> nn.Module:
    transformers = package("transformers")
    config = transformers.WhisperConfig(
        init_std=0.2,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=10,
    )
    return transformers.models.whisper.modeling_whisper.WhisperEncoder(config)


def _pairs(count: int) -> Call:
    ids = torch.randint(1, 50, (count, 9))
    return (), {"input_ids": ids, "decoder_input_ids": ids[:, :6], "attention_mask": torch.ones_like(ids)}


def _spectrum(count: int) -> Call:
    return (), {"input_features": torch.randn(count, 8, 20)}


def _images_by_name(size: int, channels: int = 3) -> Callable[[int], Call]:
    return lambda count: ((), {"pixel_values": torch.randn(count, channels, size, size)})


def _noise(count: int) -> Call:
    return (torch.randn(count, 3, 16, 16), torch.randint(10, (count,))), {}


def _noise_with_text(count: int) -> Call:
    return (torch.randn(count, 4, 8, 8), torch.randint(10, (count,)), torch.randn(count, 5, 16)), {}


TRANSFORMERS = (
    Entry("bert", "transformers", _transformers("BertModel", "BertConfig", **SMALL), tokens()),
    Entry(
        "distilbert",
        "transformers",
        _transformers(
            "DistilBertModel", "DistilBertConfig", dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=50
        ),
        tokens(),
    ),
    Entry("albert", "transformers", _transformers("AlbertModel", "AlbertConfig", **SMALL, embedding_size=8), tokens()),
    Entry(
        "deberta_v2",
        "transformers",
        _transformers(
            "DebertaV2Model", "DebertaV2Config", **SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"]
        ),
        tokens(),
    ),
    Entry(
        "gpt2",
        "transformers",
        _transformers("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=1, n_head=2, vocab_size=50, **WITHOUT_CACHE),
        tokens(),
    ),
    Entry("llama", "transformers", _transformers("LlamaForCausalLM", "LlamaConfig", **CAUSAL), tokens()),
    Entry("qwen3", "transformers", _transformers("Qwen3ForCausalLM", "Qwen3Config", **CAUSAL), tokens()),
    Entry("gemma2", "transformers", _transformers("Gemma2ForCausalLM", "Gemma2Config", **CAUSAL), tokens()),
    Entry("phi", "transformers", _transformers("PhiForCausalLM", "PhiConfig", **SMALL, **WITHOUT_CACHE), tokens()),
    Entry(
        "mamba",
        "transformers",
        _transformers(
            "MambaForCausalLM",
            "MambaConfig",
            hidden_size=16,
            state_size=4,
            num_hidden_layers=1,
            vocab_size=50,
            **WITHOUT_CACHE,
        ),
        tokens(6, mask=False),
    ),
    Entry(
        "t5",
        "transformers",
        _transformers(
            "T5Model",
            "T5Config",
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            vocab_size=50,
            **WITHOUT_CACHE,
        ),
        _pairs,
    ),
    Entry(
        "bart",
        "transformers",
        _transformers(
            "BartModel",
            "BartConfig",
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=50,
            **WITHOUT_CACHE,
        ),
        _pairs,
    ),
    Entry(
        "vit",
        "transformers",
        _transformers(
            "ViTForImageClassification",
            "ViTConfig",
            initializer_range=0.2,
            image_size=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        ),
        _images_by_name(32),
    ),
    Entry(
        "segformer",
        "transformers",
        _transformers(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            initializer_range=0.2,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        _images_by_name(64),
    ),
    Entry(
        "clip_vision",
        "transformers",
        _transformers(
            "CLIPVisionModel",
            "CLIPVisionConfig",
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        _images_by_name(32),
    ),
    Entry("whisper_encoder", "transformers", _whisper_encoder, _spectrum),
    Entry(
        "wav2vec2",
        "transformers",
        _transformers(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        ),
        numbers(400),
    ),
)

LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
ONE_LEVEL = {**LEVELS, "block_out_channels": (8,)}

DIFFUSERS = (
    Entry(
        "unet_2d",
        "diffusers",
        _diffusers(
            "UNet2DModel",
            sample_size=16,
            down_block_types=("AttnDownBlock2D",),
            up_block_types=("UpBlock2D",),
            attention_head_dim=8,
            **ONE_LEVEL,
        ),
        _noise,
    ),
    Entry(
        "unet_2d_condition",
        "diffusers",
        _diffusers(
            "UNet2DConditionModel",
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=8,
            **ONE_LEVEL,
        ),
        _noise_with_text,
    ),
    Entry(
        "autoencoder_kl",
        "diffusers",
        _diffusers(
            "AutoencoderKL",
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            **LEVELS,
        ),
        images(16),
    ),
    Entry(
        "dit",
        "diffusers",
        _diffusers(
            "DiTTransformer2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            num_layers=1,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        lambda count: ((torch.randn(count, 4, 8, 8), torch.randint(10, (count,)), torch.randint(10, (count,))), {}),
    ),
)
