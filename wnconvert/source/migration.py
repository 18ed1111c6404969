"""All rules on a project: what was found in each module, and the edits, with the imports they need."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from wnconvert.frozen import dataclass
from wnconvert.source.code import Edit
from wnconvert.source.names import HALVES, UTILS, CodeForm, Relocation
from wnconvert.source.project import ModulePlace, Project
from wnconvert.source.rules.imports import compat_import, imported_lines
from wnconvert.source.rules.table import CODE_RULES
from wnconvert.source.scopes import Parsed
from wnconvert.source.sites import ModuleView, ProjectFacts, Site

__all__ = ["KEEP", "Migrated", "code_words", "migrated"]


#: A comment that leaves its line as it is.
KEEP = b"# wnconvert: keep"


@dataclass(frozen=True, slots=True)
class Migrated:
    """What the rules found in a module, the edits, and how many sites a comment keeps."""

    sites: tuple[Site, ...]
    edits: tuple[Edit, ...]
    kept: int = 0


def code_words(form: CodeForm) -> re.Pattern[bytes]:
    """What the bytes of a file must have for any rule to find something in it.

    >>> [bool(code_words(CodeForm()).search(code)) for code in (b"m.weight_hh_l0_g", b"weight_gain")]
    [True, False]
    """
    if form.to == "legacy":
        return re.compile(rb"weight_norm|remove_parametrizations|\.original[01]|is_parametrized")
    spectral = rb"|spectral_norm|weight_orig|weight_u" if "spectral" in form.groups else b""
    return re.compile(rb"weight_norm|WeightNorm|weight(_hh_l\d+|_ih_l\d+)?(_reverse)?_[gv]\b" + spectral)


def migrated(
    modules: Mapping[ModulePlace, Parsed], project: Project, form: CodeForm
) -> dict[ModulePlace, Migrated]:
    """What the rules find in modules, and how they edit them."""
    facts = _facts(modules, project, form)
    return {
        place: _migrated(ModuleView(module, place, project, facts, form)) for place, module in modules.items()
    }


def _migrated(view: ModuleView) -> Migrated:
    rules = [rule for rule in CODE_RULES if not rule.group or rule.group in view.form.groups]
    found = sorted((site for rule in rules for site in rule.find(view)), key=lambda site: site.at)
    sites = [site for site in found if KEEP not in view.module.code.line(site.at)]
    needs = dict.fromkeys(need for site in sites for need in site.needs)
    edits = [edit for site in sites for edit in site.edits]
    return Migrated(tuple(sites), (*edits, *_imports(needs, view)), len(found) - len(sites))


def _imports(needs: Iterable[tuple[Relocation, str]], view: ModuleView) -> Iterator[Edit]:
    """One edit that imports what the others need, behind the imports at the top of a module."""
    code, body = view.module.code, view.module.code.tree.body
    moved = [(move, local) for move, local in needs if move.old != move.new]
    plain = [(move, local) for move, local in needs if move.old == move.new]
    lines = [
        *((compat_import if view.form.compat else imported_lines)(moved) if moved else []),
        *imported_lines(plain),
    ]
    if not lines:
        return
    head = _head(body)
    last: ast.stmt | None = next(
        (node for node in reversed(head) if isinstance(node, (ast.Import, ast.ImportFrom))), None
    )
    if last is None and body and ast.get_docstring(code.tree) is not None:
        last = body[0]
    if last is not None:
        at = code.starts[last.end_lineno - 1] + len(code.line(code.end(last)))  # type: ignore[operator]
        yield Edit(at, at, "".join(f"{code.newline}{line}" for line in lines))
    else:
        at = code.start(body[0]) if body else 0
        yield Edit(at, at, "".join(f"{line}{code.newline}" for line in lines))


def _head(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements before the first definition."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    first = next((at for at, node in enumerate(body) if isinstance(node, kinds)), len(body))
    return body[:first]


# -- what is known of the whole


_APPLIED = (f"{UTILS}.weight_norm", f"{UTILS}.parametrizations.weight_norm")


def _facts(modules: Mapping[ModulePlace, Parsed], project: Project, form: CodeForm) -> ProjectFacts:
    names, used = {"weight"}, set[str]()
    halves = set[str]()
    for place, module in modules.items():
        view = ModuleView(module, place, project, ProjectFacts(), form)
        for node in _references(module):
            used |= view.meaning(node)
        for call in module.nodes(ast.Call):
            if isinstance(call.func, (ast.Name, ast.Attribute)) and view.meaning(call.func) & set(_APPLIED):
                names |= set(_named(call))
        halves |= set(_own(module))
    others = {f"{UTILS}.parametrize.register_parametrization"}
    others |= {f"{UTILS}.parametrizations.{name}" for name in ("spectral_norm", "orthogonal")}
    spectral = f"{UTILS}.spectral_norm" in used
    return ProjectFacts(
        names=frozenset(names),
        applied=bool(used & set(_APPLIED)),
        own=frozenset(half for half in halves if half[:-2] in names),
        spectral=spectral,
        others=bool(used & others) or (spectral and "spectral" in form.groups),
    )


_REFERRING = re.compile("norm|parametriz|orthogonal")


def _references(module: Parsed) -> Iterator[ast.expr]:
    """The names and dotted names that may refer to torch."""
    yield from (node for node in module.nodes(ast.Name) if _REFERRING.search(node.id))
    yield from (
        node
        for node in module.nodes(ast.Attribute)
        if node.attr.endswith(("_norm", "_parametrization", "orthogonal"))
    )
    for node in module.nodes(ast.ImportFrom):  # under another name
        for alias in node.names:
            if alias.asname and "norm" in alias.name:
                yield from (name for name in module.nodes(ast.Name) if name.id == alias.asname)


def _named(call: ast.Call) -> Iterator[str]:
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "name")]
    yield from (
        value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)
    )


def _own(module: Parsed) -> Iterator[str]:
    """Halves that a class gives itself."""
    for node in module.nodes(ast.Attribute):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr, ctx=ast.Store()) if (
                attr[-2:] in _ENDINGS
            ):
                yield attr
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(
                func=ast.Attribute(attr="register_parameter"), args=[ast.Constant(value=str(attr)), *_]
            ):
                if attr[-2:] in _ENDINGS:
                    yield attr


_ENDINGS = tuple(f"_{half}" for half in HALVES)
