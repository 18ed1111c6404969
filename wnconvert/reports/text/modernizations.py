"""What ``modernize`` found, as text: the difference, the places that are left, and the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wnconvert.messages import counted, listed, printable
from wnconvert.verbs.modernization.result import CodeFile, CodePlace, CodeProof, ModernizeReport

__all__ = ["modernize_line", "modernize_text"]


def modernize_text(
    report: ModernizeReport, alarm: Callable[[str], str] = str, *, diff: bool = True, places: bool = False
) -> str:
    """The output of ``modernize``: with the difference, or with the places that would change."""
    lines = [*(_diff(report) if diff else ())]
    lines += [line for file in report.files for line in _places(file, edited=places and not report.written)]
    lines += [
        f"{printable(item.path)}:{item.line}: not parsed: {printable(item.reason)}; it is left alone"
        for item in report.unparsed
    ]
    lines += [*_checks(report.proof, alarm)] if report.proof is not None else []
    return "\n".join([*lines, modernize_line(report, alarm)])


def _diff(report: ModernizeReport) -> Iterator[str]:
    for line in report.diff.split("\n")[:-1]:
        yield printable(line.rstrip("\r").replace("\t", "    "))


def _places(file: CodeFile, *, edited: bool) -> Iterator[str]:
    for place in file.changes if edited else ():
        yield f"{_where(file, place)}: {place.rule}: {printable(place.code)}"
    for place in file.findings:
        yield f"{_where(file, place)}: {place.rule}: {printable(place.reason)}"
        yield f"  fix: {printable(place.fix)}"


def _checks(proof: CodeProof, alarm: Callable[[str], str]) -> Iterator[str]:
    """What the models of the old and the new code have in common."""
    for check in proof.checks:
        said = alarm(printable(check.said)) if check.said else "the same"
        yield f"{printable(proof.factory)}: {check.name}: {said}"


def _where(file: CodeFile, place: CodePlace) -> str:
    cell = "" if place.cell is None else f"cell {place.cell}:"
    return printable(f"{file.path}:{cell}{place.line}")


def modernize_line(report: ModernizeReport, alarm: Callable[[str], str] = str) -> str:
    """The counts in one line."""
    files = sum(bool(file.changes) for file in report.files)
    verb = "changed" if report.written else "to change"
    what = f"{counted(report.changes, 'place')} {verb} in {counted(files, 'file')}"
    if not report.changes:
        what = "nothing to change"
    if report.proof is not None and not report.proof:
        what = alarm(f"{what}, and nothing is written: the models differ")
    more = [alarm(f"{report.findings} left to you")] if report.findings else []
    more += [alarm(f"{counted(len(report.unparsed), 'file')} not parsed")] if report.unparsed else []
    more += [f"{report.kept} kept"] if report.kept else []
    return f"{listed([what, *more])}; {counted(report.seen, 'file')} seen, {report.read} with such words"
