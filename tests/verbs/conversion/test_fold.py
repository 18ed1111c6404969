"""Folding whole files, end to end, against torch and float64."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fixtures.make import FIXTURES as MADE
from tests.helpers.golden import FIXTURES
from tests.helpers.infos import halves
from tests.helpers.live_models import legacy, new
from tests.helpers.states import hold, output_of, same, state_dicts
from wnconvert import Plan, fold_file
from wnconvert.errors import ArgumentError, LayerError, NumbersError, OutputError
from wnconvert.verbs.conversion.targets import default_output
from wnconvert.verbs.shared.options import DimOption

#: Every fixture: how many layers of it fold, and the options without which it is refused.
LAYERS: dict[str, tuple[int, dict[str, Any]]] = {
    "codec_bf16.safetensors": (6, {}),
    "do_02500000": (9, {}),
    "float8.safetensors": (1, {"exclude": ["conv.weight"]}),
    "g_02500000": (78, {}),
    "gan.pt": (6, {}),
    "half_pair.safetensors": (1, {}),
    "hifigan.safetensors": (78, {}),
    "kinds.pt": (0, {}),
    "legacy_nonzip.pth": (2, {}),
    "lightning.ckpt": (3, {}),
    "misfit.safetensors": (1, {"exclude": ["dec.0.weight"]}),
    "normed.pt": (0, {}),
    "plain.pt": (0, {}),
    "scripted.pt": (2, {}),
    "sovits.pth": (1, {}),
    "spellings.safetensors": (3, {"exclude": ["cell.b"]}),
    "stack.safetensors": (1, {"exclude": ["both.weight"]}),
    **{f"step_{at}.safetensors": (6, {}) for at in (1000, 2000, 3000)},
    "tied.pt": (3, {}),
    "vits.pth": (7, {}),
    "wav2vec2_pos_conv.safetensors": (1, {}),
    "waveglow_module.pt": (4, {}),
    "zero_row.safetensors": (2, {"zero_rows": "zero"}),
}
ONE_STATE_DICT = sorted(set(LAYERS) - {"gan.pt", "do_02500000"})


def compare(source: Path, out: Path, exclude: list[str], dtype: torch.dtype | None = None) -> int:
    before, after = state_dicts(source), state_dicts(out)
    if out.suffix == ".safetensors":  # the one state dict that has layers, or the only one
        (state,) = [state for state in before.values() if halves(state)] or before.values()
        before = {"": {name: value for name, value in state.items() if isinstance(value, Tensor)}}
    assert list(before) == list(after)
    assert before, "a comparison of nothing is a failure"
    return sum(hold(before[path], after[path], exclude=exclude, dtype=dtype) for path in before)


def test_every_fixture_but_folders_and_onnx_models_is_folded_here() -> None:
    files = {name for name in MADE if (FIXTURES / name).is_file()}
    elsewhere = (".onnx", ".npz", ".pt2")  # which torch.load does not read
    assert set(LAYERS) == {name for name in files if not name.endswith(elsewhere)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_folds_to_a_torch_file(name: str, tmp_path: Path) -> None:
    count, options = LAYERS[name]
    out = tmp_path / "out.pt"
    result = fold_file(FIXTURES / name, out, copy=True, **options)
    assert compare(FIXTURES / name, out, options.get("exclude", [])) == count == len(result.plan.layers)


@pytest.mark.parametrize("name", ONE_STATE_DICT)
def test_a_file_folds_to_safetensors(name: str, tmp_path: Path) -> None:
    count, options = LAYERS[name]
    out = tmp_path / "out.safetensors"
    result = fold_file(FIXTURES / name, out, copy=True, **options)
    assert compare(FIXTURES / name, out, options.get("exclude", [])) == count == len(result.plan.layers)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_a_file_without_a_tensor_becomes_no_file_of_another_kind(suffix: str, tmp_path: Path) -> None:
    (path := tmp_path / "a.safetensors").write_bytes(safetensors.torch.save({}))
    with pytest.raises(ArgumentError, match=r"there is no tensor in it that an? .* file could hold"):
        fold_file(path, tmp_path / f"b{suffix}", verify=True)
    assert fold_file(path, tmp_path / "b.safetensors", copy=True, verify=True).output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("name", sorted(set(LAYERS) - set(ONE_STATE_DICT)))
def test_several_state_dicts_are_no_safetensors_file_until_one_is_chosen(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ArgumentError, match="a safetensors file holds one state dict"):
        fold_file(FIXTURES / name, out)
    for path, state in state_dicts(FIXTURES / name).items():
        fold_file(FIXTURES / name, out, only=path, force=True)
        hold(state, state_dicts(out)[""])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["vits.pth", "hifigan.safetensors", "codec_bf16.safetensors"])
def test_a_given_dtype_is_reached_in_one_rounding(name: str, dtype: str, tmp_path: Path) -> None:
    out = tmp_path / f"out{Path(name).suffix}"
    fold_file(FIXTURES / name, out, dtype=dtype)
    assert compare(FIXTURES / name, out, [], getattr(torch, dtype)) > 0
    for state in state_dicts(out).values():
        floats = {value.dtype for value in state.values() if value.is_floating_point()}
        assert floats == {getattr(torch, dtype)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_folding_twice_is_folding_once(name: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors" and name not in ONE_STATE_DICT:
        suffix = ".pth"
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    options = LAYERS[name][1]
    fold_file(FIXTURES / name, once, copy=True, **options)
    again = fold_file(once, twice, exclude=options.get("exclude", []), copy=True)
    assert again.plan.layers == []
    assert once.read_bytes() == twice.read_bytes()


def test_nothing_to_fold_is_written_where_a_copy_is_asked_for(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "plain.pt", tmp_path / "out.pt", copy=True)
    assert result.plan.layers == []
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(found) == ["state_dict", "epoch"]
    assert set(found["state_dict"]) >= {"critic.weight_orig", "critic.weight_u", "critic.weight_v"}


# -- what a torch file keeps


def test_the_files_beside_it_are_kept_but_for_the_optimizer(tmp_path: Path) -> None:
    source, out = FIXTURES / "vits.pth", tmp_path / "out.pth"
    result = fold_file(source, out)
    assert [item.path for item in result.plan.dropped] == ["optimizer"]
    before, after = (torch.load(path, weights_only=True) for path in (source, out))
    assert list(after) == ["model", "iteration", "learning_rate"]
    assert after["iteration"] == before["iteration"]
    kept = torch.load(
        output_of(fold_file(source, tmp_path / "kept.pth", keep_optimizer=True)), weights_only=True
    )
    assert list(kept) == list(before)
    assert repr(kept["optimizer"]) == repr(before["optimizer"])


def test_optimizers_of_discriminators_beside_a_generator_go_with_their_layers(tmp_path: Path) -> None:
    source, out = FIXTURES / "do_02500000", tmp_path / "out"
    result = fold_file(source, out)
    assert [item.path for item in result.plan.dropped] == ["optim_g", "optim_d"]
    before, after = (torch.load(path, weights_only=True) for path in (source, out))
    assert list(after) == ["mpd", "msd", "steps", "epoch"]
    assert (after["steps"], after["epoch"]) == (before["steps"], before["epoch"])
    spectral = [name for name in before["msd"] if name.startswith("discriminators.0.")]
    assert spectral
    assert all(same(before["msd"][name], after["msd"][name]) for name in spectral)


def test_metadata_of_torch_goes_with_the_keys(tmp_path: Path) -> None:
    source, out = FIXTURES / "gan.pt", tmp_path / "out.pt"
    fold_file(source, out)
    before, after = (torch.load(path, weights_only=True) for path in (source, out))
    made = new(nn.Conv1d(8, 16, 7))
    assert "pre.parametrizations.weight.0" in before["generator"]._metadata
    assert list(after["generator"]._metadata) == ["", "pre", "post"]
    assert after["discriminator"]._metadata == before["discriminator"]._metadata
    assert "parametrizations" in dict(made.state_dict()._metadata)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_is_tied_stays_on_one_storage(dtype: str | None, tmp_path: Path) -> None:
    fold_file(FIXTURES / "tied.pt", tmp_path / "out.pt", dtype=dtype)
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    for name in ("weight", "bias"):
        assert state[f"encoder.conv.{name}"].data_ptr() == state[f"decoder.conv.{name}"].data_ptr()
    assert state["encoder.conv.weight"].data_ptr() != state["head.weight"].data_ptr()
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 4


def test_a_state_dict_is_read_with_mmap_and_with_computed_offsets_alike(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fold_file(FIXTURES / "g_02500000", out)
    plain = torch.load(out, weights_only=True)["generator"]
    mapped = torch.load(out, weights_only=True, mmap=True)["generator"]
    config: Any = torch.utils.serialization.config
    with config.patch({"load.calculate_storage_offsets": True}):
        computed = torch.load(out, weights_only=True, mmap=True)["generator"]
    assert len(plain) == len(mapped) == len(computed) == 78 * 2
    assert all(same(plain[name], mapped[name]) and same(plain[name], computed[name]) for name in plain)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None


def test_a_shared_v_with_another_g_gives_weights_of_their_own(tmp_path: Path) -> None:
    v = torch.rand(4, 3)
    state = {"a_g": torch.ones(4, 1), "a_v": v, "b_g": torch.full((4, 1), 2.0), "b_v": v, "c": v}
    torch.save(state, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert hold(state, found) == 2
    assert len({found[name].data_ptr() for name in "abc"}) == 3


def test_aliases_that_are_no_halves_stay_aliases(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "row": base[1], "turned": base.t(), "w_g": torch.ones(3, 1), "w_v": base + 1}
    torch.save(state, tmp_path / "in.pt")
    for dtype in (None, "float16"):
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", dtype=dtype, force=True)
        found = torch.load(tmp_path / "out.pt", weights_only=True)
        assert torch.equal(found["turned"].float(), base.t())
        found["a"][1, 2] = 77
        assert (found["row"][2], found["turned"][2, 1]) == (77, 77)


# -- options


def test_layers_and_exclude_choose(tmp_path: Path) -> None:
    source, out = FIXTURES / "vits.pth", tmp_path / "out.pth"
    every = set(halves(state_dicts(source)["model"]))
    result = fold_file(source, out, layers=["dec.*", "flow.*"], exclude=["*.ups.*"])
    folded = {fold.name for _, fold in result.plan.changes}
    assert folded == {"dec.resblocks.0.convs1.0.weight", "flow.flows.0.enc.in_layers.0.weight"}
    assert hold(state_dicts(source)["model"], state_dicts(out)["model"], exclude=every - folded) == 2


def test_a_single_glob_may_be_given_as_a_text() -> None:
    plan = fold_file(FIXTURES / "vits.pth", layers="dec.*", dry_run=True)
    assert len(plan.layers) == 2


def test_a_given_dim_decides_what_shapes_do_not(tmp_path: Path) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    state = {"w_g": torch.rand(4) + 0.5, "w_v": torch.rand(4, 4)}
    safetensors.torch.save_file(state, source)
    given: list[tuple[DimOption, int]] = [("auto", 1), (0, 1), (1, 0), (-2, 1)]
    for dim, axis in given:
        fold_file(source, out, dim=dim, force=True)
        g, v = state["w_g"].double(), state["w_v"].double()
        shaped = g.unsqueeze(axis) * v / v.norm(dim=axis, keepdim=True)
        assert torch.allclose(safetensors.torch.load_file(out)["w"].double(), shaped, rtol=1e-6)
    with pytest.raises(LayerError, match="over the whole tensor"):
        fold_file(source, out, dim=None, force=True)


def test_rows_whose_g_is_their_norm_are_v_but_in_a_wider_dtype_the_exact_number(tmp_path: Path) -> None:
    v = torch.rand(8, 5).half()
    g = v.double().norm(dim=1, keepdim=True).half()
    torch.save({"w_g": g, "w_v": v}, tmp_path / "in.pt")
    exact = (g.double() * v.double() / v.double().norm(dim=1, keepdim=True)).float()
    for dtype, expected in ((None, v), ("float32", exact)):
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", dtype=dtype, force=True)
        assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True)["w"], expected)


def test_only_keeps_the_generator_under_its_key(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "gan.pt", tmp_path / "out.pt", only="generator")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(found) == ["generator"]
    assert list(found["generator"]) == ["pre.bias", "pre.weight", "post.bias", "post.weight"]
    assert [item.path for item in result.plan.dropped] == ["discriminator", "ema.model", "epoch", "ema.decay"]
    fold_file(FIXTURES / "gan.pt", tmp_path / "ema.pt", only="ema.model")
    assert list(torch.load(tmp_path / "ema.pt", weights_only=True)["ema"]) == ["model"]


def test_only_the_root_is_without_the_state_dicts_in_it(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    layer = {"w_g": torch.ones(2, 1), "w_v": torch.rand(2, 3)}
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))]).state_dict()
    plain = {"bias": torch.rand(3), "scale": torch.rand(4, 4)}
    torch.save({**plain, "model": layer, "optimizer": optimizer, "epoch": 3}, source)
    fold_file(source, out, only=".")
    root = torch.load(out, weights_only=True)
    assert root.pop("epoch") == 3
    assert list(root) == list(plain)
    assert all(same(root[name], plain[name]) for name in plain)
    fold_file(source, out, force=True)
    found = torch.load(out, weights_only=True)
    assert list(found) == ["bias", "scale", "model", "epoch"]
    assert list(found["model"]) == ["w"]
    fold_file(source, out, only="model", force=True)
    assert list(torch.load(out, weights_only=True)) == ["model"]


def test_zero_rows_are_an_error_or_zero(tmp_path: Path) -> None:
    source, out = FIXTURES / "zero_row.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(NumbersError, match=r"layer dec\.0\.weight: v is zero in 2 rows \(2, 5\)"):
        fold_file(source, out)
    assert not out.exists()
    result = fold_file(source, out, zero_rows="zero")
    assert safetensors.torch.load_file(out)["dec.0.weight"][[2, 5]].count_nonzero() == 0
    assert any("1 of them with a g that is not 0" in note for note in result.notes)


def test_numbers_without_an_answer_are_an_error_unless_they_are_allowed(tmp_path: Path) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    v = torch.rand(4, 3) + 0.5
    for row, bad in ((1, torch.nan), (2, torch.inf)):
        v[row, 1] = bad
    g = torch.tensor([[1.0], [1.0], [1.0], [3e5]])
    safetensors.torch.save_file({"w_g": g, "w_v": v, "big": torch.tensor([1.0, 7e4])}, source)
    with pytest.raises(NumbersError, match=r"layer w: NaN or infinity in g or v, in 2 rows \(1, 2\)"):
        fold_file(source, out)
    with pytest.raises(NumbersError, match=r"(?s)big: one element .*too large for the dtype, in row 3"):
        fold_file(source, out, dtype="float16")
    assert not out.exists()
    fold_file(source, out, dtype="float16", allow_nonfinite=True)
    found = safetensors.torch.load_file(out)
    assert found["w"].isfinite().all(dim=1).tolist() == [True, False, False, False]
    assert found["big"].tolist() == [1, torch.inf]


@pytest.mark.parametrize(
    ("dtype", "tiny", "fix"), [("float16", 1e-4, "--dtype float32"), ("float32", 1e-30, "--allow-nonfinite")]
)
def test_the_fix_for_what_is_too_large_helps(tmp_path: Path, dtype: str, tiny: float, fix: str) -> None:
    source = tmp_path / "m.safetensors"
    tensors = {"w_orig": torch.ones(2, 3), "w_u": torch.full((2,), tiny), "w_v": torch.full((3,), tiny)}
    made = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    safetensors.torch.save_file(made, source)
    with pytest.raises(NumbersError, match="too large for the dtype") as caught:
        fold_file(source, kinds="all")
    assert caught.value.fix == f"{fix}; --exclude leaves a layer as it is"
    wide = fold_file(source, kinds="all", dtype="float32", allow_nonfinite=dtype == "float32")
    assert len(wide.plan.layers) == 1


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"dtype": "float64"}, "dtype 'float64'"),
        ({"dim": "rows"}, "dim 'rows'"),
        ({"zero_rows": "skip"}, "zero_rows 'skip'"),
        ({"threads": 0}, "0 threads"),
        ({"only": "no"}, "no state dict at 'no'"),
        ({"layers": ["no"]}, "--layers 'no' matches no layer"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_before_anything_is_written(
    option: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=says) as caught:
        fold_file(FIXTURES / "gan.pt", tmp_path / "out.pt", **option)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_returns_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "no" / "folder" / "out.pt"
    plan = fold_file(FIXTURES / "gan.pt", out, dry_run=True)
    assert isinstance(plan, Plan)
    assert plan == fold_file(FIXTURES / "gan.pt", tmp_path / "out.pt").plan
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]


def test_progress_grows_to_the_whole_and_the_threads_change_no_byte(tmp_path: Path) -> None:
    contents = set()
    for threads in (1, 2, 7):
        seen: list[tuple[int, int]] = []
        out = tmp_path / f"{threads}.pt"
        fold_file(
            FIXTURES / "g_02500000",
            out,
            threads=threads,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] > 0
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_a_file_is_folded_onto_itself_in_place_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes((FIXTURES / "gan.pt").read_bytes())
    for force in (False, True):
        with pytest.raises(OutputError, match="it is the source itself"):
            fold_file(path, path, force=force)
    assert path.read_bytes() == (FIXTURES / "gan.pt").read_bytes()
    fold_file(path, in_place=True)
    assert compare(FIXTURES / "gan.pt", path, []) == 6


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("model.pt", "model.folded.pt"),
        ("a/model.safetensors", "a/model.folded.safetensors"),
        ("x.pth.tar", "x.folded.pth.tar"),
        ("x.ckpt", "x.folded.ckpt"),
        ("pytorch_model.bin", "pytorch_model.folded.bin"),
        ("g_02500000", "g_02500000.folded"),
        ("epoch=3-step=10.ckpt", "epoch=3-step=10.folded.ckpt"),
        ("v1.2", "v1.2.folded"),
        (".pt", ".pt.folded"),
        ("x.folded.pt", "x.folded.folded.pt"),
        ("x.PT", "x.PT.folded"),
    ],
)
def test_the_default_name_has_folded_before_its_suffix(source: str, out: str) -> None:
    assert default_output(source, "folded") == Path(out)


def test_an_error_names_the_file_even_where_its_name_begins_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "l").write_bytes((FIXTURES / "misfit.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LayerError) as caught:
        fold_file("l")
    assert caught.value.where == "l: layer dec.0.weight"


# -- into torch's modules


Norm = Callable[..., nn.Module]


class Vocoder(nn.Module):
    """What vocoders are made of, normed or not; the layers change the sizes at every step."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.pre = norm(nn.Conv1d(6, 16, 7, padding=3))
        self.ups = nn.ModuleList(
            [
                norm(nn.ConvTranspose1d(16, 8, 8, 4, padding=2)),
                norm(nn.ConvTranspose1d(8, 4, 4, 2, padding=1)),
            ]
        )
        self.blocks = nn.ModuleList([norm(nn.Conv1d(4, 4, 3, padding=d, dilation=d)) for d in (1, 3)])
        self.critic = norm(nn.Conv2d(1, 3, (3, 2)))
        self.back = norm(nn.ConvTranspose2d(3, 2, (2, 3)))
        self.project = norm(nn.Linear(6, 5), dim=None)
        self.rnn = norm(norm(nn.LSTM(5, 7, batch_first=True), "weight_ih_l0"), "weight_hh_l0")
        self.post = norm(nn.Linear(7, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up in self.ups:
            x = up(torch.relu(x))
        for block in self.blocks:
            x = x + block(torch.relu(x))
        image = self.back(torch.relu(self.critic(x.unsqueeze(1))))
        rows = image.flatten(1, 2).transpose(1, 2)
        hidden, _ = self.rnn(self.project(rows))
        found: Tensor = self.post(hidden)
        return found


def plain(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    del name, dim
    return module


def new_but_in_rnns(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    return (legacy if isinstance(module, nn.LSTM) else new)(module, name, dim)


@pytest.mark.parametrize("norm", [legacy, new_but_in_rnns], ids=["legacy", "parametrize"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_output_runs_in_the_module_that_was_built_without_weight_norm(
    norm: Norm, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    normed, bare = Vocoder(norm), Vocoder(plain)
    for name, value in normed.named_parameters():
        if name.endswith(("_g", "original0")):
            value.data.mul_(torch.rand_like(value) + 0.5)  # so that g is no longer the norm of v
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    if suffix == ".pt":
        torch.save(normed.state_dict(), source)
    else:
        safetensors.torch.save_file(normed.state_dict(), source)
    result = fold_file(source, out)
    assert len(result.plan.layers) == 11
    bare.load_state_dict(state_dicts(out)[""], strict=True)
    x = torch.rand(2, 6, 5)
    with torch.no_grad():
        expected, found = normed(x), bare(x)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_only_reaches_into_a_list_by_its_place(tmp_path: Path) -> None:
    state = {"w_g": torch.ones(2, 1), "w_v": torch.rand(2, 3)}
    torch.save({"nets": [{"b": torch.zeros(1)}, state]}, tmp_path / "in.pt")
    out = output_of(fold_file(tmp_path / "in.pt", tmp_path / "out.pt", only="nets.1", verify=True))
    assert list(torch.load(out, weights_only=True)["nets"][1]) == ["w"]


def test_what_stands_beside_under_an_empty_key_is_said_to_be_left_out(tmp_path: Path) -> None:
    state = {"w_g": torch.ones(2, 1), "w_v": torch.rand(2, 3)}
    torch.save({"": 1.5, "model": state}, tmp_path / "in.pt")
    result = fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert [item.path for item in result.plan.dropped] == [""]
    kept = output_of(fold_file(tmp_path / "in.pt", tmp_path / "out.pt"))
    assert torch.load(kept, weights_only=True)[""] == 1.5
