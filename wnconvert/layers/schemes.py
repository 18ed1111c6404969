"""The names of weight-normalized layers in a state dict, one row for each convention."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import escape

from wnconvert.layers.conventions import (
    CONVENTIONS,
    LEGACY,
    PADDLE,
    PARAMETRIZE,
    PHYSICSNEMO,
    Convention,
    norm_of,
)
from wnconvert.layers.dims import AUTO
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.rules import BIAS, ORIGINAL, G, Guard, Mask, Norm, NormBehind, Rule
from wnconvert.layers.telling.asked import Asked
from wnconvert.messages import option
from wnconvert.tensors.tree import Dim, TensorInfo

__all__ = [
    "FORMS",
    "NAMED_FORMS",
    "SCHEMES",
    "Layer",
    "Refused",
    "Scheme",
    "Selection",
    "fix_of",
    "in_form",
    "is_pair",
    "owner_of",
    "renamed_halves",
    "spelled",
    "spellings",
]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A convention whose layers ends of keys show: patterns of g, of v, and of what stands beside.

    Each pattern captures ``owner`` (the module with its dot, or nothing) and ``param``; the weight is the
    two together. ``beside`` matches keys that show another reparameterization stacked on the pair.
    ``may_have`` says quickly which keys no pattern can match. ``as_vector`` is another convention of the
    same keys, whose g is a vector.
    """

    convention: Convention
    g: re.Pattern[str]
    v: re.Pattern[str]
    beside: re.Pattern[str]
    may_have: Callable[[str], bool]
    as_vector: Convention | None = None

    @property
    def form(self) -> str:
        """The word of its convention."""
        return self.convention.form

    @property
    def is_torchs(self) -> bool:
        """Whether torch has the form."""
        return self.convention.is_torchs

    def convention_of(self, g: TensorInfo, v: TensorInfo) -> Convention:
        """The convention of a pair, by the shape of its g."""
        if self.as_vector is not None and len(g.shape) == 1 < len(v.shape) and g.numel > 1:
            return self.as_vector
        return self.convention


_OWNER = r"(?s:(?P<owner>(?:.*\.)?))"  # a name may hold a line break
_LEGACY = _OWNER + r"(?P<param>[^.]+?)_"
_PARAMETRIZE = _OWNER + r"parametrizations\.(?P<param>[^.]+)\."

#: The conventions that ends of keys show. A new one is a new row (and a fixture that shows it).
SCHEMES: tuple[Scheme, ...] = (
    Scheme(
        LEGACY,
        g=re.compile(_LEGACY + "g"),
        v=re.compile(_LEGACY + "v"),
        beside=re.compile(_LEGACY + "(?:[gv]_)?(?:orig|mask|u)"),  # spectral norm, prune
        may_have=lambda key: key.endswith(("_g", "_v", "_orig", "_mask", "_u")),
        as_vector=PADDLE,
    ),
    Scheme(
        PARAMETRIZE,
        g=re.compile(_PARAMETRIZE + "original0"),
        v=re.compile(_PARAMETRIZE + "original1"),
        beside=re.compile(_PARAMETRIZE + r"(?:\d+\..*|original(?![01]$).*)"),
        may_have=lambda key: "parametrizations." in key,
    ),
    Scheme(
        PHYSICSNEMO,
        g=re.compile(_OWNER + "(?P<param>weight)_g"),
        v=re.compile(_OWNER + "(?P<param>weight)"),
        beside=re.compile(_OWNER + "(?P<param>weight)_(?:orig|mask|u)"),
        may_have=lambda key: key.endswith(("weight", "weight_g", "weight_orig", "weight_mask", "weight_u")),
    ),
)

#: The forms that torch has: those that a live layer can be given.
FORMS = tuple(each.form for each in CONVENTIONS.values() if each.is_torchs)
#: The forms whose keys follow from the name of a weight, so that a layer in a file gets one by names alone.
NAMED_FORMS = tuple(each.form for each in CONVENTIONS.values() if each.keys is not None)


@dataclass(frozen=True, slots=True)
class Layer:
    """A reparameterized layer, named by the weight it computes.

    ``rule`` says how the weight is computed of ``parts``, which are tensors by their roles. ``unread`` are
    tensors that go with the layer although the weight is not computed of them. Where a norm is folded into
    the layer, ``norm`` is the name of its module, ``bias`` that of the bias that is made; the parts have the
    tensors of that bias, too. ``grade`` is the evidence: ``"keys"``, ``"recipe"``, ``"names"``, ``"said"``.
    """

    name: str
    form: str
    rule: Rule
    parts: Mapping[str, TensorInfo]
    note: str = ""
    unread: tuple[TensorInfo, ...] = ()
    norm: str = ""
    bias: str = ""
    grade: str = "keys"

    @classmethod
    def of_pair(  # noqa: PLR0917 -- a pair, as a row of a record has it
        cls, name: str, form: str, dim: Dim, g: TensorInfo, v: TensorInfo, eps: float | None = None
    ) -> Layer:
        """A weight-normalized layer; ``dim`` is the axis that the norm is not summed over, None: all are.

        Where its form divides by a norm with an eps, that is ``eps``, or the one that its framework takes.
        """
        return cls(name, form, _rule_of(form, dim, eps), {ORIGINAL: v, G: g})

    @property
    def original(self) -> TensorInfo:
        """The tensor that the rule starts from; it has the weight's shape."""
        return self.parts[ORIGINAL]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors that stand in the place of the weight."""
        return (*self.parts.values(), *self.unread)

    @property
    def of_weight(self) -> tuple[TensorInfo, ...]:
        """The tensors in the place of the weight: none of its bias, nor of a norm beside it."""
        neighbour = self.rule.neighbour
        if neighbour is None:
            return self.tensors
        others = (BIAS, *neighbour.roles, *neighbour.offsets)
        unread = (info for info in self.unread if not info.name.startswith(f"{self.norm}."))
        return (*(info for role, info in self.parts.items() if role not in others), *unread)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the bias that is made where a norm is folded into the layer."""
        neighbour, shape = self.rule.neighbour, self.original.shape
        if isinstance(neighbour, NormBehind):
            return (neighbour.norms(shape),)
        return shape[1:2] if neighbour and neighbour.dim == 0 else shape[:1]

    @property
    def dim(self) -> Dim:
        """The axis that belongs to the norms, or None if there is one of the whole tensor, or none."""
        return self.rule.dim

    @property
    def rows(self) -> int:
        """Number of norms; in weight norm, that of elements of g."""
        return self.rule.norms(self.original.shape)

    @property
    def parameters(self) -> tuple[TensorInfo, ...]:
        """The parts that torch has among the parameters, in its order."""
        return tuple(self.parts[role] for role in (G, ORIGINAL) if role in self.parts)

    @property
    def buffers(self) -> tuple[TensorInfo, ...]:
        """The parts that torch has among the buffers, in its order: a hook's mask comes last."""
        roles = [role for role in self.parts if role not in (G, ORIGINAL)]
        if self.form == "legacy":
            roles.sort(key=lambda role: role in Mask.roles)
        return tuple(self.parts[role] for role in roles)

    # Of weight norm alone:

    @property
    def g(self) -> TensorInfo:
        """The magnitudes."""
        return self.parts[G]

    @property
    def v(self) -> TensorInfo:
        """The directions."""
        return self.original

    @property
    def guard(self) -> Guard | None:
        """The eps of its norm, and where it stands; None if rows are divided by their norms alone."""
        norm = next((each for each in self.rule.operations if isinstance(each, Norm)), None)
        return norm.guard if norm else None

    @property
    def halves(self) -> tuple[TensorInfo, TensorInfo]:
        """g and v."""
        return self.g, self.v

    def with_halves(self, g: TensorInfo, v: TensorInfo) -> Layer:
        """The layer with another pair, and without a note."""
        return replace(self, parts={ORIGINAL: v, G: g}, note="")


@lru_cache(maxsize=256)
def _rule_of(form: str, dim: Dim, eps: float | None) -> Rule:
    """The rule of the pairs of a form: one object for any number of layers."""
    return Rule((norm_of(form, dim, eps),))


def is_pair(layer: Layer) -> bool:
    """Whether a layer is weight norm alone: a g and a v."""
    return layer.rule.kinds == (Norm.kind,)


def owner_of(weight: str) -> str:
    """The prefix of a weight's module, with its dot, or nothing.

    >>> owner_of("dec.conv.weight"), owner_of("weight")
    ('dec.conv.', '')
    """
    return weight[: weight.rfind(".") + 1]


def spelled(form: str, weight: str) -> tuple[str, str] | None:
    """The keys of g and v of a weight in a form; None where the form is not known, or has none of that name.

    >>> spelled("legacy", "conv.weight"), spelled("parametrize", "weight")[1]
    (('conv.weight_g', 'conv.weight_v'), 'parametrizations.weight.original1')
    """
    keys = CONVENTIONS[form].keys if form in CONVENTIONS else None
    owner = owner_of(weight)
    return None if keys is None else keys(owner, weight[len(owner) :])


def spellings(weight: str) -> tuple[str, ...]:
    """The keys of the halves of a weight in every form that has it.

    >>> spellings("weight")[:2]
    ('weight_g', 'weight_v')
    """
    return tuple(half for form in NAMED_FORMS for half in spelled(form, weight) or ())


def renamed_halves(layer: Layer, namer: Callable[[str], str]) -> tuple[str, str]:
    """The keys that the halves of a layer have once ``namer`` gives new names.

    A pair goes by the name of its weight where its form spells it so; else each half goes by its own.
    """
    own = (layer.g.name, layer.v.name)
    if spelled(layer.form, layer.name) != own:
        return namer(own[0]), namer(own[1])
    return spelled(layer.form, namer(layer.name)) or (namer(own[0]), namer(own[1]))


def in_form(layer: Layer, form: str) -> Layer | None:
    """A layer as it is spelled in another form, with a g of its shape; None where it has no such layer.

    Names alone change: a layer whose form has no keys of its own has its axes in another order, too.
    """
    convention = CONVENTIONS[form]
    keys = spelled(form, layer.name)
    shape = convention.shape_of_g(layer.g.shape, layer.v.shape, layer.dim)
    if keys is None or shape is None or CONVENTIONS[layer.form].keys is None:
        return None
    g, v = replace(layer.g, name=keys[0], shape=shape), replace(layer.v, name=keys[1])
    return Layer.of_pair(layer.name, form, layer.dim, g, v)


@dataclass(frozen=True, slots=True)
class Refused:
    """A layer that must not be converted, with the reason; ``remedy`` may help beside leaving it out."""

    name: str
    reason: str
    remedy: str = ""

    @property
    def fix(self) -> str:
        """The fix: the remedy, or to leave the layer out."""
        return fix_of((self,))


def fix_of(refused: Collection[Refused]) -> str:
    """The fix for layers that are refused: the remedy, if it is the same for all, or to leave them out.

    >>> fix_of([Refused("conv.weight", "its g does not fit", "repair the checkpoint")])
    "repair the checkpoint; --exclude 'conv.weight' leaves it as it is"
    """
    remedies, names = {item.remedy for item in refused}, {item.name for item in refused}
    remedy = remedies.pop() if len(remedies) == 1 else ""
    if len(names) == 1:
        leave = f"{option('exclude', glob=names.pop())} leaves it as it is"
    else:
        leave = f"{option('exclude')} leaves them as they are"
    return f"{remedy}; {leave}" if remedy else leave


@dataclass(frozen=True, slots=True)
class Selection:
    """The layers that are wanted: globs on the names of weights (``fnmatch``), and dim if it is given.

    ``kinds`` are those of layers that are wanted; of others a ``recipe`` tells, or what is ``asked`` for in
    its place, of which each state dict makes a recipe of its own.

    ``eps`` is that of norms whose form has one, in the place of the framework's own.

    ``named`` are weights that are said to be layers, whatever else their names could mean; so are those that
    ``layers`` names without wildcards.

    >>> Selection(layers=("dec.*",), exclude=("*.conv_post.weight",)).wants("dec.conv_post.weight")
    False
    """

    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dim: int | str | None = AUTO
    named: Collection[str] = ()
    kinds: tuple[str, ...] = (Norm.kind,)
    recipe: Recipe | None = None
    asked: Asked | None = None
    eps: float | None = None

    @property
    def wants_all(self) -> bool:
        """Whether no layer is left out by its name."""
        return not (self.layers or self.exclude)

    def wants(self, name: str) -> bool:
        """Whether the layer of this name is to be converted."""
        if self.layers and not any(fnmatchcase(name, glob) for glob in self.layers):
            return False
        return not any(fnmatchcase(name, glob) for glob in self.exclude)

    def names(self, name: str) -> bool:
        """Whether this layer is named in full, and not by a wildcard.

        >>> Selection(layers=("b", "*")).names("b"), Selection(layers=("*",)).names("b")
        (True, False)
        """
        said = (self.layers, self.named)
        return any(name in names or escape(name) in names for names in said)
