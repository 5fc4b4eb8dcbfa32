"""Tables: no cell is ever cut, whatever the width; JSON and CSV hold the same rows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qsim.cli import main, table
from qsim.cli.table import Column, print_table

ROOT = Path(__file__).parents[2]
VERBS = (
    "formats", "formats e4m3", "formats bfloat16", "formats --compare e4m3 int8", "cast 0.3 -7.1 464 --to e4m3,int8",
    "cast 0.1 -2.7 7.5 --to mxfp4", "mma --list hopper.wgmma", "mma hopper.wgmma.f32.e4m3 ada.mma.f32.e4m3",
    "mma hopper.wgmma.f32.e4m3", "schemes", "schemes w4a16-g128", "devices",
    "devices h100-sxm --sources", "predict llama-3-8b", "roofline llama-3-8b",
    "sweep llama-3-8b --batch 1:8 --scheme bf16 --scheme fp8", "sweep llama-3-8b --tornado",
    "sweep llama-3-8b --batch 1 --device asic --field memory.bandwidth_gbytes_per_s=2000,4000",
)  # fmt: skip
"""Command lines that print tables and take no long work."""


def run(line: str, columns: int | None, charset: str = "utf-8") -> click.testing.Result:
    env = {"COLUMNS": None if columns is None else str(columns)}
    result = CliRunner(charset=charset).invoke(main, line.split(), prog_name="qsim", env=env)
    assert result.exit_code == 0, result.output
    return result


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("columns", "charset"),
    [(40, "utf-8"), (80, "utf-8"), (120, "utf-8"), (None, "utf-8"), (80, "ascii"), (None, "ascii")],
)
@pytest.mark.parametrize("line", VERBS)
def test_every_cell_of_every_table_is_whole(
    monkeypatch: pytest.MonkeyPatch, line: str, columns: int | None, charset: str
) -> None:
    cells: list[tuple[str, bool]] = []
    real = Column.cell

    def seen(self: Column, row: Any) -> Any:
        made = real(self, row)
        cells.append((made.plain, self.fold))
        return made

    monkeypatch.setattr(Column, "cell", seen)
    text = run(line, columns, charset).stdout
    assert cells
    assert "…" not in text
    lines = text.splitlines()
    for cell, fold in cells:
        if charset == "ascii":
            cell = table_alike(cell)
        if fold:  # over several lines, but each word whole
            assert all(word in text for word in cell.split())
        else:
            assert any(cell in one for one in lines), cell


def table_alike(text: str) -> str:
    from qsim.cli.streams import alike

    return alike(text, "ascii")


PRINTED = {"time_s": 1e3, "low_s": 1e3, "high_s": 1e3, "share": 100, "gflop": 1, "mbytes": 1, "flop_per_byte": 1,
           "tokens_per_s": 1, "memory_gbytes": 1, "tflop_per_s": 1, "result": 1, "max": 1, "calls": 1}  # fmt: skip
"""Numbers of --json -> the factor to the unit that the tables show."""


@pytest.mark.parametrize("columns", [40, 80, 120, None])
@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("predict llama-3-8b --scheme w4a16-g128", {"low_s", "high_s"}),
        ("roofline llama-3-8b", {"low_s", "high_s", "share", "gflop", "mbytes", "calls"}),
        ("sweep llama-3-8b --batch 1:64 --scheme bf16 --scheme fp8", set()),
        ("devices", set()),
        ("mma hopper.wgmma.f32.e4m3 ada.mma.f32.e4m3", set()),
    ],
)
def test_every_number_of_json_is_in_the_table_to_its_printed_digits(
    line: str, hidden: set[str], columns: int | None
) -> None:
    found = json.loads(run(line + " --json", columns).stdout)
    rows = found["operators"] if isinstance(found, dict) else found
    printed = re.findall(r"(?<![\w.])([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", run(line, columns).stdout)
    checked = 0
    for row in rows:
        for key, value in row.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            factor = 1 if line == "devices" else PRINTED.get(key)
            if not numeric or key in hidden or factor is None:
                continue
            checked += 1
            assert any(shown(text, value * f) for text in printed for f in (factor, factor * 1e3)), (key, value)
    assert checked >= len(rows)


def shown(text: str, value: float) -> bool:
    """Whether a printed number is the value, rounded to the digits that are printed."""
    mantissa, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    digits = 10 ** (math.floor(math.log10(abs(value))) - 2) if value else 0  # :.3g leaves blanks for its zeros
    return abs(float(text) - value) <= 0.5000001 * max(unit, digits if "." not in mantissa else unit)


@pytest.mark.parametrize("line", [v for v in VERBS if v != "formats bfloat16"])
def test_csv_has_one_row_for_each_and_as_many_cells_as_heads(line: str) -> None:
    rows = list(csv.reader(io.StringIO(run(line + " --csv", 40).stdout)))
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}


def print_it(capsys: pytest.CaptureFixture[str], **how: Any) -> list[str]:
    columns = (Column("name", "name", left=True), Column("a long head", "x"), Column("y", "y"),
               Column("notes", "notes", left=True, fold=True))  # fmt: skip
    rows = [{"name": "one", "x": 1234567.0, "y": 3.14159, "notes": "a sentence that is folded before 123456789 is"},
            {"name": "two", "x": None, "y": True, "notes": ""}, {"name": "..."}]  # fmt: skip
    print_table(columns, rows, **how)
    return capsys.readouterr().out.splitlines()


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert print_it(capsys) == [
        "name  a long head      y  notes",
        "one     1.235e+06  3.142  a sentence that is folded before 123456789 is",
        "two                  yes",
        "...",
    ]


def test_texts_are_folded_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    assert print_it(capsys, lined=True) == [
        "name  a long head      y  notes",
        "─" * 44,
        "one     1.235e+06  3.142  a sentence that is",
        "                          folded before",
        "                          123456789 is",
        "two                  yes",
        "...",
    ]


def test_then_columns_stand_below_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert "|".join(print_it(capsys, title="Title")).split("||") == [
        "Title|name  a long head|one     1.235e+06|two|...",
        "name      y|one   3.142|two     yes|...",
        "name  notes|one   a sentence|      that is folded|      before|      123456789 is|two|...",
    ]
    monkeypatch.setenv("COLUMNS", "3")  # nothing fits: nothing is lost either
    assert "one     1.235e+06" in print_it(capsys)


@pytest.mark.parametrize(("given", "width"), [("72", 72), ("0", None), ("-5", None), ("wide", None), ("", None)])
def test_columns_decides_where_it_is_a_number(monkeypatch: pytest.MonkeyPatch, given: str, width: int | None) -> None:
    monkeypatch.setenv("COLUMNS", given)
    assert table.width() == width


def test_rich_tables_are_made_nowhere_else() -> None:
    for path in (ROOT / "qsim").rglob("*.py"):
        assert "rich.table" not in path.read_text(encoding="utf-8"), path


def test_json_carries_what_is_not_finite_and_csv_lists(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_json({"a": math.inf, "b": [math.nan, 1], "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": "inf", "b": ["nan", 1], "c": None}
    table.print_csv([{"a": 1, "b": ["x", "y"]}, {"c": None}])
    assert capsys.readouterr().out == "a,b,c\n1,x; y,\n,,\n"


def test_a_column_of_texts_that_no_row_has_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "16")
    columns = (Column("name", "name", left=True), Column("figure", "x"), Column("notes", "notes", left=True, fold=True))
    print_table(columns, [{"name": "one", "x": 1, "notes": ""}, {"name": "two", "x": 2}])
    assert capsys.readouterr().out.splitlines() == ["name  figure", "one        1", "two        2"]
    print_table(columns, [{"name": "one", "x": 1, "notes": "fell back"}])
    assert "notes" in capsys.readouterr().out
    print_table(columns[::2], [])
    assert capsys.readouterr().out.splitlines() == ["name  notes"]
