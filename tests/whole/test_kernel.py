"""The compiled kernel: made where a C compiler is, the same on every processor, and not needed."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hatch_build
from tests.helpers.arrays import Array, normal
from tests.helpers.golden import ROOT
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.tool import run_here
from wnconvert.errors import ArgumentError
from wnconvert.numerics.kernel import choice
from wnconvert.numerics.kernel import library as kernel_library
from wnconvert.numerics.kernel.compiled import compiled_kernel
from wnconvert.numerics.kernel.dots import Pairs, along_rows
from wnconvert.numerics.kernel.interface import Kernel
from wnconvert.numerics.kernel.library import VARIABLE, source_digest, take_level

FOLDER = Path("wnconvert", "numerics", "kernel")
SHAPES = [(1, 3, 1100), (1, 40, 31), (9, 20, 33), (3, 300, 1), (700, 3, 1), (70, 2, 9), (900, 1, 1)]


@pytest.fixture
def library() -> Iterator[Kernel]:
    if hatch_build.compiler() is None:
        pytest.skip("no C compiler")
    yield compiled_kernel()  # where it is not: python hatch_build.py makes it
    take_level(2)


def test_where_a_compiler_is_the_kernel_is_made_of_the_source_as_it_is(library: Kernel) -> None:
    assert library.name == "compiled"
    assert source_digest() == hatch_build.digest(ROOT), "run python hatch_build.py again"
    texts = [path.read_bytes() for path in sorted((ROOT / FOLDER).glob("*.[ch]"))]
    assert len(texts) == len(hatch_build.SOURCES)
    assert all(text.count(b"\n") <= 400 for text in texts)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_kind_of_processor_gives_the_same_bits(library: Kernel, dtype: str) -> None:
    for shape in SHAPES:
        x, factor = normal(8, shape, dtype), np.linspace(-2, 3, shape[1])
        found = []
        for level in (0, 1, 2):
            take_level(level)
            sums = library.sums(x)
            arrays = [
                sums.high,
                sums.low,
                *(each for out in NARROW for each in made(library, x, factor, out)),
                *dotted(library, x, factor[None, :, None]),
                *dotted(library, x, np.cos(np.arange(shape[0] * shape[2])).reshape(shape[0], 1, shape[2])),
                library.select(x, np.sign(x.astype(np.float64)) > 0),
                np.array(library.largest(x)),
            ]
            found.append([array.tobytes() for array in arrays])
        assert found[0] == found[1] == found[2]


def made(kernel: Kernel, x: Array, factor: Array, dtype: str) -> tuple[Array, ...]:
    out = np.empty(x.shape, DTYPES[dtype])
    return out, *kernel.products(x, factor, 1 << 20, dtype, out)  # so wide that some are open


def dotted(kernel: Kernel, x: Array, factors: Array) -> tuple[Array, ...]:
    found = Pairs.zeros(x.shape[1] if along_rows(x, factors) else x.shape[0] * x.shape[2])
    kernel.dots(x, factors, 10.0, found)
    return found.high, found.low, found.error


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the sources of the kernel."""
    (tmp_path / FOLDER).mkdir(parents=True)
    for source in hatch_build.SOURCES:
        shutil.copy(ROOT / source, tmp_path / source)
    return tmp_path


def test_a_build_without_a_compiler_or_with_one_that_fails_says_so_and_leaves_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "false")
    assert hatch_build.build(tree) is None
    assert "will compute with numpy, which takes longer: false failed" in capfd.readouterr().err
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tree))
    assert hatch_build.build(tree) is None
    assert "no C compiler" in capfd.readouterr().err
    assert sorted(FOLDER / path.name for path in (tree / FOLDER).iterdir()) == sorted(hatch_build.SOURCES)


@pytest.mark.parametrize("option", ["-ffast-math", "-mfpmath=387"])
def test_a_compiler_that_would_round_in_another_way_is_refused(
    tree: Path, option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = hatch_build.compiler()
    if command is None or platform.machine() != "x86_64":
        pytest.skip("no C compiler for this processor that could")
    monkeypatch.setenv("CC", " ".join([*command, option]))
    assert hatch_build.build(tree) is None
    assert "each operation is to be rounded, and rounded once" in capfd.readouterr().err
    monkeypatch.setenv("CC", " ".join([*command, "-O1"]))
    assert hatch_build.build(tree)


def test_a_build_makes_a_library_that_loads(
    library: Kernel, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hatch_build.build(tree)
    assert path
    monkeypatch.setattr(kernel_library, "_PLACE", str(path))
    again = compiled_kernel()
    x = normal(9, (2, 3, 4), "float32")
    assert again.sums(x).high.tolist() == library.sums(x).high.tolist()


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The choice is made anew in the test, and after it."""
    monkeypatch.delenv(VARIABLE, raising=False)
    choice.kernel.cache_clear()
    yield monkeypatch
    choice.kernel.cache_clear()


def test_without_the_library_numpy_is_taken_and_asking_for_it_is_an_error(
    choosing: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choosing.setattr(kernel_library, "_PLACE", str(tmp_path / "rows.library"))
    assert choice.kernel().name == "numpy"
    choosing.setenv(VARIABLE, "compiled")
    choice.kernel.cache_clear()
    with pytest.raises(ArgumentError, match="is not there"):
        choice.kernel()


def test_a_library_of_another_version_is_not_called(library: Kernel, choosing: pytest.MonkeyPatch) -> None:
    assert library.name == choice.kernel().name == "compiled"
    choosing.setattr(kernel_library, "_VERSION", 1)
    choice.kernel.cache_clear()
    assert choice.kernel().name == "numpy"


@pytest.mark.usefixtures("choosing")
def test_a_kernel_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    done = run_here("fold", ROOT / "fixtures" / "g_02500000", "-o", target, variables={VARIABLE: "fast"})
    assert done.returncode == 2
    assert "WNCONVERT_KERNEL is 'fast'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("choosing")
def test_env_tells_the_kernel_and_knows_its_variable() -> None:
    found = json.loads(run_here("env", "--json", variables={VARIABLE: "numpy"}).stdout)
    assert found["kernel"] == "numpy"
    assert VARIABLE not in found["unknown_variables"]
