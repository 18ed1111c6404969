"""An inspection as a page: what is in a checkpoint, its layers, and what to look at."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import CONVENTIONS
from wnconvert.layers.schemes import NAMED_FORMS
from wnconvert.messages import counted
from wnconvert.reports.html.modules import ModuleBranch, module_tree
from wnconvert.reports.html.page import Page
from wnconvert.reports.tables import Table, bytes_text
from wnconvert.reports.text.inspections import inspection_facts, inspection_rows
from wnconvert.verbs.inspection.distributions import Distribution, RowPlaces
from wnconvert.verbs.inspection.magnitudes import Flag, FlagKind, LayerStats, Spread
from wnconvert.verbs.inspection.result import Inspection

__all__ = ["inspection_page"]


#: The facts that the head shows; the others have places of their own.
_HEAD = ("parameters", "buffers", "devices", "state dict", "sibling")
#: The oddities that are no fault.
_CALM = {FlagKind.UNTOUCHED, FlagKind.TIED, FlagKind.PLAIN_SIBLING}
#: The columns that stay where the screen is narrow.
_NARROW = {"layer", "|g| mean", "flags"}
#: The widths of columns, in words of the style.
_WIDTHS = {"flags": "flags", "dim": "short", "rows": "short", "kind": "word long-word"}
_DIGITS = 6
#: The form of layers in a graph that are folded.
_GRAPH = "onnx"


def inspection_page(found: Inspection) -> Page:
    """The page of an inspection: what was not read, such as v without ``full``, is not on it."""
    table = inspection_rows(found)
    facts = list(inspection_facts(found))
    shown = {
        "found": found,
        "size": bytes_text(found.bytes),
        "facts": [(word, text) for word, text in facts if word in _HEAD],
        "health": [text for word, text in facts if word == "health"],
        "faults": list(_faults(found)),
        "norms": [text for word, text in facts if word == "norms"],
        "verbs": list(_verbs(found)),
        "flags": _flag_counts(found.layers),
        "forms": list(dict.fromkeys(layer.form for layer in found.layers)),
        "columns": [(head, _css(head, table)) for head in table.heads],
        "rows": list(zip(table.rows, map(_marks, found.layers), strict=True)),
        "trees": [tree for tree in _trees(found) if tree.children or tree.layers or tree.parameters],
        "has_parameters": found.tensors is not None,
        "has_magnitudes": any(layer.g for layer in found.layers),
        "has_details": any(layer.details for layer in found.layers),
    }
    title = PurePath(found.source).name or found.container
    data = {"layers": [_data(layer) for layer in found.layers]}
    return Page("inspection", title, "wnconvert inspect", shown, data)


#: The most faults that are listed one by one.
_MOST_FAULTS = 100


def _faults(found: Inspection) -> Iterator[tuple[str, int | None]]:
    """Each fault in words, with the place of its layer in the table; None of a tensor that is no layer."""
    faults = found.health.faults if found.health is not None else ()
    places = {(layer.state_dict, layer.name): at for at, layer in enumerate(found.layers)}
    for fault in faults[:_MOST_FAULTS]:
        at = places.get((fault.state_dict, fault.weight))
        details = None if at is None else found.layers[at].details
        if fault.kind == "zero rows" and details is not None:
            yield f"{fault}: {_ranges(details.dead)}", at
        else:
            yield str(fault), at
    if len(faults) > _MOST_FAULTS:
        yield f"and {len(faults) - _MOST_FAULTS:,} more", None


# -- what the verbs would do


@dataclass(frozen=True, slots=True)
class _Verb:
    """A verb, what it would do in words, and the command for it; none where it has nothing to do."""

    name: str
    would: str
    command: str


def _verbs(found: Inspection) -> Iterator[_Verb]:
    forms = {form for state in found.state_dicts for form in state.layers}
    source = _shell_word(found.source)

    def verb(name: str, would: str, options: str = "", *, can: bool) -> _Verb:
        return _Verb(name, would, f"wnconvert {name} {source}{options}" if can and source else "")

    yield verb("fold", found.fold, can=not forms.isdisjoint((*CONVENTIONS, _GRAPH)))
    if kinds := _other_kinds(found, forms):
        would = "with the other normalizations below that fold exactly"
        yield verb("fold", would, f" --kinds {kinds}", can=True)
    if found.split:
        yield verb("split", found.split, can="folded" in forms)
    if found.migrate:
        way = "" if "legacy" in forms else " --to legacy"
        yield verb("migrate", found.migrate, way, can=not forms.isdisjoint(NAMED_FORMS))


def _other_kinds(found: Inspection, forms: set[str]) -> str:
    """The words of ``--kinds`` that fold all that folds, if that is more than weight norm."""
    words = [word for kind in found.kinds for word in kind.kinds.split(",") if word]
    if not words:
        return ""
    return ",".join(dict.fromkeys([*(["weight"] if not forms.isdisjoint(CONVENTIONS) else []), *words]))


def _shell_word(text: str) -> str:
    r"""A text as a word that a shell reads as it is; one with control characters in bash's way.

    >>> print(_shell_word("my model.pt"), _shell_word("a\n'b"))
    'my model.pt' $'a\n\'b'
    """
    if text.startswith("-"):
        return _shell_word(f"./{text}")
    if text.isprintable():
        return shlex.quote(text) if text else ""
    raw = text.encode(errors="surrogateescape")
    return "$'" + "".join(_shell_byte(byte) for byte in raw) + "'"


def _shell_byte(byte: int) -> str:
    char = chr(byte)
    if char in "\\'":
        return f"\\{char}"
    if char == "\n":
        return "\\n"
    return char if 32 <= byte < 127 else f"\\x{byte:02x}"


# -- the table of layers


@dataclass(frozen=True, slots=True)
class _Marks:
    """What filters of a row look at, and its flags: each with its text and how grave it is."""

    form: str
    words: str
    flags: tuple[tuple[str, str], ...]


def _marks(layer: LayerStats) -> _Marks:
    kinds = [flag.kind.value for flag in layer.odd]
    return _Marks(layer.form, "|".join(kinds), tuple((str(flag), _gravity(flag)) for flag in layer.odd))


def _gravity(flag: Flag) -> str:
    if flag.kind in _CALM:
        return "calm"
    return "" if flag.kind in (FlagKind.NEGATIVE_G, FlagKind.ZERO_G) else "bad"


def _flag_counts(layers: Sequence[LayerStats]) -> list[tuple[str, int, str]]:
    """The kinds of flags that there are, each with the number of layers and how grave it is."""
    found = Counter(kind for layer in layers for kind in {flag.kind for flag in layer.odd})
    return [(kind.value, found[kind], _gravity(Flag(kind))) for kind in FlagKind if found[kind]]


def _css(head: str, table: Table) -> str:
    width = _WIDTHS.get(head, "word")
    number = ["number"] if head in table.right else []
    return " ".join([*number, *([] if head == "layer" else [width]), *([] if head in _NARROW else ["wide"])])


# -- the tree of modules


def _trees(found: Inspection) -> Iterator[ModuleBranch]:
    for state in found.state_dicts:
        layers = [(at, layer) for at, layer in enumerate(found.layers) if layer.state_dict == state.path]
        tensors = [tensor for tensor in found.tensors or () if tensor.state_dict == state.path]
        yield module_tree(state.path or "(root)", layers, tensors)


# -- what the page draws


def _data(layer: LayerStats) -> dict[str, Any]:
    """A layer's numbers, with as many digits as a picture shows."""
    details = layer.details
    drawn = {
        "name": f"{layer.state_dict}: {layer.name}" if layer.state_dict else layer.name,
        "g": _spread(layer.g),
        "norm": _spread(layer.norm),
        "ratio": _spread(layer.ratio),
        "rows": layer.rows,
        "odd": [str(flag) for flag in layer.odd],
    }
    if details is None:
        return drawn
    of_rows = {name: _distribution(getattr(details, name)) for name in ("g", "norm", "ratio")}
    places = {name: _places(getattr(details, name)) for name in ("negative", "zero", "dead", "nonfinite")}
    return drawn | {"details": of_rows | {name: each for name, each in places.items() if each}}


def _spread(spread: Spread | None) -> list[float] | None:
    if spread is None:
        return None
    values = (spread.min, spread.q1, spread.median, spread.mean, spread.q3, spread.max)
    return list(map(_rounded, values))


def _distribution(found: Distribution | None) -> list[Any] | None:
    if found is None:
        return None
    return [_rounded(found.least), _rounded(found.greatest), found.zeros, *found.counts]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _places(places: RowPlaces) -> str:
    """Rows by index, as "2 rows: 3, 5" with ranges; "" for none."""
    if not places.count:
        return ""
    return f"{counted(places.count, 'row')}: {_ranges(places)}"


def _ranges(places: RowPlaces) -> str:
    """Rows by index, as "3, 5 to 8"."""
    ranges = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in places.ranges)
    return f"{ranges}{'' if places.is_whole else ', …'}"
