"""README.md as a test: its console and python blocks run in order in one copy of the fixtures.

A fence opened with `console norun` is only shown. Between `<!-- help: wnconvert fold -->` and
`<!-- /help -->` stands what `wnconvert fold --help` prints. `--refresh` writes both again; an output
with a `...` is written by hand: it fails where it does not fit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import ANYTHING, ROOT, Step, differences, parse, run, sandbox, says

README = ROOT / "README.md"
_FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"<!-- help: (?P<command>[^\n]+?) -->\n(?P<body>.*?)<!-- /help -->", re.DOTALL)


def test_every_console_and_python_block_does_what_it_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refresh: bool,
) -> None:
    text = README.read_text()
    folder = sandbox(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as where a user's Python runs
    namespace: dict[str, Any] = {"__name__": "readme"}
    ran = {"console": 0, "python": 0}
    wrong = ""

    def block(match: re.Match[str]) -> str:
        nonlocal wrong
        kind, body = match["info"].strip(), match["body"]
        if kind not in ran:
            return match[0]
        ran[kind] += 1
        if kind == "python":
            # The blank lines before it give a traceback README's own line numbers.
            above = "\n" * text.count("\n", 0, match.start("body"))
            code = compile(above + body, str(README), "exec", dont_inherit=True)
            exec(code, namespace)  # noqa: S102  # that README's code runs is what is tested
            return match[0]
        written = parse(body)
        printed = [run(step.command, folder) for step in written]
        kept = [refreshed(*pair) for pair in zip(written, printed, strict=True)] if refresh else written
        wrong += differences(kept, printed)
        return f"```{match['info']}\n{''.join(map(str, kept))}```"

    renewed = _FENCE.sub(block, text)
    if refresh:
        README.write_text(renewed)
    assert all(ran.values()), f"a comparison of nothing is a failure: {ran}"
    if wrong:
        pytest.fail(f"{wrong}If this is meant: make golden", pytrace=False)


def refreshed(written: Step, printed: Step) -> Step:
    """What README should say: what it says, where right or written by hand; else what is printed."""
    by_hand = ANYTHING in written.printed
    return written if by_hand or says(written.printed, printed.printed) else printed


def test_the_helps_between_markers_are_what_help_prints(tmp_path: Path, refresh: bool) -> None:
    text = README.read_text()

    def help_block(match: re.Match[str]) -> str:
        printed = run(f"{match['command']} --help", tmp_path).printed
        return f"<!-- help: {match['command']} -->\n```text\n{printed}```\n<!-- /help -->"

    renewed, found = _HELP.subn(help_block, text)
    assert found > 0, "README.md has no help between markers"
    if refresh:
        README.write_text(renewed)
    assert refresh or renewed == text, "a help in README.md is stale: make golden"


def test_a_hand_written_output_survives_a_refresh_and_a_stale_one_does_not() -> None:
    printed = Step("ls", "a\nb\n")
    assert refreshed(Step("ls", "a\n...\n"), printed).printed == "a\n...\n"
    assert refreshed(Step("ls", "c\n"), printed) == printed
