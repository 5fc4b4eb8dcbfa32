"""What `qsim study diff` calls a difference: every kind of value, in every table."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from qsim.study import StudyResult, diff_studies, read_result
from qsim.study.diff import same
from qsim.study.result import TABLES, to_json
from qsim.study.rows import KindRow, ProfileRow, VerdictRow

NAN, INF = math.nan, math.inf
KIND = KindRow(kind="qkv", layers=8, channel_ratio=3.1, token_channel_ratio=5.2, peak=10.0, peak_ratio=13.8,
               kurtosis=3.3, row_range=4.7, worst_layer="a")  # fmt: skip
VERDICT = VerdictRow(way="fp8", title="FP8", answer="keeps", cause="format", layer="a", layers=0, error=0.0018, why="b",
                     evidence=("c",))  # fmt: skip
PROFILE = ProfileRow(profile="opt-13b-like", method="rtn:mxfp4", loss=0.4, loss_se=0.02, base_bits_per_byte=0.9,
                     bytes_scored=4096, notes="")  # fmt: skip


@pytest.fixture(scope="module")
def result() -> StudyResult:
    """The committed study, three rows of each table; a table that it lacks has one of its own."""
    whole = read_result(Path(__file__).parents[2] / "reports" / "study")
    lent: dict[str, Any] = {"kinds": (KIND,), "verdicts": (VERDICT,), "profiles": (PROFILE,)}
    whole = replace(whole, **{name: rows for name, rows in lent.items() if not getattr(whole, name)})
    return replace(whole, **{name: getattr(whole, name)[:3] for name in TABLES})


@pytest.mark.parametrize(
    ("x", "y"),
    [(1, 1.0), (0.1 + 0.2, 0.3), (NAN, NAN), (INF, INF), (-INF, -INF), (None, None), ("a", "a"), (True, True),
     (0, -0.0), ((1, NAN), (1, NAN)), ([1.0], (1.0,)), ({"a": NAN}, {"a": NAN}), ((), ())],
)  # fmt: skip
def test_one_value(x: Any, y: Any) -> None:
    assert same(x, y)
    assert same(y, x)


@pytest.mark.parametrize(
    ("x", "y"),
    [(1.0, 1.00001), (NAN, 1.0), (NAN, None), (NAN, INF), (INF, -INF), (INF, 1e308), (None, 0), (None, ""), (1, "1"),
     (1, True), (0, False), ("a", "b"), ((1,), (1, 2)), ((NAN,), (0.0,)), ({"a": 1}, {"b": 1}), ({"a": 1}, {}),
     (0, 1e-300)],
)  # fmt: skip
def test_two_values(x: Any, y: Any) -> None:
    assert not same(x, y)
    assert not same(y, x)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 123.0])
@pytest.mark.parametrize(
    ("table", "column"),
    [("quality", "loss"), ("quality", "kl"), ("speed", "value"), ("speed", "low"), ("curves", "speedup")],
)
def test_a_number_that_became_another_or_none_is_a_difference(
    result: StudyResult, table: str, column: str, value: float
) -> None:
    rows = getattr(result, table)
    at = next(i for i, row in enumerate(rows) if getattr(row, column))
    other = replace(result, **{table: (*rows[:at], replace(rows[at], **{column: value}), *rows[at + 1 :])})
    for one, two in ((result, other), (other, result)):
        (change,) = diff_studies(one, two)
        assert change.part == table
        assert change.before != change.after
        if not math.isfinite(value):
            assert change.relative is None
            assert str(value) in (change.before, change.after)
            assert change.sure is not False
    assert diff_studies(other, other) == ()
    assert diff_studies(read_again(other), other) == ()


def read_again(result: StudyResult) -> StudyResult:
    """Through the text of study.json."""
    from qsim.study.result import _adapter

    return _adapter().validate_json(to_json(result))


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_row_and_any_changed_column_is_a_difference(result: StudyResult, table: str) -> None:
    rows = getattr(result, table)
    assert rows
    shorter = replace(result, **{table: rows[:-1]})
    part = {"decisions": "decision"}.get(table, table)
    assert {c.part for c in diff_studies(result, shorter)} == {part}
    assert {c.part for c in diff_studies(shorter, result)} == {part}
    if table == "decisions":
        return
    for field in fields(rows[-1]):
        before = getattr(rows[-1], field.name)
        other = {str: "another", bool: not before, int: 77777, float: 0.77777, type(None): 1}.get(type(before), ("x",))
        changed = replace(result, **{table: (*rows[:-1], replace(rows[-1], **{field.name: other}))})
        assert {c.part for c in diff_studies(result, changed)} == {part}, field.name
