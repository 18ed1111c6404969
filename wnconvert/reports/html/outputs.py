"""The outputs of a proof as pages show them: a row for each, what can be seen of it, and the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.reports.html.signals import Picture, Wave, picture_of, wave_of
from wnconvert.reports.tables import distance_text, number_text
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.proof import Proof

__all__ = ["SeenOutput", "ShownOutputs", "shown_outputs"]


#: The most outputs that are drawn: the first ones.
_MOST_DRAWN = 8


@dataclass(frozen=True, slots=True)
class SeenOutput:
    """An output as it can be seen: in which sample, and as three waveforms or three pictures with words."""

    name: str
    sample: str
    is_finite: bool
    waves: tuple[tuple[str, Wave], ...]
    pictures: tuple[tuple[str, Picture], ...]


@dataclass(frozen=True, slots=True)
class ShownOutputs:
    """What a template shows of outputs: columns, rows of cells (and whether each passed), and samples.

    ``data`` is what the script draws, by name.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[tuple[str, ...], bool], ...]
    seen: tuple[SeenOutput, ...]
    samples: tuple[tuple[str, str, str], ...]
    data: Mapping[str, Any]


def shown_outputs(proof: Proof, sides: tuple[str, str] = ("reference", "candidate")) -> ShownOutputs:
    """The outputs of a proof, whose reference and candidate go by some words."""
    seen = tuple(one for output in proof.outputs[:_MOST_DRAWN] for one in _seen(output, sides))
    rows = tuple((_row(proof, output), output.passed) for output in proof.outputs)
    outputs = [
        {
            "name": output.name,
            "found": None if output.unmatched else output.max_abs,
            "allowed": _allowed(proof, output),
            "passed": output.passed,
            "spread": list(output.spread),
        }
        for output in proof.outputs
    ]
    waves = [_wave_data(word, wave) for one in seen for word, wave in one.waves]
    data = {"outputs": outputs, "waves": waves}
    return ShownOutputs(_columns(sides), rows, seen, tuple(_samples(proof)), data)


def _columns(sides: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The heads of the table, each with its class of the style."""
    return (
        ("output", ""),
        ("dtype", "word wide"),
        ("shape", "word long-word wide"),
        ("elements", "number wide"),
        ("max abs", "number"),
        ("allowed", "number"),
        ("max rel", "number wide"),
        ("SNR dB", "number"),
        ("worst at", "word long-word wide"),
        *((side, "number wide") for side in sides),
        ("outside", "number wide"),
    )


def _row(proof: Proof, output: OutputProof) -> tuple[str, ...]:
    worst = output.worst
    return (
        output.name,
        output.dtype,
        "×".join(map(str, output.shape)) or "()",
        f"{output.elements:,}",
        "0" if output.identical else distance_text(output.max_abs, output.unmatched),
        number_text(_allowed(proof, output)),
        "" if output.unmatched else number_text(output.max_rel),
        "same bits" if output.identical else number_text(output.snr_db),
        "" if worst is None else f"[{', '.join(map(str, worst.index))}]",
        "" if worst is None else f"{worst.reference:.7g}",
        "" if worst is None else f"{worst.candidate:.7g}",
        f"{output.out_of_tolerance:,}",
    )


def _allowed(proof: Proof, output: OutputProof) -> float:
    """What the tolerance allows at the worst element of an output."""
    worst = output.worst
    reference = abs(worst.reference) if worst is not None and math.isfinite(worst.reference) else 0.0
    return proof.atol + proof.rtol * reference


def _samples(proof: Proof) -> Iterator[tuple[str, str, str]]:
    """Of each sample its number, its sizes, and where its values are from."""
    for at, sample in enumerate(proof.samples, 1):
        sizes = ", ".join(f"{letter} = {size}" for letter, size in sample.sizes.items())
        yield str(at), sizes or "fixed", sample.source or f"drawn, seed {sample.seed}"


def _seen(output: OutputProof, sides: tuple[str, str]) -> Iterator[SeenOutput]:
    """An output in the sample of its worst element, if it is a waveform or a picture."""
    pair = output.pair
    if pair is None or not pair.reference.size:
        return
    words = (*sides, "difference")
    is_finite = all(bool(np.isfinite(values).all()) for values in (pair.reference, pair.candidate))
    index = () if output.worst is None else output.worst.index
    if (waves := wave_of(pair)) is not None:
        named = tuple(zip(words, waves, strict=True))
        yield SeenOutput(output.name, str(pair.sample), is_finite, named, ())
    elif (pictures := picture_of(pair, index)) is not None:
        place = f"{pair.sample}{_plane_in_words(index, pair.reference.shape)}"
        yield SeenOutput(output.name, place, is_finite, (), tuple(zip(words, pictures, strict=True)))


def _plane_in_words(index: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Which plane of an output a picture shows, where there are several.

    >>> _plane_in_words((0, 2, 5, 7), (1, 3, 64, 64)), _plane_in_words((), (1, 64, 64))
    (', the plane [0, 2]', '')
    """
    if math.prod(shape[:-2]) == 1:
        return ""
    return f", the plane [{', '.join(map(str, index[:-2] or (0,) * (len(shape) - 2)))}]"


def _wave_data(word: str, wave: Wave) -> dict[str, Any]:
    """A waveform as a script draws it."""
    return {"word": word, "samples": wave.samples, "low": list(wave.low), "high": list(wave.high)}
