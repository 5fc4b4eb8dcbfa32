"""Typed, ranged values out of a mapping that came from a file.

A config says `rope_theta = true` or `num_hidden_layers = 10**6` as easily as a sensible number. `Fields` reads one key
at a time with its type and range; what does not fit is one sentence with file, key, rule and value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from qsim.errors import QsimError

T = TypeVar("T")
_MISSING: Any = object()


class Fields:
    """A mapping whose values are read with type and range.

    Arguments:
        table: what a file held.
        where: how messages name it, e.g. the path of the file.

    Raises:
        QsimError: `table` is not a mapping from texts.

    A key may be given with older names of it: `("hidden_size", "n_embd")`; the first one that is present and not null
    counts. Without a `default` a missing key is refused; with one, a missing or null key gives the default.
    """

    def __init__(self, table: Any, where: str) -> None:
        if not isinstance(table, Mapping) or not all(isinstance(k, str) for k in table):
            raise QsimError(f"{where} must hold a table of named values: got {_short(table)}")
        self.table: Mapping[str, Any] = table
        self.where = where
        self.read: set[str] = set()
        """Keys that were asked for, whether present or not."""
        self._inner: list[tuple[str, Fields]] = []

    def __contains__(self, key: str) -> bool:
        self.read.add(key)
        return self.table.get(key) is not None

    def _find(self, keys: str | tuple[str, ...], default: Any) -> tuple[str, Any]:
        names = (keys,) if isinstance(keys, str) else keys
        self.read.update(names)
        for name in names:
            if self.table.get(name) is not None:
                return name, self.table[name]
        if default is _MISSING:
            raise QsimError(f"{self.where}: {' or '.join(names)} is missing")
        return names[0], default

    def refuse(self, key: str, rule: str) -> QsimError:
        """The error for a key whose value breaks a rule; to be raised by the caller."""
        return QsimError(f"{self.where}: {key} {rule}: got {_short(self.table.get(key))}")

    @overload
    def integer(self, keys: str | tuple[str, ...], low: int, high: int) -> int: ...
    @overload
    def integer(self, keys: str | tuple[str, ...], low: int, high: int, default: T) -> int | T: ...
    def integer(self, keys: str | tuple[str, ...], low: int, high: int, default: Any = _MISSING) -> Any:
        """A whole number from `low` to `high`. `true` and `4.0` are none."""
        key, value = self._find(keys, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(key, "must be an integer")
        if not low <= value <= high:
            raise self.refuse(key, f"must be from {low} to {high}")
        return value

    @overload
    def number(self, keys: str | tuple[str, ...], low: float, high: float) -> float: ...
    @overload
    def number(self, keys: str | tuple[str, ...], low: float, high: float, default: T) -> float | T: ...
    def number(self, keys: str | tuple[str, ...], low: float, high: float, default: Any = _MISSING) -> Any:
        """A finite number from `low` to `high`, as float."""
        key, value = self._find(keys, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, "must be a number")
        if not low <= value <= high or not math.isfinite(value):  # NaN fails the first; a huge integer too
            raise self.refuse(key, f"must be from {low:g} to {high:g}")
        return float(value)

    @overload
    def flag(self, keys: str | tuple[str, ...]) -> bool: ...
    @overload
    def flag(self, keys: str | tuple[str, ...], default: T) -> bool | T: ...
    def flag(self, keys: str | tuple[str, ...], default: Any = _MISSING) -> Any:
        """true or false."""
        key, value = self._find(keys, default)
        if value is not default and not isinstance(value, bool):
            raise self.refuse(key, "must be true or false")
        return value

    @overload
    def text(self, keys: str | tuple[str, ...], *, choices: Iterable[str] = ()) -> str: ...
    @overload
    def text(self, keys: str | tuple[str, ...], default: T, *, choices: Iterable[str] = ()) -> str | T: ...
    def text(self, keys: str | tuple[str, ...], default: Any = _MISSING, *, choices: Iterable[str] = ()) -> Any:
        """A text; one of `choices` where there are some."""
        key, value = self._find(keys, default)
        if value is default:
            return value
        known = tuple(choices)
        if not isinstance(value, str):
            raise self.refuse(key, "must be a text")
        if known and value not in known:
            raise self.refuse(key, f"must be one of {', '.join(known)}")
        return value

    def items(
        self, keys: str | tuple[str, ...], kind: type | tuple[type, ...], default: Any = _MISSING, *,
        length: int | None = None, most: int = 1 << 20,
    ) -> Any:  # fmt: skip
        """A list of values of one type, of a given length or at most `most`, as a tuple."""
        key, value = self._find(keys, default)
        if value is default:
            return value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join({"str": "texts", "int": "integers", "float": "numbers", "bool": "true or false"}.get(
            k.__name__, k.__name__) for k in kinds)  # fmt: skip
        # by type, not by entry: the vocabulary of a tokenizer has a quarter of a million entries
        fits = isinstance(value, list | tuple) and all(
            issubclass(one, kinds) and (bool in kinds or one is not bool) for one in set(map(type, value))
        )
        if not fits:
            raise self.refuse(key, f"must be a list of {names}")
        if length is not None and len(value) != length:
            raise QsimError(f"{self.where}: {key} must have {length} entries: got {len(value)}")
        if len(value) > most:
            raise QsimError(f"{self.where}: {key} must have at most {most} entries: got {len(value)}")
        return tuple(value)

    def inner(self, keys: str | tuple[str, ...], default: Any = _MISSING) -> Any:
        """A table within, as `Fields`; the default when it is missing."""
        key, value = self._find(keys, default)
        if value is default:
            return value
        found = Fields(value, f"{self.where}: {key if len(key) <= 80 else key[:77] + '...'}")
        self._inner.append((key, found))
        return found

    def unread(self, ignored: Iterable[str] = ()) -> list[str]:
        """Keys that nobody has asked for and that are not among `ignored`, sorted; those of tables within as `a.b`."""
        known = self.read.union(ignored)
        own = [key for key in self.table if key not in known]
        return sorted({*own, *(f"{key}.{name}" for key, inner in self._inner for name in inner.unread())})


def _short(value: Any) -> str:
    """A value for a message; never longer than a line, and never the digits of a huge number."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value).bit_length() > 128:
        return f"an integer of {abs(value).bit_length()} bits"
    if isinstance(value, Mapping):
        return f"a table of {len(value)} entries"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
