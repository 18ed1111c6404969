"""A cluster of dask.distributed on this machine: a scheduler and workers, each a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distributed import Client

from tests.helpers.golden import ROOT


def _started(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def dask_cluster(folder: Path, count: int = 3) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and so many workers of one thread each: the address, and the workers."""
    told = folder / "scheduler.json"
    here = ("--host", "127.0.0.1", "--no-dashboard")
    at_any_port = ("--port", "0", "--scheduler-file", str(told))
    scheduler = _started("distributed.cli.dask_scheduler", *here, *at_any_port, folder=folder)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        until = time.monotonic() + 60
        while not (told.exists() and told.read_text().endswith("}")):
            assert time.monotonic() < until
            time.sleep(0.05)
        address = str(json.loads(told.read_text())["address"])
        one = ("--no-nanny", "--nthreads", "1", *here)
        workers += [
            _started("distributed.cli.dask_worker", address, *one, "--name", str(at), folder=folder)
            for at in range(count)
        ]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
