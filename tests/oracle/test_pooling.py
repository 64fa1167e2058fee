"""Pooling with `ceil_mode` and padding in ONNX: as many windows as PyTorch has, and their values."""

import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

pytest.importorskip("onnxruntime")

SIZES = {1: (8,), 2: (7, 8), 3: (6, 5, 6)}
FORMS = {"one stride more than the window": (2, 3, 1), "as far as the window": (2, 2, 1), "stride in gaps": (1, 3, 0)}
KINDS = {
    "maximum": lambda dims, form: getattr(nn, f"MaxPool{dims}d")(*form, ceil_mode=True),
    "mean of all": lambda dims, form: getattr(nn, f"AvgPool{dims}d")(*form, ceil_mode=True),
    "mean": lambda dims, form: getattr(nn, f"AvgPool{dims}d")(*form, ceil_mode=True, count_include_pad=False),
}
CASES = [
    (dims, kind, form)
    for number, (dims, kind) in enumerate((dims, kind) for dims in SIZES for kind in KINDS)
    for form in [list(FORMS)[number % 3], *(["as far as the window"] if dims == 2 else [])]
]


@pytest.mark.parametrize("case", in_thirds(list(dict.fromkeys(CASES))))
def test_a_window_that_lies_in_the_padding_alone_is_left_out(case, tmp_path):
    dims, kind, form = case
    convolution = getattr(nn, f"Conv{dims}d")(3, 4, 1)
    model = nn.Sequential(convolution, KINDS[kind](dims, FORMS[form])).eval()
    x = torch.randn(8, 3, *SIZES[dims])
    quantized = rw.quantize(model, x, quantizing(rw.Weights(8), rw.rounding.Nearest()))
    file = rw.export(quantized, tmp_path / "net.onnx")
    assert file.max_difference < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_windows_follows_the_size_of_the_image(kind, tmp_path):
    from onnxruntime import InferenceSession

    model = nn.Sequential(nn.Conv2d(3, 4, 1), KINDS[kind](2, (2, 3, 1))).eval()
    dynamic = {"input": {2: "height", 3: "width"}}
    quantized = rw.quantize(
        model, torch.randn(8, 3, 8, 9), quantizing(rw.Weights(8), rw.rounding.Nearest()), dynamic=dynamic
    )
    rw.export(quantized, tmp_path / "net.onnx")
    session = InferenceSession(tmp_path / "net.onnx")
    for height in range(4, 10):
        x = torch.randn(1, 3, height, 13 - height)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), quantized(x).detach(), rtol=1e-4, atol=1e-4)
