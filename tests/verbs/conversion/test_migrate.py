"""migrate changes names and their order, as torch has them, and no byte of a tensor."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.golden import FIXTURES
from tests.helpers.infos import halves, new_pair, pair, state_at
from tests.helpers.live_models import legacy, new
from tests.helpers.marks import some
from tests.helpers.runner import Runner, listing
from tests.helpers.states import State, load, same, state_dicts
from tests.helpers.tool import Ended
from wnconvert import migrate_file, migrate_state_dict
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Selection
from wnconvert.plan.migrate import plan_migrate
from wnconvert.plan.order import is_buffer
from wnconvert.plan.plan import Plan
from wnconvert.plan.record.history import METADATA_KEY, RECORD_NAME
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.shared.options import Form

FORMS: list[Form] = ["parametrize", "legacy"]
NORMS: dict[str, Callable[..., nn.Module]] = {"parametrize": new, "legacy": legacy}
OTHER: dict[str, Form] = {"parametrize": "legacy", "legacy": "parametrize"}
BY_FORM = pytest.mark.parametrize("form", FORMS)
#: The same, of which the default run tries the newer form alone.
BY_NEW_FORM = some("form", {form: form for form in FORMS}, ["parametrize"])

# Of every container and kind; whether the source is a mixture of forms.
FILES = {
    "g_02500000": False,
    "do_02500000": False,
    "legacy_nonzip.pth": False,
    "sovits.pth": False,
    "scripted.pt": False,
    "lightning.ckpt": False,
    "tied.pt": False,
    "vits.pth": True,
    "gan.pt": True,
    "hifigan.safetensors": False,
    "wav2vec2_pos_conv.safetensors": False,
    "codec_bf16.safetensors": False,
    "half_pair.safetensors": False,
    "zero_row.safetensors": False,
    "step_1000.safetensors": False,
}
SEVERAL = {"do_02500000", "gan.pt"}  # state dicts with layers, which no safetensors file can hold
OUTPUTS = [(name, ".pt") for name in FILES] + [
    (name, ".safetensors") for name in FILES if name not in SEVERAL
]


def migrated(source: Path, to: Any, folder: Path, name: str = "out.pt", **options: Any) -> Path:
    migrate_file(source, folder / name, to=to, force=True, copy=True, **options)
    return folder / name


def form_of(name: str) -> str:
    """The form that a whole key is spelled in, or nothing."""
    if name.endswith((".original0", ".original1")):
        return "parametrize"
    return "legacy" if name.endswith(("_g", "_v")) else ""


def is_vector(g: Tensor, v: Tensor) -> bool:
    """Whether a g is a vector, of ours always along the first axis, which no form of torch's has."""
    return g.dim() == 1 < v.dim() and g.numel() > 1


def renamed(state: Mapping[str, Any], to: Form) -> dict[str, Any]:
    """What a state dict holds under the names of a form, by spelling alone; in no order that means much.

    A g that is a vector gets the shape that torch loads.
    """
    found = dict(state)
    for weight, pair_of in halves(state).items():
        owner, _, param = weight.rpartition(".")
        at = f"{owner}.parametrizations.{param}." if owner else f"parametrizations.{param}."
        after = (f"{weight}_g", f"{weight}_v") if to == "legacy" else (f"{at}original0", f"{at}original1")
        g, v = (found.pop(half) for half in pair_of)
        if is_vector(g, v) or (pair_of != after and g.dim() == 1 < v.dim()):
            g = g.reshape([-1, *[1] * (v.dim() - 1)] if g.numel() > 1 else [])
        found.update(zip(after, (g, v), strict=True))
    return found


def equal(left: Any, right: Any) -> bool:
    return same(left, right) if isinstance(left, Tensor) else bool(left == right)


def hold(before: Mapping[str, Any], after: Mapping[str, Any], to: Form) -> int:
    """Hold a migrated state dict against its source, name by name and bit by bit; how many layers changed."""
    expected = renamed(before, to)
    assert set(after) == set(expected)
    assert all(equal(after[name], expected[name]) for name in after)
    vectors = [both for both in halves(before).values() if is_vector(*(before[half] for half in both))]
    stays = before.keys() & after.keys() - {half for both in vectors for half in both}
    kept = [name for name in before if name in stays]
    assert [name for name in after if name in stays] == kept, "what keeps its name keeps its order"
    return len(set(after) - set(before)) // 2


def storages(path: Path) -> Counter[bytes]:
    """The bytes of every storage of a torch zip, or of every tensor of a safetensors file."""
    content = path.read_bytes()
    if content[8:9] == b"{":
        return Counter(value.numpy().tobytes() for value in _raw(path).values())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = [name for name in archive.namelist() if "/data/" in name]
            return Counter(_record(path, archive.getinfo(name)) for name in data)
    raise AssertionError("no archive")


def _raw(path: Path) -> dict[str, Tensor]:
    return {
        name: value.reshape(-1).view(torch.uint8) for name, value in safetensors.torch.load_file(path).items()
    }


def _record(path: Path, info: zipfile.ZipInfo) -> bytes:
    data = path.read_bytes()
    name, extra = (int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
    return data[info.header_offset + 30 + name + extra :][: info.file_size]


# -- names change, bytes do not


@BY_NEW_FORM
@pytest.mark.parametrize(("name", "suffix"), OUTPUTS)
def test_names_change_and_bytes_do_not(name: str, suffix: str, form: Form, tmp_path: Path) -> None:
    source = (FIXTURES / name).read_bytes()
    out = migrated(FIXTURES / name, form, tmp_path, f"out{suffix}")
    before, after = state_dicts(FIXTURES / name), state_dicts(out)
    layers = 0
    for path, state in after.items():
        of_source = before[path] if suffix == ".pt" else max(before.values(), key=lambda s: len(halves(s)))
        tensors = {key: value for key, value in of_source.items() if isinstance(value, Tensor)}
        hold(tensors if suffix == ".safetensors" else of_source, state, form)
        layers += len(halves(state))
        assert {form_of(half) for both in halves(state).values() for half in both} <= {form}
    assert layers > 0
    assert (FIXTURES / name).read_bytes() == source
    if suffix == ".pt" and name not in {"legacy_nonzip.pth", "scripted.pt"} and not name.endswith("tensors"):
        assert storages(out) == storages(FIXTURES / name)
    if suffix == ".safetensors" and name.endswith(suffix):
        assert storages(out) == storages(FIXTURES / name)


def test_that_comparison_can_fail(tmp_path: Path) -> None:
    state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3), "b": torch.zeros(1)}
    after = migrate_state_dict(state)
    assert hold(state, after, "parametrize") == 1
    for wrong in (
        state,
        {**after, "b": torch.ones(1)},
        {**after, "a.parametrizations.weight.original1": torch.zeros(2, 3)},
        {**after, "more": torch.ones(1)},
    ):
        with pytest.raises(AssertionError):
            hold(state, wrong, "parametrize")
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    safetensors.torch.save_file(state, one)
    safetensors.torch.save_file({**state, "b": torch.ones(1)}, two)
    assert storages(one) != storages(two)


@pytest.mark.parametrize("name", ["gan.pt", "vits.pth"])
@BY_FORM
def test_a_mixture_ends_in_one_form(name: str, form: Form, tmp_path: Path) -> None:
    before = state_dicts(FIXTURES / name)
    there = Counter(form_of(g) for state in before.values() for g, _ in halves(state).values())
    assert set(there) == set(FORMS)
    result = migrate_file(FIXTURES / name, tmp_path / "out.pt", to=form)
    assert len(result.plan.layers) == there[OTHER[form]]
    assert result.plan.already == there[form]
    after = state_dicts(tmp_path / "out.pt")
    assert Counter(form_of(g) for state in after.values() for g, _ in halves(state).values()) == {
        form: sum(there.values())
    }


def test_what_is_tied_stays_tied(tmp_path: Path) -> None:
    state = load(migrated(FIXTURES / "tied.pt", "parametrize", tmp_path))
    at = "conv.parametrizations.weight.original"
    for half in "01":
        encoder, decoder = state[f"encoder.{at}{half}"], state[f"decoder.{at}{half}"]
        assert encoder.data_ptr() == decoder.data_ptr()
    assert state[f"encoder.{at}0"].data_ptr() != state[f"encoder.{at}1"].data_ptr()


# -- there and back


@BY_NEW_FORM
@pytest.mark.parametrize(("name", "suffix"), OUTPUTS)
def test_both_directions_undo_each_other_byte_for_byte(
    name: str, suffix: str, form: Form, tmp_path: Path
) -> None:
    source, made = FIXTURES / name, []
    for at, to in enumerate([form, OTHER[form]] * 3):
        source = migrated(source, to, tmp_path, f"{at}{suffix}")
        made.append(source.read_bytes())
    assert made[0] == made[2] == made[4]
    assert made[1] == made[3] == made[5]
    assert made[0] != made[1]
    # A vector is a third form, so what made it legacy is not undone by the way to parametrize.
    if (name, form) != ("codec_bf16.safetensors", "legacy"):
        assert b"migrate" not in made[0] or b"migrate" not in made[1], "what is undone is not told of"


@pytest.mark.parametrize(("name", "suffix"), OUTPUTS)
def test_a_file_in_one_form_comes_back_as_it_was(name: str, suffix: str, tmp_path: Path) -> None:
    forms = {form_of(g) for state in state_dicts(FIXTURES / name).values() for g, _ in halves(state).values()}
    assert (len(forms) == 2) == FILES[name]
    form = forms.pop()
    # Written as it is: in our own container, which the source need not be.
    source = migrated(FIXTURES / name, form, tmp_path, f"as it is{suffix}")
    there = migrated(source, OTHER[form], tmp_path, f"there{suffix}")
    back = migrated(there, form, tmp_path, f"back{suffix}")
    assert back.read_bytes() == source.read_bytes()
    assert there.read_bytes() != source.read_bytes()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
def test_a_file_that_the_safetensors_library_wrote_comes_back_byte_for_byte(
    name: str, tmp_path: Path
) -> None:
    (state,) = state_dicts(FIXTURES / name).values()
    (form,) = {form_of(g) for g, _ in halves(state).values()}
    there = migrated(FIXTURES / name, OTHER[form], tmp_path, "there.safetensors")
    back = migrated(there, form, tmp_path, "back.safetensors")
    assert back.read_bytes() == (FIXTURES / name).read_bytes()
    # And by way of a torch file, whose record keeps what a safetensors file says of itself.
    torch_file = migrated(FIXTURES / name, OTHER[form], tmp_path, "there.pt")
    again = migrated(torch_file, form, tmp_path, "again.safetensors")
    assert again.read_bytes() == (FIXTURES / name).read_bytes()


ODD_PLACES = {
    "a pair behind the children of its module": ["a.bias", "a.sub.bias", *pair("a.weight"), "b"],
    "a pair before other parameters": [*pair("a.weight"), "a.bias", "b"],
    "halves apart": [pair("a.weight")[0], "a.bias", "b", pair("a.weight")[1], "c"],
    "v before g": ["a.bias", *reversed(pair("a.weight")), "b"],
    "a pair before the children of its module": ["a.bias", *new_pair("a.weight"), "a.sub.bias", "b"],
    "new halves apart": [new_pair("a.weight")[1], "z", "a.bias", new_pair("a.weight")[0]],
    "all first": [*pair("a.weight"), *pair("b.weight"), "a.sub.bias", "b.bias", "b.sub.weight"],
}


def state_of(keys: list[Any]) -> OrderedDict[str, Tensor]:
    shapes = [(key, (8,)) if isinstance(key, str) else key[:2] for key in keys]
    values = torch.Generator().manual_seed(len(keys))
    return OrderedDict((name, torch.randn(shape, generator=values)) for name, shape in shapes)


def record_of(path: Path) -> list[Any]:
    """The verbs and state dicts of the record of a file, as others read it."""
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="numpy") as file:
            text = file.metadata().get(METADATA_KEY)
    else:
        with zipfile.ZipFile(path) as archive:
            name = f"archive/{RECORD_NAME}"
            text = archive.read(name) if name in archive.namelist() else None
    return json.loads(text)["history"] if text else []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keys", ODD_PLACES.values(), ids=[name[:24] for name in ODD_PLACES])
def test_a_place_that_the_rules_would_not_restore_is_recorded_and_the_record_consumed(
    keys: list[Any], suffix: str, tmp_path: Path
) -> None:
    state = state_of(keys)
    form = next(filter(None, map(form_of, state)))
    torch.save({"model": state, "epoch": 3}, tmp_path / "in.pt")
    source = migrated(tmp_path / "in.pt", form, tmp_path, f"as it is{suffix}")
    there = migrated(source, OTHER[form], tmp_path, f"there{suffix}")
    back = migrated(there, form, tmp_path, f"back{suffix}")
    assert record_of(source) == record_of(back) == []
    ((verb, states),) = (step.values() for step in record_of(there))
    assert (verb, list(states)) == ("migrate", ["model" if suffix == ".pt" else ""])
    ((at, found),) = state_dicts(back).items()
    assert at == ("model" if suffix == ".pt" else "")
    assert list(found) == list(state)
    assert back.read_bytes() == source.read_bytes()
    again = migrated(back, OTHER[form], tmp_path, f"again{suffix}")
    assert again.read_bytes() == there.read_bytes()


@BY_FORM
def test_where_the_rules_restore_a_place_nothing_is_recorded(form: Form, tmp_path: Path) -> None:
    keys = ["a.bias", *pair("a.weight"), "a.sub.bias", "b.running_mean", "c.bias", *pair("c.weight")]
    torch.save(migrate_state_dict(state_of(keys), to=form), tmp_path / "in.pt")
    there = migrated(tmp_path / "in.pt", OTHER[form], tmp_path)
    assert record_of(there) == []


def test_a_record_of_a_mixture_outlives_the_round_that_passes_it(tmp_path: Path) -> None:
    # The second migration undoes more than the first did; undone itself, it leaves the first one's record.
    keys = ["p.bias", *new_pair("p.weight"), "p.sub.bias", "q.bias", "q.sub.bias", *pair("q.weight")]
    safetensors.torch.save_file(state_of(keys), tmp_path / "in.safetensors", {"format": "pt"})
    source, made = tmp_path / "in.safetensors", []
    for at, to in enumerate(FORMS * 3):
        source = migrated(source, to, tmp_path, f"{at}.safetensors")
        made.append(source.read_bytes())
        assert len(record_of(source)) == 1 + at % 2
    assert made[0] == made[2] == made[4]
    assert made[1] == made[3] == made[5]


OWNERS = ["", "a.", "a.b.", "a.b.c.", "d."]
WEIGHTS = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.sampled_from(["weight", "in_proj"]), st.sampled_from(FORMS)),
    unique_by=lambda weight: weight[:2],
    min_size=1,
    max_size=5,
)
OTHERS = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.sampled_from(["bias", "running_mean", "emb_g", "sub.bias"])).map(
        "".join
    ),
    unique=True,
    max_size=6,
)


@st.composite
def any_places(draw: st.DrawFn) -> list[Any]:
    """The keys of layers of both forms, and others, in any order."""
    layers = [
        half
        for owner, param, form in draw(WEIGHTS)
        for half in (pair if form == "legacy" else new_pair)(owner + param)
    ]
    return draw(st.permutations([*layers, *draw(OTHERS)]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(any_places(), st.sampled_from([".pt", ".safetensors"]))
def test_keys_in_any_order_come_back_byte_for_byte(keys: list[Any], suffix: str) -> None:
    state = state_of(keys)
    forms = {form_of(g) for g, _ in halves(state).values()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(state, folder / "in.pt")
        for form in FORMS:
            source, made = migrated(folder / "in.pt", form, folder, f"0{suffix}"), []
            for at in range(4):
                made.append(source.read_bytes())
                ((_, found),) = state_dicts(source).items()
                expected = renamed(state, (form, OTHER[form])[at % 2])
                assert set(found) == set(expected)
                assert all(same(found[key], value) for key, value in expected.items())
                source = migrated(source, (OTHER[form], form)[at % 2], folder, f"{at + 1}{suffix}")
            assert (made[0], made[1]) == (made[2], made[3])
            if forms == {form}:
                assert list(state_dicts(folder / f"2{suffix}")[""]) == list(state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_what_torch_saves_in_any_way_comes_back_byte_for_byte(
    protocol: int, as_zip: bool, tmp_path: Path
) -> None:
    made = twins(holder(2, [1], [leaf("conv", True, 0), leaf("lstm", True, 0)], share=True))
    for form in FORMS:
        state = made[form].state_dict()
        tree = {"model": state, "ema": copy.copy(state), "average": dict(state), "epoch": 1}
        assert tree["ema"]._metadata is state._metadata  # type: ignore[attr-defined]
        save: dict[str, Any] = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": as_zip}
        torch.save(tree, tmp_path / "in.pt", **save)
        source = migrated(tmp_path / "in.pt", form, tmp_path, "0.pt")
        there = migrated(source, OTHER[form], tmp_path, "1.pt")
        assert migrated(there, form, tmp_path, "2.pt").read_bytes() == source.read_bytes()
        after = torch.load(there, weights_only=False)  # which knows every protocol
        for path in ("model", "ema"):
            is_torchs_own(after[path], made[OTHER[form]])
        assert list(after["average"]) == list(after["model"])
        assert after["average"]["c0.bias"].data_ptr() == after["model"]["c0.bias"].data_ptr()


def test_layers_by_layers_there_and_back(tmp_path: Path) -> None:
    keys = [*pair("a.weight"), "a.bias", "a.sub.bias", *pair("b.weight"), "b.bias"]
    torch.save(state_of(keys), tmp_path / "in.pt")
    first = migrated(tmp_path / "in.pt", "parametrize", tmp_path, "1.pt", layers="a.*")
    second = migrated(first, "parametrize", tmp_path, "2.pt", layers="b.*")
    third = migrated(second, "legacy", tmp_path, "3.pt", layers="b.*")
    fourth = migrated(third, "legacy", tmp_path, "4.pt", layers="a.*")
    assert third.read_bytes() == first.read_bytes()
    assert record_of(fourth) == []
    assert list(load(fourth)) == list(state_of(keys))


def test_a_record_of_other_layers_is_not_followed(tmp_path: Path) -> None:
    keys = [*pair("a.weight"), "a.bias", *pair("b.weight"), "b.bias"]
    torch.save(state_of(keys), tmp_path / "in.pt")
    both = migrated(tmp_path / "in.pt", "parametrize", tmp_path, "1.pt")
    one = migrated(both, "legacy", tmp_path, "2.pt", layers="b.*")
    at = "a.parametrizations.weight.original"
    assert list(load(one)) == ["a.bias", f"{at}0", f"{at}1", "b.bias", "b.weight_g", "b.weight_v"]


# -- torch itself


class Holder(nn.Module):
    """A module with parameters of its own, a buffer or not, and children."""

    def __init__(self, parameters: int, children: list[nn.Module]) -> None:
        super().__init__()
        for at in range(parameters):
            self.register_parameter(f"p{at}", nn.Parameter(torch.randn(4, 3)))
        for at, child in enumerate(children):
            self.add_module(f"c{at}", child)


Make = Callable[[Callable[..., nn.Module]], nn.Module]  # of a norm, a module


def lstm(norm: Callable[..., nn.Module], bias: bool, dim: int | None) -> nn.Module:
    module: nn.Module = nn.LSTM(2, 2, bias=bias)
    for name in ("weight_hh_l0", "weight_ih_l0")[: 1 + bias]:
        module = norm(module, name, dim=dim)
    return module


def attention(norm: Callable[..., nn.Module], bias: bool, dim: int | None) -> nn.Module:
    module = nn.MultiheadAttention(4, 2, bias=bias)
    if dim == 1:
        norm(module.out_proj, dim=dim)
    return norm(module, "in_proj_weight", dim=dim)


KINDS: dict[str, Callable[[Callable[..., nn.Module], bool, int | None], nn.Module]] = {
    "conv": lambda norm, bias, dim: norm(nn.Conv1d(2, 3, 2, bias=bias), dim=dim),
    "linear": lambda norm, bias, dim: norm(nn.Linear(2, 3, bias=bias), dim=dim),
    "transposed": lambda norm, bias, dim: norm(nn.ConvTranspose1d(2, 3, 2, bias=bias), dim=dim),
    "lstm": lstm,
    "attention": attention,
    "normed batch norm": lambda norm, bias, dim: norm(nn.BatchNorm1d(3)),
    "batch norm": lambda norm, bias, dim: nn.BatchNorm1d(3),
    "plain": lambda norm, bias, dim: nn.Conv1d(2, 3, 2, bias=bias),
}


def leaf(kind: str, bias: bool, dim: int | None) -> Make:
    return lambda norm: KINDS[kind](norm, bias, dim)


LEAVES = st.builds(leaf, st.sampled_from(list(KINDS)), st.booleans(), st.sampled_from([0, 1, None]))


def holder(parameters: int, normed: list[int], children: list[Make], share: bool) -> Make:
    def make(norm: Callable[..., nn.Module]) -> nn.Module:
        below = [child(norm) for child in children]
        module: nn.Module = Holder(parameters, [*below, *below[: int(share)]])
        for at in normed:
            if at < parameters:
                module = norm(module, f"p{at}")
        return module

    return make


MODULES: st.SearchStrategy[Make] = st.recursive(
    LEAVES,
    lambda below: st.builds(
        holder,
        st.integers(0, 3),
        st.lists(st.integers(0, 2), unique=True, max_size=2),
        st.lists(below, max_size=3),
        st.booleans(),
    ),
    max_leaves=6,
)


def twins(make: Make) -> dict[str, nn.Module]:
    """The same module, the same values, in torch's two forms."""
    made = {}
    for form, norm in NORMS.items():
        torch.manual_seed(5)
        made[form] = make(norm)
    return made


def metadata(state: Any) -> list[tuple[str, Any]]:
    found = list(state._metadata.items())
    assert found
    return found


def is_torchs_own(found: Any, module: nn.Module) -> None:
    """A migrated state dict is the one that torch's module of that form has, to the last thing."""
    own: Any = module.state_dict()
    assert list(found) == list(own)
    assert metadata(found) == metadata(own)
    assert all(same(found[name], own[name]) for name in own)
    assert str(module.load_state_dict(found, strict=True)) == "<All keys matched successfully>"


@settings(deadline=None, max_examples=150)
@given(MODULES)
def test_a_migrated_state_dict_is_torchs_own(make: Make) -> None:
    made = twins(make)
    for form in FORMS:
        source: Any = made[OTHER[form]].state_dict()
        before = metadata(source)
        is_torchs_own(migrate_state_dict(source, to=form), made[form])
        assert metadata(source) == before


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(MODULES)
def test_the_state_dict_in_a_migrated_file_is_torchs_own(make: Make) -> None:
    made = twins(make)
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            source = Path(folder, "in.pt")
            torch.save({"model": made[OTHER[form]].state_dict()}, source)
            out = migrated(source, form, Path(folder))
            if halves(load(source)["model"]):
                is_torchs_own(load(out)["model"], made[form])
            copied = migrated(source, OTHER[form], Path(folder), "as it is.pt").read_bytes()
            back = migrated(out, OTHER[form], Path(folder), "back.pt")
            assert record_of(out) == []
            assert back.read_bytes() == copied


def test_what_those_hold_has_layers_of_every_kind() -> None:
    every = [leaf(kind, bias, 0) for kind in KINDS for bias in (True, False)]
    make = holder(3, [2, 0], [holder(2, [1], every, share=True)], share=False)
    made = twins(make)
    state = made["legacy"].state_dict()
    assert len(halves(state)) == 3 + 2 * 6 + 1 + 1  # with bias an LSTM has two; the first child twice
    for form in FORMS:
        is_torchs_own(migrate_state_dict(made[OTHER[form]].state_dict(), to=form), made[form])


def test_a_module_alone_has_its_names_without_a_prefix() -> None:
    made = twins(leaf("conv", True, 0))
    assert list(migrate_state_dict(made["legacy"].state_dict())) == [
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ]
    for form in FORMS:
        is_torchs_own(migrate_state_dict(made[OTHER[form]].state_dict(), to=form), made[form])


class Stateful(nn.Conv1d):
    def get_extra_state(self) -> Tensor:
        return torch.ones(2)

    def set_extra_state(self, state: Tensor) -> None:
        assert same(state, torch.ones(2))


@BY_FORM
def test_the_extra_state_of_a_module_stays_behind_its_parameters(form: Form) -> None:
    made = twins(lambda norm: nn.Sequential(norm(Stateful(2, 3, 2)), nn.Linear(2, 2)))
    is_torchs_own(migrate_state_dict(made[OTHER[form]].state_dict(), to=form), made[form])


def test_an_entry_of_the_metadata_that_is_not_of_the_layer_stays() -> None:
    module = legacy(new(nn.LSTM(2, 2), "weight_ih_l0"), "weight_hh_l0")
    state: Any = module.state_dict()
    found: Any = migrate_state_dict(state, to="parametrize")
    at = "parametrizations.weight_"
    assert list(found._metadata) == [
        "", "parametrizations", f"{at}ih_l0", f"{at}ih_l0.0", f"{at}hh_l0", f"{at}hh_l0.0"
    ]  # fmt: skip
    back: Any = migrate_state_dict(found, to="legacy", layers="weight_hh_l0")
    assert list(back._metadata) == ["", "parametrizations", f"{at}ih_l0", f"{at}ih_l0.0"]
    assert list(back) == list(state)
    none: Any = migrate_state_dict(found, to="legacy")
    assert list(none._metadata) == [""]


# -- the optimizer


class Net(nn.Module):
    """A bit of everything that keeps its order: convolutions, a normalized batch norm, a tied layer."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.pre = norm(nn.Conv1d(2, 4, 3))
        self.scale = norm(nn.BatchNorm1d(4))
        self.up = norm(nn.ConvTranspose1d(4, 4, 4, 2), dim=1)
        self.again = self.pre
        self.plain = nn.Linear(4, 3)
        self.head = norm(nn.Linear(3, 1), dim=None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(self.scale(self.pre(x)).tanh()).mean(2)
        made: Tensor = self.head(self.plain(hidden).tanh())
        return made


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "AdamW in groups": lambda parameters: torch.optim.AdamW(
        [
            {"params": [one for one in parameters if one.dim() > 1], "lr": 0.05},
            {"params": [one for one in parameters if one.dim() <= 1], "lr": 0.01, "weight_decay": 0.0},
        ]
    ),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def train(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = 4) -> list[float]:
    losses = []
    values = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(5, 2, 9, generator=values)
        loss = (module(x) - x.mean((1, 2), keepdim=True)[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def loaded(
    form: Form, tree: Any, optimizer_of: Callable[[Any], torch.optim.Optimizer]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = Net(NORMS[form])
    module.load_state_dict(tree["model"], strict=True)
    optimizer = optimizer_of(list(module.parameters()))
    if "optimizer" in tree:
        optimizer.load_state_dict(tree["optimizer"])
    return module, optimizer


@BY_NEW_FORM
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_in_the_other_form_with_the_same_losses(
    form: Form, optimizer_of: Callable[[Any], torch.optim.Optimizer], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    module = Net(NORMS[OTHER[form]])
    optimizer = optimizer_of(list(module.parameters()))
    train(module, optimizer, 1)
    tree = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(tree, tmp_path / "in.pt")
    expected = train(module, optimizer, 2)

    result = migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", to=form)
    assert (len(result.plan.layers), result.plan.dropped) == (5, ())
    after = load(tmp_path / "out.pt")
    assert train(*loaded(form, after, optimizer_of), 2) == expected
    # The state matters: without it the losses are others.
    fresh = {"model": after["model"]}
    assert train(*loaded(form, fresh, optimizer_of), 2) != expected


def test_without_migration_the_same_file_does_not_load_into_the_other_form(tmp_path: Path) -> None:
    torch.save({"model": Net(new).state_dict()}, tmp_path / "in.pt")
    with pytest.raises(RuntimeError, match="Missing key"):  # torch itself reads the legacy names alone
        Net(legacy).load_state_dict(load(tmp_path / "in.pt")["model"], strict=True)


class Late(nn.Module):
    """A module that registers a parameter after its weight norm."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        norm(self)
        self.gain = nn.Parameter(torch.ones(3))


def passing(kind: str, norm: Callable[..., nn.Module]) -> nn.Module:
    if kind == "attention":
        return nn.Sequential(norm(nn.MultiheadAttention(4, 2), "in_proj_weight"), nn.Linear(4, 4))
    if kind == "late":
        return nn.Sequential(nn.Linear(4, 4), Late(norm))
    return holder(2, [1], [leaf("linear", True, 0)], share=False)(norm)


def with_optimizer(module: nn.Module, folder: Path) -> Path:
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(
        {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, folder / "in.pt"
    )
    return folder / "in.pt"


PASSING = [("attention", "parametrize"), ("attention", "legacy"), ("late", "parametrize")]
PASSING += [("children", "parametrize"), ("children", "legacy")]


@pytest.mark.parametrize(("kind", "form"), PASSING)
def test_where_parameters_would_change_their_order_beside_an_optimizer_it_is_refused(
    kind: str, form: Form, tmp_path: Path
) -> None:
    module, other = passing(kind, NORMS[OTHER[form]]), passing(kind, NORMS[form])
    shapes = [[tuple(one.shape) for one in each.parameters()] for each in (module, other)]
    assert shapes[0] != shapes[1], "torch's own order changes"
    source = with_optimizer(module, tmp_path)
    before = listing(tmp_path)
    for dry_run in (False, True):
        with pytest.raises(LayerError, match="change their order") as caught:
            migrate_file(source, tmp_path / "out.pt", to=form, dry_run=dry_run)
        assert "--drop-optimizer" in caught.value.fix
        assert "optimizer" in str(caught.value)
    assert listing(tmp_path) == before

    result = migrate_file(source, tmp_path / "out.pt", to=form, drop_optimizer=True)
    ((path, why),) = ((item.path, item.why) for item in result.plan.dropped)
    assert (path, "--drop-optimizer" in why) == ("optimizer", True)
    after = load(tmp_path / "out.pt")
    assert list(after) == ["model", "epoch"]
    other.load_state_dict(after["model"], strict=True)

    tree = load(source)
    torch.save({"model": tree["model"]}, tmp_path / "alone.pt")
    migrate_file(tmp_path / "alone.pt", to=form)
    other.load_state_dict(load(tmp_path / f"alone.{form}.pt")["model"], strict=True)


@pytest.mark.parametrize(("kind", "form"), PASSING)
def test_a_part_without_the_optimizer_migrates_whatever_order_it_has(
    kind: str, form: Form, tmp_path: Path
) -> None:
    source = with_optimizer(passing(kind, NORMS[OTHER[form]]), tmp_path)
    for name in ("out.pt", "out.safetensors"):
        result = migrate_file(source, tmp_path / name, to=form, only="model")
        assert [item.path for item in result.plan.dropped] == ["optimizer", "epoch"]


def test_a_layer_that_is_left_out_passes_nothing(tmp_path: Path) -> None:
    source = with_optimizer(passing("attention", legacy), tmp_path)
    result = migrate_file(source, tmp_path / "out.pt", exclude="*in_proj_weight", copy=True)
    assert (result.plan.layers, result.plan.dropped) == ([], ())
    assert list(load(tmp_path / "out.pt")) == ["model", "optimizer", "epoch"]


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked", "_extra_state"])
def test_buffers_that_are_known_may_be_passed(name: str) -> None:
    state = state_at("model", *pair("a.weight"), (f"a.{name}", (8,)))
    plan = plan_migrate(Tree((state,), optimizers=("optim",)), Container.TORCH_ZIP)
    assert plan.state_dicts[0].steps[0].name == f"a.{name}"
    assert is_buffer(name)


def test_a_key_that_may_be_a_parameter_may_not_be_passed() -> None:
    state = state_at("model", *pair("a.weight"), ("a.window", (8,)))
    with pytest.raises(LayerError, match=r"^model: a\..* and a\..* would change their order") as caught:
        plan_migrate(Tree((state,), optimizers=("optim_g", "optim_d")), Container.TORCH_ZIP)
    assert "optim_g, optim_d" in str(caught.value)
    assert plan_migrate(Tree((state,)), Container.TORCH_ZIP).layers


def test_g_stands_before_v_as_torch_has_them_and_that_too_is_an_order_of_parameters(tmp_path: Path) -> None:
    g, v = pair("a.weight")
    tree: dict[str, Any] = {"model": state_of([v, g, "b"])}
    torch.save(tree, tmp_path / "in.pt")
    after = load(migrated(tmp_path / "in.pt", "parametrize", tmp_path))["model"]
    assert list(after) == [*(name for name, *_ in new_pair("a.weight")), "b"]
    torch.save({**tree, "optim": {"state": {}, "param_groups": []}}, tmp_path / "in.pt")
    with pytest.raises(LayerError, match="change their order"):
        migrate_file(tmp_path / "in.pt")


def test_the_order_of_what_is_no_tensor_does_not_matter(tmp_path: Path) -> None:
    tree = {"model": {**state_of(pair("a.weight")), "a.steps": 7}, "optim": {"state": {}, "param_groups": []}}
    torch.save(tree, tmp_path / "in.pt")
    after = load(migrated(tmp_path / "in.pt", "parametrize", tmp_path))
    assert list(after["model"]) == ["a.steps", *(name for name, *_ in new_pair("a.weight"))]
    assert "optim" in after


def test_an_optimizer_stays_where_nothing_changes_though_it_was_to_be_dropped(tmp_path: Path) -> None:
    source = with_optimizer(passing("attention", new), tmp_path)
    result = migrate_file(source, tmp_path / "out.pt", drop_optimizer=True, copy=True)
    assert (result.plan.layers, result.plan.dropped, result.plan.already) == ([], (), 1)
    assert "optimizer" in load(tmp_path / "out.pt")


def test_a_dropped_optimizer_is_named_by_its_path(tmp_path: Path) -> None:
    result = migrate_file(FIXTURES / "do_02500000", tmp_path / "out.pt", drop_optimizer=True)
    assert [item.path for item in result.plan.dropped] == ["optim_g", "optim_d"]
    assert list(load(tmp_path / "out.pt")) == ["mpd", "msd", "steps", "epoch"]
    plan = migrate_file(FIXTURES / "lightning.ckpt", to="legacy", drop_optimizer=True, dry_run=True)
    assert [item.path for item in plan.dropped] == ["optimizer_states.0"]
    kept = migrate_file(FIXTURES / "do_02500000", tmp_path / "kept.pt")
    assert kept.plan.dropped == ()
    before, after = load(FIXTURES / "do_02500000"), load(tmp_path / "kept.pt")
    for name in ("optim_g", "optim_d"):
        assert before[name]["param_groups"] == after[name]["param_groups"]
        for at, state in before[name]["state"].items():
            assert all(same(after[name]["state"][at][key], value) for key, value in state.items())


# -- refusals


def refused(run: Runner, source: Path, *options: str | Path, says: str, fix: str) -> Ended:
    """The command ends with exit code 2 and these words, and nothing in the folder is other than before."""
    before = listing(source.parent)
    ended = run("migrate", source, *options)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert re.search(says, ended.stderr), ended.stderr
    assert fix in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert listing(source.parent) == before
    return ended


def copied(name: str, folder: Path) -> Path:
    (folder / name).write_bytes((FIXTURES / name).read_bytes())
    return folder / name


@BY_FORM
def test_one_layer_that_is_refused_keeps_all_as_they_are(run: Runner, form: Form, tmp_path: Path) -> None:
    source = copied("misfit.safetensors", tmp_path)
    says = r"layer dec\.0\.weight: g \(12,\) does not fit v \(16, 8, 3\)"
    refused(run, source, "--to", form, says=says, fix="")
    ended = run("migrate", source, "--exclude", "dec.0.weight", "--to", form)
    assert ended.returncode == 0


@BY_FORM
def test_a_stack_is_refused_by_name(run: Runner, form: Form, tmp_path: Path) -> None:
    source = copied("stack.safetensors", tmp_path)
    says = r"both\.weight: both\.parametrizations\.weight\.1\._u beside it .* stacked"
    refused(run, source, "--to", form, says=says, fix="--exclude 'both.weight'")
    assert run("migrate", source, "--to", form, "--exclude", "both.weight").returncode == 0


TAKEN: dict[str, tuple[list[Any], str, str]] = {
    "a key": (
        [*pair("a.weight"), "a.parametrizations.weight.original1"],
        "parametrize",
        "original1 is taken",
    ),
    "a key of the old form": ([*new_pair("a.weight"), "a.weight_g"], "legacy", "a.weight_g is taken"),
    "both forms": ([*pair("a.weight"), *new_pair("a.weight")], "legacy", "twice"),
    "the plain weight": ([*pair("a.weight"), "a.weight"], "parametrize", "the plain weight"),
}


@pytest.mark.parametrize(("keys", "form", "says"), TAKEN.values(), ids=TAKEN)
def test_a_name_that_is_taken_is_refused(
    run: Runner, keys: list[Any], form: Form, says: str, tmp_path: Path
) -> None:
    state = state_of([*keys, *pair("good.weight")])
    torch.save({"net": state}, tmp_path / "in.pt")
    refused(
        run,
        tmp_path / "in.pt",
        "--to",
        form,
        says=f"net: layer a.weight: .*{says}",
        fix="--exclude 'a.weight'",
    )
    with pytest.raises(LayerError, match=says):
        migrate_state_dict(state, to=form)
    found = migrate_state_dict(state, to=form, exclude="a.weight")
    assert all(name in found for name in state if name.startswith("a."))


def test_a_name_that_something_else_than_a_tensor_has_is_taken_too(tmp_path: Path) -> None:
    state = {**state_of(pair("a.weight")), "a.parametrizations.weight.original0": "mine"}
    with pytest.raises(LayerError, match="original0 is taken"):
        migrate_state_dict(state)
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(LayerError, match="original0 is taken"):
        migrate_file(tmp_path / "in.pt")


@BY_FORM
def test_a_form_that_is_not_known_is_refused(run: Runner, form: Form, tmp_path: Path) -> None:
    source = copied("tied.pt", tmp_path)
    refused(run, source, "--to", f"{form}s", says=f"'{form}s' is not one of 'parametrize', 'legacy'", fix="")
    wrong: Any
    for wrong in (f"{form}s", "", "folded", "plain"):
        with pytest.raises(ArgumentError, match=f"no form '{wrong}'") as caught:
            migrate_file(source, to=wrong)
        assert caught.value.fix == "one of legacy, parametrize, physicsnemo, paddle, equinox"
        with pytest.raises(ArgumentError, match=f"no form '{wrong}'"):
            migrate_state_dict(load(source), to=wrong)
    assert list(listing(tmp_path)) == ["tied.pt"]


def test_a_glob_that_matches_nothing_is_refused(run: Runner, tmp_path: Path) -> None:
    source = copied("tied.pt", tmp_path)
    refused(run, source, "--layers", "hae*", says="--layers 'hae.' matches no layer", fix="head.weight")
    with pytest.raises(ArgumentError, match="matches no layer"):
        migrate_state_dict(load(source), layers=["head*", "hae*"])
    result = migrate_file(source, tmp_path / "out.pt", exclude="hae*")
    assert result.notes == ("--exclude 'hae*' matches no layer",)


def test_a_state_dict_that_is_not_there_is_refused(run: Runner, tmp_path: Path) -> None:
    source = copied("gan.pt", tmp_path)
    refused(run, source, "--only", "gen", says="no state dict at 'gen'", fix="generator, discriminator")
    out = tmp_path / "out.safetensors"
    refused(run, source, "-o", out, says="holds one state dict, and there are 3", fix="--only generator")


def test_a_pickled_module_is_refused_but_for_its_tensors(run: Runner, tmp_path: Path) -> None:
    source = copied("waveglow_module.pt", tmp_path)
    ended = refused(run, source, says="model: a whole pickled module", fix="wnconvert fold")
    assert "migrate_module" in ended.stderr.splitlines()[-1]
    with pytest.raises(LayerError):
        migrate_file(source, tmp_path / "out.pt", only="model")
    out = migrated(source, "parametrize", tmp_path, "out.safetensors")
    (before,), (after,) = state_dicts(source).values(), state_dicts(out).values()
    assert hold(before, after, "parametrize") == 4
    # In the form that it has there is nothing to change in it.
    assert migrate_file(source, tmp_path / "same.pt", to="legacy").plan.already == 4


def test_an_output_that_is_there_is_kept_unless_it_is_forced(run: Runner, tmp_path: Path) -> None:
    source, out = copied("tied.pt", tmp_path), tmp_path / "tied.parametrize.pt"
    out.write_bytes(b"what was here before")
    refused(run, source, says="exists", fix="--force")
    assert run("migrate", source, "--force").returncode == 0
    assert list(load(out)) != list(load(source))


# -- what is chosen, and what is said


def test_layers_and_exclude_choose() -> None:
    state = state_of([*pair("dec.a.weight"), *pair("dec.b.weight"), *pair("enc.weight")])
    found = migrate_state_dict(state, layers=["dec.*"], exclude="*.b.weight")
    assert {name.split(".parametrizations")[0] for name in found if name not in state} == {"dec.a"}
    assert list(migrate_state_dict(state, exclude="*")) == list(state)
    at = "dec.a.parametrizations.weight.original"
    assert list(found) == [f"{at}0", f"{at}1", *list(state)[2:]]


def test_only_keeps_one_state_dict(tmp_path: Path) -> None:
    result = migrate_file(FIXTURES / "gan.pt", tmp_path / "out.pt", only="discriminator")
    after = load(tmp_path / "out.pt")
    assert list(after) == ["discriminator"]
    assert len(result.plan.layers) == 2
    assert {item.path for item in result.plan.dropped} >= {"generator", "ema.model", "epoch"}


def test_nothing_to_do_is_done_too(run: Runner, tmp_path: Path) -> None:
    source = copied("plain.pt", tmp_path)
    ended = run("migrate", source, "--json")
    assert ended.returncode == 0
    assert (json.loads(ended.stdout)["layers"], json.loads(ended.stdout)["already"]) == ([], 0)
    assert not (tmp_path / "plain.parametrize.pt").exists()
    assert run("migrate", source, "--copy").returncode == 0
    assert list(load(tmp_path / "plain.parametrize.pt")["state_dict"]) == list(load(source)["state_dict"])


@BY_FORM
def test_layers_that_are_so_already_are_counted(form: Form, tmp_path: Path) -> None:
    result = migrate_file(FIXTURES / "g_02500000", tmp_path / "out.pt", to=form)
    assert (len(result.plan.layers), result.plan.already) == ((78, 0) if form == "parametrize" else (0, 78))
    some = plan_migrate(
        Tree((state_at("", *pair("a.weight"), *pair("b.weight")),)),
        Container.TORCH_ZIP,
        to="legacy",
        selection=Selection(exclude=("b.*",)),
    )
    assert (some.layers, some.already) == ([], 1)


@BY_FORM
def test_a_dry_run_returns_the_very_plan_and_writes_nothing(form: Form, run: Runner, tmp_path: Path) -> None:
    source = copied("gan.pt", tmp_path)
    before = listing(tmp_path)
    plan = migrate_file(source, to=form, dry_run=True)
    ended = run("migrate", source, "--to", form, "--dry-run", "--json")
    assert listing(tmp_path) == before
    assert isinstance(plan, Plan)
    assert json.loads(ended.stdout) == json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    assert plan == migrate_file(source, to=form).plan
    data = plan.to_dict()
    assert (data["verb"], data["container"]) == ("migrate", "torch")
    assert data["layers"]
    for layer, (path, change) in zip(data["layers"], plan.changes, strict=True):
        assert (layer["form"], layer["to"]) == (OTHER[form], form)
        assert (layer["state_dict"], layer["name"]) == (path, change.name)


def test_the_command_line_migrates_to_parametrize_unless_it_is_told(run: Runner, tmp_path: Path) -> None:
    source = copied("sovits.pth", tmp_path)
    ended = run("migrate", source, "--json", "--verify")
    assert ended.returncode == 0
    data = json.loads(ended.stdout)
    assert (data["verb"], len(data["layers"]), data["already"]) == ("migrate", 1, 0)
    assert data["output"] == str(tmp_path / "sovits.parametrize.pth")
    assert data["verified"]
    assert (tmp_path / "sovits.parametrize.pth").read_bytes()[:2] == b"03"
    ended = run("migrate", tmp_path / "sovits.parametrize.pth", "--to", "legacy", "--quiet")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"{tmp_path / 'sovits.parametrize.legacy.pth'}: 1 layer migrated, ")
    assert (tmp_path / "sovits.parametrize.legacy.pth").exists()


@BY_FORM
@pytest.mark.parametrize(("name", "suffix"), OUTPUTS)
def test_what_is_verified_is_whole(name: str, suffix: str, form: Form, tmp_path: Path) -> None:
    result = migrate_file(FIXTURES / name, tmp_path / f"out{suffix}", to=form, verify=True, copy=True)
    assert result.verified


# -- state dicts in memory


def test_values_are_the_very_same_objects() -> None:
    marker = object()
    module = legacy(nn.Conv1d(2, 3, 3))
    state: Any = OrderedDict(module.state_dict(keep_vars=True))
    state |= {"x": marker, "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, device="meta")}
    for form in FORMS:
        found = migrate_state_dict(state, to=form)
        assert type(found) is OrderedDict
        assert [id(found[name]) for name in renamed(state, form)] == [
            id(value) for value in renamed(state, form).values()
        ]
    assert list(state) == ["bias", "weight_g", "weight_v", "x", "sparse", "meta"]
    assert type(migrate_state_dict(dict(state))) is dict
    assert isinstance(migrate_state_dict(state)["parametrizations.weight.original1"], nn.Parameter)


def test_layers_on_the_meta_device_migrate() -> None:
    with torch.device("meta"):
        made = {form: norm(nn.Linear(3, 2)) for form, norm in NORMS.items()}
    for form in FORMS:
        state = made[OTHER[form]].state_dict()
        found = migrate_state_dict(state, to=form)
        assert list(found) == list(made[form].state_dict())
        assert [id(value) for value in found.values()] == [id(value) for value in state.values()]


def test_keys_that_are_no_text_are_kept(tmp_path: Path) -> None:
    state: Any = {7: "seven", **state_of(pair("a.weight")), None: 1}
    found: Any = migrate_state_dict(state)
    assert (found[7], found[None], len(found)) == ("seven", 1, 4)
    torch.save(state, tmp_path / "in.pt")
    back = load(migrated(migrated(tmp_path / "in.pt", "parametrize", tmp_path), "legacy", tmp_path, "b.pt"))
    assert set(back) == set(state)
    assert (back[7], back[None]) == ("seven", 1)


@pytest.mark.parametrize("wrong", [5, None, [1]])
def test_what_is_no_mapping_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="is not a state dict"):
        migrate_state_dict(wrong)


def test_a_whole_checkpoint_is_refused_with_the_key_to_pass() -> None:
    with pytest.raises(ArgumentError, match="a state dict at 'generator'") as caught:
        migrate_state_dict({"generator": state_of(pair("a.weight")), "epoch": 1})
    assert caught.value.fix == "pass checkpoint['generator']"


@BY_FORM
@pytest.mark.parametrize("name", ["g_02500000", "vits.pth", "tied.pt", "codec_bf16.safetensors"])
def test_memory_and_files_have_the_same_names_in_the_same_order(
    name: str, form: Form, tmp_path: Path
) -> None:
    before = state_dicts(FIXTURES / name)
    after = state_dicts(migrated(FIXTURES / name, form, tmp_path))
    for path, state in before.items():
        found = migrate_state_dict(state, to=form)
        assert list(found) == list(after[path])
        assert all(equal(found[key], after[path][key]) for key in found)


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocked())
import numpy as np
from wnconvert import migrate_file, migrate_state_dict

state = {"w_g": np.float32([[10]]), "w_v": np.float32([[3, 4]]), "n": 3}
found = migrate_state_dict(state)
print(list(found), found["parametrizations.w.original1"] is state["w_v"], "torch" in sys.modules)
migrate_file(sys.argv[1], sys.argv[2])
print("torch" in sys.modules)
"""


def test_arrays_and_files_need_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, FIXTURES / "g_02500000", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "['n', 'parametrizations.w.original0', 'parametrizations.w.original1'] True False",
        "False",
    ], done.stderr
    assert len(halves(load(tmp_path / "out")["generator"])) == 78


def test_numpy_arrays_keep_what_they_are() -> None:
    state: State = {"a.w_g": np.ones((2, 1), ">f4"), "a.w_v": np.asfortranarray(np.ones((2, 3), np.float32))}
    found = migrate_state_dict(state)
    assert [id(value) for value in found.values()] == [id(value) for value in state.values()]


# -- records that lie


KEYS = [*pair("a.weight"), "a.bias", "a.sub.bias", *pair("b.weight"), "b.bias", "c.weight_u"]


def told(record: object, folder: Path, suffix: str = ".safetensors") -> Path:
    """A parametrized file with a record of this history."""
    state = migrate_state_dict(state_of(KEYS))
    text = json.dumps({"schema": 1, "version": "1", "history": record})
    if suffix == ".safetensors":
        path = folder / "in.safetensors"
        safetensors.torch.save_file(state, path, {"format": "pt", METADATA_KEY: text})
        return path
    torch.save(state, folder / "in.pt")
    with zipfile.ZipFile(folder / "in.pt", "a") as archive:
        archive.writestr(f"in/{RECORD_NAME}", text)
    return folder / "in.pt"


def truth(*weights: str) -> list[dict[str, Any]]:
    """What a migration to parametrize records of these layers."""
    names = [key if isinstance(key, str) else key[0] for key in KEYS]
    layers = []
    for weight in weights:
        half = {
            part: {"name": key, "shape": list(shape), "dtype": dtype, "place": names.index(key)}
            for part, (key, shape, dtype) in zip("gv", pair(weight), strict=True)
        }
        layers.append({"name": weight, "form": "legacy", "dim": 0, **half})
    return layers


def step(layers: object, path: str = "") -> list[dict[str, object]]:
    return [{"verb": "migrate", "state_dicts": {path: layers}}]


def follows(record: object, folder: Path, suffix: str = ".safetensors") -> list[str]:
    """Migrate a file with such a record to legacy: only names and order may change; the order."""
    source = told(record, folder, suffix)
    out = migrated(source, "legacy", folder, f"out{suffix}")
    (before,), (after,) = state_dicts(source).values(), state_dicts(out).values()
    assert set(after) == set(state_of(KEYS))
    assert all(same(after[name], value) for name, value in renamed(before, "legacy").items())
    return list(after)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_true_record_is_followed_and_consumed(suffix: str, tmp_path: Path) -> None:
    assert follows(step(truth("a.weight", "b.weight")), tmp_path, suffix) == list(state_of(KEYS))
    assert record_of(tmp_path / f"out{suffix}") == []


def by_rule(folder: Path) -> list[str]:
    found = follows([], folder)
    assert found != list(state_of(KEYS))
    return found


def changed(*keys: str, to: object) -> list[dict[str, Any]]:
    """The truth, but for one thing."""
    layers = truth("a.weight", "b.weight")
    at: Any = layers[0]
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = to
    return layers


LIES: dict[str, object] = {
    "a layer less": truth("a.weight"),
    "another layer": [*truth("a.weight"), {**truth("b.weight")[0], "name": "z.weight"}],
    "another form": changed("form", to="parametrize"),
    "no form": changed("form", to="folded"),
    "a form of a wrong type": changed("form", to=["legacy"]),
    "a name of a wrong type": changed("name", to=7),
    "the name of another key": changed("g", "name", to="a.bias"),
    "a dim of a wrong type": changed("dim", to="0"),
    "a dim that is not there": changed("dim", to=9),
    "a half of a wrong type": changed("g", to=[1]),
    "no half": changed("v", to=None),
    "a shape of a wrong type": changed("v", "shape", to="8"),
    "a negative shape": changed("v", "shape", to=[-1]),
    "an unknown dtype": changed("v", "dtype", to="float31"),
    "a dtype of a wrong type": changed("v", "dtype", to={}),
    "a negative place": changed("g", "place", to=-1),
    "a place that is true": changed("g", "place", to=True),
    "a place of a wrong type": changed("g", "place", to=1.5),
    "a place past all numbers": changed("g", "place", to=1 << 63),
    "no layers": [],
    "layers of a wrong type": [1, None, "x", [], {}],
}  # fmt: skip


@pytest.mark.parametrize("layers", LIES.values(), ids=LIES)
def test_a_record_that_does_not_fit_is_not_followed(layers: list[Any], tmp_path: Path) -> None:
    expected = by_rule(tmp_path)
    assert follows(step(layers), tmp_path) == expected


def test_what_makes_no_sense_in_a_record_hides_nothing_that_does(tmp_path: Path) -> None:
    layers = [*truth("a.weight", "b.weight"), {**truth("a.weight")[0], "name": "c"}, None]
    assert follows(step(layers), tmp_path) == list(state_of(KEYS))


@pytest.mark.parametrize("path", ["model", "x", "."])
def test_a_record_of_another_state_dict_is_not_followed(path: str, tmp_path: Path) -> None:
    assert follows(step(truth("a.weight", "b.weight"), path), tmp_path) == by_rule(tmp_path)


def test_a_record_of_another_verb_is_not_followed(tmp_path: Path) -> None:
    record = [{**step(truth("a.weight", "b.weight"))[0], "verb": "fold"}]
    assert follows(record, tmp_path) == by_rule(tmp_path)


@pytest.mark.parametrize("place", [0, 3, 10_000, (1 << 63) - 1])
def test_places_are_only_places(place: int, tmp_path: Path) -> None:
    layers = truth("a.weight", "b.weight")
    for layer in layers:
        layer["g"]["place"] = layer["v"]["place"] = place
    found = follows(step(layers), tmp_path)
    assert sorted(found) == sorted(state_of(KEYS))


def test_a_layer_told_of_twice_in_two_forms_is_there_once(tmp_path: Path) -> None:
    true = truth("a.weight", "b.weight")
    other = [
        {
            **layer,
            **{part: {**layer[part], "name": name} for part, (name, *_) in zip("gv", names, strict=True)},
        }
        | {"form": "parametrize"}
        for layer, names in ((layer, new_pair(layer["name"])) for layer in true)
    ]
    for layers in ([*other, *true], [*true, *other], [*true, *true]):
        for suffix in (".pt", ".safetensors"):
            follows(step(layers), tmp_path, suffix)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 1 << 64),
        st.floats(allow_nan=False),
        st.sampled_from(
            ["a.weight", "b.weight", "legacy", "parametrize", "a.weight_g", "a.bias", "float32", ""]
        ),
    ),
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.sampled_from("name form dim g v shape dtype place".split()), below, max_size=5),
    ),
    max_leaves=8,
)


@st.composite
def lies(draw: st.DrawFn) -> object:
    """The true record, with anything at all in some places."""
    layers: list[Any] = draw(st.permutations(truth("a.weight", "b.weight")))
    for _ in range(draw(st.integers(0, 3))):
        at: Any = layers
        while True:
            key = (
                draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
                if at
                else None
            )
            below = at[key] if key is not None else None
            if key is None or not isinstance(below, (dict, list)) or draw(st.booleans()):
                break
            at = below
        if key is not None:
            at[key] = draw(JSON)
    return step([*layers, *draw(st.lists(JSON, max_size=2))])


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(lies())
def test_no_record_makes_migrate_fail_or_rename_anything_else(record: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        follows(record, Path(folder))


def test_a_key_of_very_many_dots_beside_a_layer_takes_no_memory() -> None:
    long = "a." * 200_000 + "bias"
    state: State = {long: torch.ones(1), **state_of(pair("b.weight"))}
    assert long in migrate_state_dict(state)
    assert len(migrate_state_dict({f"{long}_g": torch.ones(2, 1), f"{long}_v": torch.ones(2, 3)})) == 2
