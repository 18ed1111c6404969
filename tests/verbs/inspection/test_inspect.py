from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.states import output_of
from wnconvert.errors import ArgumentError, InputError
from wnconvert.layers.find import FoundPairs, pairs_in
from wnconvert.layers.schemes import Selection
from wnconvert.plan.selection import wanted
from wnconvert.storage import workers
from wnconvert.tensors.tree import StateDict
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.inspection import inspect as inspection
from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict
from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.result import Inspection, moves

REAL = ROOT.parent / "shared" / "real"


def layer_of(found: Inspection, name: str) -> LayerStats:
    return next(layer for layer in found.layers if layer.name == name)


def f32(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def save(path: Path, tensors: dict[str, NDArray[Any]]) -> Path:
    save_file(tensors, path)
    return path


def test_magnitudes_are_those_of_g(tmp_path: Path) -> None:
    g = f32([[[-2.0]], [[4.0]], [[0.0]]])
    path = save(tmp_path / "x.safetensors", {"c.weight_g": g, "c.weight_v": np.ones((3, 2, 2), np.float32)})
    (layer,) = inspect_file(path).layers
    assert layer.g is not None
    assert (layer.g.min, layer.g.mean, layer.g.median, layer.g.max) == (0, 2, 2, 4)
    assert layer.flags == ("negative g", "zero g")
    assert layer.norm is None, "v was not to be read"


def test_full_reads_v_too(tmp_path: Path) -> None:
    v = f32([[3, 4], [0, 0], [6, 8]])
    g = f32([[10], [1], [10]])
    path = save(tmp_path / "x.safetensors", {"c.weight_g": g, "c.weight_v": v})
    (layer,) = inspect_file(path, full=True).layers
    assert layer.norm is not None
    assert layer.ratio is not None
    assert (layer.norm.min, layer.norm.max, layer.zero_rows) == (0, 10, 1)
    assert (layer.ratio.min, layer.ratio.max) == (1, 2)
    assert layer.flags == ("1 zero row in v",)


@pytest.mark.parametrize(("change", "untouched"), [(0, True), (9e-6, True), (2e-5, False)])
def test_a_layer_is_untouched_where_g_is_the_norm_in_every_row(
    tmp_path: Path, change: float, untouched: bool
) -> None:
    v = np.random.default_rng(0).normal(size=(8, 5))
    g = np.linalg.norm(v, axis=1, keepdims=True)
    g[3] *= 1 + change
    path = save(tmp_path / "x.safetensors", {"c.weight_g": g, "c.weight_v": v})
    (layer,) = inspect_file(path, full=True).layers
    assert ("untouched" in layer.flags) is untouched


def test_what_would_overflow_float16_is_flagged_and_what_just_fits_is_not(tmp_path: Path) -> None:
    v = f32([[1, 0]])
    for g, flagged in ((65504.0, False), (65510.0, False), (65520.0, True)):
        path = save(tmp_path / f"{g}.safetensors", {"c.weight_g": f32([[g]]), "c.weight_v": v})
        (layer,) = inspect_file(path, full=True).layers
        assert ("would overflow float16" in layer.flags) is flagged


def test_no_number_in_g_or_v_is_flagged_and_the_rest_still_measured(tmp_path: Path) -> None:
    g, v = f32([[np.nan], [2]]), f32([[1, 1], [np.inf, 0]])
    path = save(tmp_path / "x.safetensors", {"c.weight_g": g, "c.weight_v": v})
    (layer,) = inspect_file(path, full=True).layers
    assert layer.g is not None
    assert layer.g.mean == 2
    assert layer.flags == ("NaN or inf in g", "NaN or inf in v")


@pytest.mark.parametrize("name", ["vits.pth", "hifigan.safetensors", "codec_bf16.safetensors", "gan.pt"])
def test_a_folded_file_shows_the_magnitudes_of_the_unfolded_one(tmp_path: Path, name: str) -> None:
    source = Path(shutil.copy(FIXTURES / name, tmp_path))
    before = {(layer.state_dict, layer.name): layer for layer in inspect_file(source).layers}
    after = inspect_file(output_of(fold_file(source)), full=True).layers
    assert {(layer.state_dict, layer.name) for layer in after} == set(before)
    for layer in after:
        old = before[layer.state_dict, layer.name]
        assert layer.form == "folded"
        assert layer.g is not None
        assert old.g is not None
        tolerance = 1e-2 if old.dtype == "bfloat16" else 1e-6
        for part in ("min", "q1", "median", "mean", "q3", "max"):
            assert getattr(layer.g, part) == pytest.approx(getattr(old.g, part), rel=tolerance)


def test_a_folded_layer_is_read_only_where_full_asks_for_it(tmp_path: Path) -> None:
    source = Path(shutil.copy(FIXTURES / "gan.pt", tmp_path))
    found = inspect_file(output_of(fold_file(source)))
    assert found.layers == ()
    assert [state.layers for state in found.state_dicts] == [{"folded": 2}] * 3


def test_all_shows_every_plain_weight_of_two_and_more_dimensions() -> None:
    names = {layer.name for layer in inspect_file(FIXTURES / "plain.pt", all_weights=True).layers}
    assert names
    assert all(len(layer.shape) > 1 for layer in inspect_file(FIXTURES / "plain.pt", all_weights=True).layers)
    assert {layer.kind for layer in inspect_file(FIXTURES / "plain.pt").layers} == {"spectral"}


def test_of_a_file_with_a_bad_layer_the_others_are_shown_and_that_one_is_flagged() -> None:
    found = inspect_file(FIXTURES / "stack.safetensors")
    assert layer_of(found, "one.weight").g is not None
    assert layer_of(found, "both.weight").flags == ("refused",)
    (note,) = found.notes
    assert note.startswith("both.weight is refused: both.parametrizations.weight.1._u beside it")
    assert found.fold.startswith("would refuse")


def test_the_forecasts_are_of_verbs_without_a_selection(tmp_path: Path) -> None:
    gates = {
        f"b_{gate}": np.ones(8, np.float32) for gate in "ifgv"
    }  # g and v among them are no pair, unless named
    path = save(tmp_path / "x.safetensors", gates)
    assert [layer.name for layer in inspect_file(path, layers=["b"]).layers] == ["b"]
    for found in (inspect_file(path), inspect_file(path, layers=["b"])):
        assert (found.fold, found.migrate) == ("nothing to fold", "nothing to migrate")


def test_layers_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def counted(state: StateDict, selection: Selection) -> FoundPairs:
        looked.append(state.path)
        return pairs_in(state, selection)

    for module in (inspection, wanted):
        monkeypatch.setattr(module, "pairs_in", counted)
    inspect_file(FIXTURES / "do_02500000")
    assert looked == ["mpd", "msd"]


def test_a_plain_conv_among_normalized_ones_is_flagged_and_others_are_not(tmp_path: Path) -> None:
    tensors = {
        "convs.0.weight_g": np.ones((2, 1, 1), np.float32),
        "convs.0.weight_v": np.ones((2, 3, 3), np.float32),
        "convs.1.weight": np.ones((2, 3, 3), np.float32),
        "proj.0.weight": np.ones((2, 3, 3), np.float32),
        "convs.2.weight": np.ones((2, 3), np.float32),
        "convs.emb.weight": np.ones((2, 3, 3), np.float32),
    }
    found = inspect_file(save(tmp_path / "x.safetensors", tensors))
    flagged = [layer.name for layer in found.layers if "plain among normalized siblings" in layer.flags]
    assert flagged == ["convs.1.weight"]


def test_tied_layers_name_each_other() -> None:
    found = inspect_file(FIXTURES / "tied.pt")
    assert layer_of(found, "encoder.conv.weight").flags == ("tied to decoder.conv.weight",)
    assert layer_of(found, "head.weight").flags == ()


def test_the_first_block_tells_what_the_file_is() -> None:
    found = inspect_file(FIXTURES / "do_02500000")
    assert [state.path for state in found.state_dicts] == ["mpd", "msd"]
    assert {sibling.path for sibling in found.siblings} == {"optim_g", "optim_d", "steps", "epoch"}
    assert next(sibling for sibling in found.siblings if sibling.path == "optim_g").bytes > 1000
    assert found.fold == "would make 9 plain weights, and leave out optim_g, optim_d"
    assert [(kind.kind, kind.folds) for kind in found.kinds] == [("spectral norm (legacy)", "yes")]
    assert found.devices == ("cpu",)


def test_foreign_names_are_listed_and_dangerous_ones_are_told_apart(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.getcwd, ()

    path = tmp_path / "trap.pt"
    torch.save({"sd": {"w": torch.ones(2)}, "x": Trap()}, path)
    found = inspect_file(path)
    assert found.dangerous == ("posix.getcwd",)
    assert inspect_file(FIXTURES / "lightning.ckpt").foreign == ("acme_tts.configs.AudioConfig",)
    assert inspect_file(FIXTURES / "lightning.ckpt").dangerous == ()


@pytest.mark.parametrize(
    "path",
    sorted(path for path in FIXTURES.iterdir() if path.suffix not in (".py", ".md", ".png", ".toml", "")),
)
def test_every_fixture_is_inspected_and_is_json(path: Path) -> None:
    for full in (False, True):
        data = json.loads(
            json.dumps(inspect_file(path, full=full, all_weights=full).to_dict(), allow_nan=False)
        )
        assert data["schema"] == 1
        assert data["state_dicts"]


def test_every_real_checkpoint_is_inspected() -> None:
    if not REAL.exists():
        pytest.skip("the folder of checkpoints trained by others is not here")
    found = [inspect_file(path, full=True) for path in sorted(REAL.glob("*/*"))]
    assert len(found) == 13
    assert sum(bool(item.layers) for item in found) == 9
    assert all(layer.g is not None for item in found for layer in item.layers)


def test_moves_puts_the_layer_that_moved_most_first(tmp_path: Path) -> None:
    v = np.ones((1, 4), np.float32)
    files = []
    for at, (a, b) in enumerate([(1, 1), (1.5, 1.1), (2, 1.2)]):
        tensors = {
            "a.weight_g": f32([[a]]),
            "a.weight_v": v,
            "b.weight_g": f32([[b]]),
            "b.weight_v": v,
        }
        files.append(save(tmp_path / f"{at}.safetensors", tensors))
    moved = moves([inspect_file(path) for path in files])
    assert [move.name for move in moved] == ["a.weight", "b.weight"]
    assert list(moved[0].means) == [1.0, 1.5, 2.0]
    assert [round(move.moved or 0, 3) for move in moved] == [1.0, 0.2]


def test_only_g_is_read_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save(path, {"a.weight_g": np.ones((4, 1), np.float32), "a.weight_v": np.ones((4, 1 << 20), np.float32)})
    code = f"""
from wnconvert.verbs.inspection.inspect import inspect_file
from wnconvert.storage.sources import Source
taken = []
chunk = Source.chunk
Source.chunk = lambda self, data: taken.append(data.size) or chunk(self, data)
inspect_file({str(path)!r})
print(sum(taken))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 16


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(InputError, match="web page"):
        inspect_file(tmp_path / "page.pt")


def test_a_state_dict_in_memory_shows_what_its_file_shows() -> None:
    state = torch.load(FIXTURES / "g_02500000", weights_only=True)["generator"]
    found, on_disk = inspect_state_dict(state, full=True), inspect_file(FIXTURES / "g_02500000", full=True)
    assert [replace(layer, state_dict="") for layer in on_disk.layers] == list(found.layers)
    assert (found.parameters, found.bytes) == (on_disk.parameters, on_disk.state_dicts[0].bytes)


def test_tied_tensors_in_memory_are_known_and_equal_ones_are_not_tied() -> None:
    g, v = torch.ones(2, 1), torch.ones(2, 3)
    state = {
        "a.weight_g": g,
        "a.weight_v": v,
        "b.weight_g": g,
        "b.weight_v": v,
        "c.weight_g": g.clone(),
        "c.weight_v": v,
    }
    flags = {layer.name: layer.flags for layer in inspect_state_dict(state).layers}
    assert flags == {"a.weight": ("tied to b.weight",), "b.weight": ("tied to a.weight",), "c.weight": ()}


def test_a_whole_checkpoint_is_no_state_dict() -> None:
    with pytest.raises(ArgumentError, match="a state dict at 'generator'"):
        inspect_state_dict(torch.load(FIXTURES / "g_02500000", weights_only=True))


def test_a_weight_is_shown_once_whatever_is_asked_for(tmp_path: Path) -> None:
    v = np.ones((2, 3, 3), np.float32)
    tensors = {"c.0.weight_g": np.ones((2, 1, 1), np.float32), "c.0.weight_v": v, "c.1.weight": v}
    found = inspect_file(save(tmp_path / "x.safetensors", tensors), full=True, all_weights=True)
    assert [layer.name for layer in found.layers] == ["c.0.weight", "c.1.weight"]


def test_a_layer_that_starts_at_zero_moved_most(tmp_path: Path) -> None:
    v = np.ones((1, 4), np.float32)
    files = []
    for at, (a, b) in enumerate([(0.0, 1.0), (5.0, 1.1)]):
        tensors = {"a.weight_g": f32([[a]]), "a.weight_v": v, "b.weight_g": f32([[b]]), "b.weight_v": v}
        files.append(inspect_file(save(tmp_path / f"{at}.safetensors", tensors)))
    assert [move.name for move in moves(files)] == ["a.weight", "b.weight"]


def test_names_with_a_line_break_are_layers_too(tmp_path: Path) -> None:
    tensors = {"a\nb.weight_g": f32([[1]]), "a\nb.weight_v": f32([[3, 4]])}
    (layer,) = inspect_file(save(tmp_path / "x.safetensors", tensors)).layers
    assert layer.name == "a\nb.weight"


def test_the_mean_of_huge_magnitudes_is_finite(tmp_path: Path) -> None:
    g = np.full((3, 1), 1.7e308)
    found = inspect_file(save(tmp_path / "x.safetensors", {"w_g": g, "w_v": np.ones((3, 2))}))
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 100])
def test_quartiles_are_those_of_numpy(count: int) -> None:
    rng = np.random.default_rng(count)
    for scale in (1e-300, 1e-3, 1.0, 1e300):
        g = rng.standard_normal((count, 1)) * scale
        (row,) = inspect_state_dict({"w_g": g, "w_v": rng.standard_normal((count, 3))}).layers
        assert row.g is not None
        found = [row.g.min, row.g.q1, row.g.median, row.g.q3, row.g.max]
        assert found == np.quantile(np.abs(g), (0, 0.25, 0.5, 0.75, 1)).tolist()


# -- several threads


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Layers in each way of cutting, a tied one, a plain sibling, and NaN in a layer and beside them."""
    chance = np.random.default_rng(0)

    def random(*shape: int) -> NDArray[np.float32]:
        return chance.standard_normal(shape, np.float32)

    tensors: dict[str, NDArray[Any]] = {}
    for number, (rows, inner) in enumerate(((700, 900), (3, 300_000), (40, 8), (1, 600_000))):
        tensors |= {f"{number}.weight_g": random(rows, 1), f"{number}.weight_v": random(rows, inner)}
    tensors["2.weight_v"][3, 4] = np.nan
    tensors |= {"9.weight": random(30, 20), "bias": f32([1, np.inf, np.nan]), "count": np.ones(3, np.int64)}
    return save(tmp_path / "several.safetensors", tensors)


def test_any_number_of_threads_finds_the_same(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for count in (1, 2, 4):
        monkeypatch.setattr(workers, "processors", lambda count=count: count)
        found[count] = inspect_file(several, full=True, all_weights=True).to_dict()
    assert found[1] == found[2] == found[4]
    assert [fault["name"] for fault in found[1]["health"]["faults"]] == ["2.weight_v", "bias"]


def test_what_the_norms_show_to_be_finite_is_read_once(several: Path) -> None:
    done: list[tuple[int, int]] = []
    inspect_file(several, full=True, progress=lambda count, total: done.append((count, total)))
    again = 40 * 8 * 4 + 40 * 4  # the layer with NaN, to count them
    sizes = {tensor.name: tensor.bytes for tensor in inspect_file(several, tensors=True).tensors or ()}
    magnitudes = sum(size for name, size in sizes.items() if name.endswith("_g"))
    v = sum(size for name, size in sizes.items() if name != "count" and not name.endswith("_g"))
    assert v + again <= done[-1][0] <= v + again + 8 * magnitudes
    assert [count for count, _ in done] == sorted(count for count, _ in done)
    assert all(count <= total for count, total in done)


def test_g_alone_is_read_without_other_threads(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: pytest.fail("a thread for some rows"))
    assert len(inspect_file(several).layers) == 5


def test_an_interrupt_stops_all_threads_of_an_inspection(several: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        inspect_file(several, full=True, progress=interrupt)
    assert {*threading.enumerate()} <= before
