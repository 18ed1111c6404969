"""What a rule finds: a place in the code, with edits, or with the reason why not and what to do."""

from __future__ import annotations

import ast
from functools import cached_property

from wnconvert.frozen import dataclass
from wnconvert.source.code import Edit
from wnconvert.source.names import CodeForm, Relocation
from wnconvert.source.project import Meanings, ModulePlace, Project
from wnconvert.source.scopes import Namespace, Parsed

__all__ = ["ModuleView", "ProjectFacts", "Site"]


@dataclass(frozen=True, slots=True)
class Site:
    """A place that a rule found: edited if it has edits, else left for its reader with a reason and a fix.

    ``needs`` are functions of torch that the file must import for the edits, each with the name it has there.
    """

    rule: str
    at: int
    edits: tuple[Edit, ...] = ()
    reason: str = ""
    fix: str = ""
    needs: tuple[tuple[Relocation, str], ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the code is edited for it."""
        return bool(self.edits or self.needs)


@dataclass(frozen=True, slots=True)
class ProjectFacts:
    """What is known of a project as a whole.

    names      the weights that are normalized, ``weight`` among them
    applied    whether torch's weight norm is applied in it at all
    own        the names of halves that a class of the project has as its own
    spectral   whether spectral norm in the legacy form is used, which has a ``weight_v`` too
    others     whether there are other parametrizations
    """

    names: frozenset[str] = frozenset(["weight"])
    applied: bool = False
    own: frozenset[str] = frozenset()
    spectral: bool = False
    others: bool = False


@dataclass(frozen=True)
class ModuleView:
    """A module as the rules see it: in its project, with what is asked for."""

    module: Parsed
    place: ModulePlace
    project: Project
    facts: ProjectFacts
    form: CodeForm

    def meaning(self, expr: ast.expr) -> Meanings:
        """What an expression of names and dots means."""
        return self.project.meaning(expr, self.module, self.place)

    def only(self, expr: ast.expr) -> str:
        """The one thing that an expression means; ``""`` if it is not known, or one of several."""
        found = self.meaning(expr)
        return next(iter(found)) if len(found) == 1 else ""

    def is_builtin(self, expr: ast.expr, *names: str) -> bool:
        """Whether an expression is one of Python's own functions."""
        return isinstance(expr, ast.Name) and expr.id in names and self.scope(expr).lookup(expr.id) is None

    def scope(self, node: ast.AST) -> Namespace:
        """The scope in which a node is read."""
        return self.module.scopes[node]

    def start(self, node: ast.AST) -> int:
        """The offset of a node's first byte."""
        return self.module.code.start(node)

    def end(self, node: ast.AST) -> int:
        """The offset behind a node's last byte."""
        return self.module.code.end(node)

    def text(self, node: ast.AST) -> str:
        """A node as it is written."""
        return self.module.code.text(node)

    def both_forms(self, name: str, scope: Namespace) -> bool:
        """Whether a name is imported in the new form here, or else in the old: such code runs on both."""
        news = {move.new for move in self.form.moves.values()}
        found = [self.project.of_bound(bound, self.module, self.place) for bound in scope.lookup(name) or ()]
        return any(meanings & news for meanings in found)

    @cached_property
    def applies(self) -> bool:
        """Whether torch's weight norm, in either form, is used in this module."""
        names = {"torch.nn.utils.weight_norm", "torch.nn.utils.parametrizations.weight_norm"}
        references: list[ast.expr] = [
            *(node for node in self.module.nodes(ast.Name) if isinstance(node.ctx, ast.Load)),
            *(node for node in self.module.nodes(ast.Attribute) if node.attr == "weight_norm"),
        ]
        return any(self.meaning(node) & names for node in references)
