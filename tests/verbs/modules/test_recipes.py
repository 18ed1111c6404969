"""Live modules folded by a recipe: the norm is taken out, what is in it stays, and nothing is guessed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.helpers.deprecated import deprecated
from tests.helpers.live_models import portrait
from tests.helpers.normed_models import NORMED, Standardized, behind, every_normed, scrambled, standardized
from tests.helpers.rule_oracle import exact_bias, exact_weight
from tests.helpers.states import same
from wnconvert import fold_module, fold_state_dict, folded, weights_folded
from wnconvert.errors import LayerError
from wnconvert.layers.recipes import Recipe, RecipeFold
from wnconvert.tensors.memory import array_of


def exact(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = copy.deepcopy(model).double()(x.double())
    return out


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).pow(2).mean().sqrt())


def pair(**options: Any) -> Any:
    return scrambled(nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.BatchNorm2d(6)))


ONE = Recipe((behind("0.weight", "1"),))


@every_normed
def test_a_folded_module_is_no_further_from_float64_than_the_module_and_has_no_norm(which: str) -> None:
    model, x = NORMED[which].made()
    expected, far = exact(model, x), distance(model(x), exact(model, x))
    done = fold_module(model, recipe=NORMED[which].recipe)
    assert [layer.name for layer in done] == [fold.weight for fold in NORMED[which].recipe.folds]
    # In float64, for it is the folded numbers that count: torch's own float32 kernels differ by a factor of
    # up to seven here, between processors, and from one channel to another.
    assert distance(exact(model, x), expected) <= 1.5 * far
    assert not any(name.endswith(("running_var", "running_mean", "tracked")) for name in model.state_dict())


@every_normed
def test_weights_and_biases_are_correctly_rounded(which: str) -> None:
    model, _ = NORMED[which].made()
    held = {name: array_of(value) for name, value in model.state_dict().items()}
    done = fold_module(model, recipe=NORMED[which].recipe)
    made = {name: array_of(value) for name, value in model.state_dict().items()}
    for layer in done:
        arrays = {role: held[info.name] for role, info in layer.parts.items()}
        assert np.array_equal(made[layer.name], exact_weight(layer.rule, arrays, "float32"))
        if layer.bias:
            assert np.array_equal(made[layer.bias], exact_bias(layer.rule, arrays, "float32"))


@every_normed
def test_for_the_length_of_a_block_a_module_is_folded_and_then_all_of_it_is_back(which: str) -> None:
    model, x = NORMED[which].made()
    before, expected = portrait(model), model(x)
    with weights_folded(model, recipe=NORMED[which].recipe) as layers:
        assert len(layers) == len(NORMED[which].recipe.folds)
        assert torch.allclose(model(x), expected, rtol=1e-3, atol=1e-4)
    assert portrait(model) == before
    assert torch.equal(model(x), expected)


@every_normed
def test_a_folded_copy_shares_nothing_and_can_be_pickled(which: str) -> None:
    model, x = NORMED[which].made()
    before = portrait(model)
    made = folded(model, recipe=NORMED[which].recipe)
    assert portrait(model) == before
    pointers = {value.data_ptr() for value in model.state_dict().values()}
    assert pointers.isdisjoint(value.data_ptr() for value in made.state_dict().values())
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), made(x))


@every_normed
def test_the_state_dict_is_that_of_fold_state_dict_and_each_loads_into_the_other_strictly(which: str) -> None:
    model, x = NORMED[which].made()
    recipe = NORMED[which].recipe
    state = fold_state_dict(model.state_dict(), recipe=recipe)
    made = folded(model, recipe=recipe)
    assert list(made.state_dict()) == list(state)
    assert all(same(value, state[name]) for name, value in made.state_dict().items())
    again = folded(scrambled(NORMED[which].make(), 8), recipe=recipe)
    again.load_state_dict(state, strict=True)
    assert torch.equal(again(x), made(x))


def test_what_is_folded_once_is_not_in_the_recipe_any_more() -> None:
    model = pair()
    fold_module(model, recipe=ONE)
    with pytest.raises(LayerError, match=r"does not have 1\.running_mean"):
        fold_module(model, recipe=ONE)


def test_a_norm_becomes_an_identity_with_its_hooks_and_its_mode() -> None:
    model = pair()
    seen: list[str] = []
    model[1].register_forward_hook(lambda *_: seen.append("norm"))
    norm = model[1]
    fold_module(model, recipe=ONE)
    assert type(norm) is nn.Identity
    assert vars(norm).keys() == vars(nn.Identity()).keys()
    assert model[1] is norm
    assert not norm.training
    model(torch.ones(1, 4, 5, 5))
    assert seen == ["norm"]


def test_trials_run_no_hook_of_the_users_and_leave_the_random_state_alone() -> None:
    model = pair()

    def forbidden(*_: object) -> None:
        raise AssertionError

    for module in model.modules():
        module.register_forward_hook(forbidden)
        module.register_forward_pre_hook(forbidden)
    state = torch.get_rng_state()
    fold_module(model, recipe=ONE)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_activation_inside_a_norm_stays_with_its_weights_under_its_name() -> None:
    model, _ = NORMED["mobilenet"].made()
    act = model[3].act
    fold_module(model, recipe=NORMED["mobilenet"].recipe)
    assert model[3].act is act
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias", "3.act.weight"]


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_takes_after_the_weight_and_stands_behind_it(bias: bool) -> None:
    model = pair(bias=bias).double().requires_grad_(False)
    fold_module(model, recipe=ONE)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    assert isinstance(model[0].bias, nn.Parameter)
    assert (model[0].bias.dtype, model[0].bias.requires_grad) == (torch.float64, False)


def test_a_layer_in_another_memory_format_gets_a_bias_and_keeps_the_format() -> None:
    model = pair(bias=False).to(memory_format=torch.channels_last)
    fold_module(model, recipe=ONE)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].bias.shape == (6,)


def test_layers_that_are_excluded_keep_their_norms() -> None:
    model, _ = NORMED["resnet"].made()
    done = fold_module(model, recipe=NORMED["resnet"].recipe, exclude="*.down.0.weight")
    assert len(done) == 4
    assert type(model[0].down[1]) is nn.BatchNorm2d


class TwoNorms(nn.Module):
    """One norm behind two convolutions, and its own output scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.same = self.conv
        self.norm = nn.BatchNorm2d(4)


class Scaled(nn.BatchNorm2d):
    """A norm that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class NoBias(nn.Module):
    """A layer whose class knows no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class DeafToBias(nn.Linear):
    """A layer whose forward leaves its bias out."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


class Turned(nn.Linear):
    """A layer that reads its weight the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(4, 6, 1))
    model[2].weight = model[0].weight
    return model


def scripted() -> nn.Module:
    with deprecated():
        made: nn.Module = torch.jit.script(nn.Conv2d(4, 6, 1))
        return made


class Cosine(nn.Linear):
    """A head that normalizes its input too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.normalize(x), functional.normalize(self.weight), self.bias)


class ScalesBias(nn.Linear):
    """An equalized layer whose bias is scaled too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * 0.5, self.bias * 0.5)


def bit() -> nn.Module:
    return nn.Sequential(Standardized(3, 4, 3, padding=1))


UNIT = Recipe((RecipeFold("unit", "0.weight", eps=1e-12),))
LINEAR = Recipe((behind("0.weight", "1", "linear"),))
REFUSED: dict[str, tuple[Any, Recipe, str]] = {
    "another eps": (pair(), Recipe((behind("0.weight", "1", eps=1e-3),)), "computes something else"),
    "training mode": (pair().train(), ONE, "in training mode"),
    "batch statistics": (
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)).eval(),
        ONE,
        "no running statistics|does not have 1.running_mean",
    ),
    "no such weight": (pair(), Recipe((behind("conv.weight", "1"),)), "does not have conv.weight"),
    "no such norm": (pair(), Recipe((behind("0.weight", "bn"),)), "does not have bn|bn has no running"),
    "another size": (
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4)).eval(),
        ONE,
        r"1.weight \(4,\) does not fit",
    ),
    "a shared layer": (TwoNorms().eval(), Recipe((behind("conv.weight", "norm"),)), "has the names conv"),
    "a tied weight": (tied().eval(), ONE, "0.weight is tied to 2.weight"),
    "more than a norm": (
        scrambled(nn.Sequential(nn.Conv2d(4, 6, 1), Scaled(6))),
        ONE,
        "a Scaled computes something else",
    ),
    "transposed, not said": (
        nn.Sequential(nn.ConvTranspose2d(6, 6, 1), nn.BatchNorm2d(6)).eval(),
        ONE,
        "the outputs of a ConvTranspose2d are its axis 1",
    ),
    "groups, not said": (
        nn.Sequential(nn.ConvTranspose2d(6, 6, 1, groups=2), nn.BatchNorm2d(6)).eval(),
        Recipe((behind("0.weight", "1", "conv_transpose", groups=6),)),
        "does not fit|in 2 groups",
    ),
    "no place for a bias": (nn.Sequential(NoBias(), nn.BatchNorm1d(6)).eval(), LINEAR, "no 0.bias"),
    "a bias that is not added": (
        nn.Sequential(DeafToBias(4, 6), nn.BatchNorm1d(6)).eval(),
        LINEAR,
        "a DeafToBias computes more",
    ),
    "a weight that is turned": (
        nn.Sequential(Turned(6, 6), nn.BatchNorm1d(6)).eval(),
        LINEAR,
        "a Turned computes more",
    ),
    "weight norm that is not asked for": (
        nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 6, 1)), nn.BatchNorm2d(6)).eval(),
        ONE,
        "its keys show spectral beneath",
    ),
    "TorchScript": (
        nn.Sequential(scripted(), nn.BatchNorm2d(6)).eval(),
        ONE,
        "does not have 0.weight",
    ),
    "a plain layer that is said to be standardized": (
        nn.Sequential(nn.Conv2d(3, 4, 3)),
        Recipe((standardized("0.weight"),)),
        "no plain layer with the weight of the recipe computes what a Conv2d does",
    ),
    "another eps of a standardization": (
        bit(),
        Recipe((standardized("0.weight", 1e-3),)),
        "no plain layer",
    ),
    "another deviation": (bit(), Recipe((standardized("0.weight", std="unbiased"),)), "no plain layer"),
    "another place of eps": (
        bit(),
        Recipe((standardized("0.weight", 1e-3, eps_at="std"),)),
        "no plain layer",
    ),
    "another axis": (bit(), Recipe((standardized("0.weight", dim=1),)), "no plain layer"),
    "an input that is normalized too": (nn.Sequential(Cosine(3, 4)), UNIT, "what a Cosine does"),
    "a bias that is scaled too": (
        nn.Sequential(ScalesBias(3, 4)),
        Recipe((RecipeFold("equalized", "0.weight", scale=0.5),)),
        "what a ScalesBias does",
    ),
    "the meta device": (pair().to("meta"), ONE, "meta device"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_cannot_be_folded_is_refused_with_its_reason_and_stays_as_it_is(which: str) -> None:
    model, recipe, reason = REFUSED[which]
    before = portrait(model)
    for fold in (fold_module, folded):
        with pytest.raises(LayerError, match=reason):
            fold(model, recipe=recipe)
    with pytest.raises(LayerError, match=reason), weights_folded(model, recipe=recipe):
        pytest.fail("nothing is folded")
    assert portrait(model) == before


def test_a_module_that_keeps_what_it_computed_in_a_cache_is_copied_too() -> None:
    model = pair()
    model.cache = {"last": model(torch.ones(1, 4, 5, 5))}
    made = folded(model, recipe=ONE)
    assert torch.equal(made.cache["last"], model.cache["last"])
    assert not made.cache["last"].requires_grad
