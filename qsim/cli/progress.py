"""Progress of long verbs on stderr: a live line on a terminal, elsewhere plain lines with the time that has passed."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from qsim.errors import QsimError

from .guard import Interrupted

EVERY_S = 5.0
"""Least seconds between two plain lines of work that goes on in many small steps."""


@contextmanager
def reporter(what: str) -> Iterator[Callable[[str], None]]:
    """A function that says what is being done; the live line is gone when the work is."""
    if not sys.stderr.isatty():
        start = time.monotonic()
        yield lambda step: click.echo(f"{what}, {time.monotonic() - start:.0f} s: {step}", err=True)
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
        raise Interrupted(kept()) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise QsimError(f"{where}{error.strerror}: free some space and repeat; {kept()}") from error


@contextmanager
def steps() -> Iterator[Callable[[int, int, str], None]]:
    """A function called with steps done, steps in all, and what comes next; a line per step."""
    with _counted(0.0) as progress:
        yield progress


@contextmanager
def work(least_s: float | None = None) -> Iterator[Callable[[float, float, str], None]]:
    """A function called with work done, work in all and what comes next, as often as anything is done.

    Where the lines are plain, the first and the last are printed, and those between that are `least_s` seconds apart
    (`EVERY_S` by default).
    """
    with _counted(EVERY_S if least_s is None else least_s) as progress:
        yield progress


@contextmanager
def _counted(least_s: float) -> Iterator[Callable[[float, float, str], None]]:
    if not sys.stderr.isatty():
        yield _Lines(least_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, step: bar.update(task, completed=done, total=total, description=step)


class _Lines:
    """Plain lines: how much is done, the time since the start, what comes next."""

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._start = self._last = time.monotonic()
        self._any = False

    def __call__(self, done: Any, total: Any, step: str) -> None:
        now = time.monotonic()
        if self._any and done < total and now - self._last < self._least_s:
            return
        self._any, self._last = True, now
        counted = isinstance(done, int) and isinstance(total, int)
        if done >= total:
            share = f"{total}/{total}" if counted else "100 %"
        else:
            share = f"{done + 1}/{total}" if counted else f"{done / total:.0%}"
        click.echo(f"[{share}] {now - self._start:.0f} s  {step}", err=True)
