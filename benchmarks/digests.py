"""Show that a change of the code changes no result: record digests of many runs, and compare with them later.

    python benchmarks/digests.py --record before.json          # on the commit before the change
    python benchmarks/digests.py --compare before.json         # on the commit after it, on the same machine

A case quantizes one network with one recipe (`digest_cases.py`). Each part of its result becomes one SHA-256 digest:

    codes         of every quantized weight, in the shape of the weight
    scales        of every quantized weight
    zero_points   of every quantized weight
    biases        of every quantized layer
    activations   scale, zero point, qmin and qmax of every quantizer between operations
    errors        the report's errors: of each layer, of each layer with nearest rounding, and of the network's outputs
    outputs       of the quantized network, for inputs that it was not calibrated on

Only numbers enter a digest, layers in the order of their names, and quantizers between operations in the order of the
graph. Names and kinds of operations, dtypes, and the shape in which scales are stored do not enter it: they may change.

The comparison lists the cases that differ, with the parts that do. Cases that fail, and those that only the recording
or only the code has, are listed too. The exit code is 1 if the list is not empty. To see where a case fails, record it
alone: `--record /tmp/one.json --only NAME`.

Digests are equal only if every number is equal to the last bit. Other processors, other versions of PyTorch and other
numbers of threads add numbers in another order. So everything runs in one thread, and a recording of another machine is
refused unless --anyway is given. On one core all cases take about five minutes, those of --small half a minute.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import platform
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from digest_cases import Case, cases, is_quick
from torch import Tensor, fx

import roundwise as rw
from roundwise.artifacts import dialect
from roundwise.graph.graph import bind

Digests = dict[str, str]
"""By part; of a case that fails, what the error says, under `error`."""


def evidence(model: rw.Model, inputs: Any) -> dict[str, list[Tensor]]:
    """The numbers of each part, read off a quantized network: the one place that knows how it holds them."""
    graph = model.graph

    def number(argument: Any) -> Tensor:
        return (
            graph.constants[str(argument.target)]
            if isinstance(argument, fx.Node)
            else torch.tensor([argument], dtype=torch.float64)
        )

    weights: dict[str, tuple[Tensor, Tensor, Tensor, list[Tensor]]] = {}
    activations = []
    for node in graph.operations.nodes:
        operation = dialect.operation_of(node)
        if operation is dialect.QUANTIZE:
            activations.append(torch.tensor(node.args[1:5], dtype=torch.float64))
        elif operation in dialect.DEQUANTIZERS and node.args[0].op == "get_attr":
            codes, (scale, zero_point) = number(node.args[0]), map(number, node.args[1:3])
            last = node
            while (user := next(iter(last.users))).args[0] is last:  # what brings the weight to its own shape and dtype
                codes = codes if user.target is torch.ops.aten.to.dtype else user.target(codes, *user.args[1:])
                last = user
            biases = [number(bias) for user in last.users if (bias := bind(user)["bias"]) is not None]
            name = re.sub(r"(\.weight)?_codes(_\d+)?$", r"\2", str(node.args[0].target))
            weights[name] = codes, scale, zero_point, biases
    codes_of, scales, zero_points, biases_of = zip(*(weights[name] for name in sorted(weights)), strict=True)
    report = model.report
    errors = [error for layer in report.layers for error in (layer.error, layer.error_nearest)]
    with torch.no_grad():
        outputs = pytree.tree_leaves(model(inputs))
    return {
        "codes": list(codes_of),
        "scales": list(scales),
        "zero_points": list(zero_points),
        "biases": [bias for biases in biases_of for bias in biases],
        "activations": activations,
        "errors": [torch.tensor([*errors, report.output_error], dtype=torch.float64)],
        "outputs": [leaf for leaf in outputs if isinstance(leaf, Tensor)],
    }


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the numbers of tensors, whatever their dtypes; −0.0 is 0.0, and one NaN is as any other."""
    sha = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().flatten().double() + 0.0  # codes and outputs that are integers fit in a float64
        values[values.isnan()] = torch.nan
        sha.update(len(values).to_bytes(8, "little") + values.numpy().tobytes())
    return sha.hexdigest()


def machine() -> dict[str, Any]:
    """What digests depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": next(names, platform.processor()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def differences(before: Mapping[str, Digests], after: Mapping[str, Digests]) -> dict[str, str]:
    """How each case differs, in words, by its name; empty if all digests are equal."""
    found = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if new is None:
            found[name] = "missing: only the recording has this case"
        elif "error" in new:
            found[name] = f"fails: {new['error']}"
        elif old is None:
            found[name] = "new: the recording does not have this case"
        elif parts := [part for part in dict.fromkeys([*old, *new]) if old.get(part) != new.get(part)]:
            found[name] = f"differs in {', '.join(parts)}"
    return found


def run(chosen: Mapping[str, Case], before: Mapping[str, Digests] | None) -> dict[str, Digests]:
    """The digests of cases, each printed when it is done, in comparison with those of `before` if there are any.

    Without any, the first error ends the run; otherwise it is the result of its case.
    """
    after: dict[str, Digests] = {}
    for number, (name, case) in enumerate(chosen.items(), 1):
        begin, verdict = time.perf_counter(), ""
        try:
            after[name] = {part: digest(tensors) for part, tensors in evidence(*case.run()).items()}
        except Exception as error:
            if before is None:
                error.add_note(f"This was case {name}.")
                raise
            after[name] = {"error": f"{type(error).__name__}: {error}"}
        if before is not None:
            old = {name: before[name]} if name in before else {}
            verdict = differences(old, {name: after[name]}).get(name, "equal")
        print(f"{number:3}/{len(chosen)} {time.perf_counter() - begin:5.1f} s  {name}  {verdict}", flush=True)
    return after


def main() -> None:
    """Parse the command line, run the cases, record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", metavar="FILE", type=Path, help="run the cases and write their digests to this file")
    what.add_argument("--compare", metavar="FILE", type=Path, help="run the cases and compare with this recording")
    parser.add_argument("--only", metavar="GLOB", nargs="+", default=["*"], help="only cases whose names match one")
    parser.add_argument("--small", action="store_true", help="only small networks, and three cases of resnet20")
    parser.add_argument("--anyway", action="store_true", help="compare with a recording of another machine too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)

    def is_chosen(name: str) -> bool:
        wanted = is_quick(name) or not arguments.small
        return wanted and any(fnmatch.fnmatchcase(name, pattern) for pattern in arguments.only)

    chosen = {name: case for name, case in cases().items() if is_chosen(name)}
    if not chosen:
        parser.error(f"no case has a name that matches {' or '.join(arguments.only)}.")
    begin, before = time.perf_counter(), None
    if arguments.compare:
        recording = json.loads(arguments.compare.read_text(encoding="utf-8"))
        here, there = machine(), recording["machine"]
        if here != there and not arguments.anyway:
            parser.error(
                f"{arguments.compare} was recorded with {there}, and this is {here}: numbers may differ in their last "
                "digits although the code does the same. Record anew on this machine, or give --anyway."
            )
        before = {name: digests for name, digests in recording["cases"].items() if is_chosen(name)}
    after = run(chosen, before)
    print(f"{len(after)} cases in {time.perf_counter() - begin:.0f} s")
    if before is None:
        text = json.dumps({"machine": machine(), "cases": after}, indent=1)
        arguments.record.write_text(text + "\n", encoding="utf-8")
        return
    found = differences(before, after)
    for name, how in found.items():
        print(f"{name}: {how}")
    print(f"{len(found)} cases differ." if found else "All digests are equal.")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
