"""Reparameterizations and normalizations that the keys of a state dict show, as one table.

For each kind: can its weights be folded exactly for inference, and how, in half a sentence. A row that has
``parts`` is one that folds by its keys: ``layers.kinds.others`` finds its layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field

from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.norms import NORMS
from wnconvert.layers.rules import (
    ORIGINAL,
    AffineBefore,
    Equalized,
    Mask,
    Norm,
    NormBehind,
    Operation,
    Spectral,
    SpectralStep,
    Standardize,
    Stored,
    Unit,
)
from wnconvert.tensors.tree import TensorInfo

__all__ = ["ALL", "KINDS", "SHOWN", "WORDS", "FoundKind", "Kind", "find_kinds", "in_words", "stems_of"]


#: The kinds of layers and what they are called in messages.
WORDS = {
    Norm.kind: "weight norm",
    Spectral.kind: "spectral norm",
    Mask.kind: "prune",
    SpectralStep.kind: "spectral norm that steps in eval",
    Standardize.kind: "weight standardization",
    Unit.kind: "unit rows",
    Equalized.kind: "an equalized learning rate",
    NormBehind.kind: "a norm with running statistics",
    AffineBefore.kind: "the affine of a norm",
}
#: Those that keys show, as ``--kinds`` calls them; of the others a recipe tells.
SHOWN = (Norm.kind, Spectral.kind, Mask.kind, SpectralStep.kind)
#: What ``--kinds all`` is: what keys prove.
ALL = (Norm.kind, Spectral.kind, Mask.kind)


def in_words(kinds: Iterable[str]) -> str:
    """What layers of these kinds are, of which the first is the innermost.

    >>> in_words(["prune", "spectral"])
    'spectral norm on prune'
    """
    return " on ".join(reversed([WORDS[kind] for kind in kinds]))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind, by its keys: all of ``keys`` behind a common stem, and none of ``without``.

    ``ranks`` holds the number of dimensions that a key's tensor must have, ``least`` the elements that each
    of them must have. ``folds`` is ``"yes"``, ``"no"`` or ``"if known"``; ``how`` says it in half a sentence.

    Of a kind that folds by its keys, ``form`` is the form of its layers, and ``operations`` make the weight,
    the innermost first, of ``parts``: keys by their roles. The weight's own key is ``weight``; in the form
    ``parametrize``, it is the name in the stem. ``note`` is what must be said of its layers. One that
    ``varies`` has no fixed weight: that is the reason, and only who asks for a step has it folded.
    """

    name: str
    keys: tuple[str, ...]
    folds: str
    how: str
    without: tuple[str, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()
    least: int = 0
    form: str = ""
    operations: tuple[type[Operation], ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict, hash=False)
    weight: str = ""
    note: str = ""
    varies: str = ""

    def shows(self, keys: Mapping[str, TensorInfo]) -> bool:
        """Whether these keys behind a stem, and their tensors, are those of this kind."""

        def has(wanted: str) -> bool:
            if wanted.endswith("*"):
                return any(key.startswith(wanted[:-1]) for key in keys)
            return wanted in keys

        return (
            all(map(has, self.keys))
            and not any(map(has, self.without))
            and all(
                len(keys[key].shape) == rank and keys[key].numel >= self.least for key, rank in self.ranks
            )
            and self._fits({role: keys[key] for role, key in self.parts.items()})
        )

    def _fits(self, parts: Mapping[str, TensorInfo]) -> bool:
        """Whether the tensors are such that they show it, where keys alone may be anything's."""
        if self.operations == (Mask,):
            original, mask = parts[ORIGINAL], parts["mask"]
            return mask.shape == original.shape and all(map(_is_float, (original, mask)))
        if self.varies and self.form == "module":
            return parts["u"].shape == (1, *parts[ORIGINAL].shape[:1])
        return True

    @property
    def words(self) -> str:
        """What ``--kinds`` is for it, or nothing."""
        return "" if self.varies else ",".join(operation.kind for operation in self.operations)

    @property
    def unread(self) -> tuple[str, ...]:
        """The keys that go with a layer, and of which its weight is not computed."""
        return tuple(key for key in self.keys if key not in self.parts.values())


def _is_float(info: TensorInfo) -> bool:
    return info.dtype.foldable or info.dtype.is_float8


def _legacy(how: str, *operations: type[Operation], weight: str = "", **parts: str) -> Kind:
    """A kind whose keys stand behind the name of the weight, as torch's hooks have it."""
    name = in_words(operation.kind for operation in operations)
    shown = f"{name} (legacy)" if operations == (Spectral,) else name
    keys = tuple(parts.values())
    return Kind(shown, keys, "yes", how, form="legacy", operations=operations, parts=parts, weight=weight)


def _parametrize(how: str, *operations: type[Operation], **parts: str) -> Kind:
    """A kind of torch's parametrizations."""
    name = f"{in_words(operation.kind for operation in operations)} (parametrize)"
    keys = tuple(parts.values())
    return Kind(name, keys, "yes", how, form="parametrize", operations=operations, parts=parts)


def _step(whose: str, *keys: str, u: str, varies: str = "") -> Kind:
    """A kind of spectral norm that takes a step in eval too; its names are those of its module."""
    note = "σ is that of one step from the stored u, as its eval takes it"
    return Kind(
        f"spectral norm ({whose})",
        ("weight", u, *keys),
        "no" if varies else "if known",
        f"it {varies}" if varies else "as one step from the stored u, which its eval takes",
        ranks=((u, 2),),
        form="module",
        operations=(SpectralStep,),
        parts={ORIGINAL: "weight", "u": u},
        weight="weight",
        note=_FIRST if varies else note,
        varies=varies,
    )


_VARIES = "iterates and stores what it finds in eval too: every forward has another σ"
_FIRST = "its σ changes with every forward, and this is the first one's"

_AFFINE_HOW = f"layer, group or instance norm, {NORMS['layer norm'].how}"

#: A key that several kinds share is claimed by the first of them.
KINDS: tuple[Kind, ...] = (
    _legacy(
        "weight = w / (uᵀ·mat(w)·v) with w = orig · mask",
        Mask,
        Spectral,
        original="_orig_orig",
        mask="_orig_mask",
        u="_u",
        v="_v",
    ),
    _legacy("weight = g · w/‖w‖ with w = v · mask", Mask, Norm, original="_v_orig", mask="_v_mask", g="_g"),
    _legacy("weight_v = orig · mask", Mask, weight="_v", original="_v_orig", mask="_v_mask"),
    _legacy(
        NORMS["spectral norm"].how,
        Spectral,
        original="_orig",
        u="_u",
        v="_v",
    ),
    Kind(
        "spectral norm (weight_bar)",
        ("_bar", "_u", "_v"),
        "no",
        f"it {_VARIES}",
        form="legacy",
        operations=(SpectralStep,),
        parts={ORIGINAL: "_bar", "u": "_u"},
        note=_FIRST,
        varies=_VARIES,
    ),
    Kind(
        "spectral norm (torch 1.0)",
        ("_orig", "_u", ""),
        "yes",
        "the plain weight beside it is the folded one, as its eval used it",
        form="legacy",
        operations=(Stored,),
        parts={ORIGINAL: ""},
        note="torch 1.0 stored the weight beside its spectral norm: that is kept as it is",
    ),
    Kind(
        "spectral norm (legacy, without v)",
        ("_orig", "_u"),
        "if known",
        "where the plain weight is beside it, which is what eval used: no v is stored",
    ),
    _legacy(NORMS["prune"].how, Mask, original="_orig", mask="_mask"),
    _parametrize(
        "weight = w / (uᵀ·mat(w)·v) with w = g · x/‖x‖ and x = original1 · mask",
        Mask,
        Norm,
        Spectral,
        original="original1_orig",
        mask="original1_mask",
        g="original0",
        u="1._u",
        v="1._v",
    ),
    _parametrize(
        "weight = w / (uᵀ·mat(w)·v) with w = original0 · original1/‖original1‖",
        Norm,
        Spectral,
        original="original1",
        g="original0",
        u="1._u",
        v="1._v",
    ),
    _parametrize(
        "weight = original0 · w/‖w‖ with w = original1 · mask",
        Mask,
        Norm,
        original="original1_orig",
        mask="original1_mask",
        g="original0",
    ),
    _parametrize(
        "weight = w / (uᵀ·mat(w)·v) with w = original · mask",
        Mask,
        Spectral,
        original="original_orig",
        mask="original_mask",
        u="0._u",
        v="0._v",
    ),
    _parametrize(
        "weight = original / (uᵀ·mat(original)·v)", Spectral, original="original", u="0._u", v="0._v"
    ),
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
    _step("BigGAN", "sv0", u="u0"),
    _step("mimicry", "sn_sigma", u="sn_u"),
    _step("u", u="u", varies=_VARIES),
    Kind("DoRA", ("lora_magnitude_vector*",), "if known", "with the base weights"),
    Kind("DoRA (LyCORIS)", ("dora_scale",), "if known", "with the base weights"),
    Kind(
        "switchable norm",
        ("mean_weight", "var_weight"),
        NORMS["switchable norm"].folds,
        NORMS["switchable norm"].how,
    ),
    Kind(
        "batch norm",
        ("running_mean", "running_var"),
        NORMS["batch norm"].folds,
        NORMS["batch norm"].how,
    ),
    Kind(
        "weight standardization with gain",
        ("gain", "weight"),
        NORMS["weight standardization"].folds,
        NORMS["weight standardization"].how,
    ),
    Kind(
        "affine norm",
        ("weight", "bias"),
        "no",
        _AFFINE_HOW,
        without=("running_mean", "mean_weight"),
        ranks=(("weight", 1), ("bias", 1)),
        least=2,
    ),
    Kind(
        "affine norm",
        ("gamma", "beta"),
        "no",
        _AFFINE_HOW,
        without=("running_mean",),
        ranks=(("gamma", 1), ("beta", 1)),
        least=2,
    ),
)

# What the rows above have behind the name of a weight, and weight norm has.
_ENDS = {"_g", "_v"}.union(key for kind in KINDS for key in kind.keys if key.startswith("_"))

# A stem and what stands behind it: conv.parametrizations.weight.|0._u, conv.weight|_orig, bn.|running_mean.
_SPLITS = (
    re.compile(r"(?P<stem>(?:.*\.)?parametrizations\.[^.]+\.)(?P<key>.+)", re.DOTALL),
    re.compile(r"(?P<stem>(?:.*\.)?)(?P<key>sn_u)", re.DOTALL),
    re.compile(rf"(?P<stem>(?:.*\.)?[^.]+?)(?P<key>{'|'.join(map(re.escape, sorted(_ENDS)))})", re.DOTALL),
    re.compile(r"(?P<stem>(?:.*\.)?)(?P<key>lora_magnitude_vector.*)", re.DOTALL),
    re.compile(r"(?P<stem>(?:.*\.)?)(?P<key>[^.]+)", re.DOTALL),
)
#: What of a stem says that a plain weight beside it counts.
_ORIGINALS = ("_orig", "_orig_orig", "_v_orig", "_bar")


def stems_of(infos: Iterable[TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Tensors by what stands behind a stem of their names; the key of a plain weight beside others is "".

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> names = ("conv.weight_orig", "conv.weight_u", "conv.bias")
    >>> {stem: list(keys) for stem, keys in stems_of(
    ...     TensorInfo(name, dtype_named("float32"), (8,)) for name in names).items()}
    {'conv.weight': ['_orig', '_u'], 'conv.': ['bias']}
    """
    stems: dict[str, dict[str, TensorInfo]] = {}
    every = list(infos)
    for info in every:
        for split in _SPLITS:
            if match := split.fullmatch(info.name):
                stems.setdefault(match["stem"], {})[match["key"]] = info
                break
    for info in every:
        if not stems.get(info.name, {}).keys().isdisjoint(_ORIGINALS):
            stems[info.name][""] = info
    return stems


@dataclass(frozen=True, slots=True)
class FoundKind:
    """A kind as it is met in a state dict: how often, and the first place."""

    kind: Kind
    count: int
    example: str


def find_kinds(infos: Iterable[TensorInfo]) -> tuple[FoundKind, ...]:
    """Count each kind among the tensors of a state dict; weight norm itself is not.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> keys = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    >>> [(found.kind.name, found.count) for found in find_kinds(
    ...     TensorInfo(key, dtype_named("float32"), (8,)) for key in keys)]
    [('batch norm', 1)]
    """
    found: dict[Kind, list[str]] = {}
    for stem, keys in stems_of(infos).items():
        kind = next((kind for kind in KINDS if kind.shows(keys)), None)
        if kind is not None:
            found.setdefault(kind, []).append(stem.rstrip(".") or ".")
    return tuple(FoundKind(kind, len(found[kind]), found[kind][0]) for kind in KINDS if kind in found)
