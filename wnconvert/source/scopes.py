"""What the names of one module are bound to, scope by scope, as Python looks them up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import field
from typing import Any, TypeAlias, TypeVar

from wnconvert.frozen import dataclass
from wnconvert.source.code import Code

__all__ = ["Assigned", "Bound", "Definition", "Imported", "Looped", "Namespace", "Other", "Parsed", "parsed"]


@dataclass(frozen=True, slots=True)
class Imported:
    """Bound by an import: the dotted name, and the dots before it."""

    name: str
    level: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """Bound by an assignment to this one name."""

    expr: ast.expr


@dataclass(frozen=True, slots=True)
class Looped:
    """Bound by a loop over something, or as the first of what is unpacked in one."""

    of: ast.expr


@dataclass(frozen=True, slots=True)
class Definition:
    """Bound by a def or a class."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Other:
    """Bound in any other way: an argument, a with, an unpacking and so on."""


Bound: TypeAlias = Imported | Assigned | Looped | Definition | Other


@dataclass(eq=False, slots=True)
class Namespace:
    """The names of a module, a class or a function; ``outer`` is where it stands."""

    node: ast.AST
    outer: Namespace | None
    names: dict[str, list[Bound]] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)

    def bind(self, name: str, bound: Bound) -> None:
        """Note what a name is bound to."""
        home = self
        while name in self.globals and home.outer:
            home = home.outer
        home.names.setdefault(name, []).append(bound)

    def lookup(self, name: str) -> list[Bound] | None:
        """What a name that is read here is bound to; None if no scope binds it."""
        at: Namespace | None = self
        while at:
            hidden = at is not self and isinstance(at.node, ast.ClassDef)
            if name in at.names and not hidden:
                return at.names[name]
            at = at.outer
        return None


_Node = TypeVar("_Node", bound=ast.AST)


@dataclass(eq=False)
class Parsed:
    """A module with its scopes: of every node the parent, and the scope that it is read in."""

    code: Code
    top: Namespace
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    scopes: dict[ast.AST, Namespace] = field(default_factory=dict)
    stars: list[Imported] = field(default_factory=list)
    kinds: dict[type[ast.AST], list[Any]] = field(default_factory=dict)

    def nodes(self, kind: type[_Node]) -> list[_Node]:
        """The nodes of a kind, in the order of the code."""
        return self.kinds.get(kind, [])

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the innermost on."""
        while node in self.parents:
            node = self.parents[node]
            yield node


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parsed(code: Code) -> Parsed:
    """A module's scopes. Raises ``SyntaxError``.

    >>> module = parsed(Code(b"import torch.nn as nn", b""))
    >>> module.top.lookup("nn")
    [Imported(name='torch.nn', level=0)]
    """
    tree = code.tree
    module = Parsed(code, Namespace(tree, None))
    stack: list[tuple[ast.AST, ast.AST | None, Namespace]] = [(tree, None, module.top)]
    while stack:
        node, parent, scope = stack.pop()
        if parent is not None:
            module.parents[node] = parent
        module.scopes[node] = scope
        module.kinds.setdefault(type(node), []).append(node)
        _bind(node, scope, module)
        inner = (
            Namespace(node, scope)
            if isinstance(node, (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef))
            else scope
        )
        children = [(child, node, _home(node, name, scope, inner)) for name, child in _children(node)]
        stack.extend(reversed(children))
    return module


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            if not isinstance(value, (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)):
                yield name, value
        elif isinstance(value, list):
            yield from ((name, item) for item in value if isinstance(item, ast.AST))


def _home(node: ast.AST, name: str, scope: Namespace, inner: Namespace) -> Namespace:
    """The scope of a part: decorators, bases and annotations are read outside of what they belong to."""
    outside = ("decorator_list", "bases", "keywords", "returns")
    return scope if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and name in outside else inner


def _bind(node: ast.AST, scope: Namespace, module: Parsed) -> None:
    match node:
        case ast.Import():
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                scope.bind(alias.asname or whole, Imported(whole, 0))
        case ast.ImportFrom():
            for alias in node.names:
                name = ".".join(part for part in (node.module or "", alias.name) if part)
                if alias.name == "*":
                    module.stars.append(Imported(node.module or "", node.level))
                else:
                    scope.bind(alias.asname or alias.name, Imported(name, node.level))
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            scope.bind(node.name, Definition(node))
        case ast.arg():
            scope.bind(node.arg, Other())
        case ast.Global():
            scope.globals.update(node.names)
        case ast.Name(ctx=ast.Store() | ast.Del()):
            scope.bind(node.id, _bound_by(node, module))
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            scope.bind(name, Other())


def _bound_by(node: ast.Name, module: Parsed) -> Bound:
    parent = module.parents[node]
    first = node
    if isinstance(parent, ast.Tuple) and parent.elts[0] is node:
        first, parent = parent, module.parents[parent]  # type: ignore[assignment]
    match parent:
        case ast.Assign(targets=[ast.Name()], value=value) if first is node:
            return Assigned(value)
        case ast.AnnAssign(value=ast.expr() as value) if first is node:
            return Assigned(value)
        case ast.For(target=target, iter=source) | ast.comprehension(target=target, iter=source):
            return Looped(source) if target is first else Other()
    return Other()
