"""Folders as models: an installed class of a table is built, code in them never runs, no weight is random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers import zoo
from tests.helpers.marks import some
from tests.helpers.tool import run_here
from wnconvert import fold_file
from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.verbs.models.loading import prepared as preparing
from wnconvert.verbs.models.loading.model import find_model
from wnconvert.verbs.models.loading.prepared import Prepared, inputs_of, prepared
from wnconvert.verbs.models.proof.functions import function_of
from wnconvert.verbs.models.proof.inputs.proposed import KNOWN, known_class
from wnconvert.verbs.models.proof.running import quiet_torch
from wnconvert.verbs.models.proof.samples import arrays, samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

QUIET = '{"noise_scale": 0, "noise_scale_duration": 0}'
#: The rows of the zoo whose classes are built for a folder.
ROWS = {
    row.name: row
    for row in zoo.ROWS
    if row.saves
    and any(each.library == "transformers" and each.classes.fullmatch(row.name) for each in KNOWN)
}


def saved(row: zoo.Row, folder: Path) -> nn.Module:
    model: Any = row.plain()
    with quiet_torch():
        model.save_pretrained(folder)
    found: nn.Module = model
    return found


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("vits") / "saved"
    return folder, saved(ROWS["VitsModel"], folder)


@pytest.fixture
def copy(vits: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    found: Path = shutil.copytree(vits[0], tmp_path / "copy")
    return found


def change(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def run(made: Prepared | nn.Module, inputs: Any, ranges: Any) -> dict[str, np.ndarray[Any, Any]]:
    module = made.module if isinstance(made, Prepared) else made
    signature = signature_of(inputs, ranges)
    with quiet_torch(), torch.no_grad():
        return {
            name: np.asarray(value)
            for name, value in function_of(module)(arrays(signature, samples_of(signature, 1)[0])).items()
        }


@some("name", {name: name for name in ROWS}, ["VitsModel", "SpeechT5HifiGan"])
def test_a_folder_is_built_with_its_weights_and_takes_what_is_proposed(name: str, tmp_path: Path) -> None:
    model = saved(ROWS[name], tmp_path / "saved")
    made = prepared(str(tmp_path / "saved"), inputs=(), kwargs=QUIET if name.startswith("Vits") else None)
    assert isinstance(made.module, nn.Module)
    assert type(made.module) is type(model)
    assert any("the inputs are those proposed: --input '" in note for note in made.notes)
    expected, found = model.state_dict(), made.module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    first = run(made, made.inputs, made.ranges)
    assert first
    assert all(
        np.array_equal(value, first[key]) for key, value in run(made, made.inputs, made.ranges).items()
    )


def test_every_row_of_transformers_is_tried_and_its_texts_name_what_forward_has() -> None:
    tried = [known_class("transformers", name) for name in ROWS]
    assert [row for row in KNOWN if row.library == "transformers" and row not in tried] == []


def test_what_a_folder_takes_is_listed_without_a_build(
    vits: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(zoo.of("VitsModel"), "__init__", never)
    found = inputs_of(str(vits[0]))
    assert (found.class_name, found.built) == ("VitsModel", False)
    assert found.typed == "--input 'input_ids=int64[1,L]<12' --range L=8..64"
    assert found.proposal.settings == {"noise_scale": 0.0, "noise_scale_duration": 0.0}
    assert [each.name for each in found.proposal.arguments if each.needed] == ["input_ids"]
    named = inputs_of(
        "transformers:VitsModel.from_pretrained",
        kwargs=json.dumps({"pretrained_model_name_or_path": str(vits[0])}),
    )
    assert named.typed == found.typed


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"inputs": ["ids=int64[1,L]<12"], "kwargs": QUIET}, "no input 'ids'"),
        ({"inputs": ["input_ids=int64[1,L]<12"]}, "VitsModel draws noise"),
        ({"inputs": (), "ranges": ["T=3..9"], "kwargs": QUIET}, "no input has the size T"),
        ({"inputs": (), "kwargs": '{"noise_scales": 0}'}, "the config has no setting 'noise_scales'"),
        ({"inputs": (), "kwargs": QUIET[:-1] + ', "hidden_size": "x"}'}, "cannot build VitsModel"),
        ({"inputs": (), "trust": True}, "code in a folder is never run"),
    ],
    ids=["name", "noise", "range", "setting", "value", "trust"],
)
def test_a_slip_is_told_before_a_folders_model_is_built(
    asked: dict[str, Any], says: str, vits: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "load_weights", None)
    with pytest.raises(WnconvertError) as caught:
        prepared(str(vits[0]), **asked)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_ranges_and_settings_that_are_given_replace_those_proposed(vits: tuple[Path, nn.Module]) -> None:
    made = prepared(str(vits[0]), inputs=(), ranges=["L=9..11"], kwargs=QUIET)
    assert made.ranges == ("L=9..11",)
    assert getattr(made.module, "noise_scale") == 0.0  # noqa: B009


def test_fold_recipe_and_check_take_a_folder(vits: tuple[Path, nn.Module], tmp_path: Path) -> None:
    model = str(vits[0]), "--kwargs", QUIET, "--range", "L=5..9"
    folded = tmp_path / "folded"
    ended = run_here("fold", vits[0], "--model", *model, "-o", folded, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["proof"]["samples"] == 4
    ended = run_here("check", folded, *model, "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["equal"], len(report["samples"])) == (True, 4)
    assert any("the inputs are those proposed" in note for note in report["notes"])
    ended = run_here("recipe", *model, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["samples"] == 4


# -- what is never run


def test_code_in_a_folder_is_not_run_and_that_is_said(copy: Path) -> None:
    (copy / "modeling_own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\nclass VitsModel: pass\n")
    change(copy, auto_map={"AutoModel": "modeling_own.VitsModel", "AutoConfig": "modeling_own.VitsModel"})
    made = prepared(str(copy), inputs=(), kwargs=QUIET)
    assert type(made.module) is zoo.of("VitsModel")
    assert any("auto_map" in note and "not run" in note for note in made.notes)
    assert not (copy / "ran").exists()


def test_a_setting_that_would_choose_code_does_not_reach_the_library(copy: Path) -> None:
    change(copy, attn_implementation="acme/kernels", _attn_implementation="acme/kernels")
    made = prepared(str(copy), inputs=(), kwargs=QUIET)
    assert "acme" not in repr(getattr(made.module, "config"))  # noqa: B009
    with pytest.raises(ArgumentError, match="no setting 'attn_implementation'"):
        prepared(str(copy), inputs=(), kwargs='{"attn_implementation": "acme/kernels"}')


@pytest.mark.parametrize(
    ("settings", "says", "fix"),
    [
        (
            {"architectures": ["BertModel"]},
            "BertModel is not among the classes",
            "transformers:BertModel.from",
        ),
        ({"architectures": ["pipeline"]}, "no model that is called pipeline", "install"),
        ({"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}, "called Own", "is not run"),
        ({"architectures": None}, "names no class", "save_pretrained"),
    ],
    ids=["not in the table", "no model", "its own", "none"],
)
def test_a_class_that_is_not_in_the_table_is_not_built(
    settings: dict[str, Any], says: str, fix: str, copy: Path
) -> None:
    with pytest.raises(InputError) as caught:
        find_model(str(change(copy, **settings)))
    assert says in str(caught.value)
    assert fix in caught.value.fix
    assert "config.json" in str(caught.value) or "no model" in str(caught.value)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names a class"):
        find_model(str(tmp_path))


# -- weights


def test_a_folded_folder_computes_what_it_computed_before(
    vits: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    fold_file(vits[0], tmp_path / "folded")
    before, after = (prepared(str(each), inputs=(), kwargs=QUIET) for each in (vits[0], tmp_path / "folded"))
    expected, found = (run(each, each.inputs, each.ranges) for each in (before, after))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_tensor_that_is_lacking_is_an_error_and_never_random(copy: Path) -> None:
    path = copy / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["decoder.conv_pre.weight"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        prepared(str(copy), inputs=(), kwargs=QUIET)
    assert "missing: decoder.conv_pre.weight" in "\n".join(caught.value.lines)


def test_other_weights_than_the_folders_are_loaded_where_they_are_given(
    vits: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    tensors = {name: value + 1 for name, value in vits[1].state_dict().items()}
    torch.save(tensors, tmp_path / "other.pt")
    made = prepared(str(vits[0]), inputs=(), kwargs=QUIET, weights=str(tmp_path / "other.pt"))
    found = made.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_weights_of_another_dtype_are_said(copy: Path) -> None:
    path = copy / "model.safetensors"
    safetensors.torch.save_file(
        {name: value.half() for name, value in safetensors.torch.load_file(path).items()}, path
    )
    made = prepared(str(change(copy, dtype="float16")), inputs=(), kwargs=QUIET)
    assert any("float16" in note and "float32" in note for note in made.notes)
    assert {value.dtype for value in made.module.parameters()} == {torch.float32}


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MMAudioVocoder", {"num_mels": 6, "upsample_initial_channel": 64}),
        ("MiniMaxMusic3Vocoder", {"latent_channels": 8, "decoder_input_dim": 8, "decoder_hidden_dim": 32}),
        (
            "AutoencoderOobleck",
            {"encoder_hidden_size": 8, "decoder_channels": 4, "decoder_input_channels": 4},
        ),
    ],
)
def test_a_class_of_diffusers_is_built_and_takes_what_is_proposed(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} does not have it yet")
    torch.manual_seed(7)
    with quiet_torch():
        model = getattr(diffusers, name)(**settings)
        model.save_pretrained(tmp_path / "saved")
    made = prepared(str(tmp_path / "saved"), inputs=())
    found = made.module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    assert run(made, made.inputs, made.ranges)
