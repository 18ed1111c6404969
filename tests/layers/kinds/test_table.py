from __future__ import annotations

import torch
from torch.nn.utils import prune

from wnconvert.layers.kinds.table import KINDS, find_kinds
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import TensorInfo

KINDS_BY_NAME = {kind.name: kind for kind in KINDS}


def kinds(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, int]:
    infos = [TensorInfo(name, dtype_named("float32"), shape) for name in names]
    return {found.kind.name: found.count for found in find_kinds(infos)}


def kinds_of(module: torch.nn.Module) -> dict[str, int]:
    infos = [
        TensorInfo(name, dtype_named(str(tensor.dtype).removeprefix("torch.")), tuple(tensor.shape))
        for name, tensor in module.state_dict().items()
    ]
    return {found.kind.name: found.count for found in find_kinds(infos)}


def test_torchs_own_reparameterizations_are_told_apart() -> None:
    nn = torch.nn
    legacy = nn.utils.spectral_norm(nn.Linear(4, 4))
    pruned = prune.l1_unstructured(nn.Conv1d(4, 4, 3), "weight", amount=3)  # type: ignore[no-untyped-call]
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    stacked = nn.utils.parametrizations.spectral_norm(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert kinds_of(legacy) == {"spectral norm (legacy)": 1}
    assert kinds_of(pruned) == {"prune": 1}
    assert kinds_of(spectral) == {"spectral norm (parametrize)": 1}
    assert kinds_of(orthogonal) == {"orthogonal": 1}
    assert kinds_of(stacked) == {"spectral norm on weight norm (parametrize)": 1}


def test_weight_norm_itself_and_plain_layers_are_no_kind() -> None:
    nn = torch.nn
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    assert kinds_of(nn.Sequential(normed, nn.Linear(4, 4), nn.LSTM(4, 4), nn.PReLU(4))) == {}


def test_batch_norm_and_affine_norms_differ_by_their_statistics() -> None:
    nn = torch.nn
    module = nn.Sequential(
        nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.InstanceNorm1d(8, affine=True)
    )
    assert kinds_of(module) == {"batch norm": 1, "affine norm": 3}


def test_adapters_and_rare_norms_are_known_by_their_keys() -> None:
    assert kinds("q.lora_magnitude_vector.default.weight") == {"DoRA": 1}
    assert kinds("lora_unet_q.dora_scale") == {"DoRA (LyCORIS)": 1}
    assert kinds("n.weight", "n.bias", "n.mean_weight", "n.var_weight", shape=(3,)) == {"switchable norm": 1}
    assert kinds("c.weight", "c.gain") == {"weight standardization with gain": 1}
    assert kinds("c.parametrizations.weight.original") == {"other parametrization": 1}


def test_spectral_norm_without_v_does_not_fold_by_a_formula_that_needs_it() -> None:
    infos = [TensorInfo(name, dtype_named("float32"), (4, 4)) for name in ("c.weight_orig", "c.weight_u")]
    (found,) = find_kinds(infos)
    assert found.kind.name == "spectral norm (legacy, without v)"
    assert found.kind.folds == "if known"
    assert "the plain weight is beside it" in found.kind.how
    assert kinds("c.weight_orig", "c.weight_u", "c.weight_v") == {"spectral norm (legacy)": 1}
    assert kinds("c.weight_orig", "c.weight_u", "c.weight") == {"spectral norm (torch 1.0)": 1}
    assert KINDS_BY_NAME["spectral norm (legacy)"].folds == "yes"


def test_one_number_each_is_not_called_a_norm() -> None:
    for stem in (("scale.weight", "scale.bias"), ("gamma", "beta")):
        assert kinds(*stem, shape=(1,)) == {}
        assert kinds(*stem, shape=(2,)) == {"affine norm": 1}
    assert kinds_of(torch.nn.BatchNorm1d(1)) == {"batch norm": 1}


def test_a_v_of_attention_is_a_part_of_no_norm() -> None:
    assert kinds_of(torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)) == {}


def test_keys_at_the_root_are_seen_and_the_first_place_is_named() -> None:
    infos = [
        TensorInfo(name, dtype_named("float32"), (4,))
        for name in ("weight_orig", "weight_mask", "a.weight_orig", "a.weight_mask")
    ]
    (found,) = find_kinds(infos)
    assert (found.count, found.example) == (2, "weight")


def test_every_kind_says_whether_and_how_it_folds() -> None:
    assert all(kind.folds in ("yes", "no", "if known") and kind.how for kind in KINDS)


def test_one_thing_on_another_is_neither_alone() -> None:
    assert kinds("c.weight_orig_orig", "c.weight_orig_mask", "c.weight_u", "c.weight_v") == {
        "spectral norm on prune": 1
    }
    assert kinds("c.weight_v_orig", "c.weight_v_mask", "c.weight_g") == {"weight norm on prune": 1}
    assert kinds("c.bias_v_orig", "c.bias_v_mask") == {"prune": 1}
    stem = "c.parametrizations.weight."
    assert kinds(f"{stem}original", f"{stem}0.base", f"{stem}1._u", f"{stem}1._v") == {
        "stacked parametrizations": 1
    }


def test_layer_norms_of_vocoders_are_affine_norms() -> None:
    assert kinds("norm.gamma", "norm.beta", shape=(8,)) == {"affine norm": 1}
    assert kinds("norm.gamma", "norm.beta", shape=(8, 1)) == {}


def test_only_a_float_mask_of_its_shape_and_a_u_that_fits_are_counted() -> None:
    f32, boolean = dtype_named("float32"), dtype_named("bool")
    original, weight = TensorInfo("c.weight_orig", f32, (8, 4)), TensorInfo("c.weight", f32, (8, 4))
    for beside, count in (
        ([original, TensorInfo("c.weight_mask", f32, (8, 4))], 1),
        ([original, TensorInfo("c.weight_mask", boolean, (8, 4))], 0),
        ([original, TensorInfo("c.weight_mask", f32, (4, 8))], 0),
        ([weight, TensorInfo("c.u", f32, (1, 8))], 1),
        ([weight, TensorInfo("c.u", f32, (1, 4))], 0),
    ):
        assert len(find_kinds(beside)) == count
