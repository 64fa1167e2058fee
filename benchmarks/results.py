"""Write RESULTS.md: the prose of journals/page.md, with a table from a journal for each question.

    python benchmarks/results.py                          # after a change of the prose or of a journal
    python benchmarks/results.py --add default runs.jsonl --command "python benchmarks/accuracy.py …"

In `page.md`, the line `<!-- table: NAME -->` stands for the table of `journals/NAME.jsonl`. Each line of a journal is
one row of the table:

    {"commit": …, "date": …, "hardware": …, "command": …, "what": {…}, "figures": {…}}

`what` says what was measured (a network, bits, a method), `figures` what was found; their keys are the table's columns.
Of several lines with the same `what` the last one counts. So a table has the newest figure of each row, and the journal
keeps the earlier ones. Below the table stands how its rows were measured.

`--add` appends the runs that `accuracy.py --json` has written, with seeds pooled, as lines of the present commit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

JOURNALS = Path(__file__).parent / "journals"
PAGE = JOURNALS / "page.md"
RESULTS = Path(__file__).parent / "RESULTS.md"

PLACE = re.compile(r"^<!-- table: ([\w-]+) -->$", re.MULTILINE)
WRITTEN = "<!-- Written by benchmarks/results.py from benchmarks/journals/. Change those, not this file. -->\n\n"


class Line(NamedTuple):
    """One line of a journal."""

    commit: str
    date: str
    hardware: str
    command: str
    what: Mapping[str, Any]
    figures: Mapping[str, Any]

    @property
    def origin(self) -> tuple[str, str, str, str]:
        """How it was measured."""
        return self.commit, self.date, self.hardware, self.command


def read_journal(file: Path) -> list[Line]:
    """The newest line for each thing that was measured, in the order in which they first appear."""
    newest: dict[str, Line] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = Line(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise SystemExit(f"{file}, line {number}: {error}. A line has {', '.join(Line._fields)}.") from error
        newest[json.dumps(line.what)] = line
    return list(newest.values())


def table(lines: list[Line]) -> str:
    """The lines as a Markdown table, and below it how they were measured."""
    origins = list(dict.fromkeys(line.origin for line in lines))
    marks = {origin: f"({letter(index)})" if len(origins) > 1 else "" for index, origin in enumerate(origins)}
    rows = [{**line.what, **line.figures, "run": marks[line.origin]} for line in lines]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "run"))
    if len(origins) > 1:
        columns.append("run")
    text = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    shown = ["| " + " | ".join(cells) + " |" for cells in text]
    return "\n".join([*shown, "", *(origin_line(origin, marks[origin]) for origin in origins)])


def origin_line(origin: tuple[str, str, str, str], mark: str) -> str:
    """How some lines were measured, as an item of a list."""
    commit, date, hardware, command = origin
    how = f": `{command}`" if command else ""
    return f"- {mark} {date}, commit {commit}, {hardware}{how}".replace("-  ", "- ")


def letter(index: int) -> str:
    """The letters a, b, …, z, aa, ab and so on."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def page() -> str:
    """What RESULTS.md shall be."""
    prose = PAGE.read_text(encoding="utf-8")
    named = PLACE.findall(prose)
    if left := {file.stem for file in JOURNALS.glob("*.jsonl")} ^ set(named):
        raise SystemExit(f"{PAGE.name} and the journals beside it do not agree about {', '.join(sorted(left))}.")
    heading, _, rest = prose.partition("\n\n")
    return f"{heading}\n\n{WRITTEN}" + PLACE.sub(
        lambda place: table(read_journal(JOURNALS / f"{place[1]}.jsonl")), rest
    )


def pooled(records: Iterable[Mapping[str, Any]], commit: str, date: str, command: str) -> list[Line]:
    """What `accuracy.py --json` has written, one line for each setting, over all of its seeds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("network", "bits", "granularity", "samples", "solver", "threads"))
        groups.setdefault((*key, record["hardware"]), []).append(record)
    lines = []
    for (network, bits, granularity, images, method, threads, hardware), runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(accuracies):.2f} (deviation, {len(runs)} seeds)" if len(runs) > 1 else ""
        figures = {
            "float": f"{runs[0]['float']:.2f}",
            "nearest": f"{runs[0]['nearest']:.2f}",
            "accuracy": f"{statistics.fmean(accuracies):.2f}{spread}",
            "output error": f"{statistics.fmean(run['output_error'] for run in runs):.4f}",
            "s": f"{statistics.median(run['seconds'] for run in runs):.0f}",
        }
        what = {"network": network, "bits": bits, "granularity": granularity.replace("-", " "), "images": images}
        how = f"{hardware}, {threads} thread{'s' if threads != 1 else ''}"
        lines.append(Line(commit, date, how, command, {**what, "method": method}, figures))
    return lines


def present_commit() -> str:
    """The commit that is checked out, in short."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Add to a journal if asked to, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs=2, metavar=("NAME", "FILE"), help="append the runs in FILE to a journal")
    parser.add_argument("--command", default="", help="how the runs were made")
    arguments = parser.parse_args()
    if arguments.add:
        name, runs = arguments.add
        records = [json.loads(line) for line in Path(runs).read_text(encoding="utf-8").splitlines()]
        today = dt.datetime.now(tz=dt.UTC).date().isoformat()
        with (JOURNALS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            for line in pooled(records, present_commit(), today, arguments.command):
                file.write(json.dumps(line._asdict(), ensure_ascii=False) + "\n")
    RESULTS.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
