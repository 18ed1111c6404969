"""The verbs on many files in Python: each gives what came of them, in the order of completion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from importlib import import_module
from typing import Any

from wnconvert.errors import ArgumentError
from wnconvert.messages import listed
from wnconvert.storage.files import Name
from wnconvert.tensors.dtypes import dtype_word
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.fleet.fleet import Fleet, FleetRequest, fleet_of
from wnconvert.verbs.fleet.result import FileResult
from wnconvert.verbs.shared.recipes import recipe_given

__all__ = ["fold_files", "inspect_files", "migrate_files", "planned_fleet", "split_files"]


def fold_files(
    sources: Iterable[Name],
    out: StrPath | None = None,
    *,
    recursive: bool = False,
    jobs: int | None = None,
    skip_existing: bool = False,
    keep_going: bool = False,
    report: StrPath | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Iterator[FileResult]:
    """Fold many checkpoints, several at once; gives a result for each, in the order of completion.

    ``sources`` are names of files, patterns (``runs/**/*.pt``), and, with ``recursive``, folders in which
    every checkpoint is meant. ``out`` is a folder: outputs lie in it as the sources lie below their common
    root; without it each lies beside its source. ``jobs`` is the number of processes (default: one per
    processor; 1 is this process). ``skip_existing`` leaves sources whose outputs exist.

    An error is a result too, its ``error``; nothing is begun after it, unless ``keep_going``. ``report`` is a
    file with a line of JSON for each source: with the same one, a later run leaves what is done and
    unchanged. ``cluster`` is the address of a scheduler of dask.distributed, or ``ray``, or ``ray://…``;
    ``executor`` any other ``concurrent.futures.Executor``, given ``jobs`` jobs at a time. Other options as
    for ``fold_file``.

    Raises ``WnconvertError`` before anything begins: where a name means nothing, or two sources would write
    one output.

    >>> results = fold_files(["fixtures/gan.pt", "fixtures/g_02500000"], jobs=1, dry_run=True)
    >>> [(result.source, result.state, result.layers) for result in results]
    [('fixtures/g_02500000', 'planned', 78), ('fixtures/gan.pt', 'planned', 6)]
    """
    request = FleetRequest(recursive, jobs, skip_existing, keep_going, report, cluster, executor)
    return planned_fleet("fold", sources, out, request, options).run()


def split_files(
    sources: Iterable[Name],
    out: StrPath | None = None,
    *,
    recursive: bool = False,
    jobs: int | None = None,
    skip_existing: bool = False,
    keep_going: bool = False,
    report: StrPath | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Iterator[FileResult]:
    """Split many checkpoints, several at once: as ``fold_files``, with the options of ``split_file``.

    >>> (result,) = split_files(["fixtures/plain.pt"], jobs=1, layers="conv.weight", dim=0, dry_run=True)
    >>> result.output
    'fixtures/plain.split.pt'
    """
    request = FleetRequest(recursive, jobs, skip_existing, keep_going, report, cluster, executor)
    return planned_fleet("split", sources, out, request, options).run()


def migrate_files(
    sources: Iterable[Name],
    out: StrPath | None = None,
    *,
    recursive: bool = False,
    jobs: int | None = None,
    skip_existing: bool = False,
    keep_going: bool = False,
    report: StrPath | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Iterator[FileResult]:
    """Migrate many checkpoints, several at once: as ``fold_files``, with the options of ``migrate_file``.

    >>> (result,) = migrate_files(["fixtures/g_02500000"], "migrated", jobs=1, dry_run=True)
    >>> result.output
    'migrated/g_02500000.parametrize'
    """
    request = FleetRequest(recursive, jobs, skip_existing, keep_going, report, cluster, executor)
    return planned_fleet("migrate", sources, out, request, options).run()


def inspect_files(
    sources: Iterable[Name],
    *,
    recursive: bool = False,
    jobs: int | None = 1,
    keep_going: bool = False,
    report: StrPath | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Iterator[FileResult]:
    """Inspect many checkpoints: each result has its ``inspection``; options as for ``inspect_file``.

    ``sources`` and how they are worked on as for ``fold_files``; ``jobs`` is 1, this process, unless given.
    Nothing is left out because a report has it.

    >>> for result in inspect_files(["fixtures/step_*.safetensors"]):
    ...     print(result.source, result.inspection.fold)
    fixtures/step_1000.safetensors would make 6 plain weights
    fixtures/step_2000.safetensors would make 6 plain weights
    fixtures/step_3000.safetensors would make 6 plain weights
    """
    request = FleetRequest(recursive, jobs, False, keep_going, report, cluster, executor)
    return planned_fleet("inspect", sources, None, request, options).run()


def planned_fleet(
    verb: str, sources: Iterable[Name], out: StrPath | None, request: FleetRequest, options: Mapping[str, Any]
) -> Fleet:
    """The jobs of a verb on many files; options that say nothing new are left out of them.

    Raises ``ArgumentError`` for an option that the verb does not have.
    """
    parameters = inspect.signature(_function(verb)).parameters
    if unknown := [name for name in options if name not in parameters]:
        raise ArgumentError(f"{verb}_files has no option {listed(unknown)}", fix=f"help({verb}_file)")
    given = {
        name: _READ[name](value) if name in _READ else value
        for name, value in options.items()
        if value is not parameters[name].default and value != parameters[name].default
    }
    return fleet_of(verb, sources, out, request, given)


#: Options that are read once for all files.
_READ: Mapping[str, Callable[[Any], Any]] = {"dtype": dtype_word, "recipe": recipe_given}


def _function(verb: str) -> Any:
    if verb == "inspect":
        from wnconvert.verbs.inspection.inspect import inspect_file

        return inspect_file
    return getattr(import_module(f"wnconvert.verbs.conversion.files.{verb}"), f"{verb}_file")
