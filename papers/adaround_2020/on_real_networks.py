"""Every table and figure of the paper on the trained networks that benchmarks measure on, by one command.

    python papers/adaround_2020/on_real_networks.py all --workers 2 --journal runs.jsonl
    python papers/adaround_2020/on_real_networks.py table5 figure1 --journal runs.jsonl

`plan.py` says on which network and images each is run. Pages go to tables/, figures to figures/, and expected.json gets
the figures that a test expects from then on. Rows that several tables share are run once, and what the journal has is
not run again. `roundwise reproduce adaround` runs the tables on any network and data.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import figures
import torch
from plan import ITERATIONS, PARTS, SEEDS, TABLES, Part, float_score, study

from roundwise.reproduction import Journal, Outcome, Result, Settings, finished, page, run_key, run_once, runs

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
DEFAULTS = {"iterations": ITERATIONS, "seeds": SEEDS}

UNFINISHED = "no run of it is finished"

Job = tuple[Part, Settings, str, int]
"""A row, by its name, and a seed of it."""


def main() -> None:
    """Parse the command line, run, write the pages, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["all", *TABLES, *figures.FIGURES])
    parser.add_argument(
        "--iterations", type=int, default=DEFAULTS["iterations"], help="of methods that learn by minibatches"
    )
    parser.add_argument("--seeds", type=int, default=DEFAULTS["seeds"], help="runs of a row with chance in it")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--device", default="cpu", help="where the networks run: cpu, cuda")
    parser.add_argument("--journal", type=Path, help="keeps finished runs, so that none is done twice")
    parser.add_argument("--finished", action="store_true", help="run nothing: write what the journal has")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for pages and figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin, journal = time.perf_counter(), Journal(arguments.journal)
    wanted = {*TABLES, *figures.FIGURES} if "all" in arguments.what else {*arguments.what}
    needed = wanted | {figures.NEEDS[name] for name in wanted if name in figures.NEEDS}
    parts = {part: part.settings(arguments.iterations, arguments.seeds) for part in PARTS if part.table in needed}

    if not arguments.finished:
        fill(journal, parts, arguments.workers, arguments.device)
    options = [
        f"--{name}={value}" for name in ("iterations", "seeds") if (value := vars(arguments)[name]) != DEFAULTS[name]
    ]
    results = {part: finished(part.name, TABLES[part.table], settings, journal) for part, settings in parts.items()}
    tables = {part: rows for part, rows in results.items() if part.table in wanted and part.table != "figure4"}
    for part, rows in tables.items():
        score = float_score(part.network, part.tests, arguments.device)
        command = shlex.join(["python", "papers/adaround_2020/on_real_networks.py", part.table, *options])
        text = page(study(part, arguments.device), TABLES[part.table], parts[part], rows, command, score)
        write(arguments.out / "tables" / f"{part.table}.md", text)
    expect(tables, arguments.out / EXPECTED.name)
    for name in sorted(wanted & {*figures.FIGURES}):
        say(f"{name}: {figures.draw(name, results, arguments.out / 'figures')}")
    say(f"{time.perf_counter() - begin:.0f} s in all")


def fill(journal: Journal, parts: dict[Part, Settings], workers: int, device: str) -> None:
    """Run what the journal does not have, in several processes; only this one writes to it."""
    jobs = dict(missing(journal, parts))
    if not jobs:
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        outcomes = pool.map(functools.partial(work, device), jobs.values())
        for number, ((key, job), outcome) in enumerate(zip(jobs.items(), outcomes, strict=True), 1):
            journal.add(key, outcome)
            part, _, row, seed = job
            place = f"{part.table}, {part.name}, {row}, seed {seed}"
            say(f"{number} of {len(jobs)}: {place}: {outcome.score:.2f} % in {outcome.seconds:.0f} s")


def missing(journal: Journal, parts: dict[Part, Settings]) -> Iterator[tuple[str, Job]]:
    """The runs that are not in the journal, by their keys."""
    for part, settings in parts.items():
        for row, seed in runs(TABLES[part.table], settings):
            key = run_key(part.name, row, seed)
            if journal.get(key) is None:
                yield key, (part, settings, row.name, seed)


def work(device: str, job: Job) -> Outcome:
    """One run."""
    part, settings, name, seed = job
    (row,) = (row for row in TABLES[part.table].rows(settings) if row.name == name)
    return run_once(study(part, device), row, seed)


def expect(tables: Mapping[Part, Sequence[Result]], path: Path) -> None:
    """Write what each row came to, and how far another run may be from it, over what the file said before.

    Three deviations over the seeds, and half a percent for machines that sum in another order.
    """
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing: dict[str, dict[str, str]] = said.pop("not expected", {})
    for part, rows in tables.items():
        said[part.table] = {
            result.row.name: {
                "score": round(result.mean, 2),
                "tolerance": round(0.5 + 3 * result.deviation, 2),
                "runs": len(result.scores),
            }
            for result in rows
        }
        names = [row.name for row in TABLES[part.table].rows(part.settings())]
        missing[part.table] = {name: UNFINISHED for name in names if name not in said[part.table]}
    said["not expected"] = {table: reasons for table, reasons in missing.items() if reasons}
    write(path, json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Into a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


say: Callable[[str], None] = print

if __name__ == "__main__":
    main()
