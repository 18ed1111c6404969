"""`pytest --refresh` writes the golden outputs and README's outputs and help again."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh", action="store_true", help="write golden outputs and README's outputs again")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--refresh") and os.environ.get("CI"):
        raise pytest.UsageError("--refresh where CI is set would approve whatever is printed")


@pytest.fixture
def refresh(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--refresh"))
