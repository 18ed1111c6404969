"""Two checkpoints as functions: names first, then shapes, then values, whatever their forms."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from tests.helpers.golden import ROOT
from tests.helpers.marks import some
from tests.helpers.oracle import DTYPES
from tests.helpers.states import State, folded64, output_of
from wnconvert.errors import ArgumentError, FormatError, InputError, LayerError
from wnconvert.reports.text.comparisons import comparison_table
from wnconvert.verbs.comparison import compare as module
from wnconvert.verbs.comparison import readings
from wnconvert.verbs.comparison.compare import compare_files, compare_state_dicts
from wnconvert.verbs.comparison.result import COLUMNS, Comparison
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict

FIXTURES = ROOT / "fixtures"
FORMS = ("legacy", "parametrize")
FOLDABLE = sorted(
    path.name
    for path in FIXTURES.iterdir()
    if path.is_file()
    and path.suffix in ("", ".pt", ".pth", ".ckpt", ".safetensors")
    and not path.name.startswith(("float8", "misfit", "stack", "zero_row"))
)


def rows(count: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """g and v of a layer over dim 0."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 1, generator=random) + 0.5, torch.randn(count, 4, 3, generator=random)


def layer(name: str = "conv", form: str = "legacy", seed: int = 0) -> State:
    g, v = rows(seed=seed)
    at = f"{name}.parametrizations.weight.original" if form == "parametrize" else f"{name}.weight_"
    return dict(
        zip((f"{at}0", f"{at}1") if form == "parametrize" else (f"{at}g", f"{at}v"), (g, v), strict=True)
    )


def step(values: Any, ulps: int, at: tuple[int, ...] = (0,)) -> Any:
    """A copy whose element ``at`` is so many floats further from zero."""
    moved = np.array(values)
    moved.view(f"i{moved.itemsize}")[at] += ulps
    return moved


def plain(values: Any) -> dict[str, Any]:
    return {"weight": np.atleast_1d(values)}


def compare(a: Any, b: Any, **options: Any) -> Comparison:
    return compare_state_dicts(plain(a), plain(b), **options)


# -- one function in several forms


def test_one_generator_in_two_forms_and_containers_is_equal() -> None:
    found = compare_files(FIXTURES / "g_02500000", FIXTURES / "hifigan.safetensors")
    assert found
    assert (found.layers, found.compared, found.identical) == (78, 156, 156)
    assert found.pairs == (("generator", ""),)
    assert not found.advice


@pytest.mark.parametrize("name", FOLDABLE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_fixture_equals_its_fold_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    several = name in ("gan.pt", "do_02500000")
    only = {"gan.pt": "generator", "do_02500000": "msd"}[name] if several and suffix != ".pt" else None
    folded = tmp_path / f"folded{suffix}"
    fold_file(FIXTURES / name, folded, only=only, copy=True)
    every = fold_file(FIXTURES / name, only=only, kinds="all", dry_run=True).layers
    for found in (
        compare_files(FIXTURES / name, folded, only=only or ()),
        compare_files(folded, FIXTURES / name, only=only or ()),
    ):
        assert found, found.to_dict()
        assert found.layers == len(every)
        assert found.identical == found.compared > 0


def test_a_fold_by_torch_is_near_and_the_tolerance_that_it_needs_passes(tmp_path: Path) -> None:
    source = torch.load(FIXTURES / "g_02500000", weights_only=True)["generator"]
    folded = {name: value for name, value in source.items() if not name.endswith(("_g", "_v"))}
    for name in (key.removesuffix("_g") for key in source if key.endswith("weight_g")):
        folded[name] = folded64(source[f"{name}_g"], source[f"{name}_v"]).float()
    save_file(folded, tmp_path / "folded.safetensors")
    assert compare_files(FIXTURES / "g_02500000", tmp_path / "folded.safetensors")
    folded["conv_pre.weight"][3, 0, 1] += 0.25
    save_file(folded, tmp_path / "other.safetensors")
    found = compare_files(FIXTURES / "g_02500000", tmp_path / "other.safetensors")
    assert not found
    (row,) = found.differing
    assert (row.name, row.why, row.worst, row.different) == ("conv_pre.weight", "values", (3, 0, 1), 1)
    assert (row.a.form, row.b.form) == ("legacy", "plain")
    assert row.max_abs == pytest.approx(0.25, rel=1e-6)
    need = found.tolerance_needed
    assert need is not None
    assert compare_files(FIXTURES / "g_02500000", tmp_path / "other.safetensors", atol=need.atol)


@pytest.mark.parametrize("form_a", FORMS)
@pytest.mark.parametrize("form_b", FORMS)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_layers_of_other_g_and_v_with_the_same_weights_are_equal(
    form_a: str, form_b: str, dim: int | None
) -> None:
    v = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    axes = [axis for axis in range(3) if axis != dim]
    g = v.square().sum(axes, keepdim=True).sqrt() * 3 if dim is not None else v.norm() * 3
    keys = {
        "legacy": ("c.weight_g", "c.weight_v"),
        "parametrize": ("c.parametrizations.weight.original0", "c.parametrizations.weight.original1"),
    }
    a = dict(zip(keys[form_a], (g, v), strict=True))
    b = dict(zip(keys[form_b], (g, v * 4), strict=True))  # a power of two: the same direction, exactly
    found = compare_state_dicts(a, b)
    assert (bool(found), found.identical, found.layers) == (True, 1, 1)
    b[keys[form_b][0]] = g * 1.5
    assert not compare_state_dicts(a, b)


def test_layers_over_different_axes_are_compared_by_their_weights() -> None:
    w = torch.randn(700, 900, generator=torch.Generator().manual_seed(2))
    wide = w.double()
    a = {"c.weight_g": wide.norm(dim=1, keepdim=True).float(), "c.weight_v": w * 2}
    b = {"c.weight_g": wide.norm(dim=0, keepdim=True).float(), "c.weight_v": w * 8}
    assert compare_state_dicts(a, b, atol=1e-6)
    assert compare_state_dicts(
        a, {"c.weight_g": wide.norm().float().reshape(1, 1), "c.weight_v": w * 8}, atol=1e-6
    )
    assert not compare_state_dicts(a, b | {"c.weight_v": w.flip(0)}, atol=1e-6)


def test_layers_with_the_same_bits_are_equal_without_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("folded")

    monkeypatch.setattr(readings, "Folding", never)
    assert compare_state_dicts(layer(), layer(form="parametrize"))
    with pytest.raises(AssertionError, match="folded"):
        compare_state_dicts(layer(), layer(seed=1))


def test_torch_tensors_and_numpy_arrays_are_compared_with_each_other() -> None:
    state = layer() | {"n": torch.tensor(3), "half": torch.randn(5, dtype=torch.bfloat16)}
    arrays = {
        name: value.view(torch.int16).numpy().view(DTYPES["bfloat16"])
        if value.dtype == torch.bfloat16
        else value.numpy()
        for name, value in state.items()
    }
    parameters = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in state.items()}
    assert compare_state_dicts(state, arrays).identical == 3
    assert (
        compare_state_dicts(
            parameters,
            {
                name: value.astype(value.dtype.newbyteorder(">")) if value.dtype == np.float32 else value
                for name, value in arrays.items()
            },
        ).identical
        == 3
    )
    transposed = {"w": torch.arange(6.0).reshape(2, 3).t()}
    assert compare_state_dicts(transposed, {"w": np.array([[0, 3], [1, 4], [2, 5]], np.float32)})
    assert not compare_state_dicts(transposed, {"w": np.array([[0, 1], [2, 3], [4, 5]], np.float32)})


def test_transposed_views_in_a_file_are_compared_in_their_own_order(tmp_path: Path) -> None:
    w = torch.randn(70, 90)
    torch.save({"w": w.t()}, tmp_path / "a.pt")
    save_file({"w": w.t().contiguous()}, tmp_path / "b.safetensors")
    save_file({"w": w.reshape(90, 70).contiguous()}, tmp_path / "c.safetensors")
    assert compare_files(tmp_path / "a.pt", tmp_path / "b.safetensors").identical == 1
    assert not compare_files(tmp_path / "a.pt", tmp_path / "c.safetensors")


# -- the tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1.0, -1.5, 0.1, 2.0**-14, 0.0])
def test_one_ulp_passes_and_two_do_not(dtype: str, value: float) -> None:
    a = np.array([value, 3], DTYPES[dtype])
    assert compare(a, a).identical == 1
    near = compare(a, step(a, 1))
    assert near
    assert (near.identical, near.within) == (0, 1)
    far = compare(a, step(a, 2))
    assert not far
    assert far.differing[0].ulps == 2
    assert not compare(step(a, 2), a)


def test_one_weight_of_a_layer_may_be_one_ulp_off_but_not_two() -> None:
    folded = {name: value.numpy() for name, value in fold_state_dict(layer()).items()}
    for ulps, equal in ((0, True), (1, True), (2, False), (-1, True), (-2, False)):
        moved = {"conv.weight": step(folded["conv.weight"], ulps, (7, 3, 2))}
        assert bool(compare_state_dicts(layer(), moved)) is equal
        assert bool(compare_state_dicts(moved, layer(form="parametrize"))) is equal


def test_both_zeros_are_one_and_the_least_numbers_beside_them_are_two_apart() -> None:
    least = np.nextafter(np.float32(0), np.float32(1))
    assert compare(np.array([0.0], np.float32), np.array([-0.0], np.float32)).within == 1
    assert not compare(np.array([least], np.float32), np.array([-least], np.float32))
    assert compare(np.array([least], np.float32), np.array([-0.0], np.float32))


def test_numbers_of_other_sign_are_far_apart_in_every_dtype() -> None:
    for dtype in DTYPES.values():
        top = np.finfo(dtype).max if dtype != DTYPES["bfloat16"] else dtype.type(3.38e38)
        (row,) = compare(np.array([top], dtype), np.array([-top], dtype)).differing
        assert row.ulps is not None
        assert row.ulps > 2 ** (8 * dtype.itemsize - 3)


@pytest.mark.parametrize(
    ("fine", "coarse"), [("float32", "float16"), ("float64", "float32"), ("float16", "bfloat16")]
)
def test_two_dtypes_are_compared_in_the_coarser(fine: str, coarse: str) -> None:
    values = np.linspace(0.1, 2, 50).astype(DTYPES[fine])
    rounded = values.astype(DTYPES[coarse])
    found = compare(values, rounded)
    assert found
    assert any(f"{fine} in A and {coarse} in B: compared as {coarse}" in note for note in found.notes)
    assert compare(values, step(rounded, 1))
    assert not compare(values, step(rounded, 2))
    assert not compare(step(rounded, 2), values)


def test_many_tensors_of_other_dtypes_are_one_note() -> None:
    state = fold_state_dict(layer() | layer("post") | {"n": torch.tensor(1)})
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    found = compare_state_dicts(state, half)
    assert found
    assert found.notes == ("2 tensors are float32 in A and float16 in B: compared as float16",)


def test_a_torchscript_archive_equals_its_fold_and_notes_nothing_of_writing(tmp_path: Path) -> None:
    folded = output_of(fold_file(FIXTURES / "scripted.pt", tmp_path / "f.pt"))
    found = compare_files(FIXTURES / "scripted.pt", folded)
    assert (bool(found), found.notes) == (True, ())


def test_a_value_past_the_coarser_dtype_is_not_next_to_its_largest() -> None:
    assert not compare(np.array([1e30], np.float32), np.array([65504], np.float16))
    assert not compare(np.array([1e30], np.float32), np.array([math.inf], np.float16))
    assert compare(np.array([65510], np.float32), np.array([65504], np.float16))


def test_a_given_tolerance_takes_the_place_of_ulps() -> None:
    a, b = np.array([1.0, 100.0], np.float64), np.array([1.001, 100.1], np.float64)
    assert not compare(a, b)
    assert compare(a, b, rtol=1e-3)
    assert not compare(a, b, rtol=9e-4)
    assert compare(a, b, atol=0.11)
    assert not compare(a, b, atol=0.09)
    assert compare(a, b, atol=0.05, rtol=6e-4)
    assert not compare(a, step(a, 1), atol=0)
    assert compare(a, step(a, 1))


def test_the_tolerance_is_relative_to_b() -> None:
    assert compare(np.array([1.0], np.float64), np.array([2.0], np.float64), rtol=0.5)
    assert not compare(np.array([2.0], np.float64), np.array([1.0], np.float64), rtol=0.5)


@pytest.mark.parametrize("option", [{"rtol": -1.0}, {"atol": math.nan}, {"rtol": math.inf}])
def test_what_is_no_tolerance_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="is not a tolerance"):
        compare(np.array([1], np.float32), np.array([1], np.float32), **option)


FINITE = st.sampled_from(["float64", "float32", "float16", "bfloat16"])


@st.composite
def two(draw: st.DrawFn) -> tuple[Any, Any]:
    """Two finite arrays of one length, of any float dtypes."""
    size = draw(st.integers(1, 12))
    sides = []
    for _ in "ab":
        dtype = draw(FINITE)
        wide = "float32" if dtype == "bfloat16" else dtype
        floats = st.floats(width=np.dtype(wide).itemsize * 8, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
        values = draw(hnp.arrays(wide, size, elements=floats))
        with np.errstate(over="ignore"):
            values = values.astype(DTYPES[dtype])
        values[~np.isfinite(values)] = 1
        sides.append(values)
    return sides[0], sides[1]


def slightly_less(tolerance: float) -> float:
    return min(tolerance * (1 - 1e-9), math.nextafter(tolerance, 0))


def _printed(advice: str) -> list[dict[str, float]]:
    """The options that a text names, each way by itself."""
    ways = advice.removesuffix(" would have passed").split(" or ")
    words = [way.split() for way in ways]
    return [{key[2:]: float(value) for key, value in zip(way[::2], way[1::2], strict=True)} for way in words]


@given(two(), st.sampled_from([None, 0.0, 1e-3, 1.0]), st.sampled_from([None, 0.0, 1e-5, 2.0]))
def test_the_tolerance_needed_passes_and_any_less_does_not(
    pair: tuple[Any, Any], rtol: float | None, atol: float | None
) -> None:
    found = compare(*pair, rtol=rtol, atol=atol)
    need = found.tolerance_needed
    if found:
        assert need is None
        return
    assert need is not None or "no tolerance" in found.advice
    if need is None:
        return
    if need.atol is not None:
        assert compare(*pair, atol=need.atol, rtol=rtol)
        assert rtol or not compare(*pair, atol=slightly_less(need.atol))
    if need.rtol is not None:
        assert compare(*pair, rtol=need.rtol, atol=atol)
        assert atol or not compare(*pair, rtol=slightly_less(need.rtol))
    if (ways := found.advice) != "no tolerance would have passed":
        for options in _printed(ways):
            assert compare(*pair, **options)


@given(two())
def test_what_is_told_of_a_difference_is_what_numpy_computes(pair: tuple[Any, Any]) -> None:
    a, b = (side.astype(np.float64) for side in pair)
    found = compare(*pair, atol=0.0)
    d = np.abs(a - b) if np.abs(a).max() < 1e150 and np.abs(b).max() < 1e150 else None
    if d is None or not d.any():
        return
    (row,) = found.differing
    assert row.max_abs == d.max()
    assert row.worst == (int(d.argmax()),)
    assert row.different == np.count_nonzero(d)
    with np.errstate(all="ignore"):
        assert row.max_rel == np.where(d > 0, d / np.abs(b), 0).max()
        if row.cosine is not None:
            assert row.cosine == pytest.approx((a @ b) / math.sqrt(a @ a) / math.sqrt(b @ b), abs=1e-12)
        if row.snr_db is not None:
            assert row.snr_db == pytest.approx(10 * (math.log10(b @ b) - math.log10(d @ d)))


def test_a_tensor_within_tolerance_has_its_part_in_what_is_needed() -> None:
    least = np.nextafter(np.float32(0), np.float32(1))
    a = {"x": np.array([0.0], np.float32), "y": np.array([1.0], np.float32)}
    b = {"x": np.array([least], np.float32), "y": np.array([1.5], np.float32)}
    need = compare_state_dicts(a, b).tolerance_needed
    assert need is not None
    assert need.rtol == 1.0, "x is one ulp off, and needs all of b"
    assert compare_state_dicts(a, b, rtol=need.rtol)
    assert compare_state_dicts(b, a).tolerance_needed.rtol is None  # type: ignore[union-attr]


def test_statistics_are_of_the_whole_tensor_and_not_of_the_blocks_that_differ() -> None:
    a = np.random.default_rng(0).standard_normal(700_001).astype(np.float32)
    b = a.copy()
    b[600_000] += 1
    (row,) = compare(a, b).differing
    wide = b.astype(np.float64)
    noise = float(wide[600_000] - a[600_000])
    assert (row.worst, row.different) == ((600_000,), 1)
    assert row.snr_db == pytest.approx(10 * math.log10(wide @ wide / noise**2))
    exact = (a.astype(np.float64) @ wide) / math.sqrt(wide @ wide) / np.linalg.norm(a.astype(np.float64))
    assert row.cosine == pytest.approx(exact, abs=1e-14)


def test_a_zero_side_has_no_cosine_and_no_signal() -> None:
    (row,) = compare(np.array([1.0, 2.0], np.float32), np.array([0.0, 0.0], np.float32)).differing
    assert (row.cosine, row.snr_db, row.max_rel) == (None, None, math.inf)
    assert row.to_dict()["max_rel"] is None


# -- NaN and infinities


def test_nan_equals_nan_in_the_same_place_and_nothing_else() -> None:
    other = np.array([0x7FC00123], np.uint32).view(np.float32)[0]
    assert compare(np.array([math.nan, 1], np.float32), np.array([other, 1], np.float32)).within == 1
    found = compare(np.array([math.nan, 1, 2], np.float32), np.array([0, 1, math.nan], np.float32))
    (row,) = found.differing
    assert (row.unmatched, row.different, row.worst) == (2, 2, (0,))
    assert (row.max_abs, row.max_rel, row.ulps, row.cosine, row.snr_db) == (None,) * 5
    table = comparison_table(found)
    assert table is not None
    assert "2 NaN/inf" in table.rows[0]
    assert "0" not in table.rows[0]
    assert found.tolerance_needed is None
    assert found.advice == "no tolerance would have passed: NaN or infinities differ"
    assert not compare(np.array([math.nan], np.float32), np.array([1], np.float32), atol=1e30)


def test_infinities_are_equal_with_the_same_sign_only() -> None:
    top = np.finfo(np.float32).max
    assert compare(np.array([math.inf], np.float32), np.array([math.inf], np.float64))
    assert not compare(np.array([math.inf], np.float32), np.array([-math.inf], np.float32))
    assert not compare(np.array([math.inf], np.float32), np.array([top], np.float32))
    assert not compare(np.array([math.inf], np.float32), np.array([top], np.float32), atol=1e300)


def test_beside_a_nan_on_both_sides_numbers_are_still_told() -> None:
    found = compare(np.array([math.nan, 1.0, 2.0], np.float32), np.array([math.nan, 1.5, 2.0], np.float32))
    (row,) = found.differing
    assert (row.unmatched, row.different, row.max_abs, row.worst) == (0, 1, 0.5, (1,))
    assert found.advice == "--atol 0.5 or --rtol 0.334 would have passed"


# -- what is no float


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_what_is_no_float_is_compared_bit_for_bit(dtype: str) -> None:
    a, b = np.array([0, 1, 1, 1]).astype(dtype), np.array([0, 1, 0, 0]).astype(dtype)
    assert compare(a, a).identical == 1
    found = compare(a, b, atol=10.0)
    (row,) = found.differing
    assert (row.why, row.different, row.worst, row.ulps) == ("bits", 2, (2,), None)
    assert found.tolerance_needed is None
    assert "no tolerance would have passed" in found.advice


def test_plain_float8_weights_are_compared_bit_for_bit() -> None:
    a = torch.randn(9).to(torch.float8_e4m3fn)
    assert compare_state_dicts({"w": a}, {"w": a.clone()})
    assert not compare_state_dicts({"w": a}, {"w": (-a.float()).to(torch.float8_e4m3fn)})


def test_integers_and_floats_differ_by_their_dtype() -> None:
    found = compare(np.array([1], np.float32), np.array([1], np.int32), atol=1.0)
    assert [row.why for row in found.differing] == ["dtype"]
    assert not compare(np.array([1], np.int64), np.array([1], np.int32))
    assert compare(np.array([1], np.float64), np.array([1], np.float32))


def test_scalars_and_empty_tensors_are_compared() -> None:
    a = {"step": torch.tensor(3), "scale": torch.tensor(2.0), "none": torch.empty(0, 4)}
    assert compare_state_dicts(a, dict(a)).identical == 3
    found = compare_state_dicts(a, a | {"scale": torch.tensor(3.0), "none": torch.empty(4, 0)})
    assert [(row.name, row.why, row.worst) for row in found.differing] == [
        ("scale", "values", ()),
        ("none", "shape", None),
    ]


# -- names and shapes


def test_names_on_one_side_only_are_listed_in_order_and_make_a_difference() -> None:
    a = layer("z") | layer("b") | {"same": torch.ones(1)}
    b = {"same": torch.ones(1), "y.bias": torch.ones(2), "x.bias": torch.ones(2)}
    found = compare_state_dicts(a, b)
    assert not found
    assert found.only_in_a == ("z.weight", "b.weight")
    assert found.only_in_b == ("y.bias", "x.bias")
    assert (found.compared, found.identical) == (1, 1)
    assert found.advice == "no tolerance would have passed: names differ"


def test_a_shape_that_differs_is_told_with_both_and_no_numbers() -> None:
    found = compare_state_dicts({"w": torch.ones(2, 3)}, {"w": torch.ones(3, 2)})
    (row,) = found.differing
    assert (row.why, row.a.shape, row.b.shape, row.max_abs) == ("shape", (2, 3), (3, 2), None)
    assert found.rows()[0][1:4] == ("plain float32 2×3", "plain float32 3×2", "shape")


def test_names_first_then_shapes_then_values_and_differences_in_the_order_of_a() -> None:
    a = {"c": torch.ones(2), "b": torch.ones(2), "a": torch.ones(2), "d": torch.ones(2)}
    b = {"d": torch.zeros(2), "a": torch.ones(2), "b": torch.ones(3), "c": torch.zeros(2)}
    found = compare_state_dicts(a, b)
    assert [(row.name, row.why) for row in found.differing] == [
        ("c", "values"),
        ("b", "shape"),
        ("d", "values"),
    ]
    assert (found.compared, found.identical, found.within) == (4, 1, 0)
    assert found.advice.startswith(
        "no tolerance would have passed: shapes differ; the other values would pass"
    )


def test_spectral_norm_is_compared_by_the_weight_that_it_computes() -> None:
    state = {"c.weight_orig": torch.ones(2, 3), "c.weight_u": torch.ones(2), "c.weight_v": torch.ones(3)}
    assert compare_state_dicts(state, dict(state)).layers == 1
    assert not compare_state_dicts(state, state | {"c.weight_u": torch.zeros(2)})


def test_a_prefix_is_stripped_on_either_side_and_hinted_at_where_all_names_have_it() -> None:
    a = {f"module.{name}": value for name, value in (layer() | layer("post", seed=1)).items()}
    b = fold_state_dict(layer() | layer("post", seed=1))
    for left, right in ((a, b), (b, a)):
        with pytest.raises(ArgumentError, match="no name in common") as caught:
            compare_state_dicts(left, right)
        assert caught.value.fix == 'the names differ by a prefix: strip_prefix="module." takes it off'
        found = compare_state_dicts(left, right, strip_prefix="module.")
        assert (bool(found), found.identical) == (True, 2)


def test_other_prefixes_on_both_sides_are_hinted_at_and_stripped() -> None:
    a = {f"_orig_mod.{name}": value for name, value in layer().items()}
    b = {f"module.{name}": value for name, value in layer(form="parametrize").items()}
    with pytest.raises(ArgumentError) as caught:
        compare_state_dicts(a, b)
    assert 'strip_prefix=["_orig_mod.", "module."]' in caught.value.fix
    assert compare_state_dicts(a, b, strip_prefix=("_orig_mod.", "module."))


def test_nested_prefixes_are_hinted_at_whole() -> None:
    a = {f"model._orig_mod.module.{name}": value for name, value in layer().items()}
    with pytest.raises(ArgumentError) as caught:
        compare_state_dicts(a, layer())
    assert 'strip_prefix="model._orig_mod.module." takes it off' in caught.value.fix
    assert compare_state_dicts(a, layer(), strip_prefix="model._orig_mod.module")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_names_are_seen_through_on_either_side_and_it_is_said(wrapper: str) -> None:
    wrapped = layer(f"model.decoder.{wrapper}.conv") | layer("model.post", seed=1)
    plain = fold_state_dict(layer("model.decoder.conv") | layer("model.post", seed=1))
    found = compare_state_dicts(wrapped, plain)
    assert (bool(found), found.identical, found.only_in_a, found.only_in_b) == (True, 2, (), ())
    note = f"{wrapper} in names is seen through (model.decoder.{wrapper}.conv is model.decoder.conv)"
    assert found.notes == (note,)
    back = compare_state_dicts(plain, wrapped)
    assert (bool(back), back.identical, len(back.notes)) == (True, 2, 1)
    other = {**plain, "model.decoder.conv.weight": plain["model.decoder.conv.weight"] + 1}
    assert [item.name for item in compare_state_dicts(wrapped, other).differing] == [
        f"model.decoder.{wrapper}.conv.weight"
    ]


def test_wrappers_that_both_sides_have_are_names_like_others() -> None:
    a = layer("model._orig_mod.conv")
    assert compare_state_dicts(a, dict(a)).notes == ()


def test_a_wrapped_and_a_bare_module_of_one_side_are_not_taken_for_each_other() -> None:
    a = layer("x._orig_mod.conv") | layer("x.conv", seed=1)
    found = compare_state_dicts(a, layer("x.conv", seed=1))
    assert (found.identical, found.only_in_a, found.notes) == (1, ("x._orig_mod.conv.weight",), ())


def test_there_is_no_hint_where_some_names_agree_or_none_would() -> None:
    one = torch.ones(1)
    found = compare_state_dicts({"module.x": one, "y": one}, {"x": one, "y": one})
    assert (found.only_in_a, found.only_in_b, found.notes) == (("module.x",), ("x",), ())
    with pytest.raises(ArgumentError, match="no name in common") as caught:
        compare_state_dicts({"module.x": one}, {"y": one})
    assert "prefix" not in caught.value.fix


def test_names_that_become_one_without_the_prefix_are_refused() -> None:
    with pytest.raises(ArgumentError, match="without the prefix, two of its names are 'x'"):
        compare_state_dicts(
            {"module.x": torch.ones(1), "x": torch.ones(1)}, {"x": torch.ones(1)}, strip_prefix="module."
        )


def test_globs_choose_what_is_compared_with_or_without_the_prefix() -> None:
    a = {
        f"module.{name}": value
        for name, value in (layer("dec") | layer("enc") | {"dec.bias": torch.ones(1)}).items()
    }
    b = fold_state_dict(layer("dec") | layer("enc", seed=5)) | {"dec.bias": torch.ones(1)}
    assert not compare_state_dicts(a, b, strip_prefix="module.")
    for options in ({"layers": "dec.*"}, {"layers": ["module.dec.*", "dec.*"]}, {"exclude": ["enc.weight"]}):
        found = compare_state_dicts(a, b, strip_prefix="module.", **options)
        assert (bool(found), found.compared) == (True, 2)
    with pytest.raises(ArgumentError, match=r"layers='dac\.\*' matches no name"):
        compare_state_dicts(a, b, layers=["dec.*", "module.dec.*", "dac.*"])


@pytest.mark.parametrize("options", [{"layers": "nothing*"}, {"exclude": "*"}])
def test_comparing_nothing_is_an_error(options: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="there is nothing to compare"):
        compare_state_dicts(layer(), layer(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("empty", [{}, {"step": 3}])
def test_a_side_without_tensors_is_an_error(empty: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="it holds no tensor"):
        compare_state_dicts(empty, layer())
    with pytest.raises(ArgumentError, match="it holds no tensor"):
        compare_state_dicts(layer(), empty)


def test_a_whole_checkpoint_in_memory_is_not_taken_for_a_state_dict() -> None:
    with pytest.raises(ArgumentError, match="a mapping at 'generator'") as caught:
        compare_state_dicts(layer(), {"generator": layer()})
    assert caught.value.fix == "pass checkpoint['generator']"


def test_values_that_are_no_tensors_are_noted() -> None:
    found = compare_state_dicts(layer() | {"epoch": 3}, layer())
    assert found
    assert found.notes == ("A: one value that is not a tensor is not compared",)


# -- state dicts in files


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_state_dicts_are_paired_by_path(tmp_path: Path) -> None:
    a = save(tmp_path / "a.pt", {"g": layer("x"), "d": layer("x", seed=1)})
    b = save(
        tmp_path / "b.pt", {"d": fold_state_dict(layer("x", seed=1)), "g": layer("x", form="parametrize")}
    )
    found = compare_files(a, b)
    assert found
    assert found.pairs == (("g", "g"), ("d", "d"))
    c = save(tmp_path / "c.pt", {"d": layer("x"), "g": layer("y")})
    found = compare_files(a, c)
    assert (found.only_in_a, found.only_in_b) == (("g.x.weight",), ("g.y.weight",))
    assert [(row.state_dict, row.name) for row in found.differing] == [("d", "x.weight")]
    assert found.rows()[0][0] == "d.x.weight"


def test_one_state_dict_on_each_side_is_compared_whatever_its_path(tmp_path: Path) -> None:
    a = save(tmp_path / "a.pt", {"ema": {"model": layer()}, "table": {"t": torch.ones(2)}})
    b = save(tmp_path / "b.pt", fold_state_dict(layer()))
    found = compare_files(a, b)
    assert found
    assert found.pairs == (("ema.model", ""),)
    assert f"{a}: table is not compared" in found.notes


def test_several_candidates_are_an_error_that_lists_them_and_only_decides(tmp_path: Path) -> None:
    folded = output_of(fold_file(FIXTURES / "gan.pt", tmp_path / "g.safetensors", only="generator"))
    with pytest.raises(
        ArgumentError, match=r"generator, .*discriminator|discriminator, .*generator"
    ) as caught:
        compare_files(FIXTURES / "gan.pt", folded)
    assert "--only" in caught.value.fix
    assert compare_files(FIXTURES / "gan.pt", folded, only="generator")
    assert compare_files(folded, FIXTURES / "gan.pt", only="generator")
    assert not compare_files(folded, FIXTURES / "gan.pt", only="discriminator")
    with pytest.raises(ArgumentError, match="no state dict at 'generater'"):
        compare_files(FIXTURES / "gan.pt", folded, only="generater")


def test_only_twice_names_one_for_each_side() -> None:
    gan = FIXTURES / "gan.pt"
    assert compare_files(gan, gan, only=("generator", "generator"))
    assert compare_files(gan, gan, only=("generator", "ema.model")).pairs == (("generator", "ema.model"),)
    with pytest.raises(ArgumentError, match="no state dict at 'x'"):
        compare_files(gan, gan, only=("generator", "x"))
    with pytest.raises(ArgumentError, match="only names 3"):
        compare_files(gan, gan, only=("a", "b", "c"))


# -- layers that cannot be folded, and files that cannot be read


@pytest.mark.parametrize(("name", "words"), [("misfit", "does not fit"), ("float8", "cannot be folded")])
def test_a_refused_layer_is_an_error_that_names_file_and_layer(name: str, words: str) -> None:
    path = FIXTURES / f"{name}.safetensors"
    with pytest.raises(LayerError, match=words) as caught:
        compare_files(path, path)
    assert str(caught.value).startswith(f"{path}: layer ")
    layer_name = caught.value.where.rpartition("layer ")[2]
    found = compare_files(path, path, exclude=[layer_name])
    assert found
    assert found.layers == 1


def test_zero_rows_are_zeros_and_noted(tmp_path: Path) -> None:
    source = FIXTURES / "zero_row.safetensors"
    folded = output_of(fold_file(source, tmp_path / "f.safetensors", zero_rows="zero"))
    found = compare_files(source, folded)
    assert found
    assert any("v is zero in 2 rows (2, 5), which became zero" in note for note in found.notes)
    state = load_file(folded)
    name = next(name for name, value in state.items() if value.dim() > 1)
    state[name][2, ...] = math.nan  # what torch makes of it
    save_file(state, tmp_path / "nan.safetensors")
    other = compare_files(source, tmp_path / "nan.safetensors")
    assert not other
    assert other.differing[0].unmatched == state[name][2].numel()
    assert any("zero in 2 rows" in note for note in other.notes)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", InputError, "an empty file"),
        (b"<html>", InputError, "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", InputError, "Git-LFS"),
        (b"\0\xff\xff\xff\xff\xff\xff\x7f{", FormatError, "header claims"),
        (b"PK\x03\x04 and nothing more", InputError, "zip"),
    ],
)
def test_bad_files_on_either_side_are_the_usual_errors(
    content: bytes, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad.pt", FIXTURES / "hifigan.safetensors"
    bad.write_bytes(content)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(kind, match=words) as caught:
            compare_files(*pair)
        assert str(bad) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        compare_files(good, tmp_path / "nowhere")


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_a_file_that_becomes_shorter_is_an_error_and_no_thread_is_left(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g, v = torch.ones(2000, 1), torch.randn(2000, 1000)
    states = {
        "plain": {"c.weight": v},
        "legacy": {"c.weight_g": g, "c.weight_v": v},
        "parametrize": {
            "c.parametrizations.weight.original0": g * 2,
            "c.parametrizations.weight.original1": v,
        },
    }
    save_file(states[form], tmp_path / "a.safetensors")
    save_file(states["legacy"], tmp_path / "b.safetensors")
    opened = module._compare

    def cut(*args: Any, **options: Any) -> Comparison:
        with (tmp_path / "a.safetensors").open("r+b") as file:
            file.truncate(4_000_000)
        return opened(*args, **options)

    monkeypatch.setattr(module, "_compare", cut)
    before = {*threading.enumerate()}
    with pytest.raises(FormatError, match="became shorter"):
        compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert {*threading.enumerate()} <= before


# -- the run


def test_results_do_not_depend_on_threads_and_progress_ends_with_all(tmp_path: Path) -> None:
    folded = tmp_path / "f.pt"
    fold_file(FIXTURES / "vits.pth", folded)
    state = torch.load(folded, weights_only=True)
    for number, value in enumerate(state["model"].values()):
        if value.is_floating_point() and number % 3 == 0:
            value.mul_(1.001)
    torch.save(state, folded)
    calls: list[tuple[int, int]] = []
    found = [
        compare_files(
            FIXTURES / "vits.pth",
            folded,
            threads=threads,
            progress=lambda done, total: calls.append((done, total)),
        ).to_dict()
        for threads in (1, 2, 5)
    ]
    assert found[0] == found[1] == found[2]
    assert not found[0]["equal"]
    assert found[0]["within"] + found[0]["identical"] + found[0]["different"] == found[0]["compared"]
    assert calls[-1][0] == calls[-1][1] > 0


def test_the_order_is_that_of_a_whatever_the_sizes() -> None:
    sizes = [3, 1000, 5, 2000, 1]
    a = {str(size): torch.ones(size) for size in sizes}
    b = {name: value + 1 for name, value in reversed(a.items())}
    assert [row.name for row in compare_state_dicts(a, b).differing] == list(map(str, sizes))


def test_an_interrupt_in_progress_ends_all_threads() -> None:
    def interrupted(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        compare_files(FIXTURES / "g_02500000", FIXTURES / "hifigan.safetensors", progress=interrupted)
    assert {*threading.enumerate()} <= before


def test_the_result_is_plain_data_for_json_and_tables() -> None:
    found = compare(np.array([1.0, 0.0], np.float32), np.array([1.5, 0.0], np.float32))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["schema"], data["equal"], data["tolerance"]) == (1, False, "1 ulp of the coarser dtype")
    assert data["tolerance_needed"] == {"rtol": 0.5 / 1.5, "atol": 0.5, "ulps": 1 << 22}
    assert data["differing"][0]["worst"] == [0]
    (row,) = found.rows()
    assert len(row) == len(COLUMNS)
    assert found.tolerance_needed is not None
    with pytest.raises(AttributeError):
        found.compared = 3  # type: ignore[misc]


def test_a_difference_that_overflows_is_still_json() -> None:
    found = compare(np.array([1e308, 0.0], np.float64), np.array([-1e308, 1e-300], np.float64))
    assert not found
    json.dumps(found.to_dict(), allow_nan=False)


def anonymous_peak(code: str) -> float:
    """The largest RssAnon in MiB of a process that runs some code, sampled from within."""
    sampled = f"""
import re, threading, time
from pathlib import Path
peak, ended = [0], threading.Event()
def look():
    while not ended.wait(0.002):
        status = Path("/proc/self/status").read_text()
        peak[0] = max(peak[0], int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]))
thread = threading.Thread(target=look); thread.start()
try:
    {code}
finally:
    ended.set(); thread.join()
print(peak[0] / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", sampled], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return float(done.stdout.splitlines()[-1])


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@some("dim", {"0": 0, "2": 2}, ["2"])
def test_memory_does_not_grow_with_the_files(dim: int, tmp_path: Path) -> None:
    v = torch.randn(128, 1024, 256)  # 128 MiB
    g = v.square().sum([axis for axis in range(3) if axis != dim], keepdim=True).sqrt() * 2
    save_file({"c.weight_g": g, "c.weight_v": v}, tmp_path / "a.safetensors")
    save_file({"c.weight_g": g, "c.weight_v": v * 1.0001}, tmp_path / "b.safetensors")
    code = f"""
    from wnconvert.verbs.comparison.compare import compare_files
    found = compare_files({str(tmp_path / "a.safetensors")!r}, {str(tmp_path / "b.safetensors")!r}, atol=0)
    assert found.compared == 1"""
    assert anonymous_peak(code) < 64
    assert anonymous_peak("held = bytes(range(256)) * (80 << 12)") > 64, "the measure sees what is held"


def test_state_dicts_are_paired_by_path_and_the_last_two_whatever_theirs(tmp_path: Path) -> None:
    model, encoder = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    torch.save({"model": model, "enc": encoder}, tmp_path / "a.pt")
    torch.save({"net": model, "enc": encoder}, tmp_path / "b.pt")
    torch.save({"net": model, "enc": dict(model)}, tmp_path / "c.pt")
    torch.save({"enc": encoder}, tmp_path / "d.pt")
    found = compare_files(tmp_path / "a.pt", tmp_path / "b.pt")
    assert found
    assert found.pairs == (("enc", "enc"), ("model", "net"))
    assert not compare_files(tmp_path / "a.pt", tmp_path / "c.pt")
    with pytest.raises(ArgumentError, match=r"only .* has the state dict model"):
        compare_files(tmp_path / "a.pt", tmp_path / "d.pt")
    assert compare_files(tmp_path / "a.pt", tmp_path / "d.pt", only="enc")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_tensor_that_cannot_be_compared_is_never_passed_over(tmp_path: Path) -> None:
    quantized = [torch.quantize_per_tensor(torch.ones(3) * at, 0.1, 0, torch.qint8) for at in (1, 2)]
    sparse = [torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()]
    for values in (quantized, sparse):
        for at, value in enumerate(values):
            torch.save({"w": torch.ones(2), "q": value, "epoch": 3}, tmp_path / f"{at}.pt")
        with pytest.raises(ArgumentError, match="q is a quantized, sparse or meta tensor"):
            compare_files(tmp_path / "0.pt", tmp_path / "1.pt")
        with pytest.raises(ArgumentError, match=r"q\b.* tensor"):
            compare_state_dicts(*({"w": torch.ones(2), "q": value} for value in values))
        found = compare_files(tmp_path / "0.pt", tmp_path / "1.pt", exclude="q")
        assert found
        assert found.compared == 1
