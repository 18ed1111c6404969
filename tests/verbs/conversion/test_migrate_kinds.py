"""migrate between torch's two forms of spectral norm: names, order, _metadata, and the bits of eval."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from tests.helpers.states import load
from tests.layers.kinds.test_others import legacy, pruned, weight_norm
from wnconvert import compare_state_dicts, fold_state_dict, migrate_file, migrate_state_dict
from wnconvert.errors import ArgumentError, LayerError

OTHER: Any = {"parametrize": "legacy", "legacy": "parametrize"}
FORMS = pytest.mark.parametrize("to", OTHER)
Norm = Callable[..., Any]


def spectral(module: Any, name: str = "weight") -> Any:
    """torch's hook."""
    return legacy(spectral_norm, module, name)


def bare(norm: Norm) -> nn.Module:
    """A module with parameters and a child of its own, of which one parameter is normed."""
    module = nn.Module()
    module.child = nn.Conv1d(2, 2, 1)
    for name, shape in (("first", (3,)), ("weight", (4, 6)), ("last", (2,))):
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return norm(module)  # type: ignore[no-any-return]


def recurrent(norm: Norm) -> nn.Module:
    """An LSTM with a child; two of its weights are normed."""
    module: Any = nn.LSTM(4, 5)
    module.child = nn.Linear(2, 2)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        norm(module, name)
    return module  # type: ignore[no-any-return]


def model(form: str, *, masks: bool = False) -> Any:
    """Layers of every place and shape in one of torch's forms, after some steps of training."""
    torch.manual_seed(0)
    is_legacy = form == "legacy"
    norm: Norm = spectral if is_legacy else parametrizations.spectral_norm
    other: Norm = weight_norm if is_legacy else parametrizations.weight_norm
    made: Any = nn.Sequential(
        OrderedDict(
            a=norm(nn.Conv1d(3, 8, 3)),
            norm=nn.BatchNorm1d(8),
            up=norm(nn.ConvTranspose1d(8, 8, 3)),
            b=other(nn.Conv1d(8, 4, 1)),
            inner=nn.Sequential(norm(nn.Conv1d(4, 4, 3, bias=False))),
        )
    )
    if masks:
        for layer, old, new in ((made.a, "weight_orig", "original"), (made.b, "weight_v", "original1")):
            at = layer if is_legacy else layer.parametrizations.weight
            prune.random_unstructured(at, old if is_legacy else new, 0.5)  # type: ignore[no-untyped-call]
    for _ in range(3):
        made(torch.randn(2, 3, 30))
    made.add_module("bare", bare(norm))
    made.add_module("lstm", recurrent(norm))
    return made.eval()


def outputs(module: Any) -> list[Tensor]:
    """What a model computes; once before, since a hook of prune comes behind that of the norm."""
    x = torch.linspace(-1, 1, 60).reshape(1, 3, 20)
    with torch.no_grad():
        module[:5](x)
        return [module[:5](x), module.lstm(torch.ones(3, 2, 4))[0]]


@FORMS
@pytest.mark.parametrize("masks", [False, True], ids=["alone", "pruned"])
def test_names_order_and_metadata_are_torchs_and_eval_has_the_same_bits(to: Any, masks: bool) -> None:
    source, target = model(OTHER[to], masks=masks), model(to, masks=masks)
    before = source.state_dict()
    made = migrate_state_dict(before, to=to, kinds="all")
    wanted = target.state_dict()
    assert list(made) == list(wanted)
    assert list(made._metadata.items()) == list(wanted._metadata.items())  # type: ignore[attr-defined]
    target.load_state_dict(made, strict=True)
    for ours, theirs in zip(outputs(target), outputs(source), strict=True):
        assert torch.equal(ours, theirs)
    back: Any = migrate_state_dict(made, to=OTHER[to], kinds="all")
    assert list(back) == list(before)
    assert back._metadata == before._metadata
    assert all(back[name] is before[name] for name in before)


def loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    found: dict[str, Tensor] = (
        safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load(path)
    )
    return found


@FORMS
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_files_of_every_container_are_migrated_as_state_dicts_are(
    to: Any, suffix: str, tmp_path: Path
) -> None:
    state = model(OTHER[to]).state_dict()
    source = tmp_path / "source.pt"
    torch.save(state, source)
    result = migrate_file(source, tmp_path / f"out{suffix}", to=to, kinds=("weight", "spectral"), verify=True)
    assert len(result.layers) == 7
    made, wanted = loaded(tmp_path / f"out{suffix}"), migrate_state_dict(state, to=to, kinds="all")
    assert set(made) == set(wanted)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    if suffix == ".pt":
        assert list(made) == list(wanted)
        metadata: Any = (torch.load(tmp_path / "out.pt", weights_only=True), wanted)
        assert metadata[0]._metadata == metadata[1]._metadata


def test_a_note_says_that_the_next_step_of_training_differs_and_it_does(tmp_path: Path) -> None:
    source = nn.ModuleList([spectral(nn.Linear(6, 5))])
    source[0](torch.randn(2, 6))
    torch.save(source.state_dict(), tmp_path / "a.pt")
    result = migrate_file(tmp_path / "a.pt", tmp_path / "b.pt", kinds="spectral")
    assert [note for note in result.notes if "1 layer of spectral norm: in eval no bit changes" in note]
    after: Any = nn.ModuleList([parametrizations.spectral_norm(nn.Linear(6, 5))])
    after.load_state_dict(torch.load(tmp_path / "b.pt"))
    x = torch.ones(2, 6)
    assert torch.equal(after.eval()[0](x), source.eval()[0](x))
    assert not torch.equal(after.train()[0](x), source.train()[0](x))


def test_weight_norm_alone_is_the_default_and_a_hint_counts_the_others(tmp_path: Path) -> None:
    torch.save(model("legacy").state_dict(), tmp_path / "a.pt")
    plan = migrate_file(tmp_path / "a.pt", dry_run=True)
    assert [layer.name for layer in plan.layers] == ["b.weight"]
    assert plan.hints == ("6 layers of spectral norm: --kinds weight,spectral migrates them",)
    assert not any("training step" in note for note in plan.notes)


def test_what_has_no_other_form_stays_and_is_said() -> None:
    state = nn.ModuleList([pruned(nn.Linear(4, 3)), spectral(nn.Linear(4, 3))]).state_dict()
    made = migrate_state_dict(state, kinds="all")
    assert [name for name in made if name.startswith("0.")] == [
        name for name in state if name.startswith("0.")
    ]
    assert "1.parametrizations.weight.0._u" in made
    old = {"w_orig": torch.ones(3, 4), "w_u": torch.ones(3), "w": torch.ones(3, 4)}  # torch 1.0
    assert list(migrate_state_dict(old, kinds="all")) == list(old)


def test_prune_alone_is_counted_in_a_note_and_no_hint_speaks_of_it(tmp_path: Path) -> None:
    state = nn.ModuleList([pruned(nn.Linear(4, 3)), spectral(nn.Linear(4, 3))]).state_dict()
    torch.save(state, tmp_path / "a.pt")
    plan = migrate_file(tmp_path / "a.pt", dry_run=True, kinds="all")
    assert "1 layer of prune stays as it is: torch has no parametrize form of it" in plan.notes
    plan = migrate_file(tmp_path / "a.pt", dry_run=True)
    assert plan.hints == ("1 layer of spectral norm: --kinds spectral migrates it",)


def test_where_nothing_has_another_form_that_is_why_nothing_is_written(tmp_path: Path) -> None:
    torch.save(nn.ModuleList([pruned(nn.Linear(4, 3))]).state_dict(), tmp_path / "a.pt")
    result = migrate_file(tmp_path / "a.pt", kinds="prune")
    assert result.output is None
    assert "nothing to migrate: none of its layers has another form" in result.notes[-1]
    torch.save(nn.ModuleList([spectral(nn.Linear(4, 3))]).state_dict(), tmp_path / "b.pt")
    left = migrate_file(tmp_path / "b.pt", kinds="spectral", exclude="*")
    assert "leave out 1 layer" in left.notes[-1]


def test_weight_norm_under_spectral_norm_has_no_legacy_form() -> None:
    both = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3)))
    state = nn.ModuleList([both]).state_dict()
    assert list(migrate_state_dict(state, to="legacy", kinds="all")) == list(state)


def test_a_name_that_is_taken_is_refused() -> None:
    state = dict(nn.ModuleList([spectral(nn.Linear(4, 3))]).state_dict())
    state["0.parametrizations.weight.0._u"] = torch.ones(9)
    with pytest.raises(LayerError, match=r"the name 0\.parametrizations\.weight\.0\._u is taken"):
        migrate_state_dict(state, kinds="spectral")


def test_an_unknown_kind_is_refused_with_the_list() -> None:
    with pytest.raises(ArgumentError, match="spectral"):
        migrate_state_dict({"w": torch.ones(2)}, kinds="spectre")


@FORMS
def test_an_optimizers_state_stays_valid(to: Any, tmp_path: Path) -> None:
    """Buffers are no parameters: u and v pass others, and no position changes."""
    torch.manual_seed(3)
    norms: dict[str, Norm] = {"legacy": spectral, "parametrize": parametrizations.spectral_norm}

    def made(form: str) -> nn.Module:
        return nn.Sequential(
            norms[form](nn.Conv1d(2, 4, 3)), nn.BatchNorm1d(4), norms[form](nn.Conv1d(4, 2, 1))
        )

    source, target = made(OTHER[to]), made(to)
    optimizer = torch.optim.Adam(source.parameters())
    source(torch.randn(2, 2, 9)).sum().backward()
    optimizer.step()
    torch.save({"net": source.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "a.pt")
    migrate_file(tmp_path / "a.pt", tmp_path / "b.pt", to=to, kinds="spectral")
    both = torch.load(tmp_path / "b.pt", weights_only=True)
    target.load_state_dict(both["net"])
    again = torch.optim.Adam(target.parameters())
    again.load_state_dict(both["optim"])
    for (name, parameter), theirs in zip(target.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(parameter, theirs), name
        assert again.state[parameter]["exp_avg"].shape == parameter.shape


def test_compare_and_fold_see_one_model_in_both_forms(tmp_path: Path) -> None:
    state = model("legacy", masks=True).state_dict()
    made = migrate_state_dict(state, kinds="all")
    assert compare_state_dicts(state, made).identical == len(fold_state_dict(state, kinds="all"))
    safetensors.torch.save_file(dict(made), tmp_path / "a.safetensors")
    migrate_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="legacy", kinds="all")
    assert set(safetensors.torch.load_file(tmp_path / "b.safetensors")) == set(state)
