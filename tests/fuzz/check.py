"""What is wrong with what a command did: readers that are not ours, and exact numbers."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tests.fuzz import functions
from tests.fuzz.case import Case
from tests.helpers.infos import halves
from tests.helpers.tool import Ended

__all__ = ["DELIBERATE", "after_run", "read"]


#: What is refused although other readers take it, on purpose: the words of the refusal, each with its reason.
DELIBERATE: Mapping[str, str] = {
    r"has the key '.*' twice": "readers differ on which of the two counts",
    r"is in its zip directory twice": "the same",
    r"records .* overlap": "one reader's tensor is another's header",
    r"is compressed": "nothing is inflated: a few bytes would become any number",
    r"its storage .* is said to be": "torch takes the first of two that contradict each other",
    r"is of protocol \d+, which does not exist": "Python's own pickle refuses it too",
    r"has a key, device or size that makes no sense": "where torch is told a device, it does not look at it",
    r"its storage .* is missing": "torch leaves its memory as it comes",
    r"its storage .* is cut short": "torch counts 2**63 and 6 elements as 6",
    r"is encrypted": "the same",
    r"not a checkpoint of a known format": "safetensors' own page: the header begins with {",
    r"a JSON text, not a checkpoint": "the same",
    r"does not have the entries that it announces": "the directory may be cut short",
    r"lies outside of the file": "the same",
    r"would be unpacked outside of its folder": "torch unpacks nothing, other programs do",
    r"a single tensor .*, without a name": "torch reads it, and nothing says what it is",
}

#: Targets of which all that torch or safetensors reads must be read.
_HELD = {"pickles", "zips", "safetensors", "folders"}
_UNITS = {
    torch.float64: (53, -1074),
    torch.float32: (24, -149),
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
}

#: A graph whose squares overflow computes 0 where w is a number; fold notes each such layer.
_OUT_OF_RANGE = "that the original computes otherwise"


def after_run(case: Case, run: tuple[str, ...], ended: Ended) -> Iterator[tuple[str, str]]:
    """Kinds of faults of one command, each with its words; the current folder is that of the case."""
    yield from _endings(ended)
    source = Path(case.source)
    verb, *options = run
    if case.target in _HELD and run == case.runs[0] and ended.returncode == 2:
        first = ended.stderr.partition("\n")[0]
        deliberate = any(re.search(words, ended.stderr) for words in DELIBERATE)
        if not deliberate and read(source) is not None:
            yield "false refusal", first
    if (
        ended.returncode == 0
        and verb in {"fold", "split", "migrate"}
        and "-o" in options
        and "-n" not in options
    ):
        out = Path(options[options.index("-o") + 1])
        if out.is_file() and case.target != "commands" and _OUT_OF_RANGE not in ended.stderr:
            yield from _output(verb, options, source, out)


def _endings(ended: Ended) -> Iterator[tuple[str, str]]:
    last = [line for line in ended.stderr.splitlines() if line.strip()]
    if ended.returncode not in {0, 1, 2}:
        yield "exit code 3", _frame(ended.stderr)
    elif "Traceback (most recent call last)" in ended.stderr:
        yield "raw exception", _frame(ended.stderr)
    elif "not enough memory" in ended.stderr:
        yield "more than 512 MiB", last[0]
    elif "a bug of wnconvert" in ended.stderr:
        yield "called a bug", last[0]
    elif ended.returncode == 2 and not any(line.startswith(("error: ", "fix: ")) for line in last):
        yield "no words", ended.stderr[-200:]
    if any(char != "\n" and not char.isprintable() for char in ended.stderr):
        yield "control characters", repr(ended.stderr[-200:])


def _frame(trace: str) -> str:
    """The last frame of ours in a traceback, and the exception."""
    lines = trace.splitlines()
    frames = [line.strip() for line in lines if line.startswith("  File") and "/wnconvert/" in line]
    short = [re.sub(r'File ".*/wnconvert/(.*)", line \d+, in (.*)', r"\1 \2", frame) for frame in frames]
    errors = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception|Warning|Exit)?\b.*:|MemoryError", line)
    ]
    said = next(
        (line for line in reversed(errors) if not line.startswith(("fix:", "note:", "this is"))), lines[-1:]
    )
    return f"{short[-1] if short else '?'}: {str(said)[:120]}"


def _without_comment(path: Path) -> Path:
    """A copy of an archive without its comment: at some lengths of it torch does not find the directory."""
    data = path.read_bytes()
    at = data.rfind(b"PK\x05\x06")
    copy = path.with_name(f"bare{path.suffix}")
    copy.write_bytes(data[: at + 20] + bytes(2))
    return copy


def read(path: Path) -> Any:
    """What torch, safetensors or NumPy read from a file; None if they refuse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = path.read_bytes()[:16] if path.is_file() else b""
            if path.suffix == ".safetensors" or head[8:9] == b"{":
                with safetensors.safe_open(path, framework="pt") as opened:
                    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
            loaded = torch.load(path, map_location="cpu", weights_only=True) if head else None
            # Without mmap torch leaves memory unread where a record says that it is a folder; with it, it
            # reads on behind a record that is too short.
            is_zip = head[:4] == b"PK\x03\x04"
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True) if is_zip else loaded
    except Exception:  # noqa: BLE001 - whatever another reader says of such a file
        return None


def _output(verb: str, options: list[str], source: Path, out: Path) -> Iterator[tuple[str, str]]:
    if out.suffix == ".onnx":
        yield from functions.differ(source, out)
        return
    before, after = read(source), read(out)
    if after is None and zipfile.is_zipfile(out):
        after = read(_without_comment(out))
    if after is None:
        if before is not None or out.suffix == ".safetensors":
            yield "unreadable output", f"{source.suffix} to {out.suffix} by {verb}"
        return
    if before is None:
        return
    dtype = getattr(torch, options[options.index("--dtype") + 1]) if "--dtype" in options else None
    there, made = dict(_states("", before)), dict(_states("", after))
    for path in there.keys() & made.keys():
        for wrong in _wrong(verb, there[path], made[path], dtype):
            yield "wrong numbers", f"{verb}: {wrong}"


def _states(path: str, tree: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The mappings in a tree that hold tensors."""
    if isinstance(tree, Mapping):
        tensors = {str(key): item for key, item in tree.items() if isinstance(item, Tensor)}
        if tensors:
            yield path, tensors
        for key, item in tree.items():
            yield from _states(f"{path}.{key}" if path else str(key), item)


def _wrong(
    verb: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[str]:
    """What differs from the formula, or, where nothing was computed, from the bytes as they were.

    Kept tensors of floats are cast to ``dtype``, where that is given, as torch does it.
    """
    for name in before.keys() & after.keys():
        was = before[name].to(dtype) if dtype and before[name].dtype in _UNITS else before[name]
        made = after[name]
        if verb == "migrate" and was.numel() == made.numel():
            made = made.reshape(was.shape)  # a g that was a vector has the shape that torch's API gives it
        if not _same(was, made):
            yield f"a kept tensor: {name!r}"
    if verb == "fold":
        for weight, (g, v) in halves(before).items():
            if weight in after and not {g, v} & after.keys():
                yield from _inexact(weight, before[g], before[v], after[weight])
    if verb == "split":
        for weight, (g, v) in halves(after).items():
            if weight in before and weight not in after and not _same(before[weight], after[v]):
                rows = before[weight].double().abs().flatten(1).sum(1) if before[weight].dim() > 1 else None
                if rows is None or bool((rows != 0).all()):
                    yield f"v is not the weight: {weight!r}, g {tuple(after[g].shape)}"
    if verb == "migrate" and len(before) == len(after):
        left = sorted(map(_bytes, before.values()))
        if left != sorted(map(_bytes, after.values())):
            yield "migrate changed bytes"


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return bytes(flat.view(torch.uint8).numpy().data)


def _same(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return not left.numel() or left.is_sparse or left.is_quantized or _bytes(left) == _bytes(right)


def _inexact(name: str, g: Tensor, v: Tensor, found: Tensor) -> Iterator[str]:
    """A weight that is further off the formula than its rounding, in extended precision."""
    if found.dtype not in _UNITS or not found.numel() or g.dim() not in {0, 1, v.dim()}:
        return
    wide_g, wide_v = (side.detach().double().numpy().astype(np.longdouble) for side in (g, v))
    if wide_g.ndim == 1 and wide_g.size > 1 and wide_v.ndim > 1:
        along = next((axis for axis, size in enumerate(wide_v.shape) if size == wide_g.size), 0)
        wide_g = wide_g.reshape([-1 if axis == along else 1 for axis in range(wide_v.ndim)])
    axes = tuple(axis for axis in range(wide_v.ndim) if wide_g.size == 1 or wide_g.shape[axis] == 1)
    with np.errstate(all="ignore"):
        norm = np.sqrt((wide_v**2).sum(axis=axes, keepdims=True)) if axes else np.abs(wide_v)
        exact = wide_g.reshape([1] * wide_v.ndim if wide_g.size == 1 else wide_g.shape) * wide_v / norm
        if exact.shape != found.shape:
            yield f"shape {tuple(found.shape)} of {name!r}"
            return
        bits, least = _UNITS[found.dtype]
        unit = np.ldexp(np.longdouble(1), np.maximum(np.frexp(exact)[1] - bits, least))
        off = np.abs(found.detach().double().numpy().astype(np.longdouble) - exact) / unit
    most = 2.5 if found.dtype == torch.float64 else 0.5 + 1e-5
    worst = np.max(np.where(np.isfinite(exact), off, 0))
    if worst > most:
        yield f"{float(worst):.3g} ulp off ({found.dtype})"
