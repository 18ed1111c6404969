"""The verbs on folders: any tensor in any file, every other file as it is, the old folder or the new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards

from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.marks import some
from tests.helpers.runner import Runner
from tests.helpers.states import same
from tests.helpers.zoo import ROWS, Row, of
from wnconvert.errors import ArgumentError, FormatError, InputError, NumbersError, OutputError, VerifyError
from wnconvert.storage.folder.written import MANIFEST
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.verbs.comparison.compare import compare_files
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.conversion.targets import default_output
from wnconvert.verbs.conversion.verify.output import verify_copies
from wnconvert.verbs.inspection.inspect import inspect_file

INDEX = "model.safetensors.index.json"
OTHERS = {
    "config.json": b'{"model_type": "hifigan"}',
    "tokenizer/vocab.json": b"{}",
    "tokenizer/empty": b"",
    "big.bin": bytes(range(256)) * 12_000,
}
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """A HiFi-GAN, weight-normalized, halves of some of its layers far apart."""
    return safetensors.torch.load_file(FIXTURES / "hifigan.safetensors")


def save(folder: Path, state: Mapping[str, torch.Tensor], files: int, *, suffix: str = "safetensors") -> Path:
    """A folder of so many files as huggingface_hub lays it out, and others beside them."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    size = sum(tensor.nbytes for tensor in state.values())
    made = split_torch_state_dict_into_shards(
        dict(state), max_shard_size=size // files + 5000, filename_pattern=f"{stem}{{suffix}}.{suffix}"
    )
    folder.mkdir(parents=True)
    for name, names in made.filename_to_tensors.items():
        part = {key: state[key] for key in names}
        if suffix == "bin":
            torch.save(part, folder / name)
        else:
            safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
    if made.is_sharded:
        index = {"metadata": made.metadata | {"by": "hub"}, "weight_map": made.tensor_to_filename}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for name, content in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert len(made.filename_to_tensors) == files
    return folder


@pytest.fixture
def folder(tmp_path: Path, state: State) -> Path:
    made = save(tmp_path / "hifigan", state, 3)
    index = json.loads((made / INDEX).read_text())["weight_map"]
    halves = {index[f"{name}.original{at}"] for name in ["conv_pre.parametrizations.weight"] for at in (0, 1)}
    assert len(halves) <= 2
    return made


def loaded(folder: Path) -> State:
    """The tensors of a folder as safetensors or torch read them."""
    indices = list(folder.glob("*.index.json"))
    names = (
        sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        if indices
        else [
            path.name for path in folder.iterdir() if path.name in ("model.safetensors", "pytorch_model.bin")
        ]
    )
    state: State = {}
    for name in names:
        read = safetensors.torch.load_file if name.endswith(".safetensors") else torch.load
        part: State = read(folder / name)
        assert not state.keys() & part.keys()
        state |= part
    if indices:
        index = json.loads(indices[0].read_text())
        assert set(index["weight_map"]) == set(state)
    return state


def listing(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for the list of what wnconvert wrote."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def weights(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("model", "pytorch_model")))


def equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return set(left) == set(right) and all(same(left[name], right[name]) for name in left)


# -- reading


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_folder_is_what_its_files_are(tmp_path: Path, state: State, suffix: str, count: int) -> None:
    folder = save(tmp_path / "folder", state, count, suffix=suffix)
    assert compare_files(folder, FIXTURES / "hifigan.safetensors").identical == 156
    found = inspect_file(folder)
    assert (len(found.layers), len(found.files)) == (78, count)
    assert found.container == ("safetensors" if suffix == "safetensors" else "torch zip")
    assert found.devices == (() if suffix == "safetensors" else ("cpu",))
    if count > 1:
        (index,) = folder.glob("*.index.json")
        named = inspect_file(index)
        assert (named.layers, named.files) == (found.layers, found.files)


def test_halves_of_a_layer_in_two_files_are_a_layer(tmp_path: Path, state: State) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    parts: dict[str, State] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in state.items():
        parts["a.safetensors" if name.endswith("original0") else "b.safetensors"][name] = tensor
    for file, part in parts.items():
        safetensors.torch.save_file(part, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    fold_file(folder, tmp_path / "folded", verify=True)
    fold_file(FIXTURES / "hifigan.safetensors", tmp_path / "one.safetensors")
    assert equal(loaded(tmp_path / "folded"), safetensors.torch.load_file(tmp_path / "one.safetensors"))


def test_one_file_and_its_shards_give_the_same_plan_and_bytes(tmp_path: Path, state: State) -> None:
    # In the order of the header, in which safetensors itself writes.
    one = save(tmp_path / "one", state, 1)
    fold_file(one, tmp_path / "cut", max_shard_size="100KB")
    fold_file(one, tmp_path / "whole")
    fold_file(tmp_path / "cut", tmp_path / "joined", copy=True)
    assert (tmp_path / "joined" / "model.safetensors").read_bytes() == (
        (tmp_path / "whole" / "model.safetensors").read_bytes()
    )
    cut, whole = (migrate_file(tmp_path / name, dry_run=True) for name in ("cut", "whole"))
    assert cut.state_dicts == whole.state_dicts
    assert cut.record == whole.record


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, state: State, suffix: str) -> None:
    folder = save(tmp_path / "folder", state, 3, suffix=suffix)
    path = folder / weights(folder)[0]
    content = safetensors.torch.save({"x": torch.zeros(1)})
    path.write_bytes(content if suffix == "bin" else (FIXTURES / "gan.pt").read_bytes())
    with pytest.raises(FormatError, match="is not what its name says"):
        fold_file(folder)


@pytest.mark.parametrize("what", ["nested", "more", "index"])
def test_a_bin_that_is_no_plain_state_dict_is_refused(tmp_path: Path, state: State, what: str) -> None:
    folder = save(tmp_path / "folder", state, 3, suffix="bin")
    path = folder / "pytorch_model-00002-of-00003.bin"
    part = torch.load(path, weights_only=True)
    if what == "index":  # an index again, of which there is no end
        shutil.copy(folder / "pytorch_model.bin.index.json", path)
    else:
        torch.save({"state_dict": part} if what == "nested" else {**part, "epoch": 3}, path)
    with pytest.raises(InputError):
        inspect_file(folder)
    before = listing(folder)
    with pytest.raises(InputError):
        fold_file(folder)
    assert listing(folder) == before
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_what_shards_hold_is_held_against_the_index(tmp_path: Path, folder: Path, run: Runner) -> None:
    def changed(change: Callable[[dict[str, Any]], None]) -> str:
        made = tmp_path / "changed"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(folder, made)
        index = json.loads((made / INDEX).read_text())
        change(index)
        (made / INDEX).write_text(json.dumps(index))
        before = listing(made)
        ended = run("fold", made, "-o", tmp_path / "out")
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 2
        assert ended.stderr.splitlines()[1].startswith("fix: ")
        assert listing(made) == before
        assert {path.name for path in tmp_path.iterdir()} == {"changed", "hifigan"}
        return ended.stderr

    one, two = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    assert "lacks new, which the index" in changed(lambda index: index["weight_map"].update(new=one))
    assert "lacks conv_post.bias" in changed(
        lambda index: index["weight_map"].update({"conv_post.bias": two})
    )
    assert "which the index does not name" in changed(lambda index: index["weight_map"].pop("conv_post.bias"))
    assert "no weight_map" in changed(lambda index: index.pop("weight_map"))
    assert "which is not there" in changed(lambda index: index["weight_map"].update(new="x.safetensors"))
    assert "not a name in its folder" in changed(
        lambda index: index["weight_map"].update(new="../hifigan/model.safetensors")
    )
    assert "total_size" in changed(lambda index: index["metadata"].update(total_size="much"))


def test_a_tensor_in_two_files_is_refused(folder: Path, state: State) -> None:
    path = folder / "model-00003-of-00003.safetensors"
    part = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**part, "conv_post.bias": state["conv_post.bias"]}, path)
    with pytest.raises(FormatError, match="is in model-00001-of"):
        inspect_file(folder)


def test_a_damaged_shard_is_named(folder: Path, run: Runner) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    ended = run("fold", folder)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {path}: the safetensors library refuses it")


# -- writing


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("size", ["5GB", "100KB", "1B"])
def test_a_folder_is_folded_into_a_folder(tmp_path: Path, state: State, suffix: str, size: str) -> None:
    folder = save(tmp_path / "hifigan", state, 3, suffix=suffix)
    before = listing(folder)
    result = fold_file(folder, max_shard_size=size, verify=True)
    out = tmp_path / "hifigan.folded"
    assert result.output == out
    assert listing(folder) == before
    fold_file(FIXTURES / "hifigan.safetensors", tmp_path / "one.safetensors")
    assert equal(loaded(out), safetensors.torch.load_file(tmp_path / "one.safetensors"))
    assert {name: content for name, content in listing(out).items() if name in OTHERS} == OTHERS
    assert set(listing(out)) == {*OTHERS, *weights(out)}
    assert [shard.name for shard in result.plan.shards] == [
        name for name in weights(out) if "index" not in name
    ]
    assert (result.plan.index in weights(out)) == (size != "5GB")
    assert result.verified == (
        "the safetensors library" if suffix == "safetensors" else "torch.load(weights_only=True)"
    )
    assert result.bytes_out == sum(map(len, listing(out).values())) + (out / MANIFEST).stat().st_size
    assert compare_files(folder, out)


def test_the_index_is_complete_and_its_metadata_are_right(tmp_path: Path, folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["total_parameters"] = inspect_file(folder).parameters
    (folder / INDEX).write_text(json.dumps(index))
    fold_file(folder, tmp_path / "out", max_shard_size="100KB")
    made = json.loads((tmp_path / "out" / INDEX).read_text())
    tensors = loaded(tmp_path / "out")
    assert made["metadata"] == {
        "by": "hub",
        "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    for name in weights(tmp_path / "out")[:-1]:
        with safetensors.safe_open(tmp_path / "out" / name, "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert all(made["weight_map"][key] == name for key in file.keys())  # noqa: SIM118 - no mapping
            assert ("wnconvert" in file.metadata()) == (name == "model-00001-of-00003.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folded_folder_is_split_as_it_was(tmp_path: Path, state: State, suffix: str) -> None:
    folder = save(tmp_path / "hifigan", state, 3, suffix=suffix)
    fold_file(folder, tmp_path / "folded", max_shard_size="100KB")
    split_file(tmp_path / "folded", tmp_path / "split", max_shard_size="100KB", verify=True)
    assert set(loaded(tmp_path / "split")) == set(state)
    fold_file(tmp_path / "split", tmp_path / "again", max_shard_size="100KB")
    assert equal(loaded(tmp_path / "again"), loaded(tmp_path / "folded"))


def test_migrate_there_and_back_gives_the_same_bytes(tmp_path: Path, state: State) -> None:
    save(tmp_path / "hifigan", state, 3)
    migrate_file(tmp_path / "hifigan", tmp_path / "new", to="legacy", max_shard_size="100KB", verify=True)
    migrate_file(tmp_path / "new", tmp_path / "back", max_shard_size="100KB")
    assert equal(loaded(tmp_path / "back"), state)
    migrate_file(tmp_path / "back", tmp_path / "new2", to="legacy", max_shard_size="100KB")
    migrate_file(tmp_path / "new2", tmp_path / "back2", max_shard_size="100KB")
    assert listing(tmp_path / "new2") == listing(tmp_path / "new")
    assert listing(tmp_path / "back2") == listing(tmp_path / "back")


def test_a_folder_is_a_reference_of_a_split(tmp_path: Path, folder: Path) -> None:
    fold_file(folder, tmp_path / "plain.safetensors")
    plain = safetensors.torch.load_file(tmp_path / "plain.safetensors")
    safetensors.torch.save_file(plain, tmp_path / "bare.safetensors")
    for like in (folder, folder / INDEX):
        plan = split_file(tmp_path / "bare.safetensors", like=like, dry_run=True)
        assert len(plan.layers) == 78


@pytest.mark.parametrize("out", ["one.safetensors", "one.pt"])
def test_a_folder_goes_into_one_file_and_back(tmp_path: Path, folder: Path, out: str) -> None:
    result = fold_file(folder, tmp_path / out, verify=True)
    assert (result.plan.shards, result.plan.copied) == ((), ())
    fold_file(folder, tmp_path / "folder")
    back = fold_file(tmp_path / out, tmp_path / "back", as_folder=True, max_shard_size="100KB", verify=True)
    assert len(back.plan.shards) == 3
    assert equal(loaded(tmp_path / "back"), loaded(tmp_path / "folder"))
    assert set(listing(tmp_path / "back")) == set(weights(tmp_path / "back"))


def test_a_checkpoint_with_more_in_it_becomes_a_folder_of_its_generator(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "gan.pt", f"{tmp_path}/out/", only="generator", as_folder=True)
    assert result.plan.container == "safetensors"
    assert [shard.name for shard in result.plan.shards] == ["model.safetensors"]
    with pytest.raises(ArgumentError, match="holds one state dict"):
        fold_file(FIXTURES / "gan.pt", f"{tmp_path}/more/", as_folder=True)


def test_what_makes_a_folder(tmp_path: Path, folder: Path) -> None:
    def is_folder(source: Path, out: str, **options: Any) -> bool:
        return bool(fold_file(source, f"{tmp_path}/{out}", dry_run=True, **options).shards)

    one = FIXTURES / "hifigan.safetensors"
    (tmp_path / "there").mkdir()
    as_folder = {"as_folder": True}
    assert [is_folder(folder, out) for out in ("x", "x/", "model-v1.5", "x.pt/", "there")] == [True] * 5
    assert [is_folder(folder, out) for out in ("x.pt", "x.safetensors", "x.PTH")] == [False] * 3
    assert [is_folder(one, out, **as_folder) for out in ("x", "x/", "x.pt", "there")] == [True] * 4
    assert [is_folder(one, out) for out in ("x", "model-v1.5", "x.pt", "there", "there/")] == [False] * 5


def test_the_default_is_a_folder_beside_it(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (folder, folder / INDEX, f"{folder}/"):
        assert default_output(source, "folded") == tmp_path / "hifigan.folded"
    monkeypatch.chdir(folder)
    assert default_output(".", "split") == tmp_path / "hifigan.split"
    assert default_output(INDEX, "split") == tmp_path / "hifigan.split"
    monkeypatch.chdir(folder / "tokenizer")
    assert default_output("..", "legacy") == tmp_path / "hifigan.legacy"
    monkeypatch.chdir(tmp_path)
    assert default_output("hifigan", "folded") == Path("hifigan.folded")
    assert fold_file("hifigan/").output == Path("hifigan.folded")


def test_a_snapshot_of_the_hubs_cache_is_read_and_never_written_beside(tmp_path: Path, folder: Path) -> None:
    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123abcd"
    for at, name in enumerate(listing(folder)):
        (cache / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / name).rename(cache / "blobs" / str(at))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(cache / "blobs" / str(at), (snapshot / name).parent))
    with pytest.raises(ArgumentError, match="in the cache of the hub") as caught:
        fold_file(snapshot)
    assert caught.value.fix == "-o FOLDER"
    with pytest.raises(ArgumentError, match="in the cache of the hub") as caught:
        fold_file(snapshot / "model-00001-of-00003.safetensors")
    assert caught.value.fix == "-o FILE"
    migrate_file(snapshot, tmp_path / "out", to="legacy")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert {name: content for name, content in listing(tmp_path / "out").items() if name in OTHERS} == OTHERS
    assert compare_files(tmp_path / "out", FIXTURES / "hifigan.safetensors")


def test_a_folder_of_snapshots_that_is_no_cache_of_the_hub_is_like_any_other(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "snapshots").mkdir()
    folder.rename(tmp_path / "snapshots" / "epoch_3")
    assert fold_file(tmp_path / "snapshots" / "epoch_3").output == tmp_path / "snapshots" / "epoch_3.folded"


def test_names_that_are_no_text_go_along(tmp_path: Path, folder: Path, run: Runner) -> None:
    name = os.fsdecode(b"\xff\x1b[2J.txt")
    (folder / name).write_bytes(b"x")
    ended = run("fold", folder, "-o", tmp_path / "out")
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout
    assert (tmp_path / "out" / name).read_bytes() == b"x"
    assert json.loads(run("fold", folder, "--json").stdout)["copied"][-1] == "tokenizer/vocab.json"


def test_modes_links_and_empty_folders_go_along(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").chmod(0o600)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "empty").mkdir(0o500)
    (folder / "again").symlink_to("tokenizer")
    (folder / "settings.json").symlink_to("config.json")
    fold_file(folder, tmp_path / "out", verify=True)
    out = tmp_path / "out"
    assert stat.S_IMODE((out / "config.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "empty").stat().st_mode) == 0o700
    assert (out / "again").readlink() == Path("tokenizer")
    assert (out / "settings.json").read_bytes() == OTHERS["config.json"]
    assert not (out / "settings.json").is_symlink()


def test_what_does_not_go_along_is_said(tmp_path: Path, folder: Path, run: Runner) -> None:
    (folder / ".git").mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"others")
    ended = run("fold", folder / INDEX, "-o", tmp_path / "out")
    assert ended.returncode == 0
    assert "left out: pytorch_model.bin: other weights, which were not read\n" in ended.stdout
    assert "left out: .git: it describes the folder as it was\n" in ended.stdout
    assert not {".git", "pytorch_model.bin"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_names_on_one_storage_stay_so_in_bin_files(tmp_path: Path) -> None:
    shared = torch.randn(64, 64)
    state = {"a.weight": shared, "x.weight_g": torch.rand(8, 1) + 1, "x.weight_v": torch.randn(8, 64)}
    state |= {"b.weight": shared, "c.weight": torch.randn(64, 64)}
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    fold_file(folder, tmp_path / "out", max_shard_size="19KB", verify=True)
    first = torch.load(tmp_path / "out" / "pytorch_model-00001-of-00002.bin", weights_only=True)
    assert list(first) == ["a.weight", "b.weight", "x.weight"]
    assert first["a.weight"].data_ptr() == first["b.weight"].data_ptr()
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * 64 * 64 * 4 + 8 * 64 * 4


def test_a_bin_of_one_file_keeps_what_torch_knows_of_its_modules(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(torch.nn.BatchNorm1d(3).state_dict(), folder / "pytorch_model.bin")
    fold_file(folder, tmp_path / "out", copy=True)
    back: Any = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=False)
    kept: Any = torch.nn.BatchNorm1d(3).state_dict()
    assert back._metadata == kept._metadata
    plan = fold_file(folder, tmp_path / "cut", max_shard_size="12B", dry_run=True)
    assert [item.path for item in plan.dropped] == ["_metadata"]
    fold_file(folder, tmp_path / "cut", max_shard_size="12B", verify=True)
    assert [item.path for item in fold_file(tmp_path / "cut", dry_run=True).dropped] == []


# -- errors, before anything is written


def test_an_output_that_exists_or_is_none_of_ours_is_refused(tmp_path: Path, folder: Path) -> None:
    fold_file(folder, tmp_path / "out")
    before = listing(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "model.safetensors").write_text("x")
    for out, force, says in (
        ("out", False, "it exists"),
        ("mine", False, "it holds what no conversion wrote: thesis.tex"),
        ("mine", True, "it holds what no conversion wrote: thesis.tex"),
        ("repo", True, "it is a git repository"),
        ("hifigan", True, "it is the source itself"),
        ("hifigan/tokenizer", True, "it lies in the source"),
        ("hifigan/new", False, "it lies in the source"),
        ("hifigan/new.safetensors", False, "it lies in the source"),
        ("hifigan/../hifigan/x/", False, "it lies in the source"),
        (".", True, "the source lies in it"),
        ("no/out", False, "does not exist"),
        ("out/config.json/x", False, "is not a folder"),
    ):
        with pytest.raises(OutputError, match=says) as caught:
            fold_file(folder, f"{tmp_path}/{out}", force=force)
        assert caught.value.fix
        assert caught.value.where
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OutputError, match="it is the source itself"):
        fold_file(folder, tmp_path / "link", force=True)
    after = {name: content for name, content in listing(tmp_path).items() if name.split("/")[0] in before}
    assert {**before, **after} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hifigan", "link", "mine", "out", "repo"]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="it is not a folder"):
        fold_file(folder, tmp_path / "file", force=True)
    with pytest.raises(OutputError, match="it is not a folder"):
        fold_file(FIXTURES / "hifigan.safetensors", f"{tmp_path}/file/")
    with pytest.raises(OutputError, match="it is not a folder"):
        fold_file(FIXTURES / "hifigan.safetensors", tmp_path / "file", as_folder=True)


def test_with_force_a_folder_is_replaced_whole(tmp_path: Path, folder: Path) -> None:
    fold_file(folder, tmp_path / "out", max_shard_size="20KB")
    (tmp_path / "empty").mkdir()
    for out in ("out", "empty"):
        fold_file(folder, tmp_path / out, force=True)
        assert set(listing(tmp_path / out)) == {*OTHERS, "model.safetensors"}


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_folder_that_is_worked_or_lived_in_or_compared_with_is_not_replaced(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    out, flat = tmp_path / "out", tmp_path / "flat.safetensors"
    fold_file(folder, out)
    (out / "below").mkdir()
    fold_file(folder, flat)
    like = out / inside / "like.safetensors"
    migrate_file(folder, like, to="legacy")
    before = listing(out)
    with pytest.raises(OutputError, match="--like lies in it"):
        split_file(flat, out, like=like, as_folder=True, force=True)
    with monkeypatch.context() as there:
        there.setenv("HOME", str(out / inside))
        with pytest.raises(OutputError, match="your home lies in it"):
            fold_file(folder, out, force=True)
    with monkeypatch.context() as there:
        there.chdir(out / inside)
        with pytest.raises(OutputError, match="the folder that you are in lies in it"):
            fold_file(folder, out, force=True)
    assert listing(out) == before
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    like = like.rename(tmp_path / "like.safetensors")
    split_file(flat, out, like=like, as_folder=True, force=True)
    assert set(listing(out)) == {"model.safetensors"}


def test_an_index_of_any_name_is_a_folder_and_does_not_go_along(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors.index.json").rename(folder / "mine.json")
    fold_file(folder / "mine.json")
    assert set(listing(tmp_path / "hifigan.folded")) == {*OTHERS, "model.safetensors"}


@pytest.mark.parametrize("size", ["", "5XB", "0", -1, "9" * 5000, "9" * 400 + ".5", "0." + "0" * 400 + "1"])
def test_what_is_no_size_is_refused(folder: Path, size: str | int) -> None:
    with pytest.raises(ArgumentError, match="is not a size for a shard"):
        fold_file(folder, max_shard_size=size)


def test_a_size_for_one_file_is_refused(tmp_path: Path, folder: Path) -> None:
    for source in (folder, FIXTURES / "hifigan.safetensors", FIXTURES / "tcn.onnx"):
        with pytest.raises(ArgumentError, match="--max-shard-size cuts the weights of a folder"):
            fold_file(source, tmp_path / f"x{source.suffix or '.pt'}", max_shard_size="1GB")


def test_an_onnx_model_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="an ONNX model is a file") as caught:
        fold_file(FIXTURES / "tcn.onnx", f"{tmp_path}/out/", as_folder=True)
    assert caught.value.fix == "-o OUT.onnx"
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_called_as_what_is_written_is_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").mkdir()
    with pytest.raises(OutputError, match="would be written, and lies in the folder"):
        fold_file(folder, tmp_path / "out")


def test_bad_numbers_in_every_file_are_told_at_once_and_nothing_is_left(tmp_path: Path, state: State) -> None:
    bad = dict(state)
    for name in ("conv_pre", "ups.3"):
        key = f"{name}.parametrizations.weight.original1"
        bad[key] = torch.zeros_like(state[key])
    folder = save(tmp_path / "hifigan", bad, 3)
    with pytest.raises(NumbersError) as caught:
        fold_file(folder, max_shard_size="50KB")
    assert "conv_pre.weight" in str(caught.value)
    assert "ups.3.weight" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


def test_a_copy_that_is_wrong_is_found_by_verify(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Source.fill

    def wrong(self: Source, buffer: memoryview, at: int, shard: int = 0) -> None:
        fill(self, buffer, at, shard)
        if len(buffer) == len(OTHERS["config.json"]):
            buffer[3] ^= 1

    monkeypatch.setattr(Source, "fill", wrong)
    monkeypatch.delattr("os.copy_file_range", raising=False)
    with pytest.raises(VerifyError, match=r"the copy of .* differs from it"):
        fold_file(folder, tmp_path / "out", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


# -- progress, and what is said


@pytest.mark.parametrize("verify", [False, True])
def test_progress_counts_every_byte_once_and_knows_the_end_from_the_start(
    tmp_path: Path, folder: Path, *, verify: bool
) -> None:
    calls: list[tuple[int, int]] = []
    fold_file(
        folder,
        tmp_path / "out",
        max_shard_size="100KB",
        verify=verify,
        progress=lambda done, total: calls.append((done, total)),
    )
    tensors = sum(tensor.nbytes for tensor in loaded(tmp_path / "out").values())
    every = (tensors + sum(map(len, OTHERS.values()))) * (2 if verify else 1)
    assert {total for _, total in calls} == {every}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == every


def test_inspection_shows_its_progress(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    inspect_file(folder, full=True, progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert all(done <= total for done, total in calls)
    assert calls[-1][0] > 200_000


def test_inspection_reads_little_but_names_and_magnitudes(folder: Path) -> None:
    calls: list[int] = []
    found = inspect_file(folder, progress=lambda done, total: calls.append(done))
    g = sum(4 * layer.rows for layer in found.layers)
    assert calls[-1] == g


def test_a_dry_run_says_the_files_and_writes_none(tmp_path: Path, folder: Path, run: Runner) -> None:
    ended = run("fold", folder, "--dry-run", "--max-shard-size", "100KB")
    assert ended.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]
    assert "  model-00001-of-00003.safetensors: 19 tensors, 98.0 kB\n" in ended.stdout
    assert f"  {INDEX}\n" in ended.stdout
    assert "copied as they are: big.bin, config.json, tokenizer/empty, tokenizer/vocab.json\n" in ended.stdout
    plan = json.loads(run("fold", folder, "--dry-run", "--json", "--max-shard-size", "100KB").stdout)
    done = json.loads(run("fold", folder, "--json", "--max-shard-size", "100KB").stdout)
    assert [shard["name"] for shard in plan["shards"]] == weights(tmp_path / "hifigan.folded")[:-1]
    assert plan["copied"] == sorted(OTHERS)
    assert {key: done[key] for key in plan} == plan
    many = run("fold", folder, "--dry-run", "--max-shard-size", "1KB").stdout
    assert " more\n" in many


# -- the end of the process


@pytest.mark.alone
@some("how", {"one step": "one step", "two": "two"}, ["two"])
def test_a_fold_that_is_killed_leaves_the_old_folder_or_the_new_one(tmp_path: Path, how: str) -> None:
    state = {"a.weight_g": torch.ones(8, 1), "a.weight_v": torch.randn(8, 64), "b.weight": torch.ones(8, 64)}
    folder = tmp_path / "source"
    folder.mkdir()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "tokens").write_bytes(b"new")
    (folder / "again").symlink_to("sub")
    (tmp_path / "beside").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kill_folders", folder, tmp_path / "beside" / "out", how],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a process with threads should not fork
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    states = Counter(state for _, _, state, _ in told)
    assert set(states) == ({"before", "new"} if how == "one step" else {"before", "new", "aside"})
    at_calls = Counter(state for how, _, state, _ in told if how == "killed_at_each_call")
    assert at_calls["aside"] <= 2  # the moment between two renames, which a kill after a while may meet too
    assert Counter(how for how, killed, _, _ in told if killed)["killed_at_each_call"] > 60
    assert all(len(others) <= (2 if state == "aside" else 1) for _, _, state, others in told)
    names = {name for _, _, _, others in told for name in others}
    assert all(name.startswith("out.wnconvert-") and name.endswith(".tmp") for name in names)
    assert all(state == "new" and not others for _, killed, state, others in told if not killed)


@pytest.mark.parametrize("what", ["config.json", "model-00003-of-00003.safetensors"])
def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path, folder: Path, what: str) -> None:
    with pytest.raises((InputError, OutputError)) as caught:
        fold_file(folder, tmp_path / "out", progress=lambda done, total: os.truncate(folder / what, 1))
    assert what in caught.value.where
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


def test_a_file_that_vanishes_before_it_is_copied_is_an_error(tmp_path: Path, folder: Path) -> None:
    def vanish(_done: int, _total: int) -> None:
        (folder / "config.json").unlink(missing_ok=True)

    with pytest.raises(InputError, match="it changed while it was read: it is gone"):
        fold_file(folder, tmp_path / "out", progress=vanish)
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


def test_a_file_that_grows_while_it_is_copied_is_an_error(tmp_path: Path, folder: Path) -> None:
    def grow(_done: int, _total: int) -> None:
        with (folder / "config.json").open("ab") as file:
            file.write(b"more")

    with pytest.raises(InputError, match="it changed while it was read: it became longer") as caught:
        fold_file(folder, tmp_path / "out", progress=grow)
    assert caught.value.where == str(folder / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path, folder: Path) -> None:
    def replace(_done: int, _total: int) -> None:
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")

    with pytest.raises((InputError, OutputError)):
        fold_file(folder, tmp_path / "out", progress=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


def test_a_file_that_vanishes_before_its_copy_is_read_back_is_an_error(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "copy").touch()
    with pytest.raises(InputError, match="cannot be read"):
        verify_copies(folder, tmp_path, {"copy": 0}, Workers(2))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_that_differs_is_found_wherever_and_an_equal_one_is_counted(
    tmp_path: Path, threads: int
) -> None:
    contents = {"a": b"", "b": b"x" * 10, "c": bytes(range(256)) * 9000}
    sizes = {name: len(content) for name, content in contents.items()}
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    ticks: list[int] = []
    workers = Workers(threads, lambda done, total: ticks.append(done))
    verify_copies(old, new, sizes, workers)
    assert ticks[-1] == sum(sizes.values())
    spoilt = {"a": [b"y"], "b": [b"x" * 9, b"x" * 11, b"x" * 9 + b"y"], "c": [contents["c"][:-1] + b"y"]}
    for name, wrong in spoilt.items():
        for content in wrong:
            (new / name).write_bytes(content)
            with pytest.raises(VerifyError, match=f"the copy of {name} differs"):
                verify_copies(old, new, sizes, Workers(threads))
        (new / name).write_bytes(contents[name])
    verify_copies(old, new, sizes, Workers(threads))


def test_a_file_larger_than_the_limit_of_the_process_is_refused(tmp_path: Path, folder: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n{SLOW}"
    done = subprocess.run(
        [sys.executable, "-c", limit, "fold", folder, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hifigan"]


SLOW = """
import sys, time
from wnconvert.storage.stores import filling
from wnconvert.cli import main
write = filling.write_at
filling.write_at = lambda *given: time.sleep(1) or write(*given)
sys.argv[0] = "wnconvert"
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fold_that_is_interrupted_ends_with_130_and_cleans_up(
    tmp_path: Path, folder: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    fold_file(folder, out)
    before = listing(out)
    command = [sys.executable, "-c", SLOW, "fold", str(folder), "-o", str(out), "--force"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.iterdir())) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.2)
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert listing(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hifigan", "out"]


# -- transformers


def sharded_model(row: Row, form: str, folder: Path, files: int = 3) -> Any:
    """A real model, saved by transformers in so many files."""
    model: Any = row.normed(form)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    for part in range(size // files, size):
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size=part)
        if len(list(folder.glob("model-*.safetensors"))) == files:
            return model
    raise AssertionError("no size gives so many files")


def in_three(verb: Callable[..., Any], source: Path, out: Path, **options: Any) -> None:
    """Convert a folder into one with three shards."""
    total = inspect_file(source).state_dicts[0].bytes
    for size in range(total // 4, total, total // 200):
        plan = verb(source, out, max_shard_size=size, dry_run=True, **options)
        if len(plan.shards) == 3:
            break
    verb(source, out, max_shard_size=size, verify=True, **options)
    assert len(list(out.glob("model-*-of-00003.safetensors"))) == 3


@pytest.fixture
def quiet() -> Iterator[None]:
    of("logging").disable_progress_bar()
    yield
    of("logging").enable_progress_bar()


def from_pretrained(model: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    made, report = type(model).from_pretrained(folder, output_loading_info=True)
    return made, {what: keys for what, keys in report.items() if keys}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ["Wav2Vec2Model", "SpeechT5HifiGan"])
def test_transformers_loads_a_folder_with_no_missing_or_unexpected_keys(tmp_path: Path, name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    model = sharded_model(row, "parametrize", tmp_path / "saved")
    plain = name == "SpeechT5HifiGan"  # whose class has plain weights until apply_weight_norm()
    in_three(fold_file, tmp_path / "saved", tmp_path / "folded")
    in_three(split_file, tmp_path / "folded", tmp_path / "split")
    in_three(migrate_file, tmp_path / "saved", tmp_path / "old", to="legacy")
    in_three(migrate_file, tmp_path / "old", tmp_path / "migrated")
    for folder in ("folded",) if plain else ("split", "migrated"):
        made, wrong = from_pretrained(model, tmp_path / folder)
        assert wrong == {}
        for left, right in zip(row.outputs(made.eval()), row.outputs(model), strict=True):
            assert torch.allclose(left, right, atol=1e-5)
    for folder in ("split", "migrated") if plain else ("folded",):  # the test can fail
        assert from_pretrained(model, tmp_path / folder)[1]


def test_one_file_of_several_is_taken_alone_and_it_is_said(tmp_path: Path, state: State) -> None:
    folder = save(tmp_path / "sharded", state, 3)
    part = next(path for path in sorted(folder.iterdir()) if "00001-of" in path.name)
    said = f"it is one of the files of a checkpoint, and layers may lie across them: name {folder}"
    plan = fold_file(part, tmp_path / "out.safetensors", dry_run=True)
    assert said in plan.notes
    assert said in inspect_file(part).notes
    assert not any("one of the files" in note for note in inspect_file(folder).notes)
    (folder / INDEX).unlink()
    assert said not in inspect_file(part).notes
