"""What is free goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from wnconvert import heap

# What is held of 24 MiB that were free before something small behind them was taken.
_HELD = """
from pathlib import Path
from wnconvert import heap

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

{before}
first = bytearray(30 << 20)  # so that glibc keeps what is as large
del first
start = anonymous()
large = bytearray(b"x") * (24 << 20)
small = [bytearray(2000) for _ in range(100)]
del large
{after}
print(anonymous() - start)
"""


def glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def held(before: str, after: str) -> int:
    """The bytes that a process of its own still holds."""
    program = _HELD.format(before=before, after=after)
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(made.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds")
def test_what_is_large_goes_back_as_soon_as_it_is_free() -> None:
    assert held("heap.keep_large_apart()", "") < 4 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds")
def test_all_that_is_free_goes_back_when_asked_for() -> None:
    own = "heap._PROCESS.is_ours = True"  # without the thresholds, by which it would have gone back before
    assert held(own, "heap.give_back()") < 4 << 20


@pytest.mark.skipif(not glibc(), reason="another C library may give back by itself")
def test_the_heap_of_a_program_that_calls_the_library_is_left_as_it_is() -> None:
    assert held("", "heap.give_back()") > 20 << 20


def test_other_systems_have_no_such_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_PROCESS", heap._Process())
    monkeypatch.setattr(sys, "platform", "win32")  # where ctypes has no library of the process
    heap.keep_large_apart()
    heap.give_back()
