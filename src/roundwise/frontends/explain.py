"""Errors of capture in words: what PyTorch cannot do, where in the user's code, and what to do instead."""

from __future__ import annotations

import contextlib
import linecache
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import final

from torch import fx, nn

_LIBRARIES = {"torch", "sympy", "mpmath", "roundwise", *sys.stdlib_module_names} - {"__main__"}
_FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)')


@final
@dataclass(frozen=True)
class Place:
    """A line of the user's code, and the path of the submodule that was running (empty for the model itself)."""

    file: str
    line: int
    function: str
    module: str = ""

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line}, in {self.function}" + (f" (`{source}`)" if source else "")


def explain(model: nn.Module, error: Exception, again: Callable[[], object]) -> str:
    """The message for an error of `torch.export`: the reason, the place in the user's code, and a way out.

    Args:
        model: the model whose capture failed.
        error: the error that PyTorch raised.
        again: repeats the capture, to find the place where the error itself does not name it.
    """
    place = locate(model, traceback.walk_tb(error.__traceback__))
    says = f"\nPyTorch says: {type(error).__name__}: {first_lines(error)}"
    remedy = ""
    if "data-dependent" in str(error):
        reason = (
            "which operations run depends on the values of a tensor (an `if` or a loop over something computed, "
            "`int(…)`, `.item()`), as in the post-processing of detectors"
        )
    elif "Constraints violated" in str(error):
        place = _place_of_specialization(model, again)
        reason = (
            "it works for some batch sizes only; its code makes a constant of the number of samples, or decides by it"
        )
        says = "" if place else says
        remedy = (
            "\nLet that code treat the batch as a whole (no loop over samples, no `if x.shape[0] > 4`, no number in "
            "place of `x.shape[0]`). Or export the model for one batch size and quantize the program: "
            "`rw.quantize(torch.export.export(model, (samples,)), …)`."
        )
    else:
        reason = "torch.export does not support something that its code does"
    stopped = "" if place is None else f"\nIt stopped at {place}{_inside(model, place.module)}."
    return (
        f"the model cannot be captured as one graph: {reason}.{stopped}{says}{remedy}"
        f"\n{way_out(model, '' if place is None else place.module)}"
    )


def way_out(model: nn.Module, stuck: str) -> str:
    """How to quantize a part of the model instead: its largest submodule that does not contain `stuck`.

    Args:
        model: the model whose capture failed.
        stuck: path of the submodule whose own code cannot be captured; empty for the model itself.
    """
    sizes = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        # Containers such as ModuleList cannot be called.
        if name
        and not f"{stuck}.".startswith(f"{name}.")
        and getattr(type(module), "forward", None) is not nn.Module.forward
    }
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if not sizes.get(largest):
        return "Way out: move the operations that have weights into a submodule of their own, and quantize that."
    whole = sum(parameter.numel() for parameter in model.parameters())
    plain = all(part.isidentifier() for part in largest.split("."))
    get = f"model.{largest}" if plain else f"model.get_submodule('{largest}')"
    put = f"model.{largest} = quantized" if plain else f"model.set_submodule('{largest}', quantized)"
    return (
        f"Way out: quantize a part that holds weights, `quantized = rw.quantize({get}, …)` "
        f"({sizes[largest] / whole:.0%} of the parameters), with samples of that part's inputs, and put it back: "
        f"`{put}`."
    )


def locate(model: nn.Module, frames: Iterable[tuple[FrameType, int]]) -> Place | None:
    """The innermost place in the model's own code, and the submodule that was running there.

    Args:
        model: its submodules are recognised by the first argument of their methods.
        frames: of a call stack or a traceback, with line numbers; outermost first.
    """
    names = {id(module): name for name, module in model.named_modules()}
    place, module = None, None
    for frame, line in frames:
        code = frame.f_code
        receiver = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        module = names.get(id(receiver), module)
        library = str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES
        if module is not None and not library:
            place = Place(code.co_filename, line, code.co_name, module)
    return place


def place_of(node: fx.Node) -> Place | None:
    """Where in the user's code an operation was called."""
    frames = frames_of(node)
    if not frames:
        return None
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return Place(*frames[-1], stack[-1][0] if stack else "")


def frames_of(node: fx.Node) -> list[tuple[str, int, str]]:
    """The calls that led to an operation, outermost first: file, line and function."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace", "")))
    return [(file, int(line), function) for file, line, function in frames]


def first_lines(error: BaseException, lines: int = 4, width: int = 400) -> str:
    """The beginning of an error's message, in one line."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines] if line.strip())
    return text[:width] + ("…" if len(text) > width else "")


def _inside(model: nn.Module, module: str) -> str:
    return f", inside the module '{module}' ({type(model.get_submodule(module)).__name__})" if module else ""


def _place_of_specialization(model: nn.Module, again: Callable[[], object]) -> Place | None:
    """Where the batch size became a constant. PyTorch says so only in its log, at the moment when it happens."""
    places: list[Place] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not places and str(record.msg).startswith("set_replacement"):
                place = locate(model, reversed(list(traceback.walk_stack(sys._getframe()))))
                if place is not None:
                    places.append(place)

    log, listener = logging.getLogger("torch.fx.experimental.symbolic_shapes"), Listener()
    level, propagate, handlers = log.level, log.propagate, log.handlers
    log.propagate, log.handlers = False, [listener]
    log.setLevel(logging.INFO)
    try:
        with contextlib.suppress(Exception):
            again()
    finally:
        log.propagate, log.handlers = propagate, handlers
        log.setLevel(level)
    return places[0] if places else None


def callers_level() -> int:
    """The `stacklevel` at which a warning, issued by the function that calls this, names the user's own line.

    Frames of Roundwise and of the context managers that it stands in are passed over.
    """
    level, frame = 0, sys._getframe(1)
    own = Path(__file__).parents[1]
    while frame.f_back is not None and (own in Path(frame.f_code.co_filename).parents or _is_contextlib(frame)):
        level, frame = level + 1, frame.f_back
    return level + 1


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "contextlib"
