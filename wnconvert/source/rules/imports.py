"""Imports of functions that move: from torch, and from modules of the project that have them from there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from wnconvert.source.code import Edit
from wnconvert.source.names import UTILS, Relocation
from wnconvert.source.scopes import Imported
from wnconvert.source.sites import ModuleView, Site
from wnconvert.source.syntax import module_span, without_names

__all__ = ["compat_import", "exports", "imported_lines", "imports_of_torch"]


def imports_of_torch(view: ModuleView) -> Iterator[Site]:
    """Every import of a function that moves."""
    moves = view.form.moves
    for node in view.module.nodes(ast.ImportFrom):
        found = {alias: move for alias in node.names if (move := _moved(node, alias, view, moves))}
        if not found:
            continue
        if _home(node, view) in (
            UTILS,
            *(move.old.rpartition(".")[0] for move in moves.values()),
        ) or _of_torch(node):
            yield _from_torch(node, found, view)
        else:
            yield from _re_exported(found, view)
    for plain in view.module.nodes(ast.Import):
        yield from _as_module(plain, view, moves)


def _of_torch(node: ast.ImportFrom) -> bool:
    return not node.level and (node.module or "").partition(".")[0] == "torch"


def _home(node: ast.ImportFrom, view: ModuleView) -> str:
    return view.project.absolute(Imported(node.module or "", node.level), view.place)


def _moved(
    node: ast.ImportFrom, alias: ast.alias, view: ModuleView, moves: dict[str, Relocation]
) -> Relocation | None:
    """The move of what is imported; None if it stays, or if the code has both forms already."""
    local = alias.asname or alias.name
    if alias.name == "*" or view.both_forms(local, view.scope(node)):
        return None
    bound = Imported(".".join(part for part in (node.module or "", alias.name) if part), node.level)
    meanings = view.project.of_bound(bound, view.module, view.place)
    return moves.get(next(iter(meanings))) if len(meanings) == 1 else None


def _re_exported(found: dict[ast.alias, Relocation], view: ModuleView) -> Iterator[Site]:
    """The module that it comes from has the new function: under the new name, if it had the old one."""
    for alias, move in found.items():
        if alias.name == move.short and move.short != move.name:
            at = view.start(alias)
            yield Site("import", at, (Edit(at, at + len(alias.name), move.name),))


def _from_torch(node: ast.ImportFrom, found: dict[ast.alias, Relocation], view: ModuleView) -> Site:
    start, end = view.start(node), view.end(node)
    statement = view.text(node)
    line = view.module.code.line(start)
    indent = re.match(rb"[ \t]*", line)
    alone = line.lstrip().startswith(statement.split("\n")[0].encode()) and ";" not in line.decode()
    if view.form.compat and not alone:
        return Site("import", start, (), "it shares its line", "give the import a line of its own")
    homes = {move.home for move in found.values()}
    if len(found) == len(node.names) and len(homes) == 1 and not view.form.compat:
        first, last = module_span(statement)
        names = [
            Edit(view.start(alias), view.start(alias) + len(alias.name), move.name)
            for alias, move in found.items()
            if alias.name != move.name
        ]
        return Site("import", start, (Edit(start + first, start + last, homes.pop()), *names))
    break_ = f"{view.module.code.newline}{(indent[0] if indent else b'').decode()}" if alone else "; "
    all_gone: tuple[str, Mapping[str, str]] = ("", {})
    gone = [alias.name for alias in found]
    kept, comments = without_names(statement, gone) if len(gone) < len(node.names) else all_gone
    taken = [(move, alias.asname) for alias, move in found.items()]
    lines = compat_import(taken) if view.form.compat else imported_lines(taken)
    behind = "  ".join(comments.values()) if alone else ""
    whole = [*([kept] if kept else []), *lines[:-1], f"{lines[-1]}  {behind}".rstrip()]
    return Site("import", start, (Edit(start, end, break_.join(whole)),))


def imported_lines(taken: Sequence[tuple[Relocation, str | None]]) -> list[str]:
    """The imports of functions from where they moved to, each home on a line.

    >>> from wnconvert.source.names import moves_to
    >>> one, *_ = moves_to("legacy", frozenset(["weight"])).values()
    >>> imported_lines([(one, "rm")])
    ['from torch.nn.utils import remove_weight_norm as rm']
    """
    homes: dict[str, list[str]] = {}
    for move, local in taken:
        name = f"{move.name} as {local}" if local and local != move.name else move.name
        names = homes.setdefault(move.home, [])
        names += [] if name in names else [name]
    return [f"from {home} import {', '.join(names)}" for home, names in sorted(homes.items())]


def compat_import(taken: Sequence[tuple[Relocation, str | None]]) -> list[str]:
    """The imports of torch 2.1, or else those of before: they bind the same names, and are called alike."""
    olds = []
    for move, local in taken:
        bound = local or move.name
        olds.append(f"{move.short} as {bound}" if bound != move.short else move.short)
    # remove_parametrizations is older than the parametrized weight norm, which decides.
    first = (
        []
        if any(move.name == "weight_norm" for move, _ in taken)
        else [f"from {UTILS}.parametrizations import weight_norm as _weight_norm  # noqa: F401"]
    )
    ordered = sorted(taken, key=lambda one: one[0].removes)
    return [
        "try:",
        *(f"    {line}" for line in [*first, *imported_lines(ordered)]),
        "except ImportError:  # torch before 2.1",
        f"    from {UTILS} import {', '.join(dict.fromkeys(olds))}",
    ]


def _as_module(node: ast.Import, view: ModuleView, moves: dict[str, Relocation]) -> Iterator[Site]:
    """``import torch.nn.utils.weight_norm as wn``, which gives the function."""
    for alias in node.names:
        move = moves.get(alias.name)
        if not (move and alias.asname):
            continue
        start, end = view.start(node), view.end(node)
        if len(node.names) > 1 or view.form.compat:
            fix = f"write: from {move.home} import {move.name} as {alias.asname}"
            yield Site(
                "import", start, (), "a function imported as a module, which the new one cannot be", fix
            )
        else:
            yield Site("import", start, (Edit(start, end, imported_lines([(move, alias.asname)])[0]),))


def exports(view: ModuleView) -> Iterator[Site]:
    """Old names in ``__all__`` of a module that imports them."""
    renamed = {move.short: move for move in view.form.moves.values() if move.short != move.name}
    for node in view.module.code.tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="__all__")], value=ast.List(elts=elts) | ast.Tuple(elts=elts)
            ):
                for item in elts:
                    match item:
                        case ast.Constant(value=str(name)) if name in renamed:
                            if view.project.exported(view.place, name) == {renamed[name].old}:
                                at = view.start(item) + 1
                                edit = Edit(at, at + len(name), renamed[name].name)
                                yield Site("import", view.start(item), (edit,))
