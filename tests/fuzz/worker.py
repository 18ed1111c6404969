"""The process that runs the cases: a line of JSON in, a line for each command and one at the end out."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any

import wnconvert
from tests.fuzz.case import Case, from_file
from tests.fuzz.check import after_run
from tests.fuzz.targets import made
from tests.helpers.golden import FIXTURES
from tests.helpers.tool import Ended, run_here
from wnconvert.storage.stores import filling

__all__ = ["faults_of"]

_MEMORY = 512 << 20
#: What a fault says of the text behind it, at most.
_WORDS = 400


def main() -> None:
    """Serve until stdin ends. What is asked and told goes through other descriptors than the commands'."""
    asked, told = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    _write_directly()
    _warm_up()
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + _MEMORY, resource.RLIM_INFINITY))
    _tell(told, ready=True)
    for line in asked:
        request = json.loads(line)
        if path := request.get("file"):
            case = from_file(Path(path))
        else:
            case = made(request["target"], request["seed"], request["number"])
        faults = faults_of(case, lambda what: _tell(told, doing=what), aloud=bool(path))
        _tell(told, faults=faults, runs=len(case.runs))


def faults_of(
    case: Case, doing: Any = lambda what: None, *, aloud: bool = False
) -> list[tuple[str, str, str]]:
    """Run a case in a folder of its own: kinds of faults, each with its words and the command."""
    faults: list[tuple[str, str, str]] = []
    top = Path(tempfile.mkdtemp(prefix="wnconvert-fuzz-"))
    folder, before = top / "in", Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        case.laid_out(folder)
        for run in case.runs:
            doing(["run", *run])
            try:
                ended = run_here(*run)
            except MemoryError:
                faults.append(("more than 512 MiB", "outside of any net", str(run)))
                continue
            except BaseException as error:  # noqa: BLE001 - what escapes the command line is what is sought
                text = traceback.format_exception_only(error)[-1]
                faults.append(("raw exception", f"past main: {text}"[:_WORDS], str(run)))
                continue
            if aloud:
                print(f"$ wnconvert {run}\n{ended.stdout}{ended.stderr}[{ended.returncode}]", file=sys.stderr)
            doing(["check", *run])
            faults += [(kind, words[:_WORDS], str(run)) for kind, words in _checked(case, run, ended)]
    finally:
        os.chdir(before)
        shutil.rmtree(top, ignore_errors=True)
    return faults


def _checked(case: Case, run: tuple[str, ...], ended: Ended) -> list[tuple[str, str]]:
    try:
        return list(after_run(case, run, ended))
    except MemoryError:  # of another reader
        return []
    except Exception:  # noqa: BLE001 - a fault of the fuzzer's own must be seen
        return [("fuzzer", traceback.format_exc()[-_WORDS:])]


def _write_directly() -> None:
    """Have small files written as large ones are, past the page cache."""
    filling._DIRECT_FILE, filling._DIRECT_STRETCH = 0, 8 << 10


def _tell(told: IO[str], **what: Any) -> None:
    print(json.dumps(what), file=told, flush=True)


def _mapped() -> int:
    """Bytes of address space that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _warm_up() -> None:
    """Load all that commands load, so that the limit counts what they need for a file."""
    for module in pkgutil.walk_packages(wnconvert.__path__, "wnconvert."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gan.pt", "tcn.onnx", "step_1000.safetensors", "arrays.npz"):
            suffix = Path(name).suffix
            run_here("fold", FIXTURES / name, "-o", Path(folder, f"x{suffix}"))
            run_here("inspect", FIXTURES / name, "--full", "--plot", Path(folder, f"{name}.png"))


if __name__ == "__main__":
    main()
