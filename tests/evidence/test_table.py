"""The shipped table of evidence, the rows of a user, and how both are looked up."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import QsimError
from qsim.evidence import METRICS, Precision, find, independent, joinable, known_models, published, read_rows, shipped
from qsim.evidence.find import identity
from qsim.evidence.identity import canonical
from qsim.evidence.precision import of_scheme

HEAD = "model,method,scheme,metric,value,baseline_value"
GOOD = "my-model-1b,AWQ,w4a16-g128,wikitext2_ppl,10.5,10.0"


def written(tmp_path: Path, *lines: str, head: str = HEAD) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    return path


def test_every_shipped_row_has_a_known_model_a_citation_a_grade_and_a_loss() -> None:
    rows = published()
    assert len(rows) > 1400
    for row in rows:
        assert row.model in known_models()
        assert row.title
        assert row.reference
        assert row.grade in ("A", "B")
        assert (row.ln_ratio is None) != (row.percent_lost is None) or row.metric.kind == "divergence"
        assert row.precision.bits is not None or row.precision.weight in ("nuq",)


def test_numbers_that_the_sources_print_are_found_with_their_baselines() -> None:
    (row,) = find("Llama-2-7B", "awq", bits=4, metric="wikitext2_ppl")
    assert (row.value, row.baseline, row.source) == (5.60, 5.47, "awq")
    assert row.ln_ratio == pytest.approx(math.log(5.60 / 5.47))
    assert "arXiv:2306.00978" in row.citation
    destroyed = find("llama-3-70b", "RTN W8A8 (no smoothing)", scheme="w8a8-channel-token")
    assert [(r.value, r.baseline, r.collapsed) for r in destroyed] == [(45.5, 74.1, True)]
    fine = find("llama-3-8b", "rtn", scheme="w8a8-channel-token")
    assert fine
    assert not any(r.collapsed for r in fine)


@pytest.mark.parametrize(
    "name",
    ["llama-3-8b", "Llama-3-8B", "meta-llama/Meta-Llama-3-8B", "LLAMA_3_8B", "llama3-8b", "Meta-Llama-3-8B-hf"],
)
def test_one_model_has_one_name_however_it_is_spelt(name: str) -> None:
    assert canonical(name) == "llama-3-8b"


def test_near_models_come_after_the_model_itself_and_are_of_its_generation_and_size() -> None:
    rows = find("llama-3-8b", bits=4, near=True)
    names = list(dict.fromkeys(r.model for r in rows))
    assert names[0] == "llama-3-8b"
    assert set(names) == {"llama-3-8b", "llama-3-8b-instruct", "llama-3.1-8b", "llama-3.1-8b-instruct"}


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [
        ("w4a16-g128", Precision(weight="int4", region="g128")),
        ("w4a16-g128-sym", Precision(weight="int4", region="g128")),
        ("w8a8-channel-token", Precision(weight="int8", region="channel", activation="int8", scaling="token")),
        ("fp8-static", Precision(weight="fp8", region="tensor", activation="fp8", scaling="static")),
        ("fp8-block128", Precision(weight="fp8", region="block", activation="fp8", scaling="group")),
        ("nvfp4", Precision(weight="nvfp4", region="block", activation="nvfp4", scaling="block")),
        ("bf16-kvfp8", Precision(kv="fp8")),
        ("q4_k", Precision(weight="q4_k_s", region="block")),
        ("q6_k", Precision(weight="q6_k", region="block")),
    ],
)
def test_a_scheme_and_the_words_of_a_table_mean_the_same_numbers(scheme: str, precision: Precision) -> None:
    assert of_scheme(scheme) == precision
    assert any(r.precision == precision for r in published())


def test_losses_of_two_kinds_are_never_joined() -> None:
    token, word, acc = (METRICS[n] for n in ("wikitext2_ppl", "wikitext_ppl_lm_eval", "mmlu_acc"))
    assert not joinable((token, "seq 2048"), (word, ""))
    assert not joinable((token, "seq 2048"), (token, "seq 512 chunks"))
    assert not joinable((token, "seq 2048"), (METRICS["c4_ppl"], "seq 2048"))
    assert not joinable((token, ""), (acc, ""))
    assert joinable((token, "seq 2048"), (token, "seq 2048, 141 chunks"))
    assert joinable((acc, ""), (METRICS["recovery_pct"], ""))


def test_a_row_that_quotes_another_source_counts_once() -> None:
    rows = published()
    alone = independent(rows)
    assert len(alone) < len(rows)
    both = [r for r in rows if r.model == "llama-2-7b" and r.method == "spinquant" and r.metric.name == "wikitext2_ppl"
            and r.precision.kv == "int4"]  # fmt: skip
    assert {r.source for r in both} == {"spinquant", "flatquant"}
    assert {r.source for r in independent(both)} == {"spinquant"}


def test_rows_of_a_user_join_the_shipped_ones(tmp_path: Path) -> None:
    mine = read_rows(written(tmp_path, GOOD, "Llama-3-8B,awq,w4a16-g128,wikitext2_ppl,6.55,6.14"))
    joined = published() + mine
    assert find("my-model-1b", rows=joined) == mine[:1]
    assert mine[1] in find("llama-3-8b", "awq", rows=joined)
    assert mine[0].grade == "own"
    assert "line 2" in mine[0].reference
    with_size = read_rows(written(tmp_path, GOOD + ",1.5", head=HEAD + ",parameters_b"))
    found = identity("my-model-1b", with_size)
    assert found is not None
    assert found.parameters_b == 1.5


def test_the_shipped_table_is_read_as_a_users_file(tmp_path: Path) -> None:
    """The columns in the words of the field are understood, with or without the key of a source."""
    import qsim.evidence.table as table

    lines = (table.HERE / "published.csv").read_text(encoding="utf-8").splitlines()[:3]
    path = written(tmp_path, *lines[1:], head=lines[0])
    rows = read_rows(path)
    assert [(r.model, r.value, r.precision) for r in rows] == [(r.model, r.value, r.precision) for r in published()[:2]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("m,awq,w4a16-g128,wikitext2_ppl,10.5,", "must have a baseline_value"),
        ("m,awq,w4a16-g128,perplexity_of_mine,10.5,10", "unknown metric 'perplexity_of_mine'"),
        ("m,awq,w4a16-g128,wikitext2_ppl,ten,10", "value must be a finite number: got 'ten'"),
        ("m,awq,w4a16-g128,wikitext2_ppl,nan,10", "value must be a finite number"),
        ("m,awq,w4a16-g128,wikitext2_ppl,-3,10", "a perplexity must be positive"),
        ("m,awq,w4a16-g128,mmlu_acc,50,0", "baseline_value of a score must be positive"),
        ("m,awq,w4a16-g12x,wikitext2_ppl,10.5,10", "unknown scheme"),
        (",awq,w4a16-g128,wikitext2_ppl,10.5,10", "model must not be empty"),
        ("m,,w4a16-g128,wikitext2_ppl,10.5,10", "method must not be empty"),
    ],
)
def test_a_row_that_cannot_be_compared_is_refused_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = written(tmp_path, GOOD, line)
    with pytest.raises(QsimError, match="line 3: ") as refusal:
        read_rows(path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("missing", ["model", "method", "metric", "value", "baseline_value", "scheme"])
def test_a_file_without_a_column_is_refused(tmp_path: Path, missing: str) -> None:
    head = ",".join(c for c in HEAD.split(",") if c != missing)
    with pytest.raises(QsimError, match=missing):
        read_rows(written(tmp_path, head=head))


def test_a_model_that_no_row_is_about_is_refused_with_what_to_do() -> None:
    with pytest.raises(QsimError, match="measure it with"):
        find("gpt-17-900b")
    with pytest.raises(QsimError, match="unknown method of the evidence 'awk': the nearest"):
        find("llama-3-8b", "awk")


def run(*args: str) -> str:
    result = CliRunner().invoke(main, ["evidence", *args], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_the_command_prints_rows_with_their_sources_in_three_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    asked = ("llama-3-8b", "--method", "awq", "--bits", "4")
    assert "llm-compressor examples/imatrix/README.md" in run(*asked)
    rows = json.loads(run(*asked, "--json"))
    assert {r["method"] for r in rows} == {"awq"}
    assert all(r["reference"] and r["baseline"] is not None for r in rows)
    assert [r["reference"] for r in csv.DictReader(run(*asked, "--csv").splitlines())] == [r["reference"] for r in rows]
    assert "what it loses is unknown: measure it with" in run("llama-3-8b", "--method", "awq", "--bits", "2")
    assert {r["model"] for r in json.loads(run("--json"))} == {r.model for r in shipped()}


def test_the_command_joins_a_users_rows(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    (row,) = json.loads(run("my-model-1b", "--rows", str(path), "--json"))
    assert row["value"] == 10.5
