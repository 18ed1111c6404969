"""References to functions that move: behind a module, by name, as values; the arguments of removing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TypeAlias

from wnconvert.source.code import Edit
from wnconvert.source.names import UTILS, Relocation
from wnconvert.source.scopes import Imported
from wnconvert.source.sites import ModuleView, Site
from wnconvert.source.syntax import behind_last_argument

__all__ = ["applications", "removals", "stars"]


_Needs: TypeAlias = tuple[tuple[Relocation, str], ...]


def applications(view: ModuleView) -> Iterator[Site]:
    """What applies weight norm through a module: ``nn.utils.weight_norm``, called or passed on."""
    for node in view.module.nodes(ast.Attribute):
        move = _move_of(node, view)
        if move and not move.removes:
            yield from _through_module(node, move, view)


def removals(view: ModuleView) -> Iterator[Site]:
    """What removes weight norm, by whatever name it is called: the new function must be told the weight."""
    # A reference by attribute has its name inside: each is taken once, as a whole.
    for kind in (ast.Attribute, ast.Name):
        for node in view.module.nodes(kind):
            if (
                isinstance(getattr(node, "ctx", None), ast.Load)
                and (move := _move_of(node, view))
                and move.removes
            ):
                yield from _removal(node, move, view)


def _move_of(node: ast.expr, view: ModuleView) -> Relocation | None:
    """The move of what an expression refers to, whose name is imported or stands behind a module."""
    moves = view.form.moves
    if isinstance(node, ast.Name):
        bounds = view.scope(node).lookup(node.id)
        if bounds is not None and not all(isinstance(bound, Imported) for bound in bounds):
            return None
        if view.both_forms(node.id, view.scope(node)):
            return None
    elif isinstance(node, ast.Attribute) and node.attr not in {move.short for move in moves.values()}:
        return None  # most attributes, without following them
    return moves.get(view.only(node))


def _through_module(node: ast.Attribute, move: Relocation, view: ModuleView) -> Iterator[Site]:
    home = move.old.rpartition(".")[0]
    if view.only(node.value) != home:
        return  # through a module of the project, where the import is edited
    start, end = view.start(node), view.end(node)
    if view.form.compat:
        local = _local(move.name, view)
        yield Site("apply", start, (Edit(start, end, local),), needs=((move, local),))
        return
    yield Site("apply", start, _moved_attribute(node, move, view))


def _moved_attribute(node: ast.Attribute, move: Relocation, view: ModuleView) -> tuple[Edit, ...]:
    """The same function behind the same module: only the part behind it changes."""
    end = view.end(node)
    if view.form.to == "parametrize":
        below = move.new.removeprefix(f"{UTILS}.")
        return (Edit(end - len(node.attr), end, below),)
    value = node.value
    if isinstance(value, ast.Attribute):  # nn.utils.parametrizations.weight_norm
        return (Edit(view.end(value.value), end, f".{move.name}"),)
    return (Edit(view.start(node), end, f"{UTILS}.{move.name}"),)


def _local(name: str, view: ModuleView) -> str:
    """A name for what is imported at the top: its own, unless the module uses that for something else."""
    module = view.module
    taken = {node.id for node in module.nodes(ast.Name) if isinstance(node.ctx, ast.Store)}
    taken |= {node.arg for node in module.nodes(ast.arg)}
    taken |= {node.name for node in module.nodes(ast.FunctionDef)}
    taken |= {node.name for node in module.nodes(ast.ClassDef)}
    return f"torch_{name}" if name in taken else name


def _removal(node: ast.expr, move: Relocation, view: ModuleView) -> Iterator[Site]:
    start, end = view.start(node), view.end(node)
    if view.form.to == "legacy" and view.facts.others:
        yield Site(
            "remove",
            start,
            (),
            "there are other parametrizations in the project, and this may remove any",
            f"write {move.name}(module, name) where it removes weight norm",
        )
        return
    edits, needs, name = _renamed(node, move, view)
    parent = view.module.parents[node]
    if isinstance(parent, ast.Call) and parent.func is node:
        site = _called(parent, edits, needs, view)
        if site.changes or site.reason:  # an alias of a function that is called alike needs nothing
            yield site
    elif isinstance(parent, ast.Attribute):
        yield Site(
            "remove", start, (), "an attribute of the function", "the new function has no such attribute"
        )
    else:
        weight = '"weight"'
        passed = f"(lambda module, name={weight}: {name}(module, name))"
        yield Site("remove", start, (Edit(start, end, passed),), needs=needs)


def _renamed(node: ast.expr, move: Relocation, view: ModuleView) -> tuple[tuple[Edit, ...], _Needs, str]:
    """The edits of a reference, what must be imported for them, and what the function is called then."""
    start, end = view.start(node), view.end(node)
    if isinstance(node, ast.Name):
        starred = view.scope(node).lookup(node.id) is None
        new = move.name if node.id == move.short else node.id
        needs = ((move, new),) if starred and _from_torch_star(view) else ()
        return ((Edit(start, end, new),) if new != node.id else ()), needs, new
    if not isinstance(node, ast.Attribute):
        raise TypeError(type(node).__name__)
    if view.only(node.value) != move.old.rpartition(".")[0]:
        new = f"{view.text(node.value)}.{move.name}"
        return (Edit(end - len(node.attr), end, move.name),), (), new
    if view.form.compat:
        new = _local(move.name, view)
        return (Edit(start, end, new),), ((move, new),), new
    edits = _moved_attribute(node, move, view)
    (edit,) = edits
    new = f"{view.module.code.code[start : edit.start].decode()}{edit.text}"
    return edits, (), new


def _from_torch_star(view: ModuleView) -> bool:
    return any(view.project.absolute(star, view.place) == UTILS for star in view.module.stars)


def _called(call: ast.Call, edits: tuple[Edit, ...], needs: _Needs, view: ModuleView) -> Site:
    start = view.start(call)
    olds, new = ("name", "tensor_name") if view.form.to == "parametrize" else ("tensor_name", "name")
    keywords = {keyword.arg: keyword for keyword in call.keywords}
    given = keywords.get(olds)
    reason = ""
    if any(isinstance(arg, ast.Starred) for arg in call.args) or None in keywords:
        reason = "its arguments are unpacked, so the name of the weight may be among them or not"
    elif "leave_parametrized" in keywords or len(call.args) > 2:
        reason = "leave_parametrized has no counterpart"
    elif not call.args and ("module" not in keywords or view.form.compat):
        reason = "the module is passed by keyword"
    if reason:
        return Site("remove", start, (), reason, "call it with the module and the name of the weight")
    if given is not None:
        at = view.start(given)
        written = re.match(rf"{olds}\s*=\s*", view.text(given))
        width = len(written[0]) if written else 0
        edits += (Edit(at, at + width, "" if call.args else f"{new}="),)
    elif len(call.args) < 2 and view.form.to == "parametrize":
        at = start + behind_last_argument(view.text(call))
        edits += (Edit(at, at, ', "weight"' if call.args and not call.keywords else f', {new}="weight"'),)
    return Site("remove", start, edits, needs=needs)


def stars(view: ModuleView) -> Iterator[Site]:
    """Names from ``from torch.nn.utils import *``: a second import takes them from where they moved to."""
    moves = view.form.moves
    for node in view.module.nodes(ast.Name):
        if view.scope(node).lookup(node.id) is None and _from_torch_star(view):
            move = moves.get(view.only(node))
            if move and not move.removes:
                yield Site("apply", view.start(node), needs=((move, node.id),))
