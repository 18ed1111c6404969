"""Which norm stands behind which layer, as far as names, the order of keys and ``_metadata`` agree.

None of the three is enough alone: of the batch norms of 254 public architectures the order of keys pairs one
in 20 wrongly, names one in 35. Where all agree, none was wrong. What speaks against a pair leaves its norm.
"""

from __future__ import annotations

from collections.abc import Iterator

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RecipeFold
from wnconvert.layers.telling.arrangement import STATISTICS, Arrangement
from wnconvert.layers.telling.spellings import hints_at_transposed
from wnconvert.messages import listed
from wnconvert.tensors.tree import Shape, StateDict

__all__ = ["LeftNorm", "NamedNorms", "doubt_of", "is_square", "more_than_statistics", "told_by_names"]


@dataclass(frozen=True, slots=True)
class LeftNorm:
    """A norm that names do not tell the layer of, with the reason."""

    norm: str
    reason: str


@dataclass(frozen=True, slots=True)
class NamedNorms:
    """The norms of which names tell the layer, as folds, and those that they leave."""

    folds: tuple[RecipeFold, ...]
    left: tuple[LeftNorm, ...]


def told_by_names(state: StateDict, eps: float) -> NamedNorms:
    """The norms of a state dict that stand behind a layer by its names, its keys and its modules.

    Each norm with running statistics whose name belongs to that of the layer before it in the order of keys
    and next before it among the ``modules``; the others are left, each with its reason. Without modules
    there is not enough to tell any. A weight is taken as (out, in, ...) where its first axis fits the norm,
    unless anything hints at a transposed convolution.

    >>> from wnconvert.tensors.memory import tree_of_values
    >>> import numpy as np
    >>> values = {"conv1.weight": np.zeros((8, 3, 3, 3)), **{
    ...     f"bn1.{key}": np.zeros(8) for key in ("weight", "bias", "running_mean", "running_var")},
    ...     "bn1.num_batches_tracked": np.int64(7)}
    >>> tree = tree_of_values(values, modules=["", "conv1", "bn1"])
    >>> [(fold.norm, fold.weight) for fold in told_by_names(tree.state_dict(""), 1e-5).folds]
    [('bn1', 'conv1.weight')]
    """
    there = Arrangement(state)
    if not state.modules:
        reason = "no _metadata in it names the modules in their order"
        return NamedNorms((), tuple(LeftNorm(norm, reason) for norm in there.norms))
    misfits = _Misfits.of(there)
    folds: list[RecipeFold] = []
    left: list[LeftNorm] = []
    for norm in there.norms:
        reason = next(_against(norm, there, misfits), "")
        if reason:
            left.append(LeftNorm(norm, reason))
        else:
            folds.append(_fold(there.before(norm) or "", norm, there, eps))
    return NamedNorms(tuple(folds), tuple(left))


def _fold(layer: str, norm: str, there: Arrangement, eps: float) -> RecipeFold:
    weight, axes = f"{layer}.weight", len(there.weight_shape(layer) or ())
    return RecipeFold("norm behind", weight, norm, "linear" if axes == 2 else "conv", eps=eps)


#: The keys of a norm of torch's.
_OWN = ("weight", "bias", *STATISTICS, "num_batches_tracked")


def _against(norm: str, there: Arrangement, misfits: _Misfits) -> Iterator[str]:
    """What speaks against a norm: first of itself, then of the layer before it, then of the two."""
    yield from _against_norm(norm, there)
    layer = there.before(norm)
    if layer is None or _owner(norm) == layer:
        yield "no layer stands before it in its module"
    elif not _are_siblings(layer, norm):
        yield f"{layer} before it stands in another module"
    elif there.weight_shape(layer) is None:
        yield f"{layer} stands before it, which is no convolution and no linear layer"
    else:
        yield from _against_pair(layer, norm, there, misfits)


def _against_norm(norm: str, there: Arrangement) -> Iterator[str]:
    """What speaks against a norm for what it has itself."""
    keys = there.tensors[norm]
    if not there.is_named(norm):
        yield "its module is not in _metadata"
    yield from more_than_statistics(norm, there)
    if "weight" not in keys:
        yield "it has no weight: what scales it may be an input of the model"
    if "num_batches_tracked" not in keys:
        yield "it has no num_batches_tracked: its class is none of torch's, and may use its weight otherwise"


def more_than_statistics(norm: str, there: Arrangement) -> Iterator[str]:
    """What shows that a module is more than a norm with running statistics, or another one.

    A switchable norm has the names of one, too.
    """
    keys = there.tensors[norm]
    if beside := next((key for key in keys if key not in _OWN), ""):
        yield f"its {beside} shows that it is more than a norm with running statistics"
    if below := there.below(norm):
        yield f"{below} in it shows that it is more than a norm with running statistics"
    sizes = {keys[key].shape for key in _OWN[:-1] if key in keys}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        yield f"its tensors have sizes that differ: {listed(map(str, sorted(sizes)))}"


def _against_pair(layer: str, norm: str, there: Arrangement, misfits: _Misfits) -> Iterator[str]:
    """What speaks against a norm and the layer next before it."""
    key = there.key_before(norm)
    if key is None or not key.startswith(f"{layer}."):
        yield f"{key or 'nothing'} stands before it in the order of keys, and not {layer}"
    family = there.families[_owner(norm)]
    if not family.belong(_last(layer), _last(norm)):
        yield f"its name does not show that it belongs to {layer}, which stands before it"
    if candidates := family.candidates(_last(layer), _last(norm)):
        yield f"by its name and that of {layer} before it, so could {listed(candidates)} be one of the two"
    for module in (layer, norm):
        if other := there.shared_with(module):
            yield f"{module} shares memory with {other}"
    shape, channels = there.weight_shape(layer) or (), there.tensors[norm]["running_var"].numel
    if shape[0] != channels:
        yield _misfit(layer, shape, channels)
    if others := misfits.like(layer, norm):
        yield f"{others} of the same names do not fit each other"
    if doubt := doubt_of(layer, shape):
        yield doubt
    if is_square(shape) and _owner(layer) in misfits.upwards:
        yield f"{_MAY_BE.format(layer)}, and another beside it seems to be one"


def _misfit(layer: str, shape: Shape, channels: int) -> str:
    if shape[1] == channels:
        behind = "as of a transposed convolution, or of a norm before its layer"
        return f"its {channels} channels fit only the second axis of {layer} {shape}, {behind}"
    return f"its {channels} channels do not fit {layer} {shape}"


@dataclass(frozen=True, slots=True)
class _Misfits:
    """Pairs whose names belong together and whose sizes do not: what such names mean here is not sure.

    ``examples`` are by the last parts of their names, ``upwards`` the modules with one that only a second
    axis fits.
    """

    examples: dict[tuple[str, str], str]
    upwards: frozenset[str]

    @classmethod
    def of(cls, there: Arrangement) -> _Misfits:
        """Those of a state dict."""
        examples: dict[tuple[str, str], str] = {}
        upwards: set[str] = set()
        for norm in there.norms:
            layer = there.before(norm)
            if layer is None or not _are_siblings(layer, norm):
                continue
            shape, channels = there.weight_shape(layer), there.tensors[norm]["running_var"].numel
            if shape is None or shape[0] == channels:
                continue
            key = (_last(layer), _last(norm))
            examples.setdefault(key, f"{layer} and {norm}")
            if shape[1] == channels:
                upwards.add(_owner(norm))
        return cls(examples, frozenset(upwards))

    def like(self, layer: str, norm: str) -> str:
        """A pair of the same names that does not fit, in words; or nothing. Numbers alone are no names."""
        key = (_last(layer), _last(norm))
        return "" if _last(norm).isdecimal() else self.examples.get(key, "")


_MAY_BE = "{} may be a transposed convolution: both axes fit"


def doubt_of(layer: str, shape: Shape) -> str:
    """Why a convolution whose first axis fits may as well be a transposed one, in words, or nothing.

    Of as many channels in and out, it would have the same sizes: with groups (in, out/groups, ...), too. Only
    where a group has one channel both read the weight alike. What speaks for it is a name, or an even kernel.
    """
    if len(shape) < 3 or shape[1] < 2 or shape[0] % shape[1]:
        return ""
    if hints_at_transposed(layer):
        return f"{_MAY_BE.format(layer)}, and its name says that it makes something larger"
    if is_square(shape) and all(size % 2 == 0 for size in shape[2:]):
        kernel = "×".join(map(str, shape[2:]))
        return f"{_MAY_BE.format(layer)}, and its kernel {kernel} is even, as theirs often are"
    return ""


def is_square(shape: Shape) -> bool:
    """Whether a convolution has as many channels in as out, so that both first axes fit both."""
    return len(shape) > 2 and shape[0] == shape[1] > 1


def _owner(module: str) -> str:
    return module.rpartition(".")[0]


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _are_siblings(one: str, other: str) -> bool:
    return _owner(one) == _owner(other)
