"""Command lines: every option of every verb, with values that fit and that do not, on files of odd names."""

from __future__ import annotations

from pathlib import Path
from random import Random

import click

from tests.fuzz.case import Case
from tests.fuzz.values import EDGES, TEXTS
from wnconvert.cli import cli

__all__ = ["case"]

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_FILES = (
    *(
        "codec_bf16.safetensors",
        "half_pair.safetensors",
        "misfit.safetensors",
        "gan.pt",
        "sovits.pth",
        "tied.pt",
    ),
    *(
        "plain.pt",
        "zero_row.safetensors",
        "stack.safetensors",
        "arrays.npz",
        "step_1000.safetensors",
        "program.pt2",
    ),
    *(
        "scripted.pt",
        "legacy_nonzip.pth",
        "spellings.safetensors",
        "float8.safetensors",
        "waveglow_module.pt",
    ),
)
_VERBS = ("fold", "split", "migrate", "inspect", "compare")
_NAMES = (
    *("a b.pt", "-x.pt", "é.pt", "é.pt", "=1+1.pt", "@x.pt", "x|y.pt", "x\x1b]0;t\x07.pt", "x\n.pt"),
    *(
        "\udcff.pt",
        "\u202ex.pt",
        "x" * 250 + ".pt",
        "a" * 300,
        "sub/x.pt",
        "*.pt",
        "[a].pt",
        "x.onnx",
        "x.npz",
    ),
    *("x.safetensors", "x.index.json", ".metadata", "x.distcp", "x", "con", "`x`.pt", "<b>.pt"),
)
_WORDS = (
    *(
        "*",
        "a.*",
        "generator",
        ".",
        "none",
        "auto",
        "0",
        "-1",
        "1",
        "5",
        "5GB",
        "1B",
        "1MiB",
        "0GB",
        "-1GB",
        "x",
    ),
    *(
        "fold",
        "fp16",
        "bf16",
        "half",
        "float32",
        "float64",
        "legacy",
        "parametrize",
        "a=b",
        "=",
        "a=",
        "*=*",
        "[",
        "!",
    ),
    *(
        "module.",
        "1e-3",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "table",
        "csv",
        "markdown",
        "json",
        "ratio",
        "norm",
        "name",
    ),
)


def case(random: Random) -> Case:
    """Two to four command lines one after another, so that later ones meet what earlier ones wrote."""
    files: dict[str, bytes] = {}
    for _ in range(random.choice([1, 2])):
        fixture = random.choice(_FILES)
        name = fixture if random.random() < 0.6 else random.choice(_NAMES)
        if len(name) < 255:
            files[name] = (_FIXTURES / fixture).read_bytes()
    files = files or {"x.pt": (_FIXTURES / "plain.pt").read_bytes()}
    names = [*files]
    runs = tuple(_line(random, names) for _ in range(random.randint(2, 4)))
    return Case("commands", files, names[0], runs)


def _line(random: Random, files: list[str]) -> tuple[str, ...]:
    verb = random.choice(_VERBS) if random.random() < 0.95 else random.choice(["help", "env", "foldd", ""])
    command = cli.commands.get(verb, cli)
    line: list[str] = []
    options = [param for param in command.params if isinstance(param, click.Option)]
    if verb in ("fold", "split", "migrate") and random.random() < 0.6:
        line += [
            "-o",
            random.choice(["out.pt", "out.safetensors", "out.npz", "out", "out/", _name(random, files)]),
        ]
    for option in random.sample(options, min(len(options), random.choice([0, 1, 1, 2, 3, 5]))):
        spelled = random.choice(option.opts)
        if spelled in ("-o", "--out", "--output", "--help", "-h", "--version", "-V"):
            continue
        line.append(spelled)
        if not option.is_flag:
            line.append(_value(random, option, files))
    places = [random.choice(files) if random.random() < 0.85 else _name(random, files)]
    if verb == "compare" or (verb == "inspect" and random.random() < 0.2):
        places.append(random.choice(files))
    if random.random() < 0.03:
        places = places[:-1]
    guard = ["--"] if any(place.startswith("-") for place in places) and random.random() < 0.5 else []
    return (verb, *line, *guard, *places)


def _value(random: Random, option: click.Option, files: list[str]) -> str:
    kind = option.type
    if isinstance(kind, click.Choice) and random.random() < 0.9:
        return str(random.choice(list(kind.choices)))
    if isinstance(kind, click.Path):
        pictures = ["p.png", "p.svg", "p.pdf", "p", "sub/p.png"] if "--plot" in option.opts else files
        return random.choice([*pictures, _name(random, files)])
    return random.choice(
        [random.choice(_WORDS), random.choice(_WORDS), _text(random), str(random.choice(EDGES))]
    )


def _text(random: Random) -> str:
    return random.choice(TEXTS).replace("\x00", "").replace("\ud800", "")


def _name(random: Random, files: list[str]) -> str:
    """A name of a file that may be there, or may not: never one outside of the folder."""
    name = random.choice([*files, *_NAMES, _text(random), ".", "missing.pt", "-", ""])
    return "x" if name.startswith(("/", "..", "../")) else name
