"""The arguments that the verbs share, checked and made into what plans and runs take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Literal, TypeAlias

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import SHOWN
from wnconvert.layers.rules import NormBehind, Standardize, Unit
from wnconvert.layers.schemes import FORMS
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.names.renaming import Renaming
from wnconvert.tensors.dtypes import AnyDType, DType, dtype_named, dtype_word
from wnconvert.verbs.shared.proofs import Prove
from wnconvert.verbs.shared.selections import texts_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "DTYPE_CHOICES",
    "IN_GRAPHS",
    "PROOF_CHOICES",
    "TIMEOUT",
    "ZERO_ROWS_CHOICES",
    "DimOption",
    "Form",
    "NamedForm",
    "ProofOption",
    "Proving",
    "RunOptions",
    "ZeroRows",
    "check_count",
    "check_form",
    "check_timeout",
    "dtype_of",
    "numbers_of",
    "renaming_of",
]


#: A form that a live pair can have.
Form: TypeAlias = Literal["legacy", "parametrize"]
#: A form that a pair in a file, or in a state dict, can be given.
NamedForm: TypeAlias = Literal["legacy", "parametrize", "physicsnemo", "paddle", "equinox"]
#: What to do with a row whose ‖v‖ is 0.
ZeroRows: TypeAlias = Literal["error", "zero"]
#: An axis, None for the whole tensor, "auto" to read it from g's shape.
DimOption: TypeAlias = int | Literal["auto"] | None

#: What of an ONNX model is run in onnxruntime: its layers and the whole model, its layers alone, nothing.
ProofOption: TypeAlias = Literal["model", "layers", "none"]

DTYPE_CHOICES = ("float16", "bfloat16", "float32")
ZERO_ROWS_CHOICES = ("error", "zero")
PROOF_CHOICES = ("model", "layers", "none")
#: The kinds of layers that a graph shows, beside those that keys do: it says what stands next to what.
IN_GRAPHS = (*SHOWN, Standardize.kind, Unit.kind, NormBehind.kind)
#: The seconds that onnxruntime may work on a model in all, unless others are given.
TIMEOUT = 600.0


def _no_progress(_done: int, _total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Proving:
    """What of a folded ONNX model is run in onnxruntime, and for how many seconds in all.

    Raises ``ArgumentError`` for what is not offered.
    """

    proof: ProofOption = "model"
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        """Check both."""
        if self.proof not in PROOF_CHOICES:
            raise ArgumentError(
                f"proof {self.proof!r} is not offered", fix=f"one of {', '.join(PROOF_CHOICES)}"
            )
        check_timeout(self.timeout)

    @property
    def runs(self) -> bool:
        """Whether anything is run."""
        return self.proof != "none"


def check_timeout(seconds: object) -> None:
    """Raise ``ArgumentError`` if these are not seconds that something may take."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ArgumentError(f"a timeout of {seconds!r:.80} s is none", fix="a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a conversion runs and what it may overwrite; the plan says what it makes.

    ``threads`` is None for the processors at hand, at most 4. ``progress`` is called with the bytes done and
    the bytes in all, never from two threads at once. An output that is ``passing`` is read at once, then
    deleted. ``prove`` is called with an output before it is put in place. ``executor`` writes each file of a
    folder on a disk as a job of its own, with so many ``threads``. ``record`` puts a record of what was done
    into an ONNX model. Raises ``ArgumentError`` for less than one thread.
    """

    force: bool = False
    threads: int | None = None
    verify: bool = False
    numbers: RowPolicy = RowPolicy()
    proving: Proving = Proving()
    progress: Callable[[int, int], None] = field(default=_no_progress, repr=False, compare=False)
    passing: bool = False
    prove: Prove | None = field(default=None, repr=False, compare=False)
    executor: Executor | None = field(default=None, repr=False, compare=False)
    record: bool = True

    def __post_init__(self) -> None:
        """Check the number of threads."""
        check_count(self.threads, "threads cannot work", "--threads 1 or more")


def check_count(count: object, are: str, fix: str) -> None:
    """Raise ``ArgumentError`` if a number is neither None nor a whole one of 1 or more."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ArgumentError(f"{count!r} {are}", fix=fix)


def dtype_of(dtype: AnyDType | None) -> DType | None:
    """The dtype that ``--dtype`` names, by a usual word or as a dtype of torch or numpy.

    Raises ``ArgumentError`` for one that is not offered.
    """
    if dtype is None:
        return None
    if (name := dtype_word(dtype)) not in DTYPE_CHOICES:
        raise ArgumentError(f"dtype {dtype!r} is not offered", fix=f"one of {', '.join(DTYPE_CHOICES)}")
    return dtype_named(name)


def renaming_of(
    strip_prefix: Iterable[str], add_prefix: str, rename: Iterable[str] | Mapping[str, str]
) -> Renaming:
    """The new names that ``--strip-prefix``, ``--add-prefix`` and ``--rename`` ask for.

    Raises ``ArgumentError`` for a rename that is not one.
    """
    given: object = add_prefix
    if not isinstance(given, str):
        raise ArgumentError(f"{given!r:.80} is not a prefix", fix="a str")
    pairs = rename if isinstance(rename, Mapping) else texts_of(rename)
    if isinstance(pairs, Mapping):
        texts_of([*pairs, *pairs.values()])
    return Renaming.of(texts_of(strip_prefix), pairs, add_prefix)


def check_form(to: str | None, forms: Collection[str] = FORMS) -> None:
    """Raise ``ArgumentError`` if ``to`` is neither None nor one of the ``forms`` that a pair can be given."""
    if to is not None and to not in forms:
        raise ArgumentError(f"there is no form {to!r}", fix=f"one of {', '.join(forms)}")


def numbers_of(zero_rows: str, *, allow_nonfinite: bool) -> RowPolicy:
    """The policy of ``--zero-rows`` and ``--allow-nonfinite``. Raises ``ArgumentError``."""
    if zero_rows not in ZERO_ROWS_CHOICES:
        raise ArgumentError(
            f"zero_rows {zero_rows!r} is not offered", fix=f"one of {', '.join(ZERO_ROWS_CHOICES)}"
        )
    return RowPolicy(zero_rows, allow_nonfinite)
