"""What was measured with this project on the checkpoint itself: it decides there, and says nothing of other models."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import QsimError
from qsim.evidence import Row, expected_loss, find, measured, published, read_rows, rows_text, shipped
from qsim.evidence.law import laws
from qsim.evidence.precision import of_scheme, of_words
from qsim.scheme import list_schemes

MODEL = "gemma-3-270m"
REPORT = Path(__file__).parents[2] / "reports" / "real_model.csv"
HEAD = "model,method,scheme,metric,value,baseline_value,standard_error,note"


def written(tmp_path: Path, *lines: str, head: str = HEAD) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    return path


def test_the_shipped_measurements_are_those_of_the_report() -> None:
    with REPORT.open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["model"] == "gemma3-270m"]
    wanted = {(x["method"], x["scheme"]): x for x in lines if x["method"] not in ("none", "gguf")}
    assert len(wanted) >= 6
    assert len(measured()) == len(wanted)
    base = float(lines[0]["baseline"])
    for (method, scheme), line in wanted.items():
        (row,) = find(MODEL, method, scheme=scheme, rows=measured())
        assert row.ln_ratio is not None
        assert row.standard_error is not None
        per_bit = math.log(row.baseline) / base
        assert row.ln_ratio == pytest.approx(per_bit * (float(line["value"]) - base), rel=1e-3, abs=1e-5)
        assert row.standard_error == pytest.approx(per_bit * float(line["standard_error"]), rel=1e-3)


def test_the_measured_checkpoint_says_so_with_its_standard_error() -> None:
    for row in measured():
        found = expected_loss(MODEL, row.method, row.precision)
        assert (found.basis, found.value, found.rows) == ("measured", row.ln_ratio, (row,))
        assert found.standard_error == row.standard_error
        assert found.value is not None
        assert found.standard_error is not None
        assert (found.high - found.low) / 2 == pytest.approx(1.2816 * found.standard_error)  # type: ignore[operator]
        assert found.collapse == row.collapsed
        assert not found.fragile
        assert "measured with this project" in found.note
    assert expected_loss(MODEL, "gptq", "w4a16-g128", rows=published()).basis == "law"


def test_what_was_measured_on_one_checkpoint_says_nothing_of_its_kin() -> None:
    for row in measured():
        with_it, without = (expected_loss("gemma-3-1b", row.method, row.precision, rows=rows) for rows in (
            shipped(), published()))  # fmt: skip
        assert with_it == without
    strange = replace(measured()[0], value=400.0)  # destroyed
    assert expected_loss("gemma-3-1b", strange.method, strange.precision, rows=(*published(), strange)).collapse == (
        expected_loss("gemma-3-1b", strange.method, strange.precision).collapse)  # fmt: skip
    assert expected_loss(MODEL, strange.method, strange.precision, rows=(strange,)).collapse == 1
    assert laws(shipped())["token 512"].coefficients == laws(published())["token 512"].coefficients


def test_a_cache_adds_its_published_loss_to_measured_weights() -> None:
    alone, both = (expected_loss(MODEL, "gptq", "w4a16-g128", kv=kv) for kv in (None, "fp8"))
    assert both.basis != "measured"
    assert both.value > alone.value  # type: ignore[operator]
    assert both.rows[0] == alone.rows[0]


def test_several_measurements_are_averaged_with_the_larger_of_two_errors(tmp_path: Path) -> None:
    def ask(*lines: str) -> tuple[float, float | None]:
        found = expected_loss("llama-3-8b", "awq", "w4a16-g128", rows=shipped() + read_rows(written(tmp_path, *lines)))
        assert found.basis == "measured"
        assert found.low < found.value < found.high  # type: ignore[operator]
        return found.value, found.standard_error  # type: ignore[return-value]

    def line(loss: float, error: str) -> str:
        return f"llama-3-8b,awq,w4a16-g128,token_ppl,{math.exp(loss)},1,{error},[M] mine"

    value, error = ask(line(0.10, "0.004"), line(0.12, "0.003"))
    assert value == pytest.approx(0.11)
    assert error == pytest.approx(0.01)  # the two texts differ by more than their errors say
    assert ask(line(0.10, "0.004"), line(0.1001, "0.003"))[1] == pytest.approx(0.0025)
    assert ask(line(0.10, "0.004"), line(0.12, ""))[1] is None


def test_a_negative_standard_error_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(QsimError, match=r"line 2: standard_error must not be negative: got -1"):
        read_rows(written(tmp_path, "m,awq,w4a16-g128,token_ppl,2,1,-1,"))


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "again.csv"
    mine = read_rows(written(tmp_path, "m-1b,awq,w4a16-g128,token_ppl,2,1,0.5,\"[M] a, b\"",
                             "m-1b,rtn,nvfp4,mmlu_acc,60,61,,none"))  # fmt: skip
    for rows in (measured(), mine):
        path.write_text(rows_text(rows), encoding="utf-8")

        def plain(row: Row) -> Row:
            return replace(row, line=0, source="")

        assert [plain(r) for r in read_rows(path)] == [plain(r) for r in rows]


@pytest.mark.parametrize("name", [n for n in list_schemes() if n not in ("bf16", "fp16")])
def test_the_numbers_of_every_scheme_survive_as_words(name: str) -> None:
    p = of_scheme(name)
    assert of_words(p.weight, p.region, p.activation, p.scaling, p.kv) == p


def test_a_folder_that_holds_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QsimError, match=r"has no data/evidence\.csv: name a CSV file, or the folder of a finished"):
        read_rows(tmp_path)


def test_the_command_joins_a_study_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    row = replace(measured()[0], model="my-model-2b", parameters_b=2.0)
    (tmp_path / "data" / "evidence.csv").write_text(rows_text([row]), encoding="utf-8")
    asked = ["evidence", "my-model-2b", "--expect", "--method", row.method, "--scheme", "w4a16-g128", "--json"]
    (one,) = json.loads(CliRunner().invoke(main, [*asked, "--rows", str(tmp_path)], standalone_mode=False).output)
    assert one["basis"] == "measured"
    assert one["standard_error"] == row.standard_error
    (other,) = json.loads(CliRunner().invoke(main, asked, standalone_mode=False).output)
    assert (other["basis"], other["value"]) == ("unknown", None)
