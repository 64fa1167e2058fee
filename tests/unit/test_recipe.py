"""Recipes: what may be asked for, and the way to files and back."""

import pytest
from facts import raises

import roundwise as rw

NAMES = ["features.0.conv", "features.1.conv", "classifier"]


@pytest.mark.parametrize(
    "recipe",
    [
        rw.Recipe(),
        rw.Recipe(weights=rw.Weights(bits=3, granularity=rw.PerGroup(32), symmetric=False, ranges=rw.MinMax())),
        rw.Recipe(
            rounding=rw.Stochastic(),
            overrides={"classifier": rw.Weights(bits=8, rounding=rw.Nearest()), "features.0.*": None},
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


def test_overrides_take_names_and_globs_and_the_last_one_counts():
    eight = rw.Weights(bits=8)
    recipe = rw.Recipe(overrides={"features.*": None, "features.1.conv": eight})
    resolved = recipe.resolve(NAMES)
    assert resolved == {"features.0.conv": None, "features.1.conv": eight, "classifier": recipe.weights}


def test_an_override_that_matches_nothing_names_the_nearest_layers():
    with raises(rw.RecipeError, "'clasifier'", 3, "'classifier'"):
        rw.Recipe(overrides={"clasifier": None}).resolve(NAMES)


def test_an_override_that_names_a_block_says_how_to_name_what_is_inside():
    with raises(rw.RecipeError, "'features'", 2, "'features.*'"):
        rw.Recipe(overrides={"features": None}).resolve(NAMES)


@pytest.mark.parametrize("bits", [1, 9, 12, 17, 0, -4, True, 4.5, "4"])
def test_bits_that_no_grid_has_are_an_error(bits):
    with raises(rw.RecipeError, f"bits={bits!r}", 2, 8, 16):
        rw.Weights(bits=bits)


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ({"wieghts": {}}, ("'wieghts'", "'weights'")),
        ({"weights": {"bit": 4}}, ("'bit'", "'bits'")),
        ({"rounding": "adaround-sdg"}, ("'adaround-sdg'", "'adaround-sgd'")),
        ({"rounding": {"method": "adaround-sgd", "steps": 5}}, ("'adaround-sgd'", "'steps'", "iterations")),
        ({"weights": {"granularity": "per-chanel"}}, ("'per-chanel'", "'per-channel'")),
    ],
)
def test_an_unknown_word_in_a_recipe_file_is_named(data, facts):
    with raises(rw.RecipeError, *facts):
        rw.Recipe.from_dict(data)


def test_objects_of_the_wrong_kind_are_refused_with_an_example():
    with raises(rw.RecipeError, "'per-tensor'", "granularity=PerTensor()"):
        rw.Weights(granularity="per-tensor")
    with raises(rw.RecipeError, "'nearest'", "rounding=Nearest()"):
        rw.Recipe(rounding="nearest")


def test_a_correction_survives_a_trip_through_toml_and_is_named_in_a_table_of_its_own(tmp_path):
    recipe = rw.Recipe(correction=rw.EmpiricalBias())
    assert '[correction]\nmethod = "empirical-bias"\n' in recipe.as_toml()
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    assert "correction" not in rw.Recipe().as_dict()
    with raises(rw.RecipeError, "'empirical-bias'", "correction=EmpiricalBias()"):
        rw.Recipe(correction="empirical-bias")
    with raises(rw.RecipeError, "correction", "'empirical-bais'", "empirical-bias", "analytic-bias"):
        rw.Recipe.from_dict({"correction": "empirical-bais"})
