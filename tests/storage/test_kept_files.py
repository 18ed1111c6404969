"""Files that are opened when they are read: few at a time, and at each opening what they were."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wnconvert.errors import FormatError, InputError
from wnconvert.storage.files import open_file
from wnconvert.storage.sources import Source
from wnconvert.storage.stores.kept import MOST_OPEN, KeptFiles
from wnconvert.tensors.tree import ByteRange


def written(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:05}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%08d" % number)
    return paths


def descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_no_more_than_a_few_of_many_files_are_open(tmp_path: Path) -> None:
    paths = written(tmp_path, 5 * MOST_OPEN)
    before = descriptors()
    with Source(paths) as source:
        assert descriptors() == before, "none is opened before it is read"
        for number in (*range(len(paths)), 0, 1, len(paths) - 1):
            assert bytes(source.chunk(ByteRange(0, 8, number))) == b"%08d" % number
            assert descriptors() <= before + MOST_OPEN
        assert source.files[3].path == paths[3]
        assert source.size(7) == 8
    assert descriptors() == before


def test_few_files_are_opened_at_once(tmp_path: Path) -> None:
    paths = written(tmp_path, MOST_OPEN)
    before = descriptors()
    with Source(paths):
        assert descriptors() == before + MOST_OPEN


def test_a_file_that_is_another_at_its_second_opening_is_an_error(tmp_path: Path) -> None:
    paths = written(tmp_path, 2 * MOST_OPEN)
    with Source(paths) as source:
        assert bytes(source.chunk(ByteRange(0, 8, 0))) == b"00000000"
        for number in range(1, len(paths)):
            source.chunk(ByteRange(0, 8, number))
        (tmp_path / "new").write_bytes(b"99999999")
        (tmp_path / "new").replace(paths[0])
        with pytest.raises(FormatError, match="it changed while it was read") as caught:
            source.chunk(ByteRange(0, 8, 0))
        assert "run it again" in caught.value.fix
        assert bytes(source.chunk(ByteRange(0, 8, 1))) == b"00000001"  # the others are as they were


def test_files_that_are_read_by_several_threads_stay_open_while_they_are(tmp_path: Path) -> None:
    paths = written(tmp_path, 40)
    files = KeptFiles(open_file, most=2)
    opened = [files.file(path) for path in paths]
    wrong: list[object] = []

    def read(first: int) -> None:
        for step in range(400):
            number = (first + step * 7) % len(paths)
            if opened[number].read(0, 8) != b"%08d" % number:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files.close()
    assert not wrong


def test_where_no_more_files_can_be_opened_the_error_says_what_to_do(tmp_path: Path) -> None:
    (path,) = written(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/dev/fd").iterdir()), hard)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(InputError) as caught:
            [stack.enter_context(closing(open_file(path))) for _ in range(soft)]
    assert "ulimit -n" in caught.value.fix


def wnconvert(*arguments: object) -> str:
    """Run the tool where 64 files may be open."""
    command = [sys.executable, "-m", "wnconvert", *map(str, arguments)]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folders_of_more_files_than_may_be_open_are_folded_verified_and_compared(tmp_path: Path) -> None:
    tensors = {
        f"l.{at}.weight_{half}": torch.full((2, 1) if half == "g" else (2, 3), at + 1.0)
        for at in range(100)
        for half in "gv"
    }
    one, many, small = tmp_path / "one.safetensors", tmp_path / "many", ("--max-shard-size", "24", "--quiet")
    save_file(tensors, one)
    wnconvert("migrate", one, "-o", many, "--as-folder", *small)
    assert len(list(many.iterdir())) > 100
    wnconvert("fold", many, "-o", tmp_path / "out", "--verify", *small)
    assert len(list((tmp_path / "out").iterdir())) > 100
    assert "equal" in wnconvert("compare", many, tmp_path / "out")
    wnconvert("split", tmp_path / "out", "--like", many, "-o", tmp_path / "again", *small)
    wnconvert("inspect", tmp_path / "again")
