"""The format of a file, by its first bytes alone: suffixes do not count, and no reader is imported."""

from __future__ import annotations

from wnconvert.errors import InputError
from wnconvert.tensors.containers import Container

__all__ = ["HEAD", "container_in", "is_index", "unknown_file"]


#: How many of the first bytes are looked at.
HEAD = 512

# The pickled magic number of torch's legacy format: LONG1 of ten bytes, or its digits (protocols 0 and 1).
_LEGACY_MAGIC = (b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", b"L119547037146038801333356L")


def container_in(head: bytes) -> Container | None:
    r"""The format that the first bytes of a file show, or None: ONNX files have no mark.

    A zip archive whose first member is an array is NumPy's, any other counts as torch's; whether it is
    TorchScript stands farther behind.

    >>> container_in(b"PK\x03\x04"), container_in(b"\x08\x07")
    (<Container.TORCH_ZIP: 'torch zip'>, None)
    """
    if head[8:9] == b"{" and b"\0" in head[:8]:  # else the length of its header is a text itself
        return Container.SAFETENSORS
    # GPT-SoVITS writes two digits over the first two bytes.
    if head[:4] == b"PK\x03\x04" and head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy"):
        return Container.NPZ
    if head[2:4] == b"\x03\x04" and (head[:2] == b"PK" or head[:2].isdigit()):
        return Container.TORCH_ZIP
    if any(magic in head[:32] for magic in _LEGACY_MAGIC):
        return Container.TORCH_LEGACY
    return None


def is_index(head: bytes, name: str) -> bool:
    """Whether a file is the index of several: by its content, or by a name that nothing else has.

    >>> is_index(b'{"weight_map": {}}', "a.json"), is_index(b"", "model.safetensors.index.json")
    (True, True)
    """
    if b'"weight_map"' in head and head.lstrip()[:1] == b"{":
        return True
    return name.endswith(".json") and ".index." in name


# Other files that people take for checkpoints: where their mark stands, the mark, their name, the remedy.
_THE_FILE = "download the file itself"
_OTHERS = (
    (0, b"version https://git-lfs", "a Git-LFS pointer, not the file itself", "git lfs pull"),
    (257, b"ustar", "a tar archive", "unpack it, and name the checkpoint in it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive", _THE_FILE),
    (0, b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "wnconvert reads PyTorch checkpoints"),
    (0, b"GGUF", "a GGUF file", "convert the PyTorch checkpoint that it was made of"),
    (4, b"ORTM", "a model in onnxruntime's own format", "name the .onnx file that it was made of"),
    (4, b"TFL3", "a TensorFlow Lite model", "wnconvert reads PyTorch checkpoints and ONNX models"),
    (0, b"\x93NUMPY", "a NumPy array", "wnconvert reads PyTorch checkpoints"),
    *((0, b"\x80%c" % version, "a plain pickle", "save it with torch.save") for version in range(6)),
)
# The same for texts, which may begin with white space, in any case.
_TEXTS = (
    ((b"<!doctype html", b"<html", b"<head", b"<?xml"), "a web page (HTML), not a checkpoint", _THE_FILE),
    ((b"{", b"["), "a JSON text, not a checkpoint", "name the checkpoint that lies beside it"),
)


def unknown_file(head: bytes) -> InputError:
    """The error for a file that is not a checkpoint; it names the kind of file, if that is known."""
    text = head.lstrip().lower()
    what, fix = (
        "not a checkpoint of a known format",
        "wnconvert reads safetensors, ONNX, and files that torch.save wrote",
    )
    if not head:
        what, fix = "an empty file", _THE_FILE
    for at, magic, name, remedy in _OTHERS:
        if head[at : at + len(magic)] == magic:
            what, fix = name, remedy
    for begins, name, remedy in _TEXTS:
        if text.startswith(begins):
            what, fix = name, remedy
    return InputError(what, fix=fix)
