"""What the system does not give, in the words of an error: memory, threads, room, names."""

from __future__ import annotations

import errno
import os

from wnconvert.errors import InputError, OutputError, WnconvertError

__all__ = ["refused_by_system"]


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
#: What the loader says of a library for which there is no memory.
_NOT_LOADED = ("failed to map segment", "annot allocate memory")
#: What Python says where it lost its own MemoryError on the way.
_LOST = "without exception set"
_ELSEWHERE = "free some space; TMPDIR=FOLDER names another folder for temporary files"


def refused_by_system(error: Exception) -> WnconvertError | None:
    """What the system does not give in words: memory, threads, room, names; None for what must be a bug."""
    unloaded = isinstance(error, ImportError) and any(words in str(error) for words in _NOT_LOADED)
    unloaded |= isinstance(error, SystemError) and _LOST in str(error)
    unloaded |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or unloaded:
        detail = "" if unloaded else str(error)
        what = f"not enough memory ({detail})" if detail else "not enough memory"
        return InputError(what, fix="--threads 1 takes less; else free some, or raise the limit (ulimit -v)")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return InputError("no more threads can be started", fix="raise the limit (ulimit -u), or end others")
    if isinstance(error, ValueError) and "maximum supported dimension" in str(error):  # NumPy 1 has 32
        return InputError("a tensor has more axes than this NumPy can hold", fix="pip install 'numpy>=2'")
    if type(error).__module__ == "google.protobuf.message":
        fix = "download or export the model again, or free some memory"
        return InputError(f"a part of the ONNX model cannot be read or made ({error})", fix=fix)
    if isinstance(error, OSError) and error.errno not in (None, errno.EBADF):
        return _refused_call(error)
    return None


def _refused_call(error: OSError) -> WnconvertError:
    """A call of the system that failed, in words."""
    where = "" if error.filename is None else os.fsdecode(error.filename)
    match error.errno:
        case errno.ENOENT if not where and not _current_folder():
            return InputError("the current folder was deleted", fix="cd to one that is there")
        case errno.ENOENT if not where:  # in the words of Python's tempfile
            return InputError(f"{error.strerror}", fix=_ELSEWHERE)
        case errno.ENAMETOOLONG:
            return InputError(
                "its name is too long for this system", where=where, fix="choose a shorter name"
            )
        case code if code in _NO_ROOM:
            return OutputError("the disk is full", where=where, fix=_ELSEWHERE)
        case code if code in _TOO_MANY_FILES:
            return InputError("too many files are open", where=where, fix="raise the limit (ulimit -n 4096)")
    return InputError(
        f"the system refuses ({error.strerror})",
        where=where,
        fix="look at this path, its disk, and your rights",
    )


def _current_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - whether there is one
    except OSError:
        return ""
