"""--verify of other rules than weight norm alone: it passes the right number, and not the one beside it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.verbs.conversion.test_verified_numbers import check
from wnconvert.errors import VerifyError
from wnconvert.layers.rules import (
    Equalized,
    Guard,
    Mask,
    Norm,
    Rule,
    Spectral,
    SpectralStep,
    Standardize,
    Unit,
)
from wnconvert.layers.schemes import Layer
from wnconvert.numerics.folding import Folding
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.plan.steps import Fold
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import TensorInfo

SHAPE = (6, 8, 5)
RULES = [
    Rule((Mask(),)),
    Rule((Spectral(0),)),
    Rule((Spectral(1),)),
    Rule((Spectral(2),)),
    Rule((Mask(), Norm(0))),
    Rule((Mask(), Norm(None))),
    Rule((Mask(), Spectral(1))),
    Rule((Norm(0), Spectral(1))),
    Rule((Norm(0), Spectral(0))),
    Rule((Mask(), Norm(1), Spectral(0))),
    Rule((SpectralStep(0),)),
    Rule((Equalized(0.3),)),
    Rule((Unit(0, Guard(1e-12), Fraction(3)),)),
    Rule((Mask(), Unit(1, Guard(1e-12)))),
    Rule((Standardize(0, "biased", "var", 1e-8),)),
    Rule((Standardize(1, "unbiased", "std", 1e-5, gain=True, scale=0.2),)),
    Rule((Standardize(2, "biased", "max", 1e-4, fan=48),)),
    Rule((Mask(), Standardize(0, "unbiased", "var", 1e-5, gain=True, shift=True))),
]


def parts_of(rule: Rule, dtype: str, shape: tuple[int, ...] = SHAPE) -> dict[str, Array]:
    """Parts of a rule: u and v are near the largest singular value, as training leaves them."""
    rng = np.random.default_rng(3)
    kind: Any = dtype_named(dtype).numpy()
    parts: dict[str, Array] = {"original": rng.standard_normal(shape).astype(kind)}
    for operation in rule.operations:
        if isinstance(operation, Mask):
            parts["mask"] = rng.integers(0, 2, shape).astype(kind)
        elif isinstance(operation, Norm):
            rows = 1 if operation.dim is None else shape[operation.dim]
            parts["g"] = (rng.random(rows) + 0.5).astype(kind)
        elif isinstance(operation, Standardize):
            for role in operation.roles:
                parts[role] = (rng.random(shape[operation.dim]) + 0.5).astype(kind)
        elif isinstance(operation, (Spectral, SpectralStep)):
            wide = np.moveaxis(parts["original"].astype(np.float64), operation.dim or 0, 0)
            u, _, v = np.linalg.svd(wide.reshape(wide.shape[0], -1))
            parts["u"] = u[:, 0].astype(kind)
            if isinstance(operation, Spectral):
                parts["v"] = v[0].astype(kind)
    return parts


def folded(rule: Rule, parts: dict[str, Array], out: str) -> Array:
    """The weight, by the code that is to be proven."""
    original = parts["original"]
    w = np.empty(original.size, dtype_named(out).numpy())
    folding = Folding(rule, {role: RulePart.of(part) for role, part in parts.items()}, out)
    for _ in folding.blocks(lambda block: w[block.start : block.stop].reshape(block.shape)):
        pass
    return w.reshape(original.shape)


def passes(rule: Rule, parts: dict[str, Array], w: Array) -> bool:
    infos = {role: TensorInfo(role, dtype_named(part.dtype.name), part.shape) for role, part in parts.items()}
    try:
        check(Fold(Layer("w", "legacy", rule, infos), dtype_named(w.dtype.name)), parts, {"w": w})
    except VerifyError:
        return False
    return True


@pytest.mark.parametrize("out", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: "+".join(type(each).__name__ for each in rule.operations)
)
def test_the_right_numbers_pass_and_those_beside_them_do_not(rule: Rule, out: str) -> None:
    dtype = "float64" if out == "float64" else "float32"
    parts = parts_of(rule, dtype)
    w = folded(rule, parts, out)
    assert passes(rule, parts, w)
    by = 1 if out != "float64" else 1 << 20  # 4 ulp and what extended precision leaves
    place = int(np.flatnonzero(w.reshape(-1))[-1])
    wrong = w.copy()
    codes = wrong.reshape(-1).view(f"u{w.dtype.itemsize}")
    codes[place] += by
    assert not passes(rule, parts, wrong)


@pytest.mark.parametrize("out", ["float32", "float16", "float64"])
def test_another_kind_of_standardization_does_not_pass(out: str) -> None:
    made = Standardize(0, "biased", "var", 1e-5)
    others: list[Standardize | Unit] = [
        Standardize(0, "unbiased", "var", 1e-5),
        Standardize(0, "biased", "std", 1e-5),
        Standardize(0, "biased", "var", 1e-3),
        Standardize(0, "biased", "var", 1e-5, scale=1.001),
        Standardize(1, "biased", "var", 1e-5),
        Unit(0, Guard(1e-5)),
    ]
    parts = parts_of(Rule((made,)), "float64" if out == "float64" else "float32", (8, 8, 5))
    w = folded(Rule((made,)), parts, out)
    assert passes(Rule((made,)), parts, w)
    assert not any(passes(Rule((other,)), parts, w) for other in others)


def test_equal_elements_that_are_standardized_pass_as_zeros_alone() -> None:
    rule = Rule((Standardize(0, "biased", "var", 1e-5),))
    parts = parts_of(rule, "float32")
    parts["original"][2] = 1 / 3
    w = folded(rule, parts, "float32")
    assert not w[2].any()
    assert passes(rule, parts, w)
    w[2, 0, 0] = 1e-6
    assert not passes(rule, parts, w)


def test_a_zero_with_the_other_sign_does_not_pass() -> None:
    rule = Rule((Mask(),))
    parts = parts_of(rule, "float32")
    w = folded(rule, parts, "float32")
    negative = np.flatnonzero((w == 0) & np.signbit(w))
    assert negative.size
    w.reshape(-1)[negative[0]] = 0.0
    assert not passes(rule, parts, w)


def test_along_the_wrong_axis_it_does_not_pass() -> None:
    parts = parts_of(Rule((Spectral(0),)), "float32", (8, 8, 5))
    square = Rule((Spectral(None),))
    assert passes(square, parts, folded(Rule((Spectral(0),)), parts, "float32"))
    assert not passes(square, parts, folded(Rule((Spectral(1),)), parts, "float32"))


def test_blocks_of_a_large_weight_add_up() -> None:
    standard = Standardize(0, "biased", "var", 1e-8)
    for rule in (
        Rule((Spectral(1),)),
        Rule((Norm(0), Spectral(1))),
        Rule((standard,)),
        Rule((Unit(1),)),
    ):
        parts = parts_of(rule, "float32", (96, 64, 99))
        w = folded(rule, parts, "float32")
        assert passes(rule, parts, w)
        w[-1, -1, -1] = np.nextafter(w[-1, -1, -1], np.float32(9))
        assert not passes(rule, parts, w)
