"""Limits are the formats' own, the same for reading and writing; no record is lost without a word."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers.states import output_of
from wnconvert import FormatError, OutputError, fold_file, split_file
from wnconvert.formats import safetensors as ours
from wnconvert.formats.pickle.reader import load
from wnconvert.plan.record.history import METADATA_KEY, RECORD_NAME
from wnconvert.storage import layouts
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.tensors.limits import SAFETENSORS_HEADER


def pairs(count: int) -> dict[str, torch.Tensor]:
    return {
        f"{at}.weight_{half}": torch.ones((2, 1) if half == "g" else (2, 3))
        for at in range(count)
        for half in "gv"
    }


# -- pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickle_of(count: int) -> bytes:
    """A pickle of so many tensors as ``torch.save`` writes it."""
    out = bytearray(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\0ctorch\nFloatStorage\nq\1")
    out += (
        b"ccollections\nOrderedDict\nq\2"
        + text("storage")
        + b"q\3"
        + text("cpu")
        + b"q\x04"
        + b"0" * 5
        + b"}("
    )
    memo = 5
    for at in range(count):

        def put() -> bytes:
            nonlocal memo
            memo += 1
            return b"r" + struct.pack("<I", memo - 1)

        out += text(f"model.layers.{at}.self_attn.weight") + put() + b"h\0((h\3h\1" + text(str(at)) + put()
        out += b"h\4K\6t" + put() + b"QK\0K\2K\3\x86" + put() + b"K\3K\1\x86" + put() + b"\x89h\2)R" + put()
        out += b"t" + put() + b"R" + put()
    return bytes(out + b"u.")


def test_a_checkpoint_may_have_any_number_of_tensors() -> None:
    data, free = pickle_of(2000), 1 << 20
    with pytest.raises(FormatError, match="asks for more than 1 MiB"):
        load(data.replace(b"QK\0K\2", b"NK\0K\2"), free=free)  # the same without storages
    assert len(load(data, free=free).root.pairs) == 2000


def test_without_storages_a_pickle_pays_for_its_objects_as_before() -> None:
    with pytest.raises(FormatError, match="asks for more than 144 MiB of objects"):
        load(b"(" + b"](K\1e" * 1_000_000 + b"l.")


def test_a_few_storages_pay_for_little() -> None:
    storages = b"N" + b"NQ0" * 100
    with pytest.raises(FormatError, match="asks for more than 150 MiB of objects"):
        load(storages + b"(" + b"]" * 2_000_000 + b"l.")


def test_storages_pay_for_no_more_than_their_bytes_hold() -> None:
    with pytest.raises(FormatError, match="MiB of objects"):
        load(b"N" + b"NQ02" * 100_000 + b"(" + b"]" * 3_000_000 + b"l.")


# -- records of an archive


def with_record(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """A torch file with one more record, or another in its place."""
    torch.save(pairs(1), path.with_suffix(".old"))
    with zipfile.ZipFile(path.with_suffix(".old")) as old, zipfile.ZipFile(path, "w") as new:
        folder = old.namelist()[0].split("/")[0]
        for info in old.infolist():
            if info.filename != f"{folder}/{name}":
                new.writestr(info.filename, old.read(info))
        new.writestr(f"{folder}/{name}", content, method)
    path.with_suffix(".old").unlink()
    return path


@pytest.mark.parametrize("name", ["version", "byteorder", RECORD_NAME, "data.pkl"])
def test_a_compressed_record_is_refused_and_not_taken_for_missing(tmp_path: Path, name: str) -> None:
    content = {"version": b"3\n", "byteorder": b"little", "data.pkl": b"."}.get(name, b'{"history": []}')
    path = with_record(tmp_path / "x.pt", name, content * 50, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match=f"its record {name} is compressed") as caught:
        open_checkpoint(path)
    assert "torch.save" in caught.value.fix


def test_the_same_record_is_read_where_it_is_not_compressed(tmp_path: Path) -> None:
    path = with_record(tmp_path / "x.pt", "version", b"3\n")
    assert len(fold_file(path, dry_run=True).layers) == 1


def test_a_record_of_many_megabytes_is_kept_and_gone_by(tmp_path: Path) -> None:
    source, folded = tmp_path / "a.safetensors", tmp_path / "b.pt"
    save_file(pairs(1), source, {"long": "x" * (9 << 20)})
    fold_file(source, folded)
    back = output_of(split_file(folded, tmp_path / "c.safetensors"))
    with safe_open(back, framework="numpy") as file:
        assert len(file.metadata()["long"]) == 9 << 20
        assert sorted(file.keys()) == ["0.weight_g", "0.weight_v"]


# -- the header of safetensors


def test_the_limit_of_a_header_is_that_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for length in (SAFETENSORS_HEADER, SAFETENSORS_HEADER + 8):
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + bytes(4))
        try:
            with safe_open(path, framework="numpy"):
                is_read = True
        except Exception:  # noqa: BLE001 - whatever the library raises
            is_read = False
        assert is_read == (length == SAFETENSORS_HEADER)
        if is_read:
            assert len(open_checkpoint(path).tree.state_dicts[0].entries) == 1
        else:
            with pytest.raises(FormatError, match="its header claims 100000008 bytes"):
                open_checkpoint(path)


def test_a_header_that_no_reader_would_take_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(pairs(20), tmp_path / "a.pt")
    monkeypatch.setattr(ours, "SAFETENSORS_HEADER", 500)
    with pytest.raises(OutputError, match="its header would take") as caught:
        fold_file(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert "-o OUT.pt" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert fold_file(tmp_path / "a.pt", tmp_path / "b.pt").output


def test_a_record_that_does_not_fit_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(pairs(3), tmp_path / "a.pt")
    needed = 3 * (ours._PER_TENSOR + len('"0.weight"'))
    monkeypatch.setattr(ours, "SAFETENSORS_HEADER", needed + 100)
    result = fold_file(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert "the record of changes is too long for a safetensors file" in result.notes[-1]
    assert fold_file(tmp_path / "a.pt", tmp_path / "c.safetensors", dry_run=True).notes == result.notes
    with safe_open(tmp_path / "b.safetensors", framework="numpy") as file:
        assert METADATA_KEY not in file.metadata()
    monkeypatch.undo()
    assert not fold_file(tmp_path / "a.pt", tmp_path / "d.safetensors").notes


def test_a_record_too_long_for_a_torch_file_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(pairs(3), tmp_path / "a.pt")
    monkeypatch.setattr(layouts, "RECORD", 100)
    assert "left out" in fold_file(tmp_path / "a.pt", tmp_path / "b.pt").notes[-1]


def test_a_record_that_claims_more_layers_than_there_are_tensors_is_left_out_with_a_note(
    tmp_path: Path,
) -> None:
    fold_file_of = tmp_path / "a.safetensors"
    row = {
        "form": "legacy",
        "dim": 0,
        "names": [["a.", [[0, 1, 1 << 40]], ".weight"]],
        "g": {"shape": [2, 1], "dtype": "float32", "places": [[0, 2, 1 << 40]]},
        "v": {"shape": [2, 3], "dtype": "float32", "places": [[1, 2, 1 << 40]]},
    }
    record = {"schema": 2, "history": [{"verb": "fold", "state_dicts": {"": [row]}}]}
    save_file({"a.0.weight": torch.ones(2, 3)}, fold_file_of, {METADATA_KEY: json.dumps(record)})
    opened = open_checkpoint(fold_file_of)
    assert opened.tree.record == ()
    assert opened.tree.notes == (
        "its wnconvert record has far more layers than it has tensors, and is left out",
    )
