"""The format of a file, by its content: suffixes do not count, and no reader is imported.

Only where the content tells nothing does the name of a file say what to call it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed
from wnconvert.storage.files import kind_of, listing_of
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import ReadableFile

__all__ = [
    "HEAD",
    "METADATA",
    "check_not_part",
    "container_in",
    "is_distributed",
    "is_index",
    "unknown_file",
    "zip_container",
]


#: How many of the first bytes are looked at.
HEAD = 512

# paddle.save writes pickles of these; that of its first versions was Python's own.
_PADDLES_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")
# The pickled magic number of torch's legacy format: LONG1 of ten bytes, or its digits (protocols 0 and 1).
_LEGACY_MAGIC = (b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", b"L119547037146038801333356L")


def container_in(head: bytes) -> Container | None:
    r"""The format that the first bytes of a file show, or None: ONNX files have no mark.

    A zip archive counts as torch's; which it is, its members tell (``zip_container``).

    >>> container_in(b"PK\x03\x04"), container_in(b"\x08\x07")
    (<Container.TORCH_ZIP: 'torch zip'>, None)
    """
    if head[8:9] == b"{" and b"\0" in head[:8]:  # else the length of its header is a text itself
        return Container.SAFETENSORS
    # GPT-SoVITS writes two digits over the first two bytes.
    if head[2:4] == b"\x03\x04" and (head[:2] == b"PK" or head[:2].isdigit()):
        return Container.TORCH_ZIP
    if any(magic in head[:32] for magic in _LEGACY_MAGIC):
        return Container.TORCH_LEGACY
    if head[:1] == b"\x80" and head[1:2] in _PADDLES_PROTOCOLS:
        return Container.PADDLE  # or another pickle, which its reader tells
    return Container.FLAX if _is_msgpack(head) else None


def is_index(head: bytes, name: str) -> bool:
    """Whether a file is the index of several: by its content, or by a name that nothing else has.

    >>> is_index(b'{"weight_map": {}}', "a.json"), is_index(b"", "model.safetensors.index.json")
    (True, True)
    """
    if b'"weight_map"' in head and head.lstrip()[:1] == b"{":
        return True
    return name.endswith(".json") and ".index." in name


# -- folders of torch.distributed.checkpoint

#: The file of such a folder that says what is in the others, and how these end.
METADATA = ".metadata"
_PART = ".distcp"


def is_distributed(folder: PurePath) -> bool:
    """Whether a folder is one of torch.distributed.checkpoint. Raise ``InputError`` for a part of one."""
    names = listing_of(folder)
    if METADATA in names:
        return True
    parts = [name for name in names if name.endswith(_PART)]
    if parts:
        raise InputError(
            f"a folder of torch.distributed.checkpoint without its {METADATA}: {listed(parts, 3)}",
            fix=f"copy {METADATA} too: it says where each tensor lies (a copy of * leaves it out)",
        )
    return False


def check_not_part(path: PurePath) -> None:
    """Raise ``InputError`` for a file of such a folder, which means nothing alone."""
    if path.name != METADATA and path.suffix != _PART:
        return
    whole = path.parent if kind_of(path.parent / METADATA) else f"the folder with it and its {METADATA}"
    raise InputError("one file of a folder of torch.distributed.checkpoint", fix=f"name {whole}")


# What to do about files of others.
_THE_FILE = "download the file itself"
_MADE_OF = "name the PyTorch checkpoint that it was made of"
_NEMO = "tar xf it, and name the model_weights.ckpt in it"
_IN_PYTHON = "in Python, take its arrays by {}, and save them with safetensors.numpy.save_file"


# -- zip archives


@dataclass(frozen=True, slots=True)
class _Zip:
    """A kind of zip archive: a member must match each glob. A container, or else its name and a remedy."""

    members: tuple[str, ...]
    container: Container | None = None
    name: str = ""
    remedy: str = ""


# The first row that fits counts. A new container that is a zip archive is a row here.
_ZIPS = (
    _Zip(("*/data.pkl",), Container.TORCH_ZIP),
    _Zip(
        ("*/data/aotinductor/*",),
        name="a compiled package (AOTInductor): its weights are in compiled code",
        remedy="fold the module before it is exported and compiled, or name its checkpoint",
    ),
    _Zip(("*/archive_format", "*_weights_config.json"), Container.EXPORTED),
    _Zip(("*/serialized_exported_program.json",), Container.EXPORTED),
    _Zip(("*.npy",), Container.NPZ),
    _Zip(
        ("/config.json", "/model.weights.h5"),
        name="a Keras model (.keras)",
        remedy=_IN_PYTHON.format("{w.path: w.numpy() for w in keras.saving.load_model(FILE).weights}"),
    ),
    _Zip(
        ("/MAR-INF/MANIFEST.json",),
        name="a TorchServe archive (.mar)",
        remedy="unzip it, and name the checkpoint in it",
    ),
    _Zip(
        ("*/Data/com.apple.CoreML/*",),
        name="a Core ML package (.mlpackage)",
        remedy=_MADE_OF,
    ),
    *(
        _Zip((f"*{suffix}",), name="a zip archive with a checkpoint in it", remedy="unzip it, and name that")
        for suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".onnx", "/pytorch_model.bin")
    ),
    _Zip((), name="a zip archive, but not one of torch (it has no data.pkl)", remedy="name a checkpoint"),
)


def zip_container(members: Iterable[str]) -> Container:
    """The container that the members of a zip archive show; else raise ``InputError``, which says what it is.

    >>> zip_container(["archive/data.pkl", "archive/version"])
    <Container.TORCH_ZIP: 'torch zip'>
    """
    names = [f"/{name}" for name in members]
    kind = next(row for row in _ZIPS if all(fnmatch.filter(names, glob) for glob in row.members))
    if kind.container is None:
        raise InputError(kind.name, fix=kind.remedy)
    return kind.container


# -- what is not a checkpoint

# Where the mark stands, the mark, the name of such a file, the remedy.
_OTHERS = (
    (0, b"version https://git-lfs", "a Git-LFS pointer, not the file itself", "git lfs pull"),
    (0, b"./model_config.yaml", "a NeMo archive (.nemo)", _NEMO),
    (0, b"model_config.yaml", "a NeMo archive (.nemo)", _NEMO),
    (257, b"ustar", "a tar archive", "unpack it, and name the checkpoint in it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive", _THE_FILE),
    (
        0,
        b"\x89HDF",
        "an HDF5 file (.h5: Keras, TensorFlow)",
        "read its arrays with h5py, and save them with safetensors.numpy.save_file",
    ),
    (0, b"GGUF", "a GGUF file", _MADE_OF),
    (0, b"lmgg", "a GGML file", _MADE_OF),
    (4, b"ORTM", "a model in onnxruntime's own format", "name the .onnx file that it was made of"),
    (4, b"TFL3", "a TensorFlow Lite model (.tflite)", _MADE_OF),
    (4, b"ET12", "an ExecuTorch program (.pte)", _MADE_OF),
    (0, b"\x93NUMPY", "a NumPy array", _IN_PYTHON.format("{NAME: numpy.load(FILE)}")),
)
# The same for texts, which may begin with white space, in any case.
_TEXTS = (
    (
        (b"<?xml", b"<net "),
        b"<net ",
        "an OpenVINO model (.xml): its weights are in the .bin beside it",
        _MADE_OF,
    ),
    ((b"<!doctype html", b"<html", b"<head"), b"", "a web page (HTML), not a checkpoint", _THE_FILE),
    ((b"<?xml",), b"<error", "a web page (a server's error), not a checkpoint", _THE_FILE),
    ((b"<?xml",), b"", "an XML text, not a checkpoint", "name the checkpoint that lies beside it"),
    ((b"{", b"["), b"", "a JSON text, not a checkpoint", "name the checkpoint that lies beside it"),
)
# The same for what only its name tells, by the end of it.
_NAMES = (
    (".mlmodel", "a Core ML model (.mlmodel)", _MADE_OF),
    (".pb", "a TensorFlow graph (.pb)", _IN_PYTHON.format("tensorflow.saved_model.load")),
    (".pdmodel", "a PaddlePaddle program (.pdmodel)", "name the .pdparams that it was made of"),
    (
        ".pdiparams",
        "the weights of a PaddlePaddle program (.pdiparams)",
        "name the .pdparams that it was made of",
    ),
)


def unknown_file(file: ReadableFile, name: str = "") -> InputError:
    """The error for a file that is not a checkpoint; it names the kind of file, if that is known."""
    what, fix = next(_kinds(file, name))
    return InputError(what, fix=fix)


def _kinds(file: ReadableFile, name: str) -> Iterator[tuple[str, str]]:
    """What a file may be called, and what to do about it: what is most certain first."""
    size = file.size
    head = file.read(0, min(HEAD, size))
    if not head:
        yield "an empty file", _THE_FILE
    text = head.lstrip().lower()
    for begins, has, what, fix in _TEXTS:
        if text.startswith(begins) and has in text:
            yield what, fix
    for at, magic, what, fix in _OTHERS:
        if head[at : at + len(magic)] == magic:
            yield what, fix
    for ending, what, fix in _NAMES:
        if name.lower().endswith(ending):
            yield what, fix
    yield (
        "not a checkpoint of a known format",
        "wnconvert reads safetensors, .npz, ONNX, and what torch, flax and Paddle save",
    )


def _is_msgpack(head: bytes) -> bool:
    r"""Whether a file begins as a mapping of MessagePack whose first key is a plain text.

    >>> _is_msgpack(b"\x81\xa6params\x80"), _is_msgpack(b"\x80\x02}q")
    (True, False)
    """
    many = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x80 < head[0] < 0x90 else 0) if head else 0
    key = head[many:] if many else b""
    length = (
        key[0] - 0xA0 if key and 0xA0 < key[0] < 0xC0 else key[1] if key[:1] == b"\xd9" and key[1:] else 0
    )
    at = 2 if key[:1] == b"\xd9" else 1
    text = key[at : at + length]
    return bool(length) and len(text) == length and text.isascii() and text.decode().isprintable()
