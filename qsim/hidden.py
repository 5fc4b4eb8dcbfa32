"""Hidden names beside a target that say which process made them, and what processes that no longer run left behind.

`.NAME.ROLE-PROCESS.MACHINE.START-RANDOM`: a later process removes what nobody works on any more, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

TAG = r"(\d+)\.([0-9a-f]{6})\.([0-9a-f]{6})"
_FOREIGN_S = 7 * 24 * 3600.0  # of another machine: nobody here can tell, so it counts as left behind after a week


def own_tag() -> str:
    """This process: its number, its machine, and when it started, for names that a later process judges by."""
    return f"{os.getpid()}.{_machine()}.{_life(os.getpid())}"


def hidden_name(path: Path, role: str) -> Path:
    """A name that nothing has, beside `path`, which says what for and by whom."""
    return path.with_name(f"{_prefix(path, role)}{own_tag()}-{secrets.token_hex(4)}")


def leftovers(path: Path, role: str) -> list[tuple[Path, float]]:
    """What processes that no longer run left beside `path` in that role, with the time of change, newest first."""
    prefix = _prefix(path, role)
    pattern = re.compile(re.escape(prefix) + TAG + r"-[0-9a-f]{8}")
    found: list[tuple[Path, float]] = []
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(prefix)]
    except OSError:  # no such folder
        return []
    for name in names:
        match, left = pattern.fullmatch(name), path.with_name(name)
        with contextlib.suppress(OSError):  # another process removes it meanwhile
            if match is not None and is_left_behind(left, match):
                found.append((left, os.lstat(left).st_mtime))
    return sorted(found, key=lambda one: -one[1])


def is_hidden_name(name: str, role: str) -> bool:
    """Whether a name is one of `hidden_name` for that role, of whatever path and process."""
    return re.fullmatch(rf"\..+\.{role}-{TAG}-[0-9a-f]{{8}}", name) is not None


def is_left_behind(path: Path, tag: re.Match[str]) -> bool:
    """Whether the process of a tag (number, machine, start) runs no more."""
    process, machine, life = int(tag[1]), tag[2], tag[3]
    if machine != _machine():
        return time.time() - os.lstat(path).st_mtime > _FOREIGN_S
    return not _runs(process) or _life(process) != life


def _prefix(path: Path, role: str) -> str:
    name = path.name
    if len(os.fsencode(name)) > 150:  # file systems take names of at most 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}.{role}-"


def _machine() -> str:
    try:
        space = os.readlink("/proc/self/ns/pid")  # containers may share a host's name, and not its process numbers
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:6]


def _life(process: int) -> str:
    """When a process started, as a digest: numbers are given again, after a restart even the same ones."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "000000"
    if fields[0] in "ZX":  # ended, and its parent has not asked how
        return ""
    return hashlib.sha256(f"{boot} {fields[19]}".encode()).hexdigest()[:6]


def _runs(process: int) -> bool:
    if os.name != "posix":  # `os.kill` would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
