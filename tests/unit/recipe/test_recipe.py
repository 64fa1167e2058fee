"""Recipes: what may be asked for, and the way to files and back."""

import pytest
from facts import raises
from recipes import quantizing

import roundwise as rw
from roundwise.recipe import limits

NAMES = ["features.0.conv", "features.1.conv", "classifier"]


@pytest.mark.parametrize(
    "recipe",
    [
        rw.Recipe(),
        quantizing(weights=rw.Weights(bits=3, granularity=rw.PerGroup(32), symmetric=False, ranges=rw.ranges.MinMax())),
        quantizing(
            rounding=rw.rounding.Stochastic(),
            overrides={"classifier": rw.Weights(bits=8, rounding=rw.rounding.Nearest()), "features.0.*": None},
            seed=7,
            memory_budget=10_000,
        ),
    ],
)
def test_a_recipe_survives_a_trip_through_a_dict_and_through_toml(recipe, tmp_path):
    assert rw.Recipe.from_dict(recipe.as_dict()) == recipe
    path = tmp_path / "recipe.toml"
    recipe.to_toml(path)
    assert rw.Recipe.from_toml(path) == recipe


def resolve(recipe):
    stage = recipe.stage(rw.Quantize)
    chosen = stage.exceptions.weights(NAMES, ["conv2d", "conv2d", "linear"], stage.weights)
    return dict(zip(NAMES, chosen, strict=True))


def check(overrides):
    rw.Quantize(overrides=overrides).exceptions.check(NAMES, [], ["conv2d", "linear"])


def test_overrides_take_names_and_globs_and_the_last_one_counts():
    eight = rw.Weights(bits=8)
    recipe = quantizing(overrides={"features.*": None, "features.1.conv": eight})
    resolved = resolve(recipe)
    assert resolved == {
        "features.0.conv": None,
        "features.1.conv": eight,
        "classifier": recipe.stage(rw.Quantize).weights,
    }


def test_an_override_that_matches_nothing_names_the_nearest_layers():
    with raises(rw.RecipeError, "'clasifier'", 3, "'classifier'"):
        check({"clasifier": None})


def test_an_override_that_names_a_block_says_how_to_name_what_is_inside():
    with raises(rw.RecipeError, "'features'", 2, "'features.*'"):
        check({"features": None})


@pytest.mark.parametrize("bits", [1, 9, 12, 17, 0, -4, True, 4.5, "4"])
def test_bits_that_no_grid_has_are_an_error(bits):
    with raises(rw.RecipeError, f"bits={bits!r}", 2, 8, 16):
        rw.Weights(bits=bits)


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ({"wieghts": {}}, ("'wieghts'",)),
        ({"stages": [{"stage": "quantise"}]}, ("'quantise'", "'quantize'")),
        ({"stages": [{"stage": "quantize", "weights": {"bit": 4}}]}, ("'bit'", "'bits'")),
        ({"stages": [{"stage": "quantize", "rounding": "adarund"}]}, ("'adarund'", "'adaround'")),
        (
            {"stages": [{"stage": "quantize", "rounding": {"method": "adaround", "steps": 5}}]},
            ("'adaround'", "'steps'"),
        ),
        (
            {"stages": [{"stage": "quantize", "weights": {"granularity": "per-chanel"}}]},
            ("'per-chanel'", "'per-channel'"),
        ),
        ({"stages": [{"stage": "quantize", "overrides": {"a": {"b": {"weights": {}}}}}]}, ("a.b",)),
        ({"stages": []}, ("stages", "Rewrite", "Quantize")),
        ({"stages": {}}, ("stages", "list")),
    ],
)
def test_an_unknown_word_in_a_recipe_file_is_named(data, facts):
    with raises(rw.RecipeError, *facts):
        rw.Recipe.from_dict(data)


def test_exceptions_reach_activations_by_layer_tensor_glob_and_kind_of_operation():
    sixteen, four = rw.Activations(bits=16), rw.Activations(bits=4)
    stage = rw.Quantize(
        activations=rw.Activations(),
        overrides={
            "op:add": sixteen,
            "head": rw.Override(weights=rw.Weights(bits=8), activations=four),
            "relu_*": rw.Override(activations="float"),
        },
    )
    chosen = stage.exceptions
    assert chosen.activations(["x"], ["conv2d"], stage.activations) == rw.Activations()
    assert chosen.activations(["x"], ["conv2d", "add"], stage.activations) == sixteen
    assert chosen.activations(["x", "head"], ["linear", "add"], stage.activations) == four
    assert chosen.activations(["relu_1", "head"], ["linear"], stage.activations) is None
    assert rw.Recipe.from_dict(rw.Recipe((stage,)).as_dict()).stage(rw.Quantize) == stage


def test_a_quantize_stage_that_comes_first_has_a_rewrite_before_it():
    assert rw.Recipe((rw.Quantize(),)) == rw.Recipe() == rw.Recipe.of(rw.Quantize())
    for nothing in ((), None, "quantize", {"stages": []}):
        with pytest.raises(rw.RecipeError):
            rw.Recipe(nothing)


def test_objects_of_the_wrong_kind_are_refused_with_an_example():
    with raises(rw.RecipeError, "'per-tensor'", "granularity=PerTensor()"):
        rw.Weights(granularity="per-tensor")
    with raises(rw.RecipeError, "'nearest'", "rounding=Nearest()"):
        quantizing(rounding="nearest")


def test_a_correction_survives_a_trip_through_toml_and_is_named_in_a_table_of_its_own(tmp_path):
    recipe = quantizing(correction=rw.corrections.EmpiricalBias())
    assert '[stages.correction]\nmethod = "empirical-bias"\n' in recipe.as_toml()
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    assert "correction" not in rw.Recipe().as_dict()["stages"][1]
    with raises(rw.RecipeError, "'empirical-bias'", "correction=EmpiricalBias()"):
        quantizing(correction="empirical-bias")
    with raises(rw.RecipeError, "correction", "'empirical-bais'", "empirical-bias", "analytic-bias"):
        rw.Recipe.from_dict({"stages": [{"stage": "quantize", "correction": "empirical-bais"}]})


@pytest.mark.parametrize(
    ("wrong", "facts"),
    [
        (lambda: rw.Recipe(seed=1.5), ("seed", 1.5)),
        (lambda: rw.Recipe(batch_size=0), ("batch_size", 0, 1)),
        (lambda: rw.Recipe(memory_budget=-1), ("memory_budget", -1, 0)),
        (lambda: rw.Override(weights=8), ("weights", 8, "Weights(bits=8)", "'float'")),
        (lambda: rw.Override(), ("weights", "activations")),
        (lambda: rw.Quantize(8), ("weights", 8, "Weights(bits=4)")),
        (lambda: rw.Quantize(overrides=["classifier"]), ("overrides", "['classifier']", "dict")),
        (lambda: rw.Quantize(overrides={7: None}), ("overrides", 7, "'features.0'")),
        (lambda: rw.Quantize(overrides={"classifier": 8}), ("'classifier'", 8, "Weights(bits=8)")),
    ],
)
def test_values_of_the_wrong_type_are_named_with_what_to_write(wrong, facts):
    with raises(rw.RecipeError, *facts):
        wrong()


def test_a_sequence_of_stages_is_a_recipe():
    stages = [rw.Rewrite(), rw.Quantize(rw.Weights(bits=3))]
    assert rw.Recipe.of(stages) == rw.Recipe(tuple(stages))


def test_an_error_in_a_recipe_file_names_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    with raises(rw.RecipeError, str(path)):
        rw.Recipe.from_toml(path)
    for text, found in (("stages = [", path.name), ('[[stages]]\nstage = "quantise"\n', "'quantise'")):
        path.write_text(text)
        with raises(rw.RecipeError, str(path), found):
            rw.Recipe.from_toml(path)


def test_overrides_are_equal_where_keys_values_and_their_order_are():
    eight = rw.Weights(bits=8)
    one = rw.Quantize(overrides={"a": eight, "b.*": None}).overrides
    assert one == rw.Quantize(overrides={"a": eight, "b.*": None}).overrides
    assert one != rw.Quantize(overrides={"b.*": None, "a": eight}).overrides
    assert "'b.*'" in repr(one)


@pytest.mark.parametrize("part", ["a", '"a b"', "'a.b'"])
@pytest.mark.parametrize("form", ["{}=1", "[{}]", "x = {{{} = 1}}"])
@pytest.mark.parametrize("dots", [".", " . "])
def test_keys_of_many_parts_are_refused_before_they_are_parsed(part, form, dots, monkeypatch):
    text = form.format(dots.join([part] * 200_000))
    monkeypatch.setattr(limits.tomllib, "loads", lambda _: pytest.fail("parsed"))
    with raises(rw.RecipeError, limits.MOST_DEPTH):
        limits.parse_toml(text)


def test_keys_of_few_parts_and_numbers_with_points_are_parsed():
    text = "a.b.'c.d' = [" + "0.5, " * 1000 + "]\n[x.\"y z\"]\nw = 'a.b.c'"
    data = limits.parse_toml(text)
    assert len(data["a"]["b"]["c.d"]) == 1000
    assert data["x"]["y z"]["w"] == "a.b.c"
