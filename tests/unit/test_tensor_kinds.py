"""Tensors that cannot be cut, copied and measured are known by their kind, in samples as in weights."""

import numpy as np
import pytest
import torch
from facts import raises
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor

import roundwise as rw
from roundwise.tensor_kinds import odd_kind

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(prototype|beta) .*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*(quantize_per_tensor|quantized tensor|torch.ao).*"),
]

NEAREST = rw.Quantize(rounding=rw.rounding.Nearest())
ODD = {
    "sparse_coo": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.to_sparse_csr(),
    "sparse_bsc": lambda x: x.to_sparse_bsc((2, 2)),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "mkldnn": lambda x: x.to_mkldnn(),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda x: x.to(torch.float8_e5m2),
    "bits8": lambda x: x.to(torch.uint8).view(torch.bits8),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "MaskedTensor": lambda x: masked_tensor(x, x > 0),
    "FakeTensor": lambda x: FakeTensorMode().from_tensor(x),
    "meta": lambda x: x.to("meta"),
}


def layer(weight):
    made = nn.Linear(4, 8)
    del made.weight
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made.eval()


@pytest.mark.parametrize("kind", ODD)
def test_odd_kinds_are_told_in_samples_and_weights(kind):
    values = torch.randn(8, 4)
    assert odd_kind(ODD[kind](values)) == kind
    for samples in (ODD[kind](values), [ODD[kind](values)], (ODD[kind](values),), {"input": ODD[kind](values)}):
        with raises(rw.CalibrationError, kind):
            rw.quantize(layer(values), samples, NEAREST)
    with raises(rw.CalibrationError, kind):
        rw.quantize(layer(values), rw.DataFree({"input": ODD[kind](values)}))
    for data in (torch.randn(16, 4), rw.DataFree((4,))):
        with raises(rw.ModelError, "'weight'", kind):
            rw.quantize(layer(ODD[kind](values)), data)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool]
)
def test_plain_tensors_are_plain_whatever_their_memory_looks_like(dtype):
    values = torch.zeros(4, 6).to(dtype)
    for tensor in (values, values.T, values[::2, 1::3], values[:1].expand(9, 6), values[:0], values[0, 0]):
        assert odd_kind(tensor) is None
    assert odd_kind(nn.Parameter(torch.zeros(2))) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">f4"),
        lambda x: x[::-1][::-1],
        lambda x: np.asfortranarray(x),
        lambda x: np.ma.masked_array(x),
        lambda x: np.rec.fromarrays([np.zeros(len(x), "i1"), x], dtype=[("a", "i1"), ("b", "f4", (4,))])["b"],
    ],
    ids=["big-endian", "backwards", "by columns", "nothing masked", "part of a record"],
)
def test_arrays_of_any_layout_and_byte_order_give_the_same_codes(change):
    values = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    model = nn.Linear(4, 8).eval()
    wanted, found = (rw.quantize(model, it, NEAREST) for it in (values, change(values)))
    assert all(
        torch.equal(a, b) for a, b in zip(wanted.state_dict().values(), found.state_dict().values(), strict=True)
    )
    assert found.report.output_error == wanted.report.output_error


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\rb", "a\0b", "a\\b", "\x1b[31m", "\ud800", "class", "None", '"""'])
@pytest.mark.parametrize("where", ["module", "parameter", "buffer"])
def test_a_name_that_no_code_can_hold_is_refused_wherever_it_is(name, where):
    model = nn.Sequential(nn.Linear(4, 8))
    match where:
        case "module":
            model.add_module(name, nn.ReLU())
        case "parameter":
            model[0].register_parameter(name, nn.Parameter(torch.zeros(1)))
        case "buffer":
            model[0].register_buffer(name, torch.zeros(1))
    for data in (torch.randn(16, 4), rw.DataFree((4,))):
        with raises(rw.ModelError, ascii(name)):
            rw.quantize(model.eval(), data)


@pytest.mark.parametrize("name", ["a'b", "a b", "é", "a{b}", "a%sb", "1", "a-b", "weight", "self"])
def test_other_names_work(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 8))
    quantized = rw.quantize(model.eval(), torch.randn(16, 4), NEAREST)
    assert [it.name for it in quantized.report.layers] == [name]
