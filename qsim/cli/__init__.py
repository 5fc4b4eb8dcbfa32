"""The command `qsim`: a map of verbs, each loaded when it is called.

Heavy parts (numpy, matplotlib, numba) are imported inside the commands, so that `qsim --help` and shell completion
answer at once. A verb's file holds one click command of the same name and no logic of its own.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import traceback
from typing import Any

import click

from qsim import __version__

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Learn": {
        "formats": ("qsim.cli.formats:formats", "List number formats, show one in full, compare their errors."),
        "schemes": ("qsim.cli.schemes:schemes", "List quantisation schemes, or show one in full."),
        "cast": ("qsim.cli.cast:cast", "Round numbers to a format and see every step of the decision."),
        "mma": ("qsim.cli.mma:mma", "Multiply as a given tensor core does, bit for bit."),
    },
    "Quantise": {
        "quantize": ("qsim.cli.quantize:quantize", "Quantise a checkpoint with RTN, GPTQ, AWQ, SmoothQuant or FP8."),
        "eval": ("qsim.cli.eval:eval", "Measure what a quantised model has lost."),
        "generate": ("qsim.cli.generate:generate", "Generate text with a quantised model."),
    },
    "Predict": {
        "devices": ("qsim.cli.devices:devices", "List GPUs and ASICs with their peaks, bandwidths and sources."),
        "predict": ("qsim.cli.predict:predict", "Predict the time, memory and throughput of inference."),
        "roofline": ("qsim.cli.roofline:roofline", "Place a model's operators on a device's roofline."),
        "sweep": ("qsim.cli.sweep:sweep", "Predict over devices, schemes, batches and contexts."),
        "calibrate": ("qsim.cli.calibrate:calibrate", "Fit a device's kernel parameters to measured timings."),
    },
    "Prove": {
        "validate": ("qsim.cli.validate:validate", "Hold predictions against measured and published numbers."),
        "bench": ("qsim.cli.bench:bench", "Time this computer's kernels against their limits and peers."),
    },
    "Decide": {
        "study": ("qsim.cli.study:study", "Quality against speed, for every method on every device."),
    },
}
"""section -> verb -> ("module:attribute", what `qsim --help` says). A verb without its module is left out."""

_TARGETS = {verb: target for verbs in SECTIONS.values() for verb, (target, _) in verbs.items()}


def _is_present(target: str) -> bool:
    # finds the file, does not run it
    return importlib.util.find_spec(target.partition(":")[0]) is not None


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["qsim.verbose"] = True


def _verbose_option() -> click.Option:
    return click.Option(
        ["--verbose"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_verbose,
        help="On an error, show the traceback too.",
    )


class UserError(click.ClickException):
    """A mistake in what was asked: one sentence on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"qsim: {self.format_message()}", file=file, err=True)


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb, target in _TARGETS.items() if _is_present(target)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _TARGETS.get(cmd_name)
        if target is None or not _is_present(target):
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        for one in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            if not any("--verbose" in p.opts for p in one.params):
                one.params.append(_verbose_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            verbs = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], verbs, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(verbs)}"
            ctx.fail(f"no verb {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        present = set(self.list_commands(ctx))
        width = max(map(len, present), default=0)
        for section, verbs in SECTIONS.items():
            rows = [(verb.ljust(width), says) for verb, (_, says) in verbs.items() if verb in present]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _one_voice(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.meta.get("qsim.verbose"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            raise _one_voice(error) from error
        except BrokenPipeError:  # `qsim formats | head`: click ends quietly
            raise
        except (ValueError, TypeError, OSError) as error:
            if ctx.meta.get("qsim.verbose"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            raise UserError(_sentence(error)) from error


def _one_voice(error: click.UsageError) -> click.ClickException:
    """A mistake that click finds, as one sentence like all others; a bare group still prints its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    where = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
    return UserError(error.format_message().rstrip(".") + where)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _print_completion(ctx: click.Context, _param: click.Parameter, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "qsim", "_QSIM_COMPLETE").source())
    ctx.exit()


def _completion_option() -> click.Option:
    return click.Option(
        ["--completion"],
        type=click.Choice(["bash", "zsh", "fish"]),
        expose_value=False,
        is_eager=True,
        callback=_print_completion,
        help='Print the completion script of a shell: eval "$(qsim --completion bash)".',
    )


@click.group(
    cls=LazyGroup,
    params=[_completion_option(), _verbose_option()],
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="qsim VERB --help explains a verb. Tables take --json and --csv, figures --plot FILE (.svg or .png). "
    "Exit codes: 0 done, 1 interrupted or (qsim study diff) different, 2 a mistake in what was asked.",
)
@click.version_option(version=__version__, message="%(prog)s %(version)s")
def main() -> None:
    """What low-precision LLM inference computes, bit for bit, and how long it takes."""
