"""What a command prints: lists, the last line, nothing, errors as JSON, colours, and where a picture is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.cli.test_files import VARIABLES, environment, on_terminal, run
from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here
from wnconvert.reports.text.inspections import inspection_text
from wnconvert.verbs.inspection.inspect import inspect_file

BIG = FIXTURES / "hifigan.safetensors"


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 78 layers."""
    path = tmp_path / "big.safetensors"
    path.write_bytes(BIG.read_bytes())
    return path


# -- how much


@pytest.mark.parametrize("more", [["--dry-run"], ["--force"]], ids=" ".join)
@pytest.mark.parametrize("verb", ["fold", "migrate"])
def test_the_first_five_layers_are_shown_and_the_others_counted(
    verb: str, more: list[str], big: Path
) -> None:
    to = ["--to", "legacy"] if verb == "migrate" else []
    short, every = (run(verb, big, *to, *more, *said).stdout.splitlines() for said in ([], ["--list"]))
    assert len(short) == 2 + 5 + 1 + 1
    assert short[7] == "… 73 more (--list)"
    assert len(every) == 2 + 78 + 1
    assert [line.split()[0] for line in short[2:7]] == [line.split()[0] for line in every[2:7]]
    assert "78 layers" in short[-1]
    assert short[-1].split("; ")[0] == every[-1].split("; ")[0]


def test_few_layers_are_all_shown(tmp_path: Path) -> None:
    done = run("fold", FIXTURES / "gan.pt", "-o", tmp_path / "out.pt")
    assert "--list" not in done.stdout
    assert len(done.stdout.splitlines()) == 2 + 6 + 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["fold", "SRC", "-o", "out.pt", "--force"],
        ["fold", "SRC", "-o", "out.pt", "--force", "--verify"],
        ["fold", "SRC", "-o", "new", "--as-folder", "--force"],
        ["fold", "SRC", "--dry-run", "--only", "."],
        ["compare", "SRC", "SRC"],
        ["compare", FIXTURES / "step_1000.safetensors", FIXTURES / "step_2000.safetensors"],
    ],
    ids=lambda arguments: " ".join(str(item).rpartition("/")[2] for item in arguments),
)
def test_quiet_leaves_the_last_line(arguments: list[str | Path], big: Path) -> None:
    given = [big if item == "SRC" else item for item in arguments]

    def ended(*more: str) -> tuple[int, str, str]:
        done = run_here(*given, *more, folder=big.parent, variables=VARIABLES)
        return done.returncode, done.stdout.split("; ")[0].rstrip("\n"), done.stderr

    code, whole, _ = ended()
    for quiet in ("--quiet", "-q"):
        assert ended(quiet) == (code, whole.splitlines()[-1], "")
    assert ended("--silent") == (code, "", "")


def test_quiet_hides_notes_and_not_errors(tmp_path: Path) -> None:
    tied = FIXTURES / "tied.pt"
    assert "note: " in run("fold", tied, "-o", tmp_path / "a.safetensors").stderr
    assert run("fold", tied, "-o", tmp_path / "b.safetensors", "-q").stderr == ""
    for option in ("-q", "--silent"):
        assert run("fold", tied, "-o", tmp_path / "b.safetensors", option).stderr.startswith("error: ")


def test_json_is_printed_whole_by_a_quiet_run_and_not_by_a_silent_one(big: Path) -> None:
    assert len(json.loads(run("fold", big, "-n", "--json", "--quiet").stdout)["layers"]) == 78
    assert run("fold", big, "-n", "--json", "--silent").stdout == ""


# -- errors as JSON


def error_of(*arguments: str | Path, **variables: str) -> dict[str, object]:
    done = run_here(*arguments, variables=VARIABLES | variables)
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert list(found) == ["error"]
    assert list(found["error"]) == ["what", "where", "fix", "exit_code"]
    assert found["error"]["exit_code"] == done.returncode
    assert any(line.startswith("error: ") for line in done.stderr.splitlines()), "people read the words"
    return found["error"]


VERBS: dict[str, list[str | Path]] = {
    "fold": ["no.pt"],
    "split": ["no.pt"],
    "migrate": ["no.pt"],
    "inspect": ["no.pt"],
    "compare": ["no.pt", BIG],
    "export": ["no.pt", "-o", "out.onnx", "--input", "x=float32[1]"],
    "check": ["no.pt", "m.py:f", "--input", "x=float32[1]"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_of_every_verb_is_json_too(verb: str) -> None:
    error = error_of(verb, *VERBS[verb], "--json")
    assert (error["what"], error["where"], error["exit_code"]) == ("there is no such file", "no.pt", 2)
    assert error["fix"]


def test_an_error_of_loads_is_json_too() -> None:
    error = error_of("loads", "no", "--json")
    assert (error["what"], error["where"], error["exit_code"]) == ("no such folder", "no", 2)


def test_a_line_that_cannot_be_parsed_is_json_too() -> None:
    assert error_of("fold", "--json", BIG, "--nonsense")["fix"] == "wnconvert fold --help"
    assert error_of("fold", BIG, "--dim", "x", "--json")["exit_code"] == 2
    assert error_of("fold", "--json")["what"] == "Missing argument 'SRC...'."
    assert str(error_of("convert", "--json")["fix"]).startswith("did you mean wnconvert fold")


def test_json_may_be_asked_for_in_another_way() -> None:
    assert error_of("inspect", "no.pt", "--format", "json")["where"] == "no.pt"
    assert error_of("fold", "no.pt", WNCONVERT_FOLD_JSON="1")["where"] == "no.pt"
    assert run("fold", "no.pt").stdout == "", "where it is not asked for, there is none"


def test_many_refused_layers_are_one_error_of_ten_lines() -> None:
    what = error_of("fold", FIXTURES / "misfit.safetensors", "--json")
    assert what["where"] == f"{FIXTURES}/misfit.safetensors: layer dec.0.weight"


def test_a_bug_and_an_interrupt_are_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, code in ((KeyError("x"), 3), (KeyboardInterrupt(), 130)):
        replaced = Mock(side_effect=raised)
        monkeypatch.setattr("wnconvert.verbs.conversion.files.fold.fold_file", replaced)
        done = run("fold", BIG, "--json")
        assert done.returncode == code
        assert json.loads(done.stdout)["error"]["exit_code"] == code


def test_a_difference_is_a_result_and_no_error() -> None:
    a, b = (FIXTURES / f"step_{at}000.safetensors" for at in (1, 2))
    done = run("compare", a, b, "--json")
    assert (done.returncode, json.loads(done.stdout)["equal"]) == (1, False)


def test_inspect_has_json_as_its_format() -> None:
    assert run("inspect", BIG, "--json").stdout == run("inspect", BIG, "--format", "json").stdout


# -- colours

RED = "\x1b[31m\x1b[1m"
STEPS = [str(FIXTURES / f"step_{at}000.safetensors") for at in (1, 2)]
ALARMS = ((["fold", "no.pt"], "error:"), (["compare", *STEPS], "different"))


def coloured(*arguments: str | Path, **variables: str) -> str:
    done = run_here(*arguments, variables={**VARIABLES, "NO_COLOR": "", "FORCE_COLOR": "", **variables})
    return done.stdout + done.stderr


def test_errors_and_differences_are_red_where_colours_are_wanted() -> None:
    for arguments, word in ALARMS:
        assert f"{RED}{word}\x1b[0m" in coloured(*arguments, FORCE_COLOR="1")
        for variables in ({}, {"FORCE_COLOR": "0"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
            assert "\x1b" not in coloured(*arguments, **variables)
    assert "\x1b" not in coloured("compare", STEPS[0], STEPS[0], FORCE_COLOR="1"), "equal is no alarm"


def test_danger_is_red() -> None:

    found = replace(inspect_file(FIXTURES / "gan.pt"), dangerous=("os.system",))
    text = inspection_text(found, alarm=lambda line: f"red {line}")
    (line,) = [line for line in text.splitlines() if "red " in line]
    assert line.startswith("red DANGER:")


def test_a_terminal_has_colours_unless_they_are_not_wanted() -> None:
    code = "import sys; sys.argv = ['wnconvert', 'fold', 'no.pt']; from wnconvert.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert f"{RED}error:\x1b[0m no.pt" in on_terminal(code)
    for variable in ("NO_COLOR='1'", "TERM='dumb'"):
        name, value = variable.split("=")
        assert "\x1b" not in on_terminal(f"import os; os.environ['{name}'] = {value}\n{code}")


def test_json_has_no_colours() -> None:
    assert "\x1b" not in run_here("compare", *STEPS, "--json", variables={"FORCE_COLOR": "1"}).stdout


# -- variables


def test_variables_are_called_as_their_options(tmp_path: Path) -> None:
    source, out = FIXTURES / "hifigan.safetensors", tmp_path / "out.safetensors"
    every = run_here("fold", source, "-o", out, variables={**VARIABLES, "WNCONVERT_FOLD_LIST": "1"})
    assert len(every.stdout.splitlines()) == 2 + 78 + 1
    asked = {**VARIABLES, "WNCONVERT_INSPECT_FORMAT": "json"}
    assert json.loads(run_here("inspect", out, variables=asked).stdout)["schema"] == 1


# -- pictures


def test_where_the_picture_is_is_said_on_stderr(tmp_path: Path) -> None:
    for suffix in (".png", ".svg", ".pdf"):
        path = tmp_path / f"x{suffix}"
        done = run("inspect", FIXTURES / "gan.pt", "--plot", path, "--json")
        assert json.loads(done.stdout)["schema"] == 1
        assert done.stderr == f"the picture is in {path}\n"
        assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [("there.png", "it exists"), ("x.bmp", "is none of .png, .svg, .pdf"), ("no/x.png", "does not exist")],
)
def test_a_picture_that_cannot_be_is_refused_before_any_work(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "there.png").write_text("of somebody else")
    done = run("inspect", "no_such_file.pt", "--plot", tmp_path / name)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[0]
    assert (tmp_path / "there.png").read_text() == "of somebody else"


def test_a_picture_of_nothing_is_an_error_and_has_stdout_for_itself(tmp_path: Path) -> None:
    done = run("inspect", FIXTURES / "plain.pt", "--plot", tmp_path / "x.png", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["what"] == "there are no magnitudes to draw"
    assert not (tmp_path / "x.png").exists()


def test_a_picture_is_replaced_by_force(tmp_path: Path) -> None:
    path = tmp_path / "there.svg"
    path.write_text("of somebody else")
    assert run("inspect", FIXTURES / "gan.pt", "--plot", path, "-f").returncode == 0
    assert path.read_text().startswith("<?xml")


def test_the_extra_of_pictures_is_looked_for_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("wnconvert.reports.plots.find_spec", lambda _: None)
    done = run("inspect", "no_such_file.pt", "--plot", tmp_path / "x.png")
    assert done.stderr == "error: pictures need matplotlib\nfix: pip install matplotlib\n"


# -- progress bars


def test_a_bar_fits_in_80_columns() -> None:
    """Also where the name is long and the terminal wide; it keeps the numbers at its end."""
    name = f"{'a_very_long_name_of_a_checkpoint_' * 4}.safetensors"
    code = (
        "import time\nfrom wnconvert.cli.terminal import progress_bar\n"
        f"with progress_bar({name!r}, shown=True) as progress:\n"
        "    for done in range(1, 5):\n        progress(done * 10**9, 4 * 10**9); time.sleep(0.4)\n"
    )
    printed = on_terminal(code)
    frames = [frame for frame in printed.split("\r") if "%" in frame]
    assert frames
    assert all(len(frame) <= 80 for frame in frames)
    assert all("B/s]" in frame and "…" in frame for frame in frames)


def test_a_reader_that_is_gone_does_not_hurt_an_error_as_json() -> None:
    line = f"{{ sleep 0.5; {sys.executable} -m wnconvert fold no.pt --json; echo $? >&2; }} | true"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr.splitlines()[-1] == "2"
    assert "Traceback" not in done.stderr
