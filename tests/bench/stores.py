"""Folding from a bucket into a bucket, against a download, a fold and an upload: a server on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import inputs
from tests.bench.builds import NOW
from tests.bench.inputs import GIB, MIB
from tests.bench.measure import Command, in_turns
from tests.bench.rows import Row
from tests.helpers.servers import KEY, SECRET, s3_server, tool

#: The bytes of the checkpoint; WNCONVERT_BENCH_MIB makes it smaller.
BOX = "s3://box"
SIZE = int(os.environ.get("WNCONVERT_BENCH_MIB", "2048")) * MIB


def stored(folder: Path, rounds: int) -> Iterator[Row]:
    """``s3://`` to ``s3://``."""
    box = folder / "s3" / "box"
    box.mkdir(parents=True)
    inputs.write(box / "in.safetensors", inputs.many_layers(SIZE))
    fetch, send = (
        '"$2" copyto --ignore-times "$3/in.safetensors" in.safetensors',
        '"$2" copyto --ignore-times out.safetensors "$3/out.safetensors"',
    )
    with s3_server(folder / "s3", dir_cache="1h") as url:
        variables = [f"AWS_ACCESS_KEY_ID={KEY}", f"AWS_SECRET_ACCESS_KEY={SECRET}", f"AWS_ENDPOINT_URL={url}"]
        fold_there = NOW.command(
            "fold", f"{BOX}/in.safetensors", "-o", f"{BOX}/out.safetensors", "--force", "-q"
        )
        ours: Command = ["env", *variables, "AWS_DEFAULT_REGION=us-east-1", *fold_there]
        remote = f":s3,provider=Rclone,access_key_id={KEY},secret_access_key={SECRET},endpoint='{url}':box"
        here = (
            folder / "in.safetensors",
            "-o",
            folder / "out.safetensors",
        )  # whole: builds run in their own folder
        fold = shlex.join(map(str, NOW.command("fold", *here, "--force", "-q")))
        script = f'cd "$1" && {fetch} && {fold} && {send}'
        other: Command = ["sh", "-c", script, "sh", folder, tool("rclone"), remote]
        runs, others = in_turns(rounds, ours, other, memory=True)
    what = f"`s3://` to `s3://`, {SIZE / GIB:g} GiB, on this machine"
    yield Row(what, runs, "`rclone copyto`, fold, `rclone copyto`", others, 0.6, 128 * MIB)
    for name in ("in.safetensors", "out.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "s3")


BENCHES = (stored,)
