"""The pages in docs/ tell the truth: their code runs, their recipes are recipes, and they name everything public."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

import roundwise as rw
from roundwise.methods import activations, compression, corrections, ranges, rewrites, rounding, training
from roundwise.recipe.stages import STAGES

FOLDER = Path(__file__).parents[2] / "docs"
PAGES = sorted(FOLDER.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

TAKES_LONGER = {"tutorial"}
"""Pages that train a network."""


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def pages_with(language: str) -> list:
    return [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in TAKES_LONGER else ())
        for page in PAGES
        if blocks(page, language)
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    for name in ("sklearn", "onnxruntime"):
        if any(re.search(rf"^(import|from) {name}\b", block, re.MULTILINE) for block in blocks(page, "python")):
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for block in blocks(page, "python"):
        line = page.read_text(encoding="utf-8").partition(block)[0].count("\n")  # so that a traceback leads there
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * line + block, str(page), "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_recipe_files_of_a_page_can_be_read(page, tmp_path):
    for text in blocks(page, "toml"):
        file = tmp_path / "recipe.toml"
        file.write_text(text, encoding="utf-8")
        kinds = [STAGES[stage["stage"]] for stage in tomllib.loads(text)["stages"]]
        recipe = rw.Recipe.from_toml(file)
        assert [type(stage) for stage in recipe.stages][-len(kinds) :] == kinds


def test_the_recipes_that_a_page_gives_in_python_and_in_a_file_are_equal(tmp_path):
    """Each example of overrides stands twice on the page; the first is named `recipe` there, the second `stage`."""
    code, files = (
        [text for text in blocks(FOLDER / "recipes.md", kind) if "overrides" in text] for kind in ("python", "toml")
    )
    names = [re.findall(r"^(recipe|stage) = ", text, re.MULTILINE) for text in code]
    assert names == [["recipe"], ["stage"]]
    assert len(files) == len(code)
    namespace = {}
    for text, ((name,), file) in zip(code, zip(names, files, strict=True), strict=True):
        exec(text, namespace)  # noqa: S102
        (tmp_path / "recipe.toml").write_text(file, encoding="utf-8")
        assert rw.Recipe.of(namespace[name]) == rw.Recipe.from_toml(tmp_path / "recipe.toml")


def test_the_api_page_has_every_public_name():
    page = (FOLDER / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: roundwise\.([\w.]+)", page, re.MULTILINE))
    methods = {"activations": activations, "compression": compression, "corrections": corrections, "ranges": ranges}
    methods |= {"rewrites": rewrites, "rounding": rounding, "training": training}
    names = {name for name in rw.__all__ if name not in methods}
    for namespace, module in methods.items():
        # Tables of methods are dicts and tuples; classes and functions are what users write.
        names |= {f"{namespace}.{name}" for name in module.__all__ if callable(getattr(module, name))}
    assert shown == names


def test_every_page_is_in_the_table_of_contents():
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    listed = {line for tree in trees for line in tree.split() if line in {page.stem for page in PAGES}}
    assert listed == {page.stem for page in PAGES} - {"index"}
