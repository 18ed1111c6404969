"""Weight norm as other libraries spell it: known by name, and not converted.

Sources of the spellings: ``flax.linen.WeightNorm`` (``_l2_normalize``),
``equinox.nn.WeightNorm`` (fields ``g`` and ``layer``), ``tensorflow_addons.layers.WeightNormalization``
(weights ``g`` and ``kernel``). Each g has a v that it fits. PhysicsNeMo's ``WeightFactLinear``, which has a
``g`` and a ``v`` and no norm, is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from wnconvert.messages import counted
from wnconvert.tensors.tree import Shape, TensorInfo

__all__ = ["LIBRARIES", "ForeignPair", "find_foreign", "notes_on_foreign"]


@dataclass(frozen=True, slots=True)
class ForeignPair:
    """Weight norm of a library that is not torch: the names of its g and v."""

    library: str
    g: str
    v: str


#: A name in parts, as any of these libraries joins them.
_Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Spelling:
    """One library: what it computes by default, the names that v may have beside g, and which shapes fit."""

    library: str
    formula: str
    vs_of: Callable[[_Parts], Iterable[_Parts]]
    fits: Callable[[Shape, Shape], bool]


_DEEPEST = 64  # a name may be made to have very many dots


def _flax(g: _Parts) -> Iterator[_Parts]:
    """``WeightNorm_0/Dense_0/kernel/scale``: the kernel is in the wrapped module, beside the wrapper."""
    if g[-2:] == ("kernel", "scale") and len(g) <= _DEEPEST:
        for at in range(len(g) - 3):
            yield (*g[:at], *g[at + 1 : -1])


def _equinox(g: _Parts) -> Iterator[_Parts]:
    if g[-1] == "g":
        yield (*g[:-1], "layer", "weight")


def _tensorflow(g: _Parts) -> Iterator[_Parts]:
    if g[-1] == "g":
        yield (*g[:-1], "kernel")
        yield (*g[:-1], "layer", "kernel")


def _is_last(g: Shape, v: Shape) -> bool:
    return len(v) > 1 and g == v[-1:]


def _is_kept(g: Shape, v: Shape) -> bool:
    if len(v) < 2 or len(g) != len(v):
        return False
    long_axes = [axis for axis, size in enumerate(g) if size != 1]
    return not long_axes or g[long_axes[0]] == math.prod(g) == v[long_axes[0]]


_SPELLINGS = (
    _Spelling("flax", "g·v/√(Σv² + 1e-12)", _flax, _is_last),
    _Spelling("Equinox", "g·v/‖v‖", _equinox, _is_kept),
    _Spelling("TensorFlow Addons", "g·v/√max(Σv², 1e-12)", _tensorflow, _is_last),
)

#: The libraries whose weight norm is known by name, and what they compute.
LIBRARIES = {spelling.library: spelling.formula for spelling in _SPELLINGS}


def find_foreign(infos: Iterable[TensorInfo]) -> tuple[ForeignPair, ...]:
    """The weight norm of other libraries among the tensors of a state dict.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> shapes = {"WeightNorm_0/Dense_0/kernel/scale": (4,), "Dense_0/kernel": (3, 4)}
    >>> find_foreign(TensorInfo(name, dtype_named("float32"), shape) for name, shape in shapes.items())
    (ForeignPair(library='flax', g='WeightNorm_0/Dense_0/kernel/scale', v='Dense_0/kernel'),)
    """
    there = {_parts(info.name): info for info in infos if info.dtype.foldable}
    return tuple(pair for parts, info in there.items() if (pair := _pair(parts, info, there)))


def _pair(parts: _Parts, g: TensorInfo, there: Mapping[_Parts, TensorInfo]) -> ForeignPair | None:
    for spelling in _SPELLINGS:
        for candidate in spelling.vs_of(parts):
            v = there.get(candidate)
            if v is not None and spelling.fits(g.shape, v.shape):
                return ForeignPair(spelling.library, g.name, v.name)
    return None


def _parts(name: str) -> _Parts:
    """The parts of a name, which dots or slashes join; TensorFlow's end in ``:0``.

    >>> _parts("weight_norm/g:0"), _parts("WeightNorm_0.Dense_0/kernel/scale")
    (('weight_norm', 'g'), ('WeightNorm_0', 'Dense_0', 'kernel', 'scale'))
    """
    return tuple(name.removesuffix(":0").replace("/", ".").split("."))


def notes_on_foreign(pairs: Iterable[ForeignPair]) -> Iterator[str]:
    """A note for each library whose weight norm is there."""
    by_library: dict[str, list[ForeignPair]] = {}
    for pair in pairs:
        by_library.setdefault(pair.library, []).append(pair)
    for library, of_one in by_library.items():
        first = of_one[0]
        yield (
            f"weight norm as {library} spells it is not read yet and left as it is: "
            f"{counted(len(of_one), 'layer')}, the first of {first.g} and {first.v}"
        )
