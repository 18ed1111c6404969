"""Modules that run for a while and are then as they were: numbers, attributes, modes, random states."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer
from torch.nn.utils import spectral_norm
from torch.nn.utils.prune import random_unstructured

from tests.helpers.export_models import scripted
from tests.helpers.live_models import norm, portrait
from wnconvert.errors import ArgumentError
from wnconvert.verbs.models.proof.running import check_shaped, evaluating


class Remembers(nn.Module):
    """Leaves behind all that a forward can."""

    count: Tensor
    nan: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(3, 3), "legacy")
        self.bn = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("nan", torch.full((2,), torch.nan))
        self.seen: dict[int, Tensor] = {}
        self.every: list[int] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        self.seen[len(x)] = self.last = x
        self.every.append(len(x))
        self.extra = torch.rand(1) + random.random() + np.random.rand()
        self.count += 1
        self.nan = self.nan[:1] * 2
        y: Tensor = self.bn(self.lin(x))
        return y


def test_all_that_a_forward_leaves_behind_is_gone() -> None:
    model = Remembers()
    model.bn.eval()
    before = portrait(model)
    drawn = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with evaluating(model):
        model(torch.randn(4, 3))
        assert portrait(model) != before
    assert portrait(model) == before
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), str(np.random.get_state())) == drawn[1:]


def test_it_is_gone_after_an_error_too() -> None:
    model = Remembers()
    before = portrait(model)
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.randn(4, 2))
    assert portrait(model) == before


def test_what_a_forward_leaves_behind_can_be_forgotten_before() -> None:
    model = Remembers()
    with evaluating(model) as forget:
        once = portrait(model)
        model(torch.randn(4, 3))
        forget()
        assert portrait(model) == once
        assert not any(module.training for module in model.modules())


def pruned(kind: str) -> nn.Module:
    """A layer of which the stored half is masked, as loading weights leaves it."""
    layer = norm(nn.Linear(6, 5), "legacy") if kind == "weight" else spectral_norm(nn.Linear(6, 5))
    prune: Any = random_unstructured
    prune(layer, "weight_v" if kind == "weight" else "weight_orig", 0.5)
    return layer.eval()


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_a_mask_on_a_normed_weight_is_in_force_from_the_first_forward_on(kind: str) -> None:
    saved, loaded, x = pruned(kind), pruned(kind), torch.randn(3, 6)
    expected = [saved(x) for _ in range(3)][-1]
    loaded.load_state_dict(saved.state_dict())
    before = portrait(loaded)
    with evaluating(loaded) as forget:
        for _ in range(3):
            assert torch.equal(loaded(x), expected)
            forget()
    assert portrait(loaded) == before
    assert not torch.equal(loaded(x), expected), "torch's hooks are a forward behind"


def test_buffers_that_stay_the_same_are_not_written_to() -> None:
    model = nn.BatchNorm1d(3)
    before = [buffer._version for buffer in model.buffers()]
    with evaluating(model):
        model(torch.randn(4, 3))
    assert [buffer._version for buffer in model.buffers()] == before


def test_modes_of_torchscript_come_back() -> None:
    model = scripted(nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    with evaluating(model):
        assert not model.training
    assert model.training


# -- what stands in attributes


class Holds(nn.Module):
    """A module with one attribute, and with a parameter."""

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.held = held
        self.p = nn.Parameter(torch.arange(3.0))


class Own(list[int]):
    """A container of one's own."""


def change(value: Any) -> None:
    """Something else in a container or tensor, at every depth."""
    if isinstance(value, Tensor):
        value.add_(1)
        return
    if not isinstance(value, bytearray):
        for each in list(value.values() if isinstance(value, dict) else value):
            if isinstance(each, (Tensor, dict, list, set, deque, bytearray, tuple)):
                change(each)
    if isinstance(value, dict):
        value["new"] = 1
        value.pop("a", None)
    elif isinstance(value, set):
        value.add("new")
    elif not isinstance(value, tuple):
        value.append(1)


def every_id(value: Any) -> list[int]:
    """A container and what is in it, at every depth, by identity."""
    if isinstance(value, (Tensor, int, str, bytearray)):
        return [id(value)]
    inside = value.values() if isinstance(value, dict) else value
    return [id(value), *(each for item in inside for each in every_id(item))]


@pytest.mark.parametrize(
    "held",
    [
        torch.zeros(3),
        {"a": [1, 2], "b": {"c": [torch.zeros(2)]}},
        OrderedDict(a=[1], b=2),
        defaultdict(list, a=[1]),
        Counter("aab"),
        [[[1]], {1, 2}, "x"],
        deque([[1], torch.zeros(2)], maxlen=2),
        bytearray(b"abc"),
        ([1], (torch.zeros(2), {"a": 1})),
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_is_in_an_attribute_comes_back_in_the_same_objects(held: Any) -> None:
    model = Holds(held)
    before, ids = repr(held), every_id(held)
    with evaluating(model) as forget:
        for _ in range(2):
            change(held)
            assert repr(held) != before
            forget()
            assert (repr(held), every_id(held)) == (before, ids)
        change(held)
        model.held = None
    assert model.held is held
    assert (repr(held), every_id(held)) == (before, ids)
    assert getattr(held, "maxlen", 2) == 2


def test_containers_that_hold_themselves_come_back() -> None:
    held: list[Any] = [1]
    held.append({"again": held})
    with evaluating(Holds(held)):
        held[1]["again"].append(2)
        held[1]["more"] = 3
    assert len(held) == 2
    assert held[1] == {"again": held}


def test_deep_containers_come_back() -> None:
    innermost: list[Any] = []
    held = innermost
    for _ in range(5000):
        held = [held]
    with evaluating(Holds(held)):
        innermost.append(1)
    assert not innermost


def test_objects_of_other_classes_are_left_alone() -> None:
    held = Own([1])
    with evaluating(Holds([held])):
        held.append(2)
    assert held == [1, 2]


# -- numbers


def test_parameters_come_back_however_they_were_written() -> None:
    model = Holds()
    p, place = model.p, model.p.data_ptr()
    with evaluating(model) as forget:
        model.p.data += 1
        forget()
        assert torch.equal(p, torch.arange(3.0))
        p.data = torch.ones(2, 2, dtype=torch.float64)
        forget()
        assert torch.equal(p, torch.arange(3.0))
        with torch.no_grad():
            p.mul_(torch.nan)
        model.p = nn.Parameter(torch.ones(1))
    assert model.p is p
    assert (p.data_ptr(), p.dtype, p.requires_grad) == (place, torch.float32, True)
    assert torch.equal(p, torch.arange(3.0))


def test_tensors_of_one_memory_stay_so() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    model = Holds([whole[1:, ::2], whole.t(), whole[0, :0]])
    with evaluating(model):
        model.held[0].zero_()
        model.held[1].add_(1)
        model.held[0].data = torch.ones(2, 2)
    assert torch.equal(whole, torch.arange(12.0).reshape(3, 4))
    assert torch.equal(model.held[0], whole[1:, ::2])
    assert model.held[0].data_ptr() == whole[1:].data_ptr()


def test_a_tensor_that_repeats_little_memory_is_kept_as_little() -> None:
    held = torch.zeros(1).expand(1 << 45)
    with evaluating(Holds(held)):
        held[:1].add_(1)
    assert held[7] == 0


def test_memory_that_was_given_up_is_taken_again() -> None:
    held = torch.arange(4.0)
    with evaluating(Holds(held)):
        held.resize_(0)
        held.untyped_storage().resize_(0)
    assert held.tolist() == [0, 1, 2, 3]


def test_tensors_made_in_inference_mode_come_back() -> None:
    with torch.inference_mode():
        held = torch.zeros(2)
    with evaluating(Holds(held)), torch.inference_mode():
        held.add_(1)
    assert held.tolist() == [0, 0]


@pytest.mark.parametrize(
    "held", [torch.ones(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_plain_memory_are_no_obstacle(held: Tensor) -> None:
    model = Holds([held])
    model.register_buffer("same", held)
    with evaluating(model):
        model.held.clear()
    assert model.held[0] is held


# -- modules that are not there yet


@pytest.mark.parametrize("before", [nn.LazyLinear(2), nn.LazyBatchNorm1d()], ids=["parameters", "buffers"])
def test_a_lazy_module_is_refused_before_it_runs(before: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3), before)
    with (
        pytest.raises(ArgumentError, match=r"without a shape yet: 1\.weight, 1\.bias") as caught,
        evaluating(model),
    ):
        raise AssertionError
    assert "run it once" in caught.value.fix
    assert type(before) is model[1].__class__
    model(torch.randn(4, 3))
    check_shaped(model)


def test_a_buffer_without_a_shape_is_named_too() -> None:
    model = nn.Module()
    model.register_buffer("late", UninitializedBuffer())
    with pytest.raises(ArgumentError, match="late"):
        check_shaped(model)
