"""Texts of inputs that are proposed for a model: of known classes by a table, of others by usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from typing import Any

from torch.export import ExportedProgram

from wnconvert.frozen import dataclass
from wnconvert.verbs.models.proof.inputs.forwards import Forward
from wnconvert.verbs.models.proof.inputs.texts import FEEDABLE, Range

__all__ = [
    "KNOWN",
    "Argument",
    "KnownClass",
    "Proposal",
    "known_class",
    "proposed_by_names",
    "proposed_for_program",
]


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of forward: its ``default`` as Python writes it, if any, and the text that is proposed.

    ``needed``: the model does not run without it, whatever its default. ``text`` may be empty.
    """

    name: str
    needed: bool
    default: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is proposed for a model: its arguments, and ranges of the letters in their texts.

    ``settings`` are those that its config would need for two runs to be the same.
    """

    arguments: tuple[Argument, ...]
    ranges: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The texts of the arguments that are needed."""
        return tuple(each.text for each in self.arguments if each.needed and each.text)

    def narrowed(self, forward: Forward) -> Forward:
        """A forward that needs what the model needs, and takes no names but those of its arguments.

        Libraries' forwards take any name, and give every argument a default.
        """
        needed = tuple(each.name for each in self.arguments if each.needed)
        return replace(forward, needed=needed, takes_others=False)


# -- known classes


@dataclass(frozen=True, slots=True)
class KnownClass:
    """Classes of a library that take the same inputs; ``classes`` matches a whole name.

    ``inputs`` are texts with settings of the config in braces, such as ``mel=float32[1,{num_mels},T]``.
    """

    library: str
    classes: re.Pattern[str]
    inputs: tuple[str, ...]
    ranges: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def proposal(self, forward: Forward, config: Mapping[str, Any]) -> Proposal:
        """The texts for a class of this row, as it is configured."""
        texts = {text.partition("=")[0]: text.format_map(config) for text in self.inputs}
        return Proposal(
            tuple(
                Argument(name, name in texts, forward.defaults.get(name, ""), texts.get(name, ""))
                for name in (*texts, *(name for name in forward.names if name not in texts))
            ),
            self.ranges,
            {name: value for name, value in self.settings.items() if config.get(name) != value},
        )


def _row(library: str, classes: str, *inputs: str, ranges: Iterable[str] = (), **settings: Any) -> KnownClass:
    return KnownClass(library, re.compile(classes), inputs, tuple(ranges), settings)


#: Half a second to one of audio at 16 kHz: a frame takes 320 samples, and some heads 15 frames.
_AUDIO = ("T=8000..16000",)

#: transformers 5.23, diffusers 0.42: the classes that are built for a folder, and no others.
KNOWN: tuple[KnownClass, ...] = (
    _row(
        "transformers",
        r"SpeechT5HifiGan|FastSpeech2ConformerHifiGan",
        "spectrogram=float32[1,T,{model_in_dim}]",
    ),
    _row(
        "transformers",
        r"UnivNetModel",
        "input_features=float32[1,T,{num_mel_bins}]",
        "noise_sequence=float32[1,T,{model_in_channels}]",
    ),
    _row(
        "transformers",
        r"VitsModel",
        "input_ids=int64[1,L]<{vocab_size}",
        ranges=("L=8..64",),
        noise_scale=0.0,
        noise_scale_duration=0.0,
    ),
    _row(
        "transformers",
        r"(Wav2Vec2|Wav2Vec2Conformer|Hubert|WavLM|UniSpeech|UniSpeechSat|SEW|SEWD)(Model|For\w+)",
        "input_values=float32[1,T]",
        ranges=_AUDIO,
    ),
    _row(
        "transformers",
        r"SpeechT5ForSpeechToText",
        "input_values=float32[1,T]",
        "decoder_input_ids=int64[1,L]<{vocab_size}",
        ranges=(*_AUDIO, "L=2..20"),
    ),
    _row("transformers", r"EncodecModel", "input_values=float32[1,{audio_channels},T]", ranges=_AUDIO),
    _row("transformers", r"DacModel|XcodecModel", "input_values=float32[1,1,T]", ranges=_AUDIO),
    _row("diffusers", r"MMAudioVocoder", "mel=float32[1,{num_mels},T]"),
    _row("diffusers", r"MiniMaxMusic3Vocoder", "latents=float32[1,{latent_channels},T]"),
    _row("diffusers", r"AutoencoderOobleck", "sample=float32[1,{audio_channels},T]", ranges=_AUDIO),
)


def known_class(library: str, name: str) -> KnownClass | None:
    """The row of a class; None if there is none.

    >>> known_class("transformers", "VitsModel").inputs
    ('input_ids=int64[1,L]<{vocab_size}',)
    """
    return next((row for row in KNOWN if row.library == library and row.classes.fullmatch(name)), None)


# -- usual names


_USUAL = tuple(
    (re.compile(names), text)
    for names, text in (
        (r"(input_|text_|phone_)?ids|tokens|phonemes?|text", "int64[1,L]<100"),
        (r"(x_|text_|input_|phone_)?lengths?", "int64[1]=L"),
        (r"(attention|padding)_mask", "int64[1,L]=1"),
        (r"(log_?)?mels?|mel_?spec\w*|spectrograms?|spec", "float32[1,80,T]"),
        (r"audio|wav(e|eform)?s?|input_values", "float32[1,T]"),
        (r"f0|pitch", "float32[1,T]=50..400"),
        (r"(sid|spk|speakers?)(_ids?)?", "int64[1]<2"),
        (r"scales", "float32[3]=0,1,0"),
        (r"images?|pixel_values", "float32[1,3,H,W]"),
    )
)


def proposed_by_names(forward: Forward) -> Proposal:
    """Texts for the arguments that are needed; where a name says nothing, ``…`` stands for the shape.

    >>> proposed_by_names(Forward(("mel", "x"), ("mel", "x"))).inputs
    ('mel=float32[1,80,T]', 'x=float32[…]')
    """
    return Proposal(
        tuple(
            Argument(name, name in forward.needed, forward.defaults.get(name, ""), f"{name}={_usual(name)}")
            if name in forward.needed or _usual(name) != _UNKNOWN
            else Argument(name, needed=False, default=forward.defaults.get(name, ""))
            for name in forward.names
        )
    )


_UNKNOWN = "float32[…]"


def _usual(name: str) -> str:
    return next((text for names, text in _USUAL if names.fullmatch(name)), _UNKNOWN)


# -- exported programs


def proposed_for_program(program: ExportedProgram) -> Proposal:
    """The inputs that a program was exported with, a letter for each size that it leaves open."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    letters: dict[str, str] = {}
    found = []
    for name in map(str, program.graph_signature.user_inputs):
        value: Any = values.get(name)
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        if dtype not in FEEDABLE:
            found.append(Argument(name, needed=True, text=f"{name}={_UNKNOWN}"))
            continue
        sizes = [str(size) if isinstance(size, int) else _letter(str(size), letters) for size in value.shape]
        bound = "<100" if "int" in dtype else ""
        found.append(Argument(name, needed=True, text=f"{name}={dtype}[{','.join(sizes)}]{bound}"))
    spans = {str(symbol): span for symbol, span in program.range_constraints.items()}
    ranges = (f"{letter}={_range(spans[size])}" for size, letter in letters.items() if size in spans)
    return Proposal(tuple(found), tuple(ranges))


_LETTERS = "TLNMHWKC"


def _letter(size: str, letters: dict[str, str]) -> str:
    """The letter of a size that is open."""
    number = len(letters)
    free = _LETTERS[number] if number < len(_LETTERS) else f"D{number}"
    return letters.setdefault(size, free)


def _range(span: Any) -> Range:
    """A range that lies within that of a program, and is not long."""
    low, high = int(span.lower), _LARGEST
    if span.upper.is_number and span.upper.is_finite and span.upper < high:
        high = int(span.upper)
    return Range(max(1, low), max(1, low, min(high, 128 if low <= 128 else 2 * low)))


_LARGEST = 2**31 - 1
