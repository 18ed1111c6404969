"""The two forms of torch's weight norm in code: functions, the attributes of a layer, keys of its state.

From the legacy form (``torch.nn.utils.weight_norm``, ``m.weight_g``) to the parametrize form
(``torch.nn.utils.parametrizations.weight_norm``, ``m.parametrizations.weight.original0``), or back.
"""

from __future__ import annotations

import ast
import re

from wnconvert.frozen import dataclass

__all__ = ["CODE_FORMS", "GROUPS", "HALVES", "UTILS", "CodeForm", "Relocation", "half_of", "moves_to"]


UTILS = "torch.nn.utils"
#: The forms that code can be taken to, and the groups of rules that are chosen together.
CODE_FORMS = ("parametrize", "legacy")
GROUPS = ("weight", "spectral")
#: The halves of a weight: the endings of the legacy form, and the names of the parametrize form.
HALVES = {"g": "original0", "v": "original1"}


@dataclass(frozen=True, slots=True)
class Relocation:
    """A function of torch that has another name and home in the other form."""

    old: str
    home: str
    name: str
    removes: bool = False

    @property
    def new(self) -> str:
        """Its whole new name."""
        return f"{self.home}.{self.name}"

    @property
    def short(self) -> str:
        """Its old name, without its home."""
        return self.old.rpartition(".")[2]


def moves_to(form: str, groups: frozenset[str]) -> dict[str, Relocation]:
    """The functions that move if code is taken to a form, by their old names.

    >>> moves_to("parametrize", frozenset(["weight"]))["torch.nn.utils.remove_weight_norm"].new
    'torch.nn.utils.parametrize.remove_parametrizations'
    """
    moves = []
    for group in sorted(
        groups, reverse=True
    ):  # weight first: what removes any parametrization is taken for its own
        if form == "parametrize":
            moves += [
                Relocation(f"{UTILS}.{group}_norm", f"{UTILS}.parametrizations", f"{group}_norm"),
                Relocation(
                    f"{UTILS}.remove_{group}_norm",
                    f"{UTILS}.parametrize",
                    "remove_parametrizations",
                    removes=True,
                ),
            ]
        else:
            moves += [
                Relocation(f"{UTILS}.parametrizations.{group}_norm", UTILS, f"{group}_norm"),
                Relocation(
                    f"{UTILS}.parametrize.remove_parametrizations",
                    UTILS,
                    f"remove_{group}_norm",
                    removes=True,
                ),
            ]
    return {move.old: move for move in reversed(moves)}


@dataclass(frozen=True, slots=True)
class CodeForm:
    """What code is taken to: the form, whether to run on torch before 2.1 too, and the groups of rules."""

    to: str = "parametrize"
    compat: bool = False
    groups: frozenset[str] = frozenset(["weight"])

    @property
    def moves(self) -> dict[str, Relocation]:
        """The functions that move, by their old names."""
        return moves_to(self.to, self.groups)

    def written(self, name: str, half: str) -> str:
        """The attribute of a half in this form.

        >>> CodeForm().written("weight", "g"), CodeForm("legacy").written("weight", "g")
        ('parametrizations.weight.original0', 'weight_g')
        """
        return f"parametrizations.{name}.{HALVES[half]}" if self.to == "parametrize" else f"{name}_{half}"

    def key(self, names: frozenset[str]) -> re.Pattern[str]:
        """A half as the other form writes it, in a text."""
        any_name = "|".join(map(re.escape, sorted(names)))
        if self.to == "parametrize":
            return re.compile(rf"(?<![A-Za-z0-9_])(?P<name>{any_name})_(?P<half>[gv])(?![A-Za-z0-9_])")
        return re.compile(rf"parametrizations\.(?P<name>{any_name})\.original(?P<half>[01])(?![0-9])")


def half_of(node: ast.Attribute, form: CodeForm, names: frozenset[str]) -> tuple[ast.expr, str, str] | None:
    """The layer, the weight's name and the half that an attribute of the other form means, if it is one.

    >>> half_of(ast.parse("m.conv.weight_g", mode="eval").body, CodeForm(), frozenset(["weight"]))[1:]
    ('weight', 'g')
    """
    if form.to == "parametrize":
        name, _, half = node.attr.rpartition("_")
        return (node.value, name, half) if half in HALVES and name in names else None
    halves = {new: half for half, new in HALVES.items()}
    match node:
        case ast.Attribute(
            value=ast.Attribute(value=ast.Attribute(value=layer, attr="parametrizations"), attr=name),
            attr=half,
        ) if half in halves:
            return layer, name, halves[half]
    return None
