"""What stands on a terminal, and what in a file, while a command works."""

from __future__ import annotations

import io
import sys

import pytest

from wnconvert.cli.terminal import StepLines, alarm, mention, put, say


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


# -- what leaves

TRICKS = "a\x1b[2J\x9b0m\r\u202eb\udcff\x07"
SPELLED = r"a\x1b[2J\x9b0m\r\u202eb\udcff\x07"


@pytest.mark.parametrize("colour", ["0", "1"])
def test_what_could_control_a_terminal_is_spelled_out_wherever_it_leaves(
    colour: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", colour)
    monkeypatch.delenv("NO_COLOR", raising=False)
    put(f"one\n{TRICKS}")
    say((TRICKS,))
    mention(TRICKS)
    assert capsys.readouterr() == (f"one\n{SPELLED}\n", f"note: {SPELLED}\n{SPELLED}\n")


def test_only_an_alarm_is_a_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for colour, shown in (("1", f"\x1b[31m\x1b[1mno {SPELLED}\x1b[0m."), ("0", f"no {SPELLED}.")):
        monkeypatch.setenv("FORCE_COLOR", colour)
        put(f"{alarm(f'no {TRICKS}')}.")
        assert capsys.readouterr().out == f"{shown}\n"


def test_a_name_in_colours_comes_whole_out_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    put("a\x1b[31mb")
    assert capsys.readouterr().out == "a\\x1b[31mb\n"
