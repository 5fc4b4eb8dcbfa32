"""The boundary between files and values: bounded reading, whole writing.

Every JSON and TOML file that a user gives is read here, so that a file that is too large, too deep, not text or not
valid is one sentence with its path. Every file is written here: under another name, flushed to the disk, and moved
into place. Nothing else in the package creates, moves or removes a file or folder, so a crash test that stops the
process at each call of this module has stopped it everywhere. Whole folders and work that goes on after a kill are one
floor up, in `qsim.folders` and `qsim.pieces`.
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
from qsim.hidden import TAG, hidden_name, is_left_behind, leftovers, own_tag

JSON_LIMIT = 64 << 20  # bytes; the largest tokenizer.json in use has about 20 MB
TOML_LIMIT = 4 << 20
DEPTH_LIMIT = 64  # nested lists and objects; a config has fewer than ten


def regular_size(path: Path, limit: int | None = None) -> int:
    """Bytes of a regular file, looked at before it is opened: a pipe or a device would be waited for.

    Raises:
        QsimError: another kind of file, or one of more than `limit` bytes.
        OSError: there is none.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise QsimError(f"{path} is not a regular file")
    if limit is not None and found.st_size > limit:
        raise QsimError(f"{path} has {found.st_size} bytes: at most {limit} are read")
    return found.st_size


def read_text(path: str | Path, *, limit: int = JSON_LIMIT) -> str:
    """A UTF-8 text file of at most `limit` bytes.

    Raises:
        QsimError: not a regular file, too large, not UTF-8; the message names the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    size = regular_size(path, limit)
    with open(path, "rb") as file:
        raw = file.read(min(size, limit) + 1)  # a buffer of that size is made, however short the file is
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
        QsimError, OSError: as `numbered_csv`.
    """
    header, rows = numbered_csv(path, limit=limit)
    return header, [row for _, row in rows]


def numbered_csv(path: str | Path, *, limit: int = JSON_LIMIT) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """As `read_csv`, each row with the number of the line that it ends on, for messages about it.

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
    rows: list[tuple[int, list[str]]] = []
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
                rows.append((lines.line_num, [field.strip() for field in fields]))
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
    """Move a file or folder into place, as `os.replace`."""
    os.replace(source, target)


def create(path: str | Path) -> BinaryIO:
    """A new file to write to; one that is there is an error."""
    return open(path, "xb")


def flush(file: BinaryIO) -> None:
    """Push what was written to the disk, so that a move cannot overtake it."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: str | Path) -> None:
    """Push a folder's list of names to the disk, where the system can."""
    if os.name != "posix":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(handle)


def make_folder(path: str | Path) -> None:
    """A folder and those above it; one that is there is left as it is."""
    Path(path).mkdir(parents=True, exist_ok=True)


def remove_file(path: str | Path) -> None:
    """Remove a file or link; one that is not there is no error."""
    Path(path).unlink(missing_ok=True)


def remove_folder(path: str | Path) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def remove_tree(path: str | Path) -> None:
    """Remove a folder that this program made, with all that is in it; what cannot be removed stays.

    Never called with a folder that a user named: those are emptied by the names of the files in them.
    """
    shutil.rmtree(path, ignore_errors=True)


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is there as a whole or not at all: written beside `path` under a hidden name, then moved.

    A file that was there stays as it is until the move, and gives the new one its permissions; a link keeps pointing
    where it did; a device or a pipe is written to as it is. An error or Ctrl-C removes the hidden file. A killed
    process leaves `.NAME.part-...` behind, which nothing reads and the next write of the same file removes.

    Arguments:
        write: called with the open binary file.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names `path`, which is as before.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "wb") as file:
            write(file)
        return
    for left, _ in leftovers(path, "part"):
        remove_file(left)
    temporary = hidden_name(path, "part")
    try:
        with create(temporary) as file:
            write(file)
            flush(file)
        if path.exists():
            os.chmod(temporary, os.stat(path).st_mode & 0o777)
        replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk names no file, others the hidden one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """A file of these bytes, whole or not at all; see `write_whole`."""
    write_whole(path, lambda file: file.write(content))


def write_text(path: str | Path, text: str) -> None:
    """A UTF-8 text file, whole or not at all; see `write_whole`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """A JSON file, whole or not at all; see `write_whole`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def create_sized(path: str | Path, size: int) -> None:
    """A new file of that many zero bytes, whose room on the disk is taken now.

    A file with holes fails later, when a page of its memory map finds no room, and that ends the process.

    Raises:
        OSError: no room, or the file is there already; it names `path`.
    """
    try:
        with create(path) as file:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def copy_regular(source: str | Path, target: str | Path) -> bool:
    """Copy a regular file; a link, a device or a pipe is not copied.

    Returns:
        Whether it was copied.
    """
    if not stat.S_ISREG(os.lstat(source).st_mode):
        return False
    with open(source, "rb") as file:
        write_whole(target, lambda out: shutil.copyfileobj(file, out, 1 << 20))
    return True


# --- temporary folders ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files of this process, removed at the end. Those that killed processes left are removed first."""
    remove_stale_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"qsim-{own_tag()}-"))
    try:
        yield folder
    finally:
        remove_tree(folder)


def remove_stale_folders() -> list[Path]:
    """Remove the temporary folders of processes that no longer run; what was removed."""
    removed = []
    for path in Path(tempfile.gettempdir()).glob("qsim-*-*"):
        found = re.match(rf"qsim-{TAG}-", path.name)
        if found is None or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            own = not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
            if own and is_left_behind(path, found):
                remove_tree(path)
                removed.append(path)
    return removed
