"""Frozen dataclasses whose methods are made late are those of dataclasses in all that is asked of them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.golden import ROOT, sandbox
from wnconvert import fold_file, frozen, migrate_file, split_file

T = TypeVar("T")


class Mixed:
    """A base that is no dataclass."""

    __slots__ = ()

    def total(self) -> int:
        return 7


def classes(dataclass: Any) -> SimpleNamespace:
    """The same classes by one decorator or the other."""

    @dataclass(frozen=True, slots=True)
    class Plain:
        """Has defaults."""

        x: int
        y: str = "y"
        z: list[int] = field(default_factory=list, compare=False, repr=False)

    @dataclass(frozen=True, slots=True)
    class Derived(Plain, Mixed):
        """Has the fields of its base, one of them with another default."""

        y: str = "other"
        w: float = 0.5

        @property
        def twice(self) -> float:
            return 2 * self.w

    @dataclass(frozen=True, slots=True)
    class Checked:
        """Looks at what it is given."""

        x: int

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError(self.x)

    @dataclass(frozen=True, slots=True)
    class Own:
        """Says itself what is equal, and how it is shown."""

        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.x % 10 == other.x % 10

        def __hash__(self) -> int:
            return self.x % 10

        def __repr__(self) -> str:
            return f"own {self.x}"

    @dataclass(frozen=True, slots=True)
    class Equal:  # noqa: PLW1641 -- as in dataclasses
        """Says itself what is equal alone."""

        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self))

    @dataclass(frozen=True, slots=True, eq=False)
    class Itself:
        """Is equal to nothing else."""

        x: int

    @dataclass(frozen=True, slots=True, repr=False)
    class Hidden:
        """Is shown as any object."""

        x: int

    @dataclass(frozen=True, slots=True)
    class Known:
        """Has a value that all objects share."""

        kind: ClassVar[str] = "known"
        x: int

    @dataclass(frozen=True, slots=True)
    class Told(Known):
        """Shares another one."""

        kind: ClassVar[str] = "told"
        more: ClassVar[tuple[int, ...]] = (1, 2)
        y: int = 4

    @dataclass(frozen=True, slots=True)
    class Empty:
        """Has no field."""

    @dataclass(frozen=True, slots=True)
    class Of(Generic[T]):
        """Is generic."""

        x: T

    return SimpleNamespace(**{name: value for name, value in locals().items() if name != "dataclass"})


OURS, THEIRS = classes(frozen.dataclass), classes(dataclasses.dataclass)
NAMES = sorted(vars(OURS))


def arguments(name: str) -> list[tuple[Any, ...]]:
    """What objects are made of: the first two alike."""
    made: list[tuple[Any, ...]] = [(), (), ()] if name == "Empty" else [(3,), (3,), (13,)]
    return [*made, *[(3, "b", [1]), (3, "b", [2])] * (name in ("Plain", "Derived"))]


def told(cls: type, name: str) -> dict[str, Any]:
    """All that can be asked of a class and of its objects."""
    made = [cls(*each) for each in arguments(name)]
    named = [repr(item) for item in made] if name != "Hidden" else []
    return {
        "equal": [[a == b for b in made] for a in made],
        "hashes": [[hash(a) == hash(b) for b in made] for a in made],
        "shown": named,
        "fields": [(f.name, f.type, f.default, f.compare, f.repr, f.init) for f in fields(cls)],
        "shared": [getattr(cls, each, None) for each in ("kind", "more")],
        "of a base": [hasattr(cls, each) for each in ("total", "twice")],
        "match": cls.__match_args__,  # type: ignore[attr-defined]
        "slots": {slot for base in cls.__mro__ for slot in vars(base).get("__slots__", ())},
        "has a dict": hasattr(made[0], "__dict__"),
        "as a dict": [asdict(item) for item in made],
        "signature": str(inspect.signature(cls)),
        "doc": cls.__doc__,
        "copies": [copy.copy(item) == item and copy.deepcopy(item) == item for item in made],
        "replaced": [replace(item, **({} if name == "Empty" else {"x": 9})) == item for item in made],
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_that_of_dataclasses(name: str) -> None:
    assert told(vars(OURS)[name], name) == told(vars(THEIRS)[name], name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Empty"])
def test_an_object_cannot_be_changed(name: str) -> None:
    made = vars(OURS)[name](3)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        made.x = 4
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
        del made.x
    assert made.x == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Empty"])
@pytest.mark.parametrize(
    "ask",
    [
        fields,
        dataclasses.is_dataclass,
        lambda cls: cls.__match_args__,
        lambda cls: cls.__eq__,
        lambda cls: cls.__hash__(cls(3)) if cls.__hash__ is not None else None,
        lambda cls: repr(cls(3)),
    ],
)
def test_what_is_asked_first_makes_no_difference(name: str, ask: Callable[[Any], object]) -> None:
    cls = vars(classes(frozen.dataclass))[name]
    ask(cls)
    assert told(cls, name) == told(vars(THEIRS)[name], name)


def test_a_wrong_argument_is_told_as_ever() -> None:
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'x'"):
        OURS.Plain()
    with pytest.raises(ValueError, match="-1"):
        OURS.Checked(-1)


@frozen.dataclass(frozen=True, slots=True)
class Sent:
    """What another process gets."""

    kind: ClassVar[str] = "sent"
    x: int
    y: tuple[int, ...] = ()


def test_results_with_all_of_their_plans_are_sent_and_copied(tmp_path: Path) -> None:
    file = tmp_path / "in.safetensors"
    save_file({"l.weight_g": torch.rand(4, 1), "l.weight_v": torch.rand(4, 3), "b": torch.rand(3)}, file)
    for made in (
        fold_file(file, tmp_path / "out.safetensors"),
        split_file(tmp_path / "out.safetensors", tmp_path / "again.safetensors"),
        migrate_file(file, tmp_path / "new.safetensors", to="parametrize"),
    ):
        assert made.plan.layers
        assert pickle.loads(pickle.dumps(made)) == made
        assert copy.deepcopy(made) == copy.copy(made) == made


def test_a_pickle_of_it_is_read_before_any_is_made() -> None:
    sent = pickle.dumps(Sent(3, (1, 2)))
    read = f"import pickle; print(pickle.loads({sent!r}))"
    done = subprocess.run([sys.executable, "-c", read], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "Sent(x=3, y=(1, 2))\n"
    assert pickle.loads(sent) == copy.copy(Sent(3, (1, 2))) == Sent(3, (1, 2))


def test_threads_that_make_the_first_objects_make_the_same() -> None:
    for _ in range(30):
        cls, start = classes(frozen.dataclass).Derived, threading.Barrier(8)
        made: list[Any] = []

        def make(cls: Any = cls, start: threading.Barrier = start, made: list[Any] = made) -> None:
            start.wait()
            made.append((cls(3), hash(cls(3)), repr(cls(3))))

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 8
        assert len(set(made)) == 1


def test_what_can_be_changed_is_made_by_dataclasses_at_once() -> None:
    @frozen.dataclass
    class Open:
        x: int

    @frozen.dataclass(frozen=True, slots=True, order=True)
    class Ordered:
        x: int

    one = Open(1)
    one.x = 2
    assert one == Open(2)
    assert Ordered(1) < Ordered(2)


def test_a_small_run_makes_the_methods_of_few_of_its_classes(tmp_path: Path) -> None:
    count = """
import contextlib, io, sys
from wnconvert import cli, frozen
sys.argv = ["wnconvert", "inspect", "hifigan.safetensors"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main()
classes = [cls for cls in object.__subclasses__() if "wnconvert" in cls.__module__]
ours = [cls for cls in classes if {"__dataclass_fields__", "__slots__"} <= vars(cls).keys()]
waiting = sum(isinstance(vars(cls)["__dataclass_fields__"], frozen._Pending) for cls in ours)
print(len(ours) - waiting, waiting)
"""
    folder = sandbox(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", count], cwd=folder, capture_output=True, text=True, check=True
    )
    made, waiting = map(int, done.stdout.split())
    assert 0 < made < waiting
