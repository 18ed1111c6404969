"""The result of ``modernize_code``."""

from __future__ import annotations

from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, short_repr

__all__ = ["CodeCheck", "CodeFile", "CodePlace", "CodeProof", "ModernizeReport", "Unparsed"]


@dataclass(frozen=True, slots=True)
class CodePlace:
    """A place in a file: edited by a rule, or left with a reason and what to do (``fix``).

    ``cell`` is that of a notebook, counted from 1, with ``line`` in it; None in a file.
    """

    rule: str
    cell: int | None
    line: int
    code: str
    reason: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The place as JSON-able data."""
        return {
            "rule": self.rule,
            "cell": self.cell,
            "line": self.line,
            "code": self.code,
            "reason": self.reason,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file in which rules found something: what is edited, what is left, and the difference as a text."""

    path: str
    changes: tuple[CodePlace, ...]
    findings: tuple[CodePlace, ...]
    diff: str


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A file that holds the words and is not read: where, and why."""

    path: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class CodeCheck:
    """One thing that two models must have in common: ``said`` is how they differ, empty if they do not."""

    name: str
    said: str


@dataclass(frozen=True, slots=True)
class CodeProof:
    """What the model of the new code was held against that of the old code in; true if all is the same."""

    factory: str
    checks: tuple[CodeCheck, ...]

    def __bool__(self) -> bool:
        return not any(check.said for check in self.checks)


@dataclass(frozen=True, slots=True, repr=False)
class ModernizeReport:
    """What ``modernize_code`` found; true if nothing is left to do.

    ``files`` are those in which rules found something, ``unparsed`` those that hold the words and are not
    Python of this interpreter's version. ``kept`` counts the lines that a comment keeps, ``seen`` all files
    that were found, ``read`` those that hold the words. ``written`` tells whether the edits are in the files,
    and ``proof`` what came of ``verify``.
    """

    to: str
    compat: bool
    groups: tuple[str, ...]
    files: tuple[CodeFile, ...]
    unparsed: tuple[Unparsed, ...]
    kept: int
    seen: int
    read: int
    written: bool
    proof: CodeProof | None = None

    @property
    def changes(self) -> int:
        """The number of places that the rules edit."""
        return sum(len(file.changes) for file in self.files)

    @property
    def findings(self) -> int:
        """The number of places that are left to the reader."""
        return sum(len(file.findings) for file in self.files)

    @property
    def diff(self) -> str:
        """What changes, as ``diff -u`` prints it."""
        return "".join(file.diff for file in self.files)

    def __bool__(self) -> bool:
        left = self.findings or self.unparsed or (self.changes and not self.written)
        return not left and (self.proof is None or bool(self.proof))

    def __repr__(self) -> str:
        done = "changed" if self.written else "to change"
        heading = f"ModernizeReport: {counted(self.changes, 'place')} {done}, {self.findings} left to you"
        return short_repr(heading, [file.path for file in self.files])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "to": self.to,
            "compat": self.compat,
            "rules": list(self.groups),
            "done": bool(self),
            "written": self.written,
            "seen": self.seen,
            "read": self.read,
            "kept": self.kept,
            "changes": self.changes,
            "findings": self.findings,
            "files": [
                {
                    "path": file.path,
                    "changes": [place.to_dict() for place in file.changes],
                    "findings": [place.to_dict() for place in file.findings],
                    "diff": file.diff,
                }
                for file in self.files
            ],
            "unparsed": [
                {"path": item.path, "line": item.line, "reason": item.reason} for item in self.unparsed
            ],
            "proof": None
            if self.proof is None
            else {
                "factory": self.proof.factory,
                "equal": bool(self.proof),
                "checks": [{"name": check.name, "said": check.said} for check in self.proof.checks],
            },
        }
