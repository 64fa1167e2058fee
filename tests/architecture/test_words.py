"""One thing has one name: the words that ARCHITECTURE.md does not write are not in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import roundwise

SOURCE = Path(roundwise.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
TEXTS = [*FILES, *sorted(SOURCE.rglob("*.jinja"))]
ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"

UNUSED = {
    "AdaRoundSGD": "AdaRound",
    "CapturedModel": "Network",
    "QuantizedModel": "Model",
    "W_q": "codes",
    "activation function": "nonlinearity",
    "adaround_sgd": "adaround",
    "bitwidth": "bits",
    "cached_outs": "targets",
    "capture_model": "capture",
    "comp_ratio": "ratio",
    "damping": "shrinkage, ridge",
    "export_onnx": "export",
    "fp_out": "targets",
    "gramspace": "numerics",
    "maxq": "qmax",
    "n_bits": "bits",
    "n_levels": "qmax",
    "num_bits": "bits",
    "qweight": "codes",
    "wbits": "bits",
    "x_int": "codes",
}
"""These mean one thing only, so they are nowhere: not in names, not in docstrings, comments and messages."""

NOT_OUR_NAMES = {"qdq": "fake_quantize", "quant_max": "qmax", "quant_min": "qmin"}
"""PyTorch and ONNX have these names, so code may read them; it gives them to nothing of its own."""

NOT_ARGUMENTS = {"group_size": "granularity", "per_channel": "granularity", "per_tensor": "granularity"}
"""A granularity is one object, so no public function takes its parts."""

AMBIGUOUS = {"AdaRound", "activation", "beta", "bias", "delta", "modifier", "offset", "optimizer", "pass", "sparsity"}
AMBIGUOUS |= {"segment", "task", "training", "tuning"}
"""Words of the table that also mean something else, which no test can tell apart."""


def own_names(tree: ast.Module) -> Iterator[str]:
    """Every name that a file gives: to a variable, an attribute, an argument, a function or a class."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name


def public_arguments(tree: ast.Module) -> Iterator[str]:
    """Every argument of a public function and every annotated field: what a user may have to write."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name, args=arguments) if not name.startswith("_"):
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    yield argument.arg
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def lines_with(word: str, path: Path) -> list[str]:
    """The lines of a file that have a word, in code or prose."""
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.search(rf"(?<![A-Za-z0-9_]){word}(?![A-Za-z0-9_])", line)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_has_none_of_the_words_that_mean_one_thing(path):
    assert {word: lines for word in UNUSED if (lines := lines_with(word, path))} == {}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_gives_none_of_the_names_of_others(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {name for name in own_names(tree) if name.lower() in NOT_OUR_NAMES} == set()
    assert {name for name in public_arguments(tree) if name.lower() in NOT_ARGUMENTS} == set()


def test_every_word_of_the_table_is_looked_for_or_ambiguous():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| .* \| (.*) \|$", text[text.index("## Words") :], re.MULTILINE)
    assert rows
    column = re.sub(r"\(.*?\)|for this|activations\* are tensors", "", ", ".join(rows[1:]))
    words = {word for word in re.findall(r"[A-Za-z_]+", column) if word not in ("True", "are", "tensors")}
    assert words <= {*UNUSED, *NOT_OUR_NAMES, *NOT_ARGUMENTS, *AMBIGUOUS}
