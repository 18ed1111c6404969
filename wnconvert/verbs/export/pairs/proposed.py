"""The inputs of an ONNX model as it declares them: what is drawn where the user says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError, InputError, VerifyError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, option, printable
from wnconvert.onnx.file.model import Graph
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.process import Opened
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.models.proof.inputs.texts import (
    DEFAULT_RANGE,
    FEEDABLE,
    InputSpec,
    Range,
    is_integer,
    is_letter,
)
from wnconvert.verbs.models.proof.samples import arrays, samples_of
from wnconvert.verbs.models.proof.signatures import Signature, ranges_of, signature_from

__all__ = ["Proposed", "drawn_signature", "given_signature", "proposed_inputs"]


#: The batch: the first of several axes, where it is dynamic.
_BATCH = Range(1, 2)
#: Sizes of all other letters that are tried, until the model runs: some take a few hundred samples at least.
_SPANS = (DEFAULT_RANGE, Range(400, 800), Range(4000, 8000))
#: Any size that there is: nothing is drawn of it.
_ANY = Range(1, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Proposed:
    """The inputs of a model, the letters among them that are batches, and notes on what is guessed."""

    inputs: tuple[InputSpec, ...]
    batches: frozenset[str]
    notes: tuple[str, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """The dynamic sizes, each once."""
        return tuple(dict.fromkeys(letter for spec in self.inputs for letter in spec.letters))


def proposed_inputs(ports: Sequence[ValueInfo], graph: Graph) -> Proposed:
    """The inputs that a model declares: an axis without a name gets a letter.

    Integers are drawn below the rows of the tables that they index, or below 2. Raises ``InputError`` for an
    input that is no tensor of numbers.
    """
    below = _rows_of_tables(graph)
    taken = {size for port in ports for size in port.shape if isinstance(size, str) and is_letter(size)}
    letters: dict[str, str] = {}
    specs: list[InputSpec] = []
    batches: set[str] = set()
    notes: list[str] = []
    for port in ports:
        if port.dtype is None or port.dtype.name not in FEEDABLE:
            raise InputError(
                f"its input {printable(port.name)} is {port.dtype or port.kind}, which cannot be drawn",
                fix="give a model whose inputs are tensors of numbers",
            )
        shape = tuple(
            size if isinstance(size, int) and size > 0 else _letter(port, axis, taken, letters)
            for axis, size in enumerate(port.shape)
        )
        bound = below.get(port.name, 2) if is_integer(port.dtype) else None
        specs.append(InputSpec(port.name, port.dtype, shape, bound))
        if len(shape) > 1 and isinstance(shape[0], str):
            batches.add(shape[0])
        if bound is not None and port.name not in below:
            other = option("input", metavar=repr(str(replace(specs[-1], below=100))))
            notes.append(f"{printable(port.name)}: drawn from 0 to 1; {other} draws up to 99")
    return Proposed(tuple(specs), frozenset(batches), tuple(notes))


def _letter(port: ValueInfo, axis: int, taken: set[str], letters: dict[str, str]) -> str:
    """The letter of a dynamic axis: its own name, or one made for what its name is."""
    size = port.shape[axis]
    if isinstance(size, str) and is_letter(size):
        return size
    known = size if isinstance(size, str) else f"{port.name} {axis}"
    if known not in letters:
        letters[known] = next(name for at in range(len(taken) + 1) if (name := f"d{at}") not in taken)
        taken.add(letters[known])
    return letters[known]


def _rows_of_tables(graph: Graph) -> dict[str, int]:
    """For each input that picks rows of stored tables, as ids pick embeddings, how many rows there are."""
    tables = {constant.name: constant.info for constant in graph.constants if constant.info is not None}
    same = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.op == "Cast" and node.inputs}
    found: dict[str, int] = {}
    for name, info in _picked(graph, tables):
        source = same.get(name, name)
        found[source] = min(info.shape[0], found.get(source, info.shape[0]))
    return found


def _picked(graph: Graph, tables: dict[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    for node in graph.nodes:
        axis = node.attributes["axis"].value if "axis" in node.attributes else 0
        if node.op == "Gather" and axis == 0 and len(node.inputs) == 2 and node.inputs[0] in tables:
            table = tables[node.inputs[0]]
            if len(table.shape) > 1:
                yield node.inputs[1], table


# -- signatures


def drawn_signature(opened: Opened, proposed: Proposed, ranges: Iterable[str]) -> Signature:
    """A signature of sizes at which a model runs, in the user's ``ranges`` and the first span that fits.

    Raises ``InputError`` if the model runs at none.
    """
    given = ranges_of(ranges)
    open_letters = [letter for letter in proposed.letters if letter not in given]
    spans = [letter for letter in open_letters if letter not in proposed.batches]
    first: InputError | None = None
    for span in _SPANS if spans else _SPANS[:1]:
        sizes = {letter: _BATCH if letter in proposed.batches else span for letter in open_letters}
        said = [f"{letter}: no range was given; it is {span}" for letter, span in sizes.items()]
        signature = signature_from(proposed.inputs, given | sizes, notes=(*proposed.notes, *said))
        try:
            opened.run(arrays(signature, samples_of(signature, 1)[0]))
        except NoAnswerError:  # it would not answer the next time either
            raise
        except (VerifyError, InputError) as error:
            first = first or InputError(error.heading, where=str(opened.path), fix=_fix_of(proposed))
            continue
        return signature
    assert first is not None  # noqa: S101 - each span either ran or failed
    raise first


def _fix_of(proposed: Proposed) -> str:
    texts = " ".join(option("input", metavar=repr(str(spec))) for spec in proposed.inputs)
    return f"say what it takes, such as {texts}, with {option('range', metavar='LETTER=LOW..HIGH')}"


def given_signature(proposed: Proposed, data: Iterable[object]) -> Signature:
    """A signature for the user's data alone, of any sizes. Raises the errors of ``signature_of``."""
    if not proposed.inputs:
        raise ArgumentError(f"the model has {counted(0, 'input')}, so no data fits it", fix="leave it out")
    return signature_from(proposed.inputs, dict.fromkeys(proposed.letters, _ANY), data=data)
