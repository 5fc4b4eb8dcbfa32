"""Progress of long verbs on stderr: a live line on a terminal, a line a step elsewhere, nothing when quiet."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from qsim.errors import QsimError


@contextmanager
def reporter(what: str) -> Iterator[Callable[[str], None]]:
    """A function that says what is being done; the live line is gone when the work is."""
    if not sys.stderr.isatty():
        yield lambda step: click.echo(f"{what}: {step}", err=True)
        return
    from rich.console import Console

    out = Console(stderr=True, highlight=False)
    with out.status(what) as status:
        yield lambda step: status.update(f"{what}: {step}")


@contextmanager
def says_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C or on a full disk, at whatever moment: what is there, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted: {kept()}", err=True)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise QsimError(f"{where}{error.strerror}: free some space and repeat; {kept()}") from error


@contextmanager
def steps() -> Iterator[Callable[[int, int, str], None]]:
    """A function called with steps done, steps in all, and what comes next."""
    if not sys.stderr.isatty():
        yield lambda done, total, step: click.echo(f"[{done + 1}/{total}] {step}" if done < total else step, err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   console=Console(stderr=True), transient=True)  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, step: bar.update(task, completed=done, total=total, description=step)
