"""Try many hostile `.rw` files: load each, call the network, print its report, save it, and export some.

    python tests/fuzz/run.py --files 100000  # the long run: states what it found, and exits with 1 if anything
    python tests/fuzz/run.py --only 4711      # one file again, in this process, with the traceback

Each file (`hostile.py`) is tried in a child process that is forked once PyTorch is imported. The child says how far it
came; its parent sees how it ended and how much memory it took. There are five faults:

    crash       the child ended by a signal, or hung
    foreign     an error that is not Roundwise's own
    memory      loading took more than 64 MiB and 40 times the file's size, or calling more than its bound
    leak        two calls gave different numbers after the free memory was filled otherwise: they show foreign memory
    written     a call wrote to its inputs, to memory beside them, or to the network's tensors
"""

import argparse
import collections
import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hostile
import jinja2
import torch
import torch.utils._pytree as pytree

import roundwise as rw
from roundwise.artifacts.guard import Memory

LOAD, CALL = (64 << 20, 40), 160 << 20
"""Bytes that loading may take, and for each byte of the file; and that a call may take besides its bound."""

ROOM = 6 << 30
"""Bytes of addresses that a child may have besides those of its parent: a fault must not take the machine."""

AROUND = 64
"""Numbers before and behind an input, in the same memory: a network must neither show nor change them."""

IN_ONE_CHILD = 50
"""Files that one child tries. After a crash, the next child goes on with the next file."""

PATIENCE = 900
"""Seconds until a child hangs. A busy machine may need a hundred for one file."""

FAULTS = ("crash", "foreign", "memory", "leak", "written")
_LIBC = ctypes.CDLL(None)
_PERTURB = -6  # of mallopt: fill memory that is given out


def resident(peak: bool = True) -> int:
    """Bytes of memory that this process takes, or has taken at most."""
    wanted = "VmHWM" if peak else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) << 10
    return 0


def forget_peak() -> int:
    """Begin to measure the most memory anew; return what is taken now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident(peak=False)


def place_of(error: BaseException) -> str:
    """The function of Roundwise in which an error arose."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/roundwise/" in f.filename]
    return f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else type(error).__name__


def trial(path: Path, folder: Path, export: bool) -> dict:
    """What becomes of one file: the step at which it was refused, or a fault."""
    before, size = forget_peak(), path.stat().st_size
    step = "load"
    try:
        model = rw.load(path)
        taken = resident() - before
        if taken > LOAD[0] + LOAD[1] * size:
            return {"fault": "memory", "step": step, "what": f"{taken >> 20} MiB for a file of {size} bytes"}
        step = "call"
        leak = call(model, size)
        if leak:
            return leak | {"step": step}
        step = "report"
        str(model.report), json.dumps(model.report.as_dict(), allow_nan=False), repr(model), str(model.recipe.as_dict())
        [weight.dequantize() for weight in model.weights.values()]
        rw.html_report(model, folder / "report.html")
        step = "save"
        model.save(folder / "again.rw")
        rw.load(folder / "again.rw")
        step = "export"
        if export:
            rw.export(model, folder / "net.onnx")
    except rw.RoundwiseError as error:
        return {"refused": place_of(error), "step": step, "what": str(error)[:200]}
    except BaseException as error:
        return {
            "fault": "foreign",
            "step": step,
            "what": f"{type(error).__name__}: {error}"[:300],
            "at": place_of(error),
        }
    return {"step": "done"}


def call(model: rw.Model, size: int) -> dict:
    """Call a network twice, with free memory and the memory around the inputs filled otherwise; a fault or nothing."""
    args, kwargs = model.example(3)
    allowed = Memory(size).of(pytree.tree_leaves((args, kwargs))) + CALL
    held = {name: _bytes(value) for name, value in model.state_dict().items()}
    before, results = forget_peak(), []
    try:
        for fill in (0x11, 0xEE):
            places = []
            given = pytree.tree_map_only(torch.Tensor, lambda one: _inside(one, fill & 0x7F, places), (args, kwargs))  # noqa: B023
            contents = [_bytes(place) for place in places]
            _LIBC.mallopt(_PERTURB, fill)
            results.append(pytree.tree_leaves(model(*given[0], **given[1])))
            if contents != [_bytes(place) for place in places]:
                return {"fault": "written", "what": "a call changed an input or the memory around it"}
    finally:
        _LIBC.mallopt(_PERTURB, 0)
    taken = resident() - before
    if held != {name: _bytes(value) for name, value in model.state_dict().items()}:
        return {"fault": "written", "what": "a call changed the network"}
    if taken > allowed:
        return {"fault": "memory", "what": f"{taken >> 20} MiB in a call, {allowed >> 20} MiB allowed"}
    for one, other in zip(*results, strict=True):
        if isinstance(one, torch.Tensor):
            same = _bytes(one) == _bytes(other)
        else:
            same = repr(one) == repr(other)
        if not same:
            return {"fault": "leak", "what": "two calls gave different numbers"}
    return {}


def _inside(tensor: torch.Tensor, fill: int, places: list[torch.Tensor]) -> torch.Tensor:
    """The tensor as a part of a longer one, which is added to `places`."""
    place = torch.full((tensor.numel() + 2 * AROUND,), fill).to(tensor.dtype)
    place[AROUND:-AROUND] = tensor.reshape(-1)
    places.append(place)
    return place[AROUND:-AROUND].view(tensor.shape)


def _bytes(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():  # its sizes may be too large for NumPy
        return repr(tensor.shape).encode()
    if tensor.dtype is torch.bfloat16:  # NumPy has no such numbers; float32 keeps every bit of them
        tensor = tensor.float()
    return tensor.detach().resolve_conj().resolve_neg().numpy().tobytes()


def fork(numbers: Sequence[int], folder: Path, exports: int) -> Iterator[dict]:
    """Try files one after the other in a child, until it ends; it exports the first ones that can be exported."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(numbers, folder, exports, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as answers:
        for number in numbers:
            ready, _, _ = select.select([answers], [], [], PATIENCE)
            line = answers.readline() if ready else b""
            if not ready:
                os.kill(child, signal.SIGKILL)
            if not line:
                _, status = os.waitpid(child, 0)
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status}"
                yield {
                    "fault": "crash",
                    "step": "?",
                    "what": how if ready else f"hung for {PATIENCE} s",
                    "number": number,
                }
                return
            yield json.loads(line)
    os.waitpid(child, 0)


def _child(numbers: Sequence[int], folder: Path, exports: int, writing: int) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ROOM, addresses + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for number in numbers:
            path = folder / f"{number}.rw"
            kind = hostile.make(number, path)
            result = trial(path, folder, export=exports > 0) | {"kind": kind, "number": number}
            exports -= result["step"] in ("export", "done")
            path.unlink()
            os.write(writing, json.dumps(result).encode() + b"\n")
    finally:
        os._exit(0)


def run(first: int, files: int, exports: int, keep: Path | None) -> int:
    """Try files, print what became of them, and return how many faults there were."""
    with tempfile.TemporaryDirectory() as name:  # a file of each base network, so that a child imports nothing
        for number in range(20):
            hostile.make(number, Path(name) / "warm.rw")
            trial(Path(name) / "warm.rw", Path(name), export=False)
    gc.freeze()
    started, faults, exported, done = time.monotonic(), [], 0, 0
    steps, refused = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        while done < files:
            start = first + done
            for result in fork(range(start, min(start + IN_ONE_CHILD, first + files)), Path(name), exports - exported):
                done += 1
                step = result["step"]
                exported += exported < exports and step in ("export", "done")
                steps["fault" if "fault" in result else step if step == "done" else f"refused in {step}"] += 1
                if "refused" in result:
                    refused[step, result["refused"]] += 1
                if "fault" in result:
                    faults.append(result)
                    print(json.dumps(result), flush=True)
                    if keep:
                        hostile.make(result["number"], keep / f"{result['number']}.rw")
                if done % 1000 == 0:
                    print(f"{done} files in {time.monotonic() - started:.0f} s: {dict(steps)}", flush=True)
    print(f"{done} files in {time.monotonic() - started:.0f} s, of which {exported} were exported")
    for what, count in steps.most_common():
        print(f"{count:8}  {what}")
    for (step, what), count in refused.most_common():
        print(f"{count:8}  refused in {step} by {what}")
    for fault in FAULTS:
        print(f"{sum(one['fault'] == fault for one in faults):8}  {fault}")
    return len(faults)


def _compile_pages_once() -> None:
    """Keep the compiled template of the report's page: compiling it takes longer than everything else here."""
    compiled: dict = {}
    original = jinja2.Environment.compile

    def compile_once(self, source, name=None, filename=None, **rest):
        if source not in compiled:
            compiled[source] = original(self, source, name, filename, **rest)
        return compiled[source]

    jinja2.Environment.compile = compile_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--exports", type=int, default=1000, help="how many of those that load are exported too")
    parser.add_argument("--only", type=int, help="try one file in this process")
    parser.add_argument("--keep", type=Path, help="a folder for files with a fault")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _compile_pages_once()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as name:
            print(hostile.make(options.only, Path(name) / "hostile.rw"))
            print(trial(Path(name) / "hostile.rw", Path(name), export=options.exports > 0))
        return
    sys.exit(min(1, run(options.first, options.files, options.exports, options.keep)))


if __name__ == "__main__":
    main()
