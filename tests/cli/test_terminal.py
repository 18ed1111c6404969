"""What stands on a terminal, and what in a file, while a command works."""

from __future__ import annotations

import io
import sys

import pytest

from wnconvert.cli.terminal import StepLines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, fails: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    lines = StepLines()
    lines.begin("export ... with words that do not fit in forty columns")
    if not fails:
        lines.end("export 3.2 s")
    lines.close()
    return stream.getvalue()


def test_on_a_terminal_the_result_of_a_step_is_written_over_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = "export ... with words that do not fit in forty columns"[:39]
    shown = told(monkeypatch, Terminal(), fails=False)
    assert shown == f"{begun}\r{'export 3.2 s':<39}\n"


def test_the_line_of_a_step_that_fails_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, Terminal(), fails=True).endswith("that do not fit i\n")


def test_in_a_file_each_has_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = told(monkeypatch, io.StringIO(), fails=False)
    assert shown == "export ... with words that do not fit in forty columns\nexport 3.2 s\n"
