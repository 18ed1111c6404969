"""The halves of a layer as attributes: read, written, deleted, asked for by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from wnconvert.source.code import Edit
from wnconvert.source.names import HALVES, UTILS, Relocation, half_of
from wnconvert.source.sites import ModuleView, Site

__all__ = ["BY_NAME", "attributes", "by_name", "spectral_attributes"]


#: Python's functions that are told an attribute by its name.
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")
_ASKS = Relocation(f"{UTILS}.parametrize.is_parametrized", f"{UTILS}.parametrize", "is_parametrized")
#: What can stand before a dot without parentheses.
_PRIMARY = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)


def attributes(view: ModuleView) -> Iterator[Site]:
    """``m.weight_g`` and ``m.weight_v``, read or written; the part behind the layer changes."""
    for node in view.module.nodes(ast.Attribute):
        found = half_of(node, view.form, view.facts.names)
        if found is None or _is_own(node, view):
            continue
        layer, name, half = found
        at = view.start(node)
        if reason := _doubt(name, half, view):
            yield Site("attribute", at, (), *reason)
        elif isinstance(node.ctx, ast.Del):
            yield Site(
                "attribute",
                at,
                (),
                "a half of a parametrized weight cannot be deleted",
                "remove weight norm as a whole: remove_parametrizations(module, name)",
            )
        elif view.form.compat:
            yield _of_both(node, layer, name, half, view)
        else:
            edit = Edit(
                view.end(layer) + _to_dot(node, layer, view), view.end(node), view.form.written(name, half)
            )
            yield Site("attribute", at, (edit,))


def _to_dot(node: ast.Attribute, layer: ast.expr, view: ModuleView) -> int:
    """How far behind a layer its attribute begins: behind the first dot that follows."""
    between = view.module.code.code[view.end(layer) : view.end(node)]
    return between.index(b".") + 1


def _of_both(node: ast.Attribute, layer: ast.expr, name: str, half: str, view: ModuleView) -> Site:
    """A half in whichever form the layer has: code for torch before 2.1 too."""
    at, text = view.start(node), view.text(layer)
    dotted = all(isinstance(part, (ast.Name, ast.Attribute, ast.expr_context)) for part in ast.walk(layer))
    if not (dotted and isinstance(node.ctx, ast.Load)):
        fix = "ask for the form first: hasattr(module, 'parametrizations')"
        return Site("attribute", at, (), "it has another name before torch 2.1", fix)
    has = f'hasattr({text}, "parametrizations")'
    new = f"({text}.{view.form.written(name, half)} if {has} else {view.text(node)})"
    return Site("attribute", at, (Edit(at, view.end(node), new),))


def _is_own(node: ast.AST, view: ModuleView) -> bool:
    """Whether a class with halves of its own reads its own, which have nothing to do with torch's."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr in view.facts.own:
            return any(isinstance(above, ast.ClassDef) for above in view.module.above(node))
    return False


def _doubt(name: str, half: str, view: ModuleView) -> tuple[str, str] | None:
    """Why it is not known that a half is one of torch's weight norm, and what to do."""
    facts = view.facts
    fix = f"if the layer has torch's weight norm, write .{view.form.written(name, half)}"
    if view.form.to == "legacy":
        return None
    if f"{name}_{half}" in facts.own:
        return "a class of this project has such an attribute of its own", fix
    if not facts.applied:
        return "nothing here applies torch's weight norm, so the layer comes from elsewhere", fix
    if half == "v" and facts.spectral:
        return "spectral norm has a weight_v too", fix
    return None


def by_name(view: ModuleView) -> Iterator[Site]:
    """``getattr``, ``hasattr``, ``setattr`` and ``delattr`` with the name of a half."""
    for call in view.module.nodes(ast.Call):
        match call:
            case ast.Call(args=[layer, *given]) if view.form.to == "legacy":
                if view.only(call.func) == _ASKS.old:
                    yield _asked_back(call, layer, given, view)
            case ast.Call(func=ast.Name() as func, args=[_, ast.Constant(value=str(attr)), *_], keywords=[]):
                name, _, half = attr.rpartition("_")
                known = half in HALVES and name in view.facts.names
                if known and view.is_builtin(func, *BY_NAME):
                    yield _asked(call, func.id, (name, half), view)


def _asked(call: ast.Call, how: str, weight: tuple[str, str], view: ModuleView) -> Site:
    name, half = weight
    layer, _, *rest = call.args
    start, end, at, behind = view.start(call), view.end(call), view.start(layer), view.end(layer)
    new = view.form.written(name, half)
    if reason := _doubt(name, half, view):
        return Site("attribute", start, (), *reason)
    if how == "hasattr" and not view.facts.others and name.isidentifier():
        return _whether(call, layer, weight, view)
    simple = isinstance(layer, _PRIMARY) and not view.form.compat
    if how == "getattr" and not rest and simple:
        return Site("attribute", start, (Edit(start, at, ""), Edit(behind, end, f".{new}")))
    statement = isinstance(view.module.parents[call], ast.Expr)
    if how == "setattr" and simple and statement and rest[0].lineno == rest[0].end_lineno:
        value, value_end = view.start(rest[0]), view.end(rest[0])
        set_ = (Edit(start, at, ""), Edit(behind, value, f".{new} = "), Edit(value_end, end, ""))
        return Site("attribute", start, set_)
    said = f"{how} by the name of a half, which has dots in it now"
    if how == "hasattr":
        said = "is_parametrized is true of the project's other parametrizations too"
    return Site("attribute", start, (), said, f"write it out for .{new}")


def _whether(call: ast.Call, layer: ast.expr, weight: tuple[str, str], view: ModuleView) -> Site:
    """Whether a layer has weight norm, asked in the new form; in code for both, in both."""
    name, half = weight
    start, end = view.start(call), view.end(call)
    edits: tuple[Edit, ...] = (
        Edit(start, view.start(layer), "is_parametrized("),
        Edit(view.end(layer), end, f', "{name}")'),
    )
    if view.form.compat:
        text = view.text(layer)
        both = f'(hasattr({text}, "{name}_{half}") or is_parametrized({text}, "{name}"))'
        edits = (Edit(start, end, both),)
    return Site("attribute", start, edits, needs=((_ASKS, _ASKS.name),))


def _asked_back(call: ast.Call, layer: ast.expr, given: list[ast.expr], view: ModuleView) -> Site:
    start = view.start(call)
    match given:
        case [ast.Constant(value=str(name))] if not call.keywords and not view.facts.others:
            edits = (
                Edit(start, view.start(layer), "hasattr("),
                Edit(view.end(layer), view.end(call), f', "{name}_g")'),
            )
            return Site("attribute", start, edits)
    return Site(
        "attribute", start, (), "it may ask for another parametrization", 'write: hasattr(module, "weight_g")'
    )


def spectral_attributes(view: ModuleView) -> Iterator[Site]:
    """``m.weight_orig`` of spectral norm is renamed; ``m.weight_u``, which it updates, is reported."""
    if view.form.to != "parametrize" or view.form.compat:
        return
    for node in view.module.nodes(ast.Attribute):
        if node.attr == "weight_orig" and view.facts.spectral:
            end = view.end(node)
            edit = Edit(end - len(node.attr), end, "parametrizations.weight.original")
            yield Site("spectral", view.start(node), (edit,))
        elif node.attr == "weight_u" and view.facts.spectral:
            fix = "it is m.parametrizations.weight[0]._u now"
            yield Site("spectral", view.start(node), (), "a buffer of spectral norm", fix)
