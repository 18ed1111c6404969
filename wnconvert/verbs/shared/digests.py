"""The SHA-256 of files and folders, also computed while other work goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import PurePath

from wnconvert.storage.files import kind_of, listing_of, open_file
from wnconvert.storage.stores.store import PathKind
from wnconvert.storage.workers import Cancelled

__all__ = ["files_below", "sha256_beside", "sha256_of", "sha256_of_each"]


_BLOCK = 1 << 20


def sha256_of(path: PurePath, check: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of a file; of a folder, that of the list which ``sha256sum`` prints of its files.

    ``check`` is called now and then, and stops it by an error. Raises ``OSError`` or ``InputError`` where it
    cannot be read.

    >>> from pathlib import Path
    >>> sha256_of(Path("not there"))
    Traceback (most recent call last):
    wnconvert.errors.InputError: not there: it cannot be read (No such file or directory)
    """
    if kind_of(path) is not PathKind.FOLDER:
        return _of_file(path, check)
    import hashlib

    lines = (f"{_of_file(file, check)}  {file.relative_to(path).as_posix()}\n" for file in files_below(path))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def sha256_of_each(paths: Iterable[PurePath]) -> dict[str, str]:
    """The SHA-256 of files, by their names."""
    return {path.name: sha256_of(path) for path in paths}


@contextmanager
def sha256_beside(*paths: PurePath) -> Iterator[Callable[[], tuple[str, ...]]]:
    """Compute the SHA-256 of paths on a thread while the body runs, which asks for them when it has ended.

    Where the body ends with an error, the thread ends soon.
    """
    if not paths:
        yield tuple
        return
    from concurrent.futures import ThreadPoolExecutor  # which loads logging

    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise Cancelled

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: tuple(sha256_of(path, check) for path in paths))
        try:
            yield found.result
        finally:
            ended.set()


def _of_file(path: PurePath, check: Callable[[], None]) -> str:
    import hashlib  # which most commands do not need

    found = hashlib.sha256()
    with closing(open_file(path)) as file:
        buffer = memoryview(bytearray(_BLOCK))
        for at in range(0, file.size, _BLOCK):
            check()
            part = buffer[: min(_BLOCK, file.size - at)]
            file.read_into(at, part)
            found.update(part)
    return found.hexdigest()


def files_below(path: PurePath) -> Iterator[PurePath]:
    """A file itself, or all files in a folder, at any depth, sorted by their paths."""
    if kind_of(path) is not PathKind.FOLDER:
        yield path
        return
    for name in listing_of(path):
        yield from files_below(path / name)
