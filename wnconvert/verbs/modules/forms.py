"""Putting weight norm or spectral norm into an ``nn.Module``, in a form, as torch's own functions do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL
from wnconvert.verbs.modules.finding.computed import HELD, is_on_class, parametrizations_of
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.finding.manners import HOOKS, PARAMETRIZATIONS, Manner
from wnconvert.verbs.modules.surgery import hold, take_out
from wnconvert.verbs.modules.undo import become, parametrized_class

__all__ = ["Stated", "move_to", "put_in", "reason_against_form", "reason_against_move"]


class Stated(Protocol):
    """What torch's hook or parametrization states, beside its tensors."""

    @property
    def dim(self) -> int:
        """The axis of the norms; -1 stands for the whole tensor."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What torch makes of a kind that it has in both forms, given an object that states what it needs."""

    hook: Callable[[str, Any], Any]
    parametrize: Callable[[nn.Module, str, Any], object]
    beside: Callable[[Any, Any], object]


def _spectral_beside(module: Any, hook: SpectralNorm) -> None:
    module._register_state_dict_hook(SpectralNormStateDictHook(hook))
    module._register_load_state_dict_pre_hook(SpectralNormLoadStateDictPreHook(hook))


def _nothing_beside(module: nn.Module, hook: WeightNorm) -> None:
    """Weight norm needs its hook alone."""


#: By the words of their manners.
_KINDS: Mapping[str, _Kind] = {
    "weight norm": _Kind(
        lambda param, by: WeightNorm(param, by.dim),
        lambda module, param, by: weight_norm(module, param, by.dim),
        _nothing_beside,
    ),
    "spectral norm": _Kind(
        lambda param, by: SpectralNorm(param, by.n_power_iterations, by.dim, by.eps),
        lambda module, param, by: spectral_norm(module, param, by.n_power_iterations, by.eps, by.dim),
        _spectral_beside,
    ),
}


def move_to(live: Live, w: Tensor | None, form: str) -> None:
    """Change a layer to a form; w is the cached weight of the legacy form."""
    (link,) = live.chain.links
    fleeting = {role for role, place in live.chain.places.items() if place.is_fleeting}
    take_out(live)
    words = link.manner.words
    put_in(live.module, live.param, live.tensors, link.by, w, words=words, form=form, fleeting=fleeting)


def reason_against_move(live: Live, form: str) -> str:
    """Why a layer cannot be changed to a form, or ``""``."""
    words = live.chain.words
    if len(live.chain.links) > 1:
        return f"{words} are stacked on it, and only one alone has two forms"
    if words not in _KINDS:
        return f"{words} has no other form"
    if words == "spectral norm" and live.original.dim() < 2:
        return "spectral norm of a vector is another function in each form"
    return reason_against_form(live.module, live.param, form, words)


def reason_against_form(module: nn.Module, param: str, form: str, words: str = "weight norm") -> str:
    """Why a kind cannot be put on a weight, or ``""``: something else has a name that it needs."""
    if form == "legacy":
        needed = [*_names(_manner_of(HOOKS, words), param).values()]
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch cannot parametrize it inside a transform of torch.func"
    else:
        needed = [] if _is_torchs(module) else [HELD]
    taken = [f"the name {name} is taken by {what}" for name in needed if (what := _holder(module, name))]
    if not taken and param not in parametrizations_of(module) and is_on_class(module, param):
        return f"the name {param} is taken by an attribute of its class"
    return taken[0] if taken else ""


def _manner_of(manners: tuple[Manner, ...], words: str) -> Manner:
    return next(manner for manner in manners if manner.words == words)


def _names(manner: Manner, param: str) -> dict[str, str]:
    """The names that a hook's manner gives to the tensors of a weight, by role, in torch's order."""
    return {
        **{role: param + suffix for role, suffix in manner.beside.items()},
        ORIGINAL: param + manner.start,
    }


def put_in(
    module: nn.Module,
    param: str,
    tensors: Mapping[str, Tensor],
    by: Stated,
    w: Tensor | None,
    *,
    form: str,
    words: str = "weight norm",
    fleeting: Collection[str] = (),
) -> None:
    """Give a module a weight in a form, as torch's function for it does; its tensors are not copied.

    ``by`` states what torch's object of another form does. w is the cached weight of the legacy form.
    ``fleeting`` are the roles of buffers that are not saved in a state dict.
    """
    kind = _KINDS[words]
    if form == "legacy":
        manner, hook = _manner_of(HOOKS, words), kind.hook(param, by)
        _put_hook(module, hook)
        kind.beside(module, hook)
        module.__dict__[param] = w
        homes = {role: (module, name) for role, name in _names(manner, param).items()}
    else:
        manner = _manner_of(PARAMETRIZATIONS, words)
        made_by = _put_parametrization(module, param, tensors[ORIGINAL].dim(), by, kind)
        part = made_by._modules["0"]
        assert part is not None  # noqa: S101 - torch has just made it
        homes = {
            **{role: (made_by, name) for role, name in manner.beside.items()},
            ORIGINAL: (made_by, manner.start),
            **{role: (part, name) for role, name in manner.own.items()},
        }
    for role, (home, name) in homes.items():
        hold(home, name, tensors[role], fleeting=role in fleeting)


def _put_hook(module: nn.Module, hook: Any) -> None:
    """Register the hook as torch's function does, but before all hooks that compute no weight.

    In the parametrize form, too, the other hooks see the current weight.
    """
    hooks = module._forward_pre_hooks
    computing = tuple(manner.cls for manner in HOOKS)
    others = [key for key, other in hooks.items() if not isinstance(other, computing)]
    module.register_forward_pre_hook(hook)
    for key in others:
        hooks[key] = hooks.pop(key)


def _put_parametrization(module: nn.Module, param: str, rank: int, by: Stated, kind: _Kind) -> nn.Module:
    """Apply torch's function of the parametrize form itself, to a stand-in of one element."""
    cls, is_first = type(module), HELD not in module._modules
    # torch's function sets and deletes attributes; methods of the class that interfere are bypassed.
    unminding = {name: vars(nn.Module)[name] for name in ("__getattr__", "__setattr__", "__delattr__")}
    become(module, type(f"Parametrized{cls.__name__}", (cls,), unminding))
    stand_in = torch.zeros((1,) * rank, device="cpu")
    module._parameters[param] = nn.Parameter(stand_in, requires_grad=False)
    with torch.random.fork_rng(devices=()):  # spectral norm draws a u and a v
        kind.parametrize(module, param, by)
    made = type(module)
    # torch adds a second property to the class that it made for the first, which copies share.
    become(
        module,
        parametrized_class(made, cls)
        if is_first
        else parametrized_class(cls, cls.__bases__[0], properties={param: vars(made)[param]}),
    )
    made_by = parametrizations_of(module)[param]
    made_by._parameters.clear()
    made_by.training = module.training
    if is_first:
        module._modules[HELD].training = module.training  # type: ignore[union-attr]
    return made_by


def _is_torchs(module: nn.Module) -> bool:
    """Whether torch made a module's ``parametrizations``, and the class that goes with them."""
    held = module._modules.get(HELD)
    if not isinstance(held, nn.ModuleDict) or not held._modules:
        return False
    made = parametrizations_of(module).keys() & vars(type(module)).keys()
    return made == held._modules.keys()


def _holder(module: nn.Module, name: str) -> str:
    """A description of whatever has a name in a module, or ``""``."""
    homes: dict[str, Mapping[str, object]] = {
        "Parameter": module._parameters,
        "buffer": module._buffers,
        "submodule": module._modules,
        "attribute": vars(module),
    }
    kind = next((kind for kind, home in homes.items() if name in home), "")
    if kind:
        return f"{'an' if kind == 'attribute' else 'a'} {kind} of the module"
    return "an attribute of its class" if is_on_class(module, name) else ""
