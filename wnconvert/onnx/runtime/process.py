"""onnxruntime's process as seen from here: started, asked for models and their outputs, ended.

A model may compute for ever, take all memory or crash; then its process ends and this one does not. What it
is told are paths, bytes of models and arrays.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from io import RawIOBase
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar, cast

import numpy as np

from wnconvert.errors import ArgumentError, FormatError, InputError, VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import option, to_install
from wnconvert.onnx.runtime.frames import MODEL, Frame, receive, send
from wnconvert.onnx.runtime.memory import free_memory
from wnconvert.onnx.runtime.ports import ValueInfo, check_feeds, check_numbers
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.onnx.segments import Segment
from wnconvert.tensors.blocks import Array

__all__ = ["Opened", "Runtime"]


#: After so many ends of its process no other is started.
_MOST_ENDS = 3
#: The part of its time that work ahead may take.
_AHEAD = 0.1
#: Bytes that lie in a pipe between the two, where the system lets them.
_PIPE = 1 << 20
#: `python -m` would import from the current folder first; so the child has the very path of this process.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from wnconvert.onnx.runtime.child import serve; serve()"


_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that onnxruntime has loaded; ``inputs`` are the required ones. Errors name ``path``."""

    path: Path
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    loaded: _Loaded | None = field(default=None, repr=False, compare=False)

    def run(
        self, feeds: Mapping[str, Array], spelled: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Array]:
        """The outputs by name, in order; ``spelled`` is how the user writes names of inputs.

        Raises ``ArgumentError`` if the names, dtypes or shapes of ``feeds`` do not fit its inputs,
        ``InputError`` if an output is not a tensor of numbers, ``VerifyError`` if the model fails,
        ``NoAnswerError`` if there is no answer.
        """
        assert self.loaded is not None  # noqa: S101 - it was opened by a `Runtime`
        with _naming(self.path):
            check_feeds(self.inputs, feeds, spelled)
            check_numbers(self.outputs)
            _, found = self.loaded.ask({"do": "run"}, feeds)
        return found

    def close(self) -> None:
        """Give its memory back; that of a process that is over is the system's."""
        assert self.loaded is not None  # noqa: S101 - it was opened by a `Runtime`
        if not self.loaded.process.is_over:
            self.loaded.ask({"do": "forget"}, {})


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model by its number, in the process that has loaded it."""

    process: _Process
    number: int

    def ask(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        return self.process.ask({**said, "model": self.number}, arrays)


class Runtime:
    """onnxruntime in a process of its own, which ends with the ``with`` block, however that ends.

    ``timeout`` are the seconds that it may work in all; ``memory`` are the bytes that it may use, all that is
    free if None. Where its process has ended before its time, another one is started.
    """

    def __init__(self, timeout: float, *, memory: int | None = None) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ArgumentError("running an ONNX model needs onnxruntime", fix=to_install("onnxruntime"))
        self._clock = _Clock(timeout)
        self._memory = memory
        self._process: _Process | None = None
        self._ends = self._models = 0
        self._turn = threading.Lock()

    def __enter__(self) -> Runtime:
        self._process = self._started()  # it imports onnxruntime while this one works on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.end()

    def open(self, path: Path, *, optimize: bool = True, outline: bytes | None = None) -> Opened:
        """Load a model with its external data from beside it; without ``optimize`` its nodes run as they are.

        An ``outline`` of the model takes its place, of which large tensors lie in the model, and are mapped.
        Raises ``InputError`` (or ``FormatError``) for a model that onnxruntime cannot load,
        ``NoAnswerError`` if there is no answer.
        """
        said = {"do": "load", "optimize": optimize}
        return self._loaded(path, said, {} if outline is None else {MODEL: np.frombuffer(outline, np.uint8)})

    def open_segments(self, path: Path, segments: Sequence[Segment], outputs: Sequence[str]) -> Opened:
        """Load a model in segments, whose large tensors lie in its folder, its nodes run as they are.

        ``outputs`` are the names of its outputs. Raises as ``open`` does, also where onnxruntime could load
        the whole.
        """
        said = {"do": "load segments", "takes": [segment.takes for segment in segments], "outputs": outputs}
        models = {str(at): np.frombuffer(segment.model, np.uint8) for at, segment in enumerate(segments)}
        return self._loaded(path, said, models)

    def _loaded(self, path: Path, said: Mapping[str, Any], models: Mapping[str, Array]) -> Opened:
        with _naming(path):
            _check_file(path)
            self._models += 1
            loaded = _Loaded(self._running(), self._models)
            answer, _ = loaded.ask({**said, "path": str(path.absolute())}, models)
        inputs, outputs = (
            tuple(ValueInfo.of(*port) for port in answer[ports]) for ports in ("inputs", "outputs")
        )
        return Opened(path, inputs, outputs, loaded)

    def compute(self, model: bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a model of small tensors, its nodes run as they are; raises as both above do.

        Several threads may ask for them: they take turns.
        """
        arrays = {MODEL: np.frombuffer(model, np.uint8), **feeds}
        with self._turn:
            return self._running().ask({"do": "compute"}, arrays)[1]

    def ahead(self, work: Callable[[], _Found]) -> _Found | None:
        """What work comes to that is not asked for yet; None if there is no answer in a tenth of the time.

        Then it can be done in its turn, with the time that is left: where the process ended, that does not
        count as one of its ends.
        """
        process = self._running()
        process.clock = short = _Clock(self._clock.left * _AHEAD)
        try:
            return work()
        except NoAnswerError:
            return None
        finally:
            process.clock = self._clock
            self._clock.left -= short.seconds - short.left
            if process.is_over:
                self._process = None

    def interrupt(self) -> None:
        """End what it does, for which another thread waits: that gets no answer."""
        if self._process is not None:
            self._process.child.kill()

    def _running(self) -> _Process:
        if self._process is None or self._process.is_over:
            self._process = self._started()
        return self._process

    def _started(self) -> _Process:
        if self._process is not None:
            self._ends += 1
            if self._ends >= _MOST_ENDS or self._clock.is_over:
                raise self._process.why()
        return _Process(self._clock, free_memory() if self._memory is None else self._memory)


class _Clock:
    """The seconds that are left for work."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left = min(seconds, threading.TIMEOUT_MAX)

    @property
    def is_over(self) -> bool:
        return self.left <= 0

    def late(self) -> NoAnswerError:
        return NoAnswerError(
            f"onnxruntime took longer than {self.seconds:g} s",
            fix=f"{option('timeout', metavar='SECONDS')} gives it more time",
        )


class _Process:
    """One process; ``ask`` waits for its answer, and kills it when time is over."""

    def __init__(self, clock: _Clock, memory: int | None) -> None:
        self.clock = clock
        self.is_over = self.is_ready = False
        command = [sys.executable or "", "-c", _CODE, *map(str, sys.path)]
        try:
            self.child = subprocess.Popen(  # noqa: S603 - this very Python
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pipesize=_PIPE,
            )
        except OSError as error:
            raise InputError(
                f"no process for onnxruntime can be started ({error.strerror})",
                fix=f"end other programs, and make sure that {sys.executable} is there",
            ) from error
        self.pipes = cast(RawIOBase, self.child.stdin), cast(RawIOBase, self.child.stdout)
        with contextlib.suppress(OSError):  # it is over; the first answer that is waited for says so
            send(self.pipes[0], {"do": "start", "memory": memory}, {})

    def ask(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        """The answer to a request. Raises the error that it is, or ``NoAnswerError``."""
        if self.is_over:
            raise self.why()
        try:
            if not self.is_ready:  # to start takes no time of the model's
                _checked(receive(self.pipes[1]))
                self.is_ready = True
            answer = self._in_time(said, arrays)
        except (EOFError, OSError):
            self.end()
            raise self.why() from None
        except BaseException:  # Ctrl-C: its answer would be taken for the next one's
            self.end()
            raise
        return _checked(answer)

    def _in_time(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        timer = threading.Timer(max(self.clock.left, 0), self.child.kill)
        timer.daemon = True
        began = time.monotonic()
        timer.start()
        try:
            send(self.pipes[0], said, arrays)
            return receive(self.pipes[1])
        finally:
            timer.cancel()
            self.clock.left -= time.monotonic() - began

    def end(self) -> None:
        """End it, whatever it does."""
        self.is_over = True
        self.child.kill()
        self.child.wait()
        for pipe in self.pipes:
            pipe.close()

    def why(self) -> NoAnswerError:
        """Why there is no answer."""
        code = self.child.returncode or 0
        if self.clock.is_over:
            return self.clock.late()
        if code == -signal.SIGTERM or (code < 0 and -code == getattr(signal, "SIGKILL", 0)):
            what = "onnxruntime's process was killed, as systems do where memory is short"
            return NoAnswerError(what, fix="free some memory, or use a machine that has more")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return NoAnswerError(
            f"onnxruntime crashed ({name})", fix="update onnxruntime, or export the model again"
        )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors that are raised inside name a model."""
    try:
        yield
    except WnconvertError as error:
        error.where = error.where or str(path)
        raise


def _checked(answer: Frame) -> Frame:
    """An answer. Raises the error that it is."""
    said = answer[0]
    if "bug" in said:
        raise RuntimeError(said["bug"])
    if "error" in said:
        kind, heading, fix = said["error"]
        raise _KINDS[kind](heading, fix=fix)
    return answer


#: The errors that the other process may have, by the names of their classes.
_KINDS: dict[str, type[WnconvertError]] = {
    kind.__name__: kind for kind in (FormatError, InputError, NoAnswerError, VerifyError)
}


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError("no such file")
    if not path.is_file():
        raise InputError("not a file", fix="give the .onnx file itself")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(str(error.strerror or error)) from error
    if empty:
        raise FormatError("an empty file, not an ONNX model", fix="export it again")
