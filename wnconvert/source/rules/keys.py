"""Halves in texts: keys of state dicts, filters of parameters by name, patterns and replacements."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from wnconvert.source.code import Edit
from wnconvert.source.names import HALVES
from wnconvert.source.rules.attributes import BY_NAME
from wnconvert.source.scopes import Assigned, Looped
from wnconvert.source.sites import ModuleView, Site

__all__ = ["keys"]


_WHOLE = re.compile(r"[\w.]+")
_NAMING = ("named_parameters", "named_modules", "named_buffers")


def keys(view: ModuleView) -> Iterator[Site]:
    """Texts that spell a half: edited where they are whole keys or filter live names, else reported."""
    pattern = view.form.key(view.facts.names)
    for node in view.module.nodes(ast.Constant):
        text = node.value
        if not isinstance(text, str) or not (found := pattern.search(text)) or _is_prose(node, text, view):
            continue
        at = view.start(node)
        half = found["half"]
        new = view.form.written(found["name"], half if half in HALVES else "gv"[int(half)])
        above = _used_in(node, view)
        if (
            _is_sure(node, above, view)
            and _WHOLE.fullmatch(text)
            and (edit := _respelled(node, found[0], new, view))
        ):
            yield Site("key", at, (edit,))
        else:
            fix = f"new names have {new} there; wnconvert migrate renames what is in files"
            yield Site("key", at, (), f"{_use(above)} spells {found[0]}", fix)


def _is_prose(node: ast.Constant, text: str, view: ModuleView) -> bool:
    """Whether a text is for people, or asked for by another rule."""
    parent = view.module.parents[node]
    asked = isinstance(parent, ast.Call) and len(parent.args) > 1 and parent.args[1] is node
    if asked and isinstance(parent, ast.Call) and view.is_builtin(parent.func, *BY_NAME):
        return True
    return isinstance(parent, ast.Expr) or bool(re.search(r"\s", text.strip()))


def _respelled(node: ast.Constant, old: str, new: str, view: ModuleView) -> Edit | None:
    """The edit of a literal that spells its text as it is."""
    written = view.text(node)
    if written.count(old) != 1:
        return None
    at = view.start(node) + len(written.partition(old)[0].encode())
    return Edit(at, at + len(old.encode()), new)


def _used_in(node: ast.Constant, view: ModuleView) -> ast.AST:
    """What a text is a part of, or the tuple that it stands in: ``endswith(("weight_g", "weight_v"))``."""
    above = view.module.parents[node]
    return view.module.parents[above] if isinstance(above, ast.Tuple) else above


def _use(above: ast.AST) -> str:
    """What a text is used for, in words."""
    match above:
        case ast.Subscript() | ast.Call(func=ast.Attribute(attr="get" | "pop")):
            return "a key"
        case ast.Call(func=ast.Attribute(attr="replace")):
            return "a replacement"
        case ast.Compare() | ast.Call(func=ast.Attribute(attr="endswith" | "startswith")):
            return "a filter"
        case ast.JoinedStr():
            return "an f-string"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"))):
            return "a pattern"
    return "a text"


def _is_sure(node: ast.Constant, above: ast.AST, view: ModuleView) -> bool:
    """Whether a text is a name of a live module, or one that is missed loudly if it is not there."""
    sure = False
    match above:
        case ast.Subscript(value=of, ctx=ast.Load()):
            sure = _is_live(of, view) or ("." in str(node.value) and not _is_own_dict(of, view))
        case ast.Compare(ops=[ast.In() | ast.NotIn()], left=left, comparators=[of]):
            sure = left is node and (_is_live_name(of, view) or _is_live(of, view))
        case ast.Compare(ops=[ast.Eq() | ast.NotEq()], left=left, comparators=[right]):
            sure = _is_live_name(right if left is node else left, view)
        case ast.Call(func=ast.Attribute(value=of, attr="endswith" | "startswith")):
            sure = _is_live_name(of, view)
        case ast.Call(func=ast.Attribute(value=of, attr="get" | "pop")):
            sure = _is_live(of, view)
    return sure


def _is_live(expr: ast.expr, view: ModuleView) -> bool:
    """Whether an expression is the state dict of a module."""
    if isinstance(expr, ast.Name):
        bounds = view.scope(expr).lookup(expr.id) or []
        values = [bound.expr for bound in bounds if isinstance(bound, Assigned)]
        return bool(values) and len(values) == len(bounds) and all(_is_state_dict(value) for value in values)
    return _is_state_dict(expr)


def _is_state_dict(expr: ast.expr) -> bool:
    match expr:
        case ast.Call(func=ast.Attribute(attr="state_dict")):
            return True
        case ast.Call(func=ast.Name(id="dict"), args=[ast.Call(func=ast.Attribute(attr=attr))]):
            return attr in _NAMING
    return False


def _is_own_dict(expr: ast.expr, view: ModuleView) -> bool:
    """Whether a mapping is written in the code itself, with keys of its own."""
    bounds = (view.scope(expr).lookup(expr.id) or []) if isinstance(expr, ast.Name) else []
    return any(
        isinstance(bound, Assigned) and isinstance(bound.expr, (ast.Dict, ast.DictComp)) for bound in bounds
    )


def _is_live_name(expr: ast.expr, view: ModuleView) -> bool:
    """Whether an expression is a name that a module gives: a loop over its parameters, or its state dict."""
    if not isinstance(expr, ast.Name):
        return False
    bounds = view.scope(expr).lookup(expr.id) or []
    return bool(bounds) and all(isinstance(bound, Looped) and _names_live(bound.of, view) for bound in bounds)


def _names_live(expr: ast.expr, view: ModuleView) -> bool:
    match expr:
        case ast.Call(func=ast.Attribute(attr=attr)) if attr in _NAMING:
            return True
        case ast.Call(func=ast.Attribute(value=of, attr="items" | "keys")):
            return _is_live(of, view)
        case ast.Call(func=ast.Name(id="list" | "sorted"), args=[of]):
            return _names_live(of, view)
    return _is_live(expr, view)
