"""What a refusal is, and how an unknown name is answered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class QsimError(ValueError):
    """A mistake in what was asked or in a file that was given: its text is one sentence with the culprit and the rule.

    Everything that qsim and hwmodels refuse is raised as this class, which is a ValueError. Any other exception is a
    fault of the program, except OSError (the disk, a path) and MemoryError.

    What was given stands in the text as it is, on one line; a value of thousands of characters is cut in its middle.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(_readable(text))


def _readable(text: str) -> str:
    if "\n" in text or "\r" in text:
        text = " ".join(text.split())
    if len(text) <= LONGEST:
        return text
    return _LONG_WORD.sub(lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)[:LONGEST]


LONGEST = 800
"""Characters of a refusal."""
_LONG_WORD = re.compile(r"\S{120,}")


class QsimTypeError(QsimError, TypeError):
    """A refusal of something of the wrong type; also a TypeError, for callers that catch those."""


def shown(name: object) -> str:
    """A name as a message shows it: as it is when it can be printed on one line, else quoted; never longer than 80."""
    text = str(name)
    if not text.isprintable() or not text.strip():
        text = repr(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def quoted(name: object) -> str:
    """A name in quotes, as a message shows it; never longer than 80."""
    text = repr(str(name))
    return text if len(text) <= 80 else f"{text[:76]}...'"


def nearest(kind: str, name: object, known: Iterable[str], *, cutoff: float = 0.4, all_below: int = 12) -> str:
    """The sentence for a name that is not known: what it is, and the nearest names that are.

    Arguments:
        kind: what is named, in the singular (`device`, `scheme`).
        name: as the user gave it.
        known: all names, aliases included.
        cutoff: least similarity of a name that is offered, 0 to 1.
        all_below: when nothing is near, all names are listed if there are no more than this many.

    Returns:
        For example `unknown device 'h10': the nearest are h100-sxm, h100-pcie`.
    """
    names = list(dict.fromkeys(known))
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(str(name).lower()[:200], lower, n=3, cutoff=cutoff)]
    wanted = quoted(name)
    if near:
        return f"unknown {kind} {wanted}: the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    if len(names) <= all_below:
        return f"unknown {kind} {wanted}: it is one of {', '.join(names)}"
    return f"unknown {kind} {wanted}: nothing has a similar name"
