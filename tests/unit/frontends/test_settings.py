"""Settings of the caller that change what a model computes are in the report, and are what they were afterwards."""

import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

RECIPE = quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest())


class Classifier(nn.Module):
    def __init__(self, reads_padding=True):
        super().__init__()
        self.reads_padding = reads_padding
        self.embed, self.out = nn.Embedding(60, 32), nn.Linear(32, 5)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)

    def forward(self, tokens, padding=None):
        y = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        return self.out(y.mean(1) if self.reads_padding else y[:, 0])


TOKENS = torch.arange(16 * 9).reshape(16, 9) % 60
PADDING = (torch.arange(9) >= 6).expand(16, 9)
NO_PADDING = torch.zeros(16, 9, dtype=torch.bool)


def notes(data, fast, **kwargs):
    torch.manual_seed(0)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        quantized = rw.quantize(Classifier(**kwargs).eval(), data, RECIPE)
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return [note for note in quantized.report.notes if "fast path" in note]


@pytest.mark.parametrize(
    ("padding", "reads_padding"),
    in_thirds({"padded": PADDING, "without padding in the samples": NO_PADDING}, [True, False]),
)
def test_the_fast_path_that_drops_padded_places_is_in_the_report(padding, reads_padding):
    (note,) = notes({"tokens": TOKENS, "padding": padding}, fast=True, reads_padding=reads_padding)
    assert "set_fastpath_enabled(False)" in note


def test_there_is_no_note_if_the_caller_has_switched_it_off_or_gives_no_mask():
    assert notes({"tokens": TOKENS, "padding": PADDING}, fast=False) == []
    assert notes((TOKENS,), fast=True) == []


def test_autocast_of_the_caller_is_in_the_report():
    model, x = nn.Linear(4, 3).eval(), torch.randn(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        cast = rw.quantize(model, x, RECIPE)
        assert torch.is_autocast_enabled("cpu")
    assert any("bfloat16" in note for note in cast.report.notes)
    assert cast(x).dtype == torch.float32
    assert rw.quantize(model, x, RECIPE).report.notes == ()


class Masked(nn.Module):
    """A transformer with a causal mask that is a buffer, as in PyTorch's tutorials."""

    def __init__(self, kind, *, hint):
        super().__init__()
        layer = nn.TransformerEncoderLayer if kind == "encoder" else nn.TransformerDecoderLayer
        stack = nn.TransformerEncoder if kind == "encoder" else nn.TransformerDecoder
        self.stack, self.hint = stack(layer(8, 2, 16, batch_first=True), 1), hint
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x):
        if isinstance(self.stack, nn.TransformerEncoder):
            return self.stack(x, self.mask, None, *self.hint)
        return self.stack(x, x, self.mask, None, None, None, *self.hint)


@pytest.mark.parametrize(
    ("kind", "hint"), in_thirds(["encoder", "decoder"], {str(hint): hint for hint in [(), (None,), (False,), (True,)]})
)
def test_a_transformer_with_a_causal_mask_is_captured_whatever_it_is_told_of_the_mask(kind, hint):
    model, x = Masked(kind, hint=hint).eval(), torch.randn(3, 5, 8)
    quantized = rw.quantize(model, x, RECIPE)
    torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_a_transformer_with_an_input_as_its_mask_is_captured_for_every_mask():
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.stack = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x, mask):
            return self.stack(x, mask=mask[0])

    model, x = Open().eval(), torch.randn(3, 5, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5).expand(3, 5, 5)
    quantized = rw.quantize(model, {"x": x, "mask": causal.exp()}, RECIPE)
    for mask in (causal, torch.zeros(3, 5, 5)):
        torch.testing.assert_close(quantized(x, mask), model(x, mask), rtol=1e-3, atol=1e-3)
