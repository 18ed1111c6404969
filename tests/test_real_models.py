"""The verbs on real models: transformers' own classes in both forms of weight norm, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.states import halves, hold
from tests.test_schemes import infos_of
from tests.zoo import FORMS, ROWS, WITHOUT, Row, gap, of
from wnconvert import fold_state_dict
from wnconvert.schemes import find

#: How far outputs may be apart; `test_an_output_shows_each_magnitude` shows that they tell.
WITHIN = 1e-5

pytestmark = pytest.mark.filterwarnings("error")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """No progress bars of transformers' in the tests' output."""
    logging = of("logging")
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


# -- the models themselves


@rows
def test_a_model_has_its_layers_and_computes_the_same_in_both_forms(row: Row) -> None:
    outputs = []
    for form in FORMS:
        model = row.normed(form)
        found = find(infos_of(model))
        assert not found.refused
        assert {layer.form for layer in found.layers} == {form}
        dims = [layer.dim for layer in found.layers]
        assert {dim: dims.count(dim) for dim in dims} == row.dims
        outputs.append(row.outputs(model))
    assert gap(*outputs) <= WITHIN


@rows
def test_an_output_shows_each_magnitude(row: Row) -> None:
    model = row.normed("parametrize")
    untouched = row.outputs(model)
    for g, _ in halves(model.state_dict()).values():
        parameter = model.get_parameter(g)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5)
        assert gap(row.outputs(model), untouched) > 10 * WITHIN, g
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_only_mentions_weight_norm_has_no_layer(name: str) -> None:
    found = find(infos_of(WITHOUT[name]()))
    assert (found.layers, found.refused) == ((), ())


# -- state dicts


@rows
@forms
def test_a_folded_state_dict_loads_into_the_plain_class_and_computes_the_same(row: Row, form: str) -> None:
    model = row.normed(form)
    untouched, before = row.outputs(model), model.state_dict()
    after = fold_state_dict(before)
    assert hold(before, after) == row.layers
    plain = without_weight_norm(row)
    plain.load_state_dict(after, strict=True)
    assert gap(row.outputs(plain), untouched) <= WITHIN


def without_weight_norm(row: Row) -> nn.Module:
    """The class with weight norm taken off by torch, where the class has it by itself."""
    plain = row.plain()
    for module in list(plain.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            nn.utils.parametrize.remove_parametrizations(module, name)
    assert not halves(plain.state_dict())
    return plain
