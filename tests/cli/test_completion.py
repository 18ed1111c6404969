"""What a shell offers while a line is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_files import VARIABLES, environment
from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here


def offered(line: str) -> list[str]:
    """What is offered at the end of a line that is typed in the folder of fixtures."""
    at = str(line.count(" "))
    asked = {"_WNCONVERT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": at}
    done = run_here(folder=FIXTURES, variables=VARIABLES | asked)
    assert (done.returncode, done.stderr) == (0, "")
    return [item.partition(",")[2] for item in done.stdout.splitlines() if item]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("wnconvert fold gan.pt --only ", ["generator", "discriminator", "ema.model"]),
        ("wnconvert fold gan.pt --only g", ["generator"]),
        ("wnconvert fold gan.pt -o out.pt --force --only g", ["generator"]),
        ("wnconvert compare gan.pt vits.pth --only ", ["generator", "discriminator", "ema.model", "model"]),
        ("wnconvert export m.py:f --weights gan.pt --only e", ["ema.model"]),
        ("wnconvert check a.onnx m.py:f --weights gan.pt --only e", ["ema.model"]),
        ("wnconvert fold hifigan.safetensors --only ", ["."]),
    ],
)
def test_only_is_completed_with_the_state_dicts_of_the_file(line: str, names: list[str]) -> None:
    assert offered(line) == names


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("wnconvert fold gan.pt --layers ", ["pre.weight", "post.weight", "convs.0.weight"]),
        ("wnconvert fold gan.pt --layers c", ["convs.0.weight"]),
        ("wnconvert migrate g_02500000 --exclude ups.", [f"ups.{at}.weight" for at in range(4)]),
        ("wnconvert inspect gan.pt vits.pth --layers dec.u", ["dec.ups.0.weight"]),
        ("wnconvert fold plain.pt --layers ", []),  # it has no pairs
        ("wnconvert split plain.pt --layers conv", ["conv.weight"]),
        ("wnconvert split gan.pt --layers pre", []),  # they are split
    ],
)
def test_layers_are_completed_with_the_weights_that_the_command_works_on(line: str, names: list[str]) -> None:
    assert offered(line) == names


@pytest.mark.parametrize(
    "line",
    [
        "wnconvert fold no.pt --only ",
        "wnconvert fold --only ",
        "wnconvert fold make.py --layers ",
        "wnconvert fold gan.pt --only zzz",
    ],
)
def test_what_is_wrong_offers_nothing_and_says_nothing(line: str) -> None:
    assert offered(line) == []


def test_commands_options_and_choices_are_completed_by_click() -> None:
    assert offered("wnconvert mi") == ["migrate"]
    assert offered("wnconvert help ex") == ["export"]
    assert offered("wnconvert fold gan.pt --dt") == ["--dtype"]
    assert offered("wnconvert fold gan.pt --dtype b") == ["bfloat16"]
    assert offered("wnconvert migrate gan.pt --to p") == ["parametrize", "paddle", "physicsnemo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_is_there_and_documented(shell: str) -> None:
    done = run_here(variables={**VARIABLES, "_WNCONVERT_COMPLETE": f"{shell}_source"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_WNCONVERT_COMPLETE={shell}_complete" in done.stdout
    page = (FIXTURES.parent / "docs" / "commands.md").read_text()
    assert f"_WNCONVERT_COMPLETE={shell}_source wnconvert" in page


def test_bash_itself_completes_a_line(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash, "every machine that runs these tests has bash"
    tool = tmp_path / "wnconvert"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(FIXTURES.parent)!r})\n"
        "sys.argv[0] = 'wnconvert'\nfrom wnconvert.cli import main\nmain()\n"
    )
    tool.chmod(0o755)
    script = (
        'eval "$(_WNCONVERT_COMPLETE=bash_source wnconvert)"\n'
        "COMP_WORDS=(wnconvert fold gan.pt --only g); COMP_CWORD=4\n"
        "_wnconvert_completion wnconvert g --only\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "-c", script],
        cwd=FIXTURES,
        env=environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("generator\n", "")
