"""Every file of fixtures/golden: commands, and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.helpers.golden import (
    GOLDEN,
    ROOT,
    Step,
    differences,
    parse,
    run,
    run_process,
    sandbox,
    says,
    steady,
)

CASES = sorted(GOLDEN.glob("*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_commands_print_what_is_written(path: Path, tmp_path: Path, refresh: bool) -> None:
    written = parse(path.read_text())
    folder = sandbox(tmp_path)
    printed = [run(step.command, folder) for step in written]
    assert any("wnconvert" in step.command for step in written)
    if refresh:
        path.write_text(steady("".join(map(str, printed))))
    elif wrong := differences(written, printed):
        pytest.fail(f"{wrong}If this is meant: make golden", pytrace=False)


def test_a_process_of_its_own_prints_the_same(tmp_path: Path) -> None:
    here, apart = sandbox(tmp_path / "here"), sandbox(tmp_path / "apart")
    commands = [parse(path.read_text())[0].command for path in CASES] + ["wnconvert fold", "wnconvert x"]
    assert all(command.startswith("wnconvert ") for command in commands)
    assert {"wnconvert fold misfit.safetensors", "wnconvert --help"} <= {*commands}
    for command in commands:
        alone, quick = run_process(command, apart), run(command, here)
        assert steady(str(quick)) == steady(str(alone))


def test_there_are_goldens_and_each_is_claimed_by_a_test() -> None:
    assert CASES, f"{GOLDEN} has no golden: a comparison of nothing is a failure"
    assert sorted(GOLDEN.iterdir()) == CASES


def test_the_runner_sees_a_changed_line_and_a_changed_exit_code(tmp_path: Path) -> None:
    printed = run("python -c 'print(1); raise SystemExit(3)'", tmp_path)
    assert printed.printed == "1\n[exit 3]\n"
    for wrong in ("2\n[exit 3]\n", "1\n", "1\n[exit 2]\n", ""):
        assert differences([Step(printed.command, wrong)], [printed])
    assert not differences([Step(printed.command, "...\n[exit 3]\n")], [printed])


def test_the_runner_does_not_hide_a_warning(tmp_path: Path) -> None:
    warn = "import warnings; warnings.warn('old', DeprecationWarning)"
    assert "DeprecationWarning: old" in run(f'python -c "{warn}"', tmp_path).printed


def test_no_runner_hides_a_warning_or_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def old(*_: object, **__: object) -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr("wnconvert.verbs.conversion.files.fold.fold_file", old)
    done = run("wnconvert fold x.pt", tmp_path)
    assert "DeprecationWarning: old" in done.printed
    assert done.printed.endswith("[exit 3]\n")


def test_the_runner_keeps_stdout_and_stderr_in_order(tmp_path: Path) -> None:
    talk = "import sys; [print(n, file=(sys.stdout, sys.stderr)[n % 2]) for n in range(4)]"
    assert run(f'python -c "{talk}"', tmp_path).printed == "0\n1\n2\n3\n"


def test_only_the_elapsed_time_may_differ() -> None:
    assert says("78 layers in 0.12 s\n", "78 layers in 3 s\n")
    assert not says("78 layers in 0.12 s\n", "77 layers in 0.12 s\n")
    assert not says("7 s\n", "8 s\n")


@pytest.mark.parametrize("text", ["", "no command\n", "no command\n$ ls\n"])
def test_a_golden_without_a_command_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        parse(text)


def test_other_commands_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="only ls, python, wnconvert are run"):
        run("touch x", tmp_path)


def test_refresh_is_refused_where_ci_is_set() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--refresh", "--collect-only", "tests/whole/test_golden.py"],
        cwd=ROOT,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--refresh where CI is set" in done.stderr
