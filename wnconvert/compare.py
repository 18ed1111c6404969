"""Are two checkpoints the same function? Effective weights of both, element by element.

Each side's layers are folded on the fly, so form, container, nesting and names that differ only in form do
not count. There are two readings: the first finds what is equal, and stops in a tensor at the first block
that is not; the second, where something differs, measures how far. Blocks of the same elements of both sides
are compared as bits before anything is computed; two layers whose g and v have the same bits are equal
without a fold.
"""

from __future__ import annotations

import glob
import math
import os
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from wnconvert.blocks import Array, Block, Floats, blocks, scratch
from wnconvert.checkpoint import open_checkpoint
from wnconvert.errors import ArgumentError, WnconvertError
from wnconvert.plan import Fold, plan_fold
from wnconvert.policy import Numbers
from wnconvert.rounding import FORMATS, cast
from wnconvert.schemes import SCHEMES, Selection, find
from wnconvert.sources import Source
from wnconvert.stats import Elements
from wnconvert.tensors import DTYPES, DType, Entry, StateDict, StoredTensor, TensorInfo, Tree
from wnconvert.values import InMemory, stored_tensor
from wnconvert.weightnorm import RowReport, fold_blocks

__all__ = ["COLUMNS", "Comparison", "Difference", "Needed", "Operand", "compare_files", "compare_state_dicts"]

#: The columns of ``Comparison.rows``.
COLUMNS = ("name", "A", "B", "why", "different", "max abs", "max rel", "ulps", "cosine", "SNR dB", "worst")

#: Elements that are compared at a time where bits differ: their float64 scratch stays in cache.
_BITE = 1 << 15


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a difference; ``form`` is ``legacy``, ``parametrize`` or ``plain``."""

    form: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.form} {self.dtype} {'×'.join(map(str, self.shape)) or '()'}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A name on both sides whose tensors are not equal, and why: shape, dtype, bits or values.

    ``different`` counts the elements out of tolerance; ``unmatched`` those among them with a NaN or an
    infinity that the other side does not have. The rest is of values, over all elements that are finite on
    both sides: ``max_abs`` = max |a-b|, ``max_rel`` = max |a-b|/|b| (infinite where only b is 0), ``ulps``
    in units of the coarser dtype, ``cosine``, ``snr_db`` = 10·log₁₀ Σb²/Σ(a-b)², None where they have no
    value. ``worst`` is the index of the first unmatched element, else of the largest |a-b|.
    """

    name: str
    state_dict: str
    a: Operand
    b: Operand
    why: str
    different: int = 0
    unmatched: int = 0
    max_abs: float | None = None
    max_rel: float | None = None
    ulps: int | None = None
    cosine: float | None = None
    snr_db: float | None = None
    worst: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-able data; an infinite ``max_rel`` is null."""
        plain = asdict(self)
        return plain | {key: value if _is_plain(value) else None for key, value in plain.items()}


def _is_plain(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Needed:
    """The least tolerance under which all values that were compared would have passed.

    ``rtol`` beside the atol that was given, ``atol`` beside the rtol (0 where none was): either is enough.
    None: no such tolerance is enough. ``ulps`` is the largest distance.
    """

    rtol: float | None
    atol: float | None
    ulps: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found; true where both sides are equal within the tolerance.

    ``a`` and ``b`` name the sides, ``pairs`` the paths of the state dicts that were compared. Counts are of
    names on both sides: ``compared`` = ``identical`` (bit for bit) + ``within`` the tolerance + the length
    of ``differing``; ``layers`` of them are weight-normalized on either side. ``tolerance_needed`` is None
    where all is equal, where no values differ, or where no tolerance would do (NaN on one side only).
    """

    a: str
    b: str
    pairs: tuple[tuple[str, str], ...]
    differing: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    compared: int
    identical: int
    within: int
    layers: int
    rtol: float | None
    atol: float | None
    tolerance_needed: Needed | None
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return not (self.differing or self.only_in_a or self.only_in_b)

    @property
    def tolerance(self) -> str:
        """The tolerance that was applied, in words."""
        if self.rtol is None and self.atol is None:
            return "1 ulp of the coarser dtype"
        return f"|a-b| <= {self.atol or 0:g} + {self.rtol or 0:g}·|b|"

    @property
    def advice(self) -> str:
        """The options under which it would have passed, in words; empty where all is equal.

        The numbers are rounded up, so they do pass.
        """
        if self:
            return ""
        others = [
            *(["names"] if self.only_in_a or self.only_in_b else []),
            *dict.fromkeys(f"{item.why}s" for item in self.differing if item.why in ("shape", "dtype")),
            *(["integers"] if any(item.why == "bits" for item in self.differing) else []),
            *(["NaN or infinities"] if any(item.unmatched for item in self.differing) else []),
        ]
        ways = self._ways()
        if not others:
            return f"{' or '.join(ways)} would have passed" if ways else "no tolerance would have passed"
        passed = f"; the other values would pass with {' or '.join(ways)}" if ways else ""
        return f"no tolerance would have passed: {', '.join(others)} differ{passed}"

    def _ways(self) -> list[str]:
        need = self.tolerance_needed
        if need is None:
            return []
        ways = []
        if need.atol is not None:
            ways.append(f"--atol {_up(need.atol)}" + (f" --rtol {self.rtol!r}" if self.rtol else ""))
        if need.rtol is not None:
            ways.append(f"--rtol {_up(need.rtol)}" + (f" --atol {self.atol!r}" if self.atol else ""))
        return ways

    def rows(self) -> list[tuple[Any, ...]]:
        """A row for each difference, as :data:`COLUMNS` names them; None where there is no value."""
        several = len(self.pairs) > 1
        return [
            (
                _qualified(item.state_dict, item.name) if several else item.name,
                str(item.a),
                str(item.b),
                item.why,
                item.different if item.why in ("values", "bits") else None,
                item.max_abs,
                item.max_rel,
                item.ulps,
                item.cosine,
                item.snr_db,
                item.worst,
            )
            for item in self.differing
        ]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-able data; README documents it."""
        return {
            "schema": 1,
            "a": self.a,
            "b": self.b,
            "equal": bool(self),
            "state_dicts": [{"a": a, "b": b} for a, b in self.pairs],
            "compared": self.compared,
            "identical": self.identical,
            "within": self.within,
            "different": len(self.differing),
            "layers": self.layers,
            "rtol": self.rtol,
            "atol": self.atol,
            "tolerance": self.tolerance,
            "tolerance_needed": asdict(self.tolerance_needed) if self.tolerance_needed else None,
            "advice": self.advice,
            "differing": [item.to_dict() for item in self.differing],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "notes": list(self.notes),
        }


def _up(value: float) -> str:
    """A number in three digits, never less than it is.

    >>> _up(0.001), _up(0.0010001)
    ('0.001', '0.00101')
    """
    text = f"{value:.2e}"
    if float(text) < value:
        digits, _, exponent = text.partition("e")
        text = f"{float(digits) + 0.01:.2f}e{exponent}"
    return f"{float(text):.3g}" if math.isfinite(float(text)) else repr(value)


# -- the verbs


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    strip_prefix: Iterable[str] = (),
    only: str | Sequence[str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare the effective weights of two checkpoint files of any readable format and form.

    Equal is within 1 ulp of the coarser dtype, or |a-b| <= atol + rtol·|b| where either is given. NaN equals
    NaN; what is no float is compared bit for bit. The first of ``strip_prefix`` that a name begins with is
    taken off, on both sides. ``only`` is the path of the state dict to compare, on whichever side has it,
    or two paths, A's and B's. ``layers`` and ``exclude`` are globs on the names of tensors (weights, and
    all others). ``progress`` is called with the bytes compared and in all.

    Raises ``InputError`` for what cannot be read, ``LayerError`` for a layer that cannot be folded, and
    ``ArgumentError`` where there is nothing to compare, or no telling what with what.

    >>> found = compare_files("fixtures/g_02500000", "fixtures/hifigan.safetensors")
    >>> bool(found), found.layers, found.identical
    (True, 78, 156)
    """
    rules = _rules(rtol, atol, strip_prefix, layers, exclude)
    with _opened(a) as left, _opened(b) as right:
        return _compare(left, right, rules, only=_paths(only), threads=threads, progress=progress)


def compare_state_dicts(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    strip_prefix: Iterable[str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    threads: int | None = None,
) -> Comparison:
    """Compare the effective weights of two state dicts of torch tensors or numpy arrays, in any form.

    Options and errors as for ``compare_files``.

    >>> layer = {"conv.weight_g": np.float32([[10]]), "conv.weight_v": np.float32([[3, 4]])}
    >>> found = compare_state_dicts(layer, {"conv.weight": np.float32([[6, 8.001]])})
    >>> bool(found), found.advice
    (False, '--atol 0.00101 or --rtol 0.000126 would have passed')
    """
    rules = _rules(rtol, atol, strip_prefix, layers, exclude)
    return _compare(_memory("A", a), _memory("B", b), rules, threads=threads)


# -- the sides


@dataclass(frozen=True, slots=True)
class _Side:
    """A or B: what it is called, what it holds, and its elements."""

    label: str
    tree: Tree
    elements: Elements


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[_Side]:
    checkpoint = open_checkpoint(Path(path))
    with Source(checkpoint.shards) as source:
        yield _Side(os.fspath(path), checkpoint.tree, source)


class _Bits(InMemory):
    """Values as the files have them: native floats, all else as bits."""

    def whole(self, tensor: StoredTensor) -> Array:
        dtype = tensor.info.dtype
        kind = dtype.numpy() if dtype.foldable else np.dtype(f"V{dtype.itemsize}")
        return _raw(self.values[tensor.info.name], tensor.info.name).view(kind).reshape(tensor.info.shape)


def _memory(label: str, state_dict: Mapping[str, Any]) -> _Side:
    values = {str(name): value for name, value in state_dict.items()}
    entries = tuple(Entry(name, _stored(name, value)) for name, value in values.items())
    if not any(entry.tensor for entry in entries):
        for name, value in values.items():
            if isinstance(value, Mapping):
                raise ArgumentError(
                    f"there is no tensor in it, but a mapping at {name!r}",
                    where=label,
                    fix=f"pass checkpoint[{name!r}]",
                )
    return _Side(label, Tree((StateDict("", entries),)), _Bits(values))


def _stored(name: str, value: Any) -> StoredTensor | None:
    stored = stored_tensor(name, value)
    if stored is None or stored.info.dtype.bits % 8 == 0:
        return stored
    return replace(stored, info=replace(stored.info, dtype=DTYPES["uint8"]))  # torch counts such in bytes


def _raw(value: Any, name: str) -> Array:
    """The bytes of a tensor's elements in C order; no copy of a contiguous tensor in the CPU's memory."""
    if isinstance(value, (np.ndarray, np.generic)):
        native = np.asarray(value, value.dtype.newbyteorder("="))
        return np.ascontiguousarray(native).reshape(-1).view(np.uint8)
    if value.device.type == "meta" or value.is_quantized:
        raise ArgumentError("it is no plain tensor with numbers", where=name, fix="exclude it")
    import torch  # it is there: the value is its tensor

    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw: Array = plain.view(torch.uint8).numpy()
    return raw


# -- which names are compared with which


@dataclass(frozen=True, slots=True)
class _Rules:
    """The arguments that both sides share."""

    rtol: float | None
    atol: float | None
    prefixes: tuple[str, ...]
    selection: Selection

    def stripped(self, name: str) -> str:
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        return name.removeprefix(prefix)

    def wants(self, name: str) -> bool:
        """Whether a name is compared: a glob may mean it with its prefix or without."""
        names = {name, self.stripped(name)}
        chosen = Selection(layers=self.selection.layers)
        kept = Selection(exclude=self.selection.exclude)
        return any(map(chosen.wants, names)) and all(map(kept.wants, names))

    def check(self, names: Collection[str]) -> None:
        """Refuse globs that leave nothing, or choose nothing."""
        if not names:
            raise ArgumentError(
                "there is nothing to compare: no tensor has a name that is wanted",
                fix="other globs for --layers and --exclude",
            )
        for glob_ in self.selection.layers:
            if not any(map(Selection(layers=(glob_,)).wants, names)):
                raise ArgumentError(f"--layers {glob_!r} matches no name", fix="leave it out, or mend it")


def _rules(
    rtol: float | None,
    atol: float | None,
    strip_prefix: Iterable[str],
    layers: Iterable[str],
    exclude: Iterable[str],
) -> _Rules:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ArgumentError(f"{name} {value} is no tolerance", fix="a number that is 0 or more")
    return _Rules(rtol, atol, _texts(strip_prefix), Selection(_texts(layers), _texts(exclude)))


def _texts(texts: Iterable[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _paths(only: str | Sequence[str]) -> tuple[str, ...]:
    paths = _texts(only)
    if len(paths) > 2:
        raise ArgumentError(
            f"only names {len(paths)} state dicts", fix="--only once for both sides, or twice: A's, then B's"
        )
    return paths


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor by the name of what it computes: v with its g, or a plain tensor.

    ``key`` is that name with its prefix.
    """

    name: str
    key: str
    form: str
    values: StoredTensor
    g: StoredTensor | None = None
    dim: int | None = None

    @property
    def dtype(self) -> DType:
        return self.values.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.info.shape

    @property
    def operand(self) -> Operand:
        return Operand(self.form, str(self.dtype), self.shape)


def _state_pairs(
    a: _Side, b: _Side, only: tuple[str, ...]
) -> tuple[list[tuple[StateDict, StateDict]], list[str]]:
    """The state dicts to compare, and notes on those that are left out."""
    states = [[state for state in side.tree.state_dicts if state.tensors] for side in (a, b)]
    for side, found in zip((a, b), states, strict=True):
        if not found:
            raise ArgumentError("there is nothing to compare: no tensor is in it", where=side.label)
    if not only and {state.path for state in states[0]} == {state.path for state in states[1]}:
        others = {state.path: state for state in states[1]}
        return [(state, others[state.path]) for state in states[0]], []
    both = only if len(only) == 2 else (only or (None,)) * 2
    chosen = [_named(found, path) for found, path in zip(states, both, strict=True)]
    if only and (chosen == [None, None] or (len(only) == 2 and None in chosen)):
        missing = only[chosen.index(None) % len(only)]
        raise ArgumentError(
            f"there is no state dict at {missing!r}: {_offered(a, states[0])}; {_offered(b, states[1])}",
            fix="--only one of these, once for both sides, or twice: A's, then B's",
        )
    picked = []
    for at, found in enumerate(states):
        candidates = [state for state in found if _has_layers(state)] or found
        state = chosen[at] if only and chosen[at] else None
        if state is None and len(candidates) > 1:
            raise ArgumentError(
                "it is not plain which state dicts are to be compared: "
                f"{_offered(a, states[0])}; {_offered(b, states[1])}",
                fix=f"--only {_shown(candidates[0])} (or another), once for both, or twice: A's, then B's",
            )
        picked.append(state or candidates[0])
    notes = [
        f"{side.label}: {', '.join(left)} {'is' if len(left) == 1 else 'are'} not compared"
        for side, found, one in zip((a, b), states, picked, strict=True)
        if not only and (left := [_shown(state) for state in found if state is not one])
    ]
    return [(picked[0], picked[1])], notes


def _named(states: Sequence[StateDict], path: str | None) -> StateDict | None:
    return next((state for state in states if _shown(state) == path), None)


def _shown(state: StateDict) -> str:
    return state.path or "."


def _offered(side: _Side, states: Sequence[StateDict]) -> str:
    return f"{side.label} has {', '.join(map(_shown, states))}"


def _has_layers(state: StateDict) -> bool:
    found = find(tensor.info for tensor in state.tensors.values())
    return bool(found.layers or found.refused)


def _items(side: _Side, state: StateDict, rules: _Rules) -> tuple[dict[str, _Item], list[str]]:
    """What one state dict computes, by name, and notes. Raises ``LayerError`` for a layer that is refused."""
    tensors = state.tensors
    refused = [item.name for item in find(tensor.info for tensor in tensors.values()).refused]
    unwanted = {name for name in refused if not rules.wants(name)}
    try:
        plan = plan_fold(
            Tree((state,)), "torch", selection=Selection(exclude=tuple(map(glob.escape, unwanted)))
        )
    except WnconvertError as error:
        error.where = f"{side.label}: {error.where}" if error.where else side.label
        raise
    items: dict[str, _Item] = {}
    for step in plan.state_dicts[0].steps:
        if isinstance(step, Fold):
            layer = step.layer
            g, v = tensors[layer.g.name], tensors[layer.v.name]
            item = _Item(rules.stripped(step.name), step.name, layer.form, v, g, layer.dim)
        elif step.name not in tensors or (unwanted and _weight_of(step.name) in unwanted):
            continue
        else:
            item = _Item(rules.stripped(step.name), step.name, "plain", tensors[step.name])
        if not rules.wants(step.name):
            continue
        if item.name in items:
            raise ArgumentError(
                f"two of its names are {item.name!r} without the prefix",
                where=side.label,
                fix="a longer --strip-prefix",
            )
        items[item.name] = item
    others = sum(entry.tensor is None for entry in state.entries)
    notes = [f"{side.label}: {note}" for note in plan.notes]
    if others:
        what = "one value that is no tensor is" if others == 1 else f"{others} values that are no tensors are"
        notes.append(f"{side.label}: {what} not compared")
    return items, notes


def _weight_of(key: str) -> str:
    """The weight that a key would belong to as part of a layer, or the key itself."""
    for scheme in SCHEMES:
        for pattern in (scheme.g, scheme.v, scheme.beside):
            if match := pattern.fullmatch(key):
                return match["owner"] + match["param"]
    return key


def _hint(a: Iterable[str], b: Iterable[str]) -> str:
    """What to strip where no name is on both sides, but would be without the prefix that all share."""
    a, b = set(a), set(b)
    if not a or not b or a & b:
        return ""
    prefix_a, prefix_b = _common(a), _common(b)
    while prefix_a and prefix_b and prefix_a.split(".")[-2] == prefix_b.split(".")[-2]:
        prefix_a, prefix_b = (prefix[: prefix.rfind(".", 0, -1) + 1] for prefix in (prefix_a, prefix_b))
    if not {name.removeprefix(prefix_a) for name in a} & {name.removeprefix(prefix_b) for name in b}:
        return ""
    said = [f"--strip-prefix {prefix}" for prefix in (prefix_a, prefix_b) if prefix]
    return f"the names differ by a prefix: {' '.join(said)} takes it off"


def _common(names: Collection[str]) -> str:
    """The modules in which all names are, with the last dot."""
    first, last = min(names), max(names)
    same = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[: first.rfind(".", 0, same) + 1]


def _qualified(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@dataclass(frozen=True, slots=True)
class _Pair:
    """A name on both sides."""

    state_dict: str
    a: _Item
    b: _Item

    @property
    def why(self) -> str:
        """What differs before an element is read, if anything."""
        if self.a.shape != self.b.shape:
            return "shape"
        floats = self.a.dtype.foldable and self.b.dtype.foldable
        return "" if floats or self.a.dtype == self.b.dtype else "dtype"

    @property
    def coarser(self) -> DType:
        """The dtype with fewer digits."""
        return min(self.a.dtype, self.b.dtype, key=lambda dtype: _DIGITS.get(dtype.name, 0))

    @property
    def same_layout(self) -> bool:
        """Whether both are layers that the same bits of g and v make equal."""
        a, b = self.a, self.b
        if a.g is None or b.g is None:
            return False
        halves = [(item.dim, item.dtype, item.g.info.dtype, item.g.info.numel) for item in (a, b) if item.g]
        return halves[0] == halves[1]

    def differs(self, why: str) -> Difference:
        return Difference(self.a.name, self.state_dict, self.a.operand, self.b.operand, why)


_DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def _compare(
    a: _Side,
    b: _Side,
    rules: _Rules,
    *,
    only: tuple[str, ...] = (),
    threads: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    states, notes = _state_pairs(a, b, only)
    pairs: list[_Pair] = []
    only_in_a: list[str] = []
    only_in_b: list[str] = []
    several = len(states) > 1
    names: set[str] = set()
    for state_a, state_b in states:
        items_a, notes_a = _items(a, state_a, rules)
        items_b, notes_b = _items(b, state_b, rules)
        pairs += [
            _Pair(state_a.path, item, items_b[name]) for name, item in items_a.items() if name in items_b
        ]
        path = state_a.path if several else ""
        only_in_a += [_qualified(path, name) for name in items_a if name not in items_b]
        only_in_b += [_qualified(path, name) for name in items_b if name not in items_a]
        names |= {
            name for items in (items_a, items_b) for item in items.values() for name in (item.name, item.key)
        }
        hint = _hint(items_a, items_b)
        notes += [*notes_a, *notes_b, *([hint] if hint else [])]
    rules.check(names)
    with _Run(a, b, rules, pairs, threads=threads, progress=progress) as run:
        verdicts = run.verdicts()
        measured = run.measures(verdicts) if "different" in verdicts else {}
    differing: list[Difference] = []
    for at, (pair, verdict) in enumerate(zip(pairs, verdicts, strict=True)):
        if pair.why or verdict == "different":
            differing.append(measured[at].difference(pair) if at in measured else pair.differs(pair.why))
    return Comparison(
        a=a.label,
        b=b.label,
        pairs=tuple((state_a.path, state_b.path) for state_a, state_b in states),
        differing=tuple(differing),
        only_in_a=tuple(only_in_a),
        only_in_b=tuple(only_in_b),
        compared=len(pairs),
        identical=verdicts.count("identical"),
        within=verdicts.count("within"),
        layers=sum(pair.a.g is not None or pair.b.g is not None for pair in pairs),
        rtol=rules.rtol,
        atol=rules.atol,
        tolerance_needed=_needed(measured.values()),
        notes=(*notes, *_dtype_notes(pairs), *run.notes()),
    )


def _dtype_notes(pairs: Iterable[_Pair]) -> Iterator[str]:
    """Floats that are not of one dtype on both sides."""
    names: dict[tuple[DType, DType, DType], list[str]] = {}
    for pair in pairs:
        if not pair.why and pair.a.dtype != pair.b.dtype:
            names.setdefault((pair.a.dtype, pair.b.dtype, pair.coarser), []).append(pair.a.name)
    for (a, b, coarser), of_one in names.items():
        who = f"{of_one[0]} is" if len(of_one) == 1 else f"{len(of_one)} tensors are"
        yield f"{who} {a} in A and {b} in B: compared as {coarser}"


# -- the two readings


class _Stopped(Exception):  # noqa: N818 - no error: another thread has one, or the answer is known
    """Nobody waits for this any more."""


_T = TypeVar("_T")
#: The same elements of both sides, and where they begin; valid until the next are asked for.
_Pieces: TypeAlias = Generator[tuple[int, Array, Array], None, None]


class _Run:
    """Both readings, on several threads; a name is the unit of work, so the order of sums is always the same.

    ``fold_blocks`` calls with its blocks where they are to be asked for, so each fold runs on a thread of its
    own, which waits while its block is at work.
    """

    def __init__(
        self,
        a: _Side,
        b: _Side,
        rules: _Rules,
        pairs: Sequence[_Pair],
        *,
        threads: int | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.sides = a, b
        self.rules = rules
        self.pairs = pairs
        self.progress = progress
        self.done, self.total = 0, 0
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.threads = threads or _processors()
        self.workers = ThreadPoolExecutor(self.threads)
        # One for each worker and side: one pool would start more threads than work, each with its scratch.
        self.folds = [(ThreadPoolExecutor(1), ThreadPoolExecutor(1)) for _ in range(self.threads)]
        self.local = threading.local()
        self.reports: dict[tuple[int, int], RowReport] = {}

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.workers.shutdown(wait=True, cancel_futures=True)
        for folds in self.folds:
            for fold in folds:
                fold.shutdown(wait=True)

    def verdicts(self) -> list[str]:
        """Of each pair: ``identical``, ``within`` the tolerance, or ``different``."""
        found = self.each(self.verdict, [at for at, pair in enumerate(self.pairs) if not pair.why])
        return [found.get(at, "") for at in range(len(self.pairs))]

    def measures(self, verdicts: Sequence[str]) -> dict[int, _Measure]:
        """How far pairs are apart, of all that are not identical: each has its part in what is needed."""
        return self.each(
            self.measure, [at for at, verdict in enumerate(verdicts) if verdict in ("within", "different")]
        )

    def notes(self) -> Iterator[str]:
        """Zero rows, in order."""
        for (at, side), report in sorted(self.reports.items()):
            if note := Numbers("zero", allow_nonfinite=True).note(report):
                yield f"{self.sides[side].label}: layer {self.pairs[at].a.name}: {note}"

    def each(self, work: Callable[[int], _T], jobs: Sequence[int]) -> dict[int, _T]:
        """Do some pairs, the largest first."""
        size = {at: self.pairs[at].a.values.info.nbytes for at in jobs}
        self.total += sum(size.values())
        order = iter(sorted(jobs, key=lambda at: -size[at]))
        results: dict[int, _T] = {}

        def worker(number: int) -> None:
            self.local.folds = self.folds[number]
            while not self.stop.is_set():
                with self.lock:
                    at = next(order, None)
                if at is None:
                    return
                results[at] = work(at)
                with self.lock:
                    self.done += size[at]
                    self.progress(self.done, self.total)

        futures = [self.workers.submit(worker, number) for number in range(min(self.threads, len(jobs)))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            errors = [future.exception() for future in futures if future.done()]
            if any(errors):
                self.stop.set()
                errors = [future.exception() for future in futures]
                raise next(error for error in errors if error and not isinstance(error, _Stopped))
        except BaseException:
            self.stop.set()
            raise
        return results

    def verdict(self, at: int) -> str:
        pair = self.pairs[at]
        if pair.same_layout and self.same_halves(pair):
            return "identical"
        verdict = "identical"
        judge = _Judge(self.rules, pair.coarser)
        with closing(self.pieces(at)) as pieces:
            for _, left, right in pieces:
                if _same_bits(left, right):
                    continue
                if not pair.a.dtype.foldable or not all(map(judge.within, _bites(left), _bites(right))):
                    return "different"
                verdict = "within"
        return verdict

    def same_halves(self, pair: _Pair) -> bool:
        g, h = (
            side.elements.whole(item.g)
            for side, item in zip(self.sides, (pair.a, pair.b), strict=True)
            if item.g
        )
        if not _same_bits(g.reshape(-1), h.reshape(-1)):
            return False
        with closing(self.plain(pair.a, pair.b)) as pieces:
            return all(_same_bits(left, right) for _, left, right in pieces)

    def measure(self, at: int) -> _Measure:
        pair = self.pairs[at]
        measure = _Measure(_Judge(self.rules, pair.coarser), bits=not pair.a.dtype.foldable)
        with closing(self.pieces(at)) as pieces:
            for start, left, right in pieces:
                if measure.bits:
                    measure.add_bits(start, left, right)
                    continue
                same = _same_bits(left, right)
                for first in range(0, left.size, _BITE):
                    x, y = left[first : first + _BITE], right[first : first + _BITE]
                    if same:
                        measure.add_same(x)
                    else:
                        measure.add(start + first, x, y)
        return measure

    def pieces(self, at: int) -> _Pieces:
        """The effective weights of both sides."""
        pair = self.pairs[at]
        if pair.a.g is None and pair.b.g is None:
            yield from self.plain(pair.a, pair.b)
        elif pair.a.g is None:
            with closing(self.folded(at, 1)) as folded:
                yield from ((start, right, left) for start, left, right in self.beside(folded, 0, pair.a))
        elif pair.b.g is None:
            with closing(self.folded(at, 0)) as folded:
                yield from self.beside(folded, 1, pair.b)
        else:
            with closing(self.folded(at, 0)) as left, closing(self.folded(at, 1)) as right:
                yield from _abreast(left, right)

    def plain(self, a: _Item, b: _Item) -> _Pieces:
        """Two tensors as they are stored."""
        raw_a, raw_b = (_whole_bytes(item.values) for item in (a, b))
        read_a, read_b = self.sides[0].elements.reader(raw_a), self.sides[1].elements.reader(raw_b)
        size = max(raw_a.info.dtype.itemsize, raw_b.info.dtype.itemsize)
        for block in blocks((raw_a.info.numel,), None, size):
            self.check()
            yield block.start, read_a(block).reshape(-1), read_b(block).reshape(-1)

    def beside(self, folded: Iterator[Array], side: int, item: _Item) -> _Pieces:
        """The blocks of a fold, and the same elements of a plain tensor."""
        read = self.sides[side].elements.reader(item.values)
        at = 0
        for block in folded:
            yield at, block, read(Block(at, (1, 1, block.size), 0)).reshape(-1)
            at += block.size

    def folded(self, at: int, side: int) -> Generator[Array, None, None]:
        """The weights of a layer, block by block, each valid until the next one is asked for."""
        item, elements = (self.pairs[at].a, self.pairs[at].b)[side], self.sides[side].elements
        g = elements.whole(item.g or item.values)
        values = elements.reader(item.values)
        offered: SimpleQueue[Array | None] = SimpleQueue()
        wanted: SimpleQueue[bool] = SimpleQueue()

        def read(block: Block) -> Array:
            self.check()  # of two passes, the first writes nothing
            return values(block)

        def write(_: Block, w: Array) -> None:
            offered.put(w.reshape(-1))
            if not wanted.get():
                raise _Stopped

        def fold() -> RowReport:
            try:
                return fold_blocks(read, write, item.shape, item.dim, g, item.dtype, item.dtype)
            finally:
                offered.put(None)

        future: Future[RowReport] = self.local.folds[side].submit(fold)
        try:
            while (w := offered.get()) is not None:
                self.check()
                yield w
                wanted.put(True)
            self.reports[at, side] = future.result()
        finally:
            wanted.put(False)

    def check(self) -> None:
        if self.stop.is_set():
            raise _Stopped


def _processors() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)


def _whole_bytes(tensor: StoredTensor) -> StoredTensor:
    """A tensor whose elements are no whole bytes (4 and 6 bits) as bytes; any other as it is."""
    if tensor.info.dtype.bits % 8 == 0:
        return tensor
    info = TensorInfo(tensor.info.name, DTYPES["uint8"], (tensor.info.nbytes,))
    return StoredTensor(info, tensor.data, 0, (1,))


def _abreast(left: Iterator[Array], right: Iterator[Array]) -> _Pieces:
    """Two runs of blocks, cut where either is."""
    at = 0
    x = y = np.empty(0)
    while True:
        if not x.size:
            x = next(left, x)
        if not y.size:
            y = next(right, y)
        count = min(x.size, y.size)
        if not count:
            return
        yield at, x[:count], y[:count]
        x, y, at = x[count:], y[count:], at + count


def _bites(array: Array) -> Iterator[Array]:
    return (array[at : at + _BITE] for at in range(0, array.size, _BITE))


# -- the numbers


def _same_bits(x: Array, y: Array) -> bool:
    if x.dtype != y.dtype:
        return False
    codes = f"u{x.dtype.itemsize if x.dtype.itemsize in (1, 2, 4, 8) else 1}"
    x, y = x.view(codes), y.view(codes)
    return not np.not_equal(x, y, out=scratch("differ", x.shape, np.bool_)).any()


def _ordered(x: Array, use: str) -> Array:
    """Floats as integers in the same order, one apart where they are neighbours; both zeros are 0."""
    size = x.dtype.itemsize
    codes, sign, spare = (
        x.view(f"i{size}"),
        scratch("sign", x.shape, f"i{size}"),
        scratch(use, x.shape, f"i{size}"),
    )
    np.right_shift(codes, 8 * size - 1, out=sign)  # all ones where negative
    np.right_shift(sign.view(f"u{size}"), 1, out=spare.view(f"u{size}"))
    np.bitwise_xor(codes, spare, out=spare)  # -1 - magnitude
    ordered: Array = np.subtract(spare, sign, out=spare)
    return ordered


def _apart(x: Array, y: Array) -> Array:
    """How many neighbours apart ordered codes are, without overflow where they are of finite floats."""
    code = f"u{x.dtype.itemsize}"
    low = np.minimum(x, y, out=scratch("sign", x.shape, x.dtype))
    high = np.maximum(x, y, out=x)
    apart: Array = np.subtract(high.view(code), low.view(code), out=x.view(code))
    return apart


@dataclass(slots=True)
class _Gap:
    """Elements of both sides as float64, |a-b|, and how many units of the coarser dtype that is.

    ``unmatched`` are elements that are not finite on both sides, and not equal; where they are not finite
    all numbers are 0. ``out`` are those out of tolerance. Arrays may be scratch.
    """

    a: Floats
    b: Floats
    d: Floats
    ulps: Array
    unmatched: NDArray[np.bool_]
    out: NDArray[np.bool_]


class _Judge:
    """The tolerance, applied to elements of two float dtypes."""

    def __init__(self, rules: _Rules, coarser: DType) -> None:
        self.by_ulps = rules.rtol is None and rules.atol is None
        self.rtol, self.atol = rules.rtol or 0.0, rules.atol or 0.0
        self.form = FORMATS.get(coarser.name, FORMATS["float64"])

    def within(self, left: Array, right: Array) -> bool:
        """Whether all elements are within tolerance."""
        if self.by_ulps:
            x, y = _ordered(self.coarse(left), "left"), _ordered(self.coarse(right), "right")
            inf = self.form.inf
            if -inf < min(x.min(), y.min()) and max(x.max(), y.max()) < inf:
                return int(_apart(x, y).max()) <= 1
        return not self.gap(left, right).out.any()

    def coarse(self, x: Array) -> Array:
        return x if x.dtype == self.form.dtype else cast(x, self.form.dtype)

    def gap(self, left: Array, right: Array) -> _Gap:
        a, b, d = (scratch(use, left.shape, np.float64) for use in "abd")
        unmatched = np.zeros(left.shape, np.bool_)
        with np.errstate(all="ignore"):
            np.copyto(a, left)
            np.copyto(b, right)
            np.abs(np.subtract(a, b, out=d), out=d)
            x, y = self.coarse(left), self.coarse(right)
            ulps = _apart(_ordered(x, "left"), _ordered(y, "right"))
            if not np.isfinite(d.sum()):
                odd = ~(np.isfinite(a) & np.isfinite(b))
                unmatched = odd & (a != b) & ~(np.isnan(a) & np.isnan(b))
                a[odd] = b[odd] = d[odd] = 0
                ulps[odd] = 0
            if left.dtype != right.dtype:
                # Past the coarser dtype's largest value all is next to it by its code, and may be far off.
                ulps[np.isinf(x) != np.isinf(y)] = self.form.inf
            if self.by_ulps:
                return _Gap(a, b, d, ulps, unmatched, unmatched | (ulps > 1))
            bound = np.abs(b, out=scratch("size", b.shape, np.float64))
            np.multiply(bound, self.rtol, out=bound)
            np.add(bound, self.atol, out=bound)
            return _Gap(a, b, d, ulps, unmatched, unmatched | (d > bound))

    def needed(self, gap: _Gap) -> tuple[float, float]:
        """The least rtol beside this atol, and the least atol beside this rtol, that pass these elements."""
        size = np.abs(gap.b, out=scratch("size", gap.b.shape, np.float64))
        rest = gap.d
        with np.errstate(all="ignore"):
            if self.atol:
                rest = np.maximum(gap.d - self.atol, 0)
                short = self.atol + rest < gap.d
                rest[short] = np.nextafter(rest[short], np.inf)
            rtol = _least(_quotients(rest, size), lambda at, r: gap.d[at] <= self.atol + r * size[at])
            if not self.rtol:
                return rtol, float(gap.d.max())
            part = self.rtol * size
            return rtol, _least(np.maximum(gap.d - part, 0), lambda at, s: gap.d[at] <= s + part[at])


def _quotients(d: Floats, size: Floats) -> Floats:
    """d/size, with 0/0 = 0."""
    quotients: Floats = np.divide(d, size, out=scratch("quotient", d.shape, np.float64))
    if not quotients.min() >= 0:
        quotients[d == 0] = 0
    return quotients


def _least(values: Floats, passes: Callable[[Array, float], Array]) -> float:
    """The least tolerance, of those that elements need by themselves.

    Each is within half a unit of the exact one, so where it does not pass its element, the next float does;
    and so does the largest, but for those elements whose own it is.
    """
    most = float(values.max())
    own = np.flatnonzero(values == most)
    return most if math.isinf(most) or passes(own, most).all() else math.nextafter(most, math.inf)


@dataclass(slots=True)
class _Measure:
    """How far two tensors are apart, gathered block by block."""

    judge: _Judge
    bits: bool
    different: int = 0
    unmatched: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    ulps: int = 0
    rtol: float = 0.0
    atol: float = 0.0
    worst: int | None = None
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    noise: float = 0.0

    def add_bits(self, start: int, left: Array, right: Array) -> None:
        """Add elements that are compared bit for bit."""
        size = left.dtype.itemsize
        apart = (left.view(np.uint8) != right.view(np.uint8)).reshape(-1, size).any(axis=1)
        if self.worst is None and apart.any():
            self.worst = start + int(apart.argmax())
        self.different += int(np.count_nonzero(apart))

    def add_same(self, left: Array) -> None:
        """Add floats that are the same, bit for bit."""
        a = scratch("a", left.shape, np.float64)
        np.copyto(a, left)
        square = _dot(a, a)
        if not math.isfinite(square):
            a[~np.isfinite(a)] = 0
            square = _dot(a, a)
        self.squares_a, self.squares_b = self.squares_a + square, self.squares_b + square
        self.products += square

    def add(self, start: int, left: Array, right: Array) -> None:
        """Add floats that may differ."""
        gap = self.judge.gap(left, right)
        self.squares_a += _dot(gap.a, gap.a)
        self.squares_b += _dot(gap.b, gap.b)
        self.products += _dot(gap.a, gap.b)
        self.noise += _dot(gap.d, gap.d)
        if gap.unmatched.any():
            if not self.unmatched:
                self.worst = start + int(gap.unmatched.argmax())
            self.unmatched += int(np.count_nonzero(gap.unmatched))
        top = float(gap.d.max())
        if top > self.max_abs:
            self.max_abs = top
            if not self.unmatched:
                self.worst = start + int(gap.d.argmax())
        with np.errstate(all="ignore"):
            size = np.abs(gap.b, out=scratch("size", gap.b.shape, np.float64))
            self.max_rel = max(self.max_rel, float(_quotients(gap.d, size).max()))
        self.ulps = max(self.ulps, int(gap.ulps.max()))
        self.different += int(np.count_nonzero(gap.out))
        rtol, atol = self.judge.needed(gap)
        self.rtol, self.atol = max(self.rtol, rtol), max(self.atol, atol)

    def difference(self, pair: _Pair) -> Difference:
        """What a user is told."""
        packed = pair.a.dtype.bits % 8 != 0  # then places are of bytes
        worst = None if self.worst is None or packed else np.unravel_index(self.worst, pair.a.shape)
        found = replace(
            pair.differs("bits" if self.bits else "values"),
            different=self.different,
            worst=None if worst is None else tuple(map(int, worst)),
        )
        if self.bits:
            return found
        norms = math.sqrt(self.squares_a) * math.sqrt(self.squares_b)
        clean = 0 < self.noise < math.inf and 0 < self.squares_b < math.inf
        return replace(
            found,
            unmatched=self.unmatched,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            ulps=self.ulps,
            cosine=self.products / norms if 0 < norms < math.inf else None,
            snr_db=10 * (math.log10(self.squares_b) - math.log10(self.noise)) if clean else None,
        )


def _dot(x: Floats, y: Floats) -> float:
    """Σxy in an order of its own; BLAS's depends on its threads."""
    return float(np.einsum("i,i->", x, y))


def _needed(measured: Iterable[_Measure]) -> Needed | None:
    """What would have been needed for all of them."""
    floats = [item for item in measured if not item.bits]
    if not floats or any(item.unmatched for item in floats):
        return None
    rtol, atol = max(item.rtol for item in floats), max(item.atol for item in floats)
    if math.isinf(atol) and math.isinf(rtol):
        return None
    ulps = max(item.ulps for item in floats)
    return Needed(rtol if math.isfinite(rtol) else None, atol if math.isfinite(atol) else None, ulps)
