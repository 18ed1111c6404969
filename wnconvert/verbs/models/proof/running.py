"""Runs a torch model quietly in eval mode, and restores it exactly, whatever its forward does."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import os
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.errors import ArgumentError
from wnconvert.messages import listed, printable
from wnconvert.verbs.shared.streams import redirected

__all__ = ["Undo", "check_shaped", "evaluating", "forgetting", "quiet_torch"]


Undo: TypeAlias = Callable[[], None]

#: Attributes of these types are often caches, so their contents are restored too.
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque, bytearray)

#: torch's hooks that compute a weight before each forward.
_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)


def check_shaped(model: nn.Module | ExportedProgram) -> None:
    """Raise ``ArgumentError`` for lazy modules: their first run gives them shapes and another class for good.

    >>> check_shaped(nn.Sequential(nn.LazyLinear(3)))
    Traceback (most recent call last):
    wnconvert.errors.ArgumentError: the model has parameters without a shape yet: 0.weight, 0.bias
    fix: run it once on an input, in Python, before you export it, check it or load weights into it
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    names = [printable(name) for name, value in named if is_lazy(value)]
    if names:
        raise ArgumentError(
            f"the model has parameters without a shape yet: {listed(names, 8)}",
            fix="run it once on an input, in Python, before you export it, check it or load weights into it",
        )


@contextlib.contextmanager
def evaluating(model: nn.Module | ExportedProgram) -> Iterator[Undo]:
    """Put a model into eval mode, without gradients; at the end, restore it and the random states.

    These are restored: modes, attributes, the numbers of parameters, buffers and tensors in attributes, and
    the contents of containers there, however deep. The insides of other objects are not: instances of the
    user's classes, numpy arrays and sparse tensors.

    The block gets a function that restores the state at its beginning: eval mode, weights that are computed
    of what is stored, and nothing that a forward has left behind (batch statistics, caches, counters).
    Raises the errors of ``check_shaped``.

    >>> norm = nn.BatchNorm1d(3, momentum=0.5)
    >>> with evaluating(norm) as forget:
    ...     _ = norm.train()(torch.ones(2, 3))
    >>> norm.running_mean, norm.num_batches_tracked
    (tensor([0., 0., 0.]), tensor(0))
    """
    check_shaped(model)
    modules = [] if isinstance(model, ExportedProgram) else list(model.modules())
    # A frozen TorchScript is in eval mode for good, and has no attribute for it.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    held = [*model.parameters(), *model.buffers()]
    devices = sorted({value.device.index for value in held if value.is_cuda})
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    undo: list[Undo] = []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for module, _ in modes:
                module.training = False
            undo += _kept(modules, held)
            begun = _kept(modules, held) if _settled(modules) else undo

            def forget() -> None:
                for each in begun:
                    each()

            yield forget
    finally:
        for each in undo:
            each()
        for module, mode in modes:
            module.training = mode
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)


@contextlib.contextmanager
def forgetting(model: nn.Module) -> Iterator[Undo]:
    """Give the block a function that restores the attributes of a model, and the containers there.

    Numbers of tensors are left as they are, which spares comparing all weights; caches are forgotten.
    """
    containers, _ = _reached([vars(module) for module in model.modules()])
    undo = [_entries(each) for each in containers]

    def forget() -> None:
        for each in undo:
            each()

    yield forget


def _settled(modules: Iterable[nn.Module]) -> bool:
    """Have torch's hooks compute the weights of layers that have several of them; whether there are any.

    They run in the order in which they were added: the norm of a pruned half computes with the half as the
    mask made it one forward before, or never, after the loading of weights.
    """
    found = False
    for module in modules:
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _HOOKS)]
        if len(hooks) > 1:
            found = True
            for hook in hooks * len(hooks):  # each round settles one more
                hook(module, ())
    return found


def _kept(modules: Iterable[nn.Module], held: Iterable[Tensor]) -> list[Undo]:
    """Functions that restore what modules hold."""
    own = [vars(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    # Not by a deep copy, which would separate shared objects.
    containers, tensors = _reached(own)
    return [*map(_entries, containers), *_numbers([*held, *tensors])]


def _reached(roots: Iterable[Any]) -> tuple[list[Any], list[Tensor]]:
    """The containers that can change, the given ones among them, and the tensors in them, each once."""
    found: dict[int, Any] = {}
    todo = list(roots)
    while todo:  # not recursive: containers may be deep, and may hold themselves
        value = todo.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        if not isinstance(value, (Tensor, bytearray)):
            inside = value.values() if isinstance(value, dict) else value
            todo += [each for each in inside if isinstance(each, (Tensor, tuple)) or _is_container(each)]
    every = found.values()
    return list(filter(_is_container, every)), [value for value in every if isinstance(value, Tensor)]


def _is_container(value: Any) -> bool:
    # Not a subclass, whose methods may do anything.
    return type(value) in _CONTAINERS


def _entries(value: Any) -> Undo:
    """A function that restores the items of a container: the same objects, in their order."""
    kept = value.copy()

    def undo() -> None:
        if isinstance(value, bytearray):
            if value != kept:
                value[:] = kept
            return
        now, then = ([*each, *each.values()] if isinstance(each, dict) else [*each] for each in (value, kept))
        if len(now) == len(then) and all(map(operator.is_, now, then)):
            return
        value.clear()
        value.update(kept) if isinstance(value, (dict, set)) else value.extend(kept)

    return undo


def _numbers(tensors: Iterable[Tensor]) -> Iterator[Undo]:
    """Functions that restore the numbers of tensors, and their shapes.

    Memory that several tensors share is saved once, and only the part of it that the tensors use.
    """
    spans: dict[int, tuple[torch.UntypedStorage, int, int]] = {}
    for tensor in tensors:
        # Sparse tensors and tensor subclasses made of others have no memory of their own.
        if tensor.layout is not torch.strided or hasattr(tensor, "__tensor_flatten__"):
            continue
        storage = tensor.untyped_storage()
        if storage.device.type == "meta":  # of fake tensors too, although they claim another device
            continue
        yield _place(tensor)
        if tensor.numel():
            width, steps = tensor.element_size(), zip(tensor.shape, tensor.stride(), strict=True)
            first = int(tensor.storage_offset()) * width
            last = first + width + width * sum((size - 1) * step for size, step in steps)
            _, low, high = spans.get(storage.data_ptr(), (storage, first, last))
            spans[storage.data_ptr()] = storage, min(low, first), max(high, last)
    for span in spans.values():
        yield _bytes(*span)


def _place(tensor: Tensor) -> Undo:
    """A function that gives a tensor its own memory back, after ``tensor.data = …``."""
    kept = tensor.detach()

    def undo() -> None:
        now, then = ((each.data_ptr(), each.dtype, each.shape, each.stride()) for each in (tensor, kept))
        if now != then:
            tensor.data = kept

    return undo


def _bytes(storage: torch.UntypedStorage, low: int, high: int) -> Undo:
    """A function that restores a range of memory, if its bytes have changed.

    Bytes, because NaN is not equal to NaN; memory, because not every tensor can be written to in every mode.
    """
    high = min(high, storage.nbytes())  # elements of less than a byte
    # Eight bytes at a time where they fit: torch compares element by element.
    width, dtype = (1, torch.uint8) if (low | high | storage.data_ptr()) % 8 else (8, torch.int64)
    there = torch.empty(0, dtype=dtype, device=storage.device)
    there.set_(storage, low // width, ((high - low) // width,), (1,))
    kept = there.clone()

    def undo() -> None:
        if storage.nbytes() < high:
            storage.resize_(high)
        if not torch.equal(there, kept):
            there.copy_(kept)

    return undo


# -- quiet


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Suppress warnings, log lines and prints, of torch and of the model."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            _no_traces(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_traces() -> Iterator[None]:
    """Suppress the whole graph that the older exporter prints from C++ when it fails."""
    torch._C._jit_set_onnx_log_output_stream("stderr")  # which is not buffered
    try:
        with Path(os.devnull).open("wb") as nowhere, redirected(2, nowhere.fileno()):
            yield
    finally:
        torch._C._jit_set_onnx_log_output_stream("stdout")
