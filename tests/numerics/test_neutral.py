"""The variance of a norm that does nothing, beside torch's own eval."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.oracle import DTYPES
from wnconvert.numerics.rules.neutral import neutral_variance

EPS = (1e-3, 1e-5, 1e-4, 1e-1, 0.0, 1e-12, 0.5, 1.0)


def torchs_factor(variance: float, eps: float, dtype: torch.dtype) -> float:
    """What torch multiplies by, shown in the dtype in which it computes."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    v = torch.tensor([variance], dtype=dtype).to(wide)
    return float(normalized(torch.ones(2, 1, 4, dtype=wide), v, v * 0, eps)[0, 0, 0])


def normalized(x: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """torch's own operator: around it, torch before 2.13 refuses an eps of 0."""
    return torch.batch_norm(
        x, v * 0 + 1, bias, v * 0, v, training=False, momentum=0.1, eps=eps, cudnn_enabled=False
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", EPS)
def test_torch_changes_nothing_but_adds_the_bias(eps: float, dtype: str) -> None:
    variance, own = neutral_variance(eps, dtype), getattr(torch, dtype)
    if variance is None:
        nearest = float(torch.tensor(1 - eps, dtype=torch.float64).to(own))
        assert torchs_factor(nearest, eps, own) != 1
        return
    assert torchs_factor(variance, eps, own) == 1
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(4, 3, 50, generator=generator) * 10.0 ** torch.arange(-20, 30)).to(own)
    bias = torch.randn(3, generator=generator).to(own)
    v = torch.full((3,), variance, dtype=own)
    assert float(v[0]) == variance
    assert torch.equal(normalized(x, v, bias, eps), x + bias[:, None])
    assert torch.equal(normalized(x, v, bias * 0, eps), x)


def test_which_dtypes_have_one_for_which_eps() -> None:
    for eps in (1e-3, 1e-5, 1e-4, 1e-1):
        assert neutral_variance(eps, "float32") is not None
        assert neutral_variance(eps, "float64") is not None
        assert neutral_variance(eps, "float16") is None
        assert neutral_variance(eps, "bfloat16") is None
    for dtype in DTYPES:
        assert neutral_variance(0.0, dtype) == 1


def test_a_variance_is_not_negative_and_an_eps_is_a_number() -> None:
    assert neutral_variance(1.0, "float32") == 0
    for eps in (2.0, math.inf, math.nan):
        assert neutral_variance(eps, "float32") is None
