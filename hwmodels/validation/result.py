"""What `qsim validate` finds: one line for each kind of row, with its error and what was required of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..fitting.fit import band_of, bands

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Group:
    """One line of the report: rows of one kind, their error, and what was required.

    Attributes:
        mape: percent; what it is of the errors says `statistic`. required: percent, None where nothing is required.
        coverage: share of rows inside the 80 % band, None where there is none.
    """

    section: str
    name: str
    rows: int
    mape: float
    required: float | None = None
    coverage: float | None = None
    detail: dict[str, float] = field(default_factory=dict)
    statistic: str = "MAPE"
    note: str = ""

    @property
    def passed(self) -> bool | None:
        return None if self.required is None else self.mape <= self.required


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All groups, and the single rows behind them (`points`: section, name, measured_s, predicted_s, low_s, high_s)."""

    groups: tuple[Group, ...]
    points: pd.DataFrame
    signs: pd.DataFrame
    published: tuple[Any, ...]
    ratios: tuple[Any, ...]
    claims: tuple[Any, ...]


def points_of(section: str, name: str, x: Any, measured: Any, predicted: Any) -> pd.DataFrame:
    """Measured rows of one kind beside what was predicted for them, with the band of each; times in seconds."""
    import pandas as pd

    low, high = band_of(x, bands(x, measured, predicted))
    return pd.DataFrame(
        {"section": section, "name": name, "measured_s": measured, "predicted_s": predicted,
         "low_s": predicted * low, "high_s": predicted * high}
    )  # fmt: skip
