"""Norms beside a layer, beside exact fractions and torch: their channels, their stacks, their biases."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.arrays import Array, normal, same
from tests.helpers.marks import crossed
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_bias, exact_weight
from tests.numerics.test_rules import fold
from wnconvert.errors import LayerError
from wnconvert.layers.rules import (
    AffineBefore,
    Equalized,
    Guard,
    Mask,
    Neighbour,
    Norm,
    NormBefore,
    NormBehind,
    Operation,
    Rule,
    Spectral,
    Standardize,
    Unit,
    UnitVector,
)
from wnconvert.numerics.rows import RowPolicy, RowReport
from wnconvert.numerics.rules.channels.shifts import Shifts
from wnconvert.numerics.rules.channels.vector import channels_from
from wnconvert.numerics.rules.neighbours import fold_bias
from wnconvert.numerics.rules.parts import RulePart

#: Shapes with the axis and the groups of their channels.
LAYOUTS = [
    ((4, 3), 0, 1),
    ((4, 6), 1, 1),
    ((4, 3, 2, 2), 0, 1),
    ((4, 3, 5), 1, 1),
    ((4, 3, 3), 1, 2),
    ((4, 2, 2, 2), 1, 4),
    ((8, 1, 3), 1, 8),
    ((3, 50), 1, 3),
    ((5,), 0, 1),
]
LIMITS = (8, 40, 1 << 20)


def channels_for(seed: int, operation: Neighbour, shape: tuple[int, ...], dtype: str) -> dict[str, Array]:
    """The tensors of a norm that was trained; some γ are 0 or negative, some v next to nothing."""
    count = operation.norms(shape)
    made = {role: normal(seed + at, (count,), dtype) for at, role in enumerate(("gamma", "mean", "beta"))}
    made["variance"] = np.abs(normal(seed + 5, (count,), dtype)) * np.array(0.3).astype(DTYPES[dtype])
    made["gamma"][:1] = -0.0
    made["variance"][1:2] = 0
    return made


def computed(shape: tuple[int, ...]) -> list[Operation]:
    """What classes compute of their own weight; each row has at least two elements."""
    axes = [axis for axis in range(len(shape)) if len(shape) > 1 and np.prod(shape) > shape[axis]]
    made: list[Operation] = [Equalized(0.3)]
    for axis in axes:
        made += [
            Standardize(axis, "biased", "var", 1e-5, 1.7, gain=True),
            Standardize(axis, "unbiased", "std", 1e-5),
            Standardize(axis, "biased", "max", 1e-4, fan=3, gain=True, shift=True),
            Unit(axis, Guard(1e-12), Fraction(-1.5)),
        ]
    return made


@crossed(out=NARROW, dtype=DTYPES)
def test_what_a_class_computes_of_its_weight_and_a_norm_behind_are_rounded_once(dtype: str, out: str) -> None:
    for seed, (shape, dim, groups) in enumerate([*LAYOUTS[:6], ((4, 6), 0, 1)]):
        operation = NormBehind(dim, 1e-5, groups)
        arrays = {"original": normal(seed, shape, dtype), **channels_for(seed, operation, shape, dtype)}
        for beneath in computed(shape):
            for at, role in enumerate(beneath.roles):
                assert beneath.dim is not None
                arrays[role] = normal(seed + at + 20, (shape[beneath.dim],), dtype)
            rule = Rule((beneath, operation))
            expected = exact_weight(rule, arrays, out)
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], expected), (shape, dim, rule, limit)


def bias_of(
    rule: Rule, arrays: dict[str, Array], dtype: str, limit: int = 1 << 20
) -> tuple[Array, RowReport]:
    parts = {role: RulePart.of(array) for role, array in arrays.items()}
    return fold_bias(rule, parts, dtype, limit=limit)


def kinds(dim: int, groups: int) -> list[Neighbour]:
    """Each norm beside a layer, on some channels."""
    return [
        NormBehind(dim, 1e-5, groups),
        NormBefore(dim, 1e-3, groups),
        AffineBefore(dim, groups),
        NormBehind(dim, 1e-5, groups, gain=False, shift=False),
    ]


@crossed(out=NARROW, dtype=DTYPES)
def test_each_channel_has_its_factor_and_every_value_is_the_nearest(dtype: str, out: str) -> None:
    for seed, (shape, dim, groups) in enumerate(LAYOUTS):
        for operation in kinds(dim, groups):
            rule = Rule((operation,))
            arrays = {"original": normal(seed, shape, dtype), **channels_for(seed, operation, shape, dtype)}
            expected = exact_weight(rule, arrays, out)
            for limit in LIMITS:
                assert same(fold(rule, arrays, out, limit)[0], expected)


@crossed(out=NARROW, dtype=DTYPES)
def test_what_stands_beneath_is_multiplied_before_one_rounding(dtype: str, out: str) -> None:
    for seed, (shape, dim, groups) in enumerate(LAYOUTS):
        operation = NormBehind(dim, 1e-5, groups)
        mask = (np.random.default_rng(seed).random(shape) < 0.7).astype(DTYPES[dtype])
        stacks: list[tuple[Operation, ...]] = [(Mask(),), (UnitVector(1e-12),)]
        stacks += [
            beneath
            for axis in (None, *range(len(shape)))
            for beneath in ((Norm(axis),), (Mask(), Norm(axis)))
        ]
        if len(shape) > 1:
            stacks += [(Spectral(0),), (Norm(1), Spectral(0))]
        for beneath in stacks:
            rule = Rule((*beneath, operation))
            arrays = {
                "original": normal(seed, shape, dtype),
                "mask": mask,
                **channels_for(seed, operation, shape, dtype),
            }
            arrays["original"][arrays["original"] == 0] = 1
            mask.reshape(-1)[:: max(mask.size // 12, 1)] = 1
            for each in beneath:
                if isinstance(each, Norm):
                    arrays["g"] = normal(seed + 7, (1 if each.dim is None else shape[each.dim],), dtype)
                    if each.dim is not None:
                        arrays["mask"] = np.ones_like(mask) if mask.size < 12 else mask
            if any(isinstance(each, Spectral) for each in beneath):
                arrays["u"] = normal(seed + 1, shape[:1], dtype)
                arrays["v"] = normal(seed + 2, (int(np.prod(shape[1:])),), dtype)
            try:
                expected = exact_weight(rule, arrays, out)
            except ZeroDivisionError:  # a row that is masked altogether
                continue
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], expected), (shape, rule, limit)


@crossed(out=[*NARROW, "float64"], dtype=DTYPES)
def test_the_bias_is_the_nearest_value_or_a_float64_within_4_ulp(dtype: str, out: str) -> None:
    for seed, (shape, dim, groups) in enumerate(LAYOUTS[:-1]):
        for operation in kinds(dim, groups):
            rule = Rule((operation,))
            arrays = {"original": normal(seed, shape, dtype), **channels_for(seed, operation, shape, dtype)}
            count = len(exact_bias(rule, arrays, out))
            for bias in (None, normal(seed + 9, (count,), dtype)):
                given = arrays if bias is None else {**arrays, "bias": bias}
                expected = exact_bias(rule, given, out)
                for limit in (8, 1 << 20):
                    found = bias_of(rule, given, out, limit)[0]
                    assert found.dtype == expected.dtype
                    off = np.abs(found.astype(float) - expected.astype(float))
                    assert (off <= (4 * np.spacing(np.abs(expected)) if out == "float64" else 0)).all()


def layer_of(kind: str, groups: int) -> tuple[Any, Any, tuple[int, ...]]:
    """A layer of torch's, the norm behind it, and an input."""
    made: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
        "linear": (nn.Linear(6, 8), nn.BatchNorm1d(8), (5, 6)),
        "conv": (nn.Conv2d(8, 8, 3, groups=groups), nn.BatchNorm2d(8), (2, 8, 5, 5)),
        "transposed": (nn.ConvTranspose2d(8, 16, 3, groups=groups), nn.BatchNorm2d(16), (2, 8, 5, 5)),
        "transposed, square": (nn.ConvTranspose1d(8, 8, 3, groups=groups), nn.BatchNorm1d(8), (2, 8, 5)),
    }
    return made[kind]


def arrays_of(layer: Any, norm: Any) -> dict[str, Array]:
    named = {"original": layer.weight, "bias": layer.bias, "gamma": norm.weight, "beta": norm.bias}
    named |= {"variance": norm.running_var, "mean": norm.running_mean}
    return {role: tensor.detach().numpy().copy() for role, tensor in named.items()}


def scrambled(norm: Any) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 2)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed", "transposed, square"])
def test_a_layer_and_the_norm_behind_it_are_one_layer_in_torch(kind: str, groups: int) -> None:
    torch.manual_seed(groups)
    layer, norm, size = layer_of(kind, groups)
    layer.double()
    norm.double().eval()
    scrambled(norm)
    x = torch.randn(size).double()
    expected = norm(layer(x))
    is_transposed = kind.startswith("transposed")
    rule = Rule((NormBehind(1 if is_transposed else 0, norm.eps, groups if is_transposed else 1),))
    arrays = arrays_of(layer, norm)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fold(rule, arrays, "float64")[0]))
        layer.bias.copy_(torch.from_numpy(bias_of(rule, arrays, "float64")[0]))
    assert torch.allclose(layer(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_norm_and_the_layer_behind_it_are_one_layer_in_torch(kind: str, groups: int) -> None:
    torch.manual_seed(groups)
    layer, _, size = layer_of(kind, groups)
    norm: Any = (nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(size[1])
    layer.double()
    norm.double().eval()
    scrambled(norm)
    x = torch.randn(size).double()
    expected = layer(norm(x))
    rule = Rule((NormBefore(1, norm.eps, groups if kind == "conv" else 1),))
    arrays = arrays_of(layer, norm)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fold(rule, arrays, "float64")[0]))
        layer.bias.copy_(torch.from_numpy(bias_of(rule, arrays, "float64")[0]))
    assert torch.allclose(layer(x), expected, rtol=1e-13, atol=1e-13)


def test_the_affine_of_a_layer_norm_goes_into_both_kinds_of_linear_weight() -> None:
    torch.manual_seed(3)
    norm, linear, x = nn.LayerNorm(6).double(), nn.Linear(6, 4).double(), torch.randn(5, 6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = linear(norm(x)).detach().numpy()
    plain = nn.functional.layer_norm(x, (6,)).numpy()
    arrays = {"original": linear.weight, "bias": linear.bias, "gamma": norm.weight, "beta": norm.bias}
    given = {role: tensor.detach().numpy() for role, tensor in arrays.items()}
    for dim, original in ((1, given["original"]), (0, given["original"].T.copy())):
        rule, parts = Rule((AffineBefore(dim),)), {**given, "original": original}
        weight, bias = fold(rule, parts, "float64")[0], bias_of(rule, parts, "float64")[0]
        made = plain @ (weight.T if dim == 1 else weight) + bias
        np.testing.assert_allclose(made, expected, rtol=1e-13, atol=1e-13)


def test_groups_and_axes_that_are_wrong_give_other_weights() -> None:
    shape = (4, 4, 3)
    arrays = {
        "original": normal(1, shape, "float32"),
        **channels_for(1, NormBehind(1, 1e-5, 2), shape, "float32"),
    }
    few = {role: array[:4] if role != "original" else array for role, array in arrays.items()}
    found = [
        fold(Rule((NormBehind(dim, 1e-5, groups),)), arrays if groups > 1 else few, "float32")[0]
        for dim, groups in ((0, 1), (1, 1), (1, 2))
    ]
    assert not any(same(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("out", NARROW)
def test_ties_of_an_eps_of_zero_go_to_even(out: str) -> None:
    unit = 2.0 ** -{"float32": 23, "float16": 10, "bfloat16": 7}[out]
    odd = np.array([[1 + unit], [1 + 3 * unit], [1 + 2 * unit], [-1 - unit]])
    wide = {"original": odd, "gamma": np.full(4, 1.5), "variance": np.full(4, 1.0)}
    wide |= {"mean": np.zeros(4), "beta": np.zeros(4)}
    rule = Rule((NormBehind(0, 0.0),))
    for dtype in ("float64", out):
        arrays = {role: array.astype(DTYPES[dtype]) for role, array in wide.items()}
        expected = exact_weight(rule, arrays, out)
        assert same(fold(rule, arrays, out)[0], expected)
        arrays["variance"] = np.full(4, 2.25).astype(DTYPES[dtype])
        arrays["gamma"] = np.full(4, 2.25).astype(DTYPES[dtype])
        assert same(fold(rule, arrays, out)[0], exact_weight(rule, arrays, out))
    # 1 + unit/2 is a tie that goes down, 1 + 3·unit/2 one that goes up; 4/9 is a square of a rational.
    bias = {**wide, "original": np.ones((4, 1)), "variance": np.full(4, 4 / 16), "gamma": np.full(4, 0.25)}
    bias |= {"bias": np.array([2 + unit, 2 + 3 * unit, -2 - unit, 2 - 2 * unit]), "beta": np.zeros(4)}
    expected = exact_bias(rule, bias, out)
    assert expected.astype(float).tolist() == [1, 1 + 2 * unit, -1, 1 - unit]
    assert same(bias_of(rule, bias, out)[0], expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_many_ties_of_short_factors_are_rounded_at_once(dtype: str) -> None:
    shape = (40, 60)
    rule = Rule((AffineBefore(1, shift=False),))
    arrays = {"original": normal(1, shape, dtype), "gamma": normal(2, shape[1:], dtype)}
    arrays["gamma"][::3] = 1.5
    assert same(fold(rule, arrays, dtype)[0], exact_weight(rule, arrays, dtype))


@pytest.mark.parametrize("scale", [2.0**-140, 1e-30, 1e30, 2.0**120])
@pytest.mark.parametrize("out", NARROW)
def test_channels_at_the_ends_of_the_range(scale: float, out: str) -> None:
    for gamma, variance, eps in (
        (1.0, 1.0, 1e-5),
        (1e30, 1e-44, 0.0),
        (1e-30, 3e38, 0.0),
        (1e-44, 1e-44, 0.0),
    ):
        for shape, dim, groups in LAYOUTS[:6]:
            operation = NormBehind(dim, eps, groups)
            arrays = {"original": normal(3, shape, "float32", scale)}
            arrays |= channels_for(3, operation, shape, "float32")
            arrays["gamma"][:] = np.linspace(gamma, -gamma, len(arrays["gamma"]))
            arrays["variance"][:] = variance
            for beneath in ((), (Norm(0),)):
                rule, given = (
                    Rule((*beneath, operation)),
                    {**arrays, "g": normal(4, shape[:1], "float32", scale)},
                )
                assert same(fold(rule, given, out)[0], exact_weight(rule, given, out))
            expected = exact_bias(Rule((operation,)), arrays, out)
            assert np.array_equal(bias_of(Rule((operation,)), arrays, out)[0], expected)


def test_results_that_are_too_large_are_told_by_their_channels() -> None:
    arrays: dict[str, Array] = {"original": np.full((4, 2, 3), 3e38, np.float32)}
    arrays["gamma"] = np.array([1, 1, 1, 2], np.float32)
    arrays |= {
        "variance": np.ones(4, np.float32),
        "mean": np.zeros(4, np.float32),
        "beta": np.zeros(4, np.float32),
    }
    for dim, groups, shape in ((0, 1, (4, 2, 3)), (1, 2, (4, 2, 3)), (1, 1, (2, 4, 3))):
        given = {**arrays, "original": arrays["original"].reshape(shape)}
        for limit in (8, 1 << 20):
            w, report = fold(Rule((NormBehind(dim, 0.0, groups),)), given, "float32", limit)
            assert same(w, exact_weight(Rule((NormBehind(dim, 0.0, groups),)), given, "float32"))
            assert report.overflow.first[-1:] == (3,)
            assert "too large for the dtype" in RowPolicy().problems(report)[0].what
    bias = {**arrays, "original": np.ones((4, 1), np.float32), "bias": np.array([1, 1, 1, 3e38], np.float32)}
    found, report = bias_of(Rule((NormBehind(0, 0.0),)), bias, "float32")
    assert found.tolist() == [1, 1, 1, np.inf]
    assert report.overflow.first == (3,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_without_an_answer_are_errors_and_go_as_ieee_has_them(dtype: str) -> None:
    own = DTYPES[dtype]
    arrays = {
        "original": np.array([[1, -2], [0, 1], [1, 1], [1, 1], [2, 4]]).astype(own),
        "gamma": np.array([1, 1, np.nan, 1, 1]).astype(own),
        "variance": np.array([0, -1, 1, np.inf, 1]).astype(own),
        "mean": np.array([1, 1, 1, 1, np.inf]).astype(own),
        "beta": np.zeros(5).astype(own),
    }
    rule = Rule((NormBehind(0, 0.0),))
    w, report = fold(rule, arrays, dtype)
    expected = np.array([[np.inf, -np.inf], [np.nan, np.nan], [np.nan, np.nan], [0, 0], [2, 4]])
    assert np.array_equal(w.astype(float), expected, equal_nan=True)
    variance, channels = RowPolicy().problems(report)
    assert "the variance is negative, or not positive with its eps, in 2 channels (0, 1)" in variance.what
    assert "NaN or infinity in the norm, in 2 channels (2, 3)" in channels.what
    assert "--allow-nonfinite" in variance.remedy
    assert not RowPolicy(allow_nonfinite=True).problems(report)
    bias, report = bias_of(rule, arrays, dtype)
    assert np.array_equal(bias.astype(float), [-np.inf, np.nan, np.nan, 0, -np.inf], equal_nan=True)
    assert "in channel 4" in RowPolicy().problems(report)[0].what
    good = {role: array[4:] for role, array in arrays.items()} | {"mean": np.ones(1).astype(own)}
    assert not RowPolicy().problems(fold(rule, good, dtype)[1])
    assert not RowPolicy().problems(bias_of(rule, good, dtype)[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_not_finite_is_told_and_the_rest_of_it_is_right(dtype: str) -> None:
    for shape, dim, groups in LAYOUTS[:-1]:
        operation = NormBefore(dim, 1e-5, groups)
        arrays = {"original": normal(5, shape, dtype), **channels_for(5, operation, shape, dtype)}
        plain = fold(Rule((operation,)), arrays, dtype)[0], bias_of(Rule((operation,)), arrays, dtype)[0]
        arrays["original"].reshape(-1)[-1] = np.nan
        w, report = fold(Rule((operation,)), arrays, dtype)
        assert same(w.reshape(-1)[:-1], plain[0].reshape(-1)[:-1])
        assert np.isnan(w.reshape(-1)[-1])
        assert "NaN or infinity in it" in RowPolicy().problems(report)[0].what
        bias = bias_of(Rule((operation,)), arrays, dtype)[0]
        assert same(bias[:-1], plain[1][:-1])
        assert np.isnan(bias[-1])


def test_parts_that_do_not_fit_are_refused() -> None:
    arrays = {
        "original": np.ones((4, 6), np.float32),
        **channels_for(1, NormBehind(1, 1e-5), (4, 6), "float32"),
    }
    for operation, words in (
        (NormBehind(0, 1e-5), "does not fit the 4 channels"),
        (NormBehind(1, 1e-5, 3), "no 3 groups|does not fit"),
        (NormBehind(2, 1e-5), "no channels along dim 2"),
    ):
        with pytest.raises(LayerError, match=words):
            fold(Rule((operation,)), arrays, "float32")
        with pytest.raises(LayerError, match=words):
            bias_of(Rule((operation,)), arrays, "float32")
    arrays["g"] = np.ones(4, np.float32)
    with pytest.raises(LayerError, match="is computed by another kind"):
        bias_of(Rule((Norm(0), NormBefore(1, 1e-5))), arrays, "float32")
    arrays["bias"] = np.ones(5, np.float32)
    with pytest.raises(LayerError, match=r"bias .* does not fit"):
        bias_of(Rule((NormBehind(1, 1e-5),)), arrays, "float32")


def test_a_sum_that_cancels_is_still_the_nearest_value() -> None:
    shape = (6, 300)
    operation = NormBefore(1, 1e-5)
    arrays = {"original": normal(5, shape, "float32"), **channels_for(5, operation, shape, "float32")}
    rule = Rule((operation,))
    arrays["bias"] = -bias_of(rule, arrays, "float32")[0]
    found = bias_of(rule, arrays, "float32")[0]
    assert 0 < np.abs(found).max() < 1e-4
    assert same(found, exact_bias(rule, arrays, "float32"))
    behind = Rule((NormBehind(0, 1e-5),))
    given = {
        "original": np.ones((50, 1), np.float32),
        **channels_for(6, NormBehind(0, 1e-5), (50, 1), "float32"),
    }
    given["beta"] = -bias_of(behind, {**given, "beta": given["beta"] * 0}, "float32")[0]
    found = bias_of(behind, given, "float32")[0]
    assert 0 < np.abs(found).max() < 1e-4
    assert np.array_equal(found, exact_bias(behind, given, "float32"))


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e30])
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15, 1e-60])
def test_pieces_of_shifts_are_as_near_to_them_as_they_say(scale: float, eps: float) -> None:
    rng = np.random.default_rng(5)
    beta, mean, gamma = (rng.standard_normal(200) * scale for _ in range(3))
    gamma[0], mean[1], beta[2] = 0, 0, 0
    variance = rng.random(200) + 2.0**-30
    for given in (variance, None):
        channels = channels_from(gamma, given, eps)
        beta[3] = (mean * channels.values)[3]  # nearly nothing is left
        shifts = Shifts(channels, beta, mean)
        cut = shifts.cut()
        found = [sum(Fraction(float(piece[at])) for piece in cut.pieces) for at in range(200)]
        low, high, exponent = shifts.bounds(512)
        for at, each in enumerate(found):
            off = max(abs(each - Fraction(int(end[at])) * Fraction(2) ** exponent) for end in (low, high))
            assert off <= Fraction(float(cut.rest[at]))
        digits = [np.frexp(piece)[0] * 2.0**24 for piece in cut.pieces]
        assert all((each == np.round(each)).all() for each in digits)
        sizes = np.abs(beta) + np.abs(mean * channels.values)
        assert (cut.rest <= sizes * 2.0**-44 + 2.0**-1059).all()
