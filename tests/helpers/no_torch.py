"""An import of torch in the tests of `make quick`: a test that needs it is skipped, and the tool must not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import NoReturn

import pytest

from tests.helpers.golden import ROOT

__all__ = ["NoTorch"]


class NoTorch(MetaPathFinder):
    """Refuses to import torch, in the name of whoever asked for it first: a test, or wnconvert."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return refuse(sys._getframe(1)) if fullname == "torch" else None


def refuse(frame: FrameType | None) -> NoReturn:
    """Skip the test, or its file, in which the import stands; fail if it stands in the package."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/wnconvert/"):
            raise AssertionError(f"{file}, line {frame.f_lineno}: torch is imported where none is needed")
        if file.startswith(f"{ROOT}/tests/") and file != __file__:
            pytest.skip("it needs torch", allow_module_level=True)
        frame = frame.f_back
    raise AssertionError("torch is imported, and by nobody of us")
