"""The one place where an exception becomes words and an exit code.

A mistake in what was asked, or in a file that was given, is a `QsimError` (or what click, the disk or the memory
answers): one sentence and exit code 2. Every other exception is a fault of qsim: exit code 70, and how to report it.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from qsim import __version__
from qsim.errors import QsimError

from .streams import any_text, give_up_output

STOPPED, MISTAKE, BUG = 1, 2, 70
"""Exit codes: interrupted, a mistake of the user, a fault of qsim (EX_SOFTWARE of sysexits.h)."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what is kept and how to go on."""


def guarded(run: Callable[[], object], arguments: Sequence[str]) -> int:
    """The exit code of a command.

    Arguments:
        run: the command; what it returns is the exit code when it is an integer.
        arguments: the command line, for `--verbose` and for a bug's report.
    """
    with any_text(), _notes():
        try:
            code = run()
            sys.stdout.flush()  # a full disk must not wait for the end of the interpreter, which hides it
        except BaseException as error:  # Ctrl-C and a verb's own exit code too
            if isinstance(error, SystemExit):
                raise
            if "--verbose" in arguments:
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            code, told = answer(error, arguments)
            click.echo(told, err=True)
            try:
                sys.stdout.flush()
            except OSError:
                give_up_output()
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Warnings that are meant for the user as one line, without the place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is UserWarning:
                click.echo(f"qsim: note: {_one_line(message)}", err=True)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def answer(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of an exception, and what is said of it."""
    if isinstance(error, click.Abort):  # click's name for Ctrl-C and for the end of stdin
        error = error.__cause__ or error
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return MISTAKE, error.format_message()
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return STOPPED, "qsim: interrupted" + (f": {error}" if str(error) else "")
    if isinstance(error, click.UsageError):
        where = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return MISTAKE, f"qsim: {_one_line(error.format_message()).rstrip('.')}{where}"
    if isinstance(error, click.ClickException):
        return MISTAKE, f"qsim: {_one_line(error.format_message())}"
    if isinstance(error, QsimError):
        return MISTAKE, f"qsim: {_one_line(error)}"
    if isinstance(error, OSError):
        return MISTAKE, f"qsim: {_of_the_disk(error)}"
    if isinstance(error, MemoryError):
        return MISTAKE, f"qsim: {_of_memory(error)}"
    return BUG, _bug(error, arguments)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _of_the_disk(error: OSError) -> str:
    said = error.strerror or _one_line(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said += ": free some, or write elsewhere"
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join((" to ".join(names), said) if names else (said,))


def _of_memory(error: MemoryError) -> str:
    what = _one_line(error)
    asked = f" ({what[0].lower()}{what[1:]})" if what else ""
    return f"not enough memory{asked}: ask for a smaller model, batch, context or window, or free some memory"


def _bug(error: BaseException, arguments: Sequence[str]) -> str:
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return "\n".join((
        f"qsim: this is a bug in qsim: {name}: {_one_line(error)}",
        f"  version       qsim {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"  command line  {shlex.join(['qsim', *arguments])}",
        "Please report these lines in the issue tracker of the qsim project. The same command with --verbose shows the "
        "traceback, which helps too.",
    ))  # fmt: skip
