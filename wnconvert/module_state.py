"""A torch model in eval mode for a while, and then exactly as it was, whatever its forward does to it."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

__all__ = ["evaluating"]

#: Attributes of these types are caches as often as not, so what is in them comes back too.
_CONTAINERS = (dict, OrderedDict, list, set)


@contextlib.contextmanager
def evaluating(model: nn.Module | ExportedProgram) -> Iterator[Callable[[], None]]:
    """A model in eval mode, without gradients; after it modes, attributes, buffers and random states return.

    The block gets a function that brings back what it began with: eval mode, and nothing that a forward
    has left behind since (batch statistics, caches, counters).

    >>> norm = nn.BatchNorm1d(3, momentum=0.5)
    >>> with evaluating(norm) as forget:
    ...     _ = norm.train()(torch.ones(2, 3))
    >>> norm.running_mean, norm.num_batches_tracked
    (tensor([0., 0., 0.]), tensor(0))
    """
    modules = [] if isinstance(model, ExportedProgram) else list(model.modules())
    modes = [(module, module.training) for module in modules]
    held = [*model.parameters(), *model.buffers()]
    devices = sorted({value.device.index for value in held if value.is_cuda})
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    # What is in an attribute alone is not looked into but for these; a deep copy would break what is shared.
    undo: list[Callable[[], None]] = []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for module in modules:
                module.training = False
            for module in modules:
                if not isinstance(module, torch.jit.ScriptModule):
                    undo += _attributes(module)
            undo += [_contents(buffer) for buffer in model.buffers() if not buffer.is_meta]

            def forget() -> None:
                for each in undo:
                    each()

            yield forget
    finally:
        for each in undo:
            each()
        for module, mode in modes:
            module.training = mode
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)


def _attributes(module: nn.Module) -> list[Callable[[], None]]:
    """What brings back a module's attributes: weight norm's cached weight, a recurrent layer's list."""
    own = vars(module)
    return [_entries(own), *(_entries(value) for value in own.values() if type(value) in _CONTAINERS)]


def _entries(value: Any) -> Callable[[], None]:
    """What brings back the items of a dict, list or set: the very same ones, in their order."""
    kept = value.copy()

    def undo() -> None:
        now, then = ([*each.items()] if isinstance(each, dict) else [*each] for each in (value, kept))
        if len(now) == len(then) and all(_same(a, b) for a, b in zip(now, then, strict=True)):
            return
        value.clear()
        value.extend(kept) if isinstance(value, list) else value.update(kept)

    return undo


def _same(a: Any, b: Any) -> bool:
    """Whether two items are one, those of a dict by key and value."""
    both = isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2
    return a is b or (both and a[0] is b[0] and a[1] is b[1])


def _contents(buffer: Tensor) -> Callable[[], None]:
    """What brings back the numbers of a buffer, which is not written to where they are the same."""
    kept = buffer.detach().clone()

    def undo() -> None:
        if buffer.shape != kept.shape or not torch.equal(buffer, kept):
            with torch.no_grad():
                buffer.data = kept.clone() if buffer.shape != kept.shape else buffer.data
                buffer.copy_(kept)

    return undo
