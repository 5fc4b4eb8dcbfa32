"""The folder of a study: who may write there, how a study appears in it whole, and what lets one go on.

A finished study has `study.json`; an unfinished one has `.parts`, with one file for every finished piece of work.
Nothing is written outside the folder, and files that are not the study's are never touched: so the folder cannot be
exchanged as a whole. The new files are written to a hidden folder in it; one move to `.ready` says that all of them are
there; then they take their places, `study.json` last. A kill before that move leaves the study before as it was. A kill
after it leaves no study.json, and whatever comes next to the folder finishes the moves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qsim import files
from qsim.errors import QsimError
from qsim.hidden import hidden_name, leftovers
from qsim.pieces import Pieces, digest_of, drop_empty, foreign, read_manifest, write_manifest

_T = TypeVar("_T")
KIND = "study"
PARTS, READY = ".parts", ".ready"
RESULT = "study.json"
_OBSOLETE = "obsolete.json"  # in `.ready`: files of the study before that this one does not have
OWN = ("index.html", RESULT, "study.toml", "data", "figures")
"""What a study writes at the top of its folder."""


def prepare(out: Path, question: Any, *, force: bool) -> None:
    """Make the folder, or check that a study may be written there.

    Arguments:
        question: plain values that say which study. One that was being written when the process ended may go on.

    Raises:
        ValueError: it holds a finished study, or other files of the study's names, and `force` was not given.
        NotADirectoryError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: --out names a folder")
    settle(out)
    parts, digest = out / PARTS, digest_of(question)
    drop_empty(parts, KIND)
    begun = read_manifest(parts, KIND)
    if begun is None and foreign(parts):
        raise QsimError(f"{parts} is not of an unfinished study: choose another folder with --out, or move it away")
    taken = [name for name in OWN if (out / name).exists()]
    goes_on = begun is not None and (begun.get("question") == digest or not (out / RESULT).exists())
    if taken and not force and not goes_on:
        what = "a finished study" if (out / RESULT).exists() else f"{taken[0]} already"
        raise QsimError(f"{out} holds {what}: choose another folder with --out, or replace it with --force")
    strange = out.is_dir() and any(name != PARTS for name in os.listdir(out))
    if strange and not taken and begun is None and not force:
        raise QsimError(f"{out} is not empty and holds no study: choose another folder with --out, or use --force")
    files.make_folder(parts)
    if begun is None or begun.get("question") != digest:
        write_manifest(parts, KIND, {"question": digest})


class Parts:
    """Finished pieces of work, kept until the study is whole. Without a folder nothing is kept.

    Attributes:
        resumed: names of the pieces that an earlier run had finished.
    """

    def __init__(self, out: Path | None) -> None:
        self._pieces = None if out is None else Pieces(out / PARTS, KIND, None)
        self.resumed: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Pieces that were damaged and made again, one sentence each."""
        return () if self._pieces is None else tuple(self._pieces.notes)

    def get(self, name: str, depends_on: Any, kind: Any, work: Callable[[], _T]) -> _T:
        """The piece of that name if an earlier run finished it from the same inputs, else `work()`, kept.

        Arguments:
            depends_on: plain values; another set of them is another piece of work.
            kind: its type, a dataclass or a tuple of them, by which JSON becomes a value again.
        """
        if self._pieces is None:
            return work()
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        key = digest_of(depends_on)
        own = f"{name}.{key[:16]}"
        content = self._pieces.get(own, key)
        if content is not None:
            try:
                found: _T = adapter.validate_json(content)
            except ValidationError:
                self._pieces.set_aside(own, "it was written by another version")
            else:
                self.resumed.append(name)
                return found
        value = work()
        self._pieces.put(own, adapter.dump_json(value), key)
        return value

    def done(self) -> None:
        """The study is whole: the pieces are no longer needed."""
        if self._pieces is not None:
            self._pieces.remove()


@contextmanager
def whole_study(out: Path, own: Iterable[str]) -> Iterator[Path]:
    """A hidden folder whose files take their places in `out` together when the block ends well.

    Arguments:
        own: every name that a study may have, relative to `out`. Those of a study before that are not written now are
            removed; nothing else is.
    """
    files.make_folder(out)
    settle(out)
    staged = hidden_name(out / READY, "partial")
    try:
        files.make_folder(staged)
        yield staged
        written = {path.relative_to(staged).as_posix() for path in staged.rglob("*")}
        files.write_json(staged / _OBSOLETE, sorted(set(own) - written))
        for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
            files.flush_folder(folder)
        files.replace(staged, out / READY)
    finally:
        files.remove_tree(staged)
    settle(out)


def settle(out: Path) -> None:
    """Finish the moves of a study whose files were all there when its process was killed; remove what others left.

    Raises:
        QsimError: `.ready` holds other files than a study's.
    """
    for left, _ in leftovers(out / READY, "partial"):
        files.remove_tree(left)
    ready = out / READY
    if not ready.is_dir() or not ((ready / _OBSOLETE).is_file() or not os.listdir(ready)):
        return  # not there, or not ours
    waiting = sorted(path.relative_to(ready) for path in ready.rglob("*") if path.is_file())
    strange = [path for path in waiting if path.parts[0] not in (*OWN, _OBSOLETE)]
    if strange:
        raise QsimError(f"{ready} holds {strange[0]}, which no study writes: move it away")
    if Path(RESULT) in waiting:
        files.remove_file(out / RESULT)  # first: from here on it would stand beside another study's files
        for name in files.read_json(ready / _OBSOLETE):
            if Path(name).parts[0] in OWN and ".." not in Path(name).parts:
                files.remove_file(out / name)
    for path in sorted(waiting, key=lambda path: (path == Path(RESULT), path)):
        if path != Path(_OBSOLETE):
            files.make_folder((out / path).parent)
            files.replace(ready / path, out / path)
    files.flush_folder(out)
    for folder in sorted((path for path in ready.rglob("*") if path.is_dir()), reverse=True):
        files.remove_folder(folder)
    files.remove_file(ready / _OBSOLETE)
    files.remove_folder(ready)
