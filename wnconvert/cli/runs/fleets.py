"""The options of commands that take many files, and whether many are meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.options import with_options

if TYPE_CHECKING:
    from wnconvert.verbs.fleet.fleet import FleetRequest

__all__ = ["FLEET", "FLEET_TO_READ", "fleet_asked"]


_RECURSIVE = click.option(
    "-r",
    "--recursive",
    is_flag=True,
    help="Take every checkpoint in the folders that are named, at any depth.",
)
_JOBS = click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="How many processes work.")
_KEEP_GOING = click.option("--keep-going", is_flag=True, help="Go on with other files after an error.")
_REPORT = click.option(
    "--report",
    type=click.Path(),
    metavar="FILE",
    help="Write a line of JSON for each file to this one (.jsonl).",
)
_CLUSTER = click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Have the workers of a cluster do it: a scheduler of dask.distributed (tcp://HOST:8786), or ray "
    "(ray, ray://HOST:10001).",
)

#: For verbs that write.
FLEET = with_options(
    _RECURSIVE,
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many processes work on many files, or the shards of one.  [default: one per processor]",
    ),
    click.option(
        "--skip-existing", is_flag=True, help="Of many files, leave those whose outputs are there already."
    ),
    _KEEP_GOING,
    click.option(
        "--report",
        type=click.Path(),
        metavar="FILE",
        help="Write a line of JSON for each file to this one (.jsonl); what it says is done, and did not "
        "change, is not done again.",
    ),
    _CLUSTER,
)
#: For those that only read.
FLEET_TO_READ = with_options(_RECURSIVE, _JOBS, _KEEP_GOING, _REPORT, _CLUSTER)


def fleet_asked(src: Sequence[str], **asked: Any) -> FleetRequest | None:
    """How many files are worked on; None where one is meant, and nothing asks for more.

    >>> fleet_asked(["a.pt"], jobs=None), fleet_asked(["a.pt", "b.pt"], jobs=2).jobs
    (None, 2)
    """
    if len(src) == 1 and not any(asked.values()) and not _is_glob(src[0]):
        return None
    from wnconvert.verbs.fleet.fleet import FleetRequest

    return FleetRequest(**asked)


def _is_glob(name: str) -> bool:
    if not any(sign in name for sign in "*?["):
        return False
    from wnconvert.verbs.fleet.sources import is_glob  # which one file does not need

    return is_glob(name)
