"""Compiled code is kept only as long as all sources behind it are the same.

Numba looks at the file of a function before it takes its compiled code from the disk, but not at the files of the
functions that were compiled into it: after an update of one file, callers in others would go on with the old code, and
give wrong numbers without a word. Here the stamp of a file of this package also covers what it imports of it, directly
or not, as far as that compiles.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)", re.MULTILINE)
_COMPILES = re.compile(rb"^\s*(?:from|import)\s+(?:numba|llvmlite)\b", re.MULTILINE)


@cache
def _compiles(path: Path) -> bool:
    return _COMPILES.search(path.read_bytes()) is not None


@cache
def imported_sources(path: Path, root: Path = ROOT) -> frozenset[Path]:
    """The files of the package that a file imports and that hold compiled code."""
    found = set()
    for dots, module, names in _IMPORT.findall(path.read_text(encoding="utf-8")):
        if dots:
            home = path.parent
            for _ in dots[1:]:
                home = home.parent
        elif module == root.name or module.startswith(f"{root.name}."):
            home = root.parent
        else:
            continue
        base = home.joinpath(*module.split(".")) if module else home
        places = [base, *(base / name.strip().split(" ")[0] for name in names.strip("()").split(","))]
        found |= {p.with_suffix(".py") for p in places if p.with_suffix(".py").is_file()}
    return frozenset(p for p in found if p != path and _compiles(p))


@cache
def sources_behind(path: Path, root: Path = ROOT) -> tuple[Path, ...]:
    """A file and all files of compiled code that it imports, directly or not, in order."""
    seen, left = {path}, [path]
    while left:
        new = imported_sources(left.pop(), root) - seen
        seen |= new
        left.extend(new)
    return tuple(sorted(seen))


@cache
def stamp(path: Path, root: Path = ROOT) -> str:
    """A digest of the texts of a file and of `sources_behind` it."""
    digest = hashlib.sha256()
    for one in sources_behind(path, root):
        digest.update(one.relative_to(root).as_posix().encode() + b"\0" + one.read_bytes() + b"\0")
    return digest.hexdigest()


def _extend(caching: Any) -> None:
    """Make Numba's locators of source files add the stamp for files of this package."""
    mixin = caching._SourceFileBackedLocatorMixin
    of_file = mixin.get_source_stamp

    def get_source_stamp(self: Any) -> Any:
        path = Path(self._py_file)
        own = of_file(self)
        return (own, stamp(path)) if path.is_relative_to(ROOT) else own

    mixin.get_source_stamp = get_source_stamp


class _WhenImported(MetaPathFinder):
    """Extends `numba.core.caching` as soon as something imports it; Numba itself is heavy and not imported here."""

    NAME = "numba.core.caching"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _extend(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Have all compiled code of this package checked so, from now on."""
    if _WhenImported.NAME in sys.modules:
        _extend(sys.modules[_WhenImported.NAME])
    else:
        sys.meta_path.insert(0, _WhenImported())
