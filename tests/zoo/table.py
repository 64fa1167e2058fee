"""Write docs/networks.md from the outcomes that `make zoo` has recorded: `make zoopage`.

python tests/zoo/table.py FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from architectures import ARCHITECTURES
from steps import SAMPLES, STEPS, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "diffusers", "onnxruntime")
MARKS = {"passed": "✓", "refused": "refused", "failed": "**wrong**", "left out": "–"}

HEAD = """# Networks that are tried

`make zoo` sends every network below through the same steps, with random weights, small widths and small inputs.
Each step must pass, or end with an error that is listed in the test. `make zoopage` does the same, and then writes this
page. A dash stands where a step was left out, because a step that it needs was refused.

| step | what it compares |
|---|---|
| capture | nothing: the module becomes a graph |
| 16 bits | the outputs with 16-bit weights, and those of the module |
| batches | the same for 1 and for 5 samples |
| layouts | the same for inputs that are channels-last, permuted, or sliced out of larger tensors |
| 8 bits | with 8-bit weights and activations, the error in the report, and the error of the outputs |
| save, load | the network that was saved, and the one that was loaded: bit for bit |
| ONNX | the exported file in ONNX Runtime's default session, and the network with 8-bit weights and activations |

"""


def rows_of(page: str) -> dict[str, list[str]]:
    """The marks of each network in the table of a page."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {f"{row[1]}: {row[0]}": row[2:] for row in cells if len(row) == 2 + len(STEPS) and row[2] in MARKS.values()}


def page_of(results: Mapping[str, Sequence[Outcome]], versions: str) -> str:
    """The page for these outcomes, with these versions of packages."""
    passed = sum(all(outcome.ended == "passed" for outcome in ended) for ended in results.values())
    lines = [
        f"Of {len(results)} networks, {passed} pass all steps. Each is calibrated on {SAMPLES} samples.",
        f"The packages: {versions}.",
        "",
        f"| network | from | {' | '.join(STEPS)} |",
        "|---" * (len(STEPS) + 2) + "|",
    ]
    words = []
    for name, ended in results.items():
        entry = ARCHITECTURES[name]
        lines.append(f"| {entry.name} | {entry.source} | {' | '.join(MARKS[outcome.ended] for outcome in ended)} |")
        words += [f"- {entry.name}, {one.step}: `{_one_line(one.words)}`" for one in ended if one.words]
    if words:
        lines += ["", "## What the errors say", "", *words]
    return HEAD + "\n".join(lines) + "\n"


def _one_line(words: str) -> str:
    return re.sub(r"\s+", " ", words).replace("`", "'").strip()


def read(folder: Path) -> dict[str, list[Outcome]]:
    """The outcomes in a folder, in the order of the zoo.

    Raises:
        SystemExit: a network has none.
    """
    found: dict[str, list[Outcome]] = {}
    for file in folder.glob("*.json"):
        for name, ended in json.loads(file.read_text(encoding="utf-8")).items():
            found[name] = [Outcome(**outcome) for outcome in ended]
    if missing := [name for name in ARCHITECTURES if name not in found]:
        raise SystemExit(f"{folder} has no outcomes of {', '.join(missing)}. Run: make zoo")
    return {name: found[name] for name in ARCHITECTURES}


if __name__ == "__main__":
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    PAGE.write_text(page_of(read(Path(sys.argv[1])), versions), encoding="utf-8")
