"""From options to a recipe."""

import dataclasses

import pytest
from facts import raises

import roundwise as rw
from roundwise.cli.recipes import RecipeOptions, build_recipe
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rounding import ROUNDING_SOLVERS


def test_options_change_a_recipe_file_and_leave_the_rest(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        "seed = 5\n[[stages]]\nstage = 'quantize'\nrounding = {method = 'adaround', iterations = 50}\n"
        "weights = {bits = 8, symmetric = false}\noverrides.head.weights = 'float'\n"
    )
    recipe = build_recipe(RecipeOptions(recipe=path, bits=3, settings=["learning_rate=0.5"], overrides=["stem.*=4"]))
    stage = recipe.stage(rw.Quantize)
    assert (recipe.seed, stage.weights.bits, stage.weights.symmetric) == (5, 3, False)
    assert stage.rounding == rw.rounding.AdaRound(iterations=50, learning_rate=0.5)
    assert list(stage.overrides) == ["head", "stem.*"]
    assert stage.overrides["head"].weights == "float"
    assert stage.overrides["stem.*"].weights == rw.Weights(bits=4, symmetric=False)


def test_no_options_are_the_default_recipe():
    assert build_recipe(RecipeOptions()) == rw.Recipe()


def test_naming_the_method_that_is_in_place_keeps_its_settings():
    assert build_recipe(RecipeOptions(rounding="gram-adaround")) == rw.Recipe()


def test_settings_of_range_estimation_have_a_prefix():
    recipe = build_recipe(RecipeOptions(settings=["ranges.candidates=7", "rounding.iterations=9"]))
    assert recipe.stage(rw.Quantize).weights.ranges == rw.ranges.WeightMSE(candidates=7)
    assert isinstance(recipe.stage(rw.Quantize).rounding, rw.rounding.GramAdaRound)
    assert recipe.stage(rw.Quantize).rounding.iterations == 9


TARGETS = {"": ROUNDING_SOLVERS, "ranges.": RANGE_ESTIMATORS, "activations.ranges.": ACTIVATION_RANGES}


def method_of(recipe, target):
    stage = recipe.stage(rw.Quantize)
    return {"": stage.rounding, "ranges.": stage.weights.ranges}.get(target) or stage.activations.ranges


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, table in TARGETS.items() for name in table])
def test_every_setting_of_every_method_can_be_given_as_text(target, name):
    chosen = {"": "rounding", "ranges.": "ranges", "activations.ranges.": "activation_ranges"}[target]
    kind = TARGETS[target][name]
    settings = [f"{target}{field.name}={getattr(kind(), field.name)}" for field in dataclasses.fields(kind)]
    recipe = build_recipe(RecipeOptions(activations=8, settings=settings, **{chosen: name}))
    assert method_of(recipe, target) == kind()


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("iterations=1_000", "iterations", 1000),
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("any_code=None", "any_code", None),
        ("free_bias=no", "free_bias", False),
        ("any_code=True", "any_code", True),
    ],
)
def test_settings_are_read_as_toml_has_them(text, setting, value):
    rounding = build_recipe(RecipeOptions(settings=[text])).stage(rw.Quantize).rounding
    assert rounding == dataclasses.replace(rw.rounding.GramAdaRound(), **{setting: value})


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("iterations=1.5", ("iterations=1.5",)),
        ("learning_rate=high", ("'high'",)),
        ("free_bias=maybe", ("'maybe'", "true", "false")),
        ("rewrites.cross-layer-equalization.relu6=medium", ("'medium'", "'keep'", "'relu'")),
        ("itertaions=3", ("'gram-adaround'", "'itertaions'", "'iterations'")),
    ],
)
def test_settings_of_another_type_are_refused(text, facts):
    with raises(rw.RecipeError, f"--set {text}", *facts):
        build_recipe(RecipeOptions(settings=[text], rewrites=["cross-layer-equalization"]))


@pytest.mark.parametrize(
    "options",
    [
        {"settings": ["iterations=0"]},
        {"settings": ["itertaions=3"]},
        {"settings": ["ranges.candidates=0"]},
        {"overrides": ["head=1"]},
        {"rounding": "gptq", "settings": ["ridge=0"]},
        {"bits": 9},
    ],
    ids=str,
)
def test_the_message_about_an_option_names_no_stage_of_a_recipe_that_the_user_did_not_give(options):
    with pytest.raises(rw.RecipeError) as caught:
        build_recipe(RecipeOptions(**options))
    assert "stages[" not in str(caught.value)
    assert not str(caught.value).startswith("recipe")


def test_the_message_about_a_line_of_a_recipe_file_names_its_stage(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[[stages]]\nstage = 'quantize'\nrounding = {method = 'gptq', ridge = 0}\n")
    with raises(rw.RecipeError, str(path), "stages[0]", "ridge=0"):
        build_recipe(RecipeOptions(recipe=path, bits=3))


def test_an_option_changes_every_stage_of_its_kind_and_no_other(tmp_path):
    path, absorption = tmp_path / "recipe.toml", rw.rewrites.HighBiasAbsorption()
    rw.Recipe([rw.Rewrite((absorption,)), rw.Rewrite(()), rw.Quantize(rounding=rw.rounding.Nearest())]).to_toml(path)
    recipe = build_recipe(RecipeOptions(recipe=path, bits=3, overrides=["head=8"]))
    stage = recipe.stage(rw.Quantize)
    assert (stage.weights.bits, stage.overrides["head"].weights.bits) == (3, 8)
    assert isinstance(stage.rounding, rw.rounding.Nearest)
    assert recipe.stages[:2] == (rw.Rewrite((absorption,)), rw.Rewrite(()))
    recipe = build_recipe(RecipeOptions(recipe=path, rewrites=["high-bias-absorption"]))
    assert recipe.stages[:2] == 2 * (rw.Rewrite((absorption,)),)


def test_a_recipe_that_does_not_quantize_is_refused(tmp_path):
    rw.Recipe([rw.Rewrite()]).to_toml(tmp_path / "recipe.toml")
    with raises(rw.RecipeError, "Quantize", "Rewrite"):
        build_recipe(RecipeOptions(recipe=tmp_path / "recipe.toml"))


def test_the_bits_of_activations_are_said_once_and_settings_are_named_as_they_were_written():
    twice = RecipeOptions(activations=8, settings=["activations.bits=4"])
    with raises(rw.RecipeError, "--set activations.bits=4", "--activations 8"):
        build_recipe(twice)
    with raises(rw.RecipeError, "--set activations.foo=1", "activations", "'foo'"):
        build_recipe(RecipeOptions(activations=8, settings=["activations.foo=1"]))
    changed = build_recipe(RecipeOptions(activations=8, settings=["activations.adapt_rounding=no"]))
    assert changed.stage(rw.Quantize).activations == rw.Activations(bits=8, adapt_rounding=False)


def test_rewrites_that_the_weights_ask_for_can_be_given_settings():
    settings = ["rewrites.cross-layer-equalization.relu6=keep"]
    recipe = build_recipe(RecipeOptions(one_per_tensor=True, settings=settings))
    assert recipe.stage(rw.Rewrite).methods == (rw.rewrites.CrossLayerEqualization(relu6="keep"),)
    with raises(rw.RecipeError, f"--set {settings[0]}", "--rewrite"):
        build_recipe(RecipeOptions(one_per_channel=True, settings=settings))


@pytest.mark.parametrize(
    ("text", "bits", "granularity"),
    [
        ("head=8", 8, rw.PerTensor()),
        ("head=8,per-channel", 8, rw.PerChannel()),
        ("head=per-group:32", 3, rw.PerGroup(32)),
        ("head= Per-Channel , 8", 8, rw.PerChannel()),
    ],
)
def test_an_override_gives_bits_or_granularity_or_both(text, bits, granularity):
    recipe = build_recipe(RecipeOptions(bits=3, one_per_tensor=True, overrides=[text]))
    assert recipe.stage(rw.Quantize).overrides["head"].weights == rw.Weights(bits=bits, granularity=granularity)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["head=4", "h*=5", "head=8"], [("h*", 5), ("head", 8)]),
        (["head=float"], [("*", 2), ("head", None)]),
        (["*=float"], [("head", 7), ("*", None)]),
        (["head=per-tensor"], [("*", 2), ("head", 7)]),
    ],
)
def test_the_last_override_comes_last_and_changes_what_was_said_of_its_layer(tmp_path, texts, expected):
    path = tmp_path / "recipe.toml"
    path.write_text("[[stages]]\nstage = 'quantize'\noverrides = {head.weights.bits = 7, '*'.weights.bits = 2}\n")
    recipe = build_recipe(RecipeOptions(recipe=path if len(texts) == 1 else None, overrides=texts))
    overrides = {name: one.weights for name, one in recipe.stage(rw.Quantize).overrides.items()}
    assert [(name, None if own == "float" else own.bits) for name, own in overrides.items()] == expected
    if texts == ["head=per-tensor"]:
        assert overrides["head"].granularity == rw.PerTensor()


@pytest.mark.parametrize(
    ("text", "key", "weights", "activations"),
    [
        ("head=activations:16", "head", None, rw.Activations(bits=16)),
        ("op:add=activations:4", "op:add", None, rw.Activations(bits=4)),
        ("head=activations:float", "head", None, "float"),
        ("head=8,activations:16", "head", rw.Weights(bits=8), rw.Activations(bits=16)),
        ("head=float,activations:16", "head", "float", rw.Activations(bits=16)),
        ("a=b=activations:16", "a=b", None, rw.Activations(bits=16)),
    ],
)
def test_an_override_reaches_activations(text, key, weights, activations):
    recipe = build_recipe(RecipeOptions(activations=8, overrides=[text]))
    assert dict(recipe.stage(rw.Quantize).overrides) == {key: rw.Override(weights, activations)}


def test_an_override_changes_one_of_weights_and_activations_and_leaves_the_other():
    recipe = build_recipe(RecipeOptions(overrides=["head=8", "head=activations:16", "head=per-tensor"]))
    expected = rw.Override(rw.Weights(bits=8, granularity=rw.PerTensor()), rw.Activations(bits=16))
    assert dict(recipe.stage(rw.Quantize).overrides) == {"head": expected}
