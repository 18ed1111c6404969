"""What a killed run left is named by the next run to that place; ``--clean`` deletes it, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.reports.plots import plot_magnitudes
from wnconvert.storage.stores.temporary import held_file, held_folder, mark_replaced

#: A run that stops when all is written, and before it is put in place.
STOPS = """
import sys, time
import wnconvert.storage.staging as staging, wnconvert.storage.staged_folder as folders
def wait(*_, **__):
    print("begun", flush=True)
    time.sleep(60)
staging._publish = staging._publish_all = folders._place = wait
sys.argv = ["wnconvert", *sys.argv[1:]]
from wnconvert.cli import main
main()
"""


@contextmanager
def at_work(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has written all, and waits; it is killed when the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", STOPS, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "begun\n", process.stderr.read() if process.stderr else line
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_beside(real: Path, content: bytes = b"half") -> str:
    """A file as a killed run leaves it beside a target."""
    path, descriptor = held_file(real, 0o600)
    os.write(descriptor, content)
    os.close(descriptor)
    return path.name


@pytest.mark.parametrize(
    ("fixture", "out"),
    [("gan.pt", "out.pt"), ("sharded", "out"), ("tcn.onnx", "out.onnx")],
    ids=["file", "folder", "onnx"],
)
def test_a_run_at_work_is_told_and_left_alone_and_one_that_was_killed_is_cleaned(
    tmp_path: Path, run: Runner, fixture: str, out: str
) -> None:
    command = ["fold", str(FIXTURES / fixture), "-o", str(tmp_path / out)]
    with at_work(*command):
        (left,) = names(tmp_path)
        ended = run(*command, "--clean")
        assert ended.returncode == 0
        assert f"note: another run is writing to {out} now: {left}\n" in ended.stderr
        assert names(tmp_path) == sorted([out, left])
    ended = run(*command, "--dry-run")
    assert f"note: {left} is left of a run that was killed: --clean deletes it\n" in ended.stderr
    ended = run(*command, "--force")
    assert f"note: {left} is left of a run that was killed: --clean deletes it\n" in ended.stderr
    assert names(tmp_path) == sorted([out, left])
    made = listing(tmp_path / out) if (tmp_path / out).is_dir() else (tmp_path / out).read_bytes()
    ended = run(*command, "--force", "--clean")
    assert f"note: {left}, left of a run that was killed, is deleted\n" in ended.stderr
    assert names(tmp_path) == [out]
    again = listing(tmp_path / out) if (tmp_path / out).is_dir() else (tmp_path / out).read_bytes()
    assert again == made


def test_a_source_in_place_is_cleaned_too_and_nothing_beside_it(tmp_path: Path, run: Runner) -> None:
    source = tmp_path / "gan.pt"
    source.write_bytes((FIXTURES / "gan.pt").read_bytes())
    left = left_beside(source)
    (tmp_path / "gan.pt.wnconvert-mine.tmp").write_bytes(b"precious")
    (tmp_path / f"{left}.bak").write_bytes(b"precious")
    ended = run("fold", source, "--in-place", "--clean")
    assert f"{left}, left of a run that was killed, is deleted" in ended.stderr
    assert names(tmp_path) == sorted(["gan.pt", "gan.pt.wnconvert-mine.tmp", f"{left}.bak"])
    left = left_beside(source)
    ended = run("fold", source, "--in-place", "--clean")  # which has nothing to fold any more
    assert ended.returncode == 0
    assert f"{left}, left of a run that was killed, is deleted" in ended.stderr


def test_a_dry_run_and_a_refused_run_delete_nothing(tmp_path: Path, run: Runner) -> None:
    out = tmp_path / "out.pt"
    left = left_beside(out)
    assert run("fold", FIXTURES / "gan.pt", "-o", out, "--dry-run", "--clean").returncode == 0
    assert names(tmp_path) == [left]
    out.write_bytes(b"old")
    assert run("fold", FIXTURES / "gan.pt", "-o", out, "--clean").returncode == 2
    assert run("fold", FIXTURES / "misfit.safetensors", "-o", out, "--clean", "--force").returncode == 2
    assert names(tmp_path) == sorted(["out.pt", left])


def test_the_json_and_python_tell_it_too(tmp_path: Path, run: Runner) -> None:
    out = tmp_path / "out.pt"
    left = left_beside(out)
    result = fold_file(FIXTURES / "gan.pt", out)
    assert f"{left} is left of a run that was killed: --clean deletes it" in result.notes
    told = json.loads(run("fold", FIXTURES / "gan.pt", "-o", out, "--force", "--clean", "--json").stdout)
    assert f"{left}, left of a run that was killed, is deleted" in told["notes"]
    assert (
        fold_file(FIXTURES / "gan.pt", out, force=True, clean=True).notes
        == fold_file(FIXTURES / "gan.pt", tmp_path / "other.pt").notes
    )


def test_an_old_folder_that_lies_aside_is_put_back(tmp_path: Path, run: Runner) -> None:
    out = tmp_path / "out"
    fold_file(FIXTURES / "sharded", out)
    before = listing(out)
    new, let_go = held_folder(out, 0o700)
    let_go()
    out.rename(new.with_name(new.name.replace(".tmp", ".old.tmp")))
    ended = run("fold", FIXTURES / "sharded", "-o", out, "--dry-run")
    assert "is what out was, left of a run that was killed: --clean puts it back" in ended.stderr
    ended = run("fold", FIXTURES / "sharded", "-o", out, "--clean")
    assert ended.returncode == 2
    assert "is put back as out" in ended.stderr
    assert f"error: {out}: it exists" in ended.stderr
    assert names(tmp_path) == ["out"]
    assert listing(out) == before


def test_what_cannot_be_deleted_is_told(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.pt"
    left = left_beside(out)

    def refuses(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wnconvert.storage.stores.temporary._delete", refuses)
    ended = run("fold", FIXTURES / "gan.pt", "-o", out, "--clean")
    assert ended.returncode == 0
    assert (
        f"note: {left} is left of a run that was killed, and cannot be deleted (Permission denied)"
        in ended.stderr
    )


def test_old_data_of_an_onnx_model_goes_unless_a_model_needs_it(tmp_path: Path, run: Runner) -> None:
    """Killed after the new model stood there, and before the data of the old one went."""
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model = onnx.load(FIXTURES / "tcn.onnx")
    onnx.save_model(model, source, save_as_external_data=True, location="in.onnx.data", size_threshold=0)
    fold_file(source, out)
    old = (tmp_path / "out.onnx.data").read_bytes() + b"and more"
    fold_file(source, out, force=True)
    assert names(tmp_path) == ["in.onnx", "in.onnx.data", "out.onnx", "out.onnx.2.data"]
    for needed in (False, True):
        stale = tmp_path / "out.onnx.data"
        stale.write_bytes(old)
        if needed:
            shared = onnx.load(out, load_external_data=False)
            for tensor in shared.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = stale.name
            (tmp_path / "shares.onnx").write_bytes(shared.SerializeToString())
        folder, let_go = held_folder(out, 0o700)
        mark_replaced(folder, [stale])
        let_go()
        ended = run("fold", source, "-o", out, "--force", "--clean")
        assert f"{folder.name}, left of a run that was killed, is deleted" in ended.stderr
        assert (stale.exists() and stale.read_bytes() == old) == needed
        assert not folder.exists()


def test_in_place_a_leftover_with_second_names_of_the_data_of_the_source_goes(
    tmp_path: Path, run: Runner
) -> None:
    """Killed just before the new model took its place."""
    source = tmp_path / "in.onnx"
    model = onnx.load(FIXTURES / "tcn.onnx")
    onnx.save_model(model, source, save_as_external_data=True, location="in.onnx.data", size_threshold=0)
    folder, let_go = held_folder(source, 0o700)
    (folder / "in.onnx").write_bytes(b"new")
    mark_replaced(folder, [tmp_path / "in.onnx.data"])
    let_go()
    ended = run("fold", source, "--in-place", "--clean")
    assert ended.returncode == 0, ended.stderr
    assert f"{folder.name}, left of a run that was killed, is deleted" in ended.stderr
    assert names(tmp_path) == ["in.onnx", "in.onnx.2.data"]


def test_beside_a_picture_it_is_deleted_at_once(tmp_path: Path, run: Runner) -> None:
    picture = tmp_path / "x.svg"
    left = left_beside(picture)
    assert plot_magnitudes([inspect_file(FIXTURES / "gan.pt")], picture) == (
        f"{left}, left of a run that was killed, is deleted",
    )
    left = left_beside(picture)
    ended = run("inspect", FIXTURES / "gan.pt", "--plot", picture, "--force")
    assert f"{left}, left of a run that was killed, is deleted" in ended.stderr
    assert names(tmp_path) == ["x.svg"]


def test_what_goes_to_stdout_is_made_in_a_place_that_is_cleaned_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, let_go = held_folder(tmp_path / "stdout", 0o700)
    (folder / "stdout.pt").write_bytes(b"half")
    let_go()
    ended = run("fold", FIXTURES / "gan.pt", "-o", "-", "--dry-run")
    assert f"{folder.name} is left of a run that was killed: --clean deletes it" in ended.stderr
    command = [sys.executable, "-m", "wnconvert", "fold", str(FIXTURES / "gan.pt"), "-o", "-", "--clean"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert f"{folder.name}, left of a run that was killed, is deleted" in done.stderr.decode()
    assert done.stdout == output_of(fold_file(FIXTURES / "gan.pt", tmp_path / "x.pt")).read_bytes()
    assert names(tmp_path) == ["x.pt"]


@pytest.mark.alone
def test_killed_at_random_points_every_kind_of_run_leaves_what_it_may() -> None:
    """A few of those that ``tests.fuzz.kills`` runs by hand."""
    kinds = ["fold", "folder --force", "onnx data --force", "fold to stdout"]
    only = [word for kind in kinds for word in ("--only", kind)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.kills", "--kills", "16", "--seed", "3", *only],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
