"""Before a folder is written, it is said which layers its class will not find in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.runner import Runner
from wnconvert import fold_file, migrate_file, split_file
from wnconvert.verbs.shared.options import Form

POSITIONS = "encoder.pos_conv_embed.conv"
RANDOM = np.random.default_rng(0)


def folder_of(path: Path, config: Any, layer: str = POSITIONS, form: str = "parametrize") -> Path:
    """A folder with one layer, normalized in one form or plain, and a config."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    v = RANDOM.standard_normal((4, 3, 5)).astype(np.float32)
    g = np.sqrt((v * v).sum((1, 2), keepdims=True))
    tensors = {
        "parametrize": {
            f"{layer}.parametrizations.weight.original0": g,
            f"{layer}.parametrizations.weight.original1": v,
        },
        "legacy": {f"{layer}.weight_g": g, f"{layer}.weight_v": v},
        "plain": {f"{layer}.weight": v},
    }[form]
    save_file({**tensors, "head.bias": np.ones(3, np.float32)}, path / "model.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (path / "config.json").write_text(text)
    return path


def said(plan: Any) -> list[str]:
    return [note for note in plan.notes if "from_pretrained" in note]


WAV2VEC2 = {"architectures": ["Wav2Vec2Model"]}
OOBLECK = {"_class_name": "AutoencoderOobleck"}
HIFIGAN = {"architectures": ["SpeechT5HifiGan"]}


def test_a_fold_that_the_class_will_not_find_is_told(tmp_path: Path) -> None:
    for name, config, form, how in (
        ("Wav2Vec2Model", WAV2VEC2, "parametrize", "with weight norm"),
        ("AutoencoderOobleck", OOBLECK, "legacy", "in form legacy"),
    ):
        plan = fold_file(folder_of(tmp_path / "a", config, form=form), tmp_path / "out", dry_run=True)
        builds = f"it builds {POSITIONS}.weight {how}"
        then = "load the folder as it is, and fold the model then, with fold_module"
        assert said(plan) == [f"{name}.from_pretrained will leave 2 tensors random: {builds}; {then}"]


def test_under_new_names_the_class_itself_is_to_be_asked(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", WAV2VEC2)
    (note,) = said(fold_file(source, tmp_path / "out", rename=["encoder=enc"], dry_run=True))
    assert note == "names are changed: wnconvert loads OUT tells what Wav2Vec2Model.from_pretrained will find"


def test_a_migration_is_told_where_the_class_takes_one_form_only(tmp_path: Path) -> None:
    oobleck = folder_of(tmp_path / "a", OOBLECK, form="legacy")
    (note,) = said(migrate_file(oobleck, tmp_path / "out", dry_run=True))
    assert note.endswith(f"it builds {POSITIONS}.weight in form legacy; --to legacy writes what it takes")
    migrated = folder_of(tmp_path / "b", OOBLECK, form="parametrize")
    assert not said(migrate_file(migrated, tmp_path / "out", to="legacy", dry_run=True))
    other: dict[str, Form] = {"legacy": "parametrize", "parametrize": "legacy"}
    for form, to in other.items():  # transformers takes either
        wav2vec2 = folder_of(tmp_path / "c", WAV2VEC2, form=form)
        assert not said(migrate_file(wav2vec2, tmp_path / "out", to=to, dry_run=True))


def test_a_split_and_a_migration_of_layers_that_the_class_builds_plain_are_told(tmp_path: Path) -> None:
    plain = folder_of(tmp_path / "a", HIFIGAN, "conv_pre", "plain")
    plan = split_file(plain, tmp_path / "out", layers=["conv_pre.weight"], dim=0, dry_run=True)
    builds = "it builds conv_pre.weight plain; fold these layers"
    expected = [f"SpeechT5HifiGan.from_pretrained will leave 1 tensor random: {builds}"]
    assert said(plan) == expected
    legacy = folder_of(tmp_path / "b", HIFIGAN, "conv_pre", "legacy")
    assert said(migrate_file(legacy, tmp_path / "out", dry_run=True)) == expected


@pytest.mark.parametrize(
    "config",
    [
        HIFIGAN,  # it has the layer plain
        {"architectures": ["HubertModel"], "conv_pos_batch_norm": True},
        {"architectures": ["SomeoneElsesModel"]},
        {"architectures": []},
        {"architectures": "Wav2Vec2Model"},
        {"architectures": [3]},
        {"model_type": "wav2vec2"},
        ["Wav2Vec2Model"],
        "{not json",
        None,
    ],
)
def test_nothing_is_told_where_the_class_finds_all_or_is_not_known(tmp_path: Path, config: Any) -> None:
    source = folder_of(tmp_path / "a", config)
    assert not said(fold_file(source, tmp_path / "out", dry_run=True))
    assert (tmp_path / "a").is_dir()


def test_a_split_that_gives_a_class_its_layers_back_is_not_told(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", WAV2VEC2)
    fold_file(source, tmp_path / "folded")
    assert not said(split_file(tmp_path / "folded", tmp_path / "out", dry_run=True))


def test_each_component_of_a_pipeline_is_told_by_its_own_class(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    folder_of(tmp_path / "pipe" / "vae", OOBLECK, "conv_in", "legacy")
    folder_of(tmp_path / "pipe" / "vocoder", HIFIGAN, "conv_pre", "legacy")
    folder_of(tmp_path / "pipe" / "other", None, form="legacy")
    (note,) = said(fold_file(tmp_path / "pipe", dry_run=True))
    assert note.startswith("AutoencoderOobleck.from_pretrained will leave 2 tensors random: it builds")
    migrated = said(migrate_file(tmp_path / "pipe", dry_run=True))
    assert [note.split(".")[0] for note in migrated] == ["AutoencoderOobleck", "SpeechT5HifiGan"]


def test_it_is_told_before_anything_is_written_and_only_once(tmp_path: Path, run: Runner) -> None:
    source = folder_of(tmp_path / "a", WAV2VEC2)
    fold_file(source, tmp_path / "out")
    refused = run("fold", source, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert "it exists" in refused.stderr
    done = run("fold", source, "-o", tmp_path / "new")
    assert done.returncode == 0
    assert done.stderr.count("will leave 2 tensors random") == 1
    assert not run("fold", source, "-o", tmp_path / "quiet", "--quiet").stderr
