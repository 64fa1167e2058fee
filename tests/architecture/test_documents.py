"""The documents tell the truth: links lead somewhere, commands exist, and the walk-through works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import roundwise

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("papers/*/README.md")])
COMMANDS = ("README.md", "docs/tutorial.md", "docs/recipes.md")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / document).read_text(encoding="utf-8")) if kind == language]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    missing = [
        link for link in LINK.findall(document.read_text(encoding="utf-8")) if not (document.parent / link).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("document", COMMANDS)
def test_commands_in_a_document_are_commands_with_those_options(document):
    click = pytest.importorskip("click")
    from roundwise.cli.app import app

    lines = [line for block in blocks(document, "") for line in block.splitlines() if line.startswith("roundwise ")]
    assert lines
    for line in lines:
        _, name, *arguments = shlex.split(line)
        command = app.get_command(click.Context(app), name)
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known, line


def test_the_tree_in_architecture_has_every_folder_and_module_of_the_package():
    (tree,) = (block for block in blocks("ARCHITECTURE.md", "") if block.startswith("src/roundwise/"))
    shown, parents = set(), {0: ""}
    for indent, name in re.findall(r"^( +)([\w.]+/?)(?: |$)", tree, re.MULTILINE):
        level = len(indent) // 2
        parents[level] = parents[level - 1] + name
        shown.add(parents[level])
    package = Path(roundwise.__file__).parent
    modules = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    folders = {path.parent.relative_to(package).as_posix() + "/" for path in package.glob("*/**/__init__.py")}
    left_out = {
        "cli/commands/",
        "reproduction/taskloss/",
    }  # the tree is a picture: these say no more than their parents
    assert shown == modules | folders - left_out | {"__init__.pyi"}


def test_the_layers_in_architecture_are_those_that_the_linter_keeps():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    assert "\n".join(layers) + "\n" in blocks("ARCHITECTURE.md", "")


def test_names_in_the_readme_are_public():
    used = {name for block in blocks("README.md", "python") for name in re.findall(r"\brw\.(\w+)", block)}
    assert used
    assert used <= set(roundwise.__all__)


@pytest.fixture(scope="module")
def walkthrough(tmp_path_factory):
    """A folder with a copy of the package, the walk-through's file and line added to it, and a network."""
    folder = tmp_path_factory.mktemp("walkthrough")
    package = folder / "roundwise"
    shutil.copytree(Path(roundwise.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file, line, test = blocks("CONTRIBUTING.md", "python")
    (package / "methods" / "rounding" / "threshold.py").write_text(file, encoding="utf-8")
    table = package / "methods" / "rounding" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    head, entry, _ = re.split(r"\n\nROUNDING_SOLVERS.*\n    \.\.\.\n|\}\n", line)
    text, added = re.subn(r"(ROUNDING_SOLVERS: .*= \{\n)", rf"\1{entry}", text)
    assert added == 1
    table.write_text(text.replace("\n\nROUNDING_SOLVERS", f"\n{head}\n\nROUNDING_SOLVERS", 1), encoding="utf-8")
    (folder / "test_threshold.py").write_text(test, encoding="utf-8")
    (folder / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Linear(8, 4)\n", encoding="utf-8"
    )
    return folder


def run(folder: Path, *command: str) -> str:
    # The copy comes first on the path, before the package under test.
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_walkthroughs_own_test_passes(walkthrough):
    shown = run(walkthrough, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_threshold.py")
    assert re.search(r"\d+ passed", shown)


def test_the_command_line_lists_and_explains_the_walkthroughs_method(walkthrough):
    pytest.importorskip("click")
    script = "from roundwise.cli.app import app; app(['methods'], standalone_mode=False); app(['methods', 'threshold'])"
    shown = run(walkthrough, "-c", script)
    assert re.search(r"^  threshold +\w+", shown, re.MULTILINE)
    assert re.search(r"threshold: float = 0\.5 +\w+", shown)


def test_the_walkthroughs_method_runs_from_the_command_line_with_its_setting(walkthrough):
    pytest.importorskip("click")
    np.save(walkthrough / "inputs.npy", np.random.default_rng(0).standard_normal((16, 8), np.float32))
    (line,) = (line for block in blocks("CONTRIBUTING.md", "") for line in block.splitlines() if "--rounding" in line)
    _, *arguments = shlex.split(line)
    shown = run(walkthrough, "-m", "roundwise.cli", *arguments, "--json")
    assert '"rounding": "threshold"' in shown


def test_the_walkthroughs_recipe_file_names_the_method(walkthrough):
    (text,) = blocks("CONTRIBUTING.md", "toml")
    assert tomllib.loads(text)["stages"][0]["rounding"] == {"method": "threshold", "threshold": 0.4}
    (walkthrough / "recipe.toml").write_text(text, encoding="utf-8")
    shown = run(
        walkthrough,
        "-c",
        "import roundwise; print(roundwise.Recipe.from_toml('recipe.toml').stage(roundwise.Quantize).rounding)",
    )
    assert shown.strip() == "Threshold(threshold=0.4)"
