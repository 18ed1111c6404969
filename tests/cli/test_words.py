"""What people type: usual words, short flags, help VERB, env, variables of the environment."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

import wnconvert
from tests.cli.test_files import COMMANDS, VARIABLES, run
from tests.helpers.golden import FIXTURES
from tests.helpers.tool import Ended, run_here
from wnconvert.cli import cli, words

BIG = FIXTURES / "hifigan.safetensors"
OPTIONS = {
    name: [param for param in command.params if isinstance(param, click.Option)]
    for name, command in COMMANDS.items()
}


# -- words that are no commands and no options


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("convert", ["fold", "migrate", "export"]),
        ("info", ["inspect"]),
        ("remove", ["fold"]),
        ("Show", ["inspect"]),
        ("diff", ["compare"]),
        ("onnx", ["export"]),
        ("verify", ["check"]),
        ("rename", ["migrate"]),
        ("remove_weight_norm", ["fold"]),
        ("flod", ["fold", "loads"]),
        ("inspct", ["inspect"]),
        ("version", ["--version"]),
    ],
)
def test_a_usual_word_is_answered_with_the_command_that_is_meant(word: str, meant: list[str]) -> None:
    done = run(word, BIG)
    assert (done.returncode, done.stdout) == (2, "")
    what, fix = done.stderr.splitlines()
    assert what == f"error: there is no command {word!r}"
    assert fix.startswith("fix: did you mean ")
    assert fix.count("wnconvert ") == len(meant)
    assert all(f"wnconvert {name}" in fix for name in meant)


def test_a_file_in_the_place_of_a_command_is_known(tmp_path: Path) -> None:
    assert run(BIG).stderr.splitlines()[1] == f"fix: say what to do with it, such as: wnconvert inspect {BIG}"
    assert run(tmp_path / "no").stderr.splitlines()[1] == "fix: wnconvert --help lists the commands"


def test_every_word_means_a_command_or_an_option_and_is_none_itself() -> None:
    names = {name for options in OPTIONS.values() for option in options for name in option.opts}
    for meant, usual in words._WORDS.items():
        assert meant in {*COMMANDS, "--version"}
        assert not {*usual.split()} & {*COMMANDS}
    for meant, usual in words._OPTIONS.items():
        assert meant.split()[0] in names
        for options in OPTIONS.values():  # a word of one command may be an option of another
            own = {name for option in options for name in option.opts}
            assert meant.split()[0] not in own or not {*usual.split()} & own


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (["fold", "x", "--overwrite"], "did you mean --force? See wnconvert fold --help"),
        (["fold", "x", "--fp16"], "did you mean --dtype float16? See wnconvert fold --help"),
        (["fold", "x", "-v"], "did you mean --list? See wnconvert fold --help"),
        (["modernize", "a", "--overwrite"], "wnconvert modernize --help"),  # which has no --force
        (["migrate", "x", "--fp16"], "wnconvert migrate --help"),
    ],
)
def test_a_usual_option_is_answered_with_one_that_the_command_has(line: list[str], fix: str) -> None:
    assert run(*line).stderr.splitlines()[1] == f"fix: {fix}"


def test_what_click_finds_near_stays() -> None:
    said = run("fold", "x", "--dtpye", "float16").stderr
    assert "Did you mean" in said
    assert "--dtype" in said


# -- flags


def test_short_flags_are_the_long_ones(tmp_path: Path) -> None:
    source, out = FIXTURES / "gan.pt", tmp_path / "out.pt"
    out.write_text("old")
    assert "would write" in run("fold", source, "-n", "--output", out).stdout
    assert out.read_text() == "old"
    assert run("fold", source, "-qf", "--output", out).stdout.startswith(f"{out}: 6 layers folded")
    assert out.read_bytes() != b"old"
    assert run("-V").stdout == run("--version").stdout == f"wnconvert, version {wnconvert.__version__}\n"


def test_every_command_spells_its_common_options_alike() -> None:
    spelled: dict[str, set[tuple[str, ...]]] = {}
    for option in (option for options in OPTIONS.values() for option in options):
        if option.name in ("out", "force", "quiet", "silent", "json"):
            spelled.setdefault(option.name, set()).add(tuple(option.opts))
        assert "--output" not in option.opts or option.name == "out"
    assert spelled == {
        "out": {("-o", "--out", "--output")},
        "force": {("-f", "--force")},
        "quiet": {("-q", "--quiet")},
        "silent": {("--silent",)},
        "json": {("--json",)},
    }
    without = [name for name, options in OPTIONS.items() if "json" not in {it.name for it in options}]
    assert without == ["help"]


# -- help and env


def test_help_verb_is_verb_help() -> None:
    for name in COMMANDS:
        assert run("help", name).stdout == run(name, "--help").stdout
    assert run("help").stdout == run("--help").stdout
    wrong = run("help", "convert")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean wnconvert fold" in wrong.stderr


def test_env_tells_the_versions_of_what_is_installed() -> None:
    found = json.loads(run("env", "--json").stdout)
    assert found["wnconvert"] == wnconvert.__version__
    assert all(found["packages"][name] for name in ("numpy", "ml_dtypes", "safetensors", "click", "tqdm"))
    assert f"\nnumpy:        {found['packages']['numpy']}\n" in run("env").stdout


def test_env_tells_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.cli.telling.environment.PACKAGES", ("numpy", "no_such_package"))
    assert json.loads(run("env", "--json").stdout)["packages"]["no_such_package"] is None
    assert "no_such_package: not installed" in run("env").stdout


# -- variables


def with_variables(*arguments: str | Path, **variables: str) -> Ended:
    return run_here(*arguments, variables=VARIABLES | variables)


def test_a_variable_is_an_option_and_the_command_line_counts_more() -> None:
    def dtypes(*more: str) -> set[str]:
        done = with_variables("fold", BIG, "-n", "--json", *more, WNCONVERT_FOLD_DTYPE="fp16")
        return {layer["dtype"] for layer in json.loads(done.stdout)["layers"]}

    assert dtypes() == {"float16"}
    assert dtypes("--dtype", "bf16") == {"bfloat16"}
    done = with_variables("fold", BIG, WNCONVERT_FOLD_DRY_RUN="1", WNCONVERT_FOLD_QUIET="true")
    assert done.stdout.startswith("would write ")
    several = with_variables("fold", BIG, "-n", "--json", WNCONVERT_FOLD_EXCLUDE="conv_* ups.*")
    assert len(json.loads(several.stdout)["layers"]) == 72


def test_a_variable_of_one_command_is_not_of_another_and_a_wrong_value_is_an_error() -> None:
    assert with_variables("inspect", BIG, WNCONVERT_FOLD_THREADS="many").returncode == 0
    wrong = with_variables("fold", BIG, "-n", WNCONVERT_FOLD_THREADS="many")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "'--threads': 'many' is not a valid int" in wrong.stderr


def test_a_version_in_the_environment_is_not_an_option() -> None:
    """Builds set such a variable."""
    assert with_variables("fold", BIG, "-nq", WNCONVERT_VERSION="1.2").stdout.startswith("would write ")


def test_env_shows_variables_and_those_that_are_mistaken() -> None:
    said = with_variables("env", WNCONVERT_FOLD_THREAD="2", WNCONVERT_INSPECT_FULL="1").stdout
    assert "WNCONVERT_FOLD_THREAD:  2 (no option has this variable)\n" in said
    assert "WNCONVERT_INSPECT_FULL: 1\n" in said


def test_every_option_of_every_command_has_a_variable() -> None:
    assert cli.context_settings["auto_envvar_prefix"] == "WNCONVERT"
    names = {
        f"WNCONVERT_{name.upper()}_{(option.name or '').upper()}": "1"
        for name, options in OPTIONS.items()
        for option in options
        if name != "env"
    }
    assert len(names) > 50
    said = json.loads(with_variables("env", "--json", **names).stdout)
    assert said["unknown_variables"] == []
