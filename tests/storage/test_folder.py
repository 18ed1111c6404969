"""What lies in a folder is input like any other: nothing in it leads out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from wnconvert.errors import FormatError, InputError
from wnconvert.storage.folder.beside import File, find_beside
from wnconvert.storage.folder.links import cache_of
from wnconvert.storage.folder.weights import find_weights, has_weights
from wnconvert.storage.shards import Naming

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index_of(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"{at}.weight": file for at, file in enumerate(files)}}).encode()


def fill(folder: Path, *names: str, **contents: bytes) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents.get(name, name.encode()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, their index, and what lies beside them."""
    made = fill(tmp_path / "folder", ONE, TWO, "config.json", "README.md", "voices/a/one.pt", "voices/b.bin")
    (made / INDEX).write_bytes(index_of(TWO, ONE))
    return made


# -- the weights


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("model.safetensors", Naming("model", "safetensors")),
        ("pytorch_model.bin", Naming("pytorch_model", "bin")),
        ("diffusion_pytorch_model.safetensors", Naming("diffusion_pytorch_model", "safetensors")),
        ("diffusion_pytorch_model.bin", Naming("diffusion_pytorch_model", "bin")),
        ("adapter_model.safetensors", Naming("adapter_model", "safetensors")),
        ("model.fp16.safetensors", Naming("model", "safetensors", "fp16")),
    ],
)
def test_one_file_is_the_weights_by_its_name(tmp_path: Path, name: str, naming: Naming) -> None:
    found = find_weights(fill(tmp_path, name, "config.json", "training_args.bin", "optimizer.pt"))
    assert (found.files, found.naming, found.index, found.others) == ((name,), naming, None, ())


def test_an_index_names_the_weights(folder: Path) -> None:
    found = find_weights(folder)
    assert found.files == (ONE, TWO)
    assert found.naming == Naming("model", "safetensors")
    assert found.index is not None
    assert found.weights == {ONE, TWO, INDEX}


def test_an_index_of_a_variant_is_one(tmp_path: Path) -> None:
    fill(tmp_path, "model.fp16-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.fp16.json").write_bytes(
        index_of("model.fp16-00001-of-00001.safetensors")
    )
    assert find_weights(tmp_path).naming == Naming("model", "safetensors", "fp16")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("model.safetensors", "pytorch_model.bin"), "more than once: model.safetensors, pytorch_model.bin"),
        ((INDEX, "model.safetensors"), f"more than once: model.safetensors, {INDEX}"),
        ((INDEX, "pytorch_model.bin.index.json"), f"more than once: {INDEX}, pytorch_model.bin.index.json"),
        (("model.safetensors", "model.fp16.safetensors"), "more than once: model.fp16"),
    ],
)
def test_weights_that_are_there_more_than_once_are_named(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        find_weights(fill(tmp_path, *names))
    assert caught.value.fix.startswith(f"name one of them: {tmp_path}{os.sep}")


def test_the_one_of_several_that_is_named_is_taken_and_the_others_are_left(folder: Path) -> None:
    fill(folder, "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.fp16.safetensors")
    found = find_weights(folder, INDEX)
    assert found.files == (ONE, TWO)
    assert found.others == ("model.fp16.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin")
    assert find_beside(found).left_out == found.others


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "with none of model.safetensors, pytorch_model.bin, "),
        (("config.json", "model.bin"), "in it, but model.bin"),
        (("generator.safetensors", "x.pt"), "in it, but generator.safetensors, x.pt"),
        ((ONE, TWO), "but without their index"),
    ],
)
def test_a_folder_without_weights_says_what_was_looked_for(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        find_weights(fill(tmp_path, *names))
    assert caught.value.fix


def test_folders_that_are_called_as_weights_are_none(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert find_weights(fill(tmp_path, "pytorch_model.bin")).files == ("pytorch_model.bin",)


def test_an_index_of_any_name_can_be_named(folder: Path) -> None:
    (folder / INDEX).rename(folder / "mine.json")
    found = find_weights(folder, "mine.json")
    assert (found.files, found.naming) == ((ONE, TWO), Naming("model", "safetensors"))


def test_an_index_that_is_called_as_weights_is_an_index_where_it_is_named(folder: Path) -> None:
    (folder / INDEX).rename(folder / "model.safetensors")
    assert find_weights(folder, "model.safetensors").files == (ONE, TWO)


@pytest.mark.parametrize("name", [INDEX, "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_an_index_that_is_no_file_is_refused_and_not_waited_for(folder: Path, name: str, kind: str) -> None:
    (folder / INDEX).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("nothing")
    with pytest.raises(FormatError, match=f"{name} is not a regular file"):
        find_weights(folder)


@pytest.mark.parametrize("to", ["", "nothing", TWO])
def test_a_shard_that_is_missing_is_named(folder: Path, to: str) -> None:
    (folder / TWO).unlink()
    if to:
        (folder / TWO).symlink_to(to)
    with pytest.raises(FormatError, match=f"names {TWO}, which is not there"):
        find_weights(folder)


@pytest.mark.parametrize("name", ["model-00003-of-00003.safetensors", "model-00001-of-00001.safetensors"])
def test_a_shard_that_the_index_forgets_is_named(folder: Path, name: str) -> None:
    with pytest.raises(FormatError, match=f"{name} lies there too, which the index does not name"):
        find_weights(fill(folder, name))


def test_a_shard_beside_the_one_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"{ONE} lies there too, which is not part of model.safetensors"):
        find_weights(fill(tmp_path, "model.safetensors", ONE))


@pytest.mark.parametrize("text", [b"", b"[]", index_of("../x.safetensors"), b" " * (33 << 20)])
def test_an_index_that_makes_no_sense_is_refused(folder: Path, text: bytes) -> None:
    (folder / INDEX).write_bytes(text)
    with pytest.raises(FormatError):
        find_weights(folder)


def test_whether_weights_are_there_is_told_by_names(folder: Path, tmp_path: Path) -> None:
    assert has_weights(folder)
    (folder / INDEX).unlink()
    assert has_weights(folder)  # shards without their index
    assert not has_weights(folder / "voices")
    assert not has_weights(tmp_path)


# -- links


@pytest.mark.parametrize("name", [ONE, INDEX, "config.json", "voices/a/one.pt"])
@pytest.mark.parametrize("to", ["absolute", "relative"])
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, name: str, to: str) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(
        outside if to == "absolute" else os.path.relpath(outside, (folder / name).parent)
    )
    with pytest.raises(FormatError, match=f"{name} is a link that leaves the folder") as caught:
        find_beside(find_weights(folder))
    assert str(outside) in caught.value.what


def test_a_link_that_stays_in_the_folder_is_followed(folder: Path) -> None:
    (folder / "stored").mkdir()
    for name in (ONE, "config.json"):
        (folder / name).rename(folder / "stored" / name)
        (folder / name).symlink_to(folder / "stored" / name)
    found = find_weights(folder)
    assert found.files == (ONE, TWO)
    files = {file.path: file.size for file in find_beside(found).files}
    assert files["config.json"] == files["stored/config.json"] == len("config.json")


def test_a_folder_that_is_itself_a_link_is_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    found = find_weights(tmp_path / "link")
    assert len(find_beside(found).files) == 4


@pytest.fixture
def snapshot(folder: Path, tmp_path: Path) -> Path:
    """The folder as the hub's cache has it: every file a link to a blob."""
    cache = tmp_path / "hub" / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    made = cache / "snapshots" / "0123abcd"
    for at, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        (cache / "blobs" / str(at)).write_bytes(path.read_bytes())
        link = made / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / str(at), link.parent))
    return made


def test_a_snapshot_of_the_hubs_cache_is_a_folder(snapshot: Path) -> None:
    found = find_weights(snapshot)
    assert found.files == (ONE, TWO)
    paths = [file.path for file in find_beside(found).files]
    assert paths == ["README.md", "config.json", "voices/b.bin", "voices/a/one.pt"]
    assert find_weights(snapshot, INDEX).files == (ONE, TWO)


def test_a_snapshot_may_link_to_its_own_blobs_alone(snapshot: Path) -> None:
    other = snapshot.parents[2] / "models--c--d" / "blobs"
    for place in (other, snapshot.parents[1] / "refs", snapshot.parent / "other"):
        fill(place, "config.json")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(place / "config.json")
        with pytest.raises(FormatError, match="leaves the folder"):
            find_beside(find_weights(snapshot))


def test_blobs_are_nothing_special_elsewhere(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "blobs", "config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../blobs/config.json")
    with pytest.raises(FormatError, match="leaves the folder"):
        find_beside(find_weights(folder))
    assert cache_of(folder) is None


# -- what lies beside


def test_all_else_lies_beside_with_its_size_and_mode(folder: Path) -> None:
    (folder / "voices" / "b.bin").chmod(0o640)
    (folder / "config.json").chmod(0o444)
    (folder / "voices").chmod(0o750)
    (folder / "empty").mkdir(0o700)
    beside = find_beside(find_weights(folder))
    assert {file.path: file.size for file in beside.files} == {
        name: len(name) for name in ("README.md", "config.json", "voices/b.bin", "voices/a/one.pt")
    }
    assert File("voices/b.bin", 12, 0o640) in beside.files
    assert File("config.json", 11, 0o444) in beside.files
    modes: Mapping[str, int] = dict(beside.folders)
    assert list(modes) == ["empty", "voices", "voices/a"]
    assert (modes["empty"], modes["voices"]) == (0o700, 0o750)
    assert (beside.links, beside.left_out) == ((), ())


def test_what_is_called_as_weights_in_a_folder_below_lies_beside(folder: Path) -> None:
    fill(folder, "vae/model.safetensors", f"vae/{ONE}", f"vae/{INDEX}")
    paths = {file.path for file in find_beside(find_weights(folder)).files}
    assert {"vae/model.safetensors", f"vae/{ONE}", f"vae/{INDEX}"} <= paths


def test_version_control_and_the_hubs_own_notes_are_left_out(folder: Path) -> None:
    fill(folder, ".git/lfs/objects/ab", ".cache/huggingface/x.metadata", ".gitattributes", "sub/.cache/x")
    beside = find_beside(find_weights(folder))
    assert beside.left_out == (".git", ".cache")
    paths = {file.path for file in beside.files}
    assert ".gitattributes" in paths
    assert "sub/.cache/x" in paths
    assert not any(path.startswith((".git/", ".cache/")) for path in paths)


def test_a_work_tree_whose_git_is_a_file_is_left_without_it(folder: Path) -> None:
    assert find_beside(find_weights(fill(folder, ".git"))).left_out == (".git",)


def test_a_link_to_a_folder_inside_says_the_same_elsewhere(folder: Path) -> None:
    (folder / "again").symlink_to(folder / "voices" / "a")
    (folder / "voices" / "up").symlink_to("..")
    beside = find_beside(find_weights(folder))
    assert beside.links == (("again", "voices/a"), ("voices/up", ".."))
    assert not any(file.path.startswith("again/") for file in beside.files)


def test_a_link_to_a_folder_outside_is_refused(folder: Path, snapshot: Path) -> None:
    for made in (folder, snapshot):
        (made / "away").symlink_to(made.parents[1])
        with pytest.raises(FormatError, match="away is a link that leaves the folder"):
            find_beside(find_weights(made))
    (snapshot / "away").unlink()
    (snapshot / "away").symlink_to("../../blobs")
    with pytest.raises(FormatError, match="away is a link that leaves the folder"):
        find_beside(find_weights(snapshot))


def test_a_link_to_nothing_and_what_is_no_file_are_refused(folder: Path) -> None:
    (folder / "gone").symlink_to("not there")
    with pytest.raises(InputError, match="gone cannot be read"):
        find_beside(find_weights(folder))
    (folder / "gone").unlink()
    (folder / "round").symlink_to("round")
    with pytest.raises(InputError, match="round cannot be read"):
        find_beside(find_weights(folder))
    (folder / "round").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="pipe is not a regular file"):
        find_beside(find_weights(folder))
