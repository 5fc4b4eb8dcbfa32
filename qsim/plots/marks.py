"""How a method looks in every figure of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How a method looks in every figure of a study."""

    label: str
    color: str
    marker: str
    filled: bool = True

    def draw(self, axes: Axes, x: Any, y: Any, **more: Any) -> None:
        axes.plot(x, y, linestyle="none", marker=self.marker, color=self.color, markersize=6.5,
                  markerfacecolor=self.color if self.filled else "white", markeredgewidth=1.3, **more)  # fmt: skip

    def handle(self) -> Line2D:
        return Line2D([], [], linestyle="none", marker=self.marker, color=self.color, label=self.label, markersize=6,
                      markerfacecolor=self.color if self.filled else "white", markeredgewidth=1.2)  # fmt: skip
