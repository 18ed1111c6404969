"""inspect shows spectral norm and prune: σ beside the largest singular value, zeros, what is untrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.layers.kinds.test_others import BIGGAN, pruned, spectral, weight_norm
from wnconvert import inspect_state_dict
from wnconvert.reports.text.inspections import inspection_text
from wnconvert.verbs.inspection.magnitudes import LayerStats, SpectralStats


def trained(module: Any) -> Any:
    for _ in range(30):
        module(torch.randn(2, module.in_channels, 9))
    return module


def rows(*modules: Any, full: bool = True) -> dict[str, LayerStats]:
    found = inspect_state_dict(nn.ModuleList(modules).state_dict(), full=full)
    return {row.name: row for row in found.layers}


def spectral_of(row: LayerStats) -> SpectralStats:
    assert row.spectral is not None
    return row.spectral


def test_a_trained_sigma_is_the_largest_singular_value() -> None:
    torch.manual_seed(1)
    layer = trained(spectral(nn.Conv1d(4, 8, 3)))
    row = rows(layer)["0.weight"]
    found, matrix = spectral_of(row), layer.weight_orig.detach().double().reshape(8, -1)
    assert found.sigma == pytest.approx(float(layer.weight_u.double() @ matrix @ layer.weight_v.double()))
    assert found.largest == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)
    assert found.ratio == pytest.approx(1, abs=0.02)
    assert (found.u, found.v) == pytest.approx((1, 1), abs=1e-5)
    assert (row.kind, row.form, row.flags) == ("spectral", "legacy", ())


def test_sums_in_another_order_show_the_same_numbers() -> None:
    torch.manual_seed(1)
    layer = spectral(nn.Linear(700, 90))
    with torch.no_grad():
        layer.weight_u *= 1.5
    first = spectral_of(rows(layer)["0.weight"])
    for parameter, axes in ((layer.weight_orig, (0, 1)), (layer.weight_u, (0,)), (layer.weight_v, (0,))):
        parameter.data = parameter.data.flip(axes).contiguous()
    turned = spectral_of(rows(layer)["0.weight"])
    assert (turned.largest, turned.u, turned.v) == (first.largest, first.u, first.v)
    assert first.u == pytest.approx(1.5)


def test_u_and_v_as_they_were_drawn_are_never_trained() -> None:
    torch.manual_seed(1)
    row = rows(spectral(nn.Linear(200, 300)))["0.weight"]
    assert row.flags == ("never trained",)
    assert abs(spectral_of(row).ratio or 0) < 0.5


def test_averaged_u_and_v_are_shorter_and_not_untrained() -> None:
    torch.manual_seed(1)
    layer = trained(spectral(nn.Conv1d(4, 8, 3)))
    layer.weight_u.mul_(0.6)
    layer.weight_v.mul_(0.5)
    row = rows(layer)["0.weight"]
    assert (spectral_of(row).u, spectral_of(row).v) == pytest.approx((0.6, 0.5), abs=1e-5)
    assert spectral_of(row).ratio == pytest.approx(0.3, abs=0.01)
    assert not row.flags


def test_the_axis_of_equal_sizes_is_the_one_where_sigma_is_larger() -> None:
    torch.manual_seed(1)
    up = nn.ConvTranspose1d(6, 6, 3)
    row = rows(trained(spectral(up)))["0.weight"]
    assert spectral_of(row).ratio == pytest.approx(1, abs=0.02)
    assert not row.flags


def test_no_sigma_is_flagged() -> None:
    layer = spectral(nn.Linear(4, 3))
    layer.weight_u.zero_()
    assert rows(layer)["0.weight"].flags == ("σ is 0, NaN or inf",)
    layer.weight_u.fill_(float("nan"))
    assert rows(layer)["0.weight"].flags == ("σ is 0, NaN or inf",)


def test_the_zeros_of_a_mask_are_counted_and_those_of_the_weight_are_not() -> None:
    layer = pruned(nn.Linear(4, 3))
    layer.weight_mask.fill_(1)
    layer.weight_mask[0] = 0
    layer.weight_orig.data.zero_()
    row = rows(layer)["0.weight"]
    assert row.kind == "prune"
    assert row.zeros == pytest.approx(1 / 3)


def test_stacks_show_what_is_beneath() -> None:
    torch.manual_seed(1)
    layer = trained(pruned(spectral(nn.Conv1d(4, 8, 3)), "weight_orig"))
    matrix = (layer.weight_orig_orig * layer.weight_orig_mask).detach().reshape(8, -1)
    row = rows(layer)["0.weight"]
    assert (row.kind, row.zeros) == ("prune+spectral", float((layer.weight_orig_mask == 0).double().mean()))
    assert spectral_of(row).largest == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-2)
    both = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3)))
    row = rows(both)["0.weight"]
    assert (row.kind, row.spectral, row.flags) == ("weight+spectral", None, ("refused",))


def test_without_full_the_layers_are_listed_and_nothing_of_them_is_read() -> None:
    every = rows(spectral(nn.Linear(4, 3)), pruned(nn.Linear(4, 3)), weight_norm(nn.Linear(4, 3)), full=False)
    assert {row.kind for row in every.values()} == {"spectral", "prune", "weight"}
    assert all(row.spectral is None and row.zeros is None for row in every.values())


def test_names_alone_are_no_rows() -> None:
    found = inspect_state_dict({"x_orig": torch.ones(3, 4), "x_mask": torch.ones(2), "y_u": torch.ones(3)})
    assert not found.layers


def test_also_says_what_folds_a_kind() -> None:
    state = nn.ModuleList([spectral(nn.Linear(4, 3)), nn.BatchNorm1d(3)]).state_dict()
    found = inspect_state_dict(state | {item[0]: torch.ones(item[1]) for item in BIGGAN})
    assert {kind.kind: kind.kinds for kind in found.kinds} == {
        "spectral norm (legacy)": "spectral",
        "spectral norm (BigGAN)": "spectral-step",
        "batch norm": "",
    }
    text = inspection_text(found)
    assert "(--kinds spectral)" in text
    assert "is not in the keys; --norm by-names --eps E tells 0 of 1, or --recipe\n" in text


def test_columns_of_weight_norm_are_gone_where_there_is_none() -> None:
    found = inspect_state_dict(nn.ModuleList([spectral(nn.Linear(4, 3))]).state_dict(), full=True)
    assert "|g|" not in inspection_text(found)
    assert "σ/largest" in inspection_text(found)
    assert found.to_dict()["layers"][0]["spectral"]["u"] == pytest.approx(1, abs=1e-5)
