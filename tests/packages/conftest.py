"""torchaudio as the packages here see it: there, and unable to do anything.

Its wheels need CUDA's libraries even where torch is a CPU build. The packages import it to read and to
resample audio, which no test here does.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType


class _Unable(ModuleType):
    """A module that has every name, and of which nothing can be called."""

    def __getattr__(self, name: str) -> _Unable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unable(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> None:
        raise RuntimeError(f"{self.__name__} was called, and it is not here")


PARTS = ("", ".functional", ".functional.functional", ".transforms")
if importlib.util.find_spec("torchaudio") is None:
    for part in PARTS:
        unable = _Unable(f"torchaudio{part}")
        unable.__path__ = []
        unable.__spec__ = importlib.machinery.ModuleSpec(unable.__name__, None)
        sys.modules[unable.__name__] = unable
