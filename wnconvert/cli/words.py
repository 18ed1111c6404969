"""Words that are typed: what is meant by one that is neither a command nor an option, and ``help VERB``."""

from __future__ import annotations

import os

import click

from wnconvert.cli.options import epilog
from wnconvert.errors import ArgumentError

__all__ = ["Verbs", "help_command", "option_meant"]


#: Usual words for what a command does.
_WORDS = {
    "fold": "convert remove remove-weight-norm remove_weight_norm unwrap fuse merge bake strip plain flatten",
    "split": "unfold unfuse add apply weight-norm weight_norm decompose train finetune",
    "migrate": "convert rename upgrade update port translate parametrize legacy",
    "modernize": "codemod rewrite refactor lint code",
    "inspect": "info show list ls view print describe stat stats dump look cat summary tensors plot health",
    "compare": "diff cmp equal equals same match",
    "export": "onnx to-onnx to_onnx convert",
    "check": "verify test validate prove proof",
    "recipe": "trace norms fuse-bn batchnorm fold-bn",
    "env": "versions doctor sysinfo environment system",
    "--version": "version",
}
_OPTIONS = {
    "--force": "--overwrite --replace --yes -y",
    "--dry-run": "--plan --no-write --simulate",
    "--dtype float16": "--fp16 --half --float16 --cast --precision",
    "--dtype bfloat16": "--bf16 --bfloat16",
    "--out": "--output-file --output-path --dst --dest --to-file",
    "--list": "-v --all-layers",
    "--layers": "--layer --include --filter",
    "--exclude": "--skip --ignore",
    "--json": "--as-json",
    "--top": "--head --limit",
    "--only": "--key --state-dict --submodule",
    "--input": "--input-shape --shape",
    "--output-name": "--output-names",
    "--weights": "--checkpoint --ckpt",
}


def _of(words: dict[str, str], word: str) -> list[str]:
    return [meant for meant, usual in words.items() if word in usual.split()]


class Verbs(click.Group):
    """The commands; a word that is none of them is answered with those that may be meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises ``ArgumentError`` if there is none of this name."""
        word = args[0]
        if self.get_command(ctx, word) or word.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        raise ArgumentError(f"there is no command {word!r}", fix=self._fix(word))

    def _fix(self, word: str) -> str:
        from difflib import get_close_matches  # which `--help` does not need

        meant = _of(_WORDS, word.lower()) or get_close_matches(word.lower(), self.commands)
        if meant:
            return f"did you mean {', or '.join(map(self._described, meant))}?"
        if os.path.lexists(word):
            return f"say what to do with it, such as: wnconvert inspect {word}"
        return "wnconvert --help lists the commands"

    def _described(self, name: str) -> str:
        """A command, and what it does."""
        if name not in self.commands:
            return f"wnconvert {name}"
        does = self.commands[name].get_short_help_str(200).rstrip(".")
        return f"wnconvert {name} ({does[0].lower()}{does[1:]})"


def option_meant(error: click.NoSuchOption) -> str:
    """The option that is meant by one that does not exist, if the command has it; else ``""``."""
    command = error.ctx.command if error.ctx else None
    names = {name for param in command.params for name in param.opts} if command else set()
    return next((meant for meant in _of(_OPTIONS, error.option_name) if meant.split()[0] in names), "")


def _commands(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    group = context.find_root().command
    names = group.commands if isinstance(group, click.Group) else ()
    return [name for name in names if name.startswith(incomplete)]


@click.command("help", epilog=epilog("wnconvert help fold"))
@click.argument("verb", required=False, shell_complete=_commands)
@click.pass_context
def help_command(context: click.Context, verb: str | None) -> None:
    """Show the help of a command."""
    root = context.find_root()
    if verb is None or not isinstance(root.command, click.Group):
        click.echo(root.get_help())
        return
    _, command, _ = root.command.resolve_command(root, [verb])
    if command is not None:
        click.echo(click.Context(command, info_name=verb, parent=root).get_help())
