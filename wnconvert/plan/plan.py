"""Plans: every tensor of an output, as plain frozen data.

A plan is made from a :class:`~wnconvert.tensors.tree.Tree` alone, before a tensor is read; ``--dry-run``
prints it, and ``verbs.conversion`` runs exactly it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wnconvert.layers.kinds.table import in_words
from wnconvert.layers.rows import LayerRow
from wnconvert.layers.rules import Norm
from wnconvert.layers.schemes import Layer
from wnconvert.messages import counted, listed, printable, short_repr, told
from wnconvert.plan.steps import Step
from wnconvert.shown import Shown
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType

__all__ = [
    "Change",
    "ComputedWeight",
    "LeftOut",
    "NormLeft",
    "Plan",
    "PlannedConstant",
    "PlannedLayer",
    "PlannedShard",
    "PlannedStateDict",
]


#: The evidence that proves nothing.
_UNPROVEN = ("names", "said")


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one layer: ``before`` and ``after`` are its pairs, or None for a plain weight.

    ``dtype`` is that of the weight in the output, or of v.
    """

    before: Layer | None
    after: Layer | None
    dtype: DType

    @property
    def layer(self) -> Layer:
        """The pair: that before, or that after."""
        layer = self.before or self.after
        assert layer is not None  # noqa: S101 - one of them always is
        return layer

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.layer.name

    def row(self, path: str) -> PlannedLayer:
        """The change as a row of a plan; ``path`` is that of its state dict."""
        form, to = (pair.form if pair else "plain" for pair in (self.before, self.after))
        layer = self.layer
        return PlannedLayer(
            path,
            layer.name,
            form,
            layer.dim,
            layer.original.shape,
            str(self.dtype),
            layer.rows,
            to=to,
            kind=layer.rule.kind,
            norm=layer.norm,
            grade=layer.grade,
            before=self.before,
            after=self.after,
        )


@dataclass(frozen=True, slots=True)
class PlannedLayer(LayerRow):
    """A layer of a plan: ``form`` is its form in the source, ``to`` that in the output.

    ``kind`` is what computes it, the innermost first: ``weight``, ``prune+spectral``. ``norm`` is the module
    of a norm that goes into it, or nothing. ``grade`` is the evidence, ``"keys"``, ``"recipe"``, ``"names"``
    or ``"said"``; the last two are ``unproven``. ``before`` and ``after`` are its layers, with the names of
    their tensors, or None for a plain weight.
    """

    to: str = "plain"
    kind: str = Norm.kind
    norm: str = ""
    grade: str = "keys"
    before: Layer | None = None
    after: Layer | None = None

    @property
    def unproven(self) -> bool:
        """Whether nothing but names or the user's word says that it computes the same."""
        return self.grade in _UNPROVEN

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data; docs/json.md documents it."""
        return {
            "state_dict": self.state_dict,
            "name": self.name,
            "kind": self.kind,
            "form": self.form,
            "to": self.to,
            "dim": self.dim,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "rows": self.rows,
            "norm": self.norm,
            "grade": self.grade,
            "unproven": self.unproven,
        }


@dataclass(frozen=True, slots=True)
class PlannedStateDict:
    """The steps that make one state dict of the output, in output order, and the layers that they change.

    ``path`` is where it is in the source.
    """

    path: str
    steps: tuple[Step, ...]
    changes: tuple[Change, ...] = ()

    @property
    def tensors(self) -> tuple[Step, ...]:
        """The steps that put a tensor."""
        return tuple(step for step in self.steps if step.is_tensor)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of the source that the output does not have, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class NormLeft:
    """A norm that stays, since names do not tell its layer, and why; ``state_dict`` is a path."""

    state_dict: str
    norm: str
    reason: str


@dataclass(frozen=True, slots=True)
class ComputedWeight:
    """A weight that a graph still computes of stored tensors at every run; ``state_dict`` is a path.

    ``what`` computes it: a kind of layer in words, or operators. ``node`` is the first that uses it.
    ``reason`` says why it is not folded, ``fix`` what folds it, or nothing.
    """

    state_dict: str
    name: str
    what: str
    node: str
    reason: str
    fix: str = ""

    @staticmethod
    def in_words(weights: Sequence[ComputedWeight]) -> str:
        """How many such weights there are, with their names.

        >>> ComputedWeight.in_words([ComputedWeight("", "dec.0.weight", "Sin, Mul", "", "")])
        '1 weight is computed at every run: dec.0.weight (Sin, Mul)'
        """
        names = listed((f"{printable(each.name)} ({printable(each.what)})" for each in weights), 6)
        are = "is" if len(weights) == 1 else "are"
        return f"{counted(len(weights), 'weight')} {are} computed at every run: {names}"

    @staticmethod
    def told(weights: Sequence[ComputedWeight]) -> list[str]:
        """Such weights as notes: how many, then why they are not folded; nothing if there are none.

        >>> weight = ComputedWeight("", "a", "Sin", "", "no rule knows it", "--constants folds it")
        >>> for note in ComputedWeight.told([weight]):
        ...     print(note)
        1 weight is computed at every run: a (Sin)
        a is not folded: no rule knows it (--constants folds it)
        """
        if not weights:
            return []
        said = (
            (printable(each.name), f"{each.reason} ({each.fix})" if each.fix else each.reason)
            for each in weights
        )
        reasons = told(said, " is not folded: ", " are not folded: ")
        return [ComputedWeight.in_words(weights), *reasons]


@dataclass(frozen=True, slots=True)
class PlannedConstant:
    """A weight that no rule knows: the ``operators`` of a graph, evaluated and rounded once.

    A quotient of stored tensors is ``exact``: correctly rounded. What else there is is evaluated in float64.

    >>> print(PlannedConstant("", "dec.weight", ("Sin", "Mul"), (4, 4), "float32"))
    dec.weight (float32 4×4): Sin, Mul, evaluated in float64 and exact only to that
    >>> print(PlannedConstant("", "dec.weight", ("Div", "Mul"), (4, 4), "float32", exact=True))
    dec.weight (float32 4×4): Div, Mul, a quotient of stored tensors, correctly rounded
    """

    state_dict: str
    name: str
    operators: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    exact: bool = False

    @staticmethod
    def counts(constants: Sequence[PlannedConstant]) -> list[str]:
        """How many weights are stored, in words, by how exact they are; nothing where there are none."""
        exact = sum(each.exact for each in constants)
        quotients = [f"{counted(exact, 'quotient')} of stored tensors"] if exact else []
        others = len(constants) - exact
        return [*quotients, *([f"{counted(others, 'weight')} evaluated in float64"] if others else [])]

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape)) or "()"
        exact = "a quotient of stored tensors, correctly rounded"
        how = exact if self.exact else "evaluated in float64 and exact only to that"
        return f"{printable(self.name)} ({self.dtype} {shape}): {listed(self.operators, 6)}, {how}"


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A file of weights in a folder: its name, its tensors in order, and the bytes that these take."""

    name: str
    tensors: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Shown):
    """A whole conversion: the output holds these state dicts, without what is dropped.

    ``verb`` is ``"fold"``, ``"split"`` or ``"migrate"``. ``only`` is the path of the one state dict that
    the output holds, or None if it keeps all siblings. ``already`` counts layers that are as the verb
    would make them. ``record`` is written into the output so that ``split`` or ``migrate`` can undo the
    conversion. If the output is a folder, ``shards`` are its files of weights, ``index`` is the name of their
    index if they are several, and ``copied`` are the paths of files that are copied as they are. ``renamed``
    counts the keys of the source that have a new name because the user asked for it. ``writes`` is False
    where no layer changes and no option asks for an output: then nothing is written. ``kinds`` are those of
    the layers that were looked for; ``unwanted`` counts those of a recipe that the selection leaves out,
    ``formless`` those that cannot have the form that is asked for;
    ``hints`` say which others are there, and what folds them. ``left`` are the norms that names do not tell
    the layer of, where these were to be folded. ``computed`` are the weights that an ONNX model computes of
    stored tensors at every run, and that stay so; ``constants`` are those that are evaluated and stored.
    """

    verb: str
    container: Container
    state_dicts: tuple[PlannedStateDict, ...]
    only: str | None = None
    dropped: tuple[LeftOut, ...] = ()
    already: int = 0
    record: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    shards: tuple[PlannedShard, ...] = ()
    index: str = ""
    copied: tuple[str, ...] = ()
    renamed: int = 0
    writes: bool = True
    kinds: tuple[str, ...] = (Norm.kind,)
    unwanted: int = 0
    formless: int = 0
    hints: tuple[str, ...] = ()
    left: tuple[NormLeft, ...] = ()
    computed: tuple[ComputedWeight, ...] = ()
    constants: tuple[PlannedConstant, ...] = ()

    @property
    def layers(self) -> list[PlannedLayer]:
        """Every layer that is changed."""
        return [change.row(path) for path, change in self.changes]

    @property
    def changes(self) -> list[tuple[str, Change]]:
        """Every change of a layer, with the path of its state dict."""
        return [(planned.path, change) for planned in self.state_dicts for change in planned.changes]

    @property
    def norms(self) -> int:
        """How many norms go into the layers."""
        return len({(path, change.layer.norm) for path, change in self.changes if change.layer.norm})

    @property
    def lost(self) -> list[str]:
        """What the source has and the output cannot give back, each in words or by its path."""
        folded = Counter(change.layer.rule.kinds for _, change in self.changes if change.after is None)
        pairs = folded.pop((Norm.kind,), 0)
        cast = sum(
            step.kept is not None and step.dtype is not None
            for planned in self.state_dicts
            for step in planned.steps
        )
        return [
            *([f"g and v of {counted(pairs, 'layer')}"] if pairs else []),
            *(f"what {counted(count, 'layer')} of {in_words(kinds)} had" for kinds, count in folded.items()),
            *([f"the digits of {counted(cast, 'tensor')}"] if cast else []),
            *(item.path for item in self.dropped),
        ]

    def doubted(self) -> Plan:
        """The plan with a note on the layers of which nothing but names, or the user's word, tells."""
        doubted = [change.row(path) for path, change in self.changes if change.layer.grade in _UNPROVEN]
        grades = Counter(row.grade for row in doubted)
        notes = [
            f"{counted(grades[grade], 'layer')} {why}, unproven: wnconvert check proves it"
            for grade, why in (("names", "told by names"), ("said", "folded as said"))
            if grades[grade]
        ]
        from wnconvert.layers.telling.neighbours import is_square  # which few plans ask for

        square = sum(row.grade == "names" and is_square(row.shape) for row in doubted)
        if square:
            notes.append(
                f"{counted(square, 'weight')} with as many channels in as out: taken as those of plain "
                "convolutions, which their names do not speak against; transposed ones would fold differently"
            )
        return replace(self, notes=(*self.notes, *notes))

    def __repr__(self) -> str:
        tensors = sum(len(planned.tensors) for planned in self.state_dicts)
        names = [change.name for _, change in self.changes]
        left_out = f"left out: {listed([item.path for item in self.dropped], 3)}" if self.dropped else ""
        return short_repr(
            f"Plan: {self.verb} {counted(len(names), 'layer')} of {counted(tensors, 'tensor')}, to "
            f"{self.container.facts.family}",
            names,
            left_out,
            counted(len(self.notes), "note") if self.notes else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "verb": self.verb,
            "container": self.container.facts.family,
            "only": self.only,
            "layers": [row.to_dict() for row in self.layers],
            "already": self.already,
            "renamed": self.renamed,
            "writes": self.writes,
            "state_dicts": [
                {"path": planned.path, "tensors": len(planned.tensors), "layers": len(planned.changes)}
                for planned in self.state_dicts
            ],
            "shards": [
                {"name": shard.name, "tensors": len(shard.tensors), "bytes": shard.size}
                for shard in self.shards
            ],
            "copied": list(self.copied),
            "dropped": [{"path": item.path, "why": item.why} for item in self.dropped],
            "norms_left": [asdict(item) for item in self.left],
            "constants": [
                asdict(item) | {"operators": list(item.operators), "shape": list(item.shape)}
                for item in self.constants
            ],
            "computed": [asdict(item) for item in self.computed],
            "notes": list(self.notes),
        }
