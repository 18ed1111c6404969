"""Every module and tensor below a module, by all its names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wnconvert.frozen import dataclass
from wnconvert.tensors.memory import view_of
from wnconvert.verbs.modules.finding.chains import Place
from wnconvert.verbs.modules.finding.values import is_wrapper
from wnconvert.verbs.modules.finding.walk import modules_with_names

__all__ = ["Places", "places_in"]


@dataclass(frozen=True, slots=True)
class Places:
    """What is below a module: its modules and its Parameters and buffers, each under all of its names.

    ``names`` are those of a module by its id; ``tied`` those of tensors that are the same elements in memory.
    """

    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Place]
    names: Mapping[int, tuple[str, ...]]
    tied: Mapping[object, tuple[str, ...]]

    def owner(self, name: str) -> tuple[nn.Module | None, str]:
        """The module that has a tensor of this name or could have one, and the last part of the name."""
        prefix, _, last = name.rpartition(".")
        return self.modules.get(prefix), last

    def tensor(self, name: str) -> Tensor | None:
        """The Parameter or buffer of this name."""
        place = self.tensors.get(name)
        return None if place is None else place.tensor

    def others(self, name: str) -> tuple[str, ...]:
        """The other names of the elements of a tensor."""
        value = self.tensor(name)
        every = () if value is None else self.tied[_elements(value)]
        return tuple(other for other in every if other != name)


def places_in(root: nn.Module) -> Places:
    """All that is below a module, but for what is compiled: of a ``ScriptModule`` only the module itself.

    >>> places = places_in(nn.Sequential(nn.Linear(2, 1)))
    >>> [*places.tensors], places.owner("0.weight")
    (['0.weight', '0.bias'], (Linear(in_features=2, out_features=1, bias=True), 'weight'))
    """
    modules: dict[str, nn.Module] = {}
    tensors: dict[str, Place] = {}
    names: dict[int, tuple[str, ...]] = {}
    tied: dict[object, list[str]] = {}
    for module, prefixes in modules_with_names(root):
        names[id(module)] = tuple(prefix.removesuffix(".") for prefix in prefixes)
        modules |= dict.fromkeys(names[id(module)], module)
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                every = [prefix + name for prefix in prefixes]
                tensors |= {each: Place(module, name, each) for each in every}
                tied.setdefault(_elements(value), []).extend(every)
    return Places(modules, tensors, names, {key: tuple(each) for key, each in tied.items()})


def _elements(value: Tensor) -> object:
    """A key that is equal for tensors of the same elements in memory."""
    return id(value) if is_lazy(value) or is_wrapper(value) else view_of(value)
