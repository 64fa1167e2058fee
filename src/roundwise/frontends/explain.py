"""Errors of capture in words: what PyTorch cannot do, where in the user's code, and what to do instead."""

from __future__ import annotations

import contextlib
import linecache
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import final

import torch
from torch import fx, nn

from roundwise.frontends.scripted import Scripted

_LIBRARIES = {"torch", "sympy", "mpmath", "roundwise", *sys.stdlib_module_names} - {"__main__"}
_TORCH = Path(torch.__file__).parent
_SIZE = re.compile(r"\.size\(\)\[(\d+)\]$")
_SYMBOL = re.compile(r"\bs\d+\b")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
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


def explain(model: nn.Module, error: Exception, limit: Limit | None, named: Sequence[Mapping[int, str]]) -> str:
    """The message for an error of `torch.export`: the reason, the place in the user's code, and a way out.

    Args:
        model: the model whose capture failed.
        error: the error that PyTorch raised.
        limit: where the model's code limits a size, if that is the reason.
        named: for each leaf of the inputs the names of its dynamic dimensions.
    """
    place = locate(model, traceback.walk_tb(error.__traceback__))
    says = f"\nPyTorch says: {type(error).__name__}: {first_lines(error)}"
    remedy = ""
    if "data-dependent" in str(error):
        reason = (
            "which operations run depends on the values of a tensor (an `if` or a loop over something computed, "
            "`int(…)`, `.item()`), as in the post-processing of detectors"
        )
    elif limit is not None and any(isinstance(part, Scripted) for part in model.modules()):
        return (
            "the model cannot be captured with any number of samples: TorchScript compiled it or a part of it, and "
            "code of TorchScript that reads a size of a tensor (`x.shape`, `x.size(1)`) makes numbers of all its "
            "sizes, also of the number of samples.\nWay out: give the model as it was before `torch.jit.script`, with "
            "the weights of the compiled one: `model.load_state_dict(compiled.state_dict())`."
        )
    elif limit is not None:
        place, says = limit.place, "" if limit.place else says
        if isinstance(limit.module, nn.RNNBase) and not limit.module.batch_first:
            return _time_first(limit)
        reason, remedy = _reason_of_limit(limit, named)
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
    own = [frame for frame in frames if _TORCH not in Path(frame[0]).parents]
    return Place(*(own or frames)[-1], stack[-1][0] if stack else "")


def frames_of(node: fx.Node) -> list[tuple[str, int, str]]:
    """The calls that led to an operation, outermost first: file, line and function."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace", "")))
    return [(file, int(line), function) for file, line, function in frames]


def first_lines(error: BaseException, lines: int = 4, width: int = 400) -> str:
    """The beginning of an error's message, in one line."""
    # PyTorch's "Caused by" names the function that called it last, which is Roundwise's own.
    said = [line.strip() for line in str(error).strip().splitlines() if not line.startswith("Caused by")]
    text = " ".join(line for line in said[:lines] if line)
    return text[:width] + ("…" if len(text) > width else "")


def _inside(model: nn.Module, module: str) -> str:
    return f", inside the module '{module}' ({type(model.get_submodule(module)).__name__})" if module else ""


def _reason_of_limit(limit: Limit, named: Sequence[Mapping[int, str]]) -> tuple[str, str]:
    """Why a model works for some sizes only, and what to do."""
    if limit.dim:
        names = {name for dims in named for dim, name in dims.items() if dim == limit.dim}
        name = f" ({' or '.join(sorted(names))})" if names else ""
        return (
            f"dynamic asks for any size of dimension {limit.dim}{name}, and its code makes a constant of that size, "
            "or decides by it",
            "\nLeave that dimension out of `dynamic`, and give samples of the size that the network will see. Or let "
            "the code compute with the size as it is (no `int(…)`, no `if` on it, no list as long as it).",
        )
    return (
        "it works for some batch sizes only; its code makes a constant of the number of samples, or decides by it",
        "\nLet that code treat the batch as a whole (no loop over samples, no `if x.shape[0] > 4`, no number in place "
        "of `x.shape[0]`). Or export the model for one batch size and quantize the program, with a multiple of that "
        "number of samples: `rw.quantize(torch.export.export(model, (samples,)), …)`.",
    )


def _time_first(limit: Limit) -> str:
    kind = type(limit.module).__name__
    stopped = "" if limit.place is None else f"\nIt stopped at {limit.place}."
    return (
        f"the model cannot be captured with any number of samples: the nn.{kind} '{limit.name}' has batch_first=False, "
        "so the first dimension of its input is time. Capture takes the first dimension of every input for samples, "
        f"and PyTorch makes a constant of the number of time steps.{stopped}\nWay out: build it as "
        f"`nn.{kind}(…, batch_first=True)` (the weights are the same) and give samples [samples, time, features]. Or "
        "quantize a wrapper whose forward is `return self.model(x.transpose(0, 1)).transpose(0, 1)`, with samples "
        "of that shape."
    )


@final
@dataclass(frozen=True)
class Limit:
    """Where a model's code makes a constant of a size, or decides by it.

    Attributes:
        place: the line; None if it is not in the user's code.
        name, module: the submodule that was running, which may be one of PyTorch's.
        dim: the dimension of the input; 0 is the batch.
    """

    place: Place | None = None
    name: str = ""
    module: nn.Module | None = None
    dim: int = 0


def find_limit(model: nn.Module, export: Callable[[], object]) -> Limit:
    """Find the first place that limits a size, by exporting the model once more.

    PyTorch says so only in its log, at the moment when it happens.
    """
    listener, log = _LimitListener(model), logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, propagate, handlers = log.level, log.propagate, log.handlers
    log.propagate, log.handlers = False, [listener]
    log.setLevel(logging.INFO)
    try:
        with contextlib.suppress(Exception):
            export()
    finally:
        log.propagate, log.handlers = propagate, handlers
        log.setLevel(level)
    return listener.limit or Limit()


@final
class _LimitListener(logging.Handler):
    """Reads PyTorch's log of the conditions on sizes; keeps the first that excludes a size from 2 on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model, self._dims = model, dict[str, int]()
        self.limit: Limit | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message, arguments = str(record.msg), record.args
        if not isinstance(arguments, tuple) or self.limit is not None:
            return
        if message.startswith("create_symbol"):  # symbol, size in the example, `L['x'].size()[2]`, …
            source = _SIZE.search(str(arguments[2]))
            self._dims[str(arguments[0])] = int(source[1]) if source else 0
        elif "[guard added]" in message:
            symbol = _limited_symbol(str(arguments[1]))
            if symbol is not None:
                stack = list(reversed(list(traceback.walk_stack(sys._getframe()))))
                name = running(self._model, stack)
                self.limit = Limit(
                    locate(self._model, stack),
                    name or "",
                    None if name is None else self._model.get_submodule(name),
                    self._dims.get(symbol, 0),
                )


def _limited_symbol(condition: str) -> str | None:
    """The symbol that a condition such as `s77 < 64` or `Eq(s77, 23)` limits; None if it limits no single symbol."""
    symbols, numbers = set(_SYMBOL.findall(condition)), [int(number) for number in _NUMBER.findall(condition)]
    if len(symbols) != 1:
        return None
    (symbol,) = symbols
    if re.fullmatch(rf"{symbol} (>=|>|!=) [01]|Ne\({symbol}, [01]\)|{symbol} >= 2", condition):
        return None
    return symbol if numbers else None


def running(model: nn.Module, frames: Iterable[tuple[FrameType, int]]) -> str | None:
    """The path of the innermost submodule that is running, also if its code is PyTorch's; None if none is."""
    names, found = {id(module): name for name, module in model.named_modules()}, None
    for frame, _ in frames:
        code = frame.f_code
        receiver = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        found = names.get(id(receiver), found)
    return found


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
