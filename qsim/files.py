"""The boundary between files and values: bounded reading, whole writing.

Every JSON and TOML file that a user gives is read here, so that a file that is too large, too deep, not text or not
valid is one sentence with its path. Every file that must be whole is written here: under another name, flushed to
the disk, and moved into place. Crash tests inject their faults at `replace` and `flush`, which nothing bypasses.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qsim.errors import QsimError

JSON_LIMIT = 64 << 20  # bytes; the largest tokenizer.json in use has about 20 MB
TOML_LIMIT = 4 << 20
DEPTH_LIMIT = 64  # nested lists and objects; a config has fewer than ten


def read_text(path: str | Path, *, limit: int = JSON_LIMIT) -> str:
    """A UTF-8 text file of at most `limit` bytes.

    Raises:
        QsimError: not a regular file, too large, not UTF-8; the message names the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise QsimError(f"{path} is not a regular file")
    if found.st_size > limit:
        raise QsimError(f"{path} has {found.st_size} bytes: at most {limit} are read")
    with open(path, "rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise QsimError(f"{path} has more than {limit} bytes, which is all that is read")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QsimError(f"{path} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}") from None


def read_json(path: str | Path, *, limit: int = JSON_LIMIT) -> Any:
    """The value of a JSON file; `Infinity` and `NaN`, which Python writes, are read too.

    Raises:
        QsimError: as `read_text`; not JSON, a key twice in one object, nested deeper than `DEPTH_LIMIT`.
        OSError: the file cannot be opened.
    """
    return parse_json(read_text(path, limit=limit), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; `where` names it in the message.

    Raises:
        QsimError: as `read_json`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError:
        raise _too_deep(where) from None
    except _TwinError as error:
        raise QsimError(f"{where} has the key {error.args[0]!r} twice in one object") from None
    except ValueError as error:  # JSONDecodeError, or an integer of more digits than Python reads
        raise QsimError(f"{where} is not JSON: {_one_line(error)}") from None
    check_depth(value, where)
    return value


def read_toml(path: str | Path, *, limit: int = TOML_LIMIT) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        QsimError: as `read_text`; not TOML, nested deeper than `DEPTH_LIMIT`.
        OSError: the file cannot be opened.
    """
    return parse_toml(read_text(path, limit=limit), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table of a TOML text; `where` names it in the message.

    Raises:
        QsimError: as `read_toml`.
    """
    if len(text) > TOML_LIMIT:
        raise QsimError(f"{where} has {len(text)} characters: at most {TOML_LIMIT} are read")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # TOMLDecodeError, or an integer or date that Python does not hold
        raise QsimError(f"{where} is not TOML: {_one_line(error)}") from None
    check_depth(table, where)
    return table


def read_csv(path: str | Path, *, limit: int = JSON_LIMIT) -> tuple[list[str], list[list[str]]]:
    """A CSV file with a header line: the columns' names in lower case, and the rows as texts; empty lines are skipped.

    Raises:
        QsimError: as `read_text`; no header, a column without a name or twice, a row of another length, a field or a
            quote that does not end; the message names the file and the line.
        OSError: the file cannot be opened.
    """
    text = read_text(path, limit=limit)
    if "\x00" in text:
        raise QsimError(f"{path} is not a CSV file: it holds a zero byte")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    try:
        for fields in lines:
            if not fields:
                continue
            if not header:
                header = [name.strip().lower() for name in fields]
                twice = next((name for name in header if header.count(name) > 1), None)
                if twice is not None or "" in header:
                    what = f"the column {twice!r} twice" if twice else "a column without a name"
                    raise QsimError(f"{path}: line {lines.line_num} has {what}")
            elif len(fields) != len(header):
                raise QsimError(f"{path}: line {lines.line_num} has {len(fields)} fields: the header has {len(header)}")
            else:
                rows.append([field.strip() for field in fields])
    except csv.Error as error:
        raise QsimError(f"{path}: line {lines.line_num} is not CSV: {_one_line(error)}") from None
    if not header:
        raise QsimError(f"{path} is empty: a CSV file begins with a line of column names")
    return header, rows


def check_depth(value: Any, where: str, limit: int = DEPTH_LIMIT) -> None:
    """Refuse lists and mappings nested deeper than `limit`.

    Raises:
        QsimError: deeper.
    """
    level = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        if not inner:
            return
        level = inner
    raise _too_deep(where)


class _TwinError(Exception):
    pass


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _TwinError(key)
            seen.add(key)
    return out


def _too_deep(where: str) -> QsimError:
    return QsimError(f"{where} is nested too deeply: at most {DEPTH_LIMIT} levels of lists and objects are read")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- writing --------------------------------------------------------------------------------------------------


def replace(source: str | Path, target: str | Path) -> None:
    """Move a file or folder into place, as `os.replace`. All moves go through here."""
    os.replace(source, target)


def flush(file: BinaryIO) -> None:
    """Push what was written to the disk, so that a move cannot overtake it. All whole writes go through here."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is there as a whole or not at all: written beside `path` under a hidden name, then moved.

    A file that was there stays as it is until the move. An error or Ctrl-C removes the hidden file; a killed process
    leaves `.NAME.part-...` behind, which nothing reads.

    Arguments:
        write: called with the open binary file.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` is as before.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.part-", dir=path.parent or ".")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            flush(file)
        os.chmod(temporary, (os.stat(path).st_mode & 0o777) if path.exists() else 0o666 & ~umask())
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: str | Path, text: str) -> None:
    """A UTF-8 text file, whole or not at all; see `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """A JSON file, whole or not at all; see `write_whole`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def umask() -> int:
    """The process's umask, which Python can only read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_regular(source: str | Path, target: str | Path) -> bool:
    """Copy a regular file; a link, a device or a pipe is not copied.

    Returns:
        Whether it was copied.
    """
    if not stat.S_ISREG(os.lstat(source).st_mode):
        return False
    shutil.copyfile(source, target, follow_symlinks=False)
    return True


# --- temporary folders ----------------------------------------------------------------------------------------

_STALE = re.compile(r"qsim-(\d+)-")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files of this process, removed at the end. Those that killed processes left are removed first.

    Its name holds the process's number, by which a later process sees that nobody uses it any more.
    """
    remove_stale_folders()
    with tempfile.TemporaryDirectory(prefix=f"qsim-{os.getpid()}-") as folder:
        yield Path(folder)


def remove_stale_folders() -> list[Path]:
    """Remove the temporary folders of processes that no longer run; what was removed."""
    removed = []
    for path in Path(tempfile.gettempdir()).glob("qsim-*-*"):
        found = _STALE.match(path.name)
        if found is None or path.is_symlink() or not path.is_dir() or _runs(int(found[1])):
            continue
        with contextlib.suppress(OSError):
            if not hasattr(os, "getuid") or path.stat().st_uid == os.getuid():
                shutil.rmtree(path)
                removed.append(path)
    return removed


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    if os.name != "posix":  # `os.kill` would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
