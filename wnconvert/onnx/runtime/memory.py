"""How much memory is free on this machine, and a limit of what this process may use."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

__all__ = ["free_memory", "limit_memory"]


_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def free_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> int | None:
    """The bytes that a process may still use, of the machine's and its control group's; None if unknown."""
    every = [_of_machine(proc), _of_group(proc, groups)]
    return min((count for count in every if count is not None), default=None)


def limit_memory(more: int) -> None:
    """Let this process have so many more bytes than it has now; where systems cannot, nothing happens.

    What is only mapped from files does not count: it needs no memory that is not free again at once.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # which Windows does not have

        most = _kilobytes(_PROC / "self" / "status", "VmData") + more
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        lowest = min([most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))


def _kilobytes(path: Path, name: str) -> int:
    """A number that the system gives in kilobytes, in bytes. Raises ``OSError`` or ``ValueError``."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(name)
    return int(found[1]) << 10


def _of_machine(proc: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return _kilobytes(proc / "meminfo", "MemAvailable") + _kilobytes(proc / "meminfo", "SwapFree")
    return None


def _of_group(proc: Path, groups: Path) -> int | None:
    """What is left to the control group of this process; the cache of files is given back when asked for."""
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"^0::/(.*)$", (proc / "self" / "cgroup").read_text(), re.MULTILINE)
        group = groups / found[1] if found else groups
        most, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return max(int(most) - int(used) + (int(cached[1]) if cached else 0), 0)
    return None
