"""Outputs that become objects of a store: sent in parts as they are made, and there whole or not at all.

What is checked before an upload is completed: that the store has each part as it was sent, that our reader
takes the structure of what was sent, and that the source is what it was. No store shows an upload, so what is
verified is read back when it is there, and deleted where it is wrong; nothing is replaced by it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn

from wnconvert.errors import ArgumentError, InputError, OutputError, VerifyError, WnconvertError
from wnconvert.messages import REPORT_BUG, listed
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.layout import Blob, CopyBytes, Layout, Parts
from wnconvert.plan.plan import Plan
from wnconvert.plan.selection.nothing import why_nothing
from wnconvert.storage.checkpoint import Checkpoint, read_checkpoint
from wnconvert.storage.files import check_as_seen, kind_of, located, reopened, seen_in, status_of, stored
from wnconvert.storage.layouts import layout_of
from wnconvert.storage.sources import Source
from wnconvert.storage.stores.remote.uploads import Planned, Upload
from wnconvert.storage.stores.store import Address, PathKind
from wnconvert.storage.workers import Workers
from wnconvert.tensors.tree import ByteRange
from wnconvert.verbs.conversion.convert import Result, conversion_result
from wnconvert.verbs.conversion.executor import Outcome, notes_of, outcomes
from wnconvert.verbs.conversion.folders.parts import FolderPart, FolderPlan
from wnconvert.verbs.conversion.folders.plan import MakePlan, plan_folder
from wnconvert.verbs.conversion.folders.unfound import noting_unfound
from wnconvert.verbs.conversion.jobs import Job, Request
from wnconvert.verbs.conversion.verify.output import bytes_to_verify, verify_copies, verify_output
from wnconvert.verbs.shared.options import RunOptions

__all__ = [
    "aborted_uploads",
    "check_stored",
    "named_uploads",
    "refuse_graph",
    "stored_file_job",
    "stored_folder_job",
]


def stored_file_job(checkpoint: Checkpoint, plan: Plan, output: Address, request: Request) -> Job:
    """A file that becomes an object."""

    def check(*, force: bool) -> None:
        _check_not_read(checkpoint, output, request)
        if not request.dry_run:
            _check_free(output, force=force)

    def run(plan: Plan, options: RunOptions) -> Result:
        return _store_file(checkpoint, plan, output, options)

    return Job(plan, partial(why_nothing, tree=checkpoint.tree), check, run, checkpoint.seen)


def stored_folder_job(
    checkpoint: Checkpoint, make_plan: MakePlan, output: Address, request: Request, renamed: Iterable[str]
) -> Job:
    """A folder whose files become objects; a folder that is there is not replaced."""
    noting = noting_unfound(make_plan, checkpoint)
    planned = plan_folder(checkpoint, noting, request.max_shard_size, tuple(renamed))
    if links := [path for path, _ in planned.beside.links]:
        raise OutputError(f"no store has links, and these are some: {listed(links)}", fix=_COPY)

    def check(*, force: bool) -> None:
        del force
        _check_not_read(checkpoint, output, request)
        with _as_output():
            there = kind_of(output)
        if there is not None:
            raise OutputError("it exists, and no store replaces a folder whole", fix="choose another -o")

    def run(plan: Plan, options: RunOptions) -> Result:
        return _store_folder(checkpoint, replace(planned, plan=plan), output, options)

    seen = seen_in((planned.beside.seen(checkpoint.root or output), checkpoint.seen))
    return Job(planned.plan, partial(why_nothing, tree=checkpoint.tree), check, run, seen)


_COPY = "-o FILE, and copy it there afterwards"


def _check_not_read(checkpoint: Checkpoint, output: Address, request: Request) -> None:
    """Raise ``OutputError`` where what is written is read too, or lies in what is read."""
    read = [checkpoint.path, *checkpoint.shards, *([] if request.like is None else [located(request.like)])]
    if any(output == path or output.is_relative_to(path) or path.is_relative_to(output) for path in read):
        raise OutputError("it is read, or lies in what is read", fix="choose another -o")


def _check_free(output: Address, *, force: bool) -> None:
    """Raise ``OutputError`` where an object is there, and ``force`` is not given, or there is a folder."""
    with _as_output():
        kind = kind_of(output)
    if kind is PathKind.FOLDER:
        raise OutputError("it is a folder", where=str(output), fix="-o names the object to write")
    if kind is not None and not force:
        raise OutputError("it exists", where=str(output), fix="--force replaces it, or choose another -o")


@contextlib.contextmanager
def _as_output() -> Iterator[None]:
    """What a store refuses is about the output."""
    try:
        yield
    except InputError as error:
        raise OutputError(error.heading, where=error.where, fix=error.fix) from error


def _check_verified(output: Address, options: RunOptions) -> None:
    """Raise ``OutputError`` where an object would be replaced, and could not be given back."""
    if options.verify and options.force:
        with _as_output():
            there = kind_of(output)
        if there is not None:
            raise OutputError(
                "it exists, and what is verified takes the place of nothing: it is read when it is there",
                where=str(output),
                fix="choose another -o; or leave out --verify, and wnconvert compare SRC OUT afterwards",
            )


class _Sending:
    """The uploads of one conversion: completed together in the order of their begin, or none of them.

    >>> with _Sending(force=False) as sending:
    ...     pass
    """

    def __init__(self, *, force: bool) -> None:
        self._force = force
        self._uploads: list[tuple[Address, Upload]] = []

    def __enter__(self) -> _Sending:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for _address, upload in self._uploads:
                with contextlib.suppress(WnconvertError):  # the first error is the one to report
                    upload.abort()

    def begin(self, address: Address, layout: Layout) -> Upload:
        """Begin the upload of a file that is laid out."""
        kept = frozenset(blob.start for blob in layout.blobs if isinstance(blob.work, Parts))
        with _as_output():
            upload = stored(address).upload(address, Planned(layout.size, kept))
        self._uploads.append((address, upload))
        return upload

    def complete(self) -> None:
        """Make the objects."""
        for address, upload in self._uploads:
            with _as_output():
                wrong = upload.differing_parts()
            if wrong:
                numbers = listed(str(number + 1) for number in wrong)
                raise VerifyError(
                    f"the store has other parts than were sent ({numbers}); nothing is kept",
                    where=str(address),
                    fix="run it again",
                )
        for address, upload in self._uploads:
            _check_free(address, force=self._force)
            try:
                with _as_output():
                    upload.complete(force=self._force)
            except FileExistsError as error:
                raise OutputError(
                    "it exists", where=str(address), fix="--force replaces it, or choose another -o"
                ) from error

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Delete the objects that were made where what is done inside fails."""
        made = {address: status_of(address).identity for address, _ in self._uploads}
        try:
            yield
        except BaseException:
            for address, identity in made.items():
                with contextlib.suppress(WnconvertError):  # the first error is the one to report
                    stored(address).delete(address, identity.tag if identity else "")
            raise


def _check_structure(upload: Upload, address: Address) -> None:
    """Have our reader take the structure of what was sent. Raises ``VerifyError`` where it refuses it."""
    try:
        read_checkpoint(upload.outline, address)
    except WnconvertError as error:
        raise VerifyError(
            f"the output cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def _store_file(checkpoint: Checkpoint, plan: Plan, output: Address, options: RunOptions) -> Result:
    began = time.perf_counter()
    _check_verified(output, options)
    layout = layout_of(checkpoint, plan)
    workers = Workers(options.threads, options.progress)
    if options.verify:
        workers.expect(sum(blob.effort for blob in layout.blobs) + bytes_to_verify(checkpoint, plan))
    verified = ""
    more: tuple[str, ...] = ()
    with (
        _Sending(force=options.force) as sending,
        Source(checkpoint.sources, opener=checkpoint.reopen) as source,
    ):
        upload = sending.begin(output, layout)
        with _as_output_of(output):
            notes = notes_of(outcomes(source, upload, layout, options.numbers, workers))
        _check_structure(upload, output)
        check_as_seen(checkpoint.seen)
        sending.complete()
        if options.verify:
            with sending.deleting():
                verified, more = verify_output(checkpoint, plan, source, output, workers)
    return conversion_result(
        checkpoint, plan, output, began, bytes_out=layout.size, notes=(*notes, *more), verified=verified
    )


@contextlib.contextmanager
def _as_output_of(output: Address) -> Iterator[None]:
    """What a store refuses of what is sent is about the output; of what is read, about the source."""
    try:
        yield
    except InputError as error:
        if error.where == str(output):
            raise OutputError(error.heading, where=error.where, fix=error.fix) from error
        raise


def _store_folder(
    checkpoint: Checkpoint, planned: FolderPlan, output: Address, options: RunOptions
) -> Result:
    """Send every file of a folder, then make the objects: weights first, what names them last."""
    began = time.perf_counter()
    layouts = planned.layouts()
    weights = {path: layout for _, of_part in layouts for path, layout in of_part.items()}
    listing = planned.manifest_of(weights)
    root, beside = checkpoint.root or output, planned.beside
    copies = {file.path: _copy_of(file.size) for file in beside.files}
    workers = Workers(options.threads, options.progress)
    every = {**weights, **copies}
    workers.expect(sum(blob.effort for layout in every.values() for blob in layout.blobs))
    sizes = {file.path: file.size for file in beside.files}
    if options.verify:
        workers.expect(sum(bytes_to_verify(part.checkpoint, part.plan) for part in planned.parts))
        workers.expect(sum(sizes.values()))
    readers: dict[str, None] = {}
    indexes = [path for path, layout in weights.items() if not layout.blobs]
    made: list[Outcome] = []
    with _Sending(force=False) as sending:
        for part, of_part in layouts:
            with Source(part.checkpoint.sources, opener=part.checkpoint.reopen) as source:
                for path, layout in of_part.items():
                    if path not in indexes:
                        upload = sending.begin(_below(output, path), layout)
                        made += outcomes(source, upload, layout, options.numbers, workers)
                        _check_structure(upload, _below(output, path))
        notes = notes_of(made)
        opener = partial(reopened, seen=beside.seen(root))
        for path, layout in copies.items():
            with Source((root / path,), opener=opener) as source:
                outcomes(source, sending.begin(_below(output, path), layout), layout, RowPolicy(), workers)
        for path, layout in {**{path: weights[path] for path in indexes}, **listing}.items():
            upload = sending.begin(_below(output, path), layout)
            with upload.filling(layout.size, 1):
                for at, piece in layout.pieces:
                    upload.write(piece, at)
        check_as_seen(seen_in((beside.seen(root), checkpoint.seen)))
        sending.complete()
        if options.verify:
            with sending.deleting():
                for part in planned.parts:
                    readers |= dict.fromkeys([_verified(part, output, workers)])
                verify_copies(root, output, sizes, workers)
    return conversion_result(
        checkpoint,
        planned.plan,
        output,
        began,
        bytes_in=checkpoint.size + sum(file.size for file in beside.files),
        bytes_out=sum(layout.size for layout in (*every.values(), *listing.values())),
        notes=notes,
        verified=" and ".join(readers),
    )


def _verified(part: FolderPart, output: Address, workers: Workers) -> str:
    """Read the weights of a part back; the name of the reader."""
    with Source(part.checkpoint.sources, opener=part.checkpoint.reopen) as source:
        return verify_output(part.checkpoint, part.contents, source, output / part.opened_by, workers)[0]


def _below(output: Address, path: str) -> Address:
    made = output / path
    assert isinstance(made, Address)  # noqa: S101 - a path of its own kind
    return made


def _copy_of(size: int) -> Layout:
    return Layout(size, (), (Blob(0, size, CopyBytes(ByteRange(0, size))),) if size else ())


# -- what killed runs left


def named_uploads(output: Address) -> tuple[str, ...]:
    """A note on each unfinished upload of an output."""
    with _as_output():
        found = stored(output).unfinished(output)
    return tuple(f"an upload of {address} is unfinished: the next run aborts it" for address, _ in found)


def aborted_uploads(output: Address) -> tuple[str, ...]:
    """Abort the unfinished uploads of an output, and of all that lies below it; a note on each."""
    with _as_output():
        found = stored(output).unfinished(output)
        gone = [(address, stored(output).abort(address, upload)) for address, upload in found]
    return tuple(
        f"an unfinished upload of {address} {'is aborted' if now else 'goes when this one is done'}"
        for address, now in gone
    )


def refuse_graph() -> NoReturn:
    """Raise ``OutputError``: what an ONNX model becomes is run as a file."""
    raise OutputError("an ONNX model is run where it lies before it is put in place", fix=_COPY)


def check_stored(options: RunOptions) -> None:
    """Raise ``ArgumentError`` for what cannot be asked of a store."""
    if options.prove is not None:
        raise ArgumentError(
            "--model proves an output before it is put in place, and no store shows an upload",
            fix="wnconvert check OUT, afterwards",
        )
