"""Folders of torch.distributed.checkpoint, read as data: torch reads the same in them, and damage is told."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_saver import save

from tests.helpers.bad_files import pair
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner, refused
from tests.helpers.states import hold, load, output_of, same
from wnconvert import compare_files, fold_file, inspect_file, migrate_file, split_file
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.folder.written import MANIFEST

RANKS = FIXTURES / "distributed"
#: The keys of the module in it, as its ``state_dict`` has them; a rank lists those of the other ones last.
ORDER = [
    *("pre.bias", "pre.weight_g", "pre.weight_v"),
    *("mix.bias", "mix.weight_g", "mix.weight_v"),
    *("post.weight_g", "post.weight_v"),
]


def as_torch_has_it(folder: Path, out: Path) -> Any:
    dcp_to_torch_save(folder, out)
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The fixture of two ranks as torch puts it together, its keys in the order of the module."""
    found = as_torch_has_it(RANKS, tmp_path_factory.mktemp("torch") / "whole.pt")
    return {**found, "model": {name: found["model"][name] for name in ORDER}}


def distributed(tree: Mapping[str, Any], folder: Path, **options: Any) -> Path:
    """A folder that one process saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is distributed
        save(dict(tree), storage_writer=FileSystemWriter(folder / "in", **options), no_dist=True)
    return folder / "in"


def alike(one: Any, two: Any, *, ordered: bool = False) -> bool:
    """Whether two trees hold the same values; torch itself has lost the order of keys in a folder."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and same(one, two)
    if isinstance(one, Mapping):
        same_keys = [*one] == [*two] if ordered else {*one} == {*two}
        return isinstance(two, Mapping) and same_keys and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(alike(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def test_the_shards_of_two_ranks_are_folded_into_one_file(whole: Any, tmp_path: Path) -> None:
    result = fold_file(RANKS, tmp_path / "out.pt", verify=True)
    made = load(output_of(result))
    assert hold(whole["model"], made["model"]) == 3
    assert (made["epoch"], made["note"]) == (3, ["two", "ranks"])
    assert [item.path for item in result.plan.dropped] == ["optimizer"]


def test_all_that_torch_reads_in_a_folder_goes_into_one_file(whole: Any, tmp_path: Path) -> None:
    result = fold_file(RANKS, tmp_path / "out.pt", exclude=["*"], verify=True)
    made = load(output_of(result))
    assert alike(made, whole)
    assert list(made["model"]) == ORDER


def test_a_folder_goes_into_safetensors_and_into_a_folder_of_the_hub(whole: Any, tmp_path: Path) -> None:
    one = fold_file(RANKS, tmp_path / "out.safetensors", verify=True)
    several = fold_file(RANKS, f"{tmp_path}/hub/", max_shard_size=200, verify=True)
    assert len(several.plan.shards) > 1
    assert compare_files(output_of(one), output_of(several))
    assert hold(whole["model"], {**_safetensors(output_of(one))}) == 3
    assert not (output_of(several) / ".metadata").exists()


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from tests.helpers.states import state_dicts

    return state_dicts(path)[""]


def test_a_folder_without_o_becomes_a_folder_beside_it(run: Runner, tmp_path: Path) -> None:
    source = Path(shutil.copytree(RANKS, tmp_path / "step_100"))
    (source / "config.json").write_text("{}")
    assert run("fold", source).returncode == 0
    made = sorted(path.name for path in (tmp_path / "step_100.folded").iterdir())
    assert made == [MANIFEST, "config.json", "model.safetensors"]


def test_migrating_and_splitting_bring_back_the_same_bits(whole: Any, tmp_path: Path) -> None:
    there = migrate_file(RANKS, tmp_path / "there.pt")
    back = migrate_file(output_of(there), tmp_path / "back.pt", to="legacy")
    assert alike(load(output_of(back))["model"], whole["model"], ordered=True)
    folded = fold_file(RANKS, tmp_path / "folded.pt")
    assert compare_files(output_of(split_file(output_of(folded), tmp_path / "split.pt")), RANKS, rtol=1e-6)
    assert split_file(output_of(folded), tmp_path / "like.pt", like=RANKS).plan.layers


def test_a_folder_is_inspected_like_any_other(run: Runner, whole: Any) -> None:
    found = inspect_file(RANKS, full=True)
    assert found.container == "torch.distributed.checkpoint"
    assert [state.path for state in found.state_dicts] == ["model"]
    assert {item.path: item.kind for item in found.siblings}["optimizer"] == "optimizer"
    by_name = {layer.name: layer for layer in found.layers}
    for name in ("pre.weight", "mix.weight", "post.weight"):
        magnitude = by_name[name].g
        assert magnitude is not None
        assert np.isclose(magnitude.mean, float(whole["model"][f"{name}_g"].abs().mean()))
    assert run("inspect", RANKS).returncode == 0


def test_a_folder_holds_the_same_weights_as_the_file_that_it_is_made_of(tmp_path: Path) -> None:
    for name in ("do_02500000", "lightning.ckpt"):
        source = FIXTURES / name
        tree = {
            key: value
            for key, value in torch.load(source, weights_only=False).items()
            if isinstance(value, (dict, int))
        } if name.startswith("do") else {"state_dict": load_state(source)}  # fmt: skip
        folder = distributed(tree, tmp_path / name)
        assert compare_files(folder, source, only=() if name.startswith("do") else ["state_dict"])


def load_state(path: Path) -> dict[str, torch.Tensor]:
    from tests.helpers.states import state_dicts

    return state_dicts(path)["state_dict"]


DTYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.uint8, torch.bool),
)
TREES: dict[str, dict[str, Any]] = {
    "flat": {**pair(), "bias": torch.ones(4)},
    "dtypes": {
        **pair(),
        **{str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES},
    },
    "shapes": {
        **pair(), "number": torch.tensor(2.5), "empty": torch.empty(0, 3), "column": torch.arange(6.0)[::2],
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    },
    "values": {
        "model": pair(), "epoch": 3, "lr": [0.1, 0.2], "nothing": None,
        "names": {"a": {"b": ["x", ("y", 1)]}},
        "list": [{"a": torch.ones(2)}, {"a": torch.zeros(3)}], "": {"": torch.ones(1)},
    },
    "dots": {"a.b": {"c": torch.ones(2)}, "x": {"y.z": torch.zeros(3)}, **pair()},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}], ids=str)
def test_what_one_process_saves_comes_back_as_torch_reads_it(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = distributed(TREES[name], tmp_path, **options)
    fold_file(folder, tmp_path / "out.pt", exclude=["*"])
    made, wanted = load(tmp_path / "out.pt"), as_torch_has_it(folder, tmp_path / "torch.pt")
    assert {*made} == {*wanted}
    assert all(alike(made[key], wanted[key]) for key in wanted)
    assert len(fold_file(folder, tmp_path / "folded.pt", verify=True).plan.layers) == 1


def test_whole_tensors_are_read_where_they_lie() -> None:
    opened = open_checkpoint(RANKS)
    places = {name: tensor.storage.shard for name, tensor in opened.tree.state_dict("model").tensors.items()}
    assert len(opened.shards) == 2
    assert {name for name, shard in places.items() if shard >= 2} == {
        "pre.weight_g", "pre.weight_v", "mix.weight_v", "post.weight_v"
    }  # fmt: skip


# -- what is wrong with a folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RANKS, tmp_path / "step"))


def changed(folder: Path, change: Callable[[metadata.Metadata], object]) -> None:
    read = pickle.loads((folder / ".metadata").read_bytes())
    change(read)
    (folder / ".metadata").write_bytes(pickle.dumps(read))


def each_info(read: metadata.Metadata) -> Iterator[tuple[Any, Any]]:
    yield from read.storage_data.items()


def chunks_of(read: metadata.Metadata, name: str) -> list[metadata.ChunkStorageMetadata]:
    described = read.state_dict_metadata[name]
    assert isinstance(described, metadata.TensorStorageMetadata)
    return described.chunks


def overlap(read: metadata.Metadata) -> None:
    """Two chunks of three rows and four that begin at the same row."""
    first, second = chunks_of(read, "model.pre.weight_v")
    moved = torch.Size([3, 0, 0])
    index = next(
        index
        for index, _ in each_info(read)
        if (index.fqn, index.offset) == ("model.pre.weight_v", second.offsets)
    )
    read.storage_data[dataclasses.replace(index, offset=moved)] = read.storage_data[index]
    second.offsets = moved
    assert first.sizes[0] == 4


def rename(read: metadata.Metadata, path: str) -> None:
    for _, info in each_info(read):
        info.relative_path = info.relative_path.replace("__1_0.distcp", path)


def stretched(read: metadata.Metadata, **more: Any) -> None:
    described = read.state_dict_metadata["model.pre.weight_v"]
    for name, value in more.items():
        setattr(described, name, value)


def moved_to(offset: int) -> Callable[[metadata.Metadata], object]:
    """All that was saved begins at this byte of its file."""

    def move(read: metadata.Metadata) -> None:
        for _, info in each_info(read):
            info.offset = offset

    return move


def extended(read: metadata.Metadata) -> None:
    for _, info in each_info(read):
        info.transform_descriptors = ["zstd"]


CHANGES: dict[str, tuple[Callable[[metadata.Metadata], object], str]] = {
    "a chunk is missing": (lambda read: chunks_of(read, "model.pre.weight_v").pop(), "do not make a tensor"),
    "chunks overlap": (overlap, "do not make a tensor"),
    "a larger tensor": (lambda read: stretched(read, size=torch.Size([8, 4, 3])), "do not make a tensor"),
    "another rank": (lambda read: stretched(read, size=torch.Size([7, 12])), "do not make a tensor"),
    "no size": (lambda read: stretched(read, size="large"), "make no sense"),
    "no chunks": (lambda read: stretched(read, chunks=None), "do not make a tensor"),
    "no place": (lambda read: read.storage_data.clear(), "does not say where .* lies"),
    "nothing saved": (lambda read: setattr(read, "state_dict_metadata", 3), "does not say what was saved"),
    "swapped places": (moved_to(0), "something else in the place of"),
    "a place behind the end": (moved_to(1 << 40), "ends before"),
    "a negative place": (moved_to(-1), "where things lie"),
    "a file that is not there": (
        lambda read: rename(read, "__9_0.distcp"),
        "__9_0.distcp, which is not there",
    ),
    "a file outside": (lambda read: rename(read, "../outside.distcp"), "leaves"),
    "an extension": (extended, "through an extension"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_that_contradicts_itself_is_refused(
    name: str, copied: Path, run: Runner, tmp_path: Path
) -> None:
    (tmp_path / "outside.distcp").write_bytes((copied / "__1_0.distcp").read_bytes())
    change, says = CHANGES[name]
    changed(copied, change)
    refused(run, copied, says=says)


def test_a_folder_that_is_cut_short_is_refused(copied: Path, run: Runner) -> None:
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        content = (copied / name).read_bytes()
        for end in (0, 1, 100, len(content) // 2, len(content) - 1):
            (copied / name).write_bytes(content[:end])
            refused(run, copied, says="", fix="")
        (copied / name).write_bytes(content)
    assert run("fold", copied).returncode == 0


def test_a_part_alone_is_called_by_its_name(run: Runner, copied: Path, tmp_path: Path) -> None:
    for name in ("__0_0.distcp", ".metadata"):
        done = run("inspect", copied / name)
        assert "one file of a folder of torch.distributed.checkpoint" in done.stderr
        assert f"name {copied}" in done.stderr
    alone = shutil.copy(copied / "__0_0.distcp", tmp_path)
    assert "and its .metadata" in run("fold", alone).stderr


def test_a_folder_without_metadata_says_so(run: Runner, copied: Path) -> None:
    (copied / ".metadata").unlink()
    refused(run, copied, says="without its .metadata: __0_0.distcp, __1_0.distcp", fix="copy .metadata too")


def test_a_metadata_of_something_else_is_refused_and_not_run(
    run: Runner, copied: Path, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "was here"),)

    (copied / ".metadata").write_bytes(pickle.dumps(Evil()))
    refused(run, copied, says="not that of torch.distributed.checkpoint")
    assert not (tmp_path / "was here").exists()
