"""What every reader and every writer of a container owes, as classes of tests to inherit.

A new container gets all of it by a class of its own in ``tests/storage/test_readers.py`` and one in
``tests/storage/test_writers.py``, which name its files and say how they are damaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner, refused
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.verbs.conversion.convert import Result

#: What can be wrong with a container; a case's name begins with one of these.
DAMAGES = ("twice", "overlapping", "outside", "absurd")


@dataclass(frozen=True)
class Damaged:
    """Makes a damaged file in a folder; ``says`` is what its refusal must say. None: no fix is asked for."""

    make: Callable[[Path], Path]
    says: str
    fix: str | None = ""


class ReaderContract:
    """A reader refuses what is damaged in words, whatever the damage, and leaves nothing behind."""

    #: Fixtures that are whole.
    WHOLE: ClassVar[Sequence[str]]
    #: Files that are damaged, by a name such as "twice: a key".
    DAMAGED: ClassVar[Mapping[str, Damaged]]
    #: Kinds of damage that the container cannot have, and why.
    CANNOT: ClassVar[Mapping[str, str]] = {}
    #: Fixtures that are cut short; what is left out is cut in tests of its own.
    CUT: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name, values in (
            ("whole", self.WHOLE),
            ("cut", self.CUT or self.WHOLE),
            ("damaged", self.DAMAGED),
        ):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    def test_every_kind_of_damage_has_a_case(self) -> None:
        assert {name.partition(":")[0] for name in self.DAMAGED} == {*DAMAGES} - {*self.CANNOT}

    def test_a_whole_file_is_read(self, whole: str, run: Runner) -> None:
        assert run("inspect", FIXTURES / whole, "--full").returncode == 0

    def test_a_damaged_file_is_refused(self, damaged: str, run: Runner, tmp_path: Path) -> None:
        case = self.DAMAGED[damaged]
        refused(run, case.make(tmp_path), says=case.says, fix=case.fix)

    def test_a_file_cut_at_any_byte_is_refused(self, cut: str, run: Runner, tmp_path: Path) -> None:
        data = (FIXTURES / cut).read_bytes()
        chance = random.Random(cut)
        source = tmp_path / "in.pt"
        ends = {*chance.sample(range(len(data)), 60), *range(20), *range(len(data) - 30, len(data))}
        for end in sorted(ends):
            source.write_bytes(data[:end])
            ended = run("fold", source)
            assert ended.returncode == 2, (end, ended)
            assert f"error: {source}" in ended.stderr
            assert "fix: " in ended.stderr
            assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]

    def test_a_file_with_wrong_bytes_is_folded_or_refused(
        self, whole: str, run: Runner, tmp_path: Path
    ) -> None:
        data = (FIXTURES / whole).read_bytes()
        chance = random.Random(whole)
        source, out = tmp_path / "in.pt", tmp_path / "out.pt"
        for _ in range(30):
            source.write_bytes(_flipped(data, chance))
            ended = run("fold", source, "-o", out, "--force")
            assert ended.returncode in (0, 2), ended.stderr
            assert ended.returncode == 0 or "\nerror: " in f"\n{ended.stderr}"
            assert run("inspect", source, "--full").returncode in (0, 2)
            assert run("compare", source, source).returncode in (0, 1, 2)
            assert {path.name for path in tmp_path.iterdir()} <= {"in.pt", "out.pt"}


def _flipped(data: bytes, chance: random.Random) -> bytes:
    """A file with a few bytes, or a word, that are not what they were."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(made))
        if chance.random() < 0.5:
            made[at] ^= 1 << chance.randrange(8)
        else:
            word = chance.choice((b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"(]}."))
            made[at : at + 4] = word[: len(made) - at]
    return bytes(made)


class WriterContract:
    """A writer makes the planned file, the same bytes each time, and others read it."""

    #: Files that are folded into the container; the suffix of the output chooses it.
    SOURCES: ClassVar[Sequence[str]]
    SUFFIX: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "source" in metafunc.fixturenames:
            metafunc.parametrize("source", self.SOURCES)

    def read(self, path: Path) -> dict[str, Any]:
        """Every tensor of a file by its name, as the container's own library reads it: numpy arrays."""
        raise NotImplementedError

    def written(self, source: str, folder: Path, **options: Any) -> Result:
        result = fold_file(FIXTURES / source, folder / f"out{self.SUFFIX}", force=True, **options)
        assert isinstance(result, Result)
        return result

    def test_others_read_what_we_read(self, source: str, tmp_path: Path) -> None:
        found = self.read(output_of(self.written(source, tmp_path)))
        ours = inspect_file(tmp_path / f"out{self.SUFFIX}")
        assert sum(state.tensors for state in ours.state_dicts) == len(found) > 0
        assert sum(array.size for array in found.values()) == ours.parameters

    def test_it_is_as_large_as_planned(self, source: str, tmp_path: Path) -> None:
        result = self.written(source, tmp_path)
        assert result.bytes_out == output_of(result).stat().st_size

    def test_any_number_of_threads_gives_the_same_bytes(self, source: str, tmp_path: Path) -> None:
        made = {output_of(self.written(source, tmp_path, threads=each)).read_bytes() for each in (1, 2, 7)}
        assert len(made) == 1

    def test_its_own_output_has_nothing_to_fold(self, source: str, tmp_path: Path) -> None:
        first = output_of(self.written(source, tmp_path))
        again = fold_file(first, tmp_path / f"again{self.SUFFIX}", copy=True)
        assert not again.plan.layers
        assert self.same(self.read(first), self.read(output_of(again)))

    @staticmethod
    def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
        return [*left] == [*right] and all(left[name].tobytes() == right[name].tobytes() for name in left)
