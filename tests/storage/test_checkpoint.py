"""What a file is, is told from its content; what it is not, in words."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fixtures.make import FIXTURES as MADE
from tests.helpers.golden import FIXTURES
from wnconvert.errors import FormatError, InputError, WnconvertError
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.tensors.containers import Container, container_of

CONTAINERS = {
    "legacy_nonzip.pth": "torch legacy",
    "scripted.pt": "TorchScript",
    "program.pt2": "exported program",
    "tcn.onnx": "ONNX",
    "normed.onnx": "ONNX",
    "arrays.npz": "npz",
    **{path.name: "safetensors" for path in FIXTURES.glob("*.safetensors")},
}
SOURCES = sorted(name for name in MADE if (FIXTURES / name).is_file())


def test_there_are_fixtures() -> None:
    assert len(SOURCES) >= 19


@pytest.mark.parametrize("name", SOURCES)
def test_a_suffix_says_nothing_about_what_a_file_is(name: str, tmp_path: Path) -> None:
    container = CONTAINERS.get(name, "torch zip")
    tree = open_checkpoint(FIXTURES / name).tree
    assert tree.state_dicts
    for suffix in ("", ".pt", ".safetensors", ".tar", ".html", ".json", ".gz", ".onnx"):
        if suffix != Path(name).suffix:
            renamed = tmp_path / f"renamed{suffix}"
            shutil.copy(FIXTURES / name, renamed)
            opened = open_checkpoint(renamed)
            assert (opened.container, opened.tree) == (container, tree)
            assert (opened.path, opened.size) == (renamed, renamed.stat().st_size)


def test_a_target_is_what_its_suffix_says_and_torchs_where_it_says_nothing() -> None:
    for name in ("a.safetensors", "x/a.b.safetensors"):
        assert container_of(Path(name)) is Container.SAFETENSORS
    for name in ("a.pt", "a", "safetensors", ".safetensors", "a.safetensors.bak", "a.safetensor", "onnx"):
        assert container_of(Path(name)) is Container.TORCH_ZIP
    for name in ("a.npz", "x/a.b.NPZ"):
        assert container_of(Path(name)) is Container.NPZ
    for name in ("a.onnx", "x/a.b.ONNX"):
        assert container_of(Path(name)) is Container.ONNX


#: By fixture, the packages of readers that opening it brings in.
READERS = {
    "tcn.onnx": {"wnconvert.onnx"},
    "hifigan.safetensors": {"wnconvert.formats.safetensors"},
    "program.pt2": {
        "wnconvert.formats.exported",
        "wnconvert.formats.torch",
        "wnconvert.formats.pickle",
        "wnconvert.formats.zips",
    },
    "arrays.npz": {"wnconvert.formats.npz", "wnconvert.formats.zips"},
    "tied.pt": {"wnconvert.formats.torch", "wnconvert.formats.pickle", "wnconvert.formats.zips"},
    "legacy_nonzip.pth": {"wnconvert.formats.torch", "wnconvert.formats.pickle", "wnconvert.formats.zips"},
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_of_another_format_is_imported(name: str) -> None:
    code = f"""
import sys
from pathlib import Path
from wnconvert.storage.checkpoint import open_checkpoint
open_checkpoint(Path({str(FIXTURES / name)!r}))
names = {{".".join(name.split(".")[:3]) for name in sys.modules if name.startswith("wnconvert.formats.")}}
print(*names, *({{"wnconvert.onnx"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == READERS[name]


# -- what is no checkpoint


def tar(name: str = "model/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

#: Content of a file, and words that only its own message has.
FOREIGN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "an empty file"),
    "Git LFS": (LFS, "a Git-LFS pointer"),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="g" version="11">\n', "an OpenVINO model (.xml)"),
    "another XML": (b'<?xml version="1.0"?>\n<config/>', "an XML text"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "HTML after white space": (b"\n  <html lang='en'>", "a web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "JSON": (b'{"model_type": "hifigan"}', "a JSON text"),
    "a JSON index": (b'{\n  "metadata": {"total_size": 1}, "weight_map": {}}', "names no tensor"),
    "JSON with a brace as its ninth byte": (b'{"arch":{"x": 1}}', "a JSON text"),
    "a JSON list": (b"[1, 2]", "a JSON text"),
    "tar": (tar(), "a tar archive"),
    "gzip": (gzip.compress(b"x"), "a gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "a 7z archive"),
    "RAR": (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "a zstd archive"),
    "an empty zip": (zipped(), "an empty zip archive"),
    "a zip of other things": (zipped("a.txt", "b.txt"), "not one of torch"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    "Keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model (.keras)"),
    "TorchServe": (zipped("MAR-INF/MANIFEST.json", "model.pt"), "a TorchServe archive (.mar)"),
    "a Core ML package": (
        zipped("g.mlpackage/Manifest.json", "g.mlpackage/Data/com.apple.CoreML/model.mlmodel"),
        "a Core ML package (.mlpackage)",
    ),
    "AOTInductor": (zipped("g/archive_format", "g/data/aotinductor/model/g.so"), "a compiled package"),
    "a zip with a checkpoint": (zipped("run/model.pt"), "a zip archive with a checkpoint in it"),
    "NeMo": (tar("./model_config.yaml"), "a NeMo archive (.nemo)"),
    "MessagePack": (b"\x81\xa6params\x81\xa6kernel\xc0", "a MessagePack file without an array of flax"),
    "large MessagePack": (b"\xde\0\x01\xd9\x06params\x81\x05\x05", "a MessagePack file without an array"),
    "ExecuTorch": (b"\x1c\0\0\0ET12" + bytes(20), "an ExecuTorch program (.pte)"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model (.tflite)"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(20), "a GGUF file"),
    "NumPy": (array(), "a NumPy array"),
    "a pickle": (pickle.dumps({"a": 1}), "a plain pickle"),
    "an old pickle": (pickle.dumps({"a": 1}, protocol=2), "a plain pickle"),
    "zeros": (bytes(4096), "not a checkpoint of a known format"),
    "text": (b"epoch 1, loss 0.5\n", "not a checkpoint of a known format"),
    "one byte": (b"P", "not a checkpoint of a known format"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_is_no_checkpoint_is_told_by_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    content, says = FOREIGN[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert says in caught.value.what
    assert caught.value.where == str(path)
    assert caught.value.fix


#: What only the name of a file tells: name, content, words of its own message.
NAMED = {
    "model.mlmodel": (b"\x08\x04\x12\x02\x52\x00\xa2\x1f\x02\x08\x01", "a Core ML model (.mlmodel)"),
    "saved_model.pb": (b"\x08\x01\x12\x04\x0a\x02\x12\x00", "a TensorFlow graph (.pb)"),
    "g.pdmodel": (b"\x0a\x02\x08\x00", "a PaddlePaddle program (.pdmodel)"),
}


@pytest.mark.parametrize("name", NAMED)
def test_where_the_content_tells_nothing_the_name_says_what_a_file_is_called(
    name: str, tmp_path: Path
) -> None:
    content, says = NAMED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path / name)
    assert says in caught.value.what
    assert caught.value.fix
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(InputError) as unnamed:
        open_checkpoint(tmp_path / "model.bin")
    assert says not in unnamed.value.what


def test_a_name_never_keeps_a_checkpoint_from_being_read(tmp_path: Path) -> None:
    for name in NAMED:
        shutil.copy(FIXTURES / "tied.pt", tmp_path / name)
        assert open_checkpoint(tmp_path / name).tree == open_checkpoint(FIXTURES / "tied.pt").tree


def test_arrays_beside_the_pickle_of_a_torch_file_do_not_make_it_another(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    shutil.copy(FIXTURES / "tied.pt", path)
    with zipfile.ZipFile(path, "a") as archive:
        for member in ("extra/a.npy", "config.json", "model.weights.h5", "MAR-INF/MANIFEST.json"):
            archive.writestr(member, b"x")
    assert open_checkpoint(path).tree.state_dicts == open_checkpoint(FIXTURES / "tied.pt").tree.state_dicts


def test_an_lfs_pointer_is_mended_by_git(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(LFS)
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert caught.value.fix == "git lfs pull"


def test_folders_and_what_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, says in (
        (tmp_path, "a folder"),
        (tmp_path / "no.pt", "no such file"),
        (tmp_path / "no" / "no.pt", "no such file"),
        (tmp_path / "file" / "a.pt", "cannot be read"),
        (Path(os.devnull), "not a regular file"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            open_checkpoint(path)
        assert caught.value.where == str(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")


def test_a_file_may_be_named_in_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name in ("hifigan.safetensors", "tied.pt"):
        path = tmp_path / os.fsdecode(b"\xff" + name.encode())
        shutil.copy(FIXTURES / name, path)
        assert open_checkpoint(path).tree == open_checkpoint(FIXTURES / name).tree


@pytest.mark.parametrize("name", ["hifigan.safetensors", "tied.pt", "legacy_nonzip.pth", "sovits.pth"])
def test_a_checkpoint_that_is_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    content = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    for length in {*range(0, 64, 7), *range(0, len(content), len(content) // 40), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        assert caught.value.fix, length
    path.write_bytes(content)
    assert open_checkpoint(path).tree.state_dicts


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    source, path = zipfile.ZipFile(buffer), tmp_path / "big.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"big" if name.endswith("/byteorder") else source.read(name))
    with pytest.raises(FormatError, match="big-endian"):
        open_checkpoint(path)


def test_every_refusal_has_the_one_root() -> None:
    assert issubclass(FormatError, InputError)
    assert issubclass(InputError, WnconvertError)
