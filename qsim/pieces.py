"""Finished pieces of work in a folder, so that a long run that was stopped goes on where it was.

Every piece is one file: a line that says which piece of which run it is and the SHA-256 of both, then the content. What
was cut off, changed, or belongs to another run or another piece is never taken: it is set aside, that piece of work is
done again, and a note says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsim import files
from qsim.errors import QsimError
from qsim.hidden import is_hidden_name

MANIFEST = "run.json"
_SUFFIX, _ASIDE = ".piece", ".damaged"
_HEAD = b"qsim piece 1 "


class Pieces:
    """The finished pieces of one run.

    Arguments:
        folder: made when it does not exist.
        kind: what sort of run, in the words of a message: `quantisation`, `study`.
        identity: plain values that say which run. The folder of another run is refused. None takes a folder as it is.

    Attributes:
        notes: what was set aside, one sentence each.

    Raises:
        QsimError: the folder holds another run, is not one of this kind, or its manifest cannot be read.
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path, kind: str, identity: Mapping[str, Any] | None) -> None:
        self.folder, self.notes = folder, list[str]()
        if folder.exists() and not folder.is_dir():
            raise QsimError(f"{folder} is a file: finished work is kept in a folder of that name; move it away")
        found = read_manifest(folder, kind)
        if found is None:
            if identity is None or foreign(folder):
                raise QsimError(f"{folder} is not empty and not an unfinished {kind}: choose another folder")
            files.make_folder(folder)
            write_manifest(folder, kind, identity)
            found = json.loads(json.dumps(identity))
        elif identity is not None:
            wanted = json.loads(json.dumps(identity))
            differ = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            if differ:
                raise QsimError(
                    f"{folder} holds an unfinished run with another {', '.join(differ)}: remove it, or repeat that run "
                    "to go on with it"
                )
        self.digest = digest_of(found)
        """Of the identity: what every piece carries."""

    def get(self, name: str, key: str | None = None) -> bytes | None:
        """The content of a finished piece; None when it is not there, or was damaged and is now set aside.

        Arguments:
            key: what else the piece depends on; None is the run's identity.

        Raises:
            QsimError: the file is there and cannot be read.
        """
        path = self._path(name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                self.set_aside(name, "it is not a regular file")
                return None
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise QsimError(
                f"{path}, a finished piece of work, cannot be read ({error.strerror}): make it readable, or remove it "
                "and the work is done again"
            ) from None
        head, newline, content = raw.partition(b"\n")
        if not newline or not head.startswith(_HEAD):
            self.set_aside(name, "it is cut off or was written by another program")
        elif head != self._head(name, key, content):
            own = self._head(name, key, content).split(b" ")
            whose = head.split(b" ")[: len(own) - 1] != own[:-1]
            self.set_aside(name, "it belongs to another run or another piece" if whose else "its checksum is wrong")
        else:
            return content
        return None

    def put(self, name: str, content: bytes, key: str | None = None) -> None:
        """Keep a finished piece.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        files.write_bytes(self._path(name), self._head(name, key, content) + b"\n" + content)

    def set_aside(self, name: str, why: str) -> None:
        """Take a piece out of the run, keep its file under another name, and note it."""
        path = self._path(name)
        files.replace(path, path.with_name(path.name + _ASIDE))
        self.notes.append(f"{path} was set aside as {path.name}{_ASIDE} and its work done again: {why}")

    def remove(self) -> None:
        """The run is whole: remove the pieces. Files of others are left, and the folder with them."""
        _remove(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{_plain(name)}{_SUFFIX}"

    def _head(self, name: str, key: str | None, content: bytes) -> bytes:
        whose = hashlib.sha256(json.dumps([name, key or self.digest]).encode()).hexdigest()[:32].encode()
        sum_ = hashlib.sha256(whose)
        sum_.update(content)
        return _HEAD + whose + b" " + sum_.hexdigest().encode()


def read_manifest(folder: Path, kind: str) -> dict[str, Any] | None:
    """The identity of the run that a folder holds; None without a manifest.

    Raises:
        QsimError: the manifest cannot be read, is damaged, or that of something else.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        found = files.read_json(path)
    except OSError as error:
        raise QsimError(f"{path}, of an unfinished {kind}, cannot be read: {error.strerror}") from None
    except QsimError as error:
        raise QsimError(f"{error}: the unfinished {kind} in {folder} cannot go on; remove that folder") from None
    if not isinstance(found, dict) or found.get("kind") != kind or not isinstance(found.get("run"), dict):
        raise QsimError(f"{path} is not that of an unfinished {kind}: choose another folder, or remove {folder}")
    run: dict[str, Any] = found["run"]
    return run


def write_manifest(folder: Path, kind: str, run: Mapping[str, Any]) -> None:
    """Say which run a folder holds.

    Raises:
        OSError: it cannot be written.
    """
    files.write_json(folder / MANIFEST, {"kind": kind, "run": run})


def foreign(folder: Path) -> list[str]:
    """What lies in a folder that no run writes, by the names; nothing where there is no folder."""
    return sorted({*os.listdir(folder)} - {*_ours(folder)}) if folder.is_dir() else []


def forget(folder: Path, kind: str) -> None:
    """Remove the finished pieces of a run that shall start again; a folder that does not exist is no error.

    Raises:
        QsimError: the folder is no run of this kind, or holds other files: nothing is removed.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise QsimError(f"{folder} is not a folder of an unfinished {kind}: it is not removed; move it away")
    others = foreign(folder)
    if others or (read_manifest(folder, kind) is None and os.listdir(folder)):
        what = f"it holds {others[0]}" if others else f"it has no {MANIFEST}"
        raise QsimError(f"{folder} is not (only) an unfinished {kind}, {what}: it is not removed; move it away")
    _remove(folder)


def drop_empty(folder: Path, kind: str) -> None:
    """Remove a run's folder in which no piece is left, as a kill at the end of `Pieces.remove` leaves it.

    Raises:
        QsimError: it is a folder of something else.
    """
    if folder.is_dir() and not folder.is_symlink() and not foreign(folder) and not count(folder, ""):
        read_manifest(folder, kind)
        _remove(folder)


def digest_of(value: Any) -> str:
    """A digest of plain values: 32 hexadecimal digits of SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def count(folder: Path, start: str) -> int:
    """How many finished pieces a folder has whose names start so."""
    try:
        return sum(name.startswith(start) and name.endswith(_SUFFIX) for name in os.listdir(folder))
    except OSError:
        return 0


def _remove(folder: Path) -> None:
    """File by file, the manifest last: a kill on the way leaves a run with fewer pieces, which is still one."""
    for name in sorted(_ours(folder), key=lambda name: (name == MANIFEST, name)):
        files.remove_file(folder / name)
    if not os.listdir(folder):
        files.remove_folder(folder)


def _ours(folder: Path) -> list[str]:
    """The files in a folder that a run writes, by their names."""
    return [
        name
        for name in os.listdir(folder)
        if (name == MANIFEST or name.endswith((_SUFFIX, _SUFFIX + _ASIDE)) or is_hidden_name(name, "part"))
        and not ((folder / name).is_dir() and not (folder / name).is_symlink())
    ]


def _plain(name: str) -> str:
    """A name as that of a file: others than letters, digits and `-_.` would be a path, or none."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
    if plain == name and len(name) <= 150:
        return plain
    return f"{plain[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
