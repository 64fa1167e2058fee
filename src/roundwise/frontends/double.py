"""A double of a model: it computes the same with the same weights, and running it changes nothing in the model.

Capturing a model runs its code, and code may do anything: fill a cache, count calls, assign buffers, write to lists.
`torch.export` itself assigns attributes. So the model is never run; its double is.

    module                      a new object of the same class, without the wrappers around it (`wrappers.py`)
    parameter                   a new parameter with the same memory, and without gradient
    buffer, tensor, array       a copy
    generator                   a copy, so that the model's own draws what it would have drawn
    list, dict, set, …          a new one of the same class, filled without the methods of that class
    object with attributes      a new one of the same class, with doubles of its attributes
    method, closure, partial    a new one, if anything that it holds has a double
    anything else               itself: numbers, functions, objects that are written in C

The double shares its weights with the model. So it runs on real tensors only after its program was found to write to no
weight, and for anything else there is a double with copies of all tensors.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import random
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from roundwise.frontends.scripted import Scripted
from roundwise.frontends.wrappers import unwrapped

_TRAINERS = {"lightning", "lightning_fabric", "pytorch_lightning"}
_OPAQUE = {"torch", "numpy", *_TRAINERS, *sys.stdlib_module_names} - {"__main__"}
"""Packages whose objects are not doubled, unless they are modules or containers: loggers, locks, generators, data sets
that a trainer holds. Running the model does not change them."""

_GENERATORS = {random.Random, np.random.Generator, np.random.RandomState}
"""Classes whose objects draw random numbers, each of which changes the next one."""


@final
class Double:
    """The double of a model, in evaluation mode.

    Attributes:
        module: computes what the model computes in evaluation.
        trained: the names of the model's parts that were in training mode; the model itself has an empty name.
    """

    def __init__(self, model: nn.Module, *, copies_weights: bool = False, evaluation: bool = True) -> None:
        """Make the double.

        Args:
            model: it is not run, and nothing in it is changed.
            copies_weights: whether the double gets copies of all tensors, so that it may run code that writes to them.
            evaluation: whether it is brought to evaluation mode; otherwise each part is in the mode of the model's.
        """
        self._model = model
        self._copier = _Copier(copies_weights)  # it keeps everything alive to which the double holds weak references
        self.module: nn.Module = self._copier.model(model)
        parts = dict(self.module.named_modules())
        self.trained = tuple(name for name, part in parts.items() if part.training)
        for part in parts.values() if evaluation else ():
            _switch_to_evaluation(part)

    def another(self, *, copies_weights: bool = False) -> Double:
        """Another double of the same model. One that has run may hold results of that run, fake tensors for example."""
        return Double(self._model, copies_weights=copies_weights)

    def in_the_models_modes(self) -> Double:
        """A double with copies of all tensors, each part of which is in training mode if the model's is."""
        return Double(self._model, copies_weights=True, evaluation=False)


def _switch_to_evaluation(part: nn.Module) -> None:
    if "training" in vars(part):
        vars(part)["training"] = False
    else:
        with contextlib.suppress(AttributeError):  # a property without a setter: its class decides
            part.training = False


# ---------------------------------------------------------------------------------------------------------- copying


@final
class _Copier:
    """Makes doubles: one for each object, so that references lead from double to double as they led before."""

    def __init__(self, copies_weights: bool) -> None:
        self._copies_weights = copies_weights
        self._doubles: dict[int, Any] = {}
        self._originals: list[Any] = []  # kept alive, since an address stands for each

    def model(self, model: nn.Module) -> nn.Module:
        """The double of a whole model."""
        for module in model.modules():
            scripted = isinstance(module, torch.jit.ScriptModule)
            for buffer in () if scripted else module._buffers.values():
                if buffer is not None and id(buffer) not in self._doubles:
                    self._remember(buffer, buffer.detach().clone())
        double: nn.Module = self(model)
        return double

    def __call__(self, value: Any) -> Any:
        """The double of a value, or the value itself."""
        if id(value) in self._doubles:
            return self._doubles[id(value)]
        if type(value) in weakref.ProxyTypes:  # it looks like what it stands for
            return self._proxy(value)
        match value:
            case nn.Module():
                return self._module(value)
            case Tensor():
                return self._tensor(value)
            case np.ndarray() if type(value) is np.ndarray:
                return self._remember(value, value.copy())
            case type() | enum.Enum() | types.ModuleType() | None | bool() | int() | float() | complex() | str():
                return value
            case dict() | list() | set() | deque() | types.MappingProxyType() | types.SimpleNamespace():
                return self._container(value)
            case tuple() | frozenset():
                return self._frozen_container(value)
            case types.FunctionType():
                return self._function(value)
        if type(value) in _GENERATORS:
            return self._remember(value, copy.deepcopy(value))
        made = self._reference(value)
        return made if made is not value else self._object(value)

    def _remember(self, original: Any, double: Any) -> Any:
        self._doubles[id(original)] = double
        self._originals.append(original)
        return double

    def _module(self, module: nn.Module) -> nn.Module:
        inner = unwrapped(module)
        if inner is not module:
            double: nn.Module = self._remember(module, self(inner))
            return double
        if isinstance(module, torch.jit.ScriptModule):
            scripted: nn.Module = self._remember(module, Scripted(module))
            return scripted
        double = self._remember(module, object.__new__(type(module)))
        self._attributes(module, double)
        vars(double).pop("_compiled_call_impl", None)  # of `module.compile()`
        return double

    def _tensor(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter) and not self._copies_weights:
            double: Tensor = tensor
            if type(tensor) is nn.Parameter:  # other classes may hold what a new parameter would lack
                values = tensor.detach()
                # What was made in inference mode cannot be exported; outside of it, a copy of it can.
                double = nn.Parameter(values.clone() if tensor.is_inference() else values, tensor.requires_grad)
                vars(double).update(vars(tensor))
        elif tensor.is_leaf:
            double = copy.deepcopy(tensor)
        else:
            double = tensor.detach().clone()
        self._remember(tensor, double)
        return double

    def _container(self, value: Any) -> Any:
        """A container that can be changed, of a built-in class or of a class that inherits from one."""
        kind = type(value)
        match value:
            case types.MappingProxyType():
                return self._remember(value, types.MappingProxyType({key: self(it) for key, it in value.items()}))
            case types.SimpleNamespace():
                double: Any = self._remember(value, types.SimpleNamespace.__new__(kind))
            case defaultdict():
                double = self._remember(value, defaultdict.__new__(kind))
                defaultdict.__init__(double, self(value.default_factory))
            case OrderedDict():
                double = self._remember(value, OrderedDict.__new__(kind))
            case dict():
                double = self._remember(value, dict.__new__(kind))
            case list():
                double = self._remember(value, list.__new__(kind))
                list.extend(double, [self(item) for item in list.__iter__(value)])
            case deque():
                double = self._remember(value, deque.__new__(kind))
                deque.__init__(double, [self(item) for item in deque.__iter__(value)], value.maxlen)
            case _:
                double = self._remember(value, set.__new__(kind))
                set.update(double, [self(item) for item in set.__iter__(value)])
        if isinstance(value, dict):
            put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
            items = OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value)
            for key, item in list(items):
                put(double, self(key), self(item))
        self._attributes(value, double)
        return double

    def _frozen_container(self, value: Any) -> Any:
        items = [self(item) for item in value]
        if all(one is other for one, other in zip(items, value, strict=True)):
            return self._remember(value, value)
        base = tuple if isinstance(value, tuple) else frozenset
        try:
            double = base.__new__(type(value), items)
        except TypeError:
            return self._remember(value, value)  # a tuple that C code makes
        self._remember(value, double)
        self._attributes(value, double)
        return double

    def _function(self, function: types.FunctionType) -> Any:
        """A function with the doubles of what it closes over; the function itself if it has none."""
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:  # what `torch.compile` made of a function: capture needs the function
            return self._remember(function, self(compiled))
        cells = function.__closure__ or ()
        double = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(types.CellType() for _ in cells),
        )
        self._remember(function, double)
        changed = False
        for old, new in zip(cells, double.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is still empty
                held = old.cell_contents
                new.cell_contents = self(held)
                changed |= new.cell_contents is not held and held is not function
        double.__defaults__ = self(function.__defaults__)
        named = {name: self(value) for name, value in (function.__kwdefaults__ or {}).items()}
        double.__kwdefaults__ = named or None
        changed |= double.__defaults__ is not function.__defaults__
        changed |= any(value is not (function.__kwdefaults__ or {})[name] for name, value in named.items())
        if not changed:
            return self._remember(function, function)
        double.__qualname__, double.__module__ = function.__qualname__, function.__module__
        vars(double).update({name: self(value) for name, value in vars(function).items()})
        return double

    def _reference(self, value: Any) -> Any:
        """The double of an object that stands for others: a bound method, a partial call, a weak reference."""
        match value:
            case types.MethodType():
                owner, function = self(value.__self__), self(value.__func__)
                if owner is not value.__self__ or function is not value.__func__:
                    return self._remember(value, types.MethodType(function, owner))
            case functools.partial() if type(value) is functools.partial:
                parts = self((value.func, value.args, value.keywords))
                return self._remember(value, functools.partial(parts[0], *parts[1], **parts[2]))
            case weakref.ReferenceType():
                target = value()
                if target is not None and type(value) is weakref.ReferenceType and self(target) is not target:
                    return self._remember(value, weakref.ref(self(target)))
            case functools._lru_cache_wrapper():
                function = self(value.__wrapped__)
                if function is not value.__wrapped__:
                    return self._remember(value, functools.lru_cache(**value.cache_parameters())(function))
            case types.BuiltinMethodType() if not isinstance(value.__self__, types.ModuleType | type | None):
                owner = self(value.__self__)
                if owner is not value.__self__:
                    return self._remember(value, getattr(owner, value.__name__))
        return value

    def _proxy(self, value: Any) -> Any:
        try:
            target = value.__reduce_ex__.__self__
        except ReferenceError:  # what it stood for is gone
            return self._remember(value, value)
        return self._remember(value, weakref.proxy(self(target)))

    def _object(self, value: Any) -> Any:
        """The double of an object that has attributes of its own."""
        kind = type(value)
        opaque = kind.__module__.partition(".")[0] in _OPAQUE or hasattr(kind, "__del__")
        if opaque or (not any(_slots(value)) and not getattr(value, "__dict__", None)):
            return self._remember(value, value)
        try:
            double = object.__new__(kind)
        except TypeError:  # a class that is written in C
            return self._remember(value, value)
        self._remember(value, double)
        self._attributes(value, double)
        return double

    def _attributes(self, original: Any, double: Any) -> None:
        """Give a double the doubles of the original's attributes, without methods of its class."""
        if hasattr(double, "__dict__"):
            own: dict[str, Any] = object.__getattribute__(double, "__dict__")
            for name, value in list(object.__getattribute__(original, "__dict__").items()):
                own[name] = self(value)
        for slot, value in _slots(original):
            slot.__set__(double, self(value))


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """The slots of an object that hold something, and what they hold."""
    for kind in type(value).__mro__:
        for slot in vars(kind).values():
            if isinstance(slot, types.MemberDescriptorType) and "__slots__" in vars(kind):
                with contextlib.suppress(AttributeError):
                    yield slot, slot.__get__(value)
