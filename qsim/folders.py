"""Folders that come into being whole, beside the user's own, and what to do when a kill left one half-way.

A folder is written to `.NAME.partial-...` beside its target and moved into place when it is complete. What it replaces
lies in `.NAME.old-...` for the moment between two moves. The names hold the process, so that the next write of the same
target knows what nobody works on any more: it removes partial folders, and moves an old one back when its target is
missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qsim import files
from qsim.errors import QsimError
from qsim.hidden import hidden_name, leftovers


@contextmanager
def whole_folder(path: str | Path, check: Callable[[Path], object]) -> Iterator[Path]:
    """A hidden folder that becomes `path` when the block ends well, and is removed when it does not.

    Arguments:
        check: called with the target before the start and again before the move; raises where nothing may be replaced.

    Raises:
        OSError: the folder cannot be made or moved; what was at `path` is there as before.
    """
    target = Path(os.path.abspath(path))
    recover(target)
    check(target)
    files.make_folder(target.parent)
    partial = hidden_name(target, "partial")
    try:
        files.make_folder(partial)
        yield partial
        files.flush_folder(partial)
        check(target)
        _swap(partial, target)
    finally:
        files.remove_tree(partial)


def _swap(partial: Path, target: Path) -> None:
    old = hidden_name(target, "old")
    try:
        if os.path.lexists(target):
            files.replace(target, old)
        files.replace(partial, target)
        files.flush_folder(target.parent)
    finally:  # also when Ctrl-C comes between the moves
        if os.path.lexists(old):
            if os.path.lexists(target):
                files.remove_tree(old)
            else:
                files.replace(old, target)


def recover(path: str | Path) -> list[str]:
    """Clear what killed processes left beside a folder; what was moved back, one sentence each.

    A folder that was being replaced when the process was killed is moved back if nothing is in its place.
    """
    target, said = Path(os.path.abspath(path)), []
    for old, _ in leftovers(target, "old"):
        with suppress(FileNotFoundError):  # another process does the same
            if os.path.lexists(target):
                files.remove_tree(old)
            else:
                files.replace(old, target)
                said.append(f"{target} was being replaced when a process was killed: the folder before is back")
    for partial, _ in leftovers(target, "partial"):
        files.remove_tree(partial)
    return said


def check_apart(source: str | Path, target: str | Path) -> None:
    """Refuse a target that is the source, lies in it or holds it: to replace it would destroy what is read.

    Folders are compared as the system knows them, so links, relative paths and mounts do not hide that two are one.

    Raises:
        QsimError: they are not apart.
    """
    source_is, target_is = _identities(source), _identities(target)
    if (target_is[0] is not None and target_is[0] in source_is) or (
        source_is[0] is not None and source_is[0] in target_is
    ):
        raise QsimError(
            f"the target {target} and the source {source} must be folders apart, neither inside the other: choose "
            "another target"
        )


def _identities(path: str | Path) -> list[tuple[int, int] | None]:
    """Device and inode of a path and of every folder above it; None for what does not exist."""
    real = Path(os.path.realpath(path))
    found: list[tuple[int, int] | None] = []
    for one in (real, *real.parents):
        try:
            status = os.stat(one)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found
