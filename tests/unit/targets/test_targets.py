"""A target says before the run whether it can hold what a recipe asks for."""

from dataclasses import replace

import pytest
from recipes import quantizing

import roundwise as rw
from roundwise.exporters import EXPORTERS
from roundwise.numerics.grid import BITS, Codebook
from roundwise.targets import TARGETS, IntegerType

INT8 = IntegerType("INT8", 8, signed=True)
UINT8 = IntegerType("UINT8", 8, signed=False)


def test_every_target_stands_under_its_name_and_lists_types_from_narrow_to_wide():
    for name, target in TARGETS.items():
        assert target.name == name
        for types in (target.weight_types, target.activation_types):
            assert [one.bits for one in types] == sorted(one.bits for one in types)
    assert {exporter.target.name for exporter in EXPORTERS.values() if exporter.target} <= set(TARGETS)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx_runtime_on_a_cpu_holds_every_recipe(bits, symmetric):
    target, book = TARGETS["ort-cpu"], Codebook(bits, symmetric)
    weights, activations = rw.Weights(bits, symmetric=symmetric), rw.Activations(bits, symmetric=symmetric)
    target.check(quantizing(weights, activations=activations))
    stored = target.weight_type(book.qmin, book.qmax)
    assert stored.holds(book.qmin, book.qmax)
    assert stored.bits == next(width for width in (4, 8, 16) if width >= bits)
    assert stored.signed == symmetric
    assert target.activation_type(book.qmin, book.qmax).name == ("UINT8" if bits <= 8 else "UINT16")


@pytest.mark.parametrize("kind", [INT8, UINT8])
def test_an_integer_type_holds_the_numbers_between_its_ends(kind):
    assert kind.largest - kind.smallest == 255
    assert kind.holds(kind.smallest, kind.largest)
    assert not kind.holds(kind.smallest - 1, 0)
    assert not kind.holds(0, kind.largest + 1)


SIGNED = replace(
    TARGETS["ort-cpu"],
    name="signed",
    weight_types=(INT8,),
    weight_zero_points=False,
    activation_types=(INT8,),
    activation_zero_points=False,
)


@pytest.mark.parametrize(
    ("recipe", "facts"),
    [
        (quantizing(rw.Weights(16)), ("weights", "-32768", "32767", "INT8", "'signed'")),
        (quantizing(overrides={"a.*": None, "b": rw.Weights(16)}), ("overrides['b']", "INT8")),
        (quantizing(rw.Weights(4, symmetric=False)), ("weights", "symmetric=True")),
        (quantizing(activations=rw.Activations(8)), ("activations", "symmetric=True")),
        (quantizing(activations=rw.Activations(16, symmetric=True)), ("activations", "-32768", "INT8")),
    ],
)
def test_what_a_target_cannot_hold_is_refused_by_the_name_of_the_setting(recipe, facts):
    with pytest.raises(rw.RecipeError) as caught:
        SIGNED.check(recipe)
    assert all(fact in str(caught.value) for fact in facts)


def test_codes_of_activations_are_moved_only_where_the_target_allows_it():
    assert SIGNED.activation_type(0, 255) == INT8
    assert replace(SIGNED, moves_activation_codes=False).activation_type(0, 255) is None
    SIGNED.check(quantizing(activations=rw.Activations(8, symmetric=True)))
