"""What checks a folded ONNX model, started as soon as there is one to fold.

onnxruntime's process starts while the fold is planned. The original does not need the fold: it is run ahead.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.frozen import dataclass
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.verbs.shared.options import Proving

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.verbs.conversion.onnx.run import OriginalRun

__all__ = ["Ready", "made_ready"]


@dataclass(frozen=True, slots=True)
class Ready:
    """onnxruntime's process, None where nothing is run; and what the original computed ahead of the fold.

    Whoever asks for ``original`` waits until that is done; None if it did not come to an end soon, or was not
    begun. Until then nothing else may be run.
    """

    runtime: Runtime | None = None
    original: Callable[[], OriginalRun | None] = lambda: None


@contextlib.contextmanager
def made_ready(opened: OnnxFile, proving: Proving) -> Iterator[Ready]:
    """Start onnxruntime, and run an opened model whose fold may follow, while the body goes on.

    What is not waited for ends with the body. Where onnxruntime is not installed, nothing is started.
    """
    if not proving.runs or importlib.util.find_spec("onnxruntime") is None:
        yield Ready()
        return
    with Runtime(proving.timeout) as runtime:
        if proving.proof != "model" or not isinstance(opened.path, Path):
            yield Ready(runtime)
            return
        from wnconvert.verbs.conversion.onnx.run import run_original  # the process starts meanwhile

        with ThreadPoolExecutor(1) as beside:
            future = beside.submit(runtime.ahead, partial(run_original, opened, runtime))
            try:
                yield Ready(runtime, future.result)
            finally:
                if not future.done():
                    runtime.interrupt()
