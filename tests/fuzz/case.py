"""One case: files, and the commands that are run on them, one after another, in their folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

__all__ = ["Case", "from_file", "on_file", "to_file"]


@dataclass(frozen=True)
class Case:
    """Files by name, the one that is the source, and command lines."""

    target: str
    files: Mapping[str, bytes]
    source: str
    runs: tuple[tuple[str, ...], ...]

    def laid_out(self, folder: Path) -> None:
        """Write the files below a folder."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def to_file(case: Case, path: Path) -> None:
    """Keep a case, to run it again by ``--case``."""
    files = {name: base64.b64encode(data).decode() for name, data in case.files.items()}
    kept = {"target": case.target, "source": case.source, "runs": case.runs, "files": files}
    path.write_text(json.dumps(kept, indent=1))


def from_file(path: Path) -> Case:
    kept = json.loads(path.read_text())
    files = {name: base64.b64decode(text) for name, text in kept["files"].items()}
    return Case(kept["target"], files, kept["source"], tuple(map(tuple, kept["runs"])))


def on_file(random: Random, source: str, suffix: str) -> tuple[tuple[str, ...], ...]:
    """Every verb on a source, with some of its options: what it shows, plans and writes.

    ``suffix`` is that of the outputs. The first command looks at the source, and says whether it is refused.
    """
    other = random.choice([suffix, suffix, ".safetensors", ".pt"])
    dim = random.choice(["0", "0", "1", "none", "-1"])
    form = random.choice(["legacy", "parametrize"])
    runs = [
        ("inspect", source),
        ("inspect", source, "--full", *random.choice(_LOOKS)),
        ("fold", source, "-o", f"folded{suffix}"),
        ("fold", source, "-o", f"other{other}", *random.choice(_FOLDS)),
        ("split", source, "-o", f"split{suffix}", "--layers", "*", "--dim", dim, "--to", form),
        ("migrate", source, "-o", f"moved{suffix}", "--to", form),
        ("compare", source, source),
        (random.choice(["fold", "split", "migrate"]), source, "-n", *random.choice([(), ("--json",)])),
    ]
    if suffix == ".onnx":  # a graph is only folded, and that runs it
        runs = [run for run in runs if run[0] in {"inspect", "fold"} and "other" not in run]
    kept = sorted(random.sample(range(1, len(runs)), min(4, len(runs) - 1)))
    return (runs[0], *(runs[at] for at in kept))


_LOOKS = (
    (),
    ("--tensors",),
    ("--all", "--json"),
    ("--format", "csv"),
    ("--format", "markdown"),
    ("--metadata",),
)
_FOLDS = (
    (),
    ("--dtype", "bfloat16"),
    ("--dtype", "float16"),
    ("--allow-nonfinite", "--zero-rows", "zero"),
    ("--verify",),
    ("--kinds", "all"),
    ("--kinds", "all", "--verify"),
    ("--threads", "1", "--json"),
)
