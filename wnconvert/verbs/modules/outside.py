"""Legacy weights that other modules read, so that the hook that renews them never runs.

``nn.MultiheadAttention`` reads ``self.out_proj.weight`` and never calls ``out_proj``: it goes on with the
weight that was cached when weight norm was applied, whatever g and v are. Only code tells that, so the
bytecode of each class is read. A cached weight that is old for another reason (the module was just loaded, or
trained a step) is none of these: its hook runs before it is used.
"""

from __future__ import annotations

import dis
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from inspect import unwrap
from types import CodeType, FunctionType

import numpy as np
from torch import Tensor, nn

from wnconvert.errors import LayerError
from wnconvert.tensors.memory import array_of
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.finding.values import is_wrapper

__all__ = ["Outside", "read_from_outside", "warn_of_changes"]


#: Layers of which another module reads the weight, each with the class of that module.
Outside = Mapping[Live, str]
#: A dotted name that code reads from ``self``.
_Chain = tuple[str, ...]

#: How far torch's own rounding of a weight may be away, as a part of the largest element.
_ROUNDING = {"float16": 1e-2, "bfloat16": 5e-2}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def read_from_outside(layers: Iterable[Live], modules: Collection[nn.Module]) -> dict[Live, str]:
    """The legacy layers whose weight the ``forward`` of one of ``modules`` reads, while none calls them.

    Each comes with the class of the module that reads it.
    """
    legacy = [live for live in layers if live.layer.form == "legacy"]
    if not legacy:
        return {}
    chains = {cls: _chains_of(cls) for cls in {type(module) for module in modules}}
    readers: dict[tuple[int, str], str] = {}
    called: set[int] = set()
    for module in modules:
        read, every = chains[type(module)]
        for owner, rest in (_followed(module, chain) for chain in read):
            if rest and owner is not module:
                readers[id(owner), rest[0]] = type(module).__name__
        for owner, rest in (_followed(module, chain) for chain in every):
            if not rest:
                called |= {id(owner), *_inside(owner)}
    found = {live: _reader(live, readers) for live in legacy if id(live.module) not in called}
    return {live: reader for live, reader in found.items() if reader}


def _reader(live: Live, readers: Mapping[tuple[int, str], str]) -> str:
    """The class of the module that reads a weight, or runs its module's code without the hooks; or ``""``."""
    keys = ((id(live.module), name) for name in (live.param, "forward"))
    return next((readers[key] for key in keys if key in readers), "")


def _inside(module: nn.Module) -> Iterable[int]:
    """What whoever takes a container may call."""
    return map(id, module.children()) if isinstance(module, _CONTAINERS) else ()


def _followed(module: nn.Module, chain: _Chain) -> tuple[nn.Module, _Chain]:
    """The module to which a chain leads, and the names that are left."""
    for at, name in enumerate(chain):
        child = dict(module._modules.items()).get(name)  # TorchScript has items alone
        if child is None:
            return module, chain[at:]
        module = child
    return module, ()


# -- what code reads from `self`


def _chains_of(cls: type) -> tuple[set[_Chain], set[_Chain]]:
    """What the ``forward`` of a class reads from ``self``, and what all its methods do but ``__init__``."""
    forward = unwrap(getattr(cls, "forward", nn.Identity.forward))
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    methods = [value for each in own for name, value in vars(each).items() if name != "__init__"]
    codes = [function.__code__ for function in map(unwrap, methods) if isinstance(function, FunctionType)]
    read = _chains(forward.__code__) if isinstance(forward, FunctionType) else ()
    return set(read), {chain for code in codes for chain in _chains(code)}


def _chains(code: CodeType, owner: str = "") -> Iterator[_Chain]:
    """The dotted names that code, with the functions inside it, reads from its first argument."""
    owner = owner or (code.co_varnames[0] if code.co_argcount else "")
    chain: list[str] | None = None
    for step in dis.get_instructions(code):
        if chain is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain.append(step.argval)
            continue
        if chain:
            yield tuple(chain)
        chain = [] if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and _last(step) == owner else None
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _chains(inner, owner)


def _last(step: dis.Instruction) -> object:
    """The variable that an instruction loads; the last of two, for those that load two."""
    return step.argval[-1] if isinstance(step.argval, tuple) else step.argval


# -- the warning


def warn_of_changes(outside: Outside, weights: Iterable[tuple[Live, Tensor]]) -> None:
    """Warn that outputs will change where a layer's new weight is not the cached one, and by how much."""
    changed = [
        f"{live.layer.name} of {outside[live]}: by up to {change}"
        for live, w in weights
        if live in outside and (change := _change(live, w))
    ]
    if changed:
        what = "a cached weight is" if len(changed) == 1 else f"{len(changed)} cached weights are"
        text = f"outputs will change: {what} not what is stored, since other code reads it and runs no hook"
        warnings.warn("\n  ".join([text, *changed]), UserWarning, stacklevel=_level_of_caller())


def _change(live: Live, w: Tensor) -> str:
    """The largest difference between the cached weight and another, in words; ``""`` if it is rounding."""
    cached = vars(live.module).get(live.param)
    if not isinstance(cached, Tensor) or is_wrapper(cached) or cached.shape != w.shape or not w.numel():
        return ""
    try:
        old, new = (np.asarray(array_of(each), np.float64) for each in (cached, w))
    except LayerError:  # the cached one is on the meta device
        return ""
    change, largest = np.abs(old - new).max(), np.abs(new).max()
    rounding = _ROUNDING.get(str(cached.dtype).removeprefix("torch."), 1e-5)
    return "" if change <= rounding * largest else f"{change:.2g} (its largest element is {largest:.2g})"


def _level_of_caller() -> int:
    """The ``stacklevel`` of the first caller that is neither this package nor contextlib."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "wnconvert",
        "contextlib",
    ):
        frame, level = frame.f_back, level + 1
    return level
