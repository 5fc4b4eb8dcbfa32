"""Figures of every kind can be read: in every size, with one to six panels or series and long names."""

from __future__ import annotations

from typing import Any

import pytest

from .legible import faults
from .samples import PLAIN, SIZED, every_figure

EVERY: dict[str, Any] = {**SIZED, **PLAIN}


DAILY = ("capacity", "frontier", "load", "pareto", "quality", "record", "time_bar", "tornado")


@pytest.mark.parametrize("kind", DAILY)
def test_a_figure_of_the_commands_can_be_read(kind: str) -> None:
    made = EVERY[kind](3, "column") if kind in SIZED else EVERY[kind](4)
    assert faults(made) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "how"), every_figure(), ids=str)
def test_every_figure_of_every_kind_can_be_read(kind: str, how: dict[str, Any]) -> None:
    assert faults(EVERY[kind](**how)) == []
