"""The verbs on real models: transformers' own classes in both forms of weight norm, and what they compute.

The rows are in ``tests/helpers/zoo.py``; so is what transformers says of weight norm and does not do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers.infos import halves
from tests.helpers.live_models import infos_of
from tests.helpers.marks import some
from tests.helpers.states import hold, same
from tests.helpers.zoo import FORMS, SEEDS, WITHOUT, Row, gap, inside, of, vits_config, weight_norm_is
from tests.helpers.zoo import ROWS as SIMPLE
from tests.helpers.zoo_composites import COMPOSITES
from wnconvert.layers.find import find_pairs
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict, migrate_state_dict, split_state_dict
from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module, weights_folded
from wnconvert.verbs.modules.inspect import inspect_module
from wnconvert.verbs.modules.split import split_module
from wnconvert.verbs.shared.options import Form

#: How far outputs may be apart; `test_an_output_shows_each_magnitude` shows that they tell.
WITHIN = 1e-5

OTHER: dict[str, Form] = {"legacy": "parametrize", "parametrize": "legacy"}


#: A row whose class is newer than the transformers that is installed is left out.
ROWS = tuple(row for row in (*SIMPLE, *COMPOSITES) if row.is_there)

#: A class that is plain by itself, one with a single layer of dim 2, and one that has its layers itself.
FEW = ("SpeechT5HifiGan", "Wav2Vec2Model", "EncodecModel")


def rows_of(rows: Iterable[Row]) -> pytest.MarkDecorator:
    """Every row in the full run, ``FEW`` of them by default."""
    return some("row", {row.name: row for row in rows}, FEW)


def rows_named(*names: str) -> pytest.MarkDecorator:
    by_name = {row.name: row for row in ROWS}
    return pytest.mark.parametrize("row", [by_name[name] for name in names], ids=lambda row: row.name)


rows = rows_of(ROWS)
forms = pytest.mark.parametrize("form", FORMS)


def same_states(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """The same names and bits; the order is its own question."""
    return set(left) == set(right) and all(same(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """No progress bars, and no threads that wait for each other: the models are tiny."""
    threads, logging = torch.get_num_threads(), of("logging")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(threads)


# -- the models themselves


@rows
def test_a_model_has_its_layers_and_computes_the_same_in_both_forms(row: Row) -> None:
    outputs = []
    for form in FORMS:
        model = row.normed(form)
        found = find_pairs(infos_of(model))
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


@rows_of([row for row in ROWS if row not in SEEDS])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_where_torch_has_no_new_weight_norm_the_classes_apply_the_legacy_one(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = row.normed("legacy").state_dict()
    monkeypatch.delattr(parametrizations, "weight_norm")
    model = row.plain()
    if row.name == "XcodecModel":
        with pytest.raises(AttributeError, match="has no attribute 'weight_norm'"):
            row.norm(model)
        return
    row.norm(model)
    assert [(name, value.shape) for name, value in model.state_dict().items()] == [
        (name, value.shape) for name, value in expected.items()
    ]


@pytest.mark.parametrize("name", WITHOUT)
def test_what_only_mentions_weight_norm_has_no_layer(name: str) -> None:
    try:
        of(name.partition(" ")[0])
    except AttributeError:
        pytest.skip(f"transformers {of('__version__')} does not have it yet")
    found = find_pairs(infos_of(WITHOUT[name]()))
    assert (found.layers, found.refused) == ((), ())


# -- state dicts


@rows
@forms
def test_a_folded_state_dict_loads_into_the_plain_class_and_computes_the_same(row: Row, form: Form) -> None:
    model = row.normed(form)
    untouched, before = row.outputs(model), model.state_dict()
    after = fold_state_dict(before)
    assert hold(before, after) == row.layers
    plain = without_weight_norm(row)
    plain.load_state_dict(after, strict=True)
    assert gap(row.outputs(plain), untouched) <= WITHIN


@rows
@forms
def test_a_state_dict_migrates_there_and_back_and_loads_into_the_model_of_that_form(
    row: Row, form: Form
) -> None:
    model, other = row.normed(form), row.normed(OTHER[form])
    untouched, before = row.outputs(model), model.state_dict()
    expected = {name: value.clone() for name, value in other.state_dict().items()}
    there = migrate_state_dict(before, to=OTHER[form])
    assert list(there) == list(expected)
    assert same_states(there, expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(there, strict=True)
    assert gap(row.outputs(other), untouched) <= WITHIN
    back = migrate_state_dict(there, to=form)
    assert list(back) == list(before)
    assert same_states(back, before)


@rows
@forms
def test_a_folded_state_dict_is_split_like_the_model_and_folds_to_the_same_bits(row: Row, form: Form) -> None:
    model = row.normed(form)
    untouched, before = row.outputs(model), model.state_dict()
    plain = fold_state_dict(before)
    again = split_state_dict(plain, like=before)
    assert set(again) == set(before)
    assert len(halves(again)) == row.layers
    assert same_states(fold_state_dict(again), plain)
    model.load_state_dict(again, strict=True)
    assert gap(row.outputs(model), untouched) <= WITHIN


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
def test_fold_module_computes_the_same_with_the_bits_of_fold_state_dict(row: Row, form: Form) -> None:
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
def test_after_fold_module_a_legacy_file_is_reported_by_its_own_names(row: Row) -> None:
    model, legacy = row.normed("parametrize"), row.normed("legacy").state_dict()
    assert len(fold_module(model)) == row.layers
    report = model.load_state_dict(legacy, strict=False)
    assert set(report.missing_keys) == set(halves(legacy))
    assert set(report.unexpected_keys) == {half for both in halves(legacy).values() for half in both}


@rows
@forms
def test_a_folded_copy_and_a_folded_block_leave_the_model_as_it_was(row: Row, form: Form) -> None:
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
    row: Row, form: Form
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
def test_split_module_makes_the_layers_again_and_a_fold_of_them_the_bits(row: Row, form: Form) -> None:
    model, reference = row.normed(form), row.normed(form)
    untouched = row.outputs(model)
    fold_module(model)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    done = split_module(model, like=reference)
    assert {(layer.name, layer.form, layer.dim) for layer in done} == {
        (layer.name, form, layer.dim) for layer in find_pairs(infos_of(reference)).layers
    }
    assert set(model.state_dict()) == set(reference.state_dict())
    assert gap(row.outputs(model), untouched) <= WITHIN
    fold_module(model)
    assert same_states(model.state_dict(), plain)
    one = done[-1]
    assert [layer.name for layer in split_module(model, layers=one.name, dim=one.dim, to=form)] == [one.name]


@rows
@forms
def test_inspect_module_sees_each_layer_with_its_dim(row: Row, form: Form) -> None:
    found = inspect_module(row.normed(form))
    dims = [layer.dim for layer in found.layers]
    assert {dim: dims.count(dim) for dim in dims} == row.dims
    assert {layer.form for layer in found.layers} == {form}


# -- save_pretrained and from_pretrained

SAVED = [row for row in ROWS if row.saves]


class Folder:
    """What `save_pretrained` of a model made; the weights in it are converted in place."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        self.cls = type(model)
        model.save_pretrained(folder)

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    def names(self) -> set[str]:
        return set(safetensors.torch.load_file(self.weights))

    def convert(self, verb: Callable[..., Any], **options: Any) -> None:
        out = self.folder / "converted.safetensors"
        assert verb(self.weights, out, verify=True, **options).plan.layers
        out.replace(self.weights)

    def load(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model as transformers loads it, and what it says of keys that did not fit."""
        model, report = self.cls.from_pretrained(self.folder, output_loading_info=True)
        return model, {what: sorted(map(str, keys)) for what, keys in report.items() if keys}


@rows_of(SAVED)
@forms
def test_a_saved_model_migrated_is_loaded_without_missing_or_unexpected_keys(
    row: Row, form: Form, tmp_path: Path
) -> None:
    model = row.normed(form)
    untouched = row.outputs(model)
    folder = Folder(model, tmp_path)
    assert halves(folder.names()) == halves(model.state_dict())
    if form == "legacy":
        folder.convert(migrate_file)
    assert folder.names() == Folder(row.normed("parametrize"), tmp_path / "new").names()
    if row.folds:  # a class that is plain by itself needs one that is not
        folder.cls = normed_class(row)
    loaded, report = folder.load()
    assert report == {}
    assert len(halves(loaded.state_dict())) == row.layers
    assert gap(row.outputs(loaded), untouched) <= WITHIN


def normed_class(row: Row) -> Any:
    """The row's class with weight norm from the start, as whoever goes on training writes it."""
    base: Any = type(row.plain())

    class Normed(base):  # type: ignore[misc]  # the class is found by its name
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            row.norm(self)

    return Normed


@rows_of([row for row in SAVED if row.folds])
@forms
def test_layers_that_a_class_has_plain_are_folded_and_then_it_loads_them(
    row: Row, form: Form, tmp_path: Path
) -> None:
    model = row.normed(form)
    untouched = row.outputs(model)
    folder = Folder(model, tmp_path)
    _, report = folder.load()
    plain = len(report["missing_keys"])
    assert 0 < plain <= row.layers  # without it, these layers are random
    assert len(report["unexpected_keys"]) == 2 * plain
    folder.convert(fold_file, layers=row.folds)
    if form == "legacy" and plain < row.layers:
        folder.convert(migrate_file)
    loaded, report = folder.load()
    assert report == {}
    assert len(halves(loaded.state_dict())) == row.layers - plain
    assert gap(row.outputs(loaded), untouched) <= WITHIN


@rows_of([row for row in SAVED if not row.folds])
def test_transformers_loads_the_legacy_form_and_saves_it_again_until_the_file_is_migrated(
    row: Row, tmp_path: Path
) -> None:
    model = row.normed("legacy")
    untouched = row.outputs(model)
    folder = Folder(model, tmp_path / "first")
    loaded, report = folder.load()
    assert report == {}
    assert gap(row.outputs(loaded), untouched) <= WITHIN
    assert Folder(loaded, tmp_path / "second").names() == folder.names()
    assert {layer.form for layer in find_pairs(infos_of(loaded)).layers} == {"parametrize"}
    folder.convert(migrate_file)
    loaded, report = folder.load()
    assert report == {}
    assert Folder(loaded, tmp_path / "third").names() == folder.names()
    assert halves(folder.names()) == halves(loaded.state_dict())


@rows_of([row for row in SAVED if not row.folds])
@forms
def test_a_folded_file_misses_the_layers_of_a_class_that_has_them_until_it_is_split(
    row: Row, form: Form, tmp_path: Path
) -> None:
    model = row.normed(form)
    untouched = row.outputs(model)
    folder = Folder(model, tmp_path)
    names = folder.names()
    folder.convert(fold_file)
    plain = safetensors.torch.load_file(folder.weights)
    _, report = folder.load()
    assert len(report["missing_keys"]) == 2 * row.layers
    assert len(report["unexpected_keys"]) == row.layers
    folder.convert(split_file)  # as the file itself records
    assert folder.names() == names
    assert same_states(fold_state_dict(safetensors.torch.load_file(folder.weights)), plain)
    loaded, report = folder.load()
    assert report == {}
    assert gap(row.outputs(loaded), untouched) <= WITHIN


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
    form: Form,
) -> None:
    with weight_norm_is(form):
        wavenet = inside("vits", "VitsWaveNet")(vits_config(), num_layers=2)
    with pytest.raises(AttributeError, match="has no attribute 'speaker_embedding_size'"):
        wavenet.remove_weight_norm()
    assert len(fold_module(wavenet)) == 5


@rows_named("XcodecModel")
@forms
def test_xcodecs_own_remove_weight_norm_works_and_leaves_the_semantic_models_layer(
    row: Row, form: Form
) -> None:
    model: Any = row.normed(form)
    untouched = row.outputs(model)
    model.remove_weight_norm()
    assert list(halves(model.state_dict())) == ["semantic_model.encoder.pos_conv_embed.conv.weight"]
    assert [layer.dim for layer in fold_module(model)] == [2]
    assert gap(row.outputs(model), untouched) <= WITHIN
