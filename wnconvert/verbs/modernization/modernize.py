"""Code taken from ``torch.nn.utils.weight_norm`` to the parametrize API, or back."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from wnconvert.errors import ArgumentError, VerifyError
from wnconvert.messages import listed, refuse_other_than_path, to_install
from wnconvert.source.code import Code, code_of_file, code_of_notebook, edited
from wnconvert.source.migration import Migrated, code_words, migrated
from wnconvert.source.names import CODE_FORMS, GROUPS, CodeForm
from wnconvert.source.project import ModulePlace, Project
from wnconvert.source.scopes import parsed
from wnconvert.source.sites import Site
from wnconvert.verbs.modernization.files import CodeFiles, files_of
from wnconvert.verbs.modernization.proof import ProofRequest, prove_code
from wnconvert.verbs.modernization.result import CodeFile, CodePlace, CodeProof, ModernizeReport, Unparsed
from wnconvert.verbs.modernization.writing import Rewrite, write_all

__all__ = ["modernize_code"]


def modernize_code(
    *src: str | Path,
    to: Literal["parametrize", "legacy"] = "parametrize",
    compat: bool = False,
    rules: Sequence[str] = ("weight",),
    include: Sequence[str] = (),
    write: bool = False,
    verify: str | None = None,
    inputs: Sequence[str] = (),
    ranges: Sequence[str] = (),
    weights: str | Path | None = None,
    only: str | None = None,
) -> ModernizeReport:
    """Take the code of a project from ``torch.nn.utils.weight_norm`` to the parametrize API, or back.

    ``src`` are Python files, notebooks, and folders of them; names are followed through the imports of all
    of them, and no code is run. Nothing is written unless ``write`` is set, and then all files or none.
    ``compat`` writes code that runs on torch before 2.1 too. ``rules`` are ``"weight"`` and ``"spectral"``.
    ``include`` are globs of folders that are passed over otherwise (``"third_party"``). A line with the
    comment ``# wnconvert: keep`` stays as it is.

    ``verify`` names a factory, ``"package.module:factory"``, seen from the first of ``src``: its model is
    built from the old and from the new code, each in a process of its own, and that code is run. Both load
    the same checkpoint: ``weights`` (and in it ``only``), or that of a seed. Outputs, keys, the parameters
    after five steps of training, saving and copying are compared, and nothing is written where they differ.
    ``inputs`` and ``ranges`` are texts as for ``export_onnx``.

    Returns a report that is false if anything is left to do. Raises ``WnconvertError``: ``ArgumentError``
    for an option that makes no sense, or if LibCST is not installed; ``InputError`` for a source that cannot
    be read; ``OutputError`` for a file that cannot be written.
    """
    form = _form(to, compat=compat, rules=rules)
    for source in src:
        refuse_other_than_path(source, "a file or folder of code")
    files = files_of([Path(source) for source in src], include)
    modules = {place: module for place in files.holding(code_words(form)) if (module := files.parsed(place))}
    project = Project(files.packages, frozenset(files.paths), files.parsed)
    found = migrated(modules, project, form)
    rewrites = {
        files.paths[place]: _rewrite(files.codes[place], one, files.paths[place])
        for place, one in found.items()
        if one.edits
    }
    proof = None
    if verify:
        root = Path(src[0]) if Path(src[0]).is_dir() else Path(src[0]).parent
        given = None if weights is None else Path(weights).absolute()
        request = ProofRequest(verify, root, tuple(inputs), tuple(ranges), given, only, to)
        proof = prove_code(request, rewrites)
    if write and (proof is None or proof):
        write_all(rewrites)
    return _report(
        form, files, found, rewrites, written=write and (proof is None or bool(proof)), proof=proof
    )


def _report(
    form: CodeForm,
    files: CodeFiles,
    found: Mapping[ModulePlace, Migrated],
    rewrites: Mapping[Path, Rewrite],
    *,
    written: bool,
    proof: CodeProof | None,
) -> ModernizeReport:
    return ModernizeReport(
        to=form.to,
        compat=form.compat,
        groups=tuple(sorted(form.groups, reverse=True)),
        files=tuple(_file(place, one, files, rewrites) for place, one in found.items() if one.sites),
        unparsed=tuple(
            Unparsed(str(files.paths[place]), error.lineno or 1, error.msg)
            for place, error in files.faults.items()
            if place in files.held
        ),
        kept=sum(one.kept for one in found.values()),
        seen=len(files.paths),
        read=len(files.held),
        written=written,
        proof=proof,
    )


def _form(to: str, *, compat: bool, rules: Sequence[str]) -> CodeForm:
    if to not in CODE_FORMS:
        raise ArgumentError(f"{to!r} is no form", fix=f"to is one of {listed(CODE_FORMS)}")
    groups = frozenset([rules] if isinstance(rules, str) else rules)
    if not groups or groups - set(GROUPS):
        wrong = listed(map(repr, sorted(groups - set(GROUPS)))) or "nothing"
        raise ArgumentError(f"there are no rules called {wrong}", fix=f"rules are {listed(GROUPS)}")
    if compat and to == "legacy":
        raise ArgumentError(
            "the legacy form runs on every torch as it is", fix="leave out to='legacy' or compat"
        )
    if importlib.util.find_spec("libcst") is None:
        raise ArgumentError("editing code needs LibCST, which is not installed", fix=to_install("libcst"))
    return CodeForm(to, compat, groups)


def _rewrite(code: Code, found: Migrated, path: Path) -> Rewrite:
    """A file before and after, which is parsed again: nothing that is not Python may be written."""
    new = code.rewritten(found.edits)
    try:
        parsed(code_of_notebook(new) if code.cells else code_of_file(new))
    except SyntaxError as error:
        fix = "this is a bug of wnconvert: please report it with the line"
        raise VerifyError(
            f"line {error.lineno} would be no Python after it", where=str(path), fix=fix
        ) from error
    return Rewrite(code.raw, new)


def _file(
    place: ModulePlace, found: Migrated, files: CodeFiles, rewrites: Mapping[Path, Rewrite]
) -> CodeFile:
    path, code = files.paths[place], files.codes[place]
    changes = tuple(_at(site, code) for site in found.sites if site.changes)
    findings = tuple(_at(site, code) for site in found.sites if not site.changes)
    return CodeFile(str(path), changes, findings, _diff(path, code, found) if path in rewrites else "")


def _at(site: Site, code: Code) -> CodePlace:
    cell, line = code.place(site.at)
    return CodePlace(site.rule, cell, line, code.line(site.at).decode().strip(), site.reason, site.fix)


def _diff(path: Path, code: Code, found: Migrated) -> str:
    """The difference of the code; of a notebook that of each of its cells, without what lies between."""
    lines: list[str] = []
    spans = code.cells or ((0, 0, len(code.code)),)
    for number, start, end in spans:
        own = [edit for edit in found.edits if start <= edit.start <= end]
        old = code.code[start:end]
        name = f"{path} (cell {number})" if number else str(path)
        before, after = (part.decode().splitlines(keepends=True) for part in (old, edited(old, own, start)))
        lines += difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
