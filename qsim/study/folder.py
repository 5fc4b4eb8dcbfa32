"""The folder of a study: who may write there, and what lets an interrupted study go on.

A finished study has `study.json`; an unfinished one has `.parts`, with one file for every finished piece of work.
Nothing is written outside the folder, and files that are not the study's are never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qsim.errors import QsimError

_T = TypeVar("_T")
PARTS = ".parts"
OWN = ("index.html", "study.json", "study.toml", "data", "figures")
"""What a study writes at the top of its folder."""


def prepare(out: Path, *, force: bool) -> None:
    """Make the folder, or check that a study may be written there.

    Raises:
        ValueError: it holds a finished study, or other files of the study's names, and `force` was not given.
        NotADirectoryError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: --out names a folder")
    taken = [name for name in OWN if (out / name).exists()]
    if taken and not force and not (out / PARTS).is_dir():
        what = "a finished study" if (out / "study.json").exists() else f"{taken[0]} already"
        raise QsimError(f"{out} holds {what}: choose another folder with --out, or replace it with --force")
    if out.exists() and not taken and not (out / PARTS).is_dir() and any(out.iterdir()) and not force:
        raise QsimError(f"{out} is not empty and holds no study: choose another folder with --out, or use --force")
    if force:
        shutil.rmtree(out / PARTS, ignore_errors=True)
    (out / PARTS).mkdir(parents=True, exist_ok=True)


class Parts:
    """Finished pieces of work, kept until the study is whole. Without a folder nothing is kept."""

    def __init__(self, out: Path | None) -> None:
        self._folder = None if out is None else out / PARTS
        self.resumed: list[str] = []

    def get(self, name: str, depends_on: Any, kind: Any, work: Callable[[], _T]) -> _T:
        """The piece of that name if an earlier run finished it from the same inputs, else `work()`, kept.

        Arguments:
            depends_on: plain values; another set of them is another piece of work.
            kind: its type, a dataclass or a tuple of them, by which JSON becomes a value again.
        """
        if self._folder is None:
            return work()
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[:16]
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        file = self._folder / f"{stem}.{key}.json"
        if file.is_file():
            try:
                found: _T = adapter.validate_json(file.read_bytes())
            except ValidationError:
                file.unlink()  # written by another version: do the work again
            else:
                self.resumed.append(name)
                return found
        value = work()
        write_whole(file, adapter.dump_json(value))
        return value

    def done(self) -> None:
        """The study is whole: the pieces are no longer needed."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that it appears whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
