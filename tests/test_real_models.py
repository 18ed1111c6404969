"""The verbs on real models: transformers' own classes in both forms of weight norm, and what they compute.

The rows are in ``tests/zoo.py``; so is what transformers says of weight norm and does not do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.states import halves, hold, same
from tests.test_schemes import infos_of
from tests.zoo import FORMS, ROWS, WITHOUT, Row, gap, inside, of, vits_config, weight_norm_is
from wnconvert import fold_state_dict
from wnconvert.modules import (
    fold_module,
    folded,
    inspect_module,
    migrate_module,
    split_module,
    weights_folded,
)
from wnconvert.schemes import find

#: How far outputs may be apart; `test_an_output_shows_each_magnitude` shows that they tell.
WITHIN = 1e-5

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
forms = pytest.mark.parametrize("form", FORMS)
OTHER = dict(zip(FORMS, reversed(FORMS), strict=True))


def rows_named(*names: str) -> pytest.MarkDecorator:
    by_name = {row.name: row for row in ROWS}
    return pytest.mark.parametrize("row", [by_name[name] for name in names], ids=names)


def same_states(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """The same names and bits; the order is its own question."""
    return set(left) == set(right) and all(same(left[name], right[name]) for name in left)


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


# -- live modules


@rows
@forms
def test_fold_module_computes_the_same_with_the_bits_of_fold_state_dict(row: Row, form: str) -> None:
    model = row.normed(form)
    untouched, expected = row.outputs(model), fold_state_dict(model.state_dict())
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    done = fold_module(model)
    assert len(done) == row.layers
    assert {layer.form for layer in done} == {form}
    assert same_states(model.state_dict(), expected)
    for layer in done:
        weight = model.get_parameter(layer.name)
        assert type(weight) is nn.Parameter
        assert weight.requires_grad is frozen[layer.v.name]
    assert not any(hasattr(module, "parametrizations") for module in model.modules())
    assert gap(row.outputs(model), untouched) <= WITHIN
    assert fold_module(model) == ()
    plain = without_weight_norm(row)
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    copy.deepcopy(model)


@rows
@forms
def test_a_folded_copy_and_a_folded_block_leave_the_model_as_it_was(row: Row, form: str) -> None:
    model = row.normed(form)
    untouched = row.outputs(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    copied = folded(model)
    assert not halves(copied.state_dict())
    assert gap(row.outputs(copied), untouched) <= WITHIN
    with weights_folded(model) as layers:
        assert len(layers) == row.layers
        assert same_states(model.state_dict(), copied.state_dict())
        assert gap(row.outputs(model), untouched) <= WITHIN
    assert list(model.state_dict()) == list(before)
    assert same_states(model.state_dict(), before)
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert gap(row.outputs(model), untouched) == 0


@rows
@forms
def test_migrate_module_there_and_back_keeps_the_parameters_and_what_they_compute(
    row: Row, form: str
) -> None:
    model = row.normed(form)
    untouched = row.outputs(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = {id(parameter) for parameter in model.parameters()}
    assert len(migrate_module(model, to=OTHER[form])) == row.layers
    assert list(model.state_dict()) == list(row.normed(OTHER[form]).state_dict())
    assert same_states(model.state_dict(), row.normed(OTHER[form]).state_dict())
    assert {id(parameter) for parameter in model.parameters()} == own
    assert gap(row.outputs(model), untouched) <= WITHIN
    assert migrate_module(model, to=OTHER[form]) == ()
    assert len(migrate_module(model, to=form)) == row.layers
    assert list(model.state_dict()) == list(before)
    assert same_states(model.state_dict(), before)
    assert {id(parameter) for parameter in model.parameters()} == own
    assert gap(row.outputs(model), untouched) <= WITHIN


@rows
@forms
def test_split_module_makes_the_layers_again_and_a_fold_of_them_the_bits(row: Row, form: str) -> None:
    model, reference = row.normed(form), row.normed(form)
    untouched = row.outputs(model)
    fold_module(model)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    done = split_module(model, like=reference)
    assert {(layer.name, layer.form, layer.dim) for layer in done} == {
        (layer.name, form, layer.dim) for layer in find(infos_of(reference)).layers
    }
    assert set(model.state_dict()) == set(reference.state_dict())
    assert gap(row.outputs(model), untouched) <= WITHIN
    fold_module(model)
    assert same_states(model.state_dict(), plain)
    one = done[-1]
    assert [layer.name for layer in split_module(model, layers=one.name, dim=one.dim, to=form)] == [one.name]


@rows
@forms
def test_inspect_module_sees_each_layer_with_its_dim(row: Row, form: str) -> None:
    found = inspect_module(row.normed(form))
    dims = [layer.dim for layer in found.layers]
    assert {dim: dims.count(dim) for dim in dims} == row.dims
    assert {layer.form for layer in found.layers} == {form}


# -- their own remove_weight_norm


@rows_named(
    "SpeechT5HifiGan",
    "FastSpeech2ConformerHifiGan",
    "VitsHifiGan",  # VitsModel's decoder
    "UnivNetModel",
    "DacModel",
    "SeamlessM4TCodeHifiGan",
    "SeamlessM4Tv2CodeHifiGan",
)
def test_transformers_own_remove_weight_norm_raises_where_fold_module_works(row: Row) -> None:
    model: Any = row.plain()
    model.apply_weight_norm()
    with pytest.raises(ValueError, match="weight_norm of 'weight' not found in Parametrized"):
        model.remove_weight_norm()
    model = row.normed("parametrize")
    untouched = row.outputs(model)
    assert len(fold_module(model)) == row.layers
    assert gap(row.outputs(model), untouched) <= WITHIN
    # On the legacy form theirs works, and to the same numbers.
    theirs: Any = row.normed("legacy")
    theirs.remove_weight_norm()
    assert set(theirs.state_dict()) == set(model.state_dict())
    assert gap(row.outputs(theirs), row.outputs(model)) <= WITHIN


@pytest.mark.parametrize("form", FORMS)
def test_the_wavenets_of_vits_cannot_remove_their_weight_norm_in_either_form_and_fold_module_does(
    form: str,
) -> None:
    with weight_norm_is(form):
        wavenet = inside("vits", "VitsWaveNet")(vits_config(), num_layers=2)
    with pytest.raises(AttributeError, match="has no attribute 'speaker_embedding_size'"):
        wavenet.remove_weight_norm()
    assert len(fold_module(wavenet)) == 5


@rows_named("XcodecModel")
@forms
def test_xcodecs_own_remove_weight_norm_works_and_leaves_the_semantic_models_layer(
    row: Row, form: str
) -> None:
    model: Any = row.normed(form)
    untouched = row.outputs(model)
    model.remove_weight_norm()
    assert list(halves(model.state_dict())) == ["semantic_model.encoder.pos_conv_embed.conv.weight"]
    assert [layer.dim for layer in fold_module(model)] == [2]
    assert gap(row.outputs(model), untouched) <= WITHIN
