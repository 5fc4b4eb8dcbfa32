"""Where compiled code is kept when neither the installation nor the home folder can be written.

Numba keeps what it has compiled beside the sources, or else in the user's cache folder, and raises when it can write to
neither: a container with a read-only image and no home. Importing this module then names it a folder among the
temporary ones, and says so. Every package that compiles imports it first, before Numba is imported. From then on
compiled code whose sources have changed is not used again (`_stale`).
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from ._stale import watch

PACKAGES = ("_native", "formats", "kernels", "layouts", "methods", "models", "tensorcore")
"""The packages of qsim that hold compiled functions."""


def ensure() -> Path | None:
    """Give Numba a folder that it can write, if it would find none itself.

    Returns:
        The temporary folder, or None when Numba needs no help or NUMBA_CACHE_DIR is set.

    Warns:
        UserWarning: a temporary folder is used.

    Raises:
        OSError: no temporary folder can be made either.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    home = Path(__file__).parent
    if all(can_hold_files(home / package / "__pycache__") for package in PACKAGES) or can_hold_files(_of_the_user()):
        return None
    folder = _temporary()
    os.environ["NUMBA_CACHE_DIR"] = str(folder)  # child processes use it too, and are silent
    if "numba" in sys.modules:  # it has read the environment already
        sys.modules["numba"].config.CACHE_DIR = str(folder)
    warnings.warn(
        f"compiled code is kept in {folder}: neither the installation nor the user's cache folder can be written; set "
        "NUMBA_CACHE_DIR to a folder that stays",
        stacklevel=2,
    )
    return folder


def can_hold_files(folder: Path) -> bool:
    """Whether files can be made in a folder, or in one that can be made there; nothing is written."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return os.access(place, os.W_OK | os.X_OK)
        if _exists(place):  # a file where a folder must be
            return False
    return False


def _exists(place: Path) -> bool:
    try:
        place.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # not a folder above it, or one that must not be looked into
        return True
    return True


def _of_the_user() -> Path:
    """Numba's folder in the user's cache, by its own rule on this system."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser()
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/numba"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"


def _temporary() -> Path:
    """A folder of this user's that later processes find again.

    Numba trusts what it finds there, so it must be nobody else's: a folder that is a link, another user's or open to
    others is not used, but a new one.
    """
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir()) / f"qsim-numba-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError:
            pass
        else:
            private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            if private and can_hold_files(folder):
                return folder
    return Path(tempfile.mkdtemp(prefix="qsim-numba-"))


FOLDER = ensure()
"""The temporary folder that is used, if any."""
watch()
