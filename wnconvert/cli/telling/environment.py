"""The command env: what a report of a bug should tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from wnconvert import __version__
from wnconvert.cli.options import JSON, epilog
from wnconvert.cli.terminal import put, put_json
from wnconvert.messages import printable

__all__ = ["PACKAGES", "env"]


#: The packages that are used where they are there; the first ones always are.
PACKAGES = (
    *("numpy", "ml_dtypes", "safetensors", "click", "tqdm"),
    *("torch", "onnx", "onnxscript", "onnxruntime", "matplotlib", "jinja2", "transformers", "libcst"),
)
_PREFIX = "WNCONVERT_"
_COLOURS = ("NO_COLOR", "FORCE_COLOR", "COLUMNS")


@click.command(epilog=epilog("wnconvert env --json"))
@JSON
@click.pass_context
def env(context: click.Context, *, json: bool) -> None:
    """Show the versions of everything that is used, for the report of a bug."""
    found = _environment(_variables_of(context.find_root().command))
    if json:
        put_json(found)
    else:
        put(_text(found))


def _environment(known: set[str]) -> dict[str, Any]:
    import platform
    import sys
    from importlib import metadata

    from wnconvert.numerics.kernel.library import VARIABLE, chosen_kernel

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_PREFIX)}
    return {
        "schema": 1,
        "wnconvert": __version__,
        "location": str(Path(__file__).parents[1]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "kernel": chosen_kernel(),
        "packages": {name: version(name) for name in PACKAGES},
        "variables": variables | {name: os.environ[name] for name in _COLOURS if name in os.environ},
        "unknown_variables": [name for name in variables if name not in {*known, VARIABLE}],
    }


def _variables_of(command: click.Command, name: str = _PREFIX.rstrip("_")) -> set[str]:
    """The variables that click reads for the options of a command, and of those in it."""
    options = (param for param in command.params if isinstance(param, click.Option))
    found = {f"{name}_{(option.name or '').upper()}" for option in options if option.allow_from_autoenv}
    within = command.commands.items() if isinstance(command, click.Group) else ()
    return found.union(*(_variables_of(item, f"{name}_{key.upper()}") for key, item in within))


def _text(found: dict[str, Any]) -> str:
    lines = [(key, str(found[key])) for key in ("wnconvert", "location", "python", "executable", "system")]
    lines += [("processors", str(found["processors"])), ("kernel", found["kernel"])]
    lines += [(name, version or "not installed") for name, version in found["packages"].items()]
    lines += [
        (name, f"{value} (no option has this variable)" if name in found["unknown_variables"] else value)
        for name, value in found["variables"].items()
    ]
    width = max(len(key) for key, _ in lines) + 1
    return "\n".join(f"{key + ':':<{width}} {printable(value)}" for key, value in lines)
