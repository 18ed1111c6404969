"""The model of the new code held against that of the old code: what is the same, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner, listing
from wnconvert import ArgumentError, InputError, modernize_code
from wnconvert.verbs.modernization.proof import ProofRequest, prove_code
from wnconvert.verbs.modernization.writing import Rewrite

VOCODER = FIXTURES / "old_vocoder"
MEL = "mel=float32[1,8,T]"


@pytest.fixture
def vocoder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VOCODER, tmp_path / "vocoder", ignore=shutil.ignore_patterns("__pycache__")))


def test_the_models_of_both_trees_are_the_same_and_the_tree_stays(vocoder: Path, run: Runner) -> None:
    before = listing(vocoder)
    done = run("modernize", vocoder, "--verify", "models:generator", "--input", MEL, "--check", "--json")
    assert done.returncode == 1  # the places are left
    proof = json.loads(done.stdout)["proof"]
    assert proof["equal"]
    names = [check["name"] for check in proof["checks"]]
    assert names == ["outputs", "keys", "training", "save and load", "deepcopy"]
    assert listing(vocoder) == before


def spoilt(folder: Path, old: str, new: str) -> dict[Path, Rewrite]:
    """The files after their migration, with a mistake in one of them."""
    after = Path(shutil.copytree(folder, folder.with_name("after")))
    modernize_code(after, write=True)
    made = {path: (after / path.name).read_text() for path in folder.glob("*.py")}
    assert old in made[folder / "models.py"]
    made[folder / "models.py"] = made[folder / "models.py"].replace(old, new)
    return {path: Rewrite(path.read_bytes(), code.encode()) for path, code in made.items()}


MISTAKES = {
    "a missing import": ("init_gain, ", "", {"runs"}),
    "a layer frozen": (
        "init_gain(self.conv_post, 0.5)",
        "self.conv_post.requires_grad_(False)",
        {"training"},
    ),
    "no migration": ("", "", {"keys", "training"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_new_code_is_seen(name: str, vocoder: Path) -> None:
    old, new, checks = MISTAKES[name]
    request = ProofRequest("models:generator", vocoder, (MEL,), (), None, None, "parametrize")
    proof = prove_code(request, spoilt(vocoder, old, new) if old else {})
    assert {one.name for one in proof.checks if one.said} == checks


def test_nothing_is_written_where_the_models_differ(
    vocoder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wnconvert.verbs.modernization import modernize

    def mistaken(request: ProofRequest, _: Any) -> Any:
        return prove_code(request, spoilt(vocoder, "torch.tanh(", "torch.sin("))

    monkeypatch.setattr(modernize, "prove_code", mistaken)
    before = listing(vocoder)
    done = run("modernize", vocoder, "--verify", "models:generator", "--input", MEL, "--write")
    assert done.returncode == 1
    assert "models:generator: outputs: sample 0, output 0 differs by up to " in done.stdout
    assert "12 places to change, and nothing is written: the models differ" in done.stdout.replace(
        " in 3 files", ""
    )
    assert listing(vocoder) == before


def test_a_checkpoint_is_loaded_into_both(vocoder: Path) -> None:
    gan = FIXTURES / "gan.pt"
    with pytest.raises(InputError, match="fails as it is") as caught:  # it is of another model
        modernize_code(vocoder, verify="models:generator", inputs=[MEL], weights=gan, only="generator")
    assert "conv_pre" in str(caught.value)


def test_what_cannot_be_run_is_told(vocoder: Path) -> None:
    with pytest.raises(ArgumentError, match="without inputs"):
        modernize_code(vocoder, verify="models:generator")
    with pytest.raises(InputError, match="fails as it is"):
        modernize_code(vocoder, verify="models:nothing", inputs=[MEL])
