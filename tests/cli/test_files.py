"""The command line: its twin in Python, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import safetensors.torch
import torch

import wnconvert
from tests.helpers.golden import FIXTURES
from tests.helpers.tool import Ended, run_here
from wnconvert.cli import cli
from wnconvert.cli.export import EXPORTER_CHOICES
from wnconvert.cli.files import SORT_CHOICES
from wnconvert.cli.options import FRAMEWORK_CHOICES, NAMED_FORM_CHOICES
from wnconvert.errors import VerifyError
from wnconvert.layers import schemes
from wnconvert.plan.names import kernels
from wnconvert.reports.text import inspections as inspection_report
from wnconvert.verbs.export import exporters
from wnconvert.verbs.shared.options import DTYPE_CHOICES, PROOF_CHOICES, ZERO_ROWS_CHOICES

#: Options that say how to print, and parameters that only Python has.
OF_THE_CLI = {
    "json", "quiet", "silent", "list", "no_progress", "sort", "top", "format", "wide", "plot", "check",
    "diff",
    "html",
    "verbose",
    "drift",
    "list_inputs",
}  # fmt: skip
OF_PYTHON = {"progress", "on_plan", "dynamic", "prove", "executor", "made_by"}
#: Options for many files, which the functions that end in _files have.
OF_FLEETS = {"recursive", "jobs", "skip_existing", "keep_going", "report", "cluster"}
#: How MODEL becomes a module; Python is given that.
OF_MODEL = {"weights", "kwargs", "only", "strip_prefix", "trust"}
#: What makes fold's ``prove``, what ``check_checkpoint`` has beside what ``check_onnx`` has, what
#: ``write_recipe`` does with what ``trace_recipe`` tells, and what ``compare_onnx`` has.
AROUND = {
    "fold": {"model", "inputs", "data", "ranges", "kwargs", "rtol", "atol"},
    "check": {"recipe"},
    "recipe": {"out", "force", "dry_run"},
    "compare": {"inputs", "ranges", "data", "min_snr", "outliers", "samples", "seed", "timeout"},
}
TWINS = {
    "compare": "compare_files",
    "export": "export_onnx",
    "check": "check_onnx",
    "loads": "loads_folder",
    "modernize": "modernize_code",
    "clean": "clean_store",
    "recipe": "trace_recipe",
}
#: The files that a command is given, and what it cannot do without.
GIVEN = {
    "compare": ["A", "B"],
    "export": ["MODEL", "-o", "OUT", "--input", "x=float32[1]"],
    "check": ["PATH", "MODEL", "--input", "x=float32[1]"],
    "recipe": ["MODEL", "--input", "x=float32[1]"],
}
#: What Python calls what comes from the command line under another name.
CALLED = {
    "export": {"model": "module", "out": "path"},
    "check": {"model": "reference"},
    "recipe": {"model": "module"},
}
FILES = {"address", "src", "out", "a", "b", "path", "module", "reference", "folder"}
COMMANDS: dict[str, click.Command] = dict(cli.commands)
#: The commands that are the same as a function in Python.
VERBS = [name for name in COMMANDS if name not in {"env", "help"}]


VARIABLES = {"COLUMNS": "100", "LC_ALL": "C.UTF-8"}


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**clean, **VARIABLES, **more}


def run(*arguments: str | Path) -> Ended:
    return run_here(*arguments, variables=VARIABLES)


@pytest.fixture
def gan(tmp_path: Path) -> Path:
    path = tmp_path / "gan.pt"
    path.write_bytes((FIXTURES / "gan.pt").read_bytes())
    return path


# -- the twin


def twin(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(wnconvert, TWINS.get(name, f"{name}_file"))
    return found


@pytest.mark.parametrize("name", VERBS)
def test_a_command_has_the_options_and_defaults_of_its_python_twin(name: str) -> None:
    parameters = inspect.signature(twin(name)).parameters
    called = CALLED.get(name, {})
    # With the group above it, whose names of --help a command keeps from its first context on.
    above = click.Context(cli, **cli.context_settings)
    context = COMMANDS[name].make_context(name, list(GIVEN.get(name, ["SRC"])), parent=above)
    given = {called.get(at, at): value for at, value in context.params.items()}
    apart = OF_THE_CLI | OF_FLEETS | (OF_MODEL if called else set())
    apart |= AROUND.get(name, set())
    apart |= {"force"} if name in ("inspect", "compare", "check") else set()  # it is for pictures and pages
    apart |= {"require_folded"} if name == "inspect" else set()  # in Python it is Inspection.unfolded
    assert set(given) - apart == set(parameters) - OF_PYTHON
    needed = FILES - {"out"} | {"inputs"}
    defaults = {at: given[at] for at in parameters if at in given and at not in needed}
    assert defaults or set(parameters) <= FILES
    assert defaults == {at: parameters[at].default for at in defaults}


def test_compare_has_the_options_and_defaults_of_compare_onnx_too() -> None:
    parameters = inspect.signature(wnconvert.compare_onnx).parameters
    given = COMMANDS["compare"].make_context("compare", ["A", "B"]).params
    own = set(parameters) - OF_PYTHON - FILES
    assert AROUND["compare"] | {"rtol", "atol", "threads"} == own
    assert {at: given[at] for at in own} == {at: parameters[at].default for at in own}


@pytest.mark.parametrize("name", ["fold", "split", "migrate", "inspect"])
def test_the_options_for_many_files_are_those_of_the_python_twin(name: str) -> None:
    parameters = inspect.signature(getattr(wnconvert, f"{name}_files")).parameters
    mine = {option.name for option in COMMANDS[name].params} & OF_FLEETS
    assert mine == OF_FLEETS - ({"skip_existing"} if name == "inspect" else set())
    assert set(parameters) - {"sources", "out", "executor", "options"} == mine


@pytest.mark.parametrize("name", VERBS)
def test_parameters_of_a_twin_come_by_name_but_for_the_files(name: str) -> None:
    kinds = {at: parameter.kind for at, parameter in inspect.signature(twin(name)).parameters.items()}
    by_name = {at for at, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(kinds) - by_name <= FILES


def test_choices_are_those_that_python_takes() -> None:
    choices = {option.name: option.type for option in COMMANDS["fold"].params}
    for name, expected in (
        ("dtype", DTYPE_CHOICES),
        ("zero_rows", ZERO_ROWS_CHOICES),
        ("proof", PROOF_CHOICES),
    ):
        kind = choices[name]
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices) == expected


def test_exporters_are_those_that_python_takes() -> None:
    assert ("auto", *exporters.EXPORTERS) == EXPORTER_CHOICES


def test_forms_are_those_that_a_pair_can_have() -> None:
    assert set(NAMED_FORM_CHOICES) == set(schemes.NAMED_FORMS)


def test_frameworks_are_those_whose_layout_is_known() -> None:
    assert FRAMEWORK_CHOICES == kernels.FRAMEWORKS


def test_inspect_sorts_by_what_the_report_can_sort_by() -> None:
    assert tuple(inspection_report.SORTS) == SORT_CHOICES


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_the_exit_codes(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example:\n    wnconvert {name} " in done.stdout
    assert "Exit codes: 0 done" in done.stdout
    again = run(name, "-h")
    assert (again.returncode, again.stderr, again.stdout) == (0, "", done.stdout)
    assert all(
        getattr(option, "help", "") for option in COMMANDS[name].params if isinstance(option, click.Option)
    )


def test_every_command_is_in_the_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert COMMANDS
    assert all(f"\n  {name}  " in done.stdout for name in COMMANDS)


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"wnconvert, version {wnconvert.__version__}\n"


def test_the_console_script_is_the_module() -> None:
    script = Path(sysconfig.get_path("scripts"), "wnconvert")
    module = [sys.executable, "-m", "wnconvert"]
    for start in ([script], module):
        done = subprocess.run(
            [*start, "--version"], capture_output=True, text=True, env=environment(), check=True
        )
        assert done.stdout == run("--version").stdout
    done = subprocess.run([*module, "fold"], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Missing argument 'SRC...'.\nfix: python -m wnconvert fold --help\n"


# -- exit codes


def test_done_is_0_and_nothing_to_do_is_done_too(gan: Path) -> None:
    assert run("fold", gan).returncode == 0
    assert gan.with_name("gan.folded.pt").exists()
    done = run("fold", gan.with_name("gan.folded.pt"))
    assert (done.returncode, done.stdout) == (0, "nothing is written: 0 layers folded\n")
    assert not gan.with_name("gan.folded.folded.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fold", "no.pt"], "error: no.pt: there is no such file\nfix: check the path\n"),
        (["fold"], "error: Missing argument 'SRC...'.\nfix: wnconvert fold --help\n"),
        (["fold", "GAN", "--no-such"], "wnconvert fold --help\n"),
        (["fold", "GAN", "--dim", "x"], "'x' is not an axis"),
        (["fold", "GAN", "--threads", "0"], "wnconvert fold --help\n"),
        (["fold", "GAN", "--dtype", "int8"], "'int8' is not one of"),
        (["fold", "GAN", "-o", "no/out.pt"], "fix: mkdir -p no\n"),
        (["fold", "GAN", "-o", "GAN"], "it is the source itself\nfix: choose another -o; --in-place"),
        (["fold", "GAN", "--only", "x"], "fix: --only one of: generator, discriminator, ema.model\n"),
        (["fold", "GAN", "--dim", "1"], "error: "),
        (["nothing"], "wnconvert --help lists the commands\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_could_not_is_2_with_what_to_do_and_no_traceback(arguments: list[str], says: str, gan: Path) -> None:
    before = sorted(gan.parent.iterdir())
    done = run(*(str(gan) if argument == "GAN" else argument for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert "\nfix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(gan.parent.iterdir()) == before


def replaced(monkeypatch: pytest.MonkeyPatch, fold: Callable[..., object]) -> None:
    """Have the command line call another function to fold a file."""
    monkeypatch.setattr("wnconvert.verbs.conversion.files.fold.fold_file", fold)


def test_checked_and_different_is_1(gan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*_: object, **__: object) -> NoReturn:
        raise VerifyError("it differs")

    replaced(monkeypatch, fold)
    done = run("fold", gan)
    assert (done.returncode, done.stderr) == (1, "error: it differs\n")


def test_a_bug_is_3_and_keeps_its_traceback(gan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, object] = {}
    replaced(monkeypatch, lambda *_, **__: nothing["x"])
    done = run("fold", gan)
    assert done.returncode == 3
    assert "KeyError: 'x'" in done.stderr
    assert done.stderr.endswith("report it with the lines above, and those of wnconvert env\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_is_130_and_leaves_nothing_behind(number: signal.Signals, gan: Path) -> None:
    slow = "import wnconvert.numerics.rounding, wnconvert.verbs.conversion.convert as convert, time\n"
    slow += (
        "def wait(*_):\n    print('begun', flush=True)\n    time.sleep(30)\nconvert.check_structure = wait\n"
    )
    arguments = ["wnconvert", "fold", str(gan)]
    code = f"import sys\nsys.argv = {arguments!r}\n{slow}from wnconvert.cli import main\nmain()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, printed = process.communicate(timeout=20)
    assert process.returncode == 130
    assert printed.strip() == "interrupted; nothing is left half written"  # after a line that ends click's ^C
    assert [path.name for path in gan.parent.iterdir()] == ["gan.pt"]


# -- what is printed, and where


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["inspect", "fold --force"])
def test_closed_streams_are_no_bug_and_no_output(command: str, closed: str, gan: Path) -> None:
    line = f"{sys.executable} -m wnconvert {command} {gan} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if command != "inspect":
        assert len(torch.load(gan.with_name("gan.folded.pt"), weights_only=True)) > 1


@pytest.mark.parametrize("command", ["inspect", "fold --force --json"])
def test_a_reader_that_is_gone_is_no_difference(command: str, gan: Path) -> None:
    line = f"{{ sleep 1; {sys.executable} -m wnconvert {command} {gan}; echo $? >&2; }} | true"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr.strip().splitlines()[-1] == "0", done.stderr
    assert "Traceback" not in done.stderr


def test_data_goes_to_stdout_and_notes_to_stderr(tmp_path: Path) -> None:
    done = run("fold", FIXTURES / "tied.pt", "-o", tmp_path / "out.safetensors")
    assert all(line.startswith("note: ") for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) == 2
    assert "note:" not in done.stdout
    assert done.stdout.startswith("layer ")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_json_is_one_object_with_every_key(more: list[str], gan: Path) -> None:
    done = run("fold", gan, "--json", *more)
    data = json.loads(done.stdout)
    plan = {
        "schema",
        "verb",
        "container",
        "only",
        "layers",
        "already",
        "renamed",
        "writes",
        "state_dicts",
        "shards",
        "copied",
    }
    plan |= {"dropped", "norms_left", "computed", "constants", "notes"}
    result = {"source", "source_container", "output", "bytes_in", "bytes_out", "seconds", "verified", "proof"}
    assert set(data) == (plan if more else plan | result)
    assert data["schema"] == 1
    assert len(data["layers"]) == 6
    layer = {"state_dict", "name", "kind", "form", "to", "dim", "shape", "dtype", "rows"}
    layer |= {"norm", "grade", "unproven"}
    assert all(set(item) == layer for item in data["layers"])
    if not more:
        assert data["bytes_out"] == gan.with_name("gan.folded.pt").stat().st_size
        assert data["verified"] is None


def test_keys_of_the_json_are_documented() -> None:
    page = (FIXTURES.parent / "docs" / "json.md").read_text()
    plan = wnconvert.fold_file(FIXTURES / "gan.pt", dry_run=True).to_dict()
    of_layers = (f"layers[].{key}" for key in plan["layers"][0])
    for key in (*plan, *of_layers, "bytes_in", "bytes_out", "seconds", "verified"):
        assert f"`{key}`" in page, key


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [("inspect",), ("migrate", "--json"), ("fold", "--dry-run")])
def test_a_full_disk_behind_stdout_is_an_error_and_no_bug(
    command: tuple[str, ...], unbuffered: str, gan: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "wnconvert", *command, str(gan)]
        around = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=around
        )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "Exception ignored" not in done.stderr
    assert "error: stdout: it cannot be written (No space left on device)" in done.stderr


def test_silent_prints_nothing_but_errors(gan: Path) -> None:
    done = run("fold", gan, "--silent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert gan.with_name("gan.folded.pt").exists()
    for more in (["--dry-run"], ["--json", "--force"], ["--quiet", "--force"]):
        done = run("fold", gan, "--silent", *more)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run("fold", gan, "--silent").stderr.startswith("error: ")


def test_control_characters_of_names_are_spelled_out(tmp_path: Path) -> None:
    name = "w\x1b[2J\r\nerror: all is lost\x07"
    state = {f"{name}_g": torch.ones(2, 1), f"{name}_v": torch.ones(2, 3)}
    torch.save({f"net{name}": state, "b\x1b]0;x\x07": 1}, tmp_path / "in.pt")
    torch.save({**state, f"{name}_u": torch.ones(2)}, tmp_path / "refused.pt")
    bad = {f"{at}{key}": value[:1] for at in "ab" for key, value in state.items()}
    torch.save(
        {key: value.reshape(-1)[:1].repeat(5 + ("_v" in key)) for key, value in bad.items()},
        tmp_path / "two.pt",
    )
    for arguments in (
        ["in.pt", "-o", "out.pt"],
        ["in.pt", "--dry-run"],
        ["in.pt", "-o", "out.safetensors"],
        ["in.pt", "--only", "x\x1b[2J"],
        ["in.pt", "--layers", "x\x1b[2J"],
        ["refused.pt"],
        ["two.pt"],
        ["no\x1b[2J.pt"],
        ["in.pt", "--dtype", "\x1b[2J"],
    ):
        paths = [str(tmp_path / item) if "." in item and "=" not in item else item for item in arguments]
        done = run("fold", *paths)
        printed = done.stdout + done.stderr
        assert printed
        assert "\\x1b[2J" in printed
        assert not [char for char in printed if char < " " and char != "\n"], arguments
        assert "\nerror: all is lost" not in printed


def test_warnings_are_never_shown(gan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*arguments: Any, **options: Any) -> object:
        for kind in (DeprecationWarning, UserWarning):
            warnings.warn("old", kind, stacklevel=1)
        return real(*arguments, **options)

    real = wnconvert.fold_file
    replaced(monkeypatch, fold)
    done = run("fold", gan)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for at in range(3000):  # more lines than a pipe holds
        state |= {f"layer.{at:04}.weight_g": torch.ones(1, 1), f"layer.{at:04}.weight_v": torch.ones(1, 1)}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    command = f"{sys.executable} -m wnconvert fold {tmp_path / 'in.safetensors'} --dry-run --list | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("layer ")
    assert len(done.stdout.splitlines()) == 1


# -- progress


def on_terminal(code: str) -> str:
    """What a program prints on stderr where that is a terminal; stdout goes elsewhere."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL, env=environment(TERM="xterm")
    ) as process:
        os.close(theirs)
        printed = b"".join(_read(ours))
        process.wait(timeout=20)
    os.close(ours)
    assert process.returncode == 0, printed.decode()
    return printed.decode()


def _read(descriptor: int) -> Iterator[bytes]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        ready, _, _ = select.select([descriptor], [], [], 1)
        try:
            data = os.read(descriptor, 1 << 16) if ready else b""
        except OSError:  # Linux says so where the other side is closed
            return
        if ready and not data:
            return
        yield data


SLOW = """
import sys, time
import wnconvert.verbs.conversion.files.fold as files
real = files.fold_file
def fold_file(*arguments, progress, **options):
    for done in range(1, 5):
        progress(done * 1000, 4000)
        time.sleep(0.5)
    return real(*arguments, progress=progress, **options)
files.fold_file = fold_file
sys.argv = {argv!r}
from wnconvert.cli import main
main()
"""


def slow(gan: Path, *more: str) -> str:
    return SLOW.format(argv=["wnconvert", "fold", str(gan), "--force", *more])


def test_progress_is_shown_on_a_terminal_and_gone_at_the_end(gan: Path) -> None:
    printed = on_terminal(slow(gan))
    assert "gan.pt" in printed
    assert "%" in printed
    assert printed.endswith("\r")
    assert printed.rstrip("\r").rsplit("\r", 1)[-1].strip() == ""


@pytest.mark.parametrize("more", ["--no-progress", "--quiet", "--silent"])
def test_progress_is_not_shown_where_it_is_not_wanted(more: str, gan: Path) -> None:
    assert on_terminal(slow(gan, more)) == ""


def test_progress_is_not_shown_where_there_is_no_terminal(gan: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", slow(gan)], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr == ""
