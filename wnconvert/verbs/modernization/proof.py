"""The proof of a migration: the models of the old and of the new tree, in two processes, do the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wnconvert
from wnconvert.errors import ArgumentError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import to_install
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.state_dict import migrate_state_dict
from wnconvert.verbs.modernization.result import CodeCheck, CodeProof
from wnconvert.verbs.modernization.writing import Rewrite

__all__ = ["ProofRequest", "prove_code"]


@dataclass(frozen=True, slots=True)
class ProofRequest:
    """The factory, imported from ``root``, the texts of its inputs, and a checkpoint (None: of a seed)."""

    factory: str
    root: Path
    inputs: tuple[str, ...]
    ranges: tuple[str, ...]
    weights: Path | None
    only: str | None
    to: Literal["parametrize", "legacy"]


def prove_code(request: ProofRequest, rewrites: Mapping[Path, Rewrite]) -> CodeProof:
    """Hold the model after the edits against the model before them.

    Raises ``ArgumentError`` where torch is missing or nothing can be fed, ``InputError`` for code that does
    not run as it is.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ArgumentError("running the model needs torch, which is not installed", fix=to_install("torch"))
    if not request.inputs:
        raise ArgumentError(
            "the model cannot be run without inputs", fix="give each: --input 'mel=float32[1,80,T]'"
        )
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = _legacy(request, folder)
        old = _run(request, request.root, weights, folder / "old")
        if "error" in old:
            fix = "the code must run before it is changed; the factory is called without arguments"
            raise InputError(f"its code fails as it is: {old['error']}", where=request.factory, fix=fix)
        if weights is None:
            weights = folder / "first.safetensors"
            save_file(_renamed(old["state"], "legacy"), weights)
        new = _run(request, _mirror(request.root, rewrites, folder / "tree"), weights, folder / "new")
    return CodeProof(request.factory, tuple(_checks(old, new, request.to)))


def _legacy(request: ProofRequest, folder: Path) -> Path | None:
    """The checkpoint in legacy form, which the models of both trees load."""
    if request.weights is None:
        return None
    out = folder / "given.safetensors"  # which holds one state dict
    migrate_file(request.weights, out, to="legacy", only=request.only, copy=True)
    return out


def _renamed(state: Mapping[str, Any], to: Literal["parametrize", "legacy"]) -> dict[str, Any]:
    return dict(migrate_state_dict(dict(state), to=to))


# -- the two trees


def _run(request: ProofRequest, root: Path, weights: Path | None, out: Path) -> dict[str, Any]:
    """What the model of a tree does."""
    import torch

    asked = {
        "factory": request.factory,
        "inputs": list(request.inputs),
        "ranges": list(request.ranges),
        "weights": str(weights) if weights else "",
        "out": str(out.with_suffix(".pt")),
    }
    out.with_suffix(".json").write_text(json.dumps(asked))
    paths = [str(Path(wnconvert.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(  # noqa: S603 - this interpreter, on the user's own code
        [sys.executable, "-B", "-m", "wnconvert.verbs.modernization.child", out.with_suffix(".json")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return {"error": last}
    found: dict[str, Any] = torch.load(out.with_suffix(".pt"), weights_only=True)
    return found


def _mirror(root: Path, rewrites: Mapping[Path, Rewrite], tree: Path) -> Path:
    """The tree after the edits: links to all that stays, and new files."""
    changed = {Path(os.path.realpath(path)): rewrite.new for path, rewrite in rewrites.items()}
    real = Path(os.path.realpath(root))
    inside = {parent for path in changed for parent in path.parents}
    _copy(real, tree, changed, inside)
    return tree


def _copy(folder: Path, tree: Path, changed: Mapping[Path, bytes], inside: set[Path]) -> None:
    tree.mkdir()
    for path in folder.iterdir():
        if path in changed:
            (tree / path.name).write_bytes(changed[path])
        elif path in inside and not path.is_symlink():
            _copy(path, tree / path.name, changed, inside)
        elif path.name != "__pycache__":
            (tree / path.name).symlink_to(path)


# -- what is compared


def _checks(
    old: Mapping[str, Any], new: Mapping[str, Any], to: Literal["parametrize", "legacy"]
) -> Iterator[CodeCheck]:
    if "error" in new:
        yield CodeCheck("runs", said=new["error"])
        return
    yield CodeCheck("outputs", said=_difference(_flat(old["outputs"]), _flat(new["outputs"])))
    expected = _renamed(old["state"], to)
    yield CodeCheck("keys", said=_keys(expected, new["state"]))
    yield CodeCheck("training", said=_difference(_renamed(old["trained"], to), new["trained"]))
    yield CodeCheck("save and load", said=new["saved"])
    # A layer of the legacy form that has run cannot be copied: only the new code must not be worse.
    yield CodeCheck("deepcopy", said="" if old["copied"] else new["copied"])


def _flat(outputs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {
        f"sample {at}, output {place}": value
        for at, row in enumerate(outputs)
        for place, value in enumerate(row)
    }


def _keys(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How the keys differ from those that ``migrate`` writes."""
    apart = sorted(expected.keys() ^ found.keys())
    return f"{apart[0]} is on one side only" if apart else ""


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first tensor that is not the same to the bit."""
    import torch

    for name, value in expected.items():
        if name not in found:
            return f"{name} is missing"
        if value.shape != found[name].shape:
            return f"{name} has another shape"
        if not torch.equal(value, found[name]):
            return f"{name} differs by up to {(value.double() - found[name].double()).abs().max():.3g}"
    return ""
