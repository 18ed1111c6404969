"""Files split into g and v, and folded again: the same bits; read back by torch and safetensors."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.helpers.golden import FIXTURES
from tests.helpers.infos import halves
from tests.helpers.live_models import FORMS, g_and_v, norm
from tests.helpers.marks import crossed
from tests.helpers.oracle import DTYPES, exact_norms
from tests.helpers.runner import OLD, Runner, listing
from tests.helpers.states import load, same, state_dicts
from wnconvert import fold_file, inspect_file, migrate_file, split_file
from wnconvert.errors import LayerError, NumbersError, OutputError, WnconvertError
from wnconvert.verbs.conversion.convert import Result

State = dict[str, Tensor]
SUFFIXES = [".pt", ".safetensors"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm.* is deprecated")
        yield


def write(state: Mapping[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(dict(state), path, metadata={"format": "pt"})
    else:
        torch.save(dict(state), path)
    return path


def read(path: Path) -> State:
    (state,) = state_dicts(path).values()
    return state


def split(source: Path, out: str = "", **options: Any) -> Path:
    """The file split, under a new name."""
    path = source.with_name(out or f"split{source.suffix}")
    assert isinstance(split_file(source, path, force=True, **options), Result)
    return path


def fold(source: Path, out: str = "", **options: Any) -> Path:
    path = source.with_name(out or f"folded{source.suffix}")
    assert isinstance(fold_file(source, path, force=True, **options), Result)
    return path


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array(of: Tensor) -> np.ndarray[Any, Any]:
    if of.dtype == torch.bfloat16:
        return of.contiguous().view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return of.contiguous().numpy()


# -- the numbers

_LARGEST = {"float64": 1e150, "float32": 2.0**125, "float16": 12000.0, "bfloat16": 2.0**125}
_LEAST = {"float64": 5e-324, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@crossed(suffix=SUFFIXES, dtype=DTYPES)
def test_a_file_split_and_folded_is_the_file(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, suffix: str, data: st.DataObject
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    dim = data.draw(st.sampled_from([None, -1, *range(len(shape))]))
    form = data.draw(st.sampled_from(FORMS))
    largest, least = _LARGEST[dtype], _LEAST[dtype]
    numbers = (
        st.floats(-2, 2)
        | st.sampled_from([0.0, -0.0, largest, -largest / 3, least, -5 * least, 7 * least, least * 2**9])
        | st.integers(-9, 9).map(lambda n: n * least)
    )
    with np.errstate(all="ignore"):
        w = data.draw(hnp.arrays(np.float64, shape, elements=numbers)).astype(DTYPES[dtype])
    folder = tmp_path_factory.mktemp("files")
    source = write({"a.weight": tensor(w), "a.bias": torch.arange(3)}, folder / f"in{suffix}")
    pairs = split(source, layers="a.weight", dim=dim, to=form)
    (g, v), state = halves(read(pairs))["a.weight"], read(pairs)
    axis = None if dim == -1 else dim
    assert state[g].shape == (
        () if axis is None else tuple(s if at == axis else 1 for at, s in enumerate(shape))
    )
    assert array(state[g]).tobytes() == exact_norms(w, axis, dtype).tobytes()
    zero = (
        np.moveaxis(w.astype(float), axis, 0).reshape(shape[axis], -1).any(1) if axis is not None else w.any()
    )
    assert same(state[v], tensor(w)) == bool(np.all(zero))
    assert same(read(fold(pairs))["a.weight"], tensor(w))
    again = read(fold(pairs))
    assert same(again["a.bias"], torch.arange(3))


@crossed(
    suffix=SUFFIXES,
    dim=[0, 1, 2, None],
    dtype=[torch.float32, torch.float64, torch.float16, torch.bfloat16],
)
def test_weights_of_many_blocks_come_back(
    tmp_path: Path, dtype: torch.dtype, dim: int | None, suffix: str
) -> None:
    torch.manual_seed(0)
    state = {
        "a.weight": torch.randn(96, 64, 171).to(dtype),
        "b.weight": torch.randn(3, 2, 300_000).to(dtype) * 0.01,
    }
    source = write(state, tmp_path / f"in{suffix}")
    pairs = split(source, layers=["a.weight", "b.weight"], dim=dim)
    for name, (g, v) in halves(read(pairs)).items():
        assert same(read(pairs)[v], state[name])
        wide = state[name].double().square()
        axes = [axis for axis in range(3) if axis != dim]
        expected = (wide.sum(axes, keepdim=True) if dim is not None else wide.sum()).sqrt()
        assert torch.allclose(read(pairs)[g].double(), expected, rtol=2**-8)
    back = read(fold(pairs))
    assert list(back) == list(state)
    assert all(same(back[name], state[name]) for name in state)


def test_the_bytes_of_the_tensors_are_the_same_whatever_the_container(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(8, 4, 3), "b": torch.randn(5)}
    for first, second in itertools.product(SUFFIXES, SUFFIXES):
        source = write(state, tmp_path / f"in{first}")
        pairs = split(source, f"split{second}", layers="a.weight", dim=0, to="legacy")
        back = read(fold(pairs, f"back{first}"))
        assert all(same(back[name], value) for name, value in state.items())
        assert list(back) == list(state)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_no_number_of_threads_changes_a_byte(tmp_path: Path, dim: int | None, suffix: str) -> None:
    state = {f"{at}.weight": torch.randn(64, 700, 9) for at in range(4)} | {"z.weight": torch.zeros(4, 4, 4)}
    source = write(state, tmp_path / f"in{suffix}")
    made = {split(source, layers="*", dim=dim, threads=threads).read_bytes() for threads in (1, 2, 3, 8)}
    assert len(made) == 1


# -- zero rows, and rows without a norm


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_zero_row_is_exactly_zero_in_torch_with_its_signs(
    tmp_path: Path, dtype: torch.dtype, dim: int | None, form: Any
) -> None:
    w = torch.randn(4, 3, 2).to(dtype)
    signs = torch.tensor([0.0, -0.0, -0.0, 0.0, 0.0, -0.0]).to(dtype)
    if dim is None:
        w[:] = 0
    else:
        row = w.select(dim, 1)
        row.copy_(signs.repeat(4)[: row.numel()].reshape(row.shape))
    source = write({"weight": w}, tmp_path / "in.safetensors")
    result = split_file(source, tmp_path / "out.safetensors", layers="weight", dim=dim, to=form, verify=True)
    where = "row 0" if dim is None else "row 1"
    (note,) = result.notes
    assert note == f"layer weight: w is zero in {where}: g is 0 there, and v a uniform unit direction"
    module = nn.Conv1d(3, 4, 2, bias=False, dtype=dtype)
    assert module.weight.shape == w.shape
    norm(module, form, dim=dim)
    module.load_state_dict(read(tmp_path / "out.safetensors"), strict=True)
    g_of, v_of = g_and_v(module)
    found = torch._weight_norm(v_of, g_of, -1 if dim is None else dim).detach()
    if form == "parametrize":
        assert same(found, module.weight)
    row, expected = (found, w) if dim is None else (found.select(dim, 1), w.select(dim, 1))
    assert same(row, expected), "torch does not compute zeros with their signs"
    g, v = halves(read(tmp_path / "out.safetensors"))["weight"]
    state = read(tmp_path / "out.safetensors")
    direction = state[v] if dim is None else state[v].select(dim, 1)
    assert abs(direction.double().norm().item() - 1) < 2**-7
    assert len(set(direction.abs().flatten().tolist())) == 1
    assert state[g].flatten()[0 if dim is None else 1] == 0
    assert same(read(fold(tmp_path / "out.safetensors"))["weight"], w)


def test_several_zero_rows_are_counted_and_none_is_no_note(tmp_path: Path) -> None:
    w = torch.randn(40, 3)
    source = write({"w": w}, tmp_path / "in.pt")
    assert split_file(source, tmp_path / "a.pt", layers="w", dim=0).notes == ()
    w[5:20] = 0
    write({"w": w}, source)
    (note,) = split_file(source, tmp_path / "b.pt", layers="w", dim=0).notes
    assert "w is zero in 15 rows (5, 6, 7," in note


def test_a_subnormal_row_is_no_zero_row(tmp_path: Path) -> None:
    w = torch.tensor([[2.0**-149, 0.0], [0.0, 2.0**-149]])
    source = write({"w": w}, tmp_path / "in.pt")
    result = split_file(source, tmp_path / "a.pt", layers="w", dim=0, to="legacy", verify=True)
    assert result.notes == ()
    assert same(load(tmp_path / "a.pt")["w_g"], torch.full((2, 1), 2.0**-149))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_weights_are_refused_and_what_is_beside_them_is_split(tmp_path: Path, suffix: str) -> None:
    state = {"a": torch.empty(0, 3), "b": torch.empty(3, 0), "c": torch.ones(2, 2)}
    source = write(state, tmp_path / f"in{suffix}")
    for dim in (0, 1):
        with pytest.raises(LayerError, match="2 layers cannot be split"):
            split(source, layers=["a", "b", "c"], dim=dim, to="legacy")
        pairs = split(source, layers=["c"], dim=dim, to="legacy", verify=True)
        back = read(fold(pairs))
        assert all(same(back[name], value) for name, value in state.items())


BAD = {
    "nan": (torch.float32, math.nan, "NaN or infinity in row 2"),
    "infinity": (torch.float32, -math.inf, "NaN or infinity in row 2"),
    "float16": (torch.float16, 65000.0, "norm that float16 cannot hold, in row 2"),
    "float32": (torch.float32, 3e38, "norm that float32 cannot hold, in row 2"),
    "float64": (torch.float64, 1.7e308, "norm that float64 cannot hold, in row 2"),
    "bfloat16": (torch.bfloat16, 3e38, "norm that bfloat16 cannot hold, in row 2"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", BAD)
def test_a_row_without_a_norm_is_an_error_that_names_it(
    run: Runner, tmp_path: Path, kind: str, suffix: str
) -> None:
    dtype, value, says = BAD[kind]
    w = torch.ones(4, 3, 3, dtype=dtype)
    w[2, :2, 0] = value
    source = write({"a.weight": w, "b.weight": torch.ones(4, 3)}, tmp_path / f"in{suffix}")
    out = tmp_path / f"out{suffix}"
    out.write_bytes(OLD)
    before = listing(tmp_path)
    options: list[str | Path] = ["split", source, "-o", out, "--force", "--layers", "*", "--dim", "0"]
    ended = run(*options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {source}: layer a.weight: ")
    assert says in ended.stderr
    assert ended.stderr.splitlines()[-1] == "fix: --exclude leaves a layer as it is"
    assert listing(tmp_path) == before
    ended = run(*options, "--exclude", "a.*")
    assert ended.returncode == 0
    assert same(read(out)["a.weight"], w)


def test_every_layer_without_norms_is_named(tmp_path: Path) -> None:
    state = {f"{at}.w": torch.full((2, 2), math.nan) for at in range(12)}
    source = write(state, tmp_path / "in.pt")
    with pytest.raises(NumbersError, match="12 tensors have numbers without an answer") as caught:
        split(source, layers="*", dim=0)
    assert "".join(caught.value.lines).count("layer ") == 10
    assert caught.value.lines[-1] == "and 2 more"
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_a_finer_recorded_g_holds_a_norm_that_the_weight_cannot(tmp_path: Path) -> None:
    v = torch.full((2, 4), 40000.0, dtype=torch.float16)
    g = v.double().norm(dim=1, keepdim=True).float()
    source = write({"w_g": g, "w_v": v}, tmp_path / "in.pt")
    back = load(split(fold(source), verify=True))
    assert same(back["w_g"], g)
    assert same(back["w_v"], v)


# -- torch's own order, in both forms


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.ones(4))


class Net(nn.Module):
    """Modules with parameters of their own before and behind their children."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 5)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 4, 4, bias=False)
        self.inner = Inner()
        self.rnn = nn.GRU(4, 4)
        self.head = nn.Linear(4, 2)


#: Weights by the dim that their norm keeps.
NORMED = {"conv": 0, "up": 1, "inner.lin": None, "head": 0}


def net(form: str = "", dims: Mapping[str, int | None] = NORMED) -> Net:
    torch.manual_seed(0)
    model = Net()
    for name, dim in dims.items() if form else ():
        norm(model.get_submodule(name), form, dim=dim)
    return model


def metadata_of(model: nn.Module) -> list[tuple[str, Any]]:
    state: Any = model.state_dict()
    return list(state._metadata.items())


def save(model: nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        return write({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_globs_dims_and_a_form_make_the_state_dict_of_torchs_own_module(
    tmp_path: Path, suffix: str, form: str
) -> None:
    source = save(net(), tmp_path / f"in{suffix}")
    out = source
    for name, dim in NORMED.items():
        out = split(out, f"{name}{suffix}", layers=f"{name}.weight", dim=dim, to=form)
    expected, found = net(form), read(out)
    if suffix == ".pt":
        assert list(found) == list(expected.state_dict())
        assert list(load(out)["model"]._metadata.items()) == metadata_of(expected)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.state_dict().items()}
    expected.load_state_dict(found, strict=True)
    x = torch.randn(2, 8)
    for name in NORMED:
        a, b = expected.get_submodule(name), net().get_submodule(name)
        if isinstance(a, nn.Linear):
            assert torch.allclose(a(x[:, : a.in_features]), b(x[:, : a.in_features]), atol=1e-5)


@pytest.mark.parametrize("to", [None, *FORMS])
@pytest.mark.parametrize("form", FORMS)
def test_like_gives_the_form_and_order_of_the_reference_or_torchs_of_another_form(
    tmp_path: Path, form: str, to: str | None
) -> None:
    source, like = save(net(), tmp_path / "in.pt"), save(net(form), tmp_path / "like.pt")
    out = split(source, like=like, to=to)
    expected = net(to or form).state_dict()
    assert list(read(out)) == list(expected)
    assert list(load(out)["model"]._metadata.items()) == metadata_of(net(to or form))
    net(to or form).load_state_dict(read(out), strict=True)


@pytest.mark.parametrize("to", [None, *FORMS])
@pytest.mark.parametrize("form", FORMS)
def test_the_record_gives_the_form_and_order_of_the_original_or_torchs_of_another(
    tmp_path: Path, form: str, to: str | None
) -> None:
    source = save(net(form), tmp_path / "in.pt")
    folded = fold(source)
    assert list(load(folded)["model"]._metadata) == [key for key, _ in metadata_of(net())]
    out = split(folded, to=to)
    expected = net(to or form).state_dict()
    assert list(read(out)) == list(expected)
    assert list(load(out)["model"]._metadata.items()) == metadata_of(net(to or form))
    net(to or form).load_state_dict(read(out), strict=True)


@pytest.mark.parametrize("reference", [".pt", ".safetensors"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_reference_may_be_of_another_container_and_nesting(
    tmp_path: Path, suffix: str, reference: str
) -> None:
    source = save(net(), tmp_path / f"in{suffix}")
    like = save(net("parametrize"), tmp_path / f"like{reference}")
    out = split(source, like=like)
    assert set(read(out)) == set(net("parametrize").state_dict())
    net("parametrize").load_state_dict(read(out), strict=True)


def test_hifigan_from_safetensors_is_like_the_checkpoint_it_came_from(tmp_path: Path) -> None:
    folded = fold(copied("hifigan.safetensors", tmp_path))
    out = split(folded, like=FIXTURES / "g_02500000")
    assert set(read(out)) == set(state_dicts(FIXTURES / "g_02500000")["generator"])
    assert read(fold(out)).keys() == read(folded).keys()


def copied(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes((FIXTURES / name).read_bytes())
    return path


# -- the record


WITH_RECORD = [
    "codec_bf16.safetensors",
    "g_02500000",
    "gan.pt",
    "hifigan.safetensors",
    "legacy_nonzip.pth",
    "step_1000.safetensors",
    "tied.pt",
    "vits.pth",
    "wav2vec2_pos_conv.safetensors",
]


@pytest.mark.parametrize("name", WITH_RECORD, ids=lambda name: name[:20])
def test_split_undoes_a_fold_in_names_shapes_dtypes_and_order_and_fold_undoes_the_split_in_every_byte(
    tmp_path: Path, name: str
) -> None:
    source = copied(name, tmp_path)
    folded = fold(source, f"folded{source.suffix}", keep_optimizer=True)
    back = split(folded, f"back{source.suffix}", keep_optimizer=True, verify=True)
    before, after = state_dicts(source), state_dicts(back)
    assert {
        path: [(key, value.shape, value.dtype) for key, value in state.items() if isinstance(value, Tensor)]
        for path, state in before.items()
    } == {
        path: [(key, value.shape, value.dtype) for key, value in state.items() if isinstance(value, Tensor)]
        for path, state in after.items()
    }
    count = 0
    for path, state in state_dicts(folded).items():
        pairs = halves(after[path])
        count += len(set(pairs) & set(state))
        assert all(same(after[path][pairs[weight][1]], state[weight]) for weight in set(pairs) & set(state))
    assert count > 0, "a comparison of nothing is a failure"
    again = fold(back, f"again{source.suffix}", keep_optimizer=True)
    assert again.read_bytes() == folded.read_bytes()


@pytest.mark.parametrize("second", SUFFIXES)
@pytest.mark.parametrize("first", SUFFIXES)
def test_the_record_goes_through_containers(tmp_path: Path, first: str, second: str) -> None:
    source = copied("g_02500000", tmp_path)
    middle = fold(source, f"middle{first}")
    out = split(middle, f"out{second}")
    assert list(read(out)) == list(state_dicts(source)["generator"])
    assert list(state_dicts(out)) == ["generator" if first == second == ".pt" else ""]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_takes_the_record_of_its_state_dict_along(tmp_path: Path, suffix: str) -> None:
    source = copied("gan.pt", tmp_path)
    everything = state_dicts(source)
    for path in ("generator", "discriminator"):
        alone = fold(source, f"alone{suffix}", only=path)
        assert list(read(split(alone))) == list(everything[path])
        whole = fold(source)
        assert list(read(split(whole, f"x{suffix}", only=path))) == list(everything[path])


def test_a_cast_before_the_split_holds_for_both_halves(tmp_path: Path) -> None:
    folded = fold(copied("g_02500000", tmp_path), "folded.pt", dtype="float16")
    out = split(folded, verify=True)
    assert {value.dtype for value in read(out).values()} == {torch.float16}
    assert list(read(out)) == list(state_dicts(tmp_path / "g_02500000")["generator"])
    assert all(same(a, b) for a, b in zip(read(fold(out)).values(), read(folded).values(), strict=True))


def test_folds_and_splits_in_parts_end_in_the_original_bytes(tmp_path: Path) -> None:
    source = copied("hifigan.safetensors", tmp_path)
    canonical = split(fold(source), "canonical.safetensors")  # v = w, in the order of the original
    state = canonical
    for number, glob in enumerate(["resblocks.[0-3].*", "ups.*", "*"]):
        state = fold(state, f"fold{number}.safetensors", layers=glob)
    for number, glob in enumerate(["resblocks.1?.*", "*.convs1.*", "ups.1.*", "conv_pre.*", "*"]):
        state = split(state, f"split{number}.safetensors", layers=glob)
    assert state.read_bytes() == canonical.read_bytes()


def test_a_migration_between_is_no_obstacle(tmp_path: Path) -> None:
    source = copied("vits.pth", tmp_path)
    part = fold(source, "part.pth", layers="flow.*")
    migrate_file(part, tmp_path / "migrated.pth", drop_optimizer=True)
    out = split(tmp_path / "migrated.pth", "out.pth", to="parametrize")
    state = state_dicts(out)["model"]
    assert set(halves(state)) == set(halves(state_dicts(source)["model"]))
    assert not any(key.endswith("weight_g") for key in state)


# -- ties, views, what stands beside


def tied() -> State:
    w = torch.randn(6, 4)
    base = torch.randn(10, 6)
    return {
        "a.weight": w,
        "b.weight": w,
        "c.weight": base[2:8],
        "d.weight": base.t(),
        "e": base,
        "f": torch.ones(3),
    }


def test_ties_stay_where_both_names_are_split_and_a_note_says_where_one_is(tmp_path: Path) -> None:
    source = write(tied(), tmp_path / "in.pt")
    result = split_file(source, tmp_path / "out.pt", layers=["a.*", "b.*"], dim=0, to="legacy")
    state = load(tmp_path / "out.pt")
    assert result.notes == ()
    for half in "gv":
        one, two = state[f"a.weight_{half}"], state[f"b.weight_{half}"]
        assert one.data_ptr() == two.data_ptr()
    assert state["a.weight_g"].data_ptr() != state["a.weight_v"].data_ptr()
    result = split_file(source, tmp_path / "one.pt", layers="a.*", dim=0, to="legacy")
    assert result.notes == ("b.weight shared memory with a.weight, which is split: two tensors now",)
    state = load(tmp_path / "one.pt")
    assert same(state["b.weight"], tied_value(source, "b.weight"))
    assert same(state["a.weight_v"], state["b.weight"])


def tied_value(source: Path, name: str) -> Tensor:
    value: Tensor = load(source)[name]
    return value.contiguous()


def test_two_dims_of_one_tied_weight_are_two_pairs_with_one_direction(tmp_path: Path) -> None:
    source = write(tied(), tmp_path / "in.pt")
    once = split(source, "once.pt", layers="a.*", dim=0, to="legacy")
    state = load(split(once, "twice.pt", layers="b.*", dim=1, to="legacy"))
    assert (state["a.weight_g"].shape, state["b.weight_g"].shape) == ((6, 1), (1, 4))
    assert same(state["a.weight_v"], state["b.weight_v"])


def test_tied_zero_rows_of_two_dims_are_not_one_direction(tmp_path: Path) -> None:
    w = torch.ones(3, 3)
    w[1] = 0
    source = write({"a": w, "b": w}, tmp_path / "in.pt")
    like = write({"a_g": torch.ones(3, 1), "a_v": w, "b_g": torch.ones(1, 3), "b_v": w}, tmp_path / "like.pt")
    state = load(split(source, like=like, verify=True))
    assert same(state["b_v"], w)
    assert not same(state["a_v"], w)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_of_shared_storages_are_split_by_their_elements(tmp_path: Path, suffix: str) -> None:
    source = write(tied(), tmp_path / "in.pt")
    was = load(source)
    out = split(source, f"out{suffix}", layers=["c.*", "d.*"], dim=0, to="legacy", verify=True)
    state = read(out)
    for name in ("c.weight", "d.weight"):
        assert same(state[f"{name}_v"].contiguous(), was[name].contiguous())
        norms = was[name].double().norm(dim=1, keepdim=True).float()
        assert same(state[f"{name}_g"], norms)
    assert same(state["e"], was["e"])
    back = read(fold(out, f"back{suffix}"))
    assert all(same(back[name].contiguous(), was[name].contiguous()) for name in was)


def test_ties_to_safetensors_are_copies_and_said(tmp_path: Path) -> None:
    source = write(tied(), tmp_path / "in.pt")
    result = split_file(source, tmp_path / "out.safetensors", layers=["a.*", "b.*"], dim=0, to="legacy")
    said = [note for note in result.notes if "share memory" in note]
    assert [note.split(" share")[0] for note in said] == [
        "a.weight_g, b.weight_g",
        "a.weight_v, b.weight_v",
        "d.weight, e",
    ]


def test_siblings_parameters_and_optimizers_are_as_for_fold(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    tree = {
        "model": {"w": nn.Parameter(torch.randn(3, 2)), "n": torch.tensor(7)},
        "optim": optimizer.state_dict(),
        "epoch": 12,
        "config": {"hop": [256, 512]},
    }
    torch.save(tree, tmp_path / "in.pt")
    result = split_file(tmp_path / "in.pt", tmp_path / "out.pt", layers="w", dim=0, to="legacy")
    assert [item.path for item in result.plan.dropped] == ["optim"]
    out = load(tmp_path / "out.pt")
    assert list(out) == ["model", "epoch", "config"]
    assert (out["epoch"], out["config"], out["model"]["n"]) == (12, {"hop": [256, 512]}, torch.tensor(7))
    assert isinstance(out["model"]["w_v"], nn.Parameter)
    assert isinstance(out["model"]["w_g"], nn.Parameter)
    assert out["model"]["w_g"].requires_grad
    kept = split(tmp_path / "in.pt", layers="w", dim=0, keep_optimizer=True)
    assert list(load(kept)) == ["model", "optim", "epoch", "config"]


def test_metadata_of_safetensors_stays_and_a_split_leaves_no_record(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"w": torch.randn(3, 2)}, tmp_path / "in.safetensors", {"format": "pt", "a": "b"}
    )
    out = split(tmp_path / "in.safetensors", layers="w", dim=0)
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "a": "b"}


def test_torchscript_and_the_oldest_format_are_split_by_globs(tmp_path: Path) -> None:
    for name in ("scripted.pt", "legacy_nonzip.pth"):
        source = copied(name, tmp_path)
        weights = fold(source, "folded.pt")
        plain = write(next(iter(state_dicts(weights).values())), tmp_path / "plain.pt")
        layer = next(name for name, value in read(plain).items() if value.dim() > 1)
        out = split(plain, layers=layer, dim=0, verify=True)
        assert layer in halves(read(out))


def test_a_whole_module_is_refused_but_for_its_tensors_alone(tmp_path: Path) -> None:
    folded = fold(copied("waveglow_module.pt", tmp_path), "folded.pt")
    with pytest.raises(LayerError, match="whole pickled module") as caught:
        split(folded)
    assert ".safetensors" in caught.value.fix
    names = set(halves(state_dicts(tmp_path / "waveglow_module.pt")["model"]))
    assert names
    out = split(folded, "out.safetensors", verify=True)
    assert set(halves(read(out))) == names


# -- what it says


def test_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    folded = fold(copied("g_02500000", tmp_path), "folded.pt")
    before = listing(tmp_path)
    plan = split_file(folded, dry_run=True)
    assert listing(tmp_path) == before
    result = split_file(folded)
    assert result.plan == plan
    assert result.output == tmp_path / "folded.split.pt"


def test_progress_comes_to_the_end_and_never_passes_it(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(64, 700, 9),
        "b": torch.randn(300, 2),
        "n": torch.arange(9),
        "z": torch.zeros(4, 4),
    }
    source = write(state, tmp_path / "in.pt")
    for dim in (0, 1, None):
        seen: list[tuple[int, int]] = []
        split(
            source, layers=["a", "b", "z"], dim=dim, progress=lambda *counts, seen=seen: seen.append(counts)
        )
        done = [at for at, _ in seen]
        assert len({total for _, total in seen}) == 1
        assert done == sorted(done)
        assert seen[-1][0] == seen[-1][1] > 0


def test_a_finer_g_than_its_weight_counts_in_the_progress(tmp_path: Path) -> None:
    g, v = torch.ones(5000, 1, dtype=torch.float64), torch.ones(5000, 1, dtype=torch.float16)
    state = {"weight_g": g, "weight_v": v}
    folded = fold(write(state, tmp_path / "in.pt"))
    seen: list[tuple[int, int]] = []
    split(folded, progress=lambda done, total: seen.append((done, total)))
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]


def test_json_and_table_say_what_was_done(run: Runner, tmp_path: Path) -> None:
    source = copied("step_1000.safetensors", tmp_path)
    folded = fold(source)
    ended = run("split", folded, "--json", "-o", tmp_path / "out.pt")
    data = json.loads(ended.stdout)
    assert (ended.returncode, data["verb"], data["already"], data["notes"]) == (0, "split", 0, [])
    assert {layer["form"] for layer in data["layers"]} == {"plain"}
    assert len(data["layers"]) == len(halves(read(source)))
    ended = run("split", tmp_path / "out.pt", "--like", source, "--dry-run")
    assert ended.returncode == 0
    assert f"0 layers split, {len(data['layers'])} split already" in ended.stdout
    assert inspect_file(tmp_path / "out.pt").layers


# -- bad input


def commands(folder: Path) -> Iterator[tuple[list[str | Path], str, str]]:
    """Arguments, what the error says, and its fix."""
    plain = write({"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4)}, folder / "plain.pt")
    pairs = write({"a.weight_g": torch.randn(4, 1), "a.weight_v": torch.randn(4, 3)}, folder / "pairs.pt")
    other = write({"a.weight_g": torch.randn(5, 1), "a.weight_v": torch.randn(5, 3)}, folder / "other.pt")
    text = folder / "text.pt"
    text.write_text("<html>")
    yield [plain], "nothing says which weights to split", "--like REF"
    yield [plain, "--dim", "0"], "--dim alone names no layers", "--layers GLOB"
    yield [plain, "--layers", "a.weight"], "not the axis", "--dim 0"
    yield [plain, "--like", pairs, "--dim", "0"], "--like says every dim itself", "leave --dim out"
    yield [plain, "--like", plain], "--like has no weight-normalized layers", "not folded"
    yield [plain, "--like", text], "text.pt: a web page", "download"
    yield [plain, "--like", folder / "nothing.pt"], "nothing.pt: there is no such file", "check the path"
    yield [plain, "--like", folder], "a folder of 3 checkpoints (other.pt, pairs.pt, plain.pt)", "name one"
    yield [plain, "--like", other], r"it is (4, 3), not (5, 3)", "--exclude"
    yield [plain, "--layers", "x.*", "--dim", "0"], "--layers 'x.*' matches no weight", "a.weight"
    yield [plain, "--layers", "a.weight", "--dim", "2"], "has no axis 2", "--exclude"
    yield [plain, "--layers", "a.weight", "--dim", "x"], "'x'", "--help"
    yield [plain, "--layers", "a.weight", "--dim", "0", "--to", "x"], "'x'", "--help"
    yield [plain, "--layers", "*", "--dim", "0", "--only", "b"], "no state dict at 'b'", "--only"
    yield [text, "--like", pairs], "text.pt: a web page", "download"
    yield [pairs], "nothing says which weights", "--like"


def test_every_bad_command_is_refused_in_words_and_leaves_nothing(run: Runner, tmp_path: Path) -> None:
    count = 0
    for arguments, says, fix in list(commands(tmp_path)):
        out = tmp_path / "out.pt"
        out.write_bytes(OLD)
        before = listing(tmp_path)
        ended = run("split", *arguments, "-o", out, "--force")
        assert (ended.returncode, ended.stdout) == (2, ""), arguments
        first, last = ended.stderr.splitlines()[0], ended.stderr.splitlines()[-1]
        assert first.startswith("error: ")
        assert says in ended.stderr, (arguments, ended.stderr)
        assert last.startswith("fix: ")
        assert fix in last, (arguments, last)
        assert listing(tmp_path) == before
        count += 1
    assert count > 10


def test_an_output_that_exists_or_is_the_source_is_refused(run: Runner, tmp_path: Path) -> None:
    source = write({"a": torch.randn(4, 3)}, tmp_path / "in.pt")
    (tmp_path / "in.split.pt").write_bytes(OLD)
    ended = run("split", source, "--layers", "a", "--dim", "0")
    assert ended.returncode == 2
    assert "--force" in ended.stderr
    assert (tmp_path / "in.split.pt").read_bytes() == OLD
    assert run("split", source, "--layers", "a", "--dim", "0", "--force").returncode == 0


def test_the_reference_is_never_written_over(tmp_path: Path) -> None:
    source = write({"a": torch.randn(4, 3)}, tmp_path / "in.pt")
    like = write({"a_g": torch.randn(4, 1), "a_v": torch.randn(4, 3)}, tmp_path / "like.pt")
    (tmp_path / "link.pt").symlink_to(like)
    before = like.read_bytes()
    for out in (like, tmp_path / "link.pt"):
        with pytest.raises(OutputError, match="--like reads it"):
            split_file(source, out, like=like, force=True)
    assert like.read_bytes() == before


def test_an_error_in_a_split_names_the_state_dict(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.full((2, 2), math.nan)}}, tmp_path / "in.pt")
    with pytest.raises(WnconvertError, match=r"in\.pt: generator: layer a: NaN or infinity in 2 rows"):
        split(tmp_path / "in.pt", layers="a", dim=0)


def test_torch_makes_the_same_pairs_up_to_the_last_bits(tmp_path: Path) -> None:
    module = nn.Conv1d(6, 8, 3)
    source = write(module.state_dict(), tmp_path / "in.pt")
    for dim in (0, 1, 2, None):
        out = load(split(source, layers="weight", dim=dim))
        fresh = nn.Conv1d(6, 8, 3)
        fresh.load_state_dict(module.state_dict())
        torchs = parametrizations.weight_norm(fresh, dim=dim).state_dict()  # type: ignore[arg-type]
        assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in torchs.items()}
        assert list(out) == list(torchs)
        assert all(torch.allclose(out[name], torchs[name], rtol=1e-6) for name in torchs)


# -- what must never be lost, and what a fold must find again


def reference(name: str, form: str, shape: tuple[int, ...] = (4, 3)) -> State:
    w = torch.arange(float(math.prod(shape))).reshape(shape) + 1
    owner, _, param = name.rpartition(".")
    at = f"{owner}." if owner else ""
    keys = {
        "legacy": (f"{name}_g", f"{name}_v"),
        "parametrize": tuple(f"{at}parametrizations.{param}.original{half}" for half in "01"),
    }[form]
    return dict(zip(keys, (torch.ones(shape[0], *[1] * (len(shape) - 1)), w), strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("form", "to"), [("legacy", "parametrize"), ("parametrize", "legacy")])
def test_a_key_that_a_pair_would_pass_through_is_not_lost(
    form: str, to: str, suffix: str, tmp_path: Path
) -> None:
    own = list(reference("conv.weight", form))[1]
    source = write({"conv.weight": torch.ones(4, 3), own: torch.ones(7)}, tmp_path / f"in{suffix}")
    like = write(reference("conv.weight", form), tmp_path / f"like{suffix}")
    before = listing(tmp_path)
    with pytest.raises(LayerError, match="is taken"):
        split(source, like=like, to=to)
    assert listing(tmp_path) == before
    recorded = fold(like, f"recorded{suffix}")
    state = read(recorded) | {own: torch.ones(7)}
    if suffix == ".safetensors":
        with safe_open(recorded, framework="pt") as file:
            metadata = file.metadata()
        safetensors.torch.save_file(state, recorded, metadata=metadata)
        with pytest.raises(LayerError, match="is taken"):
            split(recorded, to=to)


@pytest.mark.parametrize(
    ("beside", "name", "reason"),
    [
        (reference("w", "legacy"), "w", "there twice|is there too"),
        ({"w_mask": torch.ones(4, 3)}, "w", "w_mask beside it"),
        ({}, "a.", "no layer has such a name"),
        ({}, "", "no layer has such a name"),
    ],
)
@pytest.mark.parametrize("to", FORMS)
def test_what_a_fold_would_not_find_again_is_not_split(
    beside: State, name: str, reason: str, to: str, tmp_path: Path
) -> None:
    if "w_mask" in beside and to == "parametrize":
        return  # there prune's mask is no sign of a stack
    source = write({name: torch.ones(4, 3), **beside}, tmp_path / "in.safetensors")
    with pytest.raises(LayerError, match=f"a fold would not find it again: .*({reason})|is taken"):
        split(source, layers=[name], dim=0, to=to)
    assert not (tmp_path / "in.split.safetensors").exists()


def test_a_recorded_vector_that_fits_several_axes_stays_one_and_the_option_is_said(tmp_path: Path) -> None:
    state = {"w_g": torch.tensor([1.0, 2, 3]), "w_v": torch.arange(9.0).reshape(3, 3) + 1}
    plain = fold(write(state, tmp_path / "in.pt"), "plain.pt", dim=1)
    result = split_file(plain, tmp_path / "pair.pt")
    assert "w: the next fold needs --dim 1, which a vector does not show" in result.notes
    assert read(tmp_path / "pair.pt")["w_g"].shape == (3,)
    assert same(read(fold(tmp_path / "pair.pt", dim=1))["w"], read(plain)["w"])
    plain = fold(tmp_path / "in.pt", "rows.pt", dim=0)
    assert read(split(plain, "rows.split.pt"))["w_g"].shape == (3,)


def test_layers_of_a_reference_that_have_no_counterpart_are_said(tmp_path: Path) -> None:
    torch.save(
        {"gen": reference("a.weight", "legacy"), "disc": reference("d.weight", "legacy")}, tmp_path / "r"
    )
    torch.save({"other": {"a.weight": torch.ones(4, 3)}}, tmp_path / "in.pt")
    result = split_file(tmp_path / "in.pt", like=tmp_path / "r")
    assert result.notes == ("--like has layers in disc too, without a counterpart here",)


def test_a_view_of_a_split_weight_in_another_order_is_said_to_be_untied(tmp_path: Path) -> None:
    w = torch.arange(12.0).reshape(4, 3) + 1
    result = split_file(write({"a.weight": w, "c.weight": w.t()}, tmp_path / "in.pt"), layers="a.*", dim=0)
    assert result.notes == ("c.weight shared memory with a.weight, which is split: two tensors now",)


def test_a_name_of_very_many_dots_in_a_reference_costs_no_square_of_it(run: Runner, tmp_path: Path) -> None:
    name = "a." * 200_000 + "weight"
    like = write(reference(name, "legacy"), tmp_path / "like.safetensors")
    source = write({"weight": torch.ones(4, 3)}, tmp_path / "in.safetensors")
    done = run("split", source, "--like", like)
    assert (done.returncode, "fix: --like names a checkpoint of the same model" in done.stderr) == (2, True)
