from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.formats import get_format, list_formats


def run(*args: str, columns: int = 80) -> click.testing.Result:
    return CliRunner().invoke(main, ["formats", *args], prog_name="qsim", env={"COLUMNS": str(columns)})


def fits(text: str, columns: int) -> bool:
    return max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize("columns", [80, 120])
def test_list_has_every_format_and_fits(columns: int) -> None:
    result = run(columns=columns)
    assert result.exit_code == 0
    first_words = {line.split()[0] for line in result.output.splitlines() if line.strip()}
    assert {f.name for f in list_formats()} <= first_words
    assert fits(result.output, columns)
    assert "…" not in result.output
    assert all(line == line.rstrip() for line in result.output.splitlines())


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [f.name for f in list_formats()] + ["binary8p4se", "float7_e3m3fn"])
def test_one_format_fits_and_has_its_limits(name: str, columns: int) -> None:
    result = run(name, columns=columns)
    assert result.exit_code == 0
    assert result.output.startswith(name)
    assert fits(result.output, columns)
    assert "…" not in result.output


def test_value_table_has_all_the_values() -> None:
    text = run("e4m3", columns=120).output
    rows = [line.split() for line in text.splitlines() if line.startswith("0x")]
    shown = [float(cell) for row in rows for cell in row[3:]]
    assert shown[:-1] == [v for v in get_format("e4m3").values if v >= 0]
    assert rows[-1][-1] == "NaN"
    assert "is rounded" not in text
    assert "is rounded" in run("e4m3").output


def test_int_grid() -> None:
    assert "0x80  -128" in run("int8").output


def test_wide_format_has_landmarks() -> None:
    text = run("bfloat16").output
    assert "largest finite" in text
    assert "0x7F7F" in text
    assert "Some binades" in text


def test_json_and_csv() -> None:
    rows = json.loads(run("--json").output)
    assert next(r for r in rows if r["name"] == "float8_e5m2")["max"] == 57344
    table = list(csv.DictReader(io.StringIO(run("--csv").output)))
    assert [r["name"] for r in table] == [f.name for f in list_formats()]
    one = json.loads(run("e4m3", "--json").output)
    assert one["max"] == 448
    assert (one["codes"][0x7F]["value"], one["codes"][0x7E]["value"]) == ("nan", 448)
    assert len(list(csv.DictReader(io.StringIO(run("e4m3", "--csv").output)))) == 256
    assert json.loads(run("float16", "--json").output)["binades"][-1]["last"] == 65504
    assert run("--json", "--csv").exit_code == 2


def test_compare_table_states_the_scale() -> None:
    result = run("--compare", "e4m3", "e5m2", "int8")
    assert result.exit_code == 0
    assert "5.88 % (2.65 %)" in result.output
    assert "int8 is scaled by 3.52756, so that its largest value is 448." in result.output
    assert fits(result.output, 80)
    rows = list(csv.DictReader(io.StringIO(run("--compare", "e4m3", "int8", "--csv").output)))
    assert {r["format"] for r in rows} == {"float8_e4m3fn", "int8"}
    assert float(rows[-1]["scale"]) == 448 / 127


@pytest.mark.parametrize("args", [("e4m3",), ("bfloat16",), ("nf4",), ("e8m0",), ("--compare", "e4m3", "int4")])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plots(tmp_path: Path, args: tuple[str, ...], suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    result = run(*args, "--plot", str(path))
    assert result.exit_code == 0
    assert path.stat().st_size > 5000
    assert result.stderr == f"wrote {path}\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("e4m33",), "unknown format 'e4m33': the nearest are"),
        (("e4m3", "e5m2"), "use --compare"),
        (("--compare",), "--compare needs formats"),
        (("--compare", "e4m3", "nothing"), "unknown format 'nothing'"),
        (("--compare", "mxfp4"), "is a block format"),
        (("--align",), "belong to --compare"),
        (("--plot", "x.png"), "name them"),
        (("mxfp4", "--plot", "x.png"), "is a block format"),
        (("e4m3", "--plot", "x.bmp"), ".svg"),
        (("e4m3", "--plot", "nowhere/x.png"), "does not exist"),
        (("--compare", "int8", "--scaled-max", "-1"), "positive and finite"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = run("e4m3", "--plot", str(tmp_path / "x.png"))
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr
