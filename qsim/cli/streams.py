"""What a terminal cannot write: characters outside its encoding become ones that look alike, once for all output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

ALIKE = {
    "µ": "u", "×": "x", "·": "*", "±": "+-", "→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "≥": ">=", "≤": "<=",
    "≈": "~", "●": "*", "│": "|", "─": "-", "━": "-", "├": "|", "┤": "|", "└": "`", "┌": ",", "┐": ".", "┘": "'",
    "┼": "+", "╸": "-", "╺": "-", "é": "e", "ö": "o", "ü": "u", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
"""Characters of our own output, and what stands for them where an encoding lacks them."""


def alike(text: str, encoding: str) -> str:
    """A text in the characters of an encoding; what has no likeness is a question mark."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(c if _has(encoding, c) else ALIKE.get(c, "?") for c in text)
    return text


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


class _Alike:
    """A text stream that takes any text. It claims UTF-8, so that click and rich leave the choice to it."""

    encoding = "utf-8"

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(alike(text, self._stream.encoding)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def any_text() -> Iterator[None]:
    """stdout and stderr that never fail on a character."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for name, stream in (("stdout", before[0]), ("stderr", before[1])):
            if stream is not None and getattr(stream, "encoding", None):
                setattr(sys, name, _Alike(stream))
                stack.callback(setattr, sys, name, stream)
        yield


def give_up_output() -> None:
    """Send what is left in stdout's buffer nowhere: the interpreter would fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
