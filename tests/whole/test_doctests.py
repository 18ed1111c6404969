"""The examples in docstrings. A module is imported when its own are run, not when tests are collected."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.helpers.golden import ROOT


def with_examples() -> list[str]:
    """The modules whose text has examples, by name."""
    every = [path for folder in ("wnconvert", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [module_of(path) for path in every if ">>> " in path.read_text() and path != Path(__file__)]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", with_examples(), ids=lambda name: name.removeprefix("wnconvert."))
def test_examples_show_what_happens(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0, "a comparison of nothing is a failure"
    assert failed == 0, capsys.readouterr().out


def test_there_are_examples_in_every_package() -> None:
    packages = {name.split(".")[1] for name in with_examples() if name.startswith("wnconvert.")}
    assert packages >= {"tensors", "numerics", "layers", "plan", "formats", "onnx", "storage", "reports"}
