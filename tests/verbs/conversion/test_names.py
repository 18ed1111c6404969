"""`--strip-prefix`, `--add-prefix` and `--rename`, on files, folders and state dicts; names of `--like`."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import wnconvert
from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import norm
from tests.helpers.states import load, state_dicts
from tests.helpers.tool import run_here
from wnconvert.errors import ArgumentError, LayerError, WnconvertError
from wnconvert.plan.plan import Plan
from wnconvert.verbs.comparison.compare import compare_files, compare_state_dicts
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict, migrate_state_dict, split_state_dict

FORMS = ("legacy", "parametrize")
VERBS: dict[str, tuple[Any, Any]] = {
    "fold": (fold_file, fold_state_dict),
    "migrate": (migrate_file, migrate_state_dict),
}


def net(form: str) -> nn.Sequential:
    """Layers, a batch norm, and modules without tensors."""
    torch.manual_seed(3)
    inner = nn.Sequential(nn.BatchNorm1d(3), norm(nn.Conv1d(3, 2, 1), form), nn.ReLU())
    return nn.Sequential(norm(nn.Conv1d(2, 3, 3), form), nn.ReLU(), inner)


def parallel(form: str) -> nn.Module:
    return nn.DataParallel(net(form))


def written(path: Path) -> bytes:
    return path.read_bytes()


# -- against torch's own modules


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_of_data_parallel_without_its_prefix_gives_the_bytes_of_the_bare_module(
    verb: str, form: str, tmp_path: Path
) -> None:
    convert, _ = VERBS[verb]
    options: Any = {"to": "legacy" if form == "parametrize" else "parametrize"} if verb == "migrate" else {}
    torch.save(net(form).state_dict(), tmp_path / "bare.pt")
    torch.save(parallel(form).state_dict(), tmp_path / "parallel.pt")
    for source in ("bare", "parallel"):
        convert(tmp_path / f"{source}.pt", tmp_path / f"{source}.out.pt", **options)
    convert(tmp_path / "parallel.pt", tmp_path / "off.pt", strip_prefix="module.", verify=True, **options)
    convert(tmp_path / "bare.pt", tmp_path / "on.pt", add_prefix="module", verify=True, **options)
    assert written(tmp_path / "off.pt") == written(tmp_path / "bare.out.pt")
    assert written(tmp_path / "on.pt") == written(tmp_path / "parallel.out.pt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_state_dict_gets_the_names_and_the_metadata_of_the_bare_module(verb: str, form: str) -> None:
    _, convert = VERBS[verb]
    options: Any = {"to": "legacy" if form == "parametrize" else "parametrize"} if verb == "migrate" else {}
    made: Any = convert(parallel(form).state_dict(), strip_prefix=["module"], **options)
    bare: Any = convert(net(form).state_dict(), **options)
    assert list(made) == list(bare)
    assert all(torch.equal(made[name], bare[name]) for name in bare)
    assert list(made._metadata.items()) == list(bare._metadata.items())
    back: Any = convert(net(form).state_dict(), add_prefix="module", **options)
    wrapped: Any = convert(parallel(form).state_dict(), **options)
    assert list(back) == list(wrapped)
    assert list(back._metadata.items()) == list(wrapped._metadata.items())
    assert "module.0.bias" in parallel(form).state_dict()  # the source keeps its names


def test_the_same_options_give_the_same_names_in_a_file_and_in_memory(tmp_path: Path) -> None:
    state = net("legacy").state_dict()
    torch.save(state, tmp_path / "in.pt")
    options: Any = {"rename": {"2.*": "post.*", ".0": "pre"}, "add_prefix": "dec"}
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", **options)
    memory: Any = fold_state_dict(state, **options)
    (found,) = state_dicts(tmp_path / "out.pt").values()
    assert list(found) == list(memory)
    assert list(found)[:2] == ["dec.pre.bias", "dec.pre.weight"]
    assert list(load(tmp_path / "out.pt")._metadata) == list(memory._metadata)
    assert list(memory._metadata) == [
        "",
        "dec",
        "dec.pre",
        "dec.1",
        "dec.post",
        *(f"dec.post.{at}" for at in range(3)),
    ]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_fairseqs_names_become_those_of_transformers(suffix: str, tmp_path: Path) -> None:
    conv = norm(nn.Conv1d(4, 4, 3, groups=2), "legacy")
    state = {f"encoder.pos_conv.0.{name}": value for name, value in conv.state_dict().items()}
    torch.save({"model": state, "args": None}, tmp_path / "hubert.pt")
    rename = "encoder.pos_conv.0=encoder.pos_conv_embed.conv"
    out = tmp_path / f"out.{suffix}"
    result = migrate_file(tmp_path / "hubert.pt", out, only="model", rename=rename, verify=True)
    (found,) = state_dicts(out).values()
    at = "encoder.pos_conv_embed.conv"
    assert sorted(found) == [
        f"{at}.bias",
        f"{at}.parametrizations.weight.original0",
        f"{at}.parametrizations.weight.original1",
    ]
    assert (result.plan.renamed, result.plan.to_dict()["renamed"]) == (3, 3)


# -- what else is in a file


def test_the_optimizer_the_average_and_the_scaler_are_each_right(tmp_path: Path) -> None:
    model = parallel("legacy")
    named = torch.optim.AdamW(list(model.named_parameters()))
    names = [name for name, _ in model.named_parameters()]
    checkpoint = {
        "model": model.state_dict(),
        "ema": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": named.state_dict(),
        "by_name": {"state": {name: {"step": torch.ones(())} for name in names}, "param_groups": []},
        "scaler": {"module": torch.ones(2)},
        "epoch": 3,
    }
    torch.save(checkpoint, tmp_path / "in.pt")
    migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", to="legacy", strip_prefix="module")
    found = load(tmp_path / "out.pt")
    bare = [name.removeprefix("module.") for name in names]
    assert list(found["model"]) == list(found["ema"]) == list(net("legacy").state_dict())
    assert found["optimizer"]["param_groups"][0]["param_names"] == bare
    assert list(found["by_name"]["state"]) == bare
    assert list(found["scaler"]) == ["module"]
    assert found["epoch"] == 3
    migrate_file(tmp_path / "in.pt", tmp_path / "one.pt", to="legacy", strip_prefix="module", only="ema")
    assert list(load(tmp_path / "one.pt")["ema"]) == list(found["ema"])


def test_two_state_dicts_that_share_their_metadata_are_renamed_once(tmp_path: Path) -> None:
    state: Any = net("legacy").state_dict()
    other = state.copy()
    other._metadata = state._metadata
    torch.save({"a": state, "b": other}, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", add_prefix="m")
    torch.save({"a": parallel("legacy").state_dict()}, tmp_path / "one.pt")
    found, one = load(tmp_path / "out.pt"), load(tmp_path / "one.pt")
    assert list(found["b"]._metadata) == list(found["a"]._metadata)
    assert [key.replace("module", "m") for key in one["a"]._metadata] == list(found["a"]._metadata)


def test_extra_state_goes_with_its_module_and_the_keys_of_a_checkpoint_stay(tmp_path: Path) -> None:
    state = {"m.conv.weight": torch.ones(2, 2), "m.conv._extra_state": {"x": 1}, "config": {"a": 1}}
    torch.save(state, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", strip_prefix="m")
    assert list(load(tmp_path / "out.pt")) == ["conv.weight", "conv._extra_state", "config"]
    with pytest.raises(ArgumentError, match="meets no name"):
        fold_file(tmp_path / "in.pt", tmp_path / "no.pt", rename="config=c")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_a_fold_is_undone_after_its_names_were_changed(form: str, suffix: str, tmp_path: Path) -> None:
    torch.save(parallel(form).state_dict(), tmp_path / "in.pt")
    folded, bare, back = (tmp_path / f"{name}.{suffix}" for name in ("folded", "bare", "back"))
    fold_file(tmp_path / "in.pt", folded)
    assert isinstance(fold_file(folded, bare, strip_prefix="module", dry_run=True), Plan)
    fold_file(folded, bare, strip_prefix="module")
    split_file(bare, back)
    (found,) = state_dicts(back).values()
    expected = net(form).state_dict()
    assert list(found) == list(expected)
    assert compare_state_dicts(found, expected)
    at_once = tmp_path / f"once.{suffix}"
    split_file(folded, at_once, strip_prefix="module")
    assert list(*state_dicts(at_once).values()) == list(expected)


def test_a_migration_is_undone_after_its_names_were_changed(tmp_path: Path) -> None:
    conv = norm(nn.Conv1d(2, 2, 1), "legacy").state_dict()
    state = {f"m.a.{name}": conv[name] for name in ("weight_g", "weight_v", "bias")}  # not torch's order
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    migrate_file(tmp_path / "in.safetensors", there, strip_prefix="m")
    migrate_file(there, back, to="legacy", rename="a=b")
    source = [name.removeprefix("m.a.") for name in state_dicts(tmp_path / "in.safetensors")[""]]
    assert [name.removeprefix("b.") for name in state_dicts(back)[""]] == source


def test_a_folder_with_shards_and_its_index_have_the_new_names(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "sharded", tmp_path / "in")
    fold_file(tmp_path / "in", tmp_path / "out", add_prefix="generator", max_shard_size=20_000, verify=True)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert all(name.startswith("generator.") for name in index["weight_map"])
    for name, file in index["weight_map"].items():
        assert name in safetensors.torch.load_file(tmp_path / "out" / file)
    assert compare_files(tmp_path / "in", tmp_path / "out", strip_prefix="generator")


@pytest.mark.parametrize("verb", ["fold", "migrate", "split"])
def test_a_state_dict_takes_the_options_of_a_file_with_the_same_defaults(verb: str) -> None:
    file, memory = (
        inspect.signature(getattr(wnconvert, f"{verb}_{of}")).parameters for of in ("file", "state_dict")
    )
    assert {"strip_prefix", "add_prefix", "rename"} < set(memory)
    shared = memory.keys() & file.keys()
    assert {at: memory[at].default for at in shared} == {at: file[at].default for at in shared}


@pytest.mark.parametrize("name", ["legacy_nonzip.pth", "scripted.pt", "sovits.pth", "lightning.ckpt"])
def test_files_of_every_kind_get_new_names_and_lose_nothing(name: str, tmp_path: Path) -> None:
    fold_file(FIXTURES / name, tmp_path / "plain.pt")
    fold_file(FIXTURES / name, tmp_path / "named.pt", add_prefix="m", verify=True)
    plain, named = (state_dicts(tmp_path / f"{at}.pt") for at in ("plain", "named"))
    assert named.keys() == plain.keys()
    for path, state in plain.items():
        at = "" if path.startswith("callbacks") else "m."  # what lies beside the model keeps its names
        assert [at + key for key in state] == list(named[path])
        assert all(torch.equal(value, named[path][at + key]) for key, value in state.items() if at)


def test_a_folder_of_torch_files_has_new_names_in_every_shard(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(parallel("legacy").state_dict(), tmp_path / "in/pytorch_model.bin")
    for size, count in (("5GB", 1), (100, 2)):
        out = tmp_path / str(count)
        fold_file(tmp_path / "in", out, strip_prefix="module", max_shard_size=size, verify=True)
        files = sorted(out.glob("*.bin"))
        assert len(files) >= count
        names = [name for file in files for name in load(file)]
        assert sorted(names) == sorted(fold_state_dict(net("legacy").state_dict()))


# -- errors: nothing is written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strip_prefix": "modul"}, 'strip_prefix'),
        ({"rename": "2=0"}, "the new name of"),
        ({"rename": "nothing=x"}, "meets no name"),
    ],
)  # fmt: skip
def test_names_that_clash_and_rules_that_meet_nothing_write_nothing(
    options: Any, said: str, tmp_path: Path
) -> None:
    torch.save({f"{at}.weight": torch.ones(2, 2) for at in (0, 2)}, tmp_path / "in.pt")
    with pytest.raises(ArgumentError) as raised:
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", **options)
    assert said.replace("_", "-") in raised.value.what
    assert raised.value.fix
    assert not (tmp_path / "out.pt").exists()
    with pytest.raises(ArgumentError, match=said):
        fold_state_dict(load(tmp_path / "in.pt"), **options)


def test_a_whole_pickled_module_keeps_its_names_but_its_tensors_can_have_others(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(net("legacy")), tmp_path / "in.pt")
    with pytest.raises(LayerError, match="names are in its code") as raised:
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", strip_prefix="module")
    assert "-o OUT.safetensors" in raised.value.fix
    fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors", strip_prefix="module")
    assert "0.weight" in safetensors.torch.load_file(tmp_path / "out.safetensors")
    fold_file(tmp_path / "in.pt", tmp_path / "out.npz", strip_prefix="module")
    assert compare_files(tmp_path / "out.npz", tmp_path / "out.safetensors")


def test_an_onnx_model_keeps_its_names(tmp_path: Path) -> None:
    with pytest.raises(WnconvertError, match="this is an ONNX model"):
        fold_file(FIXTURES / "tcn.onnx", tmp_path / "out.onnx", add_prefix="m")


def test_the_command_line_takes_the_options_again_and_again(tmp_path: Path) -> None:
    torch.save(parallel("legacy").state_dict(), tmp_path / "in.pt")
    idle = ("--strip-prefix", "_orig_mod.module", "--rename", "0=pre", "--rename", "*.post=post.*")
    done = run_here("fold", tmp_path / "in.pt", "-o", tmp_path / "out.pt", *idle)
    assert done.returncode == 2
    assert "--strip-prefix _orig_mod.module. meets no name" in done.stderr
    rules = ("--strip-prefix", "module", "--rename", "0=pre", "--rename", "2.1=post", "--add-prefix", "dec")
    done = run_here("fold", tmp_path / "in.pt", "-o", tmp_path / "out.pt", *rules)
    assert "2 layers folded, 11 names changed" in done.stdout
    assert {"dec.pre.weight", "dec.post.weight", "dec.2.pre.weight"} < set(load(tmp_path / "out.pt"))


# -- the names of --like


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of_reference", ["", "module.", "0._orig_mod"])
@pytest.mark.parametrize("of_file", ["", "module."])
def test_like_meets_names_as_they_were_or_as_they_become(of_file: str, of_reference: str, form: str) -> None:
    reference: dict[str, Any] = dict(net(form).state_dict())
    if of_reference == "module.":
        reference = dict(parallel(form).state_dict())
    elif of_reference:
        reference = {
            f"0._orig_mod.{name[2:]}" if name.startswith("0.") else name: value
            for name, value in reference.items()
        }
    source = {of_file + name: value for name, value in fold_state_dict(net(form).state_dict()).items()}
    stripped = ("module",) if "module." in (of_file, of_reference) else ()
    made = split_state_dict(source, like=reference, strip_prefix=stripped)
    assert list(made) == list(net(form).state_dict())
    if of_file:
        kept = split_state_dict(source, like=reference, add_prefix="module", strip_prefix=stripped)
        assert list(kept) == list(parallel(form).state_dict())


def test_a_file_is_given_the_names_of_its_reference(tmp_path: Path) -> None:
    torch.save(parallel("legacy").state_dict(), tmp_path / "like.pt")
    torch.save(fold_state_dict(net("legacy").state_dict()), tmp_path / "in.pt")
    split_file(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "like.pt", add_prefix="module")
    assert list(load(tmp_path / "out.pt")) == list(parallel("legacy").state_dict())
    with pytest.raises(LayerError) as raised:
        split_file(tmp_path / "in.pt", tmp_path / "no.pt", like=tmp_path / "like.pt")
    assert raised.value.fix == "the names differ by a prefix: --strip-prefix module. takes it off"
    split_file(tmp_path / "in.pt", tmp_path / "bare.pt", like=tmp_path / "like.pt", strip_prefix="module.")
    assert list(load(tmp_path / "bare.pt")) == list(net("legacy").state_dict())


def test_wrappers_in_the_reference_are_seen_through_and_it_is_said(tmp_path: Path) -> None:
    like = {
        name.replace("2.", "2._fsdp_wrapped_module."): v for name, v in net("legacy").state_dict().items()
    }
    torch.save(like, tmp_path / "like.pt")
    torch.save(dict(fold_state_dict(net("legacy").state_dict())), tmp_path / "in.pt")
    result = split_file(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "like.pt")
    assert list(load(tmp_path / "out.pt")) == list(net("legacy").state_dict())
    said = "--like: _fsdp_wrapped_module in names is seen through (2._fsdp_wrapped_module.0 is 2.0)"
    assert result.notes == (said,)
    fold_file(tmp_path / "like.pt", tmp_path / "folded.pt")  # whose record has the wrapper too
    split_file(tmp_path / "in.pt", tmp_path / "again.pt", like=tmp_path / "folded.pt")
    assert list(load(tmp_path / "again.pt")) == list(net("legacy").state_dict())
