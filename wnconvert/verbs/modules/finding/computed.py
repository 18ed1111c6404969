"""What computes weights in a module: torch's own forward pre hooks and parametrizations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from wnconvert.frozen import dataclass
from wnconvert.verbs.modules.finding.manners import HOOKS, Manner

__all__ = ["HELD", "HookComputed", "computed_by_hooks", "is_on_class", "parametrizations_of", "tensor_of"]


#: torch's name for the ``ModuleDict`` of a module's parametrizations.
HELD = "parametrizations"


@dataclass(frozen=True, slots=True)
class HookComputed:
    """A weight, ``target``, that one of torch's forward pre hooks computes in a manner."""

    manner: Manner
    target: str
    hook: Any

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return self.manner.words

    @property
    def start(self) -> str:
        """The name of the tensor that it starts from."""
        return self.target + self.manner.start

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all that it computes the weight from."""
        return (self.start, *(self.target + suffix for suffix in self.manner.beside.values()))


def computed_by_hooks(module: nn.Module) -> list[HookComputed]:
    """The weights that forward pre hooks of torch's own compute."""
    return [
        HookComputed(manner, getattr(hook, manner.target), hook)
        for hook in module.__dict__.get("_forward_pre_hooks", {}).values()
        for manner in HOOKS
        if isinstance(hook, manner.cls)
    ]


def parametrizations_of(module: nn.Module) -> dict[str, ParametrizationList]:
    """The parametrized tensors of a module by name."""
    held = module._modules.get(HELD)
    every = {} if held is None else held._modules
    return {name: each for name, each in every.items() if isinstance(each, ParametrizationList)}


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A module's own Parameter or buffer."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found


def is_on_class(module: nn.Module, name: str) -> bool:
    """Whether a module's class has an attribute of this name, which would hide a Parameter."""
    return any(name in vars(cls) for cls in type(module).__mro__)
