"""Changes that fit any run of bytes, and the odd values that others are drawn from."""

from __future__ import annotations

from random import Random

__all__ = ["EDGES", "TEXTS", "edge", "spoilt", "text_of"]


#: Numbers at the edges of what fields hold.
EDGES = (
    *(0, 1, 2, 3, 7, 8, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 65535, 65536),
    *(1 << power for power in (20, 31, 32, 40, 53, 62, 63, 64, 80)),
    *((1 << power) - 1 for power in (31, 32, 53, 63, 64)),
)
#: Texts that are names somewhere and trouble elsewhere.
TEXTS = (
    *("", " ", ".", "..", "/", "a/b", "../x", "/etc/x", "a\\b", "weight", "weight_g", "weight_v", "a.weight"),
    *("a.weight_g", "a.weight_v", "parametrizations.weight.original0", "parametrizations.weight.original1"),
    *("a.parametrizations.weight.original0", "module.a.weight_g", "_orig_mod.a.weight_v", "state_dict"),
    *("\x00", "\n", "\r\n", "\t", "\x1b[2J", "\x1b]0;t\x07", "\x9b", "\u202e", "\ufeff", "é", "é", "ẞ", "😀"),
    *("\ud800", "\udcff", "=1+1", "@a", "|", "`", "<img>", "a" * 300, "é" * 200, "__metadata__", "wnconvert"),
    *("lora_A.weight", "running_mean", "weight_orig", "weight_u", "optimizer", "None", "0", "-1", "1e999"),
)


def edge(random: Random, near: int = 0) -> int:
    """A number at an edge, or one near another."""
    return random.choice([random.choice(EDGES), max(0, near + random.randint(-9, 9)), near * 2, near // 2])


def text_of(random: Random) -> str:
    """A text, and seldom one that no other reader takes: a lone half of a pair of UTF-16."""
    text = random.choice(TEXTS)
    return text if text.isascii() or random.random() < 0.1 else text.encode("utf-8", "ignore").decode()


def spoilt(random: Random, data: bytes) -> bytes:
    """Bytes with one run of them changed, left out, doubled, or all behind it missing."""
    if not data:
        return bytes(random.randbytes(random.randint(0, 16)))
    at = random.randrange(len(data))
    end = min(len(data), at + random.choice([1, 1, 2, 4, 8, 64]))
    other = random.choice([random.randbytes(end - at), b"\0" * (end - at), b"\xff" * (end - at)])
    return random.choice(
        [
            data[:at] + other + data[end:],
            data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :],
            data[:at] + data[end:],
            data[:end] + data[at:],
            data[:at] + random.randbytes(random.randint(1, 9)) + data[at:],
            data[:at],
        ]
    )
