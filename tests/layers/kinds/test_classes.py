"""What is known of classes of transformers and diffusers, and of which nothing is.

tests/whole/test_classes.py holds the table against the classes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from wnconvert.layers.kinds.classes import CLASSES, built_class

POSITIONS = "encoder.pos_conv_embed.conv.weight"


def normalizes(name: str, weight: str, config: Mapping[str, Any] = {}, library: str = "transformers") -> bool:
    built = built_class(library, name, config)
    assert built is not None
    return built.normalizes(weight)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("Wav2Vec2Model", POSITIONS),
        ("Wav2Vec2ForCTC", f"wav2vec2.{POSITIONS}"),
        ("Wav2Vec2ConformerForXVector", POSITIONS),
        ("SEWDModel", POSITIONS),
        ("SpeechT5ForSpeechToText", "speecht5.encoder.prenet.pos_conv_embed.conv.weight"),
        ("XcodecModel", f"semantic_model.{POSITIONS}"),
        ("EncodecModel", "decoder.layers.3.block.1.conv.weight"),
        ("MusicgenForConditionalGeneration", "audio_encoder.encoder.layers.0.conv.weight"),
        ("VitsModel", "flow.flows.0.wavenet.in_layers.0.weight"),
    ],
)
def test_layers_that_a_class_normalizes_are_known(name: str, weight: str) -> None:
    assert normalizes(name, weight)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("Wav2Vec2Model", "feature_extractor.conv_layers.0.conv.weight"),
        ("VitsModel", "decoder.conv_pre.weight"),
        ("XcodecModel", "acoustic_decoder.conv1.weight"),
        ("SpeechT5HifiGan", "conv_pre.weight"),
        ("SeamlessM4Tv2ForTextToSpeech", "vocoder.hifi_gan.conv_pre.weight"),
        ("DacModel", "decoder.conv1.weight"),
    ],
)
def test_layers_that_a_class_builds_plain_are_known(name: str, weight: str) -> None:
    assert not normalizes(name, weight)


def test_a_setting_turns_weight_norm_off_wherever_it_stands() -> None:
    assert not normalizes("HubertModel", POSITIONS, {"conv_pos_batch_norm": True})
    assert normalizes("HubertModel", POSITIONS, {"conv_pos_batch_norm": False})
    layer = "audio_encoder.encoder.layers.0.conv.weight"
    nested = {"audio_encoder": {"norm_type": "time_group_norm"}, "lists": [[1], {}]}
    assert not normalizes("MusicgenForConditionalGeneration", layer, nested)
    usual = {"audio_encoder": {"norm_type": "weight_norm"}}
    assert normalizes("MusicgenForConditionalGeneration", layer, usual)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("transformers", "Wav2Vec2BertModel"),
        ("transformers", "MyWav2Vec2Model"),
        ("transformers", "AutoencoderOobleck"),
        ("diffusers", "AutoencoderKL"),
        ("diffusers", "Wav2Vec2Model"),
    ],
)
def test_nothing_is_said_of_a_class_that_is_not_known(library: str, name: str) -> None:
    assert built_class(library, name, {}) is None


def test_diffusers_takes_the_form_that_its_class_builds_and_transformers_both() -> None:
    assert {len(row.forms) for row in CLASSES if row.library == "transformers"} == {2}
    names = ("AutoencoderOobleck", "AutoencoderKLKVAEAudio")
    forms = [built.forms for name in names if (built := built_class("diffusers", name, {}))]
    assert forms == [("legacy",), ("parametrize",)]
    assert not normalizes("Cosmos3AVAEAudioTokenizer", "encoder.layers.1.dwconv.0.weight", {}, "diffusers")
    assert normalizes("Cosmos3AVAEAudioTokenizer", "encoder.layers.3.weight", {}, "diffusers")
