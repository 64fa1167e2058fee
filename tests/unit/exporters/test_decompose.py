"""Operations that the ONNX exporter takes in part only are written as others that compute the same."""

import pytest
import torch

from roundwise.exporters.onnx.decompose import clamp


@pytest.mark.parametrize("x", [torch.linspace(-3, 3, 13), torch.arange(-3, 4)], ids=["floats", "whole numbers"])
@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (0.5, 2), (0, 2), (None, 1), (0.5, None), (-1.5, 1.5)])
def test_a_clamp_computes_what_pytorchs_does(x, low, high):
    expected = torch.clamp(x, low, high)
    torch.testing.assert_close(clamp(x, low, high), expected, rtol=0, atol=0)


def test_a_network_with_a_whole_and_a_fractional_limit_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    import roundwise as rw

    class Limited(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).clamp(0, 0.5)

    quantized = rw.quantize(Limited().eval(), torch.randn(16, 4), rw.Quantize(rounding=rw.rounding.Nearest()))
    assert rw.export(quantized, tmp_path / "net.onnx").path.exists()
