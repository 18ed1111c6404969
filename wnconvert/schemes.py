"""How weight-normalized layers are spelled in a state dict, as one table, and the rule that finds them.

A layer is recognised by its whole group of keys and by its shapes, never by a lone suffix: ``weight_v``
alone is spectral norm, ``emb_g.weight`` is a speaker embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from wnconvert.dims import AUTO, dim_of, rows_of
from wnconvert.errors import LayerError
from wnconvert.tensors import TensorInfo

__all__ = ["FORMS", "SCHEMES", "Found", "Layer", "Refused", "Scheme", "Selection"]
__all__ += ["find", "in_form", "owner_of", "spelled"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to spell a layer: patterns of the keys of g and v, and of what must not stand beside them.

    Each pattern captures ``owner`` (the module with its dot, or nothing) and ``param``; the weight is the
    two together. ``beside`` matches keys that show another reparameterization stacked on the pair.
    ``spelling`` gives the keys back: of g and of v, from owner and param.
    """

    form: str
    spelling: tuple[str, str]
    g: re.Pattern[str]
    v: re.Pattern[str]
    beside: re.Pattern[str]


_OWNER = r"(?s:(?P<owner>(?:.*\.)?))"  # a name may hold a line break
_LEGACY = _OWNER + r"(?P<param>[^.]+?)_"
_PARAMETRIZE = _OWNER + r"parametrizations\.(?P<param>[^.]+)\."

#: The known conventions. A new one is a new row (and a fixture that shows it).
SCHEMES: tuple[Scheme, ...] = (
    Scheme(
        form="legacy",  # torch.nn.utils.weight_norm
        spelling=("{owner}{param}_g", "{owner}{param}_v"),
        g=re.compile(_LEGACY + "g"),
        v=re.compile(_LEGACY + "v"),
        beside=re.compile(_LEGACY + "(?:[gv]_)?(?:orig|mask|u)"),  # spectral norm, prune
    ),
    Scheme(
        form="parametrize",  # torch.nn.utils.parametrizations.weight_norm
        spelling=("{owner}parametrizations.{param}.original0", "{owner}parametrizations.{param}.original1"),
        g=re.compile(_PARAMETRIZE + "original0"),
        v=re.compile(_PARAMETRIZE + "original1"),
        beside=re.compile(_PARAMETRIZE + r"(?:\d+\..*|original(?![01]$).*)"),
    ),
)

#: The forms that a pair can have.
FORMS = tuple(scheme.form for scheme in SCHEMES)


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight-normalized layer, named by the weight it computes.

    ``dim`` is the axis that the norm is not summed over, None where it is taken of the whole tensor.
    """

    name: str
    form: str
    dim: int | None
    g: TensorInfo
    v: TensorInfo
    note: str = ""

    @property
    def rows(self) -> int:
        """Number of norms, that is of elements of g."""
        return rows_of(self.v.shape, self.dim)

    @property
    def halves(self) -> tuple[TensorInfo, TensorInfo]:
        """g and v."""
        return self.g, self.v


def owner_of(weight: str) -> str:
    """The prefix of a weight's module, with its dot, or nothing.

    >>> owner_of("dec.conv.weight"), owner_of("weight")
    ('dec.conv.', '')
    """
    return weight[: weight.rfind(".") + 1]


def spelled(form: str, weight: str) -> tuple[str, str] | None:
    """The keys of g and v of a weight in a form; None for a form that is not known.

    >>> spelled("legacy", "conv.weight"), spelled("parametrize", "weight")[1]
    (('conv.weight_g', 'conv.weight_v'), 'parametrizations.weight.original1')
    """
    owner = owner_of(weight)
    for scheme in SCHEMES:
        if scheme.form == form:
            g, v = (key.format(owner=owner, param=weight[len(owner) :]) for key in scheme.spelling)
            return g, v
    return None


def in_form(layer: Layer, form: str) -> Layer:
    """A layer as it is spelled in another (known) form."""
    keys = spelled(form, layer.name)
    assert keys is not None  # noqa: S101 - options know the forms
    return replace(
        layer, form=form, g=replace(layer.g, name=keys[0]), v=replace(layer.v, name=keys[1]), note=""
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """What looks like a layer but must not be converted, with the reason and what to do."""

    name: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which layers are wanted: globs on the names of weights (``fnmatch``), and dim if it is given.

    >>> Selection(layers=("dec.*",), exclude=("*.conv_post.weight",)).wants("dec.conv_post.weight")
    False
    """

    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dim: int | str | None = AUTO

    def wants(self, name: str) -> bool:
        """Whether the layer of this name is to be converted."""
        if self.layers and not any(fnmatchcase(name, glob) for glob in self.layers):
            return False
        return not any(fnmatchcase(name, glob) for glob in self.exclude)


@dataclass(frozen=True, slots=True)
class Found:
    """What naming rules see in a state dict.

    ``layers`` in order of the first half of each pair; ``refused``; ``unwanted``, layers that the
    selection leaves alone; ``halves``, keys whose other half is not there.
    """

    layers: tuple[Layer, ...]
    refused: tuple[Refused, ...]
    unwanted: tuple[str, ...]
    halves: tuple[str, ...]


def find(infos: Iterable[TensorInfo], selection: Selection = Selection()) -> Found:
    """Find the weight-normalized layers among the tensors of one state dict.

    >>> from wnconvert.tensors import dtype_named
    >>> f32 = dtype_named("float32")
    >>> g, v = TensorInfo("conv.weight_g", f32, (8, 1, 1)), TensorInfo("conv.weight_v", f32, (8, 4, 3))
    >>> found = find([g, v])
    >>> [(layer.name, layer.form, layer.dim) for layer in found.layers]
    [('conv.weight', 'legacy', 0)]
    """
    names = {info.name: info for info in infos}
    groups = _group(names)
    layers: list[Layer] = []
    refused: list[Refused] = []
    unwanted: list[str] = []
    halves: list[str] = []
    for group in groups.values():
        if group.g is None or group.v is None:
            halves += _lonely_half(group, names)
        elif not (_is_number(group.g) and _is_number(group.v)):
            continue  # integers called x_g and x_v are nobody's magnitude
        elif not selection.wants(group.weight):
            unwanted.append(group.weight)
        elif reason := _reason_against(group, names, groups):
            if any(other.name == group.weight for other in refused):
                continue  # there in both forms: said once
            refused.append(Refused(group.weight, reason, f"--exclude '{group.weight}' leaves it as it is"))
        else:
            try:
                fit = dim_of(group.g.shape, group.v.shape, selection.dim)
            except LayerError as error:
                refused.append(Refused(group.weight, error.what, error.fix))
            else:
                layers.append(Layer(group.weight, group.form, fit.dim, group.g, group.v, fit.note))
    return Found(tuple(layers), tuple(refused), tuple(unwanted), tuple(halves))


@dataclass(slots=True)
class _Group:
    """The keys of one weight in one scheme, as far as they are there."""

    form: str
    weight: str
    g: TensorInfo | None = None
    v: TensorInfo | None = None
    beside: TensorInfo | None = None


def _group(names: Mapping[str, TensorInfo]) -> dict[tuple[str, str], _Group]:
    groups: dict[tuple[str, str], _Group] = {}
    for info in names.values():
        for scheme in SCHEMES:
            for part in ("g", "v", "beside"):
                pattern: re.Pattern[str] = getattr(scheme, part)
                if match := pattern.fullmatch(info.name):
                    weight = match["owner"] + match["param"]
                    group = groups.setdefault((scheme.form, weight), _Group(scheme.form, weight))
                    if getattr(group, part) is None:
                        setattr(group, part, info)
    return groups


def _is_number(info: TensorInfo) -> bool:
    return info.dtype.foldable or info.dtype.is_float8 or info.dtype.name.startswith("complex")


def _reason_against(
    group: _Group, names: Mapping[str, TensorInfo], groups: Mapping[tuple[str, str], _Group]
) -> str:
    """Why a complete pair must not be converted, or nothing."""
    if group.beside:
        return f"{group.beside.name} beside it shows another reparameterization stacked on weight norm"
    if group.weight in names:
        return "the plain weight of that name is there too, and only one of them can be right"
    for scheme in SCHEMES:
        other = groups.get((scheme.form, group.weight))
        if other is not None and other is not group and other.g and other.v:
            return f"it is there twice, in the {group.form} and in the {scheme.form} form"
    for info in (group.g, group.v):
        if info is not None and not info.dtype.foldable:
            scale = " without its scale" if info.dtype.is_float8 else ""
            return f"{info.name} is {info.dtype}, which cannot be folded{scale}"
    return ""


def _lonely_half(group: _Group, names: Mapping[str, TensorInfo]) -> list[str]:
    """The key of a half whose partner seems to have been renamed.

    A lone v is no sign: spectral norm has one (with u), attention has ``bias_v``. Nor is a vector
    called ``x_g``. What is shaped as a magnitude, or is spelled as a parametrization, is.
    """
    half = group.g or group.v
    if half is None or group.weight in names or not half.dtype.foldable:
        return []
    if group.form == "parametrize":
        return [half.name]
    if half is group.g:
        long_axes = [size for size in half.shape if size != 1]
        return [half.name] if len(half.shape) > 1 and len(long_axes) <= 1 else []
    return [half.name] if group.weight.endswith("weight") and len(half.shape) > 1 and not group.beside else []
