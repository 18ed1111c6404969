"""The parts of messages: safe names, short lists, counts, functions and options as the user types them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from wnconvert.errors import MOST_LISTED, ArgumentError, WnconvertError

__all__ = [
    "REPORT_BUG",
    "counted",
    "few",
    "fitting_function",
    "kind_in_words",
    "listed",
    "option",
    "options_as_python",
    "printable",
    "raise_listed",
    "refuse_other_than_path",
    "short_repr",
    "to_install",
    "told",
]


#: The fix of an error that no input should cause.
REPORT_BUG = "this is a bug of wnconvert: please report it with the output of --dry-run --json"


def printable(text: str) -> str:
    r"""A text with its control characters spelled out, so that names in files cannot control a terminal.

    >>> print(printable("conv" + chr(27) + "[2J.weight"))
    conv\x1b[2J.weight
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(count: int, noun: str) -> str:
    """A number and a noun, with an s if there is not exactly one.

    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Names with commas between them; of many only the first ``most``.

    >>> listed(["a", "b"]), listed("abcd", 2)
    ('a, b', 'a, b and 2 more')
    """
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def few(lines: Iterable[str], most: int = MOST_LISTED) -> list[str]:
    """Lines as they are; of many only the first ``most``, and a line that counts the others.

    >>> few("abcd", 2)
    ['a', 'b', 'and 2 more']
    """
    every = list(lines)
    return [*every[:most], *([f"and {len(every) - most} more"] if len(every) > most else [])]


def told(said: Iterable[tuple[str, str]], one: str = ": ", several: str = ": ") -> list[str]:
    """Notes on many places, each a place and what is said of it: what is said of several is said once.

    ``one`` stands between a place and what is said, ``several`` between places and what is said.

    >>> told([("a", "zero"), ("b", "NaN"), ("c", "zero")])
    ['a, c: zero', 'b: NaN']
    >>> told([("a", "no g"), ("b", "no g")], " is refused: ", " are refused: ")
    ['a, b are refused: no g']
    """
    places: dict[str, list[str]] = {}
    for place, what in said:
        places.setdefault(what, []).append(place)
    return few(
        f"{listed(of_one)}{one if len(of_one) == 1 else several}{what}" for what, of_one in places.items()
    )


def to_install(*packages: str) -> str:
    """The command that brings packages which are missing: the fix where something needs them.

    >>> to_install("onnx", "onnxruntime")
    'pip install onnx onnxruntime'
    """
    return f"pip install {' '.join(packages)}"


def short_repr(heading: str, names: Iterable[str], *more: str) -> str:
    """A result as Python shows it, in three lines: a heading, the first names, and the rest of what to know.

    >>> print(short_repr("Plan: 5 layers", ["a", "b", "c", "d", "e"], "", "1 note"))
    Plan: 5 layers
      a, b, c and 2 more
      1 note
    """
    lines = [heading, listed(map(printable, names), 3), "; ".join(text for text in more if text)]
    return "\n  ".join(line for line in lines if line)


def raise_listed(
    kind: type[WnconvertError], heading: str, items: Sequence[tuple[str, str]], *, fix: str = ""
) -> None:
    """Raise one error for all ``items``, each a place and what is wrong there; nothing if there are none.

    A single item is an error by itself; several are listed under ``heading``.

    >>> from wnconvert.errors import LayerError
    >>> raise_listed(LayerError, "2 layers cannot be folded", [("layer a", "no g"), ("layer b", "no v")])
    Traceback (most recent call last):
    wnconvert.errors.LayerError: 2 layers cannot be folded:
      layer a: no g
      layer b: no v
    """
    if len(items) == 1:
        raise kind(items[0][1], where=items[0][0], fix=fix)
    if items:
        raise kind(heading, items=items, fix=fix)


# -- arguments of a wrong kind


def fitting_function(value: object) -> str:
    """The functions that take a value of its kind, in words; ``""`` if none does.

    >>> fitting_function("model.pt")
    'for files there are the functions that end in _file (such as fold_file)'
    """
    if isinstance(value, (str, os.PathLike)):
        return "for files there are the functions that end in _file (such as fold_file)"
    if isinstance(value, Mapping):
        return "for state dicts there are the functions that end in _state_dict (such as fold_state_dict)"
    if callable(getattr(value, "named_parameters", None)) and not isinstance(value, type):
        return "for modules there are the functions that end in _module (such as fold_module)"
    if callable(getattr(value, "read", None)):
        return "for what is not on a disk: fold_state_dict(torch.load(…, weights_only=True))"
    return ""


def kind_in_words(value: object) -> str:
    """The class of a value, with its article.

    >>> kind_in_words(1), kind_in_words("model.pt")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeio' else 'a'} {name}"


def refuse_other_than_path(value: object, what: str = "a file") -> None:
    """Raise ``ArgumentError`` if a value cannot name a file; ``what`` says what it should be the name of.

    An empty text, which a shell makes of a variable that is not set, would be the path of the current folder.
    """
    if not isinstance(value, (str, os.PathLike)):
        fix = f"pass its name, a str or an os.PathLike[str]; {fitting_function(value)}".rstrip("; ")
        raise ArgumentError(f"{kind_in_words(value)} is not the name of {what}", fix=fix)
    if not os.fspath(value):
        raise ArgumentError(f"the name of {what} is empty", fix="is a variable not set? name it")


# -- options: the command line's, and the same as arguments in Python

_in_python: ContextVar[bool] = ContextVar("in_python", default=False)


def option(name: str, *value: object, glob: str = "", metavar: str = "") -> str:
    """An option as the user types it: on the command line, or inside ``options_as_python`` in Python.

    ``name`` is spelled as in Python. ``value`` is True for a flag, None, a number or a word, or several words
    for an option that can be repeated; ``glob`` is a pattern, which a shell needs quoted; ``metavar`` stands
    for any value.

    >>> option("zero_rows", "zero"), option("dim", None), option("force", True), option("layers", glob="a.*")
    ('--zero-rows zero', '--dim none', '--force', "--layers 'a.*'")
    >>> with options_as_python():
    ...     option("zero_rows", "zero"), option("dim", None), option("like", metavar="REF")
    ('zero_rows="zero"', 'dim=None', 'like=…')
    >>> with options_as_python():
    ...     option("atol", "1e-05")
    'atol=1e-05'
    >>> option("strip_prefix", "module.", "dec.")
    '--strip-prefix module. --strip-prefix dec.'
    """
    if _in_python.get():
        if glob:
            return f"{name}='{glob}'"
        given = [str(each) if _is_bare(each) else f'"{each}"' for each in value]
        return f"{name}=[{', '.join(given)}]" if len(given) > 1 else f"{name}={given[0] if given else '…'}"
    dashed = f"--{name.replace('_', '-')}"
    if glob or metavar:
        return f"{dashed} '{glob}'" if glob else f"{dashed} {metavar}"
    if not value or value[0] is True:
        return dashed
    return " ".join(f"{dashed} {'none' if each is None else each}" for each in value)


def _is_bare(value: object) -> bool:
    """Whether Python has a value without quotes: what is no text, and a number that was rounded to one."""
    if not isinstance(value, str):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


@contextmanager
def options_as_python() -> Iterator[None]:
    """Messages that are made inside spell options as Python does, not as the command line does."""
    token = _in_python.set(True)
    try:
        yield
    finally:
        _in_python.reset(token)
