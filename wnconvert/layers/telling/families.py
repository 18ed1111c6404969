"""The layers and the norms that stand in one module, by what their names say of each other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from wnconvert.layers.telling.spellings import key_of_norm, keys_of_layer, number_of

__all__ = ["Family"]


@dataclass(slots=True)
class Family:
    """The layers and norms of one module, by the last parts of their names, in the order of modules.

    ``places`` says where each layer stands among them, ``behind`` how many layers stand before a norm.
    ``follows`` says of each norm with a number in its name what stands next before it.
    """

    layers: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    layers_by_key: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    norms_by_key: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    follows: dict[int, str] = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)

    def take_layer(self, name: str) -> None:
        """One layer more."""
        for key in keys_of_layer(name):
            self.layers_by_key[key].append(len(self.layers))
        self.places[name] = len(self.layers)
        self.layers.append(name)

    def take_norm(self, name: str, before: str) -> None:
        """One norm more, with the module next before it."""
        key, number = key_of_norm(name), number_of(name)
        self.behind[name] = len(self.layers)
        if key is not None:
            self.norms_by_key[key].append(name)
        if number is not None:
            self.follows.setdefault(number, before.rpartition(".")[2])

    @property
    def counted(self) -> int:
        """How many norms are numbered as the layers before them count: each stands next behind its layer.

        >>> family = Family()
        >>> for layer, norm in (("conv_dw", "bn1"), ("conv_pw", "bn2")):
        ...     family.take_layer(layer)
        ...     family.take_norm(norm, layer)
        >>> family.counted
        2
        """
        count = 0
        while count < len(self.layers) and self.follows.get(count + 1) == self.layers[count]:
            count += 1
        return count

    def belong(self, layer: str, norm: str) -> bool:
        """Whether the two belong together by their names, or since the norm's number counts the layers."""
        if key_of_norm(norm) in keys_of_layer(layer):
            return True
        number = number_of(norm)
        return number is not None and number <= self.counted

    def candidates(self, layer: str, norm: str) -> list[str]:
        """What stands behind the layer, or before the norm, and could be its partner by its name as well."""
        key, last = key_of_norm(norm), self.behind[norm]
        first = self.places[layer]
        norms = [other for own in sorted(keys_of_layer(layer)) for other in self.norms_by_key.get(own, ())]
        norms = [other for other in norms if self.behind[other] > first]
        places = self.layers_by_key.get(key, ()) if key is not None else ()
        layers = [self.layers[at] for at in places if at < last]
        return list(dict.fromkeys(name for name in (*norms, *layers) if name not in (layer, norm)))
