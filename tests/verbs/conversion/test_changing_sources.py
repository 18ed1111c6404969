"""A source that changes while it is read is an error, however it changes, and nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.marks import crossed
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, split_file
from wnconvert.errors import FormatError, VerifyError
from wnconvert.storage.files import check_as_seen, status_of
from wnconvert.verbs.comparison import compare as compare_module
from wnconvert.verbs.conversion import run as run_module
from wnconvert.verbs.inspection import inspect as inspect_module

#: Long ago, so that a change shows at once: a file system counts in steps of some milliseconds.
LONG_AGO = (1_000_000_000, 1_000_000_000)


def _replaced(path: Path) -> None:
    """As training scripts save: a new file, renamed over the old one."""
    other = path.with_name("new.part")
    other.write_bytes(path.read_bytes())
    os.utime(other, LONG_AGO)
    other.replace(path)


def _rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def _rewritten_unseen(path: Path) -> None:
    """With the time of before, as rsync and cp -p set it."""
    _rewritten(path)
    os.utime(path, LONG_AGO)


WAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (_replaced, "another one took its place"),
    "rewritten": (_rewritten, "it was written to"),
    "rewritten unseen": (_rewritten_unseen, "its links or its mode changed"),
    "shorter": (lambda path: os.truncate(path, path.stat().st_size - 1), "it became shorter"),
    "longer": (lambda path: os.truncate(path, path.stat().st_size + 1), "it became longer"),
    "touched": (Path.touch, "it was written to"),
    "gone": (Path.unlink, "it is gone"),
}

#: What is folded, and the file of it that changes.
SOURCES = {
    "safetensors": ("hifigan.safetensors", "hifigan.safetensors"),
    "torch": ("g_02500000", "g_02500000"),
    "legacy torch": ("legacy_nonzip.pth", "legacy_nonzip.pth"),
    "TorchScript": ("scripted.pt", "scripted.pt"),
    "program": ("program.pt2", "program.pt2"),
    "npz": ("arrays.npz", "arrays.npz"),
    "shard": ("sharded", "sharded/model-00002-of-00003.safetensors"),
    "index": ("sharded", "sharded/model.safetensors.index.json"),
    "beside": ("sharded", "sharded/config.json"),
    "distributed": ("distributed", "distributed/__1_0.distcp"),
    "metadata": ("distributed", "distributed/.metadata"),
    "onnx": ("tcn.onnx", "tcn.onnx"),
    "onnx data": ("tcn.onnx", "tcn.onnx.data"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with copies of the fixtures, which were last changed long ago."""
    folder = tmp_path / "place"
    folder.mkdir()
    for name in {source for source, _ in SOURCES.values()}:
        (shutil.copytree if (FIXTURES / name).is_dir() else shutil.copyfile)(FIXTURES / name, folder / name)
    model = onnx.load(FIXTURES / "tcn.onnx")
    onnx.save_model(
        model, folder / "tcn.onnx", save_as_external_data=True, location="tcn.onnx.data", size_threshold=0
    )
    for path in folder.rglob("*"):
        os.utime(path, LONG_AGO)
    return folder


def changing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[], object]) -> None:
    """Have a function of a module change a file when it is done."""
    call = getattr(owner, name)

    def late(*given: Any, **options: Any) -> Any:
        made = call(*given, **options)
        change()
        return made

    monkeypatch.setattr(owner, name, late)


@crossed(kind=SOURCES, way=WAYS, verify=[False, True])
def test_a_source_that_changes_after_the_plan_is_an_error_and_nothing_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str, *, verify: bool
) -> None:
    source, file = SOURCES[kind]
    change, how = WAYS[way]
    changing(monkeypatch, run_module, "_settled", lambda: change(place / file))
    out = place / "out.onnx" if source.endswith(".onnx") else place / "out"
    with pytest.raises(FormatError) as caught:
        fold_file(place / source, out, verify=verify, copy=True)
    assert caught.value.heading == f"it changed while it was read: {how}"
    assert str(place / file) in caught.value.where
    assert caught.value.fix == "run it again when nothing changes the file"
    left = {path.name for path in place.iterdir()}
    assert left <= {*(Path(name).parts[0] for pair in SOURCES.values() for name in pair), "new.part"}


def test_it_is_told_before_anything_is_read_where_the_file_is_opened_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(monkeypatch, run_module, "_settled", lambda: _replaced(place / "hifigan.safetensors"))
    done: list[int] = []
    with pytest.raises(FormatError, match="another one took its place"):
        fold_file(place / "hifigan.safetensors", progress=lambda at, _total: done.append(at))
    assert not any(done)


@pytest.mark.parametrize("way", ["replaced", "rewritten", "touched"])
def test_a_reference_that_changes_is_an_error_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    plain = output_of(fold_file(place / "hifigan.safetensors", place / "plain.safetensors"))
    changing(monkeypatch, run_module, "_settled", lambda: WAYS[way][0](place / "hifigan.safetensors"))
    with pytest.raises(FormatError, match="it changed while it was read") as caught:
        split_file(plain, place / "back.safetensors", like=place / "hifigan.safetensors")
    assert str(place / "hifigan.safetensors") in caught.value.where
    assert not (place / "back.safetensors").exists()


@pytest.mark.parametrize("way", ["replaced", "rewritten", "shorter", "touched"])
def test_a_source_in_whose_place_the_output_comes_is_looked_at_before_that(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    source = place / "g_02500000"
    changing(monkeypatch, run_module, "_settled", lambda: WAYS[way][0](source))
    with pytest.raises(FormatError, match="it changed while it was read"):
        fold_file(source, in_place=True)
    assert "new.part" not in listing(place)
    before = (FIXTURES / "g_02500000").read_bytes()
    assert (source.read_bytes() == before) == (way in ("replaced", "touched")), "the newer one stays"


def test_a_change_is_the_reason_where_the_proof_fails_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewritten while it is read, half of it is old: the read-back finds that, and it is no bug."""
    from wnconvert.verbs.conversion.verify import output as module

    source = place / "hifigan.safetensors"

    def fails(*_: object, **__: object) -> None:
        _rewritten(source)
        raise VerifyError("conv was read back with other values", fix="please report it as a bug")

    monkeypatch.setattr(module, "verify_output", fails)
    with pytest.raises(FormatError, match="it was written to"):
        fold_file(source, place / "out.safetensors", verify=True)
    monkeypatch.setattr(
        module, "verify_output", lambda *_: (_ for _ in ()).throw(VerifyError("a bug", fix=""))
    )
    with pytest.raises(VerifyError, match="a bug"):  # where nothing changed, the error is what it was
        fold_file(source, place / "out.safetensors", verify=True)


@pytest.mark.parametrize("way", ["replaced", "rewritten", "touched"])
@pytest.mark.parametrize("full", [False, True])
def test_inspect_and_compare_tell_it_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str, *, full: bool
) -> None:
    source = place / "hifigan.safetensors"
    changing(monkeypatch, inspect_module, "request_of", lambda: WAYS[way][0](source))
    with pytest.raises(FormatError, match="it changed while it was read"):
        inspect_file(source, full=full)
    os.utime(source, LONG_AGO)
    changing(monkeypatch, compare_module, "paired", lambda: WAYS[way][0](source))
    with pytest.raises(FormatError, match="it changed while it was read"):
        compare_files(source, place / "g_02500000", only="generator")


# -- what is no change


def test_what_others_do_beside_it_and_who_reads_it_is_no_change(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        (place / "other").write_bytes(b"x")
        (place / "sharded" / "model-00001-of-00003.safetensors").read_bytes()
        os.utime(place / "hifigan.safetensors")

    changing(monkeypatch, run_module, "_settled", busy)
    for source in ("sharded", "tcn.onnx", "distributed", "g_02500000"):
        out = tmp_path / (source if source.endswith(".onnx") else f"{source}.out")
        assert output_of(fold_file(place / source, out, verify=True, copy=True)).exists()


def test_a_source_in_place_is_converted_again_and_again_though_its_links_change(place: Path) -> None:
    """What staging does to names and modes is no change of the source: not beside it, nor in its place."""
    source = place / "g_02500000"
    os.link(source, place / "backup")
    source.chmod(0o600)
    assert output_of(fold_file(source, in_place=True)) == source
    assert output_of(split_file(source, in_place=True)) == source
    assert source.stat().st_mode & 0o777 == 0o600
    assert (place / "backup").read_bytes() == (FIXTURES / "g_02500000").read_bytes()
    assert output_of(fold_file(place / "sharded", in_place=True)) == place / "sharded"
    assert output_of(fold_file(place / "tcn.onnx", in_place=True)) == place / "tcn.onnx"


def test_a_store_that_knows_no_identity_is_read_as_before() -> None:
    check_as_seen({FIXTURES / "gan.pt": None, FIXTURES / "not there": None})
    check_as_seen({FIXTURES / "gan.pt": status_of(FIXTURES / "gan.pt").identity})
    with pytest.raises(FormatError, match="it is gone"):
        check_as_seen({FIXTURES / "not there": status_of(FIXTURES / "gan.pt").identity})


def test_the_command_ends_with_2_and_says_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    source = place / "hifigan.safetensors"
    changing(monkeypatch, run_module, "_settled", lambda: _replaced(source))
    ended = run("fold", source)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"error: {source}: it changed while it was read: another one took its place",
        "fix: run it again when nothing changes the file",
    ]
