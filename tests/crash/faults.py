"""Faults at the file layer: an audit hook sees every call that changes a file or folder, whoever makes it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from qsim import files

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
_REMOVES = ("os.remove", "os.rmdir")
KILLED = 137


class Watch:
    """Counts the changes under a folder in this process, for good: an audit hook cannot be taken back.

    Arguments:
        root: changes elsewhere, as of Numba's cache, are not counted.
        at: called with the number and name of every change, before it is made.
    """

    def __init__(self, root: Path, at: Callable[[int, str], None]) -> None:
        self.root, self.at, self.count = os.path.realpath(root), at, 0
        sys.addaudithook(self._audit)
        _watch_writes(self.step)

    def _audit(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._at_path(path, "open")
        elif event in _CHANGES:
            inside = event in _REMOVES and len(args) > 1 and args[-1] not in (-1, None)  # relative to an open folder
            if inside:
                self.step(event)
            else:
                self._at_path(args[1] if event == "os.rename" else args[0], event)

    def _at_path(self, path: object, event: str) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            text = os.path.abspath(os.fsdecode(path))
            if text.startswith(self.root + os.sep):
                self.step(event)

    def step(self, event: str) -> None:
        """One more change."""
        self.count += 1
        self.at(self.count, event)


def _watch_writes(step: Callable[[str], None]) -> None:
    """Every write into a file of `qsim.files` is two: one half, and the other. So is every flush to the disk."""

    class File:
        def __init__(self, file):
            self._file = file

        def write(self, content):
            data = memoryview(content).cast("B")
            half = len(data) // 2
            step("write")
            self._file.write(data[:half])
            self._file.flush()
            step("write, half of it done")
            return half + self._file.write(data[half:])

        def __enter__(self):
            return self

        def __exit__(self, *given):
            return self._file.__exit__(*given)

        def __getattr__(self, name):
            return getattr(self._file, name)

    create, flush = files.create, files.flush

    def flushed(file):
        step("flush")
        flush(file)

    files.create, files.flush = lambda path: File(create(path)), flushed


def kill_at(number: int) -> Callable[[int, str], None]:
    """The process ends before that change: no clean-up of any kind, as by SIGKILL."""

    def at(count: int, _event: str) -> None:
        if count == number:
            os._exit(KILLED)

    return at


def full_from(number: int) -> Callable[[int, str], None]:
    """The disk is full from that change on: what makes a file, a folder or bytes fails; moves and removals do not."""

    def at(count: int, event: str) -> None:
        if count >= number and event not in (*_REMOVES, "os.rename", "os.chmod"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return at


def interrupt_at(number: int) -> Callable[[int, str], None]:
    """Ctrl-C at that change."""

    def at(count: int, _event: str) -> None:
        if count == number:
            raise KeyboardInterrupt

    return at
