"""The vocabulary of files has the operations that PyTorch applies number by number, or says which it leaves out."""

import re

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.graph.vocabulary import VOCABULARY

LEFT_OUT = re.compile(
    r"__[lr]shift__|bitwise_(left|right)_shift"  # shifts by numbers beyond the width are undefined
    r"|gcd|lcm|ldexp|frexp|nextafter"  # about how numbers are stored
    r"|special_(?!entr)|i0|igammac?|mvlgamma|polygamma"  # functions that take long for some numbers
    r"|remainder\.Scalar_Tensor|\w+\.Scalar_Tensor|__xor__\.Scalar"  # a number, then a tensor
    r"|equal|rrelu|\w*_backward"  # gives no tensor, random numbers, derivatives
)


def number_by_number():
    """The operations that PyTorch marks so, without those that write to their operands."""
    for full_name in torch._C._dispatch_get_all_op_names():
        library, _, name = full_name.partition("::")
        packet, _, overload = name.partition(".")
        if library != "aten" or not hasattr(torch.ops.aten, packet):
            continue
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
        if operation and torch.Tag.pointwise in operation.tags and not operation._schema.is_mutable:
            yield operation


def test_an_operation_on_each_number_is_in_the_vocabulary_or_left_out_for_a_reason():
    names = {str(one).removeprefix("aten."): one for one in number_by_number()}
    assert len(names) > 200
    assert [name for name, one in names.items() if one not in VOCABULARY and not LEFT_OUT.match(name)] == []


FUNCTIONS = {
    "max": lambda x: torch.max(x, -x),
    "min": lambda x: torch.min(x, x.flip(1)),
    "clip": lambda x: torch.clip(x, -0.5, 0.5),
    "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "xor": lambda x: x * ((x > 0) ^ (x.flip(1) > 0)),
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1),
    "copysign": lambda x: torch.copysign(x, -x),
    "asinh": torch.asinh,
    "lgamma": lambda x: torch.lgamma(x.abs() + 1),
    "signbit": lambda x: x * torch.signbit(x),
}


class Applied(nn.Module):
    """A layer, and a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_with_a_function_of_each_number_comes_back_from_its_file(name, tmp_path):
    x = torch.randn(8, 4)
    model = rw.quantize(Applied(FUNCTIONS[name]).eval(), x, quantizing(rounding=rw.rounding.Nearest()))
    model.save(tmp_path / "model.rw")
    assert torch.equal(rw.load(tmp_path / "model.rw")(x), model(x))
