"""The process that runs models: it answers what it is asked on its stdin, until that is closed."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

from wnconvert.errors import InputError, WnconvertError
from wnconvert.heap import keep_large_apart
from wnconvert.messages import printable
from wnconvert.onnx.runtime.frames import MODEL, Frame, receive, send
from wnconvert.onnx.runtime.memory import limit_memory
from wnconvert.onnx.runtime.session import Session, load_session, onnxruntime
from wnconvert.onnx.runtime.words import no_memory
from wnconvert.tensors.blocks import Array

if TYPE_CHECKING:
    from wnconvert.onnx.runtime.segmented import Segmented

__all__ = ["serve"]


#: So many models are kept that were given by their bytes, unless they are larger than this.
_MOST_KEPT, _SMALL = 32, 1 << 20


def serve() -> NoReturn:
    """Answer, one request after the other; the process ends when nobody can ask any more."""
    keep_large_apart()  # what one model needed is not what the next has
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's, which ends this one
    asked, answers = FileIO(os.dup(0)), FileIO(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.__stdin__, sys.__stdout__):  # libraries in C may write there
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    requests: SimpleQueue[Frame] = SimpleQueue()
    Thread(target=_listen, args=(asked, requests), daemon=True).start()
    models = _Models()
    while True:
        send(answers, *_answer(models, *requests.get()))


def _listen(asked: FileIO, requests: SimpleQueue[Frame]) -> None:
    """Take requests; the end of them ends the process, even while a model computes."""
    try:
        while True:
            requests.put(receive(asked))
    except (EOFError, OSError):
        os._exit(0)


def _answer(models: _Models, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
    """The answer to a request, or the error that it led to."""
    try:
        return models.todo[said["do"]](said, arrays)
    except MemoryError:
        return _error(no_memory())
    except WnconvertError as error:
        return _error(error)
    except Exception:  # noqa: BLE001 - told as a bug by the other process
        return {"bug": traceback.format_exc()}, {}


def _error(error: WnconvertError) -> Frame:
    return {"error": (type(error).__name__, error.heading, error.fix)}, {}


class _Models:
    """The models that are loaded, by number."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session | Segmented] = {}
        self.kept: dict[bytes, Session] = {}
        self.todo: dict[str, Callable[[Mapping[str, Any], Mapping[str, Array]], Frame]] = {
            "start": self.start,
            "load": self.load,
            "load segments": self.load_segments,
            "run": self.run,
            "forget": self.forget,
            "compute": self.compute,
        }

    def start(self, said: Mapping[str, Any], _: Mapping[str, Array]) -> Frame:
        """Import onnxruntime, and take no more memory than is given."""
        try:
            onnxruntime()
        except Exception as error:
            what = f"onnxruntime cannot be imported: {printable(str(error).partition(chr(10))[0])}"
            raise InputError(what, fix="install it again") from error
        if said["memory"] is not None:
            limit_memory(said["memory"])
        return {}, {}

    def load(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        """Load a model, or an outline of it; its ports."""
        path, optimize = said["path"], said["optimize"]
        if MODEL in arrays:
            folder = str(Path(path).resolve().parent)
            session = load_session(arrays[MODEL].tobytes(), optimize=optimize, folder=folder)
        else:
            session = load_session(path, optimize=optimize)
        return self.loaded(said["model"], session)

    def load_segments(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        """Load a model in segments; its ports."""
        from wnconvert.onnx.runtime.segmented import load_segmented  # few models need it: others start sooner
        from wnconvert.onnx.segments import Segment

        segments = (
            Segment(model.tobytes(), takes)
            for model, takes in zip(arrays.values(), said["takes"], strict=True)
        )
        folder = str(Path(said["path"]).resolve().parent)
        return self.loaded(said["model"], load_segmented(segments, said["outputs"], folder=folder))

    def loaded(self, number: int, session: Session | Segmented) -> Frame:
        """Keep a model; its ports."""
        self.sessions[number] = session
        inputs, outputs = (
            [(port.name, port.kind, port.shape) for port in ports]
            for ports in (session.inputs, session.outputs)
        )
        return {"inputs": inputs, "outputs": outputs}, {}

    def run(self, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        """The outputs of a model that is loaded."""
        return {}, self.sessions[said["model"]].run(arrays)

    def forget(self, said: Mapping[str, Any], _: Mapping[str, Array]) -> Frame:
        """Give the memory of a model back."""
        self.sessions.pop(said["model"], None)
        return {}, {}

    def compute(self, _: Mapping[str, Any], arrays: Mapping[str, Array]) -> Frame:
        """The outputs of a model by its bytes, its nodes run as they are; the last few are kept."""
        feeds = dict(arrays)
        model = feeds.pop(MODEL).tobytes()
        if model not in self.kept:
            if len(self.kept) == _MOST_KEPT or len(model) > _SMALL:
                self.kept.clear()
            self.kept[model] = load_session(model, optimize=False, threads=1)
        return {}, self.kept[model].run(feeds)
