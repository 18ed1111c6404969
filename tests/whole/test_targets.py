"""Where files are written: never over what nobody gave up, and never more open than what they are made of."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, split_file
from wnconvert.errors import ArgumentError
from wnconvert.storage import staged_folder
from wnconvert.storage.stores import renames


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of weights that nobody else may read, with other files and folders, as private."""
    folder = tmp_path / "private"
    shutil.copytree(FIXTURES / "sharded", folder)
    (folder / "voices" / "deep").mkdir(parents=True)
    (folder / "voices" / "deep" / "one.bin").write_bytes(b"x")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder.chmod(0o700)
    return folder


# -- modes


def test_a_program_that_runs_as_its_owner_does_not_do_so_in_the_copy(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    shutil.copyfile(FIXTURES / "hifigan.safetensors", source / "model.safetensors")
    shutil.copyfile("/bin/true", source / "tool")
    (source / "sub").mkdir()
    (source / "tool").chmod(0o6755)
    (source / "sub").chmod(0o3775)
    (source / "model.safetensors").chmod(0o4644)
    source.chmod(0o1755)
    made = output_of(fold_file(source))
    assert mode(made / "tool") == 0o755
    assert mode(made / "sub") & 0o7000 == 0
    assert mode(made / "model.safetensors") == 0o644
    assert mode(made) == 0o755


@pytest.mark.parametrize("special", [0o4644, 0o2644, 0o1644])
def test_a_target_that_is_replaced_keeps_its_permissions_and_no_more(tmp_path: Path, special: int) -> None:
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")
    out.chmod(special)
    fold_file(FIXTURES / "gan.pt", out, force=True)
    assert mode(out) == 0o644
    shutil.copyfile(FIXTURES / "tcn.onnx", tmp_path / "in.onnx")
    (tmp_path / "in.onnx").chmod(special)
    fold_file(tmp_path / "in.onnx", in_place=True)
    assert mode(tmp_path / "in.onnx") == 0o644


def test_what_a_folder_has_of_its_parent_stays(tmp_path: Path) -> None:
    """A set-group-id bit that the system gives to what is made in a folder was not copied from anywhere."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    shutil.copytree(FIXTURES / "sharded", tmp_path / "src")
    made = output_of(fold_file(tmp_path / "src", shared / "out"))
    again = output_of(fold_file(tmp_path / "src", shared / "out", force=True))
    assert made == again
    assert mode(again) & stat.S_ISGID


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_beside_have_the_modes_that_cp_gives_them(tmp_path: Path, mask: int) -> None:
    source = tmp_path / "src"
    shutil.copytree(FIXTURES / "sharded", source)
    (source / "sub").mkdir()
    for name, wanted in (("a", 0o666), ("b", 0o600), ("sub/c", 0o755), ("d", 0o440)):
        (source / name).write_bytes(b"x")
        (source / name).chmod(wanted)
    (source / "sub").chmod(0o777)
    with umask(mask):
        made = output_of(fold_file(source, tmp_path / "made"))
        subprocess.run(["cp", "-r", source, tmp_path / "copy"], check=True)  # noqa: S607
    for name in ("a", "b", "sub", "sub/c", "d", "."):
        assert mode(made / name) == mode(tmp_path / "copy" / name), name


@pytest.mark.parametrize("made", ["file", "npz", "folder", "as folder", "onnx", "onnx data", "in place"])
def test_what_is_private_is_so_from_its_creation_on(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    source = tmp_path / "source"
    if made.startswith("onnx"):
        import onnx

        source = source.with_suffix(".onnx")
        model = onnx.load(FIXTURES / "tcn.onnx")
        onnx.save_model(model, source, save_as_external_data=made == "onnx data", location="source.data")
    else:
        shutil.copyfile(FIXTURES / "arrays.npz", source)
    for path in tmp_path.glob("source*"):
        path.chmod(0o600)
    created = _watched(monkeypatch)
    with umask(0):
        if made in ("folder", "in place"):
            out = output_of(fold_file(private, in_place=made == "in place"))
        else:
            to = {"file": "o.pt", "npz": "o.npz", "as folder": "o"}.get(made, "o.onnx")
            out = output_of(fold_file(source, tmp_path / to, copy=True, as_folder=made == "as folder"))
    assert created, "nothing was watched"
    assert [path for path, was in created if was & 0o077] == []
    assert [path for path in (*tmp_path.glob("o*"), *out.rglob("*")) if mode(path) & 0o077] == []


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """The modes of all files and folders at the moment when they are made."""
    created: list[tuple[Path, int]] = []
    opens, mkdir = os.open, Path.mkdir

    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
        descriptor = opens(path, flags, *more, **options)
        if flags & os.O_CREAT:
            created.append((Path(path), stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    def made(path: Path, *given: Any, **options: Any) -> None:
        mkdir(path, *given, **options)
        created.append((path, mode(path)))

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "mkdir", made)
    return created


# -- at the last moment


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("as_folder", [True, False])
def test_what_appears_at_the_last_moment_is_not_replaced_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner, *, as_folder: bool, one_step: bool
) -> None:
    """As where two runs write to one place: both looked, both found nothing."""
    if not one_step:
        monkeypatch.setattr(renames, "_renameat2", lambda *_: False)
    out = tmp_path / ("out" if as_folder else "out.pt")
    rename_new = renames.rename_new

    def late(one: Path, other: Path) -> None:
        if as_folder:
            other.mkdir()
            (other / "precious").touch()
        else:
            other.write_bytes(b"precious")
        rename_new(one, other)

    monkeypatch.setattr("wnconvert.storage.staging.rename_new", late)
    monkeypatch.setattr(staged_folder, "rename_new", late)
    ended = run("fold", FIXTURES / "hifigan.safetensors", "-o", out, *(["--as-folder"] if as_folder else []))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {out}: it exists\nfix: ")
    assert listing(tmp_path) == {"out/precious": b""} if as_folder else {"out.pt": b"precious"}


def test_of_many_runs_to_one_folder_one_ends_well(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "wnconvert",
        "fold",
        str(FIXTURES / "hifigan.safetensors"),
        "-o",
        str(tmp_path / "out"),
    ]
    runs = [
        subprocess.Popen([*command, "--as-folder", "-q"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ended = [(each.communicate()[1], each.returncode) for each in runs]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2]
    assert all("it exists" in said for said, code in ended if code)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- names


@pytest.mark.parametrize(
    "command",
    [
        ["fold", ""],
        ["fold", "SRC", "-o", ""],
        ["split", ""],
        ["split", "SRC", "--like", ""],
        ["migrate", ""],
        ["inspect", ""],
        ["inspect", "SRC", ""],
        ["inspect", "SRC", "--plot", ""],
        ["compare", "", "SRC"],
        ["compare", "SRC", ""],
        ["loads", ""],
        ["modernize", ""],
        ["check", "", "json:dumps", "--input", "x=float32[1]"],
        ["check", "ONNX", "", "--input", "x=float32[1]"],
        ["export", "", "-o", "x.onnx", "--input", "x=float32[1]"],
        ["export", "json:dumps", "-o", "", "--input", "x=float32[1]"],
        ["export", "json:dumps", "-o", "x.onnx", "--weights", "", "--input", "x=float32[1]"],
    ],
    ids=" ".join,
)
def test_an_empty_name_is_refused_as_a_variable_that_is_not_set(
    tmp_path: Path, run: Runner, command: list[str]
) -> None:
    """It would be the current folder, which here holds weights."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copyfile(FIXTURES / "hifigan.safetensors", folder / "model.safetensors")
    sources = {"SRC": str(FIXTURES / "hifigan.safetensors"), "ONNX": str(FIXTURES / "tcn.onnx")}
    given = [sources.get(word, word) for word in command]
    ended = run(*given, folder=folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    first, last = ended.stderr.splitlines()[-2:]
    assert first.startswith("error: ")
    assert first.endswith(" is empty")
    assert last == "fix: is a variable not set? name it"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert len(list(folder.iterdir())) == 1


def test_an_empty_name_is_refused_in_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "sharded")
    calls: list[Callable[[], object]] = [
        lambda: fold_file(""),
        lambda: fold_file("model.safetensors.index.json", ""),
        lambda: split_file(".", like=""),
        lambda: inspect_file(""),
        lambda: compare_files("", "."),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match="is empty"):
            call()
    assert inspect_file(".").layers == inspect_file(FIXTURES / "sharded").layers


def test_a_name_of_blanks_is_a_name(tmp_path: Path, run: Runner) -> None:
    shutil.copyfile(FIXTURES / "gan.pt", tmp_path / " ")
    assert run("fold", " ", folder=tmp_path).returncode == 0


# -- what is replaced, and what never


def test_a_picture_takes_the_place_of_a_picture_with_force_and_of_a_checkpoint_never(
    tmp_path: Path, run: Runner
) -> None:
    source = tmp_path / "x.png"
    shutil.copyfile(FIXTURES / "hifigan.safetensors", source)
    damaged = tmp_path / "y.png"
    damaged.write_bytes(source.read_bytes()[:-1])
    before = listing(tmp_path)
    for picture in (source, damaged):
        for more in ([], ["--force"]):
            ended = run("inspect", source, "--plot", picture, *more)
            assert (ended.returncode, ended.stdout) == (2, "")
            assert ended.stderr.splitlines() == [
                f"error: {picture}: it is a checkpoint, and no picture is drawn over one",
                "fix: choose another --plot FILE",
            ]
    assert listing(tmp_path) == before
    (tmp_path / "z.png").write_bytes(b"an old picture")
    ended = run("inspect", source, "--plot", tmp_path / "z.png")
    assert ended.stderr.splitlines() == [
        f"error: {tmp_path / 'z.png'}: it exists",
        "fix: --force replaces it, or choose another --plot FILE",
    ]
    assert run("inspect", source, "--plot", tmp_path / "z.png", "--force").returncode == 0
    assert (tmp_path / "z.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["-o", "--plot"])
def test_a_link_into_nothing_is_followed_with_force_only(tmp_path: Path, run: Runner, option: str) -> None:
    link, there = tmp_path / "link.png", tmp_path / "there.png"
    link.symlink_to("there.png")
    command = ["inspect", FIXTURES / "gan.pt", "--plot", link]
    if option == "-o":
        link, there = tmp_path / "link.pt", tmp_path / "there.pt"
        link.symlink_to("there.pt")
        command = ["fold", FIXTURES / "gan.pt", "-o", link]
    ended = run(*command)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"error: {link}: it is a link to {there.name}, where nothing is",
        f"fix: {option} {there}, or --force",
    ]
    assert not there.exists()
    assert run(*command, "--force").returncode == 0
    assert link.is_symlink()
    assert there.stat().st_size


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of opened files are Linux's")
@pytest.mark.parametrize(
    "name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/thread-self/fd/{}", "//dev/./fd/{}", "{link}"]
)
@pytest.mark.parametrize("deleted", [True, False])
def test_the_name_of_an_opened_file_is_not_written_to(
    tmp_path: Path, run: Runner, name: str, *, deleted: bool
) -> None:
    """What a deleted file was called is no name of a file: ``#123 (deleted)``."""
    target = tmp_path / "opened.pt"
    with target.open("wb") as opened:
        if deleted:
            target.unlink()
        link = tmp_path / "a link"
        link.symlink_to(f"/dev/fd/{opened.fileno()}")
        path = name.format(opened.fileno(), link=link)
        for more in ([], ["--force"]):
            ended = run("fold", FIXTURES / "gan.pt", "-o", path, *more)
            assert ended.returncode == 2
            assert "it is a stream of this process\nfix: -o - writes to stdout" in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a link", *([] if deleted else ["opened.pt"])}
    assert deleted or target.read_bytes() == b""


def test_a_folder_that_is_called_like_those_of_streams_is_a_folder(tmp_path: Path, run: Runner) -> None:
    place = tmp_path / "proc" / "self" / "fd"
    place.mkdir(parents=True)
    assert run("fold", FIXTURES / "gan.pt", "-o", place / "1").returncode == 0
