"""The records of a zip archive of torch: the bytes of its pickle, its storages, and the others.

Nothing is inflated, and the pickle is not read here. Source of the format: ``torch/serialization.py``
(``_save``) and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

from collections.abc import Mapping

from wnconvert.errors import FormatError
from wnconvert.formats.zips import ZipEntry, read_directory
from wnconvert.frozen import dataclass
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.limits import PICKLE, RECORD, megabytes
from wnconvert.tensors.tree import ByteRange

__all__ = ["PREFIX", "SavedZip", "content_of", "read_saved", "too_long"]


PREFIX = "archive/"  # of the records of a new archive, as torch.save has it


@dataclass(frozen=True, slots=True)
class SavedZip:
    """What torch.save wrote into a zip archive: the bytes of its pickle, its records by name, its storages.

    ``outside`` are the records that do not lie in the folder of the pickle.
    """

    pickle: bytes
    records: Mapping[str, ZipEntry]
    outside: Mapping[str, ZipEntry]
    storages: Mapping[str, ByteRange]


def read_saved(file: ReadableFile, directory: Mapping[str, ZipEntry] | None = None) -> SavedZip:
    """Read the records of a zip archive of torch, whose ``directory`` may be read; the pickle is not read."""
    directory = read_directory(file) if directory is None else directory
    prefix, records = _own_folder(directory)
    outside = {name: record for name, record in directory.items() if not name.startswith(prefix)}
    if any(name.startswith(PREFIX) for name in outside):
        raise FormatError(f"its records lie in {prefix}, and others in {PREFIX}", fix=GET_AGAIN)
    if content_of(file, records, "byteorder").strip() == b"big":
        raise FormatError("a big-endian file", fix="load and save it on a little-endian machine")
    if records["data.pkl"].data.size > PICKLE:
        raise too_long()
    return SavedZip(content_of(file, records, "data.pkl", PICKLE), records, outside, _zip_storages(records))


def _own_folder(directory: Mapping[str, ZipEntry]) -> tuple[str, dict[str, ZipEntry]]:
    """The folder of an archive that holds its pickle, and the records in it by their names there."""
    # The shortest: an archive may carry other files of that name in folders of its own.
    pickled = min((name for name in directory if f"/{name}".endswith("/data.pkl")), key=len, default=None)
    if pickled is None:
        raise FormatError("a zip archive, but not one of torch (it has no data.pkl)", fix="name a checkpoint")
    prefix = pickled.removesuffix("data.pkl")
    return prefix, {
        name.removeprefix(prefix): record for name, record in directory.items() if name.startswith(prefix)
    }


def _zip_storages(records: Mapping[str, ZipEntry]) -> dict[str, ByteRange]:
    storages = {}
    for name, record in records.items():
        if name.startswith("data/"):
            if record.compressed:
                raise FormatError(f"its storage {name} is compressed", fix="save it with torch.save")
            storages[name.removeprefix("data/")] = record.data
    return storages


def content_of(file: ReadableFile, records: Mapping[str, ZipEntry], name: str, most: int = RECORD) -> bytes:
    """The bytes of a record; none of one that is missing.

    Raises ``FormatError`` for one that is compressed, or longer than ``most``.
    """
    record = records.get(name)
    if record is None:
        return b""
    if record.compressed:
        raise FormatError(
            f"its record {name} is compressed", fix="save it with torch.save, which does not compress"
        )
    if record.data.size > most:
        raise FormatError(
            f"its record {name} takes {record.data.size} bytes, more than {megabytes(most)}",
            fix="no checkpoint needs that: do not trust it",
        )
    return file.read(record.data.start, record.data.size)


def too_long() -> FormatError:
    """The error for a pickle that is longer than any."""
    return FormatError(f"its pickle is longer than {megabytes(PICKLE)}", fix="keep bulk data in tensors")
