"""What holds for every test: ids are short, failures too, and who shares a worker with whom.

`pytest --refresh` writes the golden outputs and the outputs and helps of the pages again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.helpers.browser import Browser
    from tests.helpers.runner import Runner

#: A test's name with its parameters may be this long, and of a parameter's text so much stands in it.
LONGEST_NAME = 120
LONGEST_TEXT = 20

#: Files whose tests start first, for they take longest: a worker that begins one at the end works alone.
LONGEST = (
    "alone",
    "verbs/export/test_export.py",
    "whole/test_docs.py",
    "verbs/conversion/test_migrate.py",
    "verbs/export/test_real_exports.py",
    "whole/test_fixtures.py",
    "verbs/conversion/test_folders.py",
    "whole/test_real_models.py",
    "verbs/modules/test_wrappers.py",
    "verbs/modules/test_surgery.py",
    "verbs/conversion/test_split.py",
)

# A machine that is busy is slow, and no test is wrong for that.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-torch", action="store_true", help="skip what needs torch: nothing may import it")
    parser.addoption("--refresh", action="store_true", help="write what commands print where it is shown")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-torch"):
        from tests.helpers.no_torch import NoTorch

        sys.meta_path.insert(0, NoTorch())
    if config.getoption("--refresh") and os.environ.get("CI"):
        raise pytest.UsageError("--refresh where CI is set would approve whatever is printed")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def refresh(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--refresh"))


@pytest.fixture
def run() -> Runner:
    """The command line in this process."""
    from tests.helpers.tool import run_here

    return run_here


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, one for all tests of a worker."""
    from tests.helpers.browser import browser_of_worker

    yield from browser_of_worker(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session", autouse=True)
def _one_runtime() -> Iterator[None]:
    from tests.helpers.runtimes import shared_runtime

    with shared_runtime():
        yield


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long texts are called after their parameter: an id is read by people, and stands in logs."""
    return argname if isinstance(val, (str, bytes)) and len(repr(val)) > LONGEST_TEXT + 2 else None


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = [item.nodeid for item in items if len(item.name) > LONGEST_NAME]
    if long:
        shown = "\n".join(name[:200] for name in long[:20])
        raise pytest.UsageError(f"{len(long)} names are too long; give ids= to the parameters:\n{shown}")
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False):  # only a worker of xdist has it
        check_groups(session.items)


def check_groups(items: list[pytest.Item]) -> None:
    """xdist puts groups behind the ids. Where it does not, each worker makes every fixture anew."""
    if not all("@" in item.nodeid for item in items):
        raise pytest.UsageError("this pytest-xdist cannot group tests under this pytest: see pyproject.toml")


def _group(item: pytest.Item) -> str:
    """A file's tests run in one worker, where they share what is made once; some files share one, too."""
    if item.get_closest_marker("alone"):
        return "alone"
    return item.path.relative_to(Path(__file__).parent).as_posix()


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where long bytes differ; the bytes themselves, and their diff, are of no use to anyone."""
    if op != "==" or not isinstance(left, bytes) or not isinstance(right, bytes):
        return None
    if max(len(left), len(right)) < 1000:
        return None
    at = next((at for at, both in enumerate(zip(left, right, strict=False)) if both[0] != both[1]), None)
    first = min(len(left), len(right)) if at is None else at
    return [
        f"{len(left)} bytes == {len(right)} bytes",
        f"they differ from byte {first} on: {left[first : first + 16]!r} and {right[first : first + 16]!r}",
    ]
