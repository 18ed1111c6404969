"""A file is filled with the same bytes in every way that a system has, and a full disk is told before."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap as mmap_module
import os
import random
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from wnconvert.errors import OutputError
from wnconvert.storage.staging import staged
from wnconvert.storage.stores import filling, system
from wnconvert.storage.stores.disk import LocalFile
from wnconvert.storage.stores.filling import Filling
from wnconvert.storage.stores.windows import WINDOW_BYTES, Windows

#: What a call says that a file system, or a system, does not have.
NOT_THERE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
#: What one says that may write no more.
FULL = (errno.ENOSPC, errno.EDQUOT)
SIZE = 3_000_003
CONTENT = random.Random(0).randbytes(SIZE)


@pytest.fixture(autouse=True)
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Small files are written directly too, wherever the tests run, and the bytes of each way counted."""
    counted = SimpleNamespace(direct=0, cached=0, opened=[], write=None)
    lock = threading.Lock()
    write = system.write_at

    def open_again(_descriptor: int, path: Path) -> int:
        counted.opened.append(os.open(path, os.O_WRONLY))
        return int(counted.opened[-1])

    def write_at(descriptor: int, data: memoryview, at: int) -> int:
        direct = descriptor in counted.opened
        if direct:
            assert at % 4096 == len(data) % 4096 == 0, "no disk would take that"
        done = write(descriptor, data, at)
        with lock:
            counted.direct += done if direct else 0
            counted.cached += 0 if direct else done
        return done

    monkeypatch.setattr(filling, "_DIRECT_FILE", 0)
    counted.write = write_at
    monkeypatch.setattr(filling, "open_direct", open_again)
    monkeypatch.setattr(filling, "write_at", write_at)
    before = {*threading.enumerate()}
    yield counted
    assert {*threading.enumerate()} <= before


def refuse(code: int, *, after: int = 0, call: Callable[..., int] | None = None) -> Callable[..., int]:
    """A call that fails, but for the first times."""
    left = iter(range(after))

    def refused(*given: object) -> int:
        if call is not None and next(left, None) is not None:
            return call(*given)
        raise OSError(code, os.strerror(code))

    return refused


def fill(path: Path, *, threads: int = 2, seed: int = 0) -> bytes:
    """Fill a file with stretches of all lengths, in any order, by several threads; what it holds then."""
    chance = random.Random(seed)
    ends = sorted(chance.sample(range(1, SIZE), 12))
    ends += [SIZE // 2, SIZE // 2 + 1, SIZE]
    starts = [0, *(ends := sorted(set(ends)))]
    jobs = [*zip(starts, ends, strict=False)]
    chance.shuffle(jobs)

    def work(file: Filling) -> None:
        own = random.Random(seed)
        with contextlib.suppress(IndexError):
            while True:
                start, end = jobs.pop()
                stretch = file.stretch(start, end - start)
                while (at := stretch.at) < end:
                    count = min(own.choice((1, 500, 4096, 300_000)), end - at)
                    if own.random() < 0.5:
                        stretch.put(memoryview(CONTENT)[at : at + count])
                        continue
                    room = stretch.room(count)
                    room[:] = CONTENT[at : at + len(room)]
                    stretch.filled(len(room))
                stretch.close()

    with staged(path, force=True) as target, target.filling(SIZE, threads) as file:
        others = [threading.Thread(target=work, args=(file,)) for _ in range(threads)]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    return path.read_bytes()


def test_the_memory_of_a_filled_file_goes_before_the_next_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Windows]] = []

    class Seen(Windows):
        def __init__(self, write: Callable[[memoryview, int], None], most: int) -> None:
            super().__init__(write, most)
            made.append(weakref.ref(self))

    monkeypatch.setattr(filling, "Windows", Seen)
    gc.disable()  # it would come some time, and shards are filled one after another
    try:
        assert fill(tmp_path / "out") == CONTENT
        assert made
        assert [windows() for windows in made] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("threads", [1, 2, 8, 64])
def test_every_byte_gets_its_place_and_large_ones_go_past_the_cache(
    tmp_path: Path, ways: SimpleNamespace, threads: int
) -> None:
    assert fill(tmp_path / "x", threads=threads, seed=threads) == CONTENT
    assert ways.direct > 0.6 * SIZE
    assert ways.cached == SIZE - ways.direct


def test_a_page_that_two_share_is_never_written_directly(tmp_path: Path, ways: SimpleNamespace) -> None:
    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE, 1) as file:
        for start, end in ((0, 1_000_001), (1_000_001, 1_000_002), (1_000_002, SIZE)):
            stretch = file.stretch(start, end - start)
            stretch.put(memoryview(CONTENT)[start:end])
            stretch.close()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert ways.cached == 4096 + SIZE % 4096  # the page around the second, and the last one


@pytest.mark.parametrize("start", [0, 1, 4095, 4096, 5000])
@pytest.mark.parametrize("most", [300_000, WINDOW_BYTES])
def test_there_is_room_for_all_that_is_asked_for_wherever_a_stretch_begins(
    tmp_path: Path, ways: SimpleNamespace, start: int, most: int
) -> None:
    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE, 1) as file:
        file.write(CONTENT[:start], 0)
        stretch = file.stretch(start, SIZE - start)
        while count := min(most, SIZE - stretch.at):
            room = stretch.room(count)
            room[:] = CONTENT[stretch.at : stretch.at + count]
            stretch.filled(count)
        stretch.close()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert ways.direct >= SIZE - SIZE % 4096 - 2 * 4096, "only the ends go through the cache"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways that the system has."""
    monkeypatch.setattr(filling, "open_direct", system.open_direct)
    monkeypatch.setattr(filling, "write_at", system.write_at)


@pytest.mark.usefixtures("real")
def test_the_real_ways_of_the_disks_here_give_the_same_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path / "x") == CONTENT
    memory = Path("/dev/shm")  # noqa: S108 - a file system of another kind, where it is there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        assert fill(Path(folder, "x")) == CONTENT


def test_a_small_file_is_written_through_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace
) -> None:
    monkeypatch.setattr(filling, "_DIRECT_FILE", SIZE + 1)
    assert fill(tmp_path / "x") == CONTENT
    assert not ways.opened
    assert ways.cached == SIZE


# -- ways that are not there


@pytest.mark.parametrize("code", NOT_THERE)
def test_where_nothing_can_be_reserved_all_is_written_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, code: int
) -> None:
    monkeypatch.setattr(system, "_allocate", lambda _descriptor, _size: code)
    assert fill(tmp_path / "x") == CONTENT
    assert not ways.opened


def test_a_reserving_that_is_interrupted_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace
) -> None:
    codes = iter((errno.EINTR, errno.EINTR))
    allocate = system._allocate
    monkeypatch.setattr(system, "_allocate", lambda *given: next(codes, 0) or allocate(*given))
    assert fill(tmp_path / "x") == CONTENT
    assert ways.opened or system._allocate(0, 1) == errno.ENOSYS


@pytest.mark.parametrize("code", NOT_THERE)
def test_where_the_second_way_cannot_be_opened_the_cache_is_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, code: int
) -> None:
    monkeypatch.setattr(filling, "open_direct", system.open_direct)
    with staged(tmp_path / "x", force=True) as target, monkeypatch.context() as patched:
        patched.setattr("os.open", refuse(code))
        with target.filling(SIZE, 1) as file:
            stretch = file.stretch(0, SIZE)
            stretch.put(memoryview(CONTENT))
            stretch.close()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert ways.cached == SIZE


def test_a_system_without_such_calls_is_not_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "open_direct", system.open_direct)
    for name in ("O_DIRECT", "copy_file_range", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert fill(tmp_path / "x") == CONTENT


def test_a_file_that_took_the_name_meanwhile_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    with (tmp_path / "a").open("rb") as file:
        assert system.open_direct(file.fileno(), tmp_path / "b") is None


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("code", NOT_THERE)
def test_a_direct_write_that_is_refused_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, code: int, after: int
) -> None:
    direct = refuse(code, after=after, call=ways.write)

    def write_at(descriptor: int, data: memoryview, at: int) -> int:
        write = direct if descriptor in ways.opened else ways.write
        return int(write(descriptor, data, at))

    monkeypatch.setattr(filling, "write_at", write_at)
    assert fill(tmp_path / "x") == CONTENT
    assert bool(ways.direct) == bool(after)
    assert ways.cached == SIZE - ways.direct


@pytest.mark.parametrize("most", [0, 100, 4096, 10_000])
def test_a_direct_write_that_is_short_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, most: int
) -> None:
    write = system.write_at

    def short(descriptor: int, data: memoryview, at: int) -> int:
        if descriptor not in ways.opened:
            return write(descriptor, data, at)
        return write(descriptor, data[:most], at) if most else 0

    monkeypatch.setattr(filling, "write_at", short)
    assert fill(tmp_path / "x") == CONTENT


@pytest.mark.parametrize("after", [0, 1])
def test_where_no_thread_starts_the_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, after: int
) -> None:
    start = threading.Thread.start
    left = iter(range(after))

    def started(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE, 1) as file:
        monkeypatch.setattr(threading.Thread, "start", started)
        stretch = file.stretch(0, SIZE)
        stretch.put(memoryview(CONTENT))
        stretch.close()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert ways.direct


# -- what cannot be written


@pytest.mark.parametrize("code", FULL)
def test_a_full_disk_is_found_when_the_bytes_are_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(system, "_allocate", lambda _descriptor, _size: code)
    with (
        pytest.raises(OutputError, match="the disk is full") as caught,
        staged(tmp_path / "x", force=True) as target,
        target.filling(SIZE, 1),
    ):
        pytest.fail("the block must not run")
    assert caught.value.fix == "free some space, or choose another -o"
    assert not list(tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root mounts; errors are made above")
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_real_disk_that_is_full_is_told_and_left_as_it_was(tmp_path: Path, kind: str) -> None:
    (disk := tmp_path / "disk").mkdir()
    image = tmp_path / "image"
    with image.open("wb") as made:
        made.truncate(8 << 20)
    if kind == "ext4":
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", image], check=True)
    options = ["-o", "loop", image] if kind == "ext4" else ["-t", kind, "-o", "size=8m", kind]
    subprocess.run(["/bin/mount", *options, disk], check=True)
    try:
        if kind == "ext4":
            (disk / "lost+found").rmdir()
        (disk / "other").write_bytes(bytes(6 << 20))
        free = shutil.disk_usage(disk).free
        with pytest.raises(OutputError, match="the disk is full"):
            fill(disk / "x")
        assert [path.name for path in disk.iterdir()] == ["other"]
        assert shutil.disk_usage(disk).free == free
        (disk / "other").unlink()
        assert fill(disk / "x") == CONTENT
    finally:
        subprocess.run(["/bin/umount", disk], check=True)


@pytest.mark.parametrize("call", ["_allocate", "os.ftruncate"])
def test_a_file_larger_than_the_system_allows_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    code = errno.EFBIG if call == "_allocate" else errno.EOPNOTSUPP
    monkeypatch.setattr(system, "_allocate", lambda _descriptor, _size: code)
    monkeypatch.setattr("os.ftruncate", refuse(errno.EFBIG))
    with pytest.raises(OutputError, match=r"it cannot be written \(File too large\)"):
        fill(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def write_all(path: Path, error: type[BaseException] | None = None) -> None:
    """Fill a file with one stretch, and fail before its end if there is an ``error`` to raise."""
    with staged(path, force=True) as target, target.filling(SIZE, 1) as file:
        file.write(b"gathered", 0)
        stretch = file.stretch(4096, SIZE - 4096)
        for at in range(4096, SIZE, 100_000):
            stretch.put(memoryview(CONTENT)[at : at + 100_000])
            if error is not None and at > 300_000:
                raise error
        stretch.close()


@pytest.mark.parametrize("code", [*FULL, errno.EIO])
@pytest.mark.parametrize("after", [0, 3])
def test_a_disk_that_fails_meanwhile_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: SimpleNamespace, code: int, after: int
) -> None:
    monkeypatch.setattr(filling, "write_at", refuse(code, after=after, call=ways.write))
    says = "the disk is full" if code in FULL else "it cannot be written"
    with pytest.raises(OutputError, match=says):
        write_all(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_nothing_more_is_written(
    tmp_path: Path, ways: SimpleNamespace, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write_all(tmp_path / "x", error)
    assert not list(tmp_path.iterdir())
    assert ways.cached == ways.direct == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the files in /proc")
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_no_file_stays_open(tmp_path: Path, error: type[BaseException] | None) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as long as it is listed, it is open
    with contextlib.suppress(KeyboardInterrupt):
        write_all(tmp_path / "x", error)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# -- what is small, and what is not written


def test_what_is_never_written_is_zeros(tmp_path: Path) -> None:
    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE, 1) as file:
        file.write(b"here", 1_000_000)
    assert (tmp_path / "x").read_bytes() == bytes(1_000_000) + b"here" + bytes(SIZE - 1_000_004)


def test_small_pieces_are_written_together_and_over_what_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def noted(descriptor: int, data: memoryview, at: int) -> int:
        calls.append(at)
        return system.write_at(descriptor, data, at)

    monkeypatch.setattr(filling, "write_at", noted)
    with staged(tmp_path / "x", force=True) as target, target.filling(30_000, 1) as file:
        for at in (*range(10_000, 20_000, 10), *range(0, 10_000, 10)):
            file.write(b"0123456789", at)
        file.flush()
        file.write(b"abcd", 4)
        file.write(b"ef", 25_000)
    assert calls == [0, 4, 25_000]
    assert (tmp_path / "x").read_bytes() == b"0123abcd89" + b"0123456789" * 1999 + bytes(
        5000
    ) + b"ef" + bytes(4998)


def test_many_small_pieces_take_little_memory(tmp_path: Path) -> None:
    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE, 1) as file:
        most = 0
        for at in range(0, 100_000, 4):
            file.write(b"1234", at)
            most = max(most, len(file._gathered))
    assert most < 10_000
    assert (tmp_path / "x").read_bytes() == b"1234" * 25_000 + bytes(SIZE - 100_000)


def test_there_are_never_more_windows_than_are_filled_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    mmap = mmap_module.mmap

    def noted(descriptor: int, size: int, **more: int) -> mmap_module.mmap:
        made.append(size)
        return mmap(descriptor, size, **more)

    monkeypatch.setattr("mmap.mmap", noted)
    assert fill(tmp_path / "x", threads=1) == CONTENT
    assert len(made) <= 4


# -- copies by the system


def copied(tmp_path: Path, source: Path, *, at: int = 0, to: int = 0) -> int:
    """Have the system copy a whole file to a place; returns how many bytes it did."""
    done = 0
    file = LocalFile(source)
    with staged(tmp_path / "x", force=True) as target, target.filling(SIZE + to, 1) as filled:
        while count := filled.receive(file, at + done, SIZE - at - done, to + done):
            done += count
    file.close()
    return done


@pytest.mark.parametrize("to", [0, 8192])
def test_the_system_copies_whole_files(tmp_path: Path, to: int) -> None:
    (source := tmp_path / "source").write_bytes(CONTENT)
    done = copied(tmp_path, source, to=to)
    assert (tmp_path / "x").read_bytes() == bytes(to) + CONTENT[:done] + bytes(SIZE - done)


def test_the_system_is_not_asked_where_pages_differ(tmp_path: Path) -> None:
    (source := tmp_path / "source").write_bytes(CONTENT)
    assert copied(tmp_path, source, at=8) == 0
    assert copied(tmp_path, source, to=1) == 0


@pytest.mark.parametrize("code", NOT_THERE)
def test_a_copy_that_the_system_refuses_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (source := tmp_path / "source").write_bytes(CONTENT)
    monkeypatch.setattr("os.copy_file_range", refuse(code), raising=False)
    assert copied(tmp_path, source) == 0
    monkeypatch.delattr("os.copy_file_range")
    assert copied(tmp_path, source) == 0


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_writer_whose_start_is_interrupted_ends_with_the_others(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        if len(started) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    written: list[int] = []
    windows = Windows(lambda data, place: written.append(place), 1)
    window = windows.take()
    with pytest.raises(KeyboardInterrupt) as caught:
        windows.give(window, 0, 1, 0)
    windows.abandon(caught.value)
    for thread in started:
        thread.join(timeout=10)
    assert [thread.is_alive() for thread in started] == [False] * at
    assert written == []
