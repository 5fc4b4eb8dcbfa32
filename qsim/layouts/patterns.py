"""Regular expressions out of other people's files, matched in bounded time.

A pattern such as `(a|aa)+$` takes time that grows exponentially with the length of a layer's name, and Python's `re`
cannot be interrupted. Matching is therefore done by the library `regex`, which has a time limit; the meaning stays
that of `re`: every pattern must compile there, and the few spellings that `regex` reads differently are escaped or
refused.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from typing import Any

import regex

from qsim.errors import QsimError

BUDGET_S = 5.0  # of matching all layers of a model; usual patterns take microseconds per layer
_LENGTH = 1 << 16  # characters of a pattern
_ELEMENTS = 20_000  # of a pattern with its counted repetitions written out, which is what `regex` compiles
_COUNT = 1 << 16  # patterns of a list
# an escape, a set, a parenthesis, a counted repetition, or any other character
_TOKEN = re.compile(r"\\N\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]|\{(\d*)(,?)(\d*)\}|.", re.DOTALL)


class Patterns:
    """Regular expressions in the order in which they are tried, matched from the start of a layer's name.

    Arguments:
        expressions: as in `re.match`.
        where: how messages name the list that they are from.

    Raises:
        QsimError: an expression that is not one, is too long, or repeats too much; too many of them.
    """

    def __init__(self, expressions: Iterable[str], where: str) -> None:
        self.where, self._left_s = where, BUDGET_S
        self._all = [(text, _compiled(text, where)) for text in expressions]
        if len(self._all) > _COUNT:
            raise QsimError(f"{where} must have at most {_COUNT} regular expressions: got {len(self._all)}")

    def first(self, name: str) -> int | None:
        """Which of the expressions matches a layer's name first; None when none does.

        Raises:
            QsimError: matching has taken longer than `BUDGET_S` in all.
        """
        started = time.perf_counter()
        try:
            for i, (text, compiled) in enumerate(self._all):
                left = self._left_s - (time.perf_counter() - started)
                try:
                    if left <= 0:
                        raise TimeoutError
                    if compiled.match(name, timeout=left) is not None:
                        return i
                except TimeoutError:
                    raise QsimError(
                        f"{self.where}: matching regular expressions took longer than {BUDGET_S:g} s, at {_short(text)}"
                        f" on layer {name}: write it without repetitions inside repetitions"
                    ) from None
                except MemoryError:
                    raise QsimError(f"{self.where}: {_short(text)} needs too much memory on layer {name}") from None
            return None
        finally:
            self._left_s -= time.perf_counter() - started


def _compiled(text: str, where: str) -> Any:
    if len(text) > _LENGTH:
        raise QsimError(f"{where}: a regular expression has {len(text)} characters: at most {_LENGTH} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets that a later Python may read differently
            re.compile(text)
        if _elements(text) > _ELEMENTS:
            raise QsimError(f"{where}: {_short(text)} repeats too much: at most {_ELEMENTS} elements are read")
        if "[:" in text and ":]" in text:
            raise QsimError(f"{where}: {_short(text)} has a class such as [:alpha:], which `re` does not know")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return regex.compile(_literal_braces(text), regex.VERSION0)
    except QsimError:
        raise
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or "it is too large"
        raise QsimError(f"{where}: {_short(text)} is not a regular expression: {why}") from None


def _elements(text: str) -> int:
    """How many elements a pattern has when counted repetitions are written out."""
    totals, last = [0], 0
    for token in _TOKEN.finditer(text):
        what = token[0]
        if what == "(":
            totals.append(0)
        elif what == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif what.startswith("{") and len(what) > 2:
            count = max([1, *(int(n) for n in (token[1], token[3]) if n)])
            totals[-1] += last * (count - 1)
            last *= count
        else:
            totals[-1] += 1
            last = 1
    return max(totals)


def _literal_braces(text: str) -> str:
    """With every brace that is no counted repetition escaped: `regex` reads `{e<=1}` as a tolerance, `re` as it is."""

    def escaped(token: re.Match[str]) -> str:
        what = token[0]
        if what == "{" or (what.startswith("{") and not (token[1] or token[3])):
            return "\\" + what
        return what

    return _TOKEN.sub(escaped, text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
