"""The table of classes held against the classes themselves, and `wnconvert loads` against from_pretrained.

diffusers is read by the full run alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.infos import halves
from tests.helpers.live_models import infos_of
from tests.helpers.marks import some
from tests.helpers.zoo import ROWS, SEEDS, Row, of
from wnconvert import fold_file, loads_folder, migrate_file
from wnconvert.errors import InputError
from wnconvert.layers.find import find_pairs
from wnconvert.layers.kinds.classes import CLASSES, built_class
from wnconvert.verbs.models.proof.running import quiet_torch

TRANSFORMERS = {
    name: name
    for name in (
        "Wav2Vec2Model",
        "Wav2Vec2ForCTC",
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2ConformerModel",
        "HubertModel",
        "WavLMForXVector",
        "UniSpeechModel",
        "UniSpeechSatModel",
        "SEWModel",
        "SEWDModel",
        "SpeechT5ForSpeechToText",
        "XcodecModel",
        "EncodecModel",
        "MusicgenForConditionalGeneration",
        "MusicgenMelodyForConditionalGeneration",
        "BarkModel",
        "VitsModel",
        "SpeechT5HifiGan",
        "FastSpeech2ConformerHifiGan",
        "FastSpeech2ConformerWithHifiGan",
        "UnivNetModel",
        "DacModel",
        "MimiModel",
        "SeamlessM4TModel",
        "SeamlessM4Tv2Model",
    )
}
DIFFUSERS = (
    "AutoencoderOobleck",
    "LongCatAudioDiTVae",
    "Cosmos3AVAEAudioTokenizer",
    "AutoencoderKLMiniMaxH3Audio",
    "AutoencoderSAME",
    "MiniMaxMusic3Vocoder",
    "AutoencoderKLKVAEAudio",
)


def on_meta(build: Any) -> nn.Module:
    with quiet_torch(), torch.device("meta"):
        model: nn.Module = build()
    return model


def check_row(library: str, name: str, model: nn.Module, config: dict[str, Any]) -> None:
    """Every layer of a model is as the table has it, in a form that it has; and so is every plain weight."""
    built = built_class(library, name, config)
    assert built is not None
    layers = find_pairs(infos_of(model)).layers
    assert {layer.name for layer in layers if not built.normalizes(layer.name)} == set()
    assert {layer.form for layer in layers} <= set(built.forms)
    plain = {key for key, value in model.state_dict().items() if key.endswith("weight") and value.ndim > 1}
    assert {key for key in plain if built.normalizes(key)} == set()


@some("name", TRANSFORMERS, ["Wav2Vec2Model", "VitsModel", "EncodecModel"])
def test_the_table_has_what_a_class_of_transformers_builds(name: str) -> None:
    config = of(name).config_class()
    check_row("transformers", name, on_meta(lambda: of(name)(config)), config.to_dict())


@pytest.mark.full
@pytest.mark.parametrize("name", DIFFUSERS)
def test_the_table_has_what_a_class_of_diffusers_builds(name: str) -> None:
    cls = diffusers(name)
    check_row("diffusers", name, on_meta(cls), {})


def diffusers(name: str) -> Any:
    with quiet_torch():
        library: Any = import_module("diffusers")
        try:
            return getattr(library, name)
        except AttributeError:
            pytest.skip(f"diffusers {library.__version__} does not have it yet")


@pytest.mark.full
def test_every_row_is_tried() -> None:
    tried = [*(("transformers", name) for name in TRANSFORMERS), *(("diffusers", name) for name in DIFFUSERS)]
    for row in CLASSES:
        assert any(row.library == library and row.classes.fullmatch(name) for library, name in tried)


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        of("logging").disable_progress_bar()
        yield
        of("logging").enable_progress_bar()


#: The second vocoder of SeamlessM4T is no public name of transformers.
SAVED = {row.name: row for row in ROWS if row not in SEEDS and row.saves and "v2Code" not in row.name}


@pytest.mark.usefixtures("quiet")
@some("row", SAVED, ["Wav2Vec2Model"])
def test_loads_says_what_from_pretrained_says(tmp_path: Path, row: Row) -> None:
    model: Any = row.plain()
    model.save_pretrained(tmp_path / "saved")
    report = loads_folder(tmp_path / "saved")
    assert (report.missing, report.unexpected, report.misfits) == ((), (), ())
    tensors = dict(safetensors.torch.load_file(tmp_path / "saved" / "model.safetensors"))
    lost = next(name for name in sorted(tensors) if tensors[name].ndim > 1)
    del tensors[lost]
    safetensors.torch.save_file(tensors | {"more": torch.ones(2)}, tmp_path / "saved" / "model.safetensors")
    report = loads_folder(tmp_path / "saved")
    _, said = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert set(report.missing) == set(said["missing_keys"])
    assert report.unexpected == ("more",)
    assert not report


@pytest.mark.usefixtures("quiet")
def test_what_a_fold_of_wav2vec2_says_is_what_loads_finds(tmp_path: Path) -> None:
    row = SAVED["Wav2Vec2Model"]
    model: Any = row.normed("legacy")
    model.save_pretrained(tmp_path / "saved")
    assert loads_folder(tmp_path / "saved")  # transformers renames the legacy form
    result = fold_file(tmp_path / "saved", tmp_path / "folded")
    assert "Wav2Vec2Model.from_pretrained will leave 2 tensors random" in "".join(result.notes)
    report = loads_folder(tmp_path / "folded")
    pair = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    assert report.missing == (f"{pair}0", f"{pair}1")
    assert report.unexpected == ("encoder.pos_conv_embed.conv.weight",)
    migrate_file(tmp_path / "saved", tmp_path / "migrated")
    assert loads_folder(tmp_path / "migrated")


@pytest.mark.full
@pytest.mark.usefixtures("quiet")
def test_oobleck_loses_64_tensors_folded_or_migrated(tmp_path: Path) -> None:
    with quiet_torch():
        model = diffusers("AutoencoderOobleck")(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
        )
        model.save_pretrained(tmp_path / "saved")
    assert len(halves(model.state_dict())) == 32
    assert loads_folder(tmp_path / "saved")
    for verb in (fold_file, migrate_file):
        result = verb(tmp_path / "saved", tmp_path / verb.__name__)
        said = "AutoencoderOobleck.from_pretrained will leave 64 tensors random"
        assert [note for note in result.notes if said in note]
        report = loads_folder(tmp_path / verb.__name__)
        assert (report.library, len(report.missing)) == ("diffusers", 64)
    migrate_file(tmp_path / "migrate_file", tmp_path / "back", to="legacy")
    assert loads_folder(tmp_path / "back")


@pytest.mark.full
def test_a_class_that_is_not_diffusers_own_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match="has no model that is called DDIMScheduler"):
        loads_folder(tmp_path)
