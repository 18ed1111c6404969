"""What a name means in a project: followed through imports, aliases, star imports and re-exports.

A meaning is a dotted name (``torch.nn.utils.weight_norm``), or ``""`` where it is not known. Modules of the
project are called by their place in it, with a dot before it (``.vocoder.layers``).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from wnconvert.source.scopes import Assigned, Bound, Definition, Imported, Parsed

__all__ = ["Meanings", "ModulePlace", "Project"]


#: Where a module lies in a project: its folders and its name; a package is called by its folder.
ModulePlace: TypeAlias = tuple[str, ...]
Meanings: TypeAlias = frozenset[str]

_UNKNOWN: Meanings = frozenset([""])
#: What torch says in two places.
_SAME = {
    f"torch.nn.utils.{kind}_norm.{name}": f"torch.nn.utils.{name}"
    for kind in ("weight", "spectral")
    for name in (f"{kind}_norm", f"remove_{kind}_norm", f"{kind.title()}Norm")
}
_STARRED = ("weight_norm", "remove_weight_norm", "spectral_norm", "remove_spectral_norm")


@dataclass(eq=False)
class Project:
    """All modules of a project by their places; ``read`` parses one when asked (None: it cannot)."""

    packages: frozenset[ModulePlace]
    files: frozenset[ModulePlace]
    read: Callable[[ModulePlace], Parsed | None]
    _known: dict[tuple[ModulePlace, str], Meanings] = field(default_factory=dict)
    _ends: dict[str, list[ModulePlace]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in self.packages | self.files:
            if place:
                self._ends.setdefault(place[-1], []).append(place)

    def meaning(self, expr: ast.expr, module: Parsed, place: ModulePlace) -> Meanings:
        """What an expression of names and dots means; unknown for any other."""
        if isinstance(expr, ast.Attribute):
            bases = self.meaning(expr.value, module, place)
            return self._all(f"{base}.{expr.attr}" if base else "" for base in bases)
        if not isinstance(expr, ast.Name):
            return _UNKNOWN
        bounds = module.scopes[expr].lookup(expr.id)
        if bounds is None:
            return self._starred(expr.id, module, place)
        return frozenset[str]().union(*(self.of_bound(bound, module, place) for bound in bounds))

    def of_bound(self, bound: Bound, module: Parsed, place: ModulePlace) -> Meanings:
        """What a name means that is bound so."""
        if isinstance(bound, Imported):
            return self._all([self.absolute(bound, place)])
        if isinstance(bound, Assigned) and isinstance(bound.expr, (ast.Name, ast.Attribute)):
            key = (place, f"={ast.unparse(bound.expr)}")
            if key in self._known:
                return self._known[key]
            self._known[key] = _UNKNOWN  # while it is looked for: a name may be bound to itself
            self._known[key] = self.meaning(bound.expr, module, place)
            return self._known[key]
        return _UNKNOWN

    def absolute(self, bound: Imported, place: ModulePlace) -> str:
        """The dotted name that an import means, seen from a module."""
        if bound.level:
            package = place if place in self.packages else place[:-1]
            base = package[: len(package) - bound.level + 1]
            return "".join(f".{part}" for part in (*base, *filter(None, bound.name.split(".")))) or "."
        found = self._module(tuple(bound.name.split(".")), place)
        return found or bound.name

    def _module(self, parts: ModulePlace, seen_from: ModulePlace) -> str:
        """The name with its place, if its beginning is a module of the project: the nearest one."""
        if parts[0] == "torch":
            return ""
        for count in range(len(parts), 0, -1):
            there = [
                place for place in self._ends.get(parts[count - 1], ()) if place[-count:] == parts[:count]
            ]
            if there:
                near = max(there, key=lambda place: (_common(place, seen_from), -len(place)))
                return "".join(f".{part}" for part in (*near, *parts[count:]))
        return ""

    def _all(self, names: Iterable[str]) -> Meanings:
        return frozenset[str]().union(*(self._followed(name) for name in names))

    def _followed(self, name: str) -> Meanings:
        """A dotted name as it is called where it comes from."""
        if not name.startswith("."):
            return frozenset([_SAME.get(name, name)])
        parts = tuple(filter(None, name.split(".")))
        if parts in self.files or parts in self.packages:
            return frozenset([name])
        for count in range(len(parts) - 1, -1, -1):
            home = parts[:count]
            if home in self.files or home in self.packages:
                exported = self.exported(home, parts[count])
                rest = "".join(f".{part}" for part in parts[count + 1 :])
                return self._all(f"{one}{rest}" if one else "" for one in exported) if rest else exported
        return frozenset([name])

    def exported(self, place: ModulePlace, name: str) -> Meanings:
        """What a name means that is taken from a module of the project."""
        key = (place, name)
        if key not in self._known:
            self._known[key] = _UNKNOWN  # while it is looked for: imports may go in circles
            module = self.read(place)
            bounds = module.top.names.get(name) if module else None
            if module and bounds:
                found = frozenset[str]().union(*(self.of_bound(bound, module, place) for bound in bounds))
            else:
                found = self._starred(name, module, place) if module else _UNKNOWN
            self._known[key] = found
        return self._known[key]

    def _starred(self, name: str, module: Parsed, place: ModulePlace) -> Meanings:
        """What a name that nothing binds means by a star import."""
        for star in module.stars:
            home = self.absolute(star, place)
            if home == "torch.nn.utils" and name in _STARRED:
                return frozenset([f"{home}.{name}"])
            if home.startswith("."):
                found = self.exported(tuple(filter(None, home.split("."))), name)
                if found != _UNKNOWN:
                    return found
        return _UNKNOWN

    def definition(
        self, expr: ast.expr, module: Parsed, place: ModulePlace
    ) -> tuple[Definition, ModulePlace] | None:
        """The def or class that a plain name means, and the module that has it."""
        if not isinstance(expr, ast.Name):
            return None
        bounds = module.scopes[expr].lookup(expr.id)
        return self._defined(expr.id, bounds, module, place, depth=8)

    def _defined(
        self, name: str, bounds: list[Bound] | None, module: Parsed, place: ModulePlace, depth: int
    ) -> tuple[Definition, ModulePlace] | None:
        sources = (
            bounds
            if bounds is not None
            else [Imported(f"{star.name}.{name}", star.level) for star in module.stars]
        )
        for bound in sources:
            if isinstance(bound, Definition):
                return bound, place
            if isinstance(bound, Imported) and depth:
                *home, last = filter(None, self.absolute(bound, place).split("."))
                there = self.read(tuple(home)) if tuple(home) in self.files | self.packages else None
                if there and (
                    found := self._defined(last, there.top.names.get(last), there, tuple(home), depth - 1)
                ):
                    return found
        return None


def _common(one: ModulePlace, other: ModulePlace) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
