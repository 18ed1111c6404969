"""Runs killed at random points: ``python -m tests.fuzz.kills --kills 1000 --seed 1``, all verbs and targets.

After each kill the source is what it was, and the target is the old one or the new one, whole. What else was
left, the next run names, and ``--clean`` deletes it, and nothing else. A line for each kind of run, and the
faults; exit code 1 if there is one. Children are forked after all imports.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.golden import FIXTURES, ROOT

#: A child that takes longer hangs.
_LONGEST = 300.0
#: So many faults of a kind are told.
_TOLD = 3

State = dict[str, str]


# -- what is run


@dataclass(frozen=True)
class Kind:
    """A kind of run: its words, what it reads, and what stands at its target before.

    ``reads`` are files of ``place``, by the fixture that each is a copy of; ``made`` are words of runs that
    come before it, whose outputs it reads or replaces. With ``stdout`` the output goes there. ``cleaner`` is
    what is run with ``--clean`` after one that came to its end, and cannot be run again. ``plans`` and
    ``cleans`` say that it has ``--dry-run`` and ``--clean``; a picture is cleaned by itself.
    """

    name: str
    words: str
    reads: dict[str, str] = field(default_factory=dict)
    made: tuple[str, ...] = ()
    old: dict[str, bytes] = field(default_factory=dict)
    in_place: bool = False
    stdout: bool = False
    weight: int = 4
    plans: bool = True
    cleans: bool = True
    cleaner: str = ""


_DATA = "data.onnx"
KINDS = (
    Kind("fold", "fold in.pt -o out.pt", {"in.pt": "g_02500000"}),
    Kind("fold to safetensors", "fold in -o out.safetensors", {"in": "hifigan.safetensors"}),
    Kind("fold --verify", "fold in -o out.safetensors --verify", {"in": "hifigan.safetensors"}),
    Kind("fold --force", "fold in.pt -o out.pt --force", {"in.pt": "gan.pt"}, old={"out.pt": b"old"}),
    Kind("fold npz", "fold in.npz -o out.npz --copy", {"in.npz": "arrays.npz"}),
    Kind("fold in place", "fold in.pt --in-place --verify", {"in.pt": "g_02500000"}, in_place=True),
    Kind("fold to stdout", "fold in.pt -o -", {"in.pt": "g_02500000"}, stdout=True),
    Kind("split", "split in -o out.pt", made=("fold g.st -o in",), reads={"g.st": "hifigan.safetensors"}),
    Kind(
        "split in place",
        "split in.safetensors --in-place",
        made=("fold g.st -o in.safetensors",),
        reads={"g.st": "hifigan.safetensors"},
        in_place=True,
        cleaner="migrate in.safetensors --in-place",
    ),
    Kind("migrate", "migrate in.pt -o out.pt --verify --to legacy", {"in.pt": "lightning.ckpt"}),
    Kind("migrate in place", "migrate in.pt --in-place", {"in.pt": "gan.pt"}, in_place=True),
    Kind("as folder", "fold in -o out --as-folder --max-shard-size 20KB", {"in": "hifigan.safetensors"}),
    Kind("folder", "fold in -o out --max-shard-size 100KB --verify", {"in": "sharded"}),
    Kind(
        "folder --force",
        "fold in -o out --force --max-shard-size 20KB",
        {"in": "sharded"},
        made=("fold in -o out",),
    ),
    Kind("folder in place", "fold in --in-place", {"in": "sharded"}, in_place=True),
    Kind("distributed", "fold in -o out.pt", {"in": "distributed"}),
    Kind("onnx", "fold in.onnx -o out.onnx", {"in.onnx": "tcn.onnx"}),
    Kind("onnx data", f"fold {_DATA} -o out.onnx --verify", {_DATA: _DATA}),
    Kind(
        "onnx data --force",
        f"fold {_DATA} -o out.onnx --force",
        {_DATA: _DATA},
        made=(f"fold {_DATA} -o out.onnx",),
    ),
    Kind("onnx in place", f"fold {_DATA} --in-place", {_DATA: _DATA}, in_place=True),
    Kind("picture", "inspect in --plot out.png", {"in": "gan.pt"}, weight=2, plans=False, cleans=False),
    Kind(
        "picture --force",
        "inspect in --plot out.png --force",
        {"in": "gan.pt"},
        old={"out.png": b"old"},
        weight=2,
        plans=False,
        cleans=False,
    ),
    Kind(
        "export",
        "export vocoder.py:Generator -o out.onnx --external-data --input mel=float32[1,80,T] --range T=4..16",
        {"vocoder.py": "vocoder.py"},
        weight=1,
        plans=False,
    ),
)


# -- children


def _forked(act: Callable[[], object]) -> int:
    """Fork a child that acts; the id of its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()  # with what it starts it can be ended as one
        act()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)  # a fork must not go on as its parent


def _command(words: Sequence[str], place: Path, said: Path) -> None:
    """Run the command line in this process, which ends with it."""
    os.chdir(place)
    # Said to Python too, which would try first whether it takes a file, of a name that is nobody's.
    tempfile.tempdir = os.environ["TMPDIR"] = str(place / "tmp")
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["wnconvert", *words]
    sys.path.insert(0, str(place))
    from wnconvert.cli import main

    main()


def _hooked(hook: Callable[[], None]) -> None:
    """Run ``hook`` before every call that changes a file or a folder."""
    from wnconvert.storage.stores import renames, system

    every: list[tuple[object, str]] = [
        *((os, name) for name in ("open", "pwrite", "pwritev", "write", "copy_file_range", "sendfile")),
        *((os, name) for name in ("fsync", "fchmod", "link", "unlink", "rmdir", "ftruncate")),
        *((Path, name) for name in ("mkdir", "rename", "replace", "chmod", "symlink_to", "unlink")),
        (system, "_allocate"),
        (renames, "_renameat2"),
    ]
    for owner, name in every:
        if hasattr(owner, name):
            setattr(owner, name, _calling(hook, getattr(owner, name)))


def _calling(hook: Callable[[], None], call: Callable[..., object]) -> Callable[..., object]:
    def hooked(*given: object, **options: object) -> object:
        hook()
        return call(*given, **options)

    return hooked


def _ended(pid: int) -> int:
    """Wait for a child, which may not hang; its status."""
    end = time.monotonic() + _LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError("a child hangs")


# -- what a child left


def _state(place: Path) -> State:
    """All that lies in a place: of a file its content and mode, of a folder its mode, of a link its text."""
    return {str(path.relative_to(place)): _of(path) for path in sorted(place.rglob("*"))}


def _of(path: Path) -> str:
    mode = path.lstat().st_mode
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return f"{mode:o}"
    return f"{mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _temporary(state: State) -> set[str]:
    """The names in it that are those of temporary files and folders of runs."""
    return {name for name in state if any(_is_temporary(part) for part in Path(name).parts)}


def _is_temporary(name: str) -> bool:
    return ".wnconvert-" in name and name.endswith(".tmp")


@dataclass
class Trial:
    """One kind of run in a place of its own: what was before, what a whole run makes, how long it takes."""

    kind: Kind
    place: Path
    said: Path
    before: State = field(default_factory=dict)
    news: list[State] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0
    found: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Lay out what the run reads, and what stands at its target; the runs before it happen once."""
        kept = self.place.with_name("kept")
        if kept.exists():
            shutil.rmtree(self.place)
            shutil.copytree(kept, self.place, symlinks=True)
            return
        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "tmp").mkdir(parents=True)
        for name, fixture in self.kind.reads.items():
            _copy_fixture(fixture, self.place / name)
        for name, content in self.kind.old.items():
            (self.place / name).write_bytes(content)
        for words in self.kind.made:
            self.whole(words.split())
        # The list of a folder's files is younger than they are, so its time must stay.
        shutil.copytree(self.place, kept, symlinks=True)

    def whole(self, words: Sequence[str], hook: Callable[[], None] | None = None) -> None:
        """A run that is not killed. Raises ``RuntimeError`` where it does not end well."""

        def act() -> None:
            if hook is not None:
                _hooked(hook)
            _command(words, self.place, self.said)

        status = _ended(_forked(act))
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"{' '.join(words)}: {status}: {self.said.read_text(errors='replace')}")

    def measure(self) -> None:
        """Run it whole once, to know what it makes, its calls and its time; and again over that."""
        self.prepare()
        self.before = _state(self.place)
        counted = self.said.with_name("calls")
        counted.write_bytes(b"")

        def count() -> None:
            with counted.open("ab") as file:
                file.write(b".")

        began = time.monotonic()
        self.whole(self.words, None)
        self.seconds = time.monotonic() - began
        self.news = [_state(self.place)]
        for _ in range(0 if self.kind.in_place or self.kind.stdout else 2):  # data has one name, or another
            self.whole([*self.words, *self.force])
            self.news.append(_state(self.place))
        self.prepare()
        self.whole(self.words, count)
        self.calls = counted.stat().st_size

    @property
    def words(self) -> list[str]:
        return self.kind.words.split()

    @property
    def force(self) -> list[str]:
        return [] if "--force" in self.words or self.kind.in_place or self.kind.stdout else ["--force"]

    def kill(self, rng: random.Random) -> None:
        """Kill it once, before a call or after a while, and look at what it left."""
        self.prepare()
        by_call = rng.random() < 0.5
        if by_call:
            left = iter(range(rng.randrange(self.calls)))

            def hook() -> None:
                if next(left, None) is None:
                    os.killpg(0, signal.SIGKILL)

            def act() -> None:
                _hooked(hook)
                _command(self.words, self.place, self.said)

            status = _ended(_forked(act))
        else:
            pid = _forked(lambda: _command(self.words, self.place, self.said))
            time.sleep(rng.uniform(0, 1.05 * self.seconds))
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)
            status = _ended(pid)
        self.found["killed" if os.WIFSIGNALED(status) else "came to its end"] += 1
        self.look()

    def look(self) -> None:
        """Compare what is there with what was, and with what a whole run makes; then clean."""
        after = _state(self.place)
        ours = _temporary(after)
        rest = {name: was for name, was in after.items() if name not in ours}
        fits = [state for state in (self.before, *self.news[:1]) if state.items() <= rest.items()]
        if not fits:
            self.fault(f"neither old nor new: {_differences(self.before, rest)}")
            return
        state = fits[-1]
        self.found["new" if state is not self.before else "old"] += 1
        beside = sorted({Path(name).parts[0] for name in ours if not name.startswith("tmp/")})
        spooled = sorted({Path(name).parts[1] for name in ours if name.startswith("tmp/")})
        others = sorted(rest.keys() - state.keys())
        self.found["left something"] += bool(ours or others)
        done = state is not self.before
        words = self.kind.cleaner.split() if done and self.kind.cleaner else self.words
        self.clean([*words, *self.force], [*beside, *spooled], others)

    def clean(self, words: list[str], left: list[str], others: list[str]) -> None:
        """The next run names what is left; ``--clean`` deletes it, and ends as a run that nobody killed."""
        if not self.kind.in_place and self.kind.plans and left:
            try:
                self.whole([*words, "--dry-run"])
            except RuntimeError as error:
                self.fault(f"the next run ends badly: {error}")
            self.check_named(left)
        try:
            self.whole([*words, *(["--clean"] if self.kind.cleans else [])])
        except RuntimeError as error:
            self.fault(f"--clean ends badly: {error}")
            return
        self.check_named(left)
        final = _state(self.place)
        if final not in self.news:
            what = _differences(self.news[0], final)
            self.fault(f"after --clean ({', '.join([*left, *others]) or 'nothing'} was left): {what}")

    def check_named(self, left: list[str]) -> None:
        """The last run named what was left."""
        said = self.said.read_text(errors="replace")
        for name in left:
            if name not in said:
                self.fault(f"not named: {name}")

    def fault(self, what: str) -> None:
        self.found["FAULTS"] += 1
        if len(self.faults) < _TOLD:
            self.faults.append(f"{self.kind.name}: {what}")


def _differences(expected: State, found: State) -> str:
    told = [f"{name} is missing" for name in expected if name not in found]
    told += [f"{name} is other" for name in expected if name in found and found[name] != expected[name]]
    told += [f"{name} is more" for name in found if name not in expected]
    return "; ".join(told)


def _copy_fixture(name: str, to: Path) -> None:
    if name == _DATA:
        import onnx

        model = onnx.load(FIXTURES / "tcn.onnx")
        onnx.save_model(model, to, save_as_external_data=True, location=f"{to.name}.data", size_threshold=0)
    elif (FIXTURES / name).is_dir():
        shutil.copytree(FIXTURES / name, to)
    else:
        shutil.copyfile(FIXTURES / name, to)


# -- all of it


#: What the children need, by words of what they run.
_MODULES = {
    "": "cli.files cli.export reports.text.conversions verbs.conversion.files.fold "
    "verbs.conversion.folders.convert",
    "onnx": "verbs.conversion.onnx.check",
    "export": "verbs.export.export",
    "--plot": "reports.plots",
}
_PACKAGES = {"onnx": "onnx.checker onnxruntime", "export": "torch onnxscript", "--plot": "matplotlib.figure"}


def _import_all(kinds: Sequence[Kind]) -> None:
    """Import what the children need, but run nothing of it: a process with threads should not fork."""
    words = " ".join(kind.words for kind in kinds)
    for word, names in (*_MODULES.items(), *_PACKAGES.items()):
        for name in names.split() if word in words else ():
            importlib.import_module(f"wnconvert.{name}" if _MODULES.get(word) == names else name)


def trials(kinds: Sequence[Kind], kills: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Run each kind so often that all together are killed ``kills`` times; a trial at its end."""
    total = sum(kind.weight for kind in kinds)
    left, weight = kills, total
    for kind in kinds:
        count = round(left * kind.weight / weight)
        left, weight = left - count, weight - kind.weight
        home = folder / kind.name.replace(" ", "_")
        home.mkdir()
        trial = Trial(kind, home / "place", home / "said")
        rng = random.Random(f"{seed} {kind.name}")
        trial.measure()
        for _ in range(count):
            trial.kill(rng)
        shutil.rmtree(home)
        yield trial


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="the name of a kind of run (repeatable)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.only or kind.name in options.only]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    _import_all(kinds)
    every: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for trial in trials(kinds, options.kills, options.seed, Path(folder)):
            every.update(trial.found)
            told = {"kind": trial.kind.name, "calls": trial.calls, "seconds": round(trial.seconds, 2)}
            line = json.dumps({**told, **trial.found})
            print(line if options.json else line.strip("{}").replace('"', ""), flush=True)
            for fault in trial.faults:
                print(f"  FAULT {fault}", flush=True)
    print(f"seed {options.seed}: {json.dumps(every)}")
    return 1 if every["FAULTS"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
