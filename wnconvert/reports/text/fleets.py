"""Many files as text: a row for each, and one line at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wnconvert.messages import counted, listed, printable, told
from wnconvert.reports.tables import Table, bytes_text
from wnconvert.reports.text.comparisons import comparison_line
from wnconvert.verbs.fleet.comparing import FileComparison, FolderComparison
from wnconvert.verbs.fleet.result import FileResult
from wnconvert.verbs.inspection.result import Inspection

__all__ = [
    "files_table",
    "fleet_data",
    "fleet_line",
    "fleet_notes",
    "fleet_row",
    "folders_line",
    "folders_text",
    "pair_text",
]


_DONE = {"fold": "folded", "split": "split", "migrate": "migrated", "inspect": "inspected"}


def fleet_row(result: FileResult) -> str:
    """What came of one of many files, in a line.

    >>> fleet_row(FileResult("a.pt", "fold", "done", "a.folded.pt", 2, bytes_in=999, bytes_out=500))
    'a.folded.pt: 2 layers folded; 999 B in, 500 B out, in 0.00 s'
    """
    return printable(_row(result))


def _row(result: FileResult) -> str:
    layers = counted(result.layers, "layer")
    match result.state:
        case "done":
            sizes = f"{bytes_text(result.bytes_in)} in, {bytes_text(result.bytes_out)} out"
            return f"{result.output}: {layers} {_DONE[result.verb]}; {sizes}, in {result.seconds:.2f} s"
        case "planned":
            return f"{result.source}: would write {result.output or 'over it'}: {layers}"
        case "nothing":
            return f"{result.source}: nothing to {result.verb}"
        case "skipped":
            return f"{result.source}: skipped: {'; '.join(result.notes)}"
    return f"{result.source}: {'too few layers' if result.state == 'lacking' else 'failed'}"


def fleet_notes(results: Iterable[FileResult]) -> tuple[str, ...]:
    """What is noted of many files; what is true of several is said once."""
    noted = (result for result in results if result.state != "skipped")
    return tuple(told((result.source, note) for result in noted for note in result.notes))


def fleet_line(verb: str, results: Sequence[FileResult], left: int, seconds: float) -> str:
    """The last line: how many files, and what came of them; ``left`` were not begun after an error."""
    words = {
        "done": _DONE[verb],
        "planned": "would be written",
        "nothing": f"with nothing to {verb}",
        "skipped": "skipped",
        "lacking": "with too few layers",
        "failed": "failed",
    }
    states = Counter(result.state for result in results)
    counts = [f"{states[state]} {word}" for state, word in words.items() if states[state]]  # type: ignore[index]
    counts += [f"{left} not begun (--keep-going)"] if left else []
    said = f"{counted(len(results) + left, 'file')}: {', '.join(counts)}"
    if not states["done"]:
        return said
    bytes_in, bytes_out = (sum(getattr(it, name) for it in results) for name in ("bytes_in", "bytes_out"))
    return f"{said}; {bytes_text(bytes_in)} in, {bytes_text(bytes_out)} out, in {seconds:.2f} s"


def fleet_data(verb: str, results: Sequence[FileResult], left: int, seconds: float) -> Mapping[str, Any]:
    """The same as JSON-able data."""
    return {
        "schema": 1,
        "verb": verb,
        "files": [result.to_dict() for result in results],
        "not_begun": left,
        "seconds": round(seconds, 3),
    }


def folders_text(found: FolderComparison) -> str:
    """Two folders that were compared: a row for each pair of files, then what only one has, then counts."""
    lines = [f"{pair_text(item)}: {_verdict(item)}" for item in found.files]
    lines += [f"only in {found.a}: {listed(found.only_in_a)}"] if found.only_in_a else []
    lines += [f"only in {found.b}: {listed(found.only_in_b)}"] if found.only_in_b else []
    return "\n".join([*map(printable, lines), folders_line(found)])


def folders_line(found: FolderComparison) -> str:
    """The last line: the verdict, and how many files were compared."""
    equal, wrong = sum(map(bool, found.files)), sum(item.error is not None for item in found.files)
    different = len(found.files) - equal - wrong
    counts = {"equal": equal, "different": different, "not compared": wrong}
    counts["only on one side"] = len(found.only_in_a) + len(found.only_in_b)
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{'equal' if found else 'different'}: {counted(len(found.files), 'pair')} of files: {said}"


def pair_text(item: FileComparison) -> str:
    """Two files in a few words: their place in both folders, or both places."""
    return item.a if item.a == item.b else f"{item.a} | {item.b}"


def _verdict(item: FileComparison) -> str:
    return comparison_line(item.found) if item.found is not None else "not compared"


def files_table(results: Sequence[FileResult]) -> Table:
    """A row for each file that was inspected: what it is, and what ``fold`` would do."""
    heads = ("file", "container", "size", "layers", "dtype", "flags", "fold")
    rows = tuple(
        (result.source, *(_inspected(result.inspection) if result.inspection else _failed(result)))
        for result in results
    )
    return Table(heads, rows, frozenset(("size",)), ("file", "fold"), ("dtype", "container", "flags"))


def _inspected(found: Inspection) -> tuple[str, ...]:
    forms: Counter[str] = Counter()
    for state in found.state_dicts:
        forms.update(state.layers)
    kinds: Counter[str] = Counter()
    for kind in found.kinds:
        kinds[kind.kind] += kind.count
    layers = ", ".join(f"{count} {form}" for form, count in (*forms.items(), *kinds.items()))
    flags = dict.fromkeys(flag.kind.value for layer in found.layers for flag in layer.odd)
    said = [*(["DANGER"] if found.dangerous else []), *flags]
    return (
        found.container,
        bytes_text(found.bytes),
        layers or "none",
        listed(found.dtypes, 3),
        listed(said, 3),
        found.fold,
    )


def _failed(result: FileResult) -> tuple[str, ...]:
    return "", "", "", "", "error", result.error.what if result.error else ""
