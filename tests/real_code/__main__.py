"""Counts on trees of public repositories, printed as a table in Markdown."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import libcst

from tests.real_code.count import OldSite, old_sites
from wnconvert import modernize_code

_HEADS = (
    "project",
    "files",
    "sites",
    "migrated",
    "reported",
    "missed",
    "other findings",
    "no longer parsed",
    "time",
)


def main(folders: list[str]) -> None:
    """Migrate a copy of each tree, and print a row for it; lines that were missed are listed on stderr."""
    print(f"| {' | '.join(_HEADS)} |\n|{'---|' * len(_HEADS)}")
    times: list[float] = []
    total = [0] * (len(_HEADS) - 2)
    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "tree"
            shutil.copytree(folder, root, symlinks=True)
            row, spent, parsing = _row(root)
        times += [spent, parsing]
        total = [a + b for a, b in zip(total, row, strict=True)]
        name = Path(folder).name.replace("__", "/")
        print(f"| {name} | {' | '.join(map(str, row))} | {spent / max(parsing, 1e-9):.2f} |", flush=True)
    print(f"| all | {' | '.join(map(str, total))} | {sum(times[::2]) / sum(times[1::2]):.2f} |")


def _row(root: Path) -> tuple[list[int], float, float]:
    before = {path: _sites(path) for path in _files(root)}
    parsing = {path for path in before if _parses(path)}
    start = time.process_time()
    report = modernize_code(root, write=True)
    spent = time.process_time() - start
    reported = {(file.path, place.line) for file in report.files for place in file.findings}
    unparsed = {item.path for item in report.unparsed}
    left = {path: _sites(path) for path in before}
    sites = sum(map(len, before.values()))
    told = missed = 0
    for path, found in left.items():
        for site in found:
            known = str(path) in unparsed or _is_near(site, str(path), reported)
            told, missed = told + known, missed + (not known)
            if not known:
                print(f"missed: {path}:{site.line} {site.kind}", file=sys.stderr)
    broken = [path for path in parsing if not _parses(path)]
    used = {(str(path), site.line) for path, found in before.items() for site in found}
    others = len(reported - used)
    row = [len(before), sites, sites - told - missed, told, missed, others, len(broken)]
    return row, spent, _parse_time(_with_words(root))


def _is_near(site: OldSite, path: str, reported: set[tuple[str, int]]) -> bool:
    """Whether a site is reported: its line may have moved by the imports above it."""
    return any((path, site.line - moved) in reported for moved in range(-3, 12))


def _with_words(root: Path) -> list[Path]:
    """The files that hold the words."""
    return [path for path in _files(root) if path.suffix == ".py" and b"weight_norm" in path.read_bytes()]


def _parse_time(paths: list[Path]) -> float:
    start = time.process_time()
    for path in paths:
        with contextlib.suppress(libcst.ParserSyntaxError):
            libcst.parse_module(path.read_bytes())
    return time.process_time() - start


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".py", ".ipynb") and path.is_file())


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    return "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in lines) + "\n"


def _sites(path: Path) -> list[OldSite]:
    return old_sites(_code(path))


def _parses(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(_code(path))
        except SyntaxError:
            return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
