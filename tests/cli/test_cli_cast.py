from __future__ import annotations

import csv
import io
import json

import click
import pytest
from click.testing import CliRunner

from qsim.cli import main


def run(*args: str, columns: int = 80) -> click.testing.Result:
    return CliRunner().invoke(main, ["cast", *args], prog_name="qsim", env={"COLUMNS": str(columns)})


ONE = """\
0.3 to float8_e4m3fn  (rounding=nearest_even, overflow=saturate)

  0  0101  010  0x2A = 0.3125
  │  │     └─── mantissa  1 + 2/8 = 1.25
  │  └───────── exponent  5 - bias 7 = -2: 2^-2
  └──────────── sign      positive

  0.28125 ├────────────────────────────●───────────────────┤ 0.3125
     0x29  0.6 ulp                    0.3           0.4 ulp  0x2A

  Decision  0.3 lies 0.6 ulp above 0.28125 and 0.4 ulp below 0.3125; the nearer
            is 0.3125.
  Error     +0.0125  (relative 4.17 %)
"""


def test_one_number_in_full() -> None:
    assert run("0.3", "--to", "e4m3").output == ONE


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("x", ["0.3", "-0.296875", "464", "-1e9", "nan", "-inf", "0", "-0", "1e-300", "0.1234567891"])
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "int8", "nf4", "tf32", "bfloat16", "e4m3fnuz", "uint4", "float32"])
def test_every_story_fits_the_terminal(x: str, name: str, columns: int) -> None:
    result = run(x, "--to", name, "--nan", "zero", columns=columns)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= columns
    (record,) = json.loads(run(x, "--to", name, "--nan", "zero", "--json").output)
    said = " ".join(result.output.split())
    for field in record["fields"]:  # nothing is cut off at the edge
        assert field["name"] == "padding" or f"{field['name']} {field['meaning']}" in said
    assert all(line == line.rstrip() for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("text", "value"),
    [("-0.3", -0.3), ("-.5", -0.5), ("-1e-3", -0.001), ("0x1.8p-3", 0.1875), ("-0x1.8p-3", -0.1875), ("-inf", "-inf"),
     ("inf", "inf"), ("nan", "nan"), ("+2", 2.0), ("-5", -5.0)],
)  # fmt: skip
def test_numbers_of_every_form(text: str, value: object) -> None:
    result = run(text, "--to", "e5m2", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)[0]["value"] == value


def test_several_numbers_and_formats_make_a_table() -> None:
    result = run("-0.3", "0.1875", "inf", "--to", "e4m3,e5m2", "--to", "int8")
    lines = result.output.splitlines()[2:]
    assert len(lines) == 9
    assert "0xAA" in lines[0]
    assert "1 0101 010" in lines[0]
    assert lines[6].split()[-1] == "overflow"
    rows = list(csv.DictReader(io.StringIO(run("-0.3", "7", "--to", "e4m3,int4", "--csv").output)))
    assert [(r["format"], r["code"]) for r in rows] == [
        ("float8_e4m3fn", "0xAA"), ("int4", "0x0"), ("float8_e4m3fn", "0x4E"), ("int4", "0x7")
    ]  # fmt: skip


def test_json_is_the_record() -> None:
    (row,) = json.loads(run("0.3", "--to", "e4m3", "--json").output)
    assert (row["code"], row["result"], row["case"]) == (0x2A, 0.3125, "nearest")
    assert row["below"] == {"value": 0.28125, "code": 0x29, "distance_ulp": pytest.approx(0.6)}


def test_choices_reach_the_codec() -> None:
    def code(*args: str) -> int:
        return json.loads(run(*args, "--to", "e4m3", "--json").output)[0]["code"]

    assert code("0.3", "--rounding", "toward_zero") == 0x29
    assert code("1000", "--overflow", "nonsaturating") == 0x7F
    assert code("-nan", "--nan", "keep_sign") in (0x7F, 0xFF)
    assert code("1.063", "--via", "bfloat16") == 0x38
    assert code("1.063") == 0x39
    assert code("0.3", "--rounding", "stochastic", "--random-value", "0") == 0x29
    drawn = [code("0.3", "--rounding", "stochastic", "--seed", str(s)) for s in range(20)]
    assert set(drawn) == {0x29, 0x2A}
    assert drawn == [code("0.3", "--rounding", "stochastic", "--seed", str(s)) for s in range(20)]


def test_via_tells_of_double_rounding() -> None:
    text = " ".join(run("1.063", "--to", "e4m3", "--via", "bfloat16").output.split())
    assert "First to bfloat16: 1.0625 (0x3F88)" in text
    assert "rounding twice, via bfloat16, gives another code" in text


def test_blocks_show_every_scale_rule() -> None:
    result = run("0.1", "-2.7", "7.5", "0.01", "--to", "mxfp4")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    (floor,) = (line for line in lines if line.startswith("floor"))
    (rceil,) = (line for line in lines if line.startswith("rceil"))
    assert floor.split()[1:4] == ["2^0", "0x7F", "1"]
    assert rceil.split()[1:4] == ["2^1", "0x80", "-"]
    assert max(map(len, lines)) <= 80
    rows = json.loads(run("1", "2", "--to", "nvfp4", "--json").output)
    assert rows[0]["scale_rule"] is None
    assert len(list(csv.DictReader(io.StringIO(run("1", "2", "--to", "mxfp8", "--csv").output)))) == 8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("0.3", "--to", "e4m33"), "unknown format 'e4m33': the nearest are"),
        (("nan", "--to", "e2m1"), "NaN into float4_e2m1fn"),
        (("100", "--to", "int4", "--overflow", "nonsaturating"), "overflows int4"),
        (("1", "--to", "mxfp8,e4m3"), "in two calls"),
        (("1", "--to", "mxfp8", "--via", "bfloat16"), "--via is for element formats"),
        (("1", "--to", "mxfp8", "--nan", "zero"), "--nan is for element formats"),
        (("1", "--to", "e4m3", "--rounding", "stochastic", "--random-value", "16", "--random-bits", "4"), "below 2^4"),
        (("1", "--to", "e4m3", "--json", "--csv"), "one of them"),
    ],
)
def test_mistakes_are_one_sentence(args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("zero", "--to", "e4m3"), "'zero' is not a number"),
        (("0x1.8p99999", "--to", "e4m3"), "beyond float64"),
        (("1", "--to", "e4m3", "--rounding", "nearest"), "nearest_even"),
        (("1",), "--to"),
        (("--to", "e4m3"), "NUMBER"),
        (("-x", "--to", "e4m3"), "-x"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
