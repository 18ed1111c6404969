"""Any rule that occurs, on any small tensors, beside exact fractions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers.arrays import Array, same
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_weight
from tests.numerics.test_rules import fold
from wnconvert.errors import LayerError
from wnconvert.layers.rules import Mask, Norm, Operation, Rule, Spectral, SpectralStep, UnitVector

_SHAPES = st.sampled_from([(3, 4), (2, 3, 2), (4, 1), (1, 5), (2, 2, 2, 2), (5, 2)])
_LIMITS = st.sampled_from([4, 24, 1 << 20])
#: Few and short numbers, of which many products and quotients are ties, beside any others.
_NUMBERS = st.one_of(
    st.sampled_from([1.0, -1.0, 0.5, 3.0, -5.0, 0.0, -0.0, 1.5, 2.0**-8, 1 + 2.0**-7]),
    st.floats(-4, 4, allow_subnormal=False, width=16),
)


@st.composite
def _rules(draw: st.DrawFn, shape: tuple[int, ...]) -> Rule:
    axes = st.integers(0, min(len(shape), 2) - 1)
    mask: tuple[Operation, ...] = (Mask(),) if draw(st.booleans()) else ()
    norm = Norm(draw(st.one_of(st.none(), axes)))
    outer: list[tuple[Operation, ...]] = [
        (),
        (norm,),
        (Spectral(draw(axes)),),
        (norm, Spectral(draw(axes))),
        (SpectralStep(draw(axes)),),
        (UnitVector(1e-12),),
    ]
    operations = (*mask, *draw(st.sampled_from(outer)))
    assume(operations)
    return Rule(operations)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Rule, dict[str, Array]]:
    shape = draw(_SHAPES)
    rule, dtype = draw(_rules(shape)), draw(st.sampled_from(NARROW))

    def array(*sizes: int) -> Array:
        count = math.prod(sizes)
        numbers = draw(st.lists(_NUMBERS, min_size=count, max_size=count))
        return np.array(numbers).astype(DTYPES[dtype]).reshape(sizes)

    arrays = {"original": array(*shape)}
    for operation in rule.operations:
        if isinstance(operation, Mask):
            of_mask = draw(st.sampled_from(["pruning", "numbers"]))
            mask = array(*shape)
            arrays["mask"] = mask if of_mask == "numbers" else (mask > 0).astype(mask.dtype)
        elif isinstance(operation, Norm):
            arrays["g"] = array(1 if operation.dim is None else shape[operation.dim])
        elif isinstance(operation, (Spectral, SpectralStep)):
            assert operation.dim is not None
            arrays["u"] = array(rows := shape[operation.dim])
            if isinstance(operation, Spectral):
                arrays["v"] = array(math.prod(shape) // rows)
    return rule, arrays


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=_cases(), out=st.sampled_from(NARROW), limit=_LIMITS)
def test_any_rule_gives_the_nearest_values(case: tuple[Rule, dict[str, Array]], out: str, limit: int) -> None:
    rule, arrays = case
    try:
        expected = exact_weight(rule, arrays, out)
    except ZeroDivisionError:  # zero rows, and a σ of 0: told by the report, and tested there
        report = fold(rule, arrays, out, limit)[1]
        assert report.zero.count or (report.divisor and not report.divisor.value > 0)
        return
    assume(np.isfinite(expected.astype(np.float64)).all())
    assert same(fold(rule, arrays, out, limit)[0], expected)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
def test_ties_after_two_roots_that_cancel_go_to_even(dtype: str, out: str) -> None:
    # Norms are √5 and 2·√5, and σ is 2/√5: the second row is g·(1/2, 1). (The oracle cuts roots off.)
    unit = 2.0 ** -{"float32": 23, "float16": 10, "bfloat16": 7}[out]
    for g, nearest in ((1 + unit / 2, 1.0), (1 + unit * 3 / 2, 1 + 2 * unit), (1 + unit, 1 + unit)):
        for sign in (1, -1):
            arrays: dict[str, Array] = {
                "original": np.array([[1, 2], [2, 4]], DTYPES[dtype]),
                "g": np.array([1, g], np.float64 if out == "float32" else np.float32),
                "u": np.array([sign, 0], DTYPES[dtype]),
                "v": np.array([0, 1], DTYPES[dtype]),
            }
            w = fold(Rule((Norm(0), Spectral(0))), arrays, out)[0]
            expected = np.array([[0.5, 1], [nearest / 2, nearest]]) * sign
            assert w.astype(np.float64).tolist() == expected.tolist()


def test_products_that_would_be_rounded_twice_are_refused_but_for_float64() -> None:
    w = np.array([[0.1, 2.0]])
    for mask in (np.array([[1, 0.5]]), np.array([[1, 0.5]], np.float32)):
        arrays = {"original": w, "mask": mask}
        for rule in (Rule((Mask(),)), Rule((Mask(), UnitVector(1e-12)))):
            with pytest.raises(LayerError, match="rounded twice"):
                fold(rule, arrays, "float32")
        assert fold(Rule((Mask(),)), arrays, "float64")[0].tolist() == [[0.1, 1.0]]
        arrays["original"] = np.array([[0.25, 3.0]])  # short numbers
        assert fold(Rule((Mask(),)), arrays, "float32")[0].tolist() == [[0.25, 1.5]]
    plain = {"original": w, "mask": np.array([[1.0, 0.0]])}
    assert same(fold(Rule((Mask(),)), plain, "float32")[0], np.array([[0.1, 0.0]], np.float32))


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
@pytest.mark.parametrize("seed", range(4))
def test_spectral_norm_is_that_of_torch_in_float64(seed: int, form: str) -> None:
    torch.manual_seed(seed)
    layer: Any = [nn.Linear(24, 10), nn.Conv1d(6, 12, 5), nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(6, 10, 4)][
        seed
    ]
    layer.double()
    if form == "legacy":
        nn.utils.spectral_norm(layer)
        original, u, v = layer.weight_orig, layer.weight_u, layer.weight_v
    else:
        parametrizations.spectral_norm(layer)
        inner = layer.parametrizations.weight
        original, u, v = inner.original, inner[0]._u, inner[0]._v
    size = [(3, 24), (3, 6, 9), (1, 8, 6, 6), (1, 6, 4, 4)][seed]
    for _ in range(3):
        layer(torch.randn(size).double())
    layer.eval()
    layer(torch.randn(size).double())
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    arrays = {"original": original.detach().numpy(), "u": u.detach().numpy(), "v": v.detach().numpy()}
    w = fold(Rule((Spectral(dim),)), arrays, "float64")[0]
    np.testing.assert_allclose(w, layer.weight.detach().numpy(), rtol=1e-14, atol=0)
