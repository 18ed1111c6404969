"""Where a conversion writes: nothing of anybody else's is ever replaced, and the source only where asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from wnconvert import ArgumentError, OutputError, fold_file, migrate_file, split_file
from wnconvert.storage.folder.written import MANIFEST
from wnconvert.verbs.conversion.targets import Target, target_of

State = dict[str, torch.Tensor]


def state() -> State:
    return {"a.weight_g": torch.rand(4, 1) + 1, "a.weight_v": torch.randn(4, 3), "a.bias": torch.zeros(4)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    path = tmp_path / "in" / "g_01"
    path.parent.mkdir()
    torch.save(state(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder in the layout of the hub."""
    path = tmp_path / "hub"
    path.mkdir()
    safetensors.torch.save_file(state(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")
    return path


# -- a file goes into a folder


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_goes_into_a_folder_that_exists_and_all_in_it_stays(
    file: Path, tmp_path: Path, slash: str, *, force: bool
) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.tex").write_text("mine")
    (keep / "model.safetensors").write_text("mine too")
    result = fold_file(file, f"{keep}{slash}", force=force)
    assert result.output == keep / "g_01.folded"
    assert sorted(path.name for path in keep.iterdir()) == ["g_01.folded", "model.safetensors", "thesis.tex"]
    assert list(torch.load(keep / "g_01.folded", weights_only=True)) == ["a.weight", "a.bias"]


def test_the_files_of_a_loop_all_stay(tmp_path: Path, run: Runner) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    for at in range(3):
        torch.save(state(), tmp_path / f"g_{at}.pt")
        assert run("fold", tmp_path / f"g_{at}.pt", "-o", keep, "--force", "--quiet").returncode == 0
    assert sorted(listing(keep)) == ["g_0.folded.pt", "g_1.folded.pt", "g_2.folded.pt"]


def test_an_onnx_model_goes_into_a_folder_too(tmp_path: Path) -> None:
    assert fold_file(FIXTURES / "tcn.onnx", tmp_path).output == tmp_path / "tcn.folded.onnx"


def test_a_file_in_that_folder_is_replaced_by_force_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "g_01.folded").write_text("old")
    with pytest.raises(OutputError, match="it exists") as caught:
        fold_file(file, tmp_path)
    assert caught.value.where == str(tmp_path / "g_01.folded")
    assert output_of(fold_file(file, tmp_path, force=True)).read_bytes() != b"old"


def test_a_slash_behind_a_folder_that_is_not_there_is_an_error_with_both_ways_out(
    file: Path, tmp_path: Path
) -> None:
    for dry_run in (False, True):
        with pytest.raises(OutputError, match="there is no such folder") as caught:
            fold_file(file, f"{tmp_path}/new/", dry_run=dry_run)
        assert caught.value.fix.startswith(f"mkdir -p {tmp_path}/new/; --as-folder ")
    assert not (tmp_path / "new").exists()


def test_a_file_becomes_a_folder_where_that_is_asked_for(file: Path, tmp_path: Path) -> None:
    assert fold_file(file, as_folder=True).output == file.parent / "g_01.folded"
    assert set(listing(file.parent / "g_01.folded")) == {"model.safetensors", MANIFEST}
    fold_file(file, f"{tmp_path}/x.pt/", as_folder=True)
    assert set(listing(tmp_path / "x.pt")) == {"model.safetensors", MANIFEST}


def test_a_folder_stays_a_folder_and_a_file_of_one_is_a_file(hub: Path, tmp_path: Path) -> None:
    for out, is_folder in (("x", True), ("x/", True), ("hub2", True), ("x.pt", False)):
        target = target_of(hub, f"{tmp_path}/{out}", "folded")
        assert target == Target(tmp_path / out, is_folder, is_named=not out.endswith("/"))


def test_a_folder_is_not_written_into_a_folder_of_others(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds what no conversion wrote: thesis\.tex") as caught:
        fold_file(hub, tmp_path / "keep")
    assert "--force" not in caught.value.fix


# -- what --force may replace


def test_without_force_the_error_lists_what_would_go(hub: Path, run: Runner) -> None:
    fold_file(hub)
    ended = run("fold", hub)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[1] == (
        "fix: choose another -o; --force replaces it: 2 files will go, config.json, model.safetensors"
    )


def test_force_lists_what_goes_before_it_does(hub: Path, run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "hub.folded"
    fold_file(hub)
    said = f"{out} is replaced: 2 files will go, config.json, model.safetensors"
    assert run("fold", hub, "--force").stderr == f"note: {said}\n"
    assert said in fold_file(hub, force=True, dry_run=True).notes
    assert said in fold_file(hub, force=True).notes


@pytest.mark.parametrize(
    "what", ["new", "below", "changed", "longer", "link", "other link", "no list", "bad list"]
)
def test_force_refuses_where_anything_is_not_of_a_conversion(hub: Path, tmp_path: Path, what: str) -> None:
    (hub / "again").symlink_to(".")
    out, foreign = tmp_path / "out", "config.json"
    fold_file(hub, out)
    if what == "new":
        foreign = "mine.txt"
        (out / foreign).touch()
    elif what == "below":
        foreign = "runs/1/mine.txt"
        (out / foreign).parent.mkdir(parents=True)
        (out / foreign).touch()
    elif what == "changed":  # to something as long
        later = (out / MANIFEST).stat().st_mtime_ns + 1
        (out / "config.json").write_text("[]")
        os.utime(out / "config.json", ns=(later, later))
    elif what == "longer":
        (out / "config.json").write_text('{"a": 1}')
        os.utime(out / "config.json", ns=(0, 0))
    elif what == "link":
        (out / "config.json").unlink()
        (out / "config.json").symlink_to(hub / "config.json")
    elif what == "other link":
        foreign = "again"
        (out / foreign).unlink()
        (out / foreign).symlink_to("/")
    elif what == "no list":
        (out / MANIFEST).unlink()
    else:
        (out / MANIFEST).write_text('{"files": [')
    before = listing(out)
    for dry_run in (False, True):
        with pytest.raises(OutputError, match="it holds what no conversion wrote: ") as caught:
            fold_file(hub, out, force=True, dry_run=dry_run)
        assert foreign in caught.value.what
    assert listing(out) == before


def test_force_replaces_what_a_conversion_wrote_as_often_as_one_likes(hub: Path, tmp_path: Path) -> None:
    (hub / "again").symlink_to("voices")
    (hub / "voices").mkdir()
    out = tmp_path / "out"
    fold_file(hub, out)
    (out / "empty").mkdir()  # holds nothing
    out = out.rename(tmp_path / "moved")
    migrate_file(hub, out, force=True)
    split_file(fold_file(hub, tmp_path / "folded").output or hub, out, force=True)
    assert "a.weight_g" in safetensors.torch.load_file(out / "model.safetensors")


def test_the_list_of_what_was_written_does_not_go_along(hub: Path, tmp_path: Path) -> None:
    fold_file(hub, tmp_path / "a")
    result = split_file(tmp_path / "a", tmp_path / "b")
    assert (result.plan.copied, result.plan.dropped) == (("config.json",), ())


# -- the source itself


def names_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Other names of a file. Two hard links are to one file what capitals are where case does not count."""
    folder = path.parent.parent
    (folder / "way").symlink_to(path.parent)
    (folder / "link").symlink_to(path)
    if path.is_file():
        os.link(path, folder / path.name.upper())
    monkeypatch.chdir(folder)
    hard = [folder / path.name.upper()] if path.is_file() else []
    return [
        path,
        Path(path.parent.name, path.name),
        path.parent / ".." / path.parent.name / path.name,
        folder / "way" / path.name,
        folder / "link",
        *hard,
    ]


def test_the_source_is_never_written_over_by_any_path_link_or_case(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    for name in names_of(file, monkeypatch):
        for verb in (fold_file, migrate_file):
            for options in ({}, {"force": True}, {"force": True, "dry_run": True}):
                given: dict[str, Any] = options
                with pytest.raises(OutputError, match="it is the source itself") as caught:
                    verb(file, name, **given)
                assert caught.value.fix == "choose another -o; --in-place replaces the source"
        with pytest.raises(OutputError, match="it is the source itself"):
            fold_file(name, file, force=True)
    assert file.read_bytes() == before


def test_a_folder_is_never_written_over_by_any_path_or_link(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    hub = hub.rename(tmp_path / "in" / "hub")
    for name in names_of(hub, monkeypatch):
        with pytest.raises(OutputError, match="it is the source itself"):
            fold_file(hub, name, force=True)


def test_in_place_works_by_every_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names_of(file, monkeypatch)[:-1]:
        torch.save(state(), file)
        assert fold_file(file, name, in_place=True).output == file
        assert list(torch.load(file, weights_only=True)) == ["a.weight", "a.bias"]
        torch.save(state(), file)
        fold_file(name, in_place=True)  # through the link: it stays one
        assert list(torch.load(file, weights_only=True)) == ["a.weight", "a.bias"]
    assert (file.parent.parent / "link").is_symlink()


def test_in_place_says_first_what_cannot_be_brought_back(tmp_path: Path, run: Runner) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes((FIXTURES / "lightning.ckpt").read_bytes())
    said = "in place of the source: g and v of 3 layers, optimizer_states.0 cannot be brought back"
    assert said in fold_file(path, in_place=True, dry_run=True).notes
    assert path.read_bytes() == (FIXTURES / "lightning.ckpt").read_bytes()
    ended = run("fold", path, "--in-place")
    assert (ended.returncode, ended.stderr.count(f"note: {said}\n")) == (0, 1)
    assert run("split", path, "--in-place").stderr.count("in place") == 0  # a fold gives all of it back


def test_in_place_says_it_before_a_byte_is_written(
    file: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("wnconvert.verbs.conversion.convert.execute", broken)
    ended = run("fold", file, "--in-place")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "note: in place of the source: g and v of 1 layer cannot be brought back\n"
    )
    assert list(torch.load(file, weights_only=True)) == list(state())


def test_a_cast_and_the_code_of_torchscript_cannot_be_brought_back(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    path.write_bytes((FIXTURES / "scripted.pt").read_bytes())
    (note,) = (
        note
        for note in fold_file(path, in_place=True, dtype="float16", dry_run=True).notes
        if "in place" in note
    )
    assert "g and v of 2 layers, the digits of 2 tensors, its code cannot be brought back" in note


def test_the_layout_of_a_distributed_checkpoint_cannot_be_brought_back(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "distributed", tmp_path / "steps")
    (note,) = migrate_file(tmp_path / "steps", in_place=True, dry_run=True).notes
    assert note.endswith("note, the layout of torch.distributed.checkpoint cannot be brought back")


def test_one_file_of_several_is_not_converted_in_place_past_their_index(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "sharded", tmp_path / "whole")
    part = next((tmp_path / "whole").glob("*-00001-of-*"))
    before = listing(tmp_path / "whole")
    with pytest.raises(ArgumentError, match="their index would no longer fit it") as caught:
        fold_file(part, in_place=True, add_prefix="m")
    assert str(tmp_path / "whole") in caught.value.fix
    assert listing(tmp_path / "whole") == before
    alone = part.rename(tmp_path / part.name)
    assert fold_file(alone, in_place=True, add_prefix="m").output == alone


def test_a_migration_in_place_loses_nothing_and_says_nothing(file: Path) -> None:
    before = torch.load(file, weights_only=True)
    there = migrate_file(file, in_place=True)
    assert not any("in place" in note for note in there.notes)
    migrate_file(file, in_place=True, to="legacy")
    after = torch.load(file, weights_only=True)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("how", ["folder", "index"])
def test_a_folder_in_place_keeps_all_else_and_stays_its_owners(hub: Path, how: str) -> None:
    source = hub
    if how == "index":
        (hub / "model.safetensors").rename(hub / "model-00001-of-00001.safetensors")
        source = hub / "model.safetensors.index.json"
        weight_map = ", ".join(f'"{name}": "model-00001-of-00001.safetensors"' for name in state())
        source.write_text(f'{{"weight_map": {{{weight_map}}}}}')
    result = fold_file(source, in_place=True)
    assert result.output == hub
    assert "in place of the source: g and v of 1 layer cannot be brought back" in result.notes
    assert set(listing(hub)) == {"model.safetensors", "config.json"}
    assert set(safetensors.torch.load_file(hub / "model.safetensors")) == {"a.weight", "a.bias"}


def test_a_folder_in_place_loses_no_other_weights_and_no_repository(hub: Path) -> None:
    (hub / ".git").mkdir()
    with pytest.raises(OutputError, match="it is a git repository"):
        fold_file(hub, in_place=True)
    (hub / ".git").rmdir()
    (hub / ".cache").mkdir()
    with pytest.raises(OutputError, match=r"in place it would lose \.cache"):
        fold_file(hub, in_place=True)


def test_in_place_does_not_go_with_another_output(file: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"out": tmp_path / "x.pt"}, "and -o names"),
        ({"as_folder": True}, "--as-folder makes a folder"),
    ):
        given: dict[str, Any] = options
        with pytest.raises(ArgumentError, match=says) as caught:
            fold_file(file, in_place=True, **given)
        assert caught.value.fix == "leave one of the two out"


def test_the_cache_of_the_hub_is_not_written_to_in_place(tmp_path: Path) -> None:
    entry = tmp_path / "models--a--b"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "0123").mkdir(parents=True)
    safetensors.torch.save_file(state(), entry / "blobs" / "abc")
    (entry / "snapshots" / "0123" / "model.safetensors").symlink_to("../../blobs/abc")
    (tmp_path / "mine.safetensors").symlink_to(entry / "blobs" / "abc")
    before = (entry / "blobs" / "abc").read_bytes()
    for source in (
        tmp_path / "mine.safetensors",
        entry / "snapshots" / "0123" / "model.safetensors",
        entry / "snapshots" / "0123",
        entry / "blobs" / "abc",
        entry,
    ):
        with pytest.raises(ArgumentError, match="the cache of the hub, which is not written to"):
            fold_file(source, in_place=True)
    assert (entry / "blobs" / "abc").read_bytes() == before


def test_what_a_source_keeps_elsewhere_is_not_written_over(hub: Path) -> None:
    for out in (hub / "model.safetensors", hub / "new.safetensors"):
        with pytest.raises(OutputError, match="it lies in the source"):
            fold_file(hub, out, force=True)
    one = hub / "model.safetensors"
    with pytest.raises(OutputError, match="it is the source itself"):
        fold_file(one, one, force=True)
    assert fold_file(one, hub).output == hub / "model.folded.safetensors"  # a file goes into its own folder


# -- names that would say what is not so


def test_in_place_a_program_would_no_longer_be_one(tmp_path: Path) -> None:
    source = tmp_path / "program.pt2"
    source.write_bytes((FIXTURES / "program.pt2").read_bytes())
    with pytest.raises(ArgumentError, match=r"program\.pt2 would not be an exported program"):
        fold_file(source, in_place=True)
    assert source.read_bytes() == (FIXTURES / "program.pt2").read_bytes()
    plan = fold_file(source.rename(tmp_path / "program.pt"), in_place=True, dry_run=True)
    assert plan.notes[-1].endswith("its graph cannot be brought back")


def test_a_file_goes_into_a_folder_of_any_name_and_a_folder_is_not_called_as_a_file(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "keep.gguf").mkdir()
    assert fold_file(file, tmp_path / "keep.gguf").output == tmp_path / "keep.gguf" / "g_01.folded"
    with pytest.raises(ArgumentError, match=r"x\.gguf would not be a GGUF file, .* but a folder"):
        fold_file(file, tmp_path / "x.gguf", as_folder=True)
