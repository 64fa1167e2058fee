"""A product with a constant matrix is a linear layer, on whichever side the constant stands."""

import pytest
import torch
import torch.nn.functional as F
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

FINE = quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest())
SEQUENCE, ROWS = torch.randn(8, 6, 4), torch.randn(8, 6)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.w, self.b, self.v = (nn.Parameter(torch.randn(size)) for size in ((5, 6), (5,), (6,)))
        self.stack, self.heads = nn.Parameter(torch.randn(2, 3, 6)), nn.Parameter(torch.randn(7, 2, 3))
        self.groups, self.one = nn.Parameter(torch.randn(4, 5, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.last = nn.Linear(1, 1)

    def forward(self, x):
        return self.last(self.function(self, x)[..., None])[..., 0]


LINEAR = {
    "matrix @ x": (lambda m, x: m.w @ x, SEQUENCE, (5, 6)),
    "matmul of four dimensions": (lambda m, x: torch.matmul(m.w, x), torch.randn(8, 3, 6, 4), (5, 6)),
    "a matrix in a stack of one": (lambda m, x: m.one @ x, SEQUENCE, (5, 6)),
    "mm of a transposed batch": (lambda m, x: torch.mm(m.w, x.t()).t(), ROWS, (5, 6)),
    "addmm with a column": (lambda m, x: torch.addmm(m.b[:, None], m.w, x.t()).t(), ROWS, (5, 6)),
    "bmm": (lambda m, x: torch.bmm(m.w.expand(x.shape[0], 5, 6), x), SEQUENCE, (5, 6)),
    "bmm of copies": (lambda m, x: torch.bmm(m.w[None].repeat(x.shape[0], 1, 1), x), SEQUENCE, (5, 6)),
    "baddbmm": (lambda m, x: torch.baddbmm(m.b[None, :, None], m.w.expand(x.shape[0], 5, 6), x), SEQUENCE, (5, 6)),
    "baddbmm with the matrix last": (
        lambda m, x: torch.baddbmm(m.b[None, None], x.mT, m.w.t().expand(x.shape[0], 6, 5)),
        SEQUENCE,
        (5, 6),
    ),
    "a computed matrix": (lambda m, x: (m.w / m.w.norm()) @ x, SEQUENCE, (5, 6)),
    "einsum, constant first": (lambda m, x: torch.einsum("oi,bit->bot", m.w, x), SEQUENCE, (5, 6)),
    "einsum, constant last": (lambda m, x: torch.einsum("b i t, o i -> t b o", x, m.w), SEQUENCE, (5, 6)),
    "einsum without an arrow": (lambda m, x: torch.einsum("bi,oi", x, m.w), ROWS, (5, 6)),
    "einsum to heads": (lambda m, x: torch.einsum("bc,hdc->bhd", x, m.stack), ROWS, (6, 6)),
    "einsum from heads": (lambda m, x: torch.einsum("bhdt,ohd->bto", x, m.heads), torch.randn(8, 2, 3, 9), (7, 6)),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, dims=([1], [1])), SEQUENCE, (5, 6)),
    "tensordot, constant first": (
        lambda m, x: torch.tensordot(m.w, x, dims=([1], [1])).permute(1, 0, 2),
        SEQUENCE,
        (5, 6),
    ),
    "inner": (lambda m, x: torch.inner(x, m.w), ROWS, (5, 6)),
    "linear with a computed weight": (lambda m, x: F.linear(x, m.w.softmax(0), m.b.exp()), ROWS, (5, 6)),
}


@pytest.mark.parametrize("case", in_thirds(LINEAR))
def test_a_product_with_a_constant_matrix_is_a_layer(case, tmp_path):
    function, x, shape = case
    model = Net(function).eval()
    quantized = rw.quantize(model, x, FINE)
    (layer,) = (layer for layer in quantized.report.layers if layer.name != "last")
    assert layer.shape == shape
    assert not quantized.report.kept_float
    quantized.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    for batch in (x, x[:1], x[:5]):
        with torch.no_grad():
            torch.testing.assert_close(quantized(batch), model(batch), rtol=1e-3, atol=1e-3)
        assert torch.equal(loaded(batch), quantized(batch))


OTHERS = {
    "a vector": (lambda m, x: x @ m.v[:, None].squeeze(1), ROWS, None),
    "a matrix for each group": (lambda m, x: m.groups @ x, torch.randn(8, 4, 6, 3), "groups"),
    "einsum for each group": (
        lambda m, x: torch.einsum("bgit,goi->bgot", x, m.groups),
        torch.randn(8, 4, 6, 3),
        "groups",
    ),
    "a letter that one operand sums": (lambda m, x: torch.einsum("bit,oi->bo", x, m.w), SEQUENCE, "w"),
    "a diagonal": (lambda m, x: torch.einsum("bi,oo->bio", x, m.w[:, :5]).flatten(1), ROWS, "w"),
}


@pytest.mark.parametrize(("function", "x", "kept"), OTHERS.values(), ids=OTHERS)
def test_other_products_stay_as_they_are(function, x, kept):
    model = Net(function).eval()
    quantized = rw.quantize(model, x, FINE)
    assert [layer.name for layer in quantized.report.layers] == ["last"]
    assert [one.name for one in quantized.report.kept_float] == ([kept] if kept else [])
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)


class Spectral(nn.Module):
    """Weights in complex numbers, as Fourier neural operators have them."""

    def __init__(self, dtype=torch.complex64, pairs=False):
        super().__init__()
        self.pairs = pairs
        weight = torch.randn(16, 16, 8, dtype=dtype) * 0.1
        self.w = nn.Parameter(torch.view_as_real(weight) if pairs else weight)
        self.square = nn.Parameter(torch.randn(16, 16, dtype=torch.complex64) * 0.1)
        self.lift, self.out = nn.Conv1d(2, 16, 1), nn.Conv1d(16, 1, 1)

    def forward(self, x):
        f = self.square @ torch.fft.rfft(self.lift(x))[..., :8]
        w = torch.view_as_complex(self.w) if self.pairs else self.w
        return self.out(torch.fft.irfft(torch.einsum("bix,iox->box", f, w.to(torch.complex64)), n=x.shape[-1]))


@pytest.mark.parametrize("pairs", [False, True])
def test_complex_weights_stay_in_float_and_the_report_says_so(pairs, tmp_path):
    model, x = Spectral(pairs=pairs).eval(), torch.randn(8, 2, 32)
    quantized = rw.quantize(model, x, FINE)
    report = quantized.report
    kept = {one.name: one for one in report.kept_float}
    assert kept.keys() == {"w", "square"}
    assert kept["w"].weights == model.w.numel()
    assert "2.0 KiB" in kept["square"].reason
    assert ("view_as_complex" if pairs else "16.0 KiB") in kept["w"].reason
    assert report.float_bytes == sum(it.nbytes for it in model.parameters())
    share = report.float_share
    assert share == (model.w.numel() + 256) / (model.w.numel() + 256 + 32 + 16)
    assert f"{share:.1%}" in str(report)
    quantized.save(tmp_path / "net.rw")
    assert torch.equal(rw.load(tmp_path / "net.rw")(x), quantized(x))


def test_a_dtype_that_files_do_not_have_is_refused_on_saving(tmp_path):
    quantized = rw.quantize(Spectral(torch.complex128).eval(), torch.randn(8, 2, 32), FINE)
    with pytest.raises(rw.FileFormatError, match="complex128"):
        quantized.save(tmp_path / "net.rw")


def test_complex_inputs_and_outputs_are_refused_by_the_export_to_onnx(tmp_path):
    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return torch.fft.rfft(self.fc(x))

    quantized = rw.quantize(Transformed().eval(), torch.randn(8, 8), FINE)
    with pytest.raises(rw.ExportError, match="complex"):
        rw.export(quantized, tmp_path / "net.onnx")


def test_the_summary_says_what_share_of_the_weights_stays_in_float():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm, self.out = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, words):
            return self.out(self.lstm(self.embed(words))[0])

    report = rw.quantize(Tagger().eval(), torch.arange(40).reshape(8, 5), FINE).report
    total = sum(layer.weights for layer in report.layers) + 50 * 16 + 2 * 64 * 16
    assert report.float_share == (50 * 16 + 2 * 64 * 16) / total
    assert f"{report.float_share:.1%}" in str(report)
