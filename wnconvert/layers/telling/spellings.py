"""Which names of a layer and of a norm belong together, and which hint at a transposed convolution.

Strings only: the last parts of the names of two modules that stand in one.
"""

from __future__ import annotations

import re

__all__ = ["hints_at_transposed", "key_of_norm", "keys_of_layer", "number_of"]


#: A word for a norm, whole but for digits: bn1, norm, batch_norm2d.
_NORM = re.compile(r"(?<![a-z])(?:(?:batch_?)?norm(?:alization)?|bn)(?:[123]d)?(?![a-z])")
#: A word for a layer, likewise.
_LAYER = re.compile(
    r"(?<![a-z])(?:(?:de|t)?conv(?:olution)?(?:_?transposed?)?|linear|lin|dense|fc|c)(?:[123]d)?(?![a-z])"
)
#: Parts of names that transposed convolutions have, or stand below.
_UPWARDS = re.compile(
    r"(?<![a-z])(?:up|ups|upconv|upsampl\w*|upscal\w*|deconv\w*|t?conv_?transp\w*|tconv|transposed?|trans"
    r"|dec|decod\w*|gen|generator)(?![a-z])"
)
_NUMBER = re.compile(r"[0-9]{1,9}")


def key_of_norm(name: str) -> str | None:
    """What is left of the name of a norm without the word for it; None where it is none of a norm's.

    A number stands for the place before it, as in a ``Sequential``.

    >>> key_of_norm("bn1"), key_of_norm("conv1_bn"), key_of_norm("1"), key_of_norm("head")
    ('1', 'conv1', '#0', None)
    """
    if _NUMBER.fullmatch(name):
        return f"#{int(name) - 1}"
    return _rest(name, _NORM)


def keys_of_layer(name: str) -> frozenset[str]:
    """The keys that the norm of a layer of this name may have: the name itself, and what is left of it.

    >>> sorted(keys_of_layer("conv1")), sorted(keys_of_layer("0"))
    (['1', 'conv1'], ['#0'])
    """
    if _NUMBER.fullmatch(name):
        return frozenset((f"#{int(name)}",))
    rest = _rest(name, _LAYER)
    return frozenset((_plain(name), _plain(name) if rest is None else rest))


def number_of(norm: str) -> int | None:
    """The number of a norm whose name is a word for norms and that number; None of any other.

    >>> number_of("bn2"), number_of("norm"), number_of("bn_conv1"), number_of("2")
    (2, None, None, None)
    """
    rest = _rest(norm, _NORM)
    return int(rest) if rest is not None and _NUMBER.fullmatch(rest) else None


def hints_at_transposed(module: str) -> bool:
    """Whether a part of the name of a module says that it makes something larger.

    >>> hints_at_transposed("dec.up1.conv"), hints_at_transposed("layer1.0.conv2")
    (True, False)
    """
    return _UPWARDS.search(module.lower()) is not None


def _rest(name: str, word: re.Pattern[str]) -> str | None:
    """What is left of a name without its one word of a kind; None where it has none, or several."""
    rest, count = word.subn("", name.lower())
    return _plain(rest) if count == 1 else None


def _plain(name: str) -> str:
    return name.lower().strip("_-")
