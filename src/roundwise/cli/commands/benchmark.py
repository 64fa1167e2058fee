"""`roundwise benchmark`: how fast networks run, side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import click

from roundwise.cli.options import ADVANCED, METHOD, MODEL, OUTPUT, as_command, flag, number, option
from roundwise.cli.terminal import say, show_json
from roundwise.errors import FileFormatError
from roundwise.loading.timed import check_readable, open_timed
from roundwise.runtimes import time_alternately
from roundwise.wording import human_bytes, number_of

HELP = """
Time networks side by side, in each installed runtime that reads them. Each is compared with the first.

\b
  roundwise benchmark float.onnx net.onnx
  roundwise benchmark float.onnx fast.onnx small.onnx --batch-size 8 --threads 2 --json
  roundwise benchmark net.rw net.onnx net.xml --size height=224

FILES are .onnx (ONNX Runtime; and OpenVINO, if installed), .xml (OpenVINO), .rw and .pt2 (PyTorch). Inputs are made up,
of the sizes that a file states; a .pt2 program runs on its example inputs.

\b
Runs alternate: A B C, C B A, … So all of them meet the same load of the machine.
  time      the median of the runs
  speed     how many times as fast as the first file: the median of the ratios within a round,
            with the quartiles around it. 2.0 takes half the time.
Quartiles far apart mean that the machine was busy: give more --rounds, or end other programs.
"""


def open_size(text: str) -> tuple[str, int]:
    """Read `height=224`: the name of a size that a file leaves open, and a number."""
    match = re.fullmatch(r"(\w+)=0*([1-9]\d{0,8})", text)
    if match is None:
        raise click.BadParameter(f"'{text}' is not a size; write NAME=NUMBER, such as height=224.")
    return match[1], int(match[2])


@final
@dataclass(frozen=True)
class TimingOptions:
    """How networks are timed."""

    batch_size: int = number(METHOD, "Samples in a run, where a file leaves the number open.", default=1)
    threads: int = number(METHOD, "Threads of each runtime.", default=1)
    rounds: int = number(METHOD, "How often each network runs.", default=50)
    warm_up: int = number(ADVANCED, "Rounds before those, which are not measured.", least=0, default=5)
    size: tuple[tuple[str, int], ...] = option(
        METHOD, "A size that files leave open. Repeatable.", default=(), type=open_size, metavar="NAME=NUMBER"
    )
    trust_program: bool = flag(
        MODEL, "Read a .pt2 program. Reading one can run code that is in it: only from people you trust."
    )
    as_json: bool = flag(OUTPUT, "Print the results as one JSON object.", "--json")


@as_command(HELP, click.Argument(["files"], nargs=-1, required=True, type=Path))
def command(files: tuple[Path, ...], timing: TimingOptions) -> None:
    """Run `roundwise benchmark`."""
    for path in files:
        check_readable(path)
        if path.suffix.lower() == ".pt2" and not timing.trust_program:
            raise FileFormatError(
                f"{path} is a program of torch.export, and PyTorch can run code that is in such a file while it reads "
                "it. If it comes from you or from people you trust, give --trust-program."
            )
    opened = [
        one
        for path in files
        for one in open_timed(path, batch=timing.batch_size, threads=timing.threads, sizes=dict(timing.size))
    ]
    say(
        f"{number_of(timing.rounds, 'round')} of {number_of(len(opened), 'run')}, "
        f"{number_of(timing.threads, 'thread')}, batches of {number_of(timing.batch_size, 'sample')}"
    )
    timings = time_alternately([one.run for one in opened], rounds=timing.rounds, warm_up=timing.warm_up)
    results: list[dict[str, Any]] = []
    for one, measured in zip(opened, timings, strict=True):
        speed, low, high = measured.times_as_fast_as(timings[0])
        results.append(
            {
                "file": str(one.path),
                "runtime": one.runtime,
                "bytes": _size(one.path),
                "seconds": measured.median,
                "speed": speed,
                "speed_quartiles": [low, high],
            }
        )
    if timing.as_json:
        settings = {"batch_size": timing.batch_size, "threads": timing.threads, "rounds": timing.rounds}
        show_json({**settings, "results": results})
        return
    width = max(len(result["file"]) for result in results)
    wide = max(len(result["runtime"]) for result in results)
    click.echo(f"{'file':{width}}  {'runtime':{wide}}  {'size':>10}  {'time':>10}  speed")
    for result in results:
        low, high = result["speed_quartiles"]
        click.echo(
            f"{result['file']:{width}}  {result['runtime']:{wide}}  {human_bytes(result['bytes']):>10}  "
            f"{result['seconds'] * 1000:7.2f} ms  {result['speed']:.2f} ({low:.2f} to {high:.2f})"
        )


def _size(path: Path) -> int:
    """The bytes of a file, with those of the weights beside it."""
    beside = [path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else path.parent.glob(f"{path.name}.*.data")
    return path.stat().st_size + sum(one.stat().st_size for one in beside if one.is_file())
