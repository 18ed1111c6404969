"""Many files on a real cluster of ray: three workers, one of which is killed while it works."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.golden import ROOT
from wnconvert import fold_files
from wnconvert.errors import InputError

FILES = 24


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    program = str(Path(sys.executable).with_name("ray"))
    begin = [program, "start", "--head", "--block", "--num-cpus=3", "--include-dashboard=false"]
    with subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
        until = time.monotonic() + 120
        while subprocess.run([program, "status"], capture_output=True, check=False, timeout=60).returncode:
            assert time.monotonic() < until
            time.sleep(0.2)
        yield "ray"
        head.terminate()


def put(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at in range(FILES):
        v = rng.standard_normal((1024, 2048), np.float32)
        pair = {"a.weight_g": np.ones((1024, 1), np.float32), "a.weight_v": v}
        save_file(pair, folder / f"{at}.safetensors")


def workers() -> list[int]:
    """The processes in which ray does jobs of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::run_job"):
            found.append(int(entry.name))
    return found


def test_jobs_run_on_ray_and_a_worker_that_is_killed_loses_nothing(tmp_path: Path, cluster: str) -> None:
    del cluster
    put(tmp_path / "in")
    report = tmp_path / "r.jsonl"
    results = fold_files([tmp_path / "in" / "*"], tmp_path / "out", cluster="ray", report=report)
    done = [next(results)]
    until = time.monotonic() + 60
    while not (working := workers()):
        done.append(next(results))
        assert time.monotonic() < until
    os.kill(working[0], signal.SIGKILL)
    done += results
    assert [result.state for result in done] == ["done"] * FILES
    assert len({result.source for result in done}) == FILES
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(lines) == FILES
    for line in lines:
        assert line["sha256"] == hashlib.sha256(Path(line["output"]).read_bytes()).hexdigest()


def test_where_no_cluster_answers_that_is_said(tmp_path: Path) -> None:
    put(tmp_path / "in")
    with pytest.raises(InputError, match="no cluster of ray answers there"):
        [*fold_files([tmp_path / "in" / "*"], cluster="ray://127.0.0.1:1")]
