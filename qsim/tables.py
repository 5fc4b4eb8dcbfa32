"""A table that prints as a table: what the `list_*` functions return."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from qsim.lazy import LazyModule

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class Table(Generic[T_co]):
    """Rows with named columns, and the value that each row describes. It prints aligned, in a notebook as HTML.

    It is a sequence of its values: iterating, indexing and `in` give what the rows describe (schemes, formats, names),
    so `list(list_schemes())` holds schemes. `names` is the first column.

    Arguments:
        columns: their titles; the first names the row.
        rows: one tuple of cells for each row, as long as `columns`; None prints as an empty cell.
        values: what each row describes, in the order of the rows.

    Raises:
        ValueError: a row with another number of cells than there are columns, or other numbers of rows and values.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    values: tuple[T_co, ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.values):
            raise ValueError(f"a table must have one value per row: got {len(self.rows)} rows, {len(self.values)}")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row must have {len(self.columns)} cells ({', '.join(self.columns)}): got {row}")

    @property
    def names(self) -> tuple[str, ...]:
        """The first column: one name per row."""
        return tuple(str(row[0]) for row in self.rows)

    def __iter__(self) -> Iterator[T_co]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T_co, ...]: ...
    def __getitem__(self, index: int | slice) -> T_co | tuple[T_co, ...]:
        return self.values[index]

    def __contains__(self, item: object) -> bool:
        return item in self.values

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame with the same columns."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self.columns))

    def to_records(self) -> list[dict[str, Any]]:
        """One dict for each row, from column to cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __repr__(self) -> str:
        cells = [self.columns, *(tuple(_text(c) for c in row) for row in self.rows)]
        width = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        right = self._numeric()
        lines = [
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([lines[0], "  ".join("-" * w for w in width), *lines[1:]])

    def _repr_html_(self) -> str:
        right = self._numeric()

        def line(tag: str, cells: tuple[str, ...]) -> str:
            style = ("left", "right")
            inner = "".join(
                f'<{tag} style="text-align: {style[r]}">{html.escape(c)}</{tag}>'
                for c, r in zip(cells, right, strict=True)
            )
            return f"<tr>{inner}</tr>"

        body = "".join(line("td", tuple(_text(c) for c in row)) for row in self.rows)
        return f"<table><thead>{line('th', self.columns)}</thead><tbody>{body}</tbody></table>"

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers only, and stand at the right."""
        return [
            any(row[i] is not None for row in self.rows)
            and all(isinstance(row[i], int | float | None) and not isinstance(row[i], bool) for row in self.rows)
            for i in range(len(self.columns))
        ]


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
