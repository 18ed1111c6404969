"""Folds of spectral norm, prune and their stacks: files, state dicts, what is said and refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.utils import parametrizations

from tests.helpers.runner import Runner
from tests.helpers.states import load, same, ulps
from tests.layers.kinds.test_others import BIGGAN, MODULES, pruned, spectral, weight_norm
from wnconvert.errors import ArgumentError, LayerError, NumbersError, VerifyError
from wnconvert.layers.kinds.table import SHOWN
from wnconvert.numerics.folding import Folding
from wnconvert.verbs.conversion import executor
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict

State = dict[str, Tensor]


def trained(module: Any) -> Any:
    """A module whose u and v have converged, in eval."""
    module.train()
    sizes = (5, 5) if isinstance(module, nn.ConvTranspose2d) else (9,)
    for _ in range(20):
        module(torch.randn(2, module.in_channels, *sizes))
    return module.eval()


def weight64(module: Any, name: str) -> Tensor:
    """The weight of a module in eval, computed by torch in float64."""
    wide = module.double().eval()
    for hook in reversed(wide._forward_pre_hooks.values()):  # the innermost came last
        hook(wide, None)
    found: Tensor = getattr(wide, name).detach()
    return found


def discriminator() -> nn.Module:
    """Spectral norm, weight norm, prune, and a stack of two."""
    torch.manual_seed(7)
    parts = [
        trained(spectral(nn.Conv1d(4, 8, 3))),
        weight_norm(nn.Conv1d(8, 8, 3)),
        pruned(nn.Conv1d(8, 8, 3)),
        trained(pruned(spectral(nn.Conv1d(4, 8, 3)), "weight_orig")),
        pruned(weight_norm(nn.Conv1d(8, 4, 3)), "weight_v"),
    ]
    for at in (1, 4):
        parts[at].weight_g.data.mul_(1.3)
    return nn.ModuleList(parts)


KINDS = {
    "0.weight": "spectral",
    "1.weight": "weight",
    "2.weight": "prune",
    "3.weight": "prune+spectral",
    "4.weight": "prune+weight",
}


@cache
def state() -> State:
    """Its state dict."""
    return discriminator().state_dict()


@cache
def plain() -> State:
    """Its fold in memory, whose numbers are held against float64."""
    made = fold_state_dict(state(), kinds="all")
    hold(made, expected())
    return made


@cache
def expected() -> State:
    """The weights in float64."""
    return {f"{at}.weight": weight64(part, "weight") for at, part in enumerate(discriminator().children())}


def hold(found: Any, wanted: State) -> None:
    """Every weight is the number next to that in float64; σ in float64 is not exact, and may decide a tie."""
    for name, exact in wanted.items():
        assert ulps(found[name], exact) <= 0.5 + 1e-4, name
        assert torch.equal(torch.signbit(found[name]), torch.signbit(exact)), name


@pytest.mark.parametrize("name", MODULES)
def test_each_module_of_torch_folds_to_its_weight_in_eval(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = trained(MODULES[name][0]())
    state = {key: value.clone() for key, value in module.state_dict().items()}
    torch.save(module.state_dict(), tmp_path / "net.pt")
    exact = weight64(module, "weight")
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="all", verify=True)
    made = load(tmp_path / "out.pt")
    assert set(made) == {"weight", *(key for key in state if key == "bias")}
    hold(made, {"weight": exact})
    assert not any("parametrizations" in key for key in made._metadata)
    assert same(fold_state_dict(module.float().state_dict(), kinds="all")["weight"], made["weight"])


def _distributed(state: State, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is distributed
        save({"model": dict(state)}, checkpoint_id=path / "folder", no_dist=True)
    return path / "folder"


SAVES: dict[str, Callable[[State, Path], Path]] = {
    "zip": lambda state, path: _saved(state, path / "net.pt"),
    "legacy": lambda state, path: _saved(state, path / "net.pth", _use_new_zipfile_serialization=False),
    "nested": lambda state, path: _saved({"step": 3, "net": state}, path / "net.ckpt"),
    "safetensors": lambda state, path: _safetensors(state, path / "net.safetensors"),
    "npz": lambda state, path: _npz(state, path / "net.npz"),
    "distributed": _distributed,
}


def _saved(tree: Any, path: Path, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def _safetensors(state: State, path: Path) -> Path:
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _npz(state: State, path: Path) -> Path:
    arrays: Any = {key: value.detach().numpy() for key, value in state.items()}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("out", ["out.pt", "out.safetensors", "out.npz"])
@pytest.mark.parametrize("how", SAVES)
def test_files_of_every_kind_fold_alike_and_are_verified(how: str, out: str, tmp_path: Path) -> None:
    source = SAVES[how](state(), tmp_path)
    result = fold_file(source, tmp_path / out, kinds="weight,spectral,prune", verify=True)
    assert {row.name: row.kind for row in result.plan.layers} == KINDS
    assert result.verified
    if out == "out.pt":
        made = load(tmp_path / out)
        made = made.get("net", made.get("model", made))
    elif out == "out.npz":
        made = {key: torch.from_numpy(value) for key, value in np.load(tmp_path / out).items()}
    else:
        made = safetensors.torch.load_file(tmp_path / out)
    assert set(made) == {f"{at}.{key}" for at in range(5) for key in ("weight", "bias")}
    assert all(same(made[key], value) for key, value in plain().items())


def test_a_folder_folds_like_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    _safetensors(state(), folder / "model.safetensors")
    fold_file(folder, tmp_path / "out", kinds="all", max_shard_size="600B", verify=True)
    found: State = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    assert found.keys() == plain().keys()
    assert all(same(found[key], value) for key, value in plain().items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_is_one_rounding(dtype: str, tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    fold_file(source, tmp_path / "out.pt", kinds="all", dtype=dtype, verify=True)
    hold(load(tmp_path / "out.pt"), expected())


def test_what_is_tied_is_made_once(tmp_path: Path) -> None:
    module: Any = nn.ModuleDict({"a": trained(spectral(nn.Conv1d(4, 8, 3)))})
    module["b"] = module["a"]
    torch.save(module.state_dict(), tmp_path / "net.pt")
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral", verify=True)
    made = load(tmp_path / "out.pt")
    assert made["a.weight"].data_ptr() == made["b.weight"].data_ptr()


def test_layers_and_exclude_choose_among_kinds_too(tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    plan = fold_file(source, dry_run=True, kinds="all", layers=["0.*", "3.*"], exclude="3.weight")
    assert [row.name for row in plan.layers] == ["0.weight"]
    with pytest.raises(ArgumentError, match="matches no layer"):
        fold_file(source, dry_run=True, kinds="all", layers="9.*")


def test_the_versions_of_spectral_norm_leave_the_metadata(tmp_path: Path) -> None:
    module: Any = nn.Sequential(spectral(spectral(nn.LSTM(4, 4), name="weight_hh_l0"), name="weight_ih_l0"))
    state = module.state_dict()
    plain: Any = nn.Sequential(nn.LSTM(4, 4)).state_dict()
    assert state._metadata != plain._metadata
    torch.save(state, tmp_path / "net.pt")
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral")
    made: Any = fold_state_dict(state, kinds="spectral")
    assert load(tmp_path / "out.pt")._metadata == made._metadata == plain._metadata
    fold_file(tmp_path / "net.pt", tmp_path / "one.pt", kinds="spectral", layers="*.weight_hh_l0")
    made = fold_state_dict(state, kinds="spectral", layers="*.weight_hh_l0")
    left = {"version": 1, "spectral_norm": {"weight_ih_l0.version": 1}}
    assert load(tmp_path / "one.pt")._metadata["0"] == made._metadata["0"] == left


# -- what is said


def test_the_default_is_weight_norm_and_a_note_counts_the_rest(tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    plan = fold_file(source, dry_run=True)
    assert [row.name for row in plan.layers] == ["1.weight"]
    said = "\n".join(plan.notes)
    assert "1 layer of spectral norm: --kinds weight,spectral folds it" in said
    assert "1 layer of prune: --kinds weight,prune folds it" in said
    assert "1 layer of spectral norm on prune: --kinds weight,spectral,prune folds it" in said
    assert "1 layer of weight norm on prune: --kinds weight,prune folds it" in said
    assert not [note for note in fold_file(source, dry_run=True, kinds="all").notes if "folds it" in note]
    alone = tmp_path / "alone.pt"
    torch.save(nn.ModuleList([spectral(nn.Conv1d(4, 8, 3)) for _ in range(3)]).state_dict(), alone)
    assert "3 layers of spectral norm: --kinds spectral folds them" in fold_file(alone, dry_run=True).notes


def test_a_state_dict_folds_weight_norm_alone_by_default() -> None:
    made = fold_state_dict(state())
    assert set(state()) - set(made) == {"1.weight_g", "1.weight_v"}


def test_kinds_are_told_in_the_plan_and_the_result(run: Runner, tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    done = run("fold", str(source), "--kinds", "all", "-n", "--json")
    assert {row["name"]: row["kind"] for row in json.loads(done.stdout)["layers"]} == KINDS
    text = run("fold", str(source), "--kinds", "all", "-n").stdout
    assert "prune+spectral" in text
    assert "kind" not in run("fold", str(source), "-n").stdout.splitlines()[0]


@pytest.mark.parametrize("kinds", ["spectrum", "weight,spectrum", "", ","])
def test_a_kind_that_there_is_not_is_an_error_with_the_list(kinds: str, run: Runner, tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    done = run("fold", str(source), "--kinds", kinds, "-o", str(tmp_path / "out.pt"))
    assert done.returncode == 2
    assert ", ".join(SHOWN) in done.stderr
    assert not (tmp_path / "out.pt").exists()


# -- the record


def test_split_says_that_other_kinds_cannot_be_given_back(tmp_path: Path) -> None:
    source = SAVES["zip"](state(), tmp_path)
    fold_file(source, tmp_path / "out.pt", kinds="all")
    plan = split_file(tmp_path / "out.pt", dry_run=True)
    assert [row.name for row in plan.layers] == ["1.weight"]
    said = "\n".join(note for note in plan.notes if "cannot be given back" in note)
    assert "0.weight was folded of spectral norm, which" in said
    assert all(name in said for name in ("0.weight", "2.weight", "3.weight", "4.weight"))
    fold_file(source, tmp_path / "spectral.pt", kinds="spectral")
    with pytest.raises(ArgumentError, match=r"0\.weight .*cannot be given back"):
        split_file(tmp_path / "spectral.pt", dry_run=True)
    fold_file(source, tmp_path / "named.pt", kinds="all", add_prefix="net.")
    assert any("net.0.weight" in note for note in split_file(tmp_path / "named.pt", dry_run=True).notes)


# -- torch 1.0, and ports


def test_torch_1_0_keeps_its_weight(tmp_path: Path) -> None:
    state = {"weight": torch.randn(8, 4), "weight_orig": torch.randn(8, 4), "weight_u": torch.randn(8)}
    for out in ("out.pt", "out.safetensors"):
        torch.save({**state, "bias": torch.randn(8)}, tmp_path / "net.pt")
        result = fold_file(tmp_path / "net.pt", tmp_path / out, kinds="spectral", verify=True)
        assert any("torch 1.0 stored the weight" in note for note in result.plan.notes)
    made = load(tmp_path / "out.pt")
    assert list(made) == ["weight", "bias"]
    assert same(made["weight"], state["weight"])
    half = fold_state_dict(state, kinds="spectral", dtype="float16")
    assert same(half["weight"], state["weight"].half())


def test_a_step_is_taken_from_the_stored_u(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = {name: torch.randn(shape) for name, shape in BIGGAN}  # type: ignore[misc]
    torch.save(state, tmp_path / "net.pt")
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral-step", verify=True)
    made = load(tmp_path / "out.pt")
    assert list(made) == ["c.weight", "c.bias"]
    w = state["c.weight"].double().flatten(1)
    v = nn.functional.normalize(state["c.u0"].double() @ w)
    u = nn.functional.normalize(v @ w.T)
    sigma = (u @ w @ v.T).squeeze()
    hold(made, {"c.weight": state["c.weight"].double() / sigma})


# -- refused


def test_a_stack_under_a_kind_that_is_not_asked_for_is_refused_as_ever(tmp_path: Path) -> None:
    module = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Conv1d(4, 8, 3)))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    with pytest.raises(LayerError, match="--kinds weight,spectral takes the whole stack"):
        fold_file(tmp_path / "net.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    assert fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="all").output


def test_a_sigma_of_zero_is_a_problem_of_numbers(tmp_path: Path) -> None:
    state = spectral(nn.Conv1d(4, 8, 3)).state_dict()
    state["weight_u"].zero_()
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(NumbersError, match=r"layer weight: .*σ"):
        fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral")
    assert not (tmp_path / "out.pt").exists()


def test_a_square_layer_that_was_never_trained_is_in_doubt(tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = spectral(nn.ConvTranspose2d(8, 8, 3))
    for key in ("weight_u", "weight_v"):
        module.state_dict()[key].copy_(
            nn.functional.normalize(torch.randn_like(module.state_dict()[key]), dim=0)
        )
    torch.save(module.state_dict(), tmp_path / "net.pt")
    with pytest.raises(NumbersError, match="--dim"):
        fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral")
    fold_file(tmp_path / "net.pt", tmp_path / "out.pt", kinds="spectral", dim=1, verify=True)
    hold(load(tmp_path / "out.pt"), {"weight": weight64(module.eval(), "weight")})


def test_a_wrong_number_does_not_pass_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SAVES["safetensors"](state(), tmp_path)

    class Wrong(Folding):
        def blocks(self, room: Any = None) -> Any:
            for block, w in super().blocks(room):
                bits = w.reshape(-1).view(np.int32)
                bits[bits.size // 2] += 1
                yield block, w

    monkeypatch.setattr(executor, "Folding", Wrong)
    for at in (0, 2, 3, 4):
        with pytest.raises(VerifyError, match="is not what its parts make"):
            fold_file(source, tmp_path / "out.safetensors", kinds="all", layers=f"{at}.*", verify=True)
    assert not (tmp_path / "out.safetensors").exists()
