"""Folders held against the class that they name, and folders that name none that could be built."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers.runner import Runner
from tests.helpers.zoo import ROWS
from wnconvert import loads_folder
from wnconvert.errors import ArgumentError, InputError, WnconvertError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 as transformers saves it."""
    path = tmp_path_factory.mktemp("saved")
    model: Any = next(row for row in ROWS if row.name == "Wav2Vec2Model").plain()
    model.save_pretrained(path)
    return path


def changed(saved: Path, out: Path, config: Any = None, **tensors: torch.Tensor | None) -> Path:
    """The folder with other settings, and with tensors added, exchanged or (None) left out."""
    out.mkdir()
    settings = json.loads((saved / "config.json").read_text()) | (config or {})
    (out / "config.json").write_text(json.dumps(settings))
    kept = safetensors.torch.load_file(saved / "model.safetensors") | tensors
    whole = {name: value for name, value in kept.items() if value is not None}
    safetensors.torch.save_file(whole, out / "model.safetensors")
    return out


def test_a_folder_that_loads_is_told_and_is_0(saved: Path, run: Runner) -> None:
    done = run("loads", saved)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{saved} loads into Wav2Vec2Model of transformers ")
    assert done.stdout.endswith("30 tensors, none missing, none unexpected\n")


def test_what_does_not_fit_is_listed_and_is_1(saved: Path, tmp_path: Path, run: Runner) -> None:
    bias = "encoder.layer_norm.bias"
    tensors = {bias: None, "more": torch.ones(2), "masked_spec_embed": torch.ones(3)}
    out = changed(saved, tmp_path / "a", **tensors)
    done = run("loads", out)
    assert done.returncode == 1
    assert [line.split() for line in done.stdout.splitlines()[2:5]] == [
        ["missing", bias],
        ["other", "shape", "masked_spec_embed", "3,", "expected", "16"],
        ["unexpected", "more"],
    ]
    *_, lost, verdict = done.stdout.splitlines()
    assert verdict.endswith("30 tensors, 1 missing, 1 of another shape, 1 unexpected")
    assert lost == "from_pretrained would leave 2 tensors random"
    assert run("loads", out, "--quiet").stdout == f"{verdict}\n"
    assert run("loads", out, "--silent").stdout == ""
    report = json.loads(run("loads", out, "--json").stdout)
    assert (report["loads"], report["missing"], report["unexpected"]) == (False, [bias], ["more"])
    assert report["misfits"] == [{"name": "masked_spec_embed", "shape": [3], "expected": [16]}]


def test_a_model_without_the_head_of_its_class_lacks_the_head_alone(saved: Path, tmp_path: Path) -> None:
    report = loads_folder(changed(saved, tmp_path / "a", {"architectures": ["Wav2Vec2ForCTC"]}))
    assert report.missing == ("lm_head.bias", "lm_head.weight")
    assert report.unexpected == ()


def test_dtypes_and_numbers_do_not_matter_and_integers_are_taken(saved: Path, tmp_path: Path) -> None:
    half = {
        name: value.half() for name, value in safetensors.torch.load_file(saved / "model.safetensors").items()
    }
    assert loads_folder(changed(saved, tmp_path / "a", **half))
    more = loads_folder(changed(saved, tmp_path / "b", steps=torch.tensor([3])))
    assert more.unexpected == ("steps",)


def refused(path: Path) -> WnconvertError:
    with pytest.raises(WnconvertError) as caught:
        loads_folder(path)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["SomeoneElsesModel"]}, "has no model that is called SomeoneElsesModel"),
        ({"architectures": ["Wav2Vec2Config"]}, "has no model that is called Wav2Vec2Config"),
        ({"architectures": ["os"]}, "has no model that is called os"),
        ({"architectures": ["PreTrainedModel"]}, "cannot build PreTrainedModel"),
        ({"hidden_size": "wide"}, "cannot build Wav2Vec2Model"),
        ({"architectures": None}, "its config.json names no class"),
    ],
)
def test_a_class_that_cannot_be_built_is_told(saved: Path, tmp_path: Path, config: Any, said: str) -> None:
    error = refused(changed(saved, tmp_path / "a", config))
    assert isinstance(error, InputError)
    assert said in str(error)


def test_code_that_lies_beside_the_weights_is_not_run(saved: Path, tmp_path: Path) -> None:
    own = {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}
    out = changed(saved, tmp_path / "a", own)
    (out / "own.py").write_text("raise SystemExit('it was run')")
    assert refused(out).fix == "its code lies beside the weights, and is not run"


def test_what_is_not_a_folder_with_a_config_is_told(saved: Path, tmp_path: Path) -> None:
    assert "no such folder" in str(refused(tmp_path / "none"))
    assert refused(saved / "model.safetensors").fix == "give its folder"
    assert "there is no config.json that names a class" in str(refused(tmp_path))
    out = changed(saved, tmp_path / "a")
    for text, said in (("{", "not JSON"), ("[1]", "a JSON list, not an object"), ("\xff", "not JSON")):
        (out / "config.json").write_text(text, encoding="latin-1")
        assert said in str(refused(out))


def test_a_library_that_is_not_installed_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name in ("transformers", "diffusers") else find(name),
    )
    for path, library in (
        (saved, "transformers"),
        (changed(saved, tmp_path / "a", {"_class_name": "AutoencoderOobleck"}), "diffusers"),
    ):
        with pytest.raises(ArgumentError, match=f"a class of {library}, which is not installed") as caught:
            loads_folder(path)
        assert caught.value.fix == f"pip install {library}"


def test_an_entry_of_the_hubs_cache_and_an_address_are_the_folders_they_mean(
    saved: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "aaaa"
    snapshot.parent.mkdir(parents=True)
    changed(saved, snapshot)
    report = loads_folder(tmp_path / "models--a--b")
    assert report
    assert report.notes == ("it is an entry of the hub's cache, and its snapshot aaaa is read",)
    assert loads_folder(saved.as_uri())


def test_a_pipeline_is_told_by_its_components(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    changed(saved, tmp_path / "encoder")
    with pytest.raises(InputError, match="a pipeline of several models") as caught:
        loads_folder(tmp_path)
    assert caught.value.fix == f"name one of them: {tmp_path / 'encoder'}"


def test_what_is_no_path_is_an_argument_error() -> None:
    number: Any = 5
    with pytest.raises(ArgumentError, match="an int is not the name of a folder"):
        loads_folder(number)
