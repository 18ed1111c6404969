"""Weight-normalized layers of a live ``nn.Module``, found by the code that computes them, not by keys.

Nothing here changes a module or computes a weight: torch's kernel writes past its buffer if g does not fit,
so such a g must never reach it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.dims import dim_of
from wnconvert.layers.find import find_pairs
from wnconvert.layers.schemes import Layer, spelled
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.memory import array_of
from wnconvert.tensors.tree import TensorInfo

__all__ = [
    "Live",
    "LiveFound",
    "RefusedLive",
    "computed_by_hooks",
    "find_live",
    "fix_of_reason",
    "info_of",
    "is_on_class",
    "is_wrapper",
    "layer_of",
    "modules_with_names",
    "parametrizations_of",
    "reason_against_tensor",
    "tensor_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A weight-normalized layer of a module: attribute ``param`` of ``module``, computed from g and v.

    ``names`` are all names of the weight, because a shared module has several; ``layer`` has the first.
    ``stated`` is dim as torch stores it: -1 stands for the whole tensor.
    """

    layer: Layer
    names: tuple[str, ...]
    module: nn.Module
    param: str
    g: Tensor
    v: Tensor
    stated: int

    def named(self, name: str) -> Live:
        """The same layer under another of its names."""
        return replace(self, layer=layer_of(name, self.layer.form, self.layer.dim, self.g, self.v))

    def in_form(self, form: str) -> Live:
        """The same layer with its names in another form."""
        return replace(self, layer=layer_of(self.layer.name, form, self.layer.dim, self.g, self.v))


@dataclass(frozen=True, slots=True)
class RefusedLive:
    """A weight under all of its names, why its layer is refused, and what to do, if not to exclude it."""

    names: tuple[str, ...]
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class LiveFound:
    """The layers of a module in the order of its modules, the refused layers, and other computed weights.

    ``others`` are weights under another reparameterization, each with the name of that.
    """

    layers: tuple[Live, ...]
    refused: tuple[RefusedLive, ...]
    others: Mapping[tuple[str, ...], str]

    @property
    def names(self) -> list[str]:
        """Every name of every layer, also of refused ones."""
        names = [*(item.names for item in self.layers), *(item.names for item in self.refused)]
        return [name for of_one in names for name in of_one]


def find_live(root: object) -> LiveFound:
    """Find the layers of torch's two weight norms in a module and all modules below it.

    Raises ``ArgumentError`` if ``root`` is not an ``nn.Module``. Source: ``torch.nn.utils.weight_norm`` (a
    ``WeightNorm`` forward pre hook), ``torch.nn.utils.parametrizations.weight_norm`` (a ``_WeightNorm``).

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> (live,) = find_live(nn.Sequential(weight_norm(nn.Linear(3, 2)))).layers
    >>> live.layer.name, live.layer.form, live.layer.dim
    ('0.weight', 'parametrize', 0)
    """
    layers: list[Live] = []
    refused: list[RefusedLive] = []
    others: dict[tuple[str, ...], str] = {}
    scripted: list[TensorInfo] = []
    for module, prefixes in modules_with_names(root):
        if isinstance(module, torch.jit.ScriptModule):
            scripted += [
                info
                for key, value in module.named_parameters(recurse=False)
                if (info := info_of(f"{prefixes[0]}{key}", value)) is not None
            ]
            continue
        for candidate in _candidates(module):
            names = tuple(prefix + candidate.param for prefix in prefixes)
            if candidate.kind:
                others[names] = candidate.kind
                continue
            g, v = candidate.g, candidate.v
            reason = next(_reasons_against(candidate, module), "")
            if reason or g is None or v is None:
                refused.append(RefusedLive(names, reason, fix_of_reason(reason)))
                continue
            dim = dim_of(tuple(g.shape), tuple(v.shape), candidate.dim).dim
            layer = layer_of(names[0], candidate.form, dim, g, v)
            layers.append(Live(layer, names, module, candidate.param, g, v, candidate.dim))
    refused += _refused_scripts(scripted)
    return LiveFound(tuple(layers), tuple(refused), others)


def modules_with_names(root: object) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """``root`` and every module below it, once each, with the prefixes of all its names (dot included).

    >>> shared = nn.Linear(1, 1)
    >>> [prefixes for _, prefixes in modules_with_names(nn.Sequential(shared, shared))]
    [('',), ('0.', '1.')]
    """
    if not isinstance(root, nn.Module):
        kind = type(root).__name__
        fix = "pass an nn.Module"
        if isinstance(root, Mapping):
            fix += ", or use the function for state dicts (such as fold_state_dict)"
        raise ArgumentError(f"a {kind} is not a module", fix=fix)
    found: dict[int, tuple[nn.Module, list[str]]] = {}

    def visit(module: nn.Module, prefix: str, above: frozenset[int]) -> None:
        found.setdefault(id(module), (module, []))[1].append(prefix)
        above |= {id(module)}
        if getattr(module, "_modules", None) is None:
            raise ArgumentError(
                f"{prefix.rstrip('.') or 'the module'} was never initialized as an nn.Module",
                fix=f"call super().__init__() in {type(module).__name__}.__init__",
            )
        for key, child in module._modules.items():
            if child is not None and id(child) not in above:  # modules may hold each other
                visit(child, f"{prefix}{key}.", above)

    visit(root, "", frozenset())
    return [(module, tuple(prefixes)) for module, prefixes in found.values()]


# -- what computes weights


@dataclass(frozen=True, slots=True)
class _HookComputed:
    """A weight, ``target``, that one of torch's forward pre hooks computes from the tensors ``inputs``."""

    kind: str
    target: str
    inputs: tuple[str, ...]
    hook: Any


def computed_by_hooks(module: nn.Module) -> list[_HookComputed]:
    """The weights that forward pre hooks of torch's own compute."""
    found = []
    for hook in module.__dict__.get("_forward_pre_hooks", {}).values():
        if isinstance(hook, WeightNorm):
            found.append(_HookComputed("weight norm", hook.name, (f"{hook.name}_g", f"{hook.name}_v"), hook))
        elif isinstance(hook, SpectralNorm):
            inputs = tuple(f"{hook.name}_{part}" for part in ("orig", "u", "v"))
            found.append(_HookComputed("spectral norm", hook.name, inputs, hook))
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found.append(_HookComputed("prune", name, (f"{name}_orig", f"{name}_mask"), hook))
    return found


def parametrizations_of(module: nn.Module) -> dict[str, ParametrizationList]:
    """The parametrized tensors of a module by name."""
    held = module._modules.get("parametrizations")
    every = {} if held is None else held._modules
    return {name: each for name, each in every.items() if isinstance(each, ParametrizationList)}


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A module's own Parameter or buffer."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


def is_on_class(module: nn.Module, name: str) -> bool:
    """Whether a module's class has an attribute of this name, which would hide a Parameter."""
    return any(name in vars(cls) for cls in type(module).__mro__)


@dataclass(slots=True)
class _Candidate:
    """A computed weight; ``kind`` names its reparameterization if that is not weight norm."""

    form: str
    param: str
    kind: str = ""
    dim: int = -1
    g: Tensor | None = None
    v: Tensor | None = None
    halves: tuple[str, str] = ("", "")
    reason: str = ""
    hook: Any = None


def _candidates(module: nn.Module) -> Iterator[_Candidate]:
    for computed in computed_by_hooks(module):
        if computed.kind != "weight norm":
            yield _Candidate("legacy", computed.target, kind=computed.kind)
            continue
        g, v = computed.inputs
        yield _Candidate(
            "legacy",
            computed.target,
            dim=computed.hook.dim,
            g=tensor_of(module, g),
            v=tensor_of(module, v),
            halves=(g, v),
            reason=_own_way(computed.hook, WeightNorm, "compute_weight"),
            hook=computed.hook,
        )
    if type(module).__name__ == "WeightNormLinear" and {"weight", "weight_g"} <= module._parameters.keys():
        # PhysicsNeMo's: its own forward computes with both.
        yield _Candidate("physicsnemo", "weight", kind="weight norm of WeightNormLinear's own forward")
    for param, made_by in parametrizations_of(module).items():
        # The numbered children are the parametrizations; an original that is parametrized is a child too.
        parts = [part for key, part in made_by._modules.items() if key.isdecimal() and part is not None]
        norms = [part for part in parts if isinstance(part, _WeightNorm)]
        kinds = [_kind_of(part) for part in parts]
        if not norms:
            yield _Candidate("parametrize", param, kind=" and ".join(kinds))
            continue
        reason = _own_way(norms[0], _WeightNorm, "forward")
        if len(parts) > 1:
            reason = f"{' and '.join(kinds)} are stacked on it"
        elif any(each._forward_pre_hooks or each._forward_hooks for each in (made_by, parts[0])):
            reason = "hooks on its parametrization change what it computes"
        elif param not in vars(type(module)):
            reason = f"{type(module).__name__} is not the class that torch made for its parametrizations"
        yield _Candidate(
            "parametrize",
            param,
            dim=norms[0].dim,
            g=tensor_of(made_by, "original0"),
            v=tensor_of(made_by, "original1"),
            halves=("original0", "original1"),
            reason=reason,
        )


def _own_way(part: object, base: type, method: str) -> str:
    if getattr(type(part), method) is getattr(base, method):
        return ""
    return f"{type(part).__name__} computes it in a way of its own"


def _kind_of(part: nn.Module) -> str:
    if isinstance(part, _WeightNorm):
        return "weight norm"
    return "spectral norm" if isinstance(part, _SpectralNorm) else type(part).__name__.lstrip("_")


def _reasons_against(candidate: _Candidate, module: nn.Module) -> Iterator[str]:
    """The reasons against converting a layer."""
    if candidate.reason:
        yield candidate.reason
    if stacked := _stacked(candidate, module):
        yield f"{stacked} is stacked on weight norm"
    g, v = candidate.g, candidate.v
    for half, value in zip(candidate.halves, (g, v), strict=True):
        if value is None:
            yield f"its {half} is neither a Parameter nor a buffer of the module"
        elif reason := reason_against_tensor(half, value):
            yield reason
    if candidate.form == "legacy" and tensor_of(module, candidate.param) is not None:
        yield "there is a plain weight of that name too, and only one of them can be right"
    elif candidate.form == "legacy" and is_on_class(module, candidate.param):
        yield f"the name {candidate.param} is taken by an attribute of its class"
    if g is not None and v is not None:
        shapes = tuple(g.shape), tuple(v.shape)
        try:
            dim_of(*shapes, candidate.dim)
        except LayerError:
            stated = "over the whole tensor" if candidate.dim == -1 else f"along its dim {candidate.dim}"
            yield f"g {shapes[0]} does not fit v {shapes[1]} {stated}"


def _stacked(candidate: _Candidate, module: nn.Module) -> str:
    """Another reparameterization of a weight or its halves, in words, or ``""``."""
    if isinstance(module, ParametrizationList):
        return "another parametrization"
    for other in computed_by_hooks(module):
        meets = other.target == candidate.param or candidate.param in other.inputs
        if candidate.form == "legacy":
            meets = meets or other.target in candidate.halves
        if meets and other.hook is not candidate.hook:
            return f"{other.kind} of {other.target}"
    for param, made_by in parametrizations_of(module).items():
        if candidate.form == "legacy" and param in (*candidate.halves, candidate.param):
            return f"{' and '.join(map(_kind_of, made_by))} of {param}"
    return ""


def reason_against_tensor(name: str, value: Tensor) -> str:
    """Why a tensor can be neither a half of a layer nor a weight, or ``""``."""
    if is_lazy(value):
        return f"{name} is not initialized yet: run the module once"
    if is_wrapper(value):
        return f"{name} is a {type(value).__name__}, which is not a plain tensor"
    info = info_of(name, value)
    if info is None or not info.dtype.foldable:
        what = str(value.dtype).removeprefix("torch.")
        how = "" if value.layout == torch.strided else f" {str(value.layout).removeprefix('torch.')}"
        return f"{name} is{how} {what}, which cannot be weight-normalized"
    if not value.numel():
        return f"{name} {_NO_ELEMENTS}"
    return "" if value.is_meta else _reason_against_reading(name, value)


_NO_ELEMENTS = "is empty: one rank's share of a sharded module"


def fix_of_reason(reason: str) -> str:
    """What helps against a reason of ``reason_against_tensor``, if not to exclude the layer."""
    if reason.endswith(_NO_ELEMENTS):
        return "gather it first (deepspeed.zero.GatheredParameters, FSDP.summon_full_params)"
    return ""


def _reason_against_reading(name: str, value: Tensor) -> str:
    """Why the numbers of a tensor cannot be read (its class, a transform of ``torch.func``), or ``""``."""
    try:
        array_of(value.detach()[:0] if value.dim() else value)
    except Exception as error:  # noqa: BLE001 - whatever such a class raises
        return f"{name} is a {type(value).__name__} whose numbers cannot be read: {error}"
    return ""


def is_wrapper(value: Tensor) -> bool:
    """Whether a tensor has no numbers of its own: a DTensor, a FakeTensor and the like."""
    return type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__


def info_of(name: str, value: Tensor) -> TensorInfo | None:
    """A tensor's name, dtype and shape; None if it is not a plain tensor."""
    if is_lazy(value) or value.layout != torch.strided:
        return None
    dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
    return None if dtype is None else TensorInfo(name, dtype, tuple(value.shape))


def layer_of(name: str, form: str, dim: int | None, g: Tensor, v: Tensor) -> Layer:
    """The layer with this name of its weight, form and halves."""
    keys = spelled(form, name) or ("", "")
    g_info, v_info = (info_of(key, value) for key, value in zip(keys, (g, v), strict=True))
    assert g_info is not None  # noqa: S101 - what has none was refused
    assert v_info is not None  # noqa: S101
    return Layer(name, form, dim, g_info, v_info)


def _refused_scripts(infos: Iterable[TensorInfo]) -> Iterator[RefusedLive]:
    """Layers inside TorchScript, which are refused: no change of attributes reaches compiled code."""
    found = find_pairs(infos)
    for name in (*(layer.name for layer in found.layers), *(item.name for item in found.refused)):
        yield RefusedLive(
            (name,),
            "it is compiled into a TorchScript module, whose code would go on computing it",
            "convert the module before it is scripted or traced",
        )
