"""Which layers the classes of transformers and diffusers build with weight norm, and which they build plain.

A checkpoint whose layers have another form than its class builds is loaded with those layers random: their
tensors are missing under the names that the class looks for. Each row was held against the class itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from wnconvert.frozen import dataclass

__all__ = ["CLASSES", "BuiltClass", "built_class"]


@dataclass(frozen=True, slots=True)
class BuiltClass:
    """What classes of a library build: ``normalized`` are globs of weights, all others are plain.

    ``classes`` matches the whole name of a class. ``forms`` are those that ``from_pretrained`` takes.
    ``off`` are settings of the config, at any depth, that turn weight norm off.
    """

    library: str
    classes: re.Pattern[str]
    normalized: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("parametrize", "legacy")
    off: tuple[tuple[str, Any], ...] = ()

    def normalizes(self, weight: str) -> bool:
        """Whether the class builds a weight of this name with weight norm."""
        return any(fnmatchcase(weight, glob) for glob in self.normalized)


def _transformers(classes: str, *normalized: str, off: tuple[tuple[str, Any], ...] = ()) -> BuiltClass:
    """A row of transformers, which renames the legacy form as it loads."""
    return BuiltClass("transformers", re.compile(classes), normalized, off=off)


def _diffusers(classes: str, form: str, *normalized: str) -> BuiltClass:
    """A row of diffusers, which takes no other form than the class builds."""
    return BuiltClass("diffusers", re.compile(classes), normalized, (form,))


_SPEECH = r"(Wav2Vec2|Wav2Vec2Conformer|Hubert|WavLM|UniSpeech|UniSpeechSat|SEW|SEWD)(Model|For\w+)"
_OTHER_NORM = ("norm_type", "time_group_norm")

#: transformers 5.23, diffusers 0.42.
CLASSES: tuple[BuiltClass, ...] = (
    _transformers(_SPEECH, "*pos_conv_embed.conv.weight", off=(("conv_pos_batch_norm", True),)),
    _transformers(r"SpeechT5(Model|ForSpeechTo\w+)|SpeechEncoderDecoderModel", "*pos_conv_embed.conv.weight"),
    _transformers(r"XcodecModel", "*pos_conv_embed.conv.weight"),
    _transformers(r"EncodecModel", "*.conv.weight", off=(_OTHER_NORM,)),
    _transformers(
        r"Musicgen(Melody)?ForConditionalGeneration", "audio_encoder.*.conv.weight", off=(_OTHER_NORM,)
    ),
    _transformers(r"BarkModel", "codec_model.*.conv.weight", off=(_OTHER_NORM,)),
    _transformers(r"VitsModel", "*.wavenet.*"),
    _transformers(
        r"SpeechT5HifiGan|FastSpeech2Conformer(WithHifiGan|HifiGan)|UnivNetModel|DacModel|MimiModel"
        r"|SeamlessM4T(v2)?(Model|For\w+|CodeHifiGan)"
    ),
    _diffusers(r"AutoencoderOobleck|LongCatAudioDiTVae", "legacy", "*"),
    _diffusers(
        r"Cosmos3AVAEAudioTokenizer",
        "legacy",
        "decoder.*",
        "encoder.layers.[0-9].weight",
        "encoder.layers.1[0-9].weight",
    ),
    _diffusers(r"AutoencoderKLMiniMaxH3Audio", "legacy", "encoder.*", "decoder.*"),
    _diffusers(r"AutoencoderSAME", "legacy", "*.mapping.weight"),
    _diffusers(r"MiniMaxMusic3Vocoder", "legacy", "conv_in.*", "conv_out.*", "blocks.*"),
    _diffusers(r"AutoencoderKLKVAEAudio", "parametrize", "encoder.*", "decoder.*", "in_proj.*", "out_proj.*"),
)


def built_class(library: str, name: str, config: Mapping[str, Any]) -> BuiltClass | None:
    """What a class builds, as it is configured; None if it is not known.

    >>> built = built_class("transformers", "HubertModel", {})
    >>> built.normalizes("encoder.pos_conv_embed.conv.weight"), built.normalizes("conv_pre.weight")
    (True, False)
    """
    for row in CLASSES:
        if row.library == library and row.classes.fullmatch(name):
            is_off = any(setting in row.off for setting in _settings(config) if setting[1].__hash__)
            return BuiltClass(library, row.classes, () if is_off else row.normalized, row.forms)
    return None


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All settings of a config, those of the configs in it too."""
    todo = [config]
    while todo:
        for key, value in todo.pop().items():
            if isinstance(value, Mapping):
                todo.append(value)
            else:
                yield key, value
