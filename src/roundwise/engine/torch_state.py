"""Isolate the run from PyTorch's process-wide settings.

A caller may have switched on inference mode or autocast, chosen another default dtype or device, or allowed a lower
precision for float32 products. Results do not depend on these settings, and after the run every setting is what it was
before.

The number of threads stays as it is, because fewer threads take more time. Codes do not depend on it: on a CPU, what
depends on it and decides about codes runs in one thread (`numerics/threads.py`). Errors in the report are sums over all
samples, and may differ by a hundred-thousandth. `benchmarks/same_codes.py` compares.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

ONE_THREAD_AT_A_TIME = threading.RLock()
"""`torch.export` cannot run in two threads at once, and the settings below belong to the whole process.

While `torch.export` traces a model, the model has other parameters. So who only looks at a model needs this, too."""

_Switch = tuple[Callable[[], Any], Callable[[Any], Any]]
"""The functions that read and write one setting."""


@contextlib.contextmanager
def isolated_torch_state(device: torch.device) -> Iterator[None]:
    """Compute in the network's own precision and allow gradients, independent of the caller's settings.

    Only one thread at a time can be inside; other threads wait. Threads that run networks of their own meanwhile may
    get results that differ in their last digits, because settings belong to the whole process. A tensor that is made
    without a dtype is float32, and one that is made without a device is on the CPU. While a model is captured, this
    holds for its operations too: the same model would otherwise be another network after `torch.set_default_dtype`.
    (`capturing_on` is the exception.)

    By default PyTorch lets CUDA convolutions round their inputs to 10 bits (TF32). With TF32 an exact rewrite would
    seem to change the network's outputs by half a percent, and codes would be chosen for the rounded outputs.

    Args:
        device: of the network; autocast is switched off for devices of this type, and for the CPU.
    """
    with ONE_THREAD_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.enter_context(_full_float32_precision())
        stack.enter_context(torch.inference_mode(False))
        for kind in {device.type, "cpu"} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32_by_default())
        yield


def notes_on_settings(device: torch.device) -> tuple[str, ...]:
    """Notes for the report on settings of the caller that change what a model computes, and that a run switches off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return ()
    dtype = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    return (
        f"autocast was on: with it, operations of the model compute in {dtype}. The network was quantized, and errors "
        f"were measured, without autocast. To quantize it in {dtype}, give the model in that dtype.",
    )


def default_device() -> torch.device | None:
    """The device of tensors that are made without one; None if this PyTorch cannot make any there."""
    try:
        return torch.get_default_device()
    except Exception:  # an AssertionError for CUDA, others for other devices
        return None


def capturing_on(device: torch.device, callers: torch.device | None) -> contextlib.AbstractContextManager[object]:
    """While a model is captured: let it make tensors without a device as it does when its user calls it.

    A model on a GPU may make tensors without saying where, if its user has made that GPU the default device. If the
    default device is of another kind than the model's, the CPU is used, as in the rest of a run.

    Args:
        device: of the model.
        callers: the default device before the run (`default_device`).
    """
    if callers is not None and callers.type == device.type != "cpu":
        return callers
    return contextlib.nullcontext()


@contextlib.contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    if before != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        if before != torch.float32:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def _full_float32_precision() -> Iterator[None]:
    """Compute float32 products in float32 on all processors, and restore the caller's settings afterwards.

    PyTorch has two sets of settings for this, an older and a newer one. Writing an older setting also writes newer
    ones, and reading an older setting is an error where a newer one contradicts it. `torch.export` reads the older
    ones, and the caller may have written either. So every setting that allows less than float32 is changed, and each
    is restored if it can be read.
    """
    units: Any = torch.backends
    older: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (*_attribute(units.cuda.matmul, "allow_tf32"), False),
        (*_attribute(units.cudnn, "allow_tf32"), False),
    )
    newer: tuple[_Switch, ...] = (  # general settings first: they hold wherever a special one says "none"
        _attribute(units, "fp32_precision"),
        _attribute(units.cudnn, "fp32_precision"),
        # Assigning to the attribute of mkldnn would change the setting of all units (PyTorch 2.13).
        (lambda: units.mkldnn.fp32_precision, lambda value: units.mkldnn.set_flags(_fp32_precision=value)),
        *(_attribute(unit, "fp32_precision") for unit in (units.cuda.matmul, units.cudnn.conv, units.cudnn.rnn)),
        *(_attribute(unit, "fp32_precision") for unit in (units.mkldnn.matmul, units.mkldnn.conv, units.mkldnn.rnn)),
    )
    older_before = [_read_or_none(read) for read, _, _ in older]
    newer_before = [read() for read, _ in newer]
    try:
        for read, write, off in older:
            if _read_or_none(read) != off:
                write(off)
        for read, write in newer:
            if read() not in ("none", "ieee"):
                write("ieee")
        yield
    finally:
        for (read, write, _), value in zip(older, older_before, strict=True):
            if value is not None and _read_or_none(read) != value:
                write(value)
        for (read, write), value in zip(newer, newer_before, strict=True):
            for attempt in ("none", value):
                if read() != value:
                    write(attempt)


def _attribute(owner: Any, name: str) -> _Switch:
    """The functions that read and write an attribute."""
    return functools.partial(getattr, owner, name), functools.partial(setattr, owner, name)


def _read_or_none(read: Callable[[], Any]) -> Any:
    """The value of a setting; None if PyTorch refuses to read it, because a newer setting contradicts it."""
    try:
        return read()
    except RuntimeError:
        return None
