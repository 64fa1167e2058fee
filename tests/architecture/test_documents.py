"""The documents tell the truth: links lead somewhere, commands exist, and the walk-through works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_the_version_is_not_one_that_was_released_with_other_contents():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    releases = re.findall(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE)
    assert releases
    assert version not in releases or not unreleased.strip()


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
    file, line, test, _ = blocks("CONTRIBUTING.md", "python")
    (package / "methods" / "rounding" / "threshold.py").write_text(file, encoding="utf-8")
    table = package / "methods" / "rounding" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    head, entry, _ = re.split(r"\n\nROUNDING_SOLVERS.*\n    \.\.\.\n|\}\n", line)
    text, added = re.subn(r"(ROUNDING_SOLVERS: .*= \{\n)", rf"\1{entry}", text)
    assert added == 1
    table.write_text(text.replace("\n\nROUNDING_SOLVERS", f"\n{head}\n\nROUNDING_SOLVERS", 1), encoding="utf-8")
    (folder / "test_threshold.py").write_text(test, encoding="utf-8")
    (files,) = (block for block in blocks("CONTRIBUTING.md", "") if "> net.py" in block)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["/bin/sh", "-ec", files], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    return folder


def run(folder: Path, *command: str) -> str:
    # The copy comes first on the path, before the package under test.
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_walkthroughs_files_pass_the_linter(walkthrough):
    pytest.importorskip("ruff")
    file, _, test, _ = blocks("CONTRIBUTING.md", "python")
    names = {"src/roundwise/methods/rounding/threshold.py": file, "tests/unit/methods/rounding/test_threshold.py": test}
    own = f"src = [{str(walkthrough)!r}]"  # there the new module exists, and so its import is one of our own
    for name, text in names.items():
        for command in (["check"], ["format", "--diff"]):
            arguments = [*command, "--no-cache", "--config", own, "--stdin-filename", name, "-"]
            ruff = [sys.executable, "-m", "ruff", *arguments]
            result = subprocess.run(ruff, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr


def test_the_walkthroughs_own_test_passes(walkthrough):
    shown = run(walkthrough, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_threshold.py")
    assert re.search(r"\d+ passed", shown)


def test_the_command_line_lists_and_explains_the_walkthroughs_method(walkthrough):
    pytest.importorskip("click")
    script = "from roundwise.cli.app import app; app(['methods'], standalone_mode=False); app(['methods', 'threshold'])"
    shown = run(walkthrough, "-c", script)
    assert re.search(r"^  threshold +\w+", shown, re.MULTILINE)
    assert re.search(r"threshold: float = 0\.5 +\w+", shown)


@pytest.mark.parametrize("option", ["--rounding", pytest.param("--recipe", marks=pytest.mark.slow)])
def test_the_walkthroughs_commands_round_with_the_method_and_show_flips(walkthrough, option):
    pytest.importorskip("click")
    lines = [line for block in blocks("CONTRIBUTING.md", "") for line in block.splitlines()]
    (line,) = (line for line in lines if line.startswith("roundwise quantize") and option in line)
    _, *arguments = shlex.split(line)
    (walkthrough / "recipe.toml").write_text(*blocks("CONTRIBUTING.md", "toml"), encoding="utf-8")
    shown = json.loads(run(walkthrough, "-m", "roundwise.cli", *arguments, "--json"))
    (layer,) = shown["report"]["stages"][-1]["layers"]
    assert layer["rounding"] == "threshold"
    assert layer["flips"] > 0
    assert "1 layer quantized by threshold" in run(walkthrough, "-m", "roundwise.cli", *arguments)


def test_the_walkthroughs_recipe_in_python_rounds_with_the_method_and_shows_flips(walkthrough):
    *_, recipe = blocks("CONTRIBUTING.md", "python")
    method, flips = run(walkthrough, "-c", recipe).split()
    assert method == "threshold"
    assert float(flips) > 0


def test_the_walkthroughs_recipe_file_has_the_setting_of_its_command(walkthrough):
    (text,) = blocks("CONTRIBUTING.md", "toml")
    (line,) = (line for block in blocks("CONTRIBUTING.md", "") for line in block.splitlines() if "--rounding" in line)
    (setting,) = re.findall(r"--set threshold=(\S+)", line)
    assert tomllib.loads(text)["stages"][0]["rounding"] == {"method": "threshold", "threshold": float(setting)}
