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
        assert set(target.kernel_weight_types) <= set(target.weight_types)
    written = {target.name for exporter in EXPORTERS.values() for target in exporter.targets}
    assert written == set(TARGETS)


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
    fast = target.weight_type(book.qmin, book.qmax, for_kernels=True)
    assert (fast.bits, fast.signed) == (max(stored.bits, 8), symmetric)
    kind, moved = target.activation_type(book.qmin, book.qmax)
    assert kind.name == ("UINT8" if bits <= 8 else "UINT16")
    assert book.qmin + moved == 0


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
    assert SIGNED.activation_type(0, 255) == (INT8, -128)
    assert replace(SIGNED, moves_activation_codes=False).activation_type(0, 255) is None
    SIGNED.check(quantizing(activations=rw.Activations(8, symmetric=True)))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_target_does_not_refuse_it_has_a_type_for(name, bits, symmetric):
    target, book = TARGETS[name], Codebook(bits, symmetric)
    shifted = not symmetric
    if target.weight_fault(book.qmin, book.qmax, zero_points=shifted, groups=False) is None:
        assert target.weight_type(book.qmin, book.qmax).holds(book.qmin, book.qmax)
    if target.activation_fault(book.qmin, book.qmax, zero_points=shifted) is None:
        kind, moved = target.activation_type(book.qmin, book.qmax)
        assert kind.holds(book.qmin + moved, book.qmax + moved)


@pytest.mark.parametrize(
    ("name", "recipe", "facts"),
    [
        ("tensorrt", quantizing(rw.Weights(4, rw.PerGroup(32))), ("weights", "PerChannel()")),
        ("tensorrt", quantizing(rw.Weights(16)), ("weights", "-32768", "INT8")),
        ("tensorrt", quantizing(activations=rw.Activations(symmetric=False)), ("activations", "symmetric=True")),
        ("tensorrt", quantizing(overrides={"b": rw.Activations(16)}), ("overrides['b'].activations", "INT8")),
        ("qnn", quantizing(rw.Weights(8, symmetric=False)), ("weights", "symmetric=True")),
        ("ort-cpu-avx2", quantizing(overrides={"fc": rw.Weights(8)}), ("overrides['fc'].weights", "8 bits", "bits=7")),
    ],
)
def test_settings_that_a_target_cannot_hold_are_refused_before_the_run(name, recipe, facts):
    with pytest.raises(rw.RecipeError) as caught:
        recipe.for_target(name)
    assert all(fact in str(caught.value) for fact in (name, *facts))


def test_activations_are_signed_for_a_target_without_zero_points_where_the_recipe_leaves_it_open():
    open_recipe = quantizing(activations=rw.Activations(6), overrides={"op:add": rw.Activations(8)})
    stage = open_recipe.for_target("tensorrt").stage(rw.Quantize)
    assert stage.activations == rw.Activations(6, symmetric=True)
    assert stage.overrides["op:add"].activations == rw.Activations(8, symmetric=True)
    assert open_recipe.for_target("ort-cpu").stage(rw.Quantize) == open_recipe.stage(rw.Quantize)


def test_a_recipe_keeps_its_target_in_files_and_takes_no_second_one(tmp_path):
    recipe = replace(quantizing(activations=rw.Activations()), target="tensorrt").for_target()
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    assert recipe.for_target("tensorrt") == recipe
    with pytest.raises(rw.RecipeError) as caught:
        recipe.for_target("qnn")
    assert all(fact in str(caught.value) for fact in ("qnn", "tensorrt"))


@pytest.mark.parametrize("target", ["tensorr", "", 8, ("tensorrt",)])
def test_an_unknown_target_is_refused_with_those_there_are(target):
    with pytest.raises(rw.RecipeError) as caught:
        replace(rw.Recipe(), target=target)
    assert all(fact in str(caught.value) for fact in (repr(target), *TARGETS))
