"""Themes: a figure is drawn in the light one, and its colours are changed to another's at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from qsim.errors import QsimError, nearest

THEMES: dict[str, dict[str, str]] = {
    "light": {},
    "dark": {
        "#ffffff": "#14181d", "#000000": "#f0f2f4", "#222222": "#e3e7eb", "#333333": "#d5dae0", "#444444": "#c3cad2",
        "#555555": "#b4bcc6", "#6b6b6b": "#a5aeb9", "#777777": "#98a1ac", "#8a8a8a": "#8a939e", "#9a9a9a": "#7d8691",
        "#b5b5b5": "#5b6570", "#d9d9d9": "#3b444e", "#e3e3e3": "#2b323a", "#f3f3f3": "#1f262d",
        "#0072b2": "#4aa3e0", "#d55e00": "#f58a3c", "#009e73": "#2cc49a", "#cc79a7": "#e39bc4", "#e69f00": "#f2b84b",
        "#56b4e9": "#8fd0f5",
    },
    "print": {
        "#0072b2": "#1a1a1a", "#d55e00": "#6e6e6e", "#009e73": "#444444", "#cc79a7": "#8c8c8c", "#e69f00": "#a0a0a0",
        "#56b4e9": "#b4b4b4", "#f0e442": "#d0d0d0",
    },
}  # fmt: skip
"""Themes: what the colours of the light one become. `print` is black, grey and white; shapes, fills and dashes tell
series apart in all three."""


def with_theme(figure: Figure, theme: str) -> Figure:
    """The figure with its colours changed to a theme's, in place.

    Raises:
        QsimError: no such theme.
    """
    if theme not in THEMES:
        raise QsimError(nearest("theme of figures", theme, THEMES))
    table = THEMES[theme]

    def changed(color: Any) -> Any:
        if isinstance(color, str) and color in ("none", "None"):
            return color
        alpha = to_rgba(color)[3]
        if alpha == 0:  # no colour; as one, it would take on the alpha of its artist
            return "none"
        found = table.get(to_hex(color))
        return color if found is None else to_rgba(found, alpha)

    if table:
        for artist in figure.findobj():
            _recolour(artist, changed)
    return figure


_PARTS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markerfacecoloralt", "markeredgecolor")


def _recolour(artist: Any, changed: Any) -> None:
    for part in _PARTS:
        getter, setter = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
        if getter is None or setter is None:
            continue
        now = getter()
        if isinstance(now, np.ndarray) and now.ndim == 2:
            setter([changed(tuple(c)) for c in now])
        elif isinstance(now, str | tuple):
            setter(changed(now))
    if isinstance(artist, Text) and artist.get_bbox_patch() is not None:
        _recolour(artist.get_bbox_patch(), changed)
