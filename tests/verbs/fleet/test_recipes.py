"""Many checkpoints of one model folded by one recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import FIXTURES
from wnconvert import InputError, fold_files


def sources(folder: Path) -> list[Path]:
    for name in ("a.pt", "b.pt"):
        shutil.copy(FIXTURES / "normed.pt", folder / name)
    shutil.copy(FIXTURES / "normed.toml", folder / "net.toml")
    return [folder / "a.pt", folder / "b.pt"]


def states(folder: Path, **options: Any) -> list[str]:
    found = fold_files(
        [folder / "a.pt", folder / "b.pt"],
        folder / "out",
        jobs=1,
        recipe=folder / "net.toml",
        report=folder / "report.jsonl",
        **options,
    )
    return sorted(result.state for result in found)


def test_all_are_folded_and_a_changed_recipe_is_another_job(tmp_path: Path) -> None:
    sources(tmp_path)
    assert states(tmp_path) == ["done", "done"]
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert {line["options"]["recipe"][:7] for line in lines} == {"sha256:"}
    assert states(tmp_path, force=True) == ["skipped", "skipped"]
    recipe = tmp_path / "net.toml"
    recipe.write_text(recipe.read_text().replace("1e-05", "1e-03", 1))
    assert states(tmp_path, force=True) == ["done", "done"]


def test_a_recipe_that_is_none_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the recipe cannot be read"):
        list(fold_files(sources(tmp_path), tmp_path / "out", jobs=1, recipe=tmp_path / "none.toml"))
    assert not (tmp_path / "out").exists()
