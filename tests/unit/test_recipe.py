"""Recipes: what may be asked for, and the way to files and back."""

import pytest
from recipes import quantizing

import roundwise as rw

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
    with pytest.raises(rw.RecipeError, match=r"'clasifier' matches none of the 3 layers.*'classifier'"):
        check({"clasifier": None})


def test_an_override_that_names_a_block_says_how_to_name_what_is_inside():
    with pytest.raises(rw.RecipeError, match=r"write 'features\.\*'"):
        check({"features": None})


@pytest.mark.parametrize("bits", [1, 9, 12, 17, 0, -4, True, 4.5, "4"])
def test_bits_that_no_grid_has_are_an_error(bits):
    with pytest.raises(rw.RecipeError, match="bits"):
        rw.Weights(bits=bits)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"wieghts": {}}, "'wieghts'"),
        ({"stages": [{"stage": "quantise"}]}, "'quantise'.*'quantize'"),
        ({"stages": [{"stage": "quantize", "weights": {"bit": 4}}]}, "'bit'"),
        ({"stages": [{"stage": "quantize", "rounding": "adarund"}]}, "'adarund'.*'adaround'"),
        ({"stages": [{"stage": "quantize", "rounding": {"method": "adaround", "steps": 5}}]}, "'steps'"),
        ({"stages": [{"stage": "quantize", "weights": {"granularity": "per-chanel"}}]}, "per-channel"),
        ({"stages": [{"stage": "quantize", "overrides": {"a": {"b": {"weights": {}}}}}]}, r"a\.b"),
        ({"stages": []}, "stage"),
        ({"stages": {}}, "list"),
    ],
)
def test_an_unknown_word_in_a_recipe_file_is_named(data, message):
    with pytest.raises(rw.RecipeError, match=message):
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
    with pytest.raises(rw.RecipeError, match="PerTensor"):
        rw.Weights(granularity="per-tensor")
    with pytest.raises(rw.RecipeError, match="Nearest"):
        quantizing(rounding="nearest")


def test_a_correction_survives_a_trip_through_toml_and_is_named_in_a_table_of_its_own(tmp_path):
    recipe = quantizing(correction=rw.corrections.EmpiricalBias())
    assert '[stages.correction]\nmethod = "empirical-bias"\n' in recipe.as_toml()
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    assert "correction" not in rw.Recipe().as_dict()["stages"][1]
    with pytest.raises(rw.RecipeError, match=r"Write correction=EmpiricalBias\(\)"):
        quantizing(correction="empirical-bias")
    with pytest.raises(rw.RecipeError, match="'empirical-bais' is not one of"):
        rw.Recipe.from_dict({"stages": [{"stage": "quantize", "correction": "empirical-bais"}]})
