"""Folders as they lie about: pipelines of several models, the hub's cache, a checkpoint in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import legacy
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from wnconvert import (
    ArgumentError,
    FormatError,
    InputError,
    NumbersError,
    OutputError,
    compare_files,
    fold_file,
    inspect_file,
    migrate_file,
    split_file,
)
from wnconvert.storage.folder.written import MANIFEST

VAE = "vae/diffusion_pytorch_model.safetensors"
State = dict[str, torch.Tensor]


def normed(*sizes: int) -> State:
    return dict(nn.Sequential(*(legacy(nn.Conv1d(size, 4, 3)) for size in sizes)).state_dict())


def save(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path, {"format": "pt"})


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipeline as diffusers saves it: a decoder and a vocoder with layers, and others without."""
    root = tmp_path / "pipe"
    save(root / VAE, normed(3, 5))
    save(root / "vocoder" / "model.safetensors", normed(2))
    save(root / "unet" / "diffusion_pytorch_model.safetensors", dict(nn.Linear(3, 4).state_dict()))
    for name in ("vae", "vocoder", "unet", "scheduler", "tokenizer"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "config.json").write_text(name)
    (root / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderOobleck"]}))
    return root


# -- pipelines


def test_each_component_with_layers_is_converted_and_the_rest_goes_along(pipe: Path) -> None:
    before = listing(pipe)
    result = fold_file(pipe, verify=True)
    out = pipe.with_name("pipe.folded")
    after = listing(out)
    assert result.output == out
    assert listing(pipe) == before
    assert set(after) == {*before, MANIFEST}
    converted = {VAE, "vocoder/model.safetensors"}
    assert {name for name in before if after[name] != before[name]} == converted
    assert [shard.name for shard in result.plan.shards] == sorted(converted)
    assert set(result.plan.copied) == set(before) - converted
    alone = fold_file(pipe / "vae", pipe.with_name("alone"))
    assert after[VAE] == (output_of(alone) / "diffusion_pytorch_model.safetensors").read_bytes()
    assert compare_files(pipe, out)


def test_a_pipeline_is_inspected_as_one_checkpoint(pipe: Path, run: Runner) -> None:
    found = inspect_file(pipe)
    assert {state.path: state.layers for state in found.state_dicts} == {
        "unet": {},
        "vae": {"legacy": 2},
        "vocoder": {"legacy": 1},
    }
    assert found.files == ("unet/diffusion_pytorch_model.safetensors", VAE, "vocoder/model.safetensors")
    assert "state dict:   vae: 6 tensors" in run("inspect", pipe).stdout


def test_a_pipeline_goes_there_and_back(pipe: Path, tmp_path: Path) -> None:
    fold_file(pipe, tmp_path / "folded")
    split_file(tmp_path / "folded", tmp_path / "split", verify=True)
    for name in (VAE, "vocoder/model.safetensors"):
        assert list(safetensors.torch.load_file(tmp_path / "split" / name)) == list(
            safetensors.torch.load_file(pipe / name)
        )
    fold_file(tmp_path / "split", tmp_path / "again")
    assert listing(tmp_path / "again") == listing(tmp_path / "folded")
    migrate_file(pipe, tmp_path / "new", verify=True)
    migrate_file(tmp_path / "new", tmp_path / "back", to="legacy")
    migrate_file(tmp_path / "back", tmp_path / "new2")
    assert listing(tmp_path / "new2") == listing(tmp_path / "new")
    assert inspect_file(tmp_path / "back").migrate == inspect_file(pipe).migrate


def test_layers_are_chosen_over_all_components(pipe: Path) -> None:
    plan = fold_file(pipe, layers="1.*", dry_run=True)
    assert [(row.state_dict, row.name) for row in plan.layers] == [("vae", "1.weight")]
    assert [shard.name for shard in plan.shards] == [VAE]
    with pytest.raises(ArgumentError, match=r"--layers 'x\.\*' matches no layer"):
        fold_file(pipe, layers="x.*", dry_run=True)


def test_one_component_becomes_a_file_and_a_folder_holds_them_all(pipe: Path, tmp_path: Path) -> None:
    result = fold_file(pipe, tmp_path / "vae.safetensors", only="vae", verify=True)
    assert [row.name for row in result.plan.layers] == ["0.weight", "1.weight"]
    assert len(safetensors.torch.load_file(tmp_path / "vae.safetensors")) == 4
    with pytest.raises(ArgumentError, match="--only takes vae out of a pipeline") as caught:
        fold_file(pipe, tmp_path / "out", only="vae")
    assert str(pipe / "vae") in caught.value.fix
    with pytest.raises(ArgumentError, match="a safetensors file holds one state dict"):
        fold_file(pipe, tmp_path / "all.safetensors")
    every = output_of(fold_file(pipe, tmp_path / "all.pt", verify=True))
    assert set(torch.load(every, weights_only=True)) == {"unet", "vae", "vocoder"}


def test_a_component_may_be_there_in_variants_formats_and_shards(pipe: Path, tmp_path: Path) -> None:
    save(
        pipe / "vae" / "diffusion_pytorch_model.fp16.safetensors", {k: v.half() for k, v in normed(3).items()}
    )
    save(pipe / "vocoder" / "pytorch_model.bin", normed(2))
    fold_file(pipe, tmp_path / "out", max_shard_size="100", verify=True)
    found = inspect_file(tmp_path / "out")
    assert {state.path for state in found.state_dicts} == {
        "unet",
        "vae/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vocoder/model.safetensors.index.json",
        "vocoder/pytorch_model.bin.index.json",
    }
    assert not any("legacy" in state.layers for state in found.state_dicts)
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").exists()  # untouched, not cut
    assert not (tmp_path / "out" / VAE).exists()
    again = fold_file(tmp_path / "out", tmp_path / "joined", copy=True)
    assert len(again.plan.layers) == 0


def test_a_variant_without_layers_goes_along_beside_one_with_layers(pipe: Path, tmp_path: Path) -> None:
    variant = "vae/diffusion_pytorch_model.fp16.safetensors"
    save(pipe / variant, dict(nn.Linear(3, 4).half().state_dict()))
    fold_file(pipe, tmp_path / "out", verify=True)
    assert (tmp_path / "out" / variant).read_bytes() == (pipe / variant).read_bytes()
    assert list(safetensors.torch.load_file(tmp_path / "out" / VAE)) != list(
        safetensors.torch.load_file(pipe / VAE)
    )


def test_a_cast_reaches_every_component(pipe: Path, tmp_path: Path) -> None:
    fold_file(pipe, tmp_path / "out", dtype="float16", verify=True)
    assert inspect_file(tmp_path / "out").dtypes.keys() == {"float16"}


def test_bad_numbers_are_told_with_their_component_and_nothing_is_left(pipe: Path) -> None:
    state = normed(2)
    state["0.weight_v"][:] = 0
    save(pipe / "vocoder" / "model.safetensors", state)
    with pytest.raises(NumbersError, match=r"vocoder: layer 0\.weight"):
        fold_file(pipe)
    assert [path.name for path in pipe.parent.iterdir()] == ["pipe"]


def test_what_is_wrong_with_a_component_names_it(pipe: Path) -> None:
    torch.save({"state_dict": normed(2), "epoch": 3}, pipe / "vocoder" / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin is not a plain state dict"):
        fold_file(pipe)
    (pipe / "vocoder" / "pytorch_model.bin").unlink()
    (pipe / "vocoder" / "model.safetensors").unlink()
    (pipe / "vocoder" / "model.safetensors").symlink_to(FIXTURES / "hifigan.safetensors")
    with pytest.raises(FormatError, match="is a link that leaves the folder"):
        fold_file(pipe)


def test_a_pipeline_is_replaced_and_converted_in_place_as_any_folder(pipe: Path, tmp_path: Path) -> None:
    fold_file(pipe, tmp_path / "out")
    fold_file(pipe, tmp_path / "out", force=True)
    (tmp_path / "out" / "vae" / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"what no conversion wrote: vae/mine\.txt"):
        fold_file(pipe, tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="it lies in the source"):
        fold_file(pipe, pipe / "vae")
    names = set(listing(pipe))
    assert fold_file(pipe, in_place=True).output == pipe
    assert set(listing(pipe)) == names
    assert inspect_file(pipe).fold == "nothing to fold"


def test_what_was_read_is_counted_once(pipe: Path, tmp_path: Path) -> None:
    sizes = sum(path.stat().st_size for path in pipe.rglob("*") if path.is_file())
    assert fold_file(pipe, tmp_path / "out").bytes_in == sizes


def test_folders_below_without_a_pipelines_list_go_along(pipe: Path, tmp_path: Path) -> None:
    (pipe / "model_index.json").unlink()
    save(pipe / "model.safetensors", normed(3))
    before = listing(pipe)
    fold_file(pipe, tmp_path / "out")
    after = listing(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"model.safetensors"}


# -- the cache of the hub


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """What the cache has of a model: two snapshots, main the older one."""
    root = tmp_path / "hub" / "models--a--b"
    for commit, size in (("aaaa", 2), ("bbbb", 3)):
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        save(root / "blobs" / f"{commit}.safetensors", normed(size))
        link = root / "snapshots" / commit / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(f"../../blobs/{commit}.safetensors")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("aaaa")
    return root


def test_an_entry_of_the_hubs_cache_is_the_snapshot_that_main_names(entry: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="it lies in the cache of the hub") as caught:
        fold_file(entry)
    assert caught.value.fix == "-o FOLDER"
    result = fold_file(entry, tmp_path / "out", verify=True)
    assert "it is an entry of the hub's cache, and its snapshot aaaa is read" in result.notes
    assert set(listing(tmp_path / "out")) == {"model.safetensors", MANIFEST}
    assert compare_files(tmp_path / "out", entry / "snapshots" / "aaaa")
    assert not compare_files(tmp_path / "out", entry / "snapshots" / "bbbb")
    found = inspect_file(entry)
    assert len(found.layers) == 1
    assert "it is an entry of the hub's cache, and its snapshot aaaa is read" in found.notes


@pytest.mark.parametrize("text", ["", "cccc", "../../..", "aaaa/..", "x" * 1000, "é"])
def test_a_main_that_names_no_snapshot_is_an_error_that_lists_them(entry: Path, text: str) -> None:
    (entry / "refs" / "main").write_text(text)
    with pytest.raises(InputError, match=r"names none of its snapshots \(aaaa, bbbb\)") as caught:
        inspect_file(entry)
    assert caught.value.fix == f"name one of them: {entry / 'snapshots' / 'aaaa'}"


def test_without_a_main_the_only_snapshot_is_meant(entry: Path) -> None:
    (entry / "refs" / "main").unlink()
    with pytest.raises(InputError, match="names none of its snapshots"):
        inspect_file(entry)
    (entry / "snapshots" / "aaaa" / "model.safetensors").unlink()
    (entry / "snapshots" / "aaaa").rmdir()
    assert inspect_file(entry).layers[0].shape == (4, 3, 3)


def test_the_whole_cache_is_told_by_its_name(entry: Path) -> None:
    with pytest.raises(InputError, match="the cache of the hub, with 1 model in it: models--a--b") as caught:
        inspect_file(entry.parent)
    assert caught.value.fix == f"name one of them: {entry}"


def test_a_pipeline_in_the_cache_is_read_through_its_links(pipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "hub" / "models--c--d"
    snapshot = root / "snapshots" / "1234"
    for at, name in enumerate(listing(pipe)):
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (pipe / name).rename(root / "blobs" / str(at))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(root / "blobs" / str(at))
    result = fold_file(root, tmp_path / "out", verify=True)
    assert len(result.plan.layers) == 3
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_folder_that_is_only_called_like_an_entry_is_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "models--mine" / "model.safetensors", normed(2))
    assert fold_file(tmp_path / "models--mine").output == tmp_path / "models--mine.folded"


# -- a folder with one checkpoint in it


@pytest.mark.parametrize(
    "name", ["g_02500000", "best.pt", "epoch=3-step=10.ckpt", "model-v1.5", "generator.safetensors"]
)
def test_the_only_checkpoint_of_a_folder_is_converted_under_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    if name.endswith(".safetensors"):
        save(folder / name, normed(3))
    else:
        folder.mkdir()
        torch.save({"generator": normed(3), "ema": normed(2), "epoch": 3}, folder / name)
    (folder / "config.json").write_text("{}")
    (folder / "log.txt").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "old.pt").write_text("x")
    result = fold_file(folder, verify=True)
    assert result.output == tmp_path / "run.folded"
    assert set(listing(tmp_path / "run.folded")) == {*listing(folder), MANIFEST}
    assert compare_files(folder / name, tmp_path / "run.folded" / name)
    assert inspect_file(tmp_path / "run.folded").fold == "nothing to fold"
    assert len(inspect_file(folder).layers) == len(result.plan.layers) > 0
    fold_file(folder, tmp_path / "run.folded", force=True)
    split_file(tmp_path / "run.folded", tmp_path / "split", verify=True)
    assert fold_file(folder, in_place=True).output == folder


def test_it_can_go_into_a_file_and_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.save(normed(3), tmp_path / "run" / "best.pt")
    assert fold_file(tmp_path / "run", tmp_path / "best.safetensors").output == tmp_path / "best.safetensors"
    with pytest.raises(ArgumentError, match=r"best\.pt stays one file") as caught:
        fold_file(tmp_path / "run", max_shard_size="1KB")
    assert "--as-folder" in caught.value.fix


@pytest.mark.parametrize(
    ("says", "names"),
    [
        ("a folder of 2 checkpoints (a.pt, b.safetensors), which are not", ["a.pt", "b.safetensors"]),
        (
            "with 2 folders in it: checkpoint-1, checkpoint-2",
            ["checkpoint-1/model.safetensors", "checkpoint-2/model.safetensors"],
        ),
    ],
    ids=["checkpoints", "folders"],
)
def test_a_folder_of_many_is_refused_in_words(
    tmp_path: Path, says: str, names: list[str], run: Runner
) -> None:
    for name in names:
        if name.endswith(".pt"):
            (tmp_path / "many").mkdir(exist_ok=True)
            torch.save(normed(2), tmp_path / "many" / name)
        else:
            save(tmp_path / "many" / name, normed(2))
    for command in ("fold", "inspect"):
        ended = run(command, tmp_path / "many")
        assert ended.returncode == 2
        assert says in ended.stderr
        assert f"fix: name one of them: {tmp_path / 'many' / names[0].split('/')[0]}\n" in ended.stderr


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"{}"])
def test_what_is_no_checkpoint_does_not_count(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    torch.save(normed(3), tmp_path / "run" / "best.pt")
    (tmp_path / "run" / "other.bin").write_bytes(content)
    torch.save(normed(3), tmp_path / "run" / "data.npz")  # a zip of another name
    assert len(fold_file(tmp_path / "run", dry_run=True).layers) == 1


def test_arrays_alone_in_a_folder_are_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(FIXTURES / "arrays.npz", tmp_path / "run")
    result = fold_file(tmp_path / "run", verify=True)
    assert (len(result.plan.layers), output_of(result).name) == (2, "run.folded")
    assert len(inspect_file(output_of(result) / "arrays.npz").layers) == 0


# -- new names, and folders of torch.distributed.checkpoint


def test_new_names_of_a_pipeline_are_in_every_component(pipe: Path, tmp_path: Path) -> None:
    save(pipe / "unet" / "diffusion_pytorch_model.safetensors", nn.Sequential(nn.Linear(3, 4)).state_dict())
    result = fold_file(pipe, tmp_path / "out", add_prefix="net", verify=True)
    unet = safetensors.torch.load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(unet) == {"net.0.weight", "net.0.bias"}
    assert "net.0.weight" in safetensors.torch.load_file(tmp_path / "out" / VAE)
    assert len(result.plan.shards) == 3
    back = fold_file(tmp_path / "out", tmp_path / "back", strip_prefix=["net"])
    assert (len(back.plan.layers), back.plan.writes) == (0, True)
    fold_file(pipe, tmp_path / "plain")
    made, plain = tmp_path / "back", tmp_path / "plain"
    for path in (VAE, "unet/diffusion_pytorch_model.safetensors", "vocoder/model.safetensors"):
        after, expected = (safetensors.torch.load_file(root / path) for root in (made, plain))
        assert after.keys() == expected.keys()
        assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_an_entry_of_the_cache_may_hold_a_folder_of_ranks(tmp_path: Path) -> None:
    entry = tmp_path / "models--a--b"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    shutil.copytree(FIXTURES / "distributed", entry / "snapshots" / "abc")
    result = fold_file(entry, tmp_path / "out", verify=True)
    assert len(result.plan.layers) == 3
    assert set(inspect_file(entry).files) == set(inspect_file(FIXTURES / "distributed").files)
