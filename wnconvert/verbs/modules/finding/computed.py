"""What computes weights in a module: torch's own forward pre hooks and parametrizations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["computed_by_hooks", "is_on_class", "parametrizations_of", "tensor_of"]


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
