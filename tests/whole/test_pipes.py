"""`-` is stdin and stdout; pipes and devices are called so; an output has the mode of its source."""

from __future__ import annotations

import filecmp
import io
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, migrate_file
from wnconvert.errors import InputError, OutputError

Done = subprocess.CompletedProcess[bytes]


def piped(source: str | bytes, *arguments: str | Path, tmp: Path) -> Done:
    """The command in a process of its own, with a file or bytes in its stdin, as through a pipe."""
    data = (FIXTURES / source).read_bytes() if isinstance(source, str) else source
    (tmp / "spool").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "wnconvert", *map(str, arguments)],
        input=data,
        capture_output=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp / "spool"), "PYTHONWARNINGS": "error"},
    )
    assert not list((tmp / "spool").iterdir())
    assert b"Traceback" not in done.stderr
    return done


def given(monkeypatch: pytest.MonkeyPatch, name: str) -> io.BytesIO:
    """Put a fixture file into stdin, which is not a file then; returns what takes stdout."""
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((FIXTURES / name).read_bytes())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, write_through=True))
    return taken


KINDS = ("g_02500000", "hifigan.safetensors", "legacy_nonzip.pth", "scripted.pt", "arrays.npz", "tcn.onnx")
SUFFIXES = {".safetensors": ".safetensors", ".npz": ".npz", ".onnx": ".onnx"}


@pytest.mark.parametrize("name", KINDS)
def test_stdin_to_stdout_is_the_file_that_would_be_written(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = given(monkeypatch, name)
    record = name != "tcn.onnx"  # which says what was run: of a pipe no whole model is
    result = fold_file("-", record=record)
    out = tmp_path / f"x{SUFFIXES.get(Path(name).suffix, '.pt')}"
    same = taken.getvalue() == output_of(fold_file(FIXTURES / name, out, record=record)).read_bytes()
    assert same
    assert (str(result.source), str(output_of(result))) == ("stdin", "stdout")
    assert result.bytes_out == len(taken.getvalue())


def test_stdin_is_read_once_and_serves_every_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given(monkeypatch, "gan.pt")
    assert inspect_file("-").source == "stdin"
    assert compare_files("-", FIXTURES / "gan.pt")
    assert migrate_file("-", tmp_path / "x.pt", verify=True).verified
    assert output_of(fold_file("-", tmp_path / "y.safetensors", only="generator")).exists()


def test_a_pipe_in_and_out_with_the_report_on_stderr(tmp_path: Path) -> None:
    done = piped("g_02500000", "fold", "-", tmp=tmp_path)
    assert done.returncode == 0
    assert done.stderr.decode().splitlines()[-1].startswith("stdout: 78 layers folded")
    (tmp_path / "out.pt").write_bytes(done.stdout)
    assert inspect_file(tmp_path / "out.pt").fold == "nothing to fold"
    done = piped("g_02500000", "fold", "-", "-o", tmp_path / "file.pt", tmp=tmp_path)
    assert done.stdout.decode().splitlines()[-1].startswith(f"{tmp_path / 'file.pt'}: 78 layers folded")
    assert filecmp.cmp(tmp_path / "file.pt", tmp_path / "out.pt", shallow=False)


def test_json_and_a_dry_run_leave_stdout_to_the_file(tmp_path: Path) -> None:
    done = piped("gan.pt", "migrate", "-", "--json", tmp=tmp_path)
    told = json.loads(done.stderr)
    assert (told["source"], told["output"], told["bytes_out"]) == ("stdin", "stdout", len(done.stdout))
    done = piped("gan.pt", "fold", "-", "--dry-run", tmp=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"would write stdout: 6 layers folded" in done.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "error: stdin: an empty file"),
        (b"hello world", "error: stdin: not a checkpoint"),
        ("misfit.safetensors", "error: stdin: layer dec.0.weight: g (12,) does not fit"),
        ("zero_row.safetensors", "zero"),
    ],
)
def test_an_error_writes_nothing_to_stdout(tmp_path: Path, source: str | bytes, says: str) -> None:
    done = piped(source, "fold", "-", tmp=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode()
    done = piped(source, "fold", "-", "--json", tmp=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    words, brace, told = done.stderr.decode().partition("\n{")
    assert says in words
    assert json.loads(brace + told)["error"]["exit_code"] == 2


def test_an_error_as_json_leaves_stdout_to_the_file_too(tmp_path: Path) -> None:
    done = piped("misfit.safetensors", "fold", "-", "--json", tmp=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    told = json.loads(done.stderr[done.stderr.index(b"{") :])
    assert told["error"]["exit_code"] == 2


def test_a_file_redirected_into_stdin_is_not_copied_and_one_that_was_begun_is_read_from_there(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "wnconvert", "inspect", "-"]
    nowhere = {**os.environ, "TMPDIR": str(tmp_path / "gone"), "TMP": "", "TEMP": ""}
    with (FIXTURES / "gan.pt").open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, check=False, env=nowhere)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "two").write_bytes(b"abc" + (FIXTURES / "gan.pt").read_bytes())
    with (tmp_path / "two").open("rb", buffering=0) as file:
        file.seek(3)
        done = subprocess.run(command, stdin=file, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_is_refused_on_both_sides(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "wnconvert"]
    done = subprocess.run([*command, "inspect", "-"], stdin=theirs, capture_output=True, check=False)
    assert done.stderr.decode().startswith("error: stdin: it is a terminal\nfix: pipe a checkpoint into it")
    done = subprocess.run(
        [*command, "fold", FIXTURES / "gan.pt", "-o", "-"], stdout=theirs, stderr=-1, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr.decode() == "error: stdout: it is a terminal\nfix: redirect it: -o - > FILE, or -o FILE\n"
    )
    os.close(theirs)
    os.close(ours)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_behind_stdout_is_an_error(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - as a shell does
        done = subprocess.run(
            [sys.executable, "-m", "wnconvert", "fold", FIXTURES / "gan.pt", "-o", "-"],
            stdout=full,
            stderr=-1,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 2
    assert b"error: stdout: it cannot be written (No space left on device)" in done.stderr


@pytest.mark.parametrize("mode", ["wb", "ab"])  # the system sends nothing to a file that is appended to
def test_a_file_behind_stdout_gets_all_of_it_after_what_it_has(tmp_path: Path, mode: str) -> None:
    (tmp_path / "out").write_bytes(b"before")
    command: list[str | Path] = [sys.executable, "-m", "wnconvert", "fold", FIXTURES / "gan.pt"]
    with (tmp_path / "out").open(mode) as file:
        file.write(b"header")
        file.flush()
        subprocess.run([*command, "-o", "-"], stdout=file, stderr=-1, check=True)
    subprocess.run([*command, "-o", tmp_path / "x.pt"], stdout=-1, check=True)
    before = b"beforeheader" if mode == "ab" else b"header"
    assert (tmp_path / "out").read_bytes() == before + (tmp_path / "x.pt").read_bytes()


def test_messages_name_stdout_and_no_temporary_file(run: Runner) -> None:
    ended = run("fold", FIXTURES / "gan.pt", "-o", "-", "--max-shard-size", "1KB")
    assert ended.stderr.splitlines()[0].endswith("cuts the weights of a folder, and stdout will be a file")
    ended = run("fold", FIXTURES / "half_pair.safetensors", "-o", "-", "--only", "nothing")
    assert "wnconvert-" not in ended.stderr


def test_stdout_takes_one_file(tmp_path: Path, run: Runner) -> None:
    model = onnx.load(FIXTURES / "tcn.onnx")
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0)
    ended = run("fold", tmp_path / "x.onnx", "-o", "-")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "error: stdout: it takes one file, and this would be several\nfix: -o FILE" in ended.stderr


def test_a_folder_goes_to_stdout_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = given(monkeypatch, "gan.pt")
    fold_file(FIXTURES / "sharded", "-")
    same = (
        taken.getvalue()
        == output_of(fold_file(FIXTURES / "sharded", tmp_path / "x.safetensors")).read_bytes()
    )
    assert same


def test_stdout_that_takes_only_text_is_refused_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(OutputError, match="it takes only text here"):
        fold_file(FIXTURES / "gan.pt", "-")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    with pytest.raises(InputError, match="no checkpoint comes from it"):
        inspect_file("-")


def test_a_file_called_by_a_dash_is_a_file(tmp_path: Path, run: Runner) -> None:
    (tmp_path / "-").write_bytes((FIXTURES / "gan.pt").read_bytes())
    assert run("inspect", "./-", folder=tmp_path).returncode == 0
    assert run("fold", "./-", folder=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["-", "-.folded"]


# -- what is not a file


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_by_its_path_is_told_from_a_file(run: Runner, name: str) -> None:
    ended = run("fold", FIXTURES / "gan.pt", "-o", name, "--force")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {name}: it is a stream of this process\nfix: -o - writes to stdout\n"


def test_pipes_and_devices_are_called_so(run: Runner, tmp_path: Path) -> None:
    pipe = tmp_path / "a pipe"
    os.mkfifo(pipe)
    source = FIXTURES / "gan.pt"
    for arguments, says, fix in (
        (
            ["inspect", pipe],
            "a named pipe, not a regular file",
            f"- is stdin: name that, and redirect it: < '{pipe}'",
        ),
        (["inspect", os.devnull], "a device, not a regular file", "save it to a file first"),
        (["fold", source, "-o", pipe], "it is a named pipe, not a regular file", f"-o - > '{pipe}'"),
        (["fold", source, "-o", os.devnull, "--force"], "it is a device", "--dry-run writes nothing"),
        (["fold", source, "-o", "/dev/zero", "--force"], "it is a device", "-o - > /dev/zero"),
    ):
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        first, last = ended.stderr.splitlines()
        assert says in first
        assert last == f"fix: {fix}"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with os.fdopen(os.open(pipe, os.O_RDWR)) as opened:
        ended = run("inspect", f"/dev/fd/{opened.fileno()}")
    assert ended.stderr.endswith("fix: - is stdin: COMMAND | wnconvert …, with - as the file\n")


# -- modes


@pytest.mark.parametrize(
    ("name", "out"),
    [("gan.pt", "x.pt"), ("arrays.npz", "x.npz"), ("tcn.onnx", "x.onnx"), ("gan.pt", "x.pth")],
)
@pytest.mark.parametrize(
    "modes",
    [
        (0o600, 0o022, 0o600),
        (0o640, 0o022, 0o640),
        (0o666, 0o022, 0o644),
        (0o666, 0o077, 0o600),
        (0o444, 0o022, 0o444),
        (0o4755, 0o022, 0o755),
    ],
)
def test_a_new_output_has_the_mode_of_its_source_as_cp_has_it(
    tmp_path: Path, name: str, out: str, modes: tuple[int, int, int]
) -> None:
    mode, umask, expected = modes
    source = tmp_path / f"source{Path(name).suffix}"
    source.write_bytes((FIXTURES / name).read_bytes())
    source.chmod(mode)
    before = os.umask(umask)
    try:
        fold_file(source, tmp_path / out)
        subprocess.run(["cp", source, tmp_path / "copy"], check=True)  # noqa: S607
    finally:
        os.umask(before)
    found = [stat.S_IMODE((tmp_path / made).stat().st_mode) for made in (out, "copy")]
    assert found == [expected, expected]


def test_an_output_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    source.write_bytes((FIXTURES / "gan.pt").read_bytes())
    out.write_bytes(b"old")
    source.chmod(0o600)
    out.chmod(0o664)
    fold_file(source, out, force=True)
    assert stat.S_IMODE(out.stat().st_mode) == 0o664


def test_a_folder_and_all_in_it_are_as_private_as_the_source(tmp_path: Path) -> None:
    source = tmp_path / "hub"
    fold_file(FIXTURES / "sharded", f"{source}/", layers="*", max_shard_size="2KB")
    for path in source.iterdir():
        path.chmod(0o640)
    next(source.glob("*-00001-of-*")).chmod(0o600)
    (source / "config.json").chmod(0o644)
    source.chmod(0o750)
    made = output_of(migrate_file(source, tmp_path / "made", copy=True))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert modes.pop("config.json") == 0o644
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o750


def test_what_comes_from_stdin_has_the_mode_of_any_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, "gan.pt")
    before = os.umask(0o027)
    try:
        fold_file("-", tmp_path / "x.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.pt").stat().st_mode) == 0o640
