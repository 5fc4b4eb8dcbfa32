"""The command `qsim`: a map of verbs, each loaded when it is called.

Heavy parts (numpy, matplotlib, numba) are imported inside the commands, so that `qsim --help` and shell completion
answer at once. A verb's file holds one click command of the same name and no logic of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from qsim import __version__
from qsim.errors import nearest

from .guard import guarded
from .verbs import VERBS, refuse_repeats, verbose_option


class LazyGroup(click.Group):
    """A group that knows its verbs by name, imports one when it is called, and answers for every exception."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"qsim.cli.{cmd_name}"), cmd_name)
        for one in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            refuse_repeats(one)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            ctx.fail(nearest("verb", args[0], VERBS, cutoff=0.6, all_below=len(VERBS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, VERBS))
        for section in dict.fromkeys(verb.section for verb in VERBS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(v.name.ljust(width), v.says) for v in VERBS.values() if v.section == section]
                )  # fmt: skip

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run the command and exit; with `standalone_mode=False`, raise and return as click does."""

        def run() -> Any:
            return super(LazyGroup, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        sys.exit(guarded(run, sys.argv[1:] if args is None else args))


def _print_completion(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "qsim", "_QSIM_COMPLETE").source())
    ctx.exit()


@click.group(
    cls=LazyGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="qsim VERB --help explains a verb. Tables take --json and --csv, figures --plot FILE (.svg or .png). "
    "Exit codes: 0 done, 1 interrupted or (qsim study diff) different, 2 usage error, 70 a bug in qsim.",
)
@click.option(
    "--completion", type=click.Choice(["bash", "zsh", "fish"]), expose_value=False, is_eager=True,
    callback=_print_completion, help='Print the completion script of a shell: eval "$(qsim --completion bash)".',
)  # fmt: skip
@click.version_option(version=__version__, message="%(prog)s %(version)s")
def main() -> None:
    """What low-precision LLM inference computes, bit for bit, and how long it takes."""


main.params.append(verbose_option())
