"""The table of normalizations: README has it, and inspect says its words."""

from __future__ import annotations

from pathlib import Path

from wnconvert.layers.kinds.norms import NORMS, norms_table
from wnconvert.layers.kinds.table import KINDS
from wnconvert.layers.schemes import spellings

ROOT = Path(__file__).parents[3]


def test_readme_has_the_table_row_by_row() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = lines.index(norms_table()[0])
    assert tuple(lines[first : first + len(NORMS)]) == norms_table()
    assert not lines[first + len(NORMS)]


def test_a_row_is_there_for_each_that_people_ask_for() -> None:
    asked = {"batch", "layer", "instance", "group", "switchable", "weight", "spectral"}
    others = {"cosine normalization", "weight standardization", "prune"}
    assert set(NORMS) == {f"{name} norm" for name in asked} | others


def test_inspect_says_the_words_of_the_table() -> None:
    said = {(kind.name, kind.folds, kind.how) for kind in KINDS}
    names = {
        "batch norm": "batch norm",
        "prune": "prune",
        "spectral norm": "spectral norm (legacy)",
        "switchable norm": "switchable norm",
        "weight standardization": "weight standardization with gain",
    }
    assert {(shown, NORMS[name].folds, NORMS[name].how) for name, shown in names.items()} <= said
    affine = [kind for kind in KINDS if kind.name == "affine norm"]
    assert affine
    assert all(NORMS[f"{name} norm"].how in kind.how for kind in affine for name in ("layer", "group"))
    assert NORMS["instance norm"].how.split(";")[0] in affine[0].how


def test_the_keys_of_the_table_are_those_that_are_looked_for() -> None:
    for kind in KINDS:
        if kind.name in ("batch norm", "switchable norm"):
            assert all(f"`{key}`" in NORMS[kind.name].shows for key in kind.keys)
    assert "original0" in NORMS["weight norm"].shows
    assert any(v.endswith("original1") for v in spellings("weight"))
