"""An output as a page shows it: a waveform, which can be heard where it is sound, or a picture."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.tensors.blocks import Array, Floats
from wnconvert.verbs.models.proof.outputs import OutputPair

__all__ = ["Picture", "Wave", "picture_of", "wave_of"]


#: So many columns a waveform is drawn with: least and greatest of the samples that fall into each.
_COLUMNS = 480
#: What is shorter is no sound; so much of a longer one is in the page, at this rate.
_LEAST_HEARD, _MOST_HEARD, RATE = 2000, 3 * 22050, 22050
_LOUDEST = 1.05
#: A picture has at least so many rows and columns, and is shown with at most so many.
_LEAST_PIXELS, _MOST_PIXELS = 8, 256


@dataclass(frozen=True, slots=True)
class Wave:
    """A waveform: its number of samples, and of each column the least and the greatest one.

    ``sound`` is the first seconds as a data: URI of a WAV file; empty where it is no sound.
    """

    samples: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    sound: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a data: URI of a PNG file, its rows and columns, and the values of black and white."""

    source: str
    rows: int
    columns: int
    black: float
    white: float


def wave_of(pair: OutputPair) -> tuple[Wave, Wave, Wave] | None:
    """The reference, the candidate and their difference; None of what is not one row of real floats."""
    a, b = (_row(values) for values in (pair.reference, pair.candidate))
    if a is None or b is None:
        return None
    heard = a.size >= _LEAST_HEARD and bool(np.abs(a).max() <= _LOUDEST)
    return _wave(a, heard=heard), _wave(b, heard=heard), _wave(b - a, heard=False)


def _row(values: Array) -> Floats | None:
    if values.dtype.kind in "bciu" or max(values.shape, default=0) != values.size or values.size < 2:
        return None
    return np.nan_to_num(values.reshape(-1).astype(np.float64), posinf=0, neginf=0)


def _wave(row: Floats, *, heard: bool) -> Wave:
    edges = np.unique(np.linspace(0, row.size, min(row.size, _COLUMNS) + 1).astype(int))[:-1]
    low, high = np.minimum.reduceat(row, edges), np.maximum.reduceat(row, edges)
    return Wave(row.size, _rounded(low), _rounded(high), _wav(row[:_MOST_HEARD]) if heard else "")


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _wav(row: Floats) -> str:
    """A sound as a WAV file of 16 bits. Source: the RIFF specification of Microsoft and IBM, 1991."""
    data = (np.clip(row, -1, 1) * 32767).round().astype("<i2").tobytes()
    head = struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + len(data), b"WAVEfmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return _uri("audio/wav", head + struct.pack("<4sI", b"data", len(data)) + data)


def picture_of(pair: OutputPair, index: tuple[int, ...] = ()) -> tuple[Picture, Picture, Picture] | None:
    """The reference, the candidate and |difference|; None of what has not two axes that are long enough.

    Of more than two axes the plane is that of the element at ``index``, without one the first.
    """
    a, b = (_plane(values, index) for values in (pair.reference, pair.candidate))
    if a is None or b is None:
        return None
    apart = np.abs(b - a)
    return _picture(a, a), _picture(b, a), _picture(apart, np.append(apart, 0))


def _plane(values: Array, index: tuple[int, ...]) -> Floats | None:
    """The last two axes, at the place of an element, or else the first place, of the others."""
    if values.dtype.kind in "bc" or values.ndim < 2 or min(values.shape[-2:]) < _LEAST_PIXELS:
        return None
    plane: Array = values[index[:-2] or (0,) * (values.ndim - 2)]
    down, across = (-(-size // _MOST_PIXELS) for size in plane.shape)
    return np.nan_to_num(plane[::down, ::across].astype(np.float64), posinf=0, neginf=0)


def _picture(plane: Floats, scale: Floats) -> Picture:
    black, white = float(scale.min()), float(scale.max())
    grey = np.clip((plane - black) / ((white - black) or 1), 0, 1)
    source = _uri("image/png", b"".join(_png((grey * 255).round().astype(np.uint8))))
    rows, columns = plane.shape
    return Picture(source, rows, columns, black, white)


def _png(grey: Array) -> Iterator[bytes]:
    """A picture of grey pixels as PNG. Source: RFC 2083."""
    rows, columns = grey.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), grey], axis=1)  # each begins with its filter: none
    yield b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ):
        yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", binascii.crc32(kind + data))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
