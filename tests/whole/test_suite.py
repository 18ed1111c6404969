"""The rules of the tests themselves: names, the ban on torch, which combinations and releases are tried."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import conftest
from tests.helpers.golden import ROOT
from tests.helpers.marks import crossed, some
from tests.helpers.no_torch import NoTorch, refuse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Of the tools of the tests, what wnconvert itself uses where it is there.
USED = {"pandas"}
#: Where another package of the same environment asks for more than wnconvert does.
ASKED_BY_OTHERS = {"huggingface-hub": "transformers 5.0"}


def item(name: str) -> Any:
    return SimpleNamespace(
        name=name, nodeid=name, path=ROOT / "tests" / "x.py", get_closest_marker=lambda _: None
    )


def test_a_name_that_is_too_long_ends_the_collection() -> None:
    with pytest.raises(pytest.UsageError, match="1 names are too long") as caught:
        conftest.pytest_collection_modifyitems([item("test_it[" + "x" * 1_000_000 + "]")])
    assert len(str(caught.value)) < 400


def test_groups_that_do_not_reach_xdist_end_the_run() -> None:
    grouped = SimpleNamespace(nodeid="tests/x.py::test_it[1]@x.py")
    conftest.check_groups([grouped])  # type: ignore[list-item]
    with pytest.raises(pytest.UsageError, match="cannot group"):
        conftest.check_groups([grouped, item("test_it")])  # type: ignore[list-item]


def test_long_texts_do_not_stand_in_names() -> None:
    assert conftest.pytest_make_parametrize_id(b" " * (65 << 20), "content") == "content"
    assert conftest.pytest_make_parametrize_id("mel", "name") is None
    assert conftest.pytest_make_parametrize_id(3, "count") is None


def test_long_bytes_are_not_shown_where_they_differ() -> None:
    left, right = bytes(1 << 20), bytes(1 << 19) + b"x" + bytes(1 << 19)
    shown = conftest.pytest_assertrepr_compare("==", left, right)
    assert shown is not None
    assert "from byte 524288 on" in shown[1]
    assert len("".join(shown)) < 300
    assert conftest.pytest_assertrepr_compare("==", b"a", b"b") is None


@pytest.mark.parametrize(
    ("folder", "kind"), [("tests", pytest.skip.Exception), ("wnconvert", AssertionError)]
)
def test_torch_is_refused_in_the_name_of_who_imports_it(folder: str, kind: type[BaseException]) -> None:
    code = compile("ask(look())", f"{ROOT}/{folder}/made_up.py", "exec")
    with pytest.raises(kind, match="torch"):
        exec(code, {"ask": refuse, "look": lambda: sys._getframe(1)})  # noqa: S102 - a file that is not there
    assert NoTorch().find_spec("numpy", None) is None


def test_by_default_each_value_is_tried_once_and_the_full_run_has_all() -> None:
    params = crossed(a=[1, 2, 3], b="xy").args[1]
    assert [param.id for param in params if not param.marks] == ["1-x", "1-y", "2-x", "3-x"]
    assert len(params) == 6
    rows = some("row", {"p": 1, "q": 2}, ["q"]).args[1]
    assert [(row.id, bool(row.marks)) for row in rows] == [("p", True), ("q", False)]


def least_releases() -> dict[str, Version]:
    """The lower bound of each package that wnconvert asks for, the largest of those in different extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, Version] = {}
    for extra, texts in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for asked in map(Requirement, texts):
            name = canonicalize_name(asked.name)
            if name == "wnconvert" or (extra == "dev" and name not in USED):
                continue
            (least,) = [Version(each.version) for each in asked.specifier if each.operator == ">="]
            found[name] = max(found.get(name, least), least)
    return found


def pins(name: str) -> Iterator[tuple[str, Version]]:
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            package, _, version = line.partition("==")
            yield canonicalize_name(package), Version(version)


def test_the_oldest_releases_of_the_tests_are_those_that_are_declared() -> None:
    least, oldest = least_releases(), dict(pins("constraints-oldest.txt"))
    assert len(least) > 15
    assert {name: oldest[name] for name in least if name not in ASKED_BY_OTHERS} == {
        name: version for name, version in least.items() if name not in ASKED_BY_OTHERS
    }
    assert all(oldest[name] > least[name] for name in ASKED_BY_OTHERS)
