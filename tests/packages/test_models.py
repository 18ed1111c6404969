"""The verbs on the models of packages that people install: their own classes, tiny, with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from tests.helpers.infos import halves
from tests.helpers.states import same
from tests.helpers.zoo import Outputs, Row, gap, scramble, tensor
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict, migrate_state_dict, split_state_dict
from wnconvert.verbs.modules.convert import fold_module, migrate_module
from wnconvert.verbs.shared.options import Form

#: How far outputs may be apart, as a part of the greatest.
WITHIN = 1e-4

RATES = {"encoder_rates": [2, 5], "decoder_rates": [5, 2], "encoder_dim": 4, "decoder_dim": 16}
CODES = {"codebook_size": 8, "codebook_dim": 3}


def of(module: str, name: str) -> Any:
    """A class of a package; importing it, and building with torch's older weight norm, warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(import_module(module), name)


def built(module: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        found: nn.Module = of(module, name)(*args, **options)
        return found

    return build


def both(model: Any, audio: torch.Tensor) -> Outputs:
    """Encoded, and decoded without the codes between, which are decisions."""
    latents = model.encoder(audio)
    return latents, model.decoder(latents)


def seanet(package: str, **more: object) -> Callable[[], nn.Module]:
    """The encoder and the decoder of EnCodec, which moshi's codec has too (plain, unless asked)."""
    sizes = {"dimension": 8, "n_filters": 2, "ratios": [4, 2], "n_residual_layers": 1}
    options = {**sizes, "norm": "weight_norm", **more}

    def build() -> nn.Module:
        parts = {
            side.lower(): of(f"{package}.modules.seanet", f"SEANet{side}")(**options)
            for side in ("Encoder", "Decoder")
        }
        return nn.ModuleDict(parts)

    return build


def run_seanet(model: Any, audio: torch.Tensor) -> Outputs:
    latents = model["encoder"](audio)
    return latents, model["decoder"](latents)


def run_oobleck(model: Any, audio: torch.Tensor) -> Outputs:
    """The means and scales of the latents, and what the means decode to."""
    latents = model.encoder(audio)
    return latents, model.decoder(latents.chunk(2, dim=1)[0])


def bigvgan() -> nn.Module:
    options = {
        "resblock": "1", "num_mels": 6, "upsample_initial_channel": 8, "upsample_rates": [2, 2],
        "upsample_kernel_sizes": [4, 4], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
        "activation": "snakebeta", "snake_logscale": True,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = of("bigvgan.bigvgan", "BigVGAN")(of("bigvgan.env", "AttrDict")(options))
    return found


def kokoro() -> nn.Module:
    options = {
        "dim_in": 512, "style_dim": 8, "dim_out": 4, "upsample_initial_channel": 512,
        "upsample_rates": [10, 6], "upsample_kernel_sizes": [20, 12],
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
        "gen_istft_n_fft": 20, "gen_istft_hop_size": 5, "disable_complex": True,
    }  # fmt: skip
    return built("kokoro.istftnet", "Decoder", **options)()


ROWS = (
    Row(
        "descript-audio-codec",
        built("dac.model", "DAC", n_codebooks=2, **RATES, **CODES),
        lambda: (tensor(1, 1, 60),),
        {0: 36},
        run=both,
        size=0.5,
    ),
    Row("encodec", seanet("encodec"), lambda: (tensor(1, 1, 64),), {0: 20}, run=run_seanet),
    Row(
        "moshi",
        seanet("moshi", pad_mode="constant", causal=True),
        lambda: (tensor(1, 1, 64),),
        {0: 16},
        run=run_seanet,
    ),
    Row(
        "snac",
        built("snac", "SNAC", attn_window_size=None, vq_strides=[2, 1], noise=False, **RATES, **CODES),
        lambda: (tensor(1, 1, 80),),
        {0: 37},
        run=both,
        size=0.5,
    ),
    Row(
        "vocos",
        built("vocos.models", "VocosResNetBackbone", input_channels=4, dim=8, num_blocks=2),
        lambda: (tensor(1, 4, 20),),
        {0: 13},
    ),
    Row("bigvgan", bigvgan, lambda: (tensor(1, 6, 12),), {0: 16}),
    Row(
        "kokoro, its decoder",
        kokoro,
        lambda: (tensor(1, 512, 6), tensor(1, 12).abs() * 100, tensor(1, 12), tensor(1, 8)),
        {0: 46},
        size=0.5,
    ),
    Row(
        "diffusers, AutoencoderOobleck",
        built(
            "diffusers",
            "AutoencoderOobleck",
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
        ),
        lambda: (tensor(1, 2, 64),),
        {0: 32},
        run=run_oobleck,
        size=0.5,
    ),
)
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def normed(row: Row) -> nn.Module:
    """The model as its package builds it, normalized, with magnitudes that are not the norms."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated")
        model = row.plain()
    scramble(model, row.size)
    return model.eval()


def without_weight_norm(row: Row) -> nn.Module:
    """The model after torch took weight norm off; its weights are zeroed, so that they must be loaded."""
    plain = normed(row)
    for module in list(plain.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
        for name in list(getattr(module, "parametrizations", ())):
            nn.utils.parametrize.remove_parametrizations(module, name)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    return plain


def other_form(state_dict: Mapping[str, object]) -> Form:
    return "legacy" if any("parametrizations." in name for name in state_dict) else "parametrize"


def near(left: Outputs, right: Outputs) -> bool:
    return gap(left, right) <= WITHIN * max(float(each.abs().max()) for each in right)


@rows
def test_the_package_builds_its_layers_with_weight_norm(row: Row) -> None:
    assert {0: len(halves(normed(row).state_dict()))} == row.dims


@rows
def test_a_folded_state_dict_loads_without_weight_norm_and_computes_the_same(row: Row) -> None:
    model = normed(row)
    untouched, before = row.outputs(model), model.state_dict()
    after = fold_state_dict(before)
    assert not halves(after)
    plain = without_weight_norm(row)
    plain.load_state_dict(after, strict=True)
    assert near(row.outputs(plain), untouched)
    with torch.no_grad():
        for g, _ in halves(before).values():
            before[g].mul_(1.5)
    assert not near(row.outputs(model), untouched), "the outputs would not show a wrong magnitude"


@rows
def test_a_module_is_folded_and_migrated_in_place(row: Row) -> None:
    model = normed(row)
    untouched, before = row.outputs(model), model.state_dict()
    folded = normed(row)
    assert len(fold_module(folded)) == row.layers
    assert near(row.outputs(folded), untouched)
    to = other_form(before)
    expected = migrate_state_dict(before, to=to)
    assert len(migrate_module(model, to=to)) == row.layers
    assert list(model.state_dict()) == list(expected)
    assert near(row.outputs(model), untouched)


@rows
def test_a_file_folds_and_migrates_to_what_the_state_dict_does(row: Row, tmp_path: Path) -> None:
    before = normed(row).state_dict()
    torch.save(before, tmp_path / "m.pt")
    to = other_form(before)
    fold_file(tmp_path / "m.pt", tmp_path / "folded.pt")
    migrate_file(tmp_path / "m.pt", tmp_path / "migrated.pt", to=to)
    wanted = {"folded": fold_state_dict(before), "migrated": migrate_state_dict(before, to=to)}
    for name_of_file, expected in wanted.items():
        found = torch.load(tmp_path / f"{name_of_file}.pt", weights_only=True)
        assert list(found) == list(expected)
        assert all(same(found[name], expected[name]) for name in expected)


@rows
def test_a_folded_state_dict_is_split_like_the_model_and_folds_to_the_same_bits(row: Row) -> None:
    before = normed(row).state_dict()
    plain = fold_state_dict(before)
    again = split_state_dict(plain, like=before)
    assert set(again) == set(before)
    refolded = fold_state_dict(again)
    assert all(same(refolded[name], plain[name]) for name in plain)
