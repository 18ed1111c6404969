"""--verify of norms that are folded into the layer beside them: weights, biases, and what is left neutral."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.verbs.conversion.test_verified_numbers import check
from tests.verbs.conversion.test_verified_rules import folded, passes
from wnconvert.errors import VerifyError
from wnconvert.layers.rules import AffineBefore, Mask, Neighbour, Norm, NormBefore, NormBehind, Rule, Spectral
from wnconvert.layers.schemes import Layer
from wnconvert.numerics.rules.neighbours import fold_bias
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.plan.steps import Bias, Neutral
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import TensorInfo

SHAPE = (6, 8, 5)
RULES = [
    Rule((NormBehind(0, 1e-5),)),
    Rule((NormBehind(1, 1e-3, groups=2),)),
    Rule((NormBehind(1, 1e-3, gain=False, shift=False),)),
    Rule((NormBefore(1, 1e-5, groups=3),)),
    Rule((AffineBefore(0),)),
    Rule((Mask(), NormBefore(1, 1e-5))),
    Rule((Norm(0), NormBehind(1, 1e-5))),
    Rule((Norm(None), NormBehind(0, 1e-5))),
    Rule((Spectral(0), NormBehind(0, 1e-5))),
]
OUTS = ["float32", "float16", "bfloat16", "float64"]


def neighbour_of(rule: Rule) -> Neighbour:
    assert rule.neighbour is not None
    return rule.neighbour


def parts_of(rule: Rule, dtype: str, shape: tuple[int, ...] = SHAPE) -> dict[str, Array]:
    rng, kind = np.random.default_rng(3), dtype_named(dtype).numpy()
    operation = neighbour_of(rule)
    sizes: dict[str, Any] = {"original": shape, "mask": shape, "g": 1, "u": shape[0], "v": np.prod(shape[1:])}
    sizes |= dict.fromkeys((*operation.roles, *operation.offsets), operation.norms(shape))
    sizes["g"] = shape[0] if Norm(0) in rule.operations else 1
    parts = {
        role: rng.standard_normal(sizes[role]).astype(kind) for role in (*rule.roles, *operation.offsets)
    }
    if "variance" in parts:
        parts["variance"] = np.abs(parts["variance"])
    if "mask" in parts:
        parts["mask"] = (parts["mask"] > 0).astype(kind)
    return parts


def with_bias(rule: Rule, parts: dict[str, Array]) -> dict[str, Array]:
    size = Layer("w", "legacy", rule, infos_of(parts)).bias_shape
    return {**parts, "bias": np.linspace(-1, 1, size[0]).astype(parts["original"].dtype)}


def infos_of(parts: dict[str, Array]) -> dict[str, TensorInfo]:
    return {role: TensorInfo(role, dtype_named(part.dtype.name), part.shape) for role, part in parts.items()}


def bias_passes(rule: Rule, parts: dict[str, Array], bias: Array) -> bool:
    layer = Layer("w", "legacy", rule, infos_of(parts), norm="bn", bias="b")
    try:
        done = check(Bias(layer, dtype_named(bias.dtype.name)), parts, {"b": bias})
    except VerifyError:
        return False
    assert done == bias.nbytes
    return True


def beside(values: Array, place: int) -> Array:
    """The same numbers, but one of them by the next code, or by more than may be off."""
    wrong = values.copy()
    wrong.reshape(-1).view(f"u{values.dtype.itemsize}")[place] += 1 if values.itemsize < 8 else 1 << 24
    return wrong


def named(rule: Rule) -> str:
    return "+".join(type(each).__name__ for each in rule.operations)


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_the_right_weight_passes_and_the_one_beside_it_does_not(rule: Rule, out: str) -> None:
    parts = parts_of(rule, "float64" if out == "float64" else "float32")
    w = folded(rule, parts, out)
    assert passes(rule, parts, w)
    assert not passes(rule, parts, beside(w, int(np.flatnonzero(w.reshape(-1))[-1])))


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_the_right_bias_passes_and_the_one_beside_it_does_not(rule: Rule, out: str) -> None:
    parts = parts_of(rule, "float64" if out == "float64" else "float32")
    for given in (parts, with_bias(rule, parts)):
        bias = fold_bias(rule, {role: RulePart.of(part) for role, part in given.items()}, out)[0]
        assert bias_passes(rule, given, bias)
        for place in (0, len(bias) - 1):
            assert not bias_passes(rule, given, beside(bias, place))


def test_channels_of_another_axis_or_eps_do_not_pass() -> None:
    rule = Rule((NormBehind(1, 1e-3, groups=2),))
    parts = parts_of(rule, "float32", (8, 8, 5))
    w = folded(rule, parts, "float32")
    for other in (NormBehind(1, 1.1e-3, groups=2), NormBehind(1, 1e-3, groups=2, gain=False)):
        assert not passes(Rule((other,)), parts, w)
    few = {role: part if role == "original" else part[:8] for role, part in parts.items()}
    square = folded(Rule((NormBehind(0, 1e-3),)), few, "float32")
    assert passes(Rule((NormBehind(0, 1e-3),)), few, square)
    assert not passes(Rule((NormBehind(1, 1e-3),)), few, square)


@pytest.mark.parametrize("value", [0.0, 1.0, float(np.float32(1 - 1e-5))])
def test_what_is_neutral_is_one_number_everywhere(value: float) -> None:
    step = Neutral(TensorInfo("bn.weight", dtype_named("float32"), (7,)), value)
    right = np.full(7, value, np.float32)
    assert check(step, {}, {"bn.weight": right}) == right.nbytes
    wrong = right.copy()
    wrong[-1] = np.nextafter(wrong[-1], np.float32(2))
    with pytest.raises(VerifyError, match="everywhere"):
        check(step, {}, {"bn.weight": wrong})


def test_sums_of_a_large_weight_add_up_and_nothing_that_is_not_finite_is_in_doubt() -> None:
    rule = Rule((NormBefore(1, 1e-5),))
    parts = parts_of(rule, "float32", (70, 512, 9))
    given = {role: RulePart.of(part) for role, part in parts.items()}
    bias = fold_bias(rule, given, "float32")[0]
    assert bias_passes(rule, parts, bias)
    assert not bias_passes(rule, parts, beside(bias, 69))
    parts["beta"][3] = np.inf
    given = {role: RulePart.of(part) for role, part in parts.items()}
    odd = fold_bias(rule, given, "float32")[0]
    assert not np.isfinite(odd).any()
    assert bias_passes(rule, parts, odd)
    assert not bias_passes(rule, parts, bias)
