"""Other reparameterizations and normalizations that the keys of a state dict show, as one table.

For each kind: can its weights be folded exactly for inference, and how, in half a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wnconvert.layers.foreign import LIBRARIES, find_foreign
from wnconvert.tensors.tree import TensorInfo

__all__ = ["KINDS", "FoundKind", "Kind", "find_kinds"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind, by its keys: all of ``keys`` behind a common stem, and none of ``without``.

    ``ranks`` holds the number of dimensions that a key's tensor must have, ``least`` the elements that each
    of them must have. ``folds`` is ``"yes"``, ``"no"`` or ``"if known"``; ``how`` says it in half a sentence.
    """

    name: str
    keys: tuple[str, ...]
    folds: str
    how: str
    without: tuple[str, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()
    least: int = 0


#: A key that several kinds share is claimed by the first of them.
KINDS: tuple[Kind, ...] = (
    Kind(
        "prune on spectral norm", ("_orig", "_mask", "_u"), "if known", "where the order of the two is known"
    ),
    Kind(
        "spectral norm (legacy)",
        ("_orig", "_u", "_v"),
        "yes",
        "weight = orig / (uᵀ·mat(orig)·v), mat along dim 1 for ConvTranspose",
    ),
    Kind(
        "spectral norm (legacy, without v)",
        ("_orig", "_u"),
        "if known",
        "where the plain weight is beside it, which is what eval used: no v is stored",
    ),
    Kind("prune", ("_orig", "_mask"), "yes", "weight = orig · mask"),
    Kind(
        "stacked parametrizations",
        ("original0", "original1", "1.*"),
        "if known",
        "where the order of the parametrizations is known",
    ),
    Kind(
        "stacked parametrizations",
        ("original", "1.*"),
        "if known",
        "where the order of the parametrizations is known",
    ),
    Kind(
        "spectral norm (parametrize)",
        ("original", "0._u"),
        "yes",
        "weight = original / (uᵀ·mat(original)·v)",
    ),
    Kind(
        "orthogonal",
        ("original", "0.base"),
        "if known",
        "from the live module, for the kind of its map is not in the keys",
    ),
    Kind(
        "other parametrization",
        ("original",),
        "if known",
        "from the live module, for what it computes is not in the keys",
    ),
    Kind("DoRA", ("lora_magnitude_vector*",), "if known", "with the base weights"),
    Kind("DoRA (LyCORIS)", ("dora_scale",), "if known", "with the base weights"),
    Kind(
        "switchable norm",
        ("mean_weight", "var_weight"),
        "no",
        "it depends on the data",
    ),
    Kind(
        "batch norm",
        ("running_mean", "running_var"),
        "if known",
        "in eval, into the layer before it; which one that is, is not in the keys",
    ),
    Kind(
        "weight standardization with gain",
        ("gain", "weight"),
        "if known",
        "with its eps and where that stands (std + eps, or var + eps)",
    ),
    Kind(
        "affine norm",
        ("weight", "bias"),
        "no",
        "layer, group or instance norm, it depends on the data",
        without=("running_mean", "mean_weight"),
        ranks=(("weight", 1), ("bias", 1)),
        least=2,
    ),
    Kind(
        "affine norm",
        ("gamma", "beta"),
        "no",
        "layer, group or instance norm, it depends on the data",
        without=("running_mean",),
        ranks=(("gamma", 1), ("beta", 1)),
        least=2,
    ),
)

#: Weight norm that torch does not spell so; ``find_foreign`` finds it.
_FOREIGN = {
    library: Kind(
        f"weight norm ({library})",
        (),
        "if known",
        f"where its names are read, which they are not yet: weight = {formula}",
    )
    for library, formula in LIBRARIES.items()
}

# A stem and what stands behind it: conv.weight|_orig, conv.parametrizations.weight.|0._u, bn.|running_mean.
_SPLITS = (
    re.compile(r"(?P<stem>(?:.*\.)?parametrizations\.[^.]+\.)(?P<key>.+)"),
    re.compile(r"(?P<stem>(?:.*\.)?[^.]+)(?P<key>_(?:orig|u|v|mask))"),
    re.compile(r"(?P<stem>(?:.*\.)?)(?P<key>lora_magnitude_vector.*)"),
    re.compile(r"(?P<stem>(?:.*\.)?)(?P<key>[^.]+)"),
)


@dataclass(frozen=True, slots=True)
class FoundKind:
    """A kind as it is met in a state dict: how often, and the first place."""

    kind: Kind
    count: int
    example: str


def find_kinds(infos: Iterable[TensorInfo]) -> tuple[FoundKind, ...]:
    """Count each kind among the tensors of a state dict; weight norm itself is not, but as others spell it.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> keys = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    >>> [(found.kind.name, found.count) for found in find_kinds(
    ...     TensorInfo(key, dtype_named("float32"), (8,)) for key in keys)]
    [('batch norm', 1)]
    """
    stems: dict[str, dict[str, TensorInfo]] = {}
    every = list(infos)
    for info in every:
        for split in _SPLITS:
            if match := split.fullmatch(info.name):
                stems.setdefault(match["stem"], {})[match["key"]] = info
                break
    found: dict[Kind, list[str]] = {}
    for stem, keys in stems.items():
        kind = next((kind for kind in KINDS if _shows(kind, keys)), None)
        if kind is not None:
            found.setdefault(kind, []).append(stem.rstrip(".") or ".")
    for pair in find_foreign(every):
        found.setdefault(_FOREIGN[pair.library], []).append(pair.g)
    return tuple(
        FoundKind(kind, len(found[kind]), found[kind][0])
        for kind in (*_FOREIGN.values(), *KINDS)
        if kind in found
    )


def _shows(kind: Kind, keys: Mapping[str, TensorInfo]) -> bool:
    def has(wanted: str) -> bool:
        if wanted.endswith("*"):
            return any(key.startswith(wanted[:-1]) for key in keys)
        return wanted in keys

    return (
        all(map(has, kind.keys))
        and not any(map(has, kind.without))
        and all(len(keys[key].shape) == rank and keys[key].numel >= kind.least for key, rank in kind.ranks)
    )
