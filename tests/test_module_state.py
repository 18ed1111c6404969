"""Modules that run for a while and are then as they were: buffers, attributes, modes, random states."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.export_models import scripted
from tests.live_models import norm, portrait
from wnconvert.module_state import evaluating


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
