"""The build step of the wheel, and of editable installs: the kernel is compiled, if there is a C compiler.

``python hatch_build.py`` compiles it in place. Without a compiler, or if it fails, wnconvert is installed all
the same and computes with numpy: the bytes are the same, it only takes longer.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # called by hand
    BuildHookInterface = object

_FOLDER = Path("wnconvert", "numerics", "kernel")
#: The header, and what is compiled.
SOURCES = tuple(_FOLDER / name for name in ("elements.h", "sums.c", "rows.c", "dots.c"))
# No option may change what is computed: neither fused products nor reordered sums.
_OPTIONS = "-std=c11 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fPIC -shared".split()


def compiler() -> list[str] | None:
    """The command of the C compiler: that of $CC, else Python's own, else cc; None if it is not there."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return None


def digest(root: Path) -> str:
    """The SHA-256 of all sources."""
    return hashlib.sha256(b"".join((root / source).read_bytes() for source in SOURCES)).hexdigest()


def build(root: Path) -> Path | None:
    """Compile the kernel beside its source; says why on stderr, and gives None, where that cannot be done."""
    target = root / _FOLDER / "rows.library"
    command = compiler()
    if command is None:
        _say_without("no C compiler (cc, or $CC)")
        return None
    made = target.with_suffix(f".{os.getpid()}.library")  # programs that use the old one go on doing so
    compiled = [str(root / source) for source in SOURCES if source.suffix == ".c"]
    run = [*command, *_OPTIONS, f'-DSOURCE="{digest(root)}"', *compiled, "-o", str(made)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)  # noqa: S603 -- the user's compiler
    if done.returncode:
        made.unlink(missing_ok=True)
        _say_without(f"{command[0]} failed: {done.stderr}")
        return None
    made.replace(target)
    return target


def _say_without(reason: str) -> None:
    sys.stderr.write(f"wnconvert will compute with numpy, which takes longer: {reason}\n")


class CompiledKernel(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled kernel to a wheel, which is for one kind of machine then, and any Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatch's
        """Compile before the files are gathered."""
        if self.target_name != "wheel":
            return
        made = build(Path(self.root))
        if made:
            build_data["artifacts"].append((_FOLDER / made.name).as_posix())
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    sys.exit(0 if build(Path(__file__).parent) else 1)
