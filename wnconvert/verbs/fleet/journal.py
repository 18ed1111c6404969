"""A report as a journal: one JSON line for each file, and what it saves from being done again.

The lines of a run are added as files are done, each as a whole and synced. Beside them, in ``REPORT.begun``,
stand the outputs that are being written: what a killed run left there without a line is its own, and may be
replaced. That file is gone when a run has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from wnconvert.errors import InputError, OutputError
from wnconvert.formats.recipes import recipe_text
from wnconvert.layers.recipes import Recipe
from wnconvert.storage.files import located
from wnconvert.verbs.fleet.digests import Stamp, is_there, size_of, stamp_of
from wnconvert.verbs.fleet.jobs import FileJob
from wnconvert.verbs.fleet.result import FileResult
from wnconvert.verbs.fleet.sources import absolute
from wnconvert.verbs.shared.digests import sha256_of

__all__ = ["Journal", "asked"]


#: Options that change how a verb works, and not what it writes.
_HOW = frozenset(
    "threads force clean verify progress on_plan dry_run proof timeout require_layers require_folded".split()
)
#: What came of a file that need not be done again.
_SETTLED = ("done", "nothing")
#: What is read back of a line.
_KEYS = frozenset(("source", "verb", "state", "output", "size", "mtime_ns", "bytes_out", "sha256", "options"))


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say what is written, as JSON holds them.

    >>> asked({"dtype": "float16", "layers": ("a.*",), "exclude": (), "threads": 2})
    {'dtype': 'float16', 'layers': ['a.*']}
    """
    said = {name: value for name, value in options.items() if name not in _HOW and value is not False}
    texts: dict[str, Any] = json.loads(json.dumps(said, sort_keys=True, default=_as_text))
    return {name: value for name, value in texts.items() if value not in ("", [])}


def _as_text(value: object) -> str:
    """A recipe by its digest, which is another where it says anything else; others as they print."""
    if not isinstance(value, Recipe):
        return str(value)
    return f"sha256:{hashlib.sha256(recipe_text(value).encode()).hexdigest()}"


@dataclass(slots=True)
class Journal:
    """A report that is open: its lines by source, the last of each, and the outputs that a killed run left.

    It is the one thing here that changes, and only the process that hands out the jobs writes to it.
    """

    path: Path
    lines: dict[str, dict[str, Any]]
    begun: frozenset[str]

    @classmethod
    def opened(cls, path: Path) -> Journal:
        """Open a report, or begin one. Each source keeps its last line; a line that was cut off is dropped.

        Raises ``InputError`` for a file that is none, ``OutputError`` where it cannot be written.
        """
        lines = {line["source"]: line for line in _read(path, whole=True)}
        begun = frozenset(line["output"] for line in _read(_begun_in(path), whole=False))
        journal = cls(path, lines, begun)
        journal._rewrite()
        return journal

    def settled(self, job: FileJob) -> bool:
        """Whether a job is done: the same was asked for, the source is as it was, and the output there."""
        line = self.lines.get(job.key)
        if line is None or line["state"] not in _SETTLED or not self._is_same(line, job):
            return False
        before = Stamp(line["size"], line["mtime_ns"], line.get("tag") or "")  # reports had none at first
        if stamp_of(located(job.source)) != before:
            return False
        return line["state"] == "nothing" or size_of(_output(job)) == int(line["bytes_out"])

    def resumed(self, job: FileJob) -> FileJob:
        """The job, with leave to replace what earlier runs of it wrote."""
        if job.output is None or (size := size_of(_output(job))) == 0:
            return job
        line, key = self.lines.get(job.key), str(_output(job))
        if line is None or line["state"] not in _SETTLED:
            return replace(job, may_replace=key in self.begun)
        ours = line["output"] == key and line["bytes_out"] == size
        return replace(job, may_replace=ours and line["sha256"] == sha256_of(_output(job)))

    def begin(self, job: FileJob) -> None:
        """Note that the output of a job is being written, if there is none yet, or it may be replaced."""
        if job.output is not None and (job.may_replace or not is_there(job.output)):
            self._add(_begun_in(self.path), {"output": str(_output(job))})

    def add(self, job: FileJob, result: FileResult) -> None:
        """Add the line of a file."""
        line = {**result.to_dict(), "source": job.key, "options": asked(job.options)}
        if result.output is not None:
            line["output"] = str(_output(job))
        if result.inspection is not None:
            line["inspection"] = result.inspection.to_dict()
        self.lines[job.key] = line
        self._add(self.path, line)

    def close(self) -> None:
        """End a run: each source has one line, and nothing is being written any more."""
        self._rewrite()
        with suppress(OSError):
            _begun_in(self.path).unlink(missing_ok=True)

    @staticmethod
    def _is_same(line: Mapping[str, Any], job: FileJob) -> bool:
        where = None if line["state"] == "nothing" else str(_output(job))
        return (line["verb"], line["options"], line["output"]) == (job.verb, asked(job.options), where)

    def _add(self, path: Path, line: Mapping[str, Any]) -> None:
        try:
            with path.open("ab") as file:
                file.write(f"{json.dumps(line)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from error

    def _rewrite(self) -> None:
        """Put the lines that count in the place of the report, whole or not at all."""
        beside = self.path.with_name(f"{self.path.name}.tmp")
        try:
            beside.write_text("".join(f"{json.dumps(line)}\n" for line in self.lines.values()))
            beside.replace(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _output(job: FileJob) -> PurePath:
    """Where a job writes, by a name that is the same from every folder."""
    return absolute(located(job.source if job.output is None else job.output))


def _begun_in(path: Path) -> Path:
    return path.with_name(f"{path.name}.begun")


def _read(path: Path, *, whole: bool) -> Iterator[dict[str, Any]]:
    """The lines of a journal; the last one counts only if it was written to its end."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error
    needed = _KEYS if whole else {"output"}
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not needed <= found.keys():
            raise InputError(
                f"its line {number} is not of a report of wnconvert",
                where=str(path),
                fix="name a new file",
            )
        yield found


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the report cannot be written ({error.strerror})", where=str(path), fix="choose another --report"
    )
