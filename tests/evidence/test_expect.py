"""The loss to expect of a method on a model: what it stands on, how far it is off, and when it is no number."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import QsimError
from qsim.evidence import KnownModel, Row, expected_loss, known_models, published, read_rows
from qsim.evidence.holdout import HeldOut, by_basis, coverage
from qsim.evidence.law import FEATURES, law_file, laws, tuning
from qsim.evidence.observations import SCALES, SCORE, TOKEN, Scale, observations
from qsim.evidence.served import SERVED, served_title

TABLE = published()


def without(*models: str) -> tuple[Row, ...]:
    return tuple(r for r in TABLE if r.model not in models)


# --- what it stands on ---------------------------------------------------------------------------------------------


def test_the_basis_goes_down_as_evidence_is_taken_away_and_the_band_grows() -> None:
    asked = ("llama-2-7b", "awq", "w4a16-g128")
    own = expected_loss(*asked)
    near = expected_loss(*asked, rows=without("llama-2-7b"))
    law = expected_loss(*asked, rows=[r for r in TABLE if known_models()[r.model].generation != "llama-2"])
    nothing = expected_loss(*asked, rows=())
    assert [e.basis for e in (own, near, law, nothing)] == ["published", "near", "law", "unknown"]
    assert all(r.model == "llama-2-7b" for r in own.rows)
    assert "llama-2-7b" not in {r.model for r in (*near.rows, *law.rows)}
    assert own.value == pytest.approx(math.log(5.60 / 5.47), abs=0.003)
    widths = [math.log(e.high / e.low) for e in (own, near, law)]  # type: ignore[operator]
    assert widths == sorted(widths)
    assert all(e.low < 0.0235 < e.high for e in (own, near, law))  # type: ignore[operator]


def test_removing_the_evidence_leaves_no_number() -> None:
    for served in SERVED[1:]:
        found = expected_loss("llama-3-8b", served.method, served.scheme, rows=())
        assert (found.value, found.low, found.lost, found.points, found.basis) == (None, None, None, None, "unknown")
        assert "measure it with" in found.note
        assert found.rows == ()


def test_a_model_that_nothing_is_known_of_gives_no_number() -> None:
    found = expected_loss("gpt-17-900b", "awq", "w4a16-g128")
    assert (found.basis, found.value) == ("unknown", None)
    assert found.note == "nothing is known of gpt-17-900b: measure it with qsim study --model FOLDER"
    said = KnownModel(name="gpt-17-900b", family="gpt", generation="gpt-17", parameters_b=900, training_tokens_t=40)
    assert expected_loss(said, "awq", "w4a16-g128").basis == "law"


@pytest.mark.parametrize(
    ("method", "scheme"),
    [("gptq", "w2a16-g64"), ("gptq", "w2a16-g32"), ("rtn", "w5a16-g128"), ("nobody", "w4a16-g128"),
     ("rtn", "nvfp4-weight-only")],
)  # fmt: skip
def test_a_law_is_not_asked_beyond_what_it_saw(method: str, scheme: str) -> None:
    assert expected_loss("qwen2.5-7b", method, scheme).basis == "unknown"


def test_a_type_of_gguf_has_the_published_losses_of_its_files() -> None:
    found = expected_loss("llama-3-8b", "rtn", "q6_k")
    assert found.basis == "published"
    assert found.metric == "token perplexity, windows of 512"
    assert 0 < found.value < expected_loss("llama-3-8b", "gguf", "q4_k").value  # type: ignore[operator]


def test_sixteen_bit_loses_nothing() -> None:
    found = expected_loss("any-model", "none", "bf16")
    assert (found.value, found.low, found.high, found.basis, found.collapse) == (0.0, 0.0, 0.0, "exact", 0.0)


def test_a_scheme_that_does_not_exist_is_refused() -> None:
    with pytest.raises(QsimError, match="unknown scheme"):
        expected_loss("llama-3-8b", "awq", "w4a16-g12x")


def test_a_users_row_is_evidence_and_one_measured_here_goes_before_all_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    head = "model,method,scheme,metric,value,baseline_value,note"
    row = "llama-3-8b,awq,w4a16-g128,wikitext2_ppl,6.60,6.14"
    path.write_text(f"{head}\n{row},mine\n", encoding="utf-8")
    published_here = expected_loss("llama-3-8b", "awq", "w4a16-g128", rows=TABLE + read_rows(path))
    assert published_here.basis == "published"
    path.write_text(f"{head}\n{row},[M] qsim eval\n", encoding="utf-8")
    measured = expected_loss("llama-3-8b", "awq", "w4a16-g128", rows=TABLE + read_rows(path))
    assert measured.basis == "measured"
    assert measured.value == pytest.approx(math.log(6.60 / 6.14))


# --- kinds of loss -------------------------------------------------------------------------------------------------


def test_perplexity_per_word_is_named_and_never_averaged_with_perplexity_per_token() -> None:
    fp8 = expected_loss("llama-3-8b", "fp8", "fp8-rowwise")
    assert fp8.metric == "word perplexity"
    assert "1.1 to 1.3 times" in fp8.note
    for scale in SCALES:
        for seen in observations(TABLE, scale):
            assert (seen.row.metric.kind == "word perplexity") == (scale.name == "word")


def test_a_row_of_a_word_level_metric_does_not_move_a_loss_per_token() -> None:
    before = expected_loss("llama-2-7b", "gptq", "w4a16-g128")
    like = next(r for r in before.rows if r.metric.name == "wikitext2_ppl")
    word = next(r.metric for r in TABLE if r.metric.kind == "word perplexity")
    strange = replace(like, metric=word, value=9.0, baseline=5.0, context="", source="mine")
    after = expected_loss("llama-2-7b", "gptq", "w4a16-g128", rows=(*TABLE, strange))
    assert (after.value, after.low, after.high) == pytest.approx((before.value, before.low, before.high))


def test_points_of_a_score_stand_beside_the_perplexity_where_they_are_known() -> None:
    found = expected_loss("llama-2-7b", "rtn", "w4a16-g128")
    assert found.points_low < found.points < 0  # type: ignore[operator]
    assert found.points_low < found.points < found.points_high  # type: ignore[operator]
    scores_only = expected_loss("qwen3-8b", "awq", "w4a16-g128")
    assert scores_only.metric == "score"
    assert "no perplexity is published" in scores_only.note


def test_a_quantised_cache_adds_its_loss_to_that_of_the_weights() -> None:
    alone = expected_loss("llama-3-8b", "awq", "w4a16-g128")
    both = expected_loss("llama-3-8b", "awq", "w4a16-g128", kv="fp8")
    same = expected_loss("llama-3-8b", "awq", "w4a16-g128-kvfp8")
    assert both.value == same.value
    assert both.value > alone.value  # type: ignore[operator]
    assert both.high - both.low > alone.high - alone.low  # type: ignore[operator]
    assert "long contexts" in both.note
    assert expected_loss("llama-3-8b", "none", "bf16", kv="int4").basis in ("near", "law")


# --- collapse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["opt-6.7b", "opt-13b", "opt-175b", "llama-3-70b"])
def test_unsmoothed_int8_destroys_what_was_published_as_destroyed_and_has_no_mean_there(model: str) -> None:
    found = expected_loss(model, "rtn", "w8a8-channel-token")
    assert found.collapse > 0.5  # type: ignore[operator]
    assert found.fragile
    assert found.value is None
    assert "most likely destroyed" in found.note
    assert all(r.collapsed for r in found.rows)


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b", "llama-3.1-8b"])
def test_the_same_method_has_a_loss_where_it_was_published_as_harmless(model: str) -> None:
    found = expected_loss(model, "rtn", "w8a8-channel-token")
    assert found.collapse < 0.1  # type: ignore[operator]
    assert 0.005 < found.value < 0.03  # type: ignore[operator]


def test_a_method_that_destroyed_a_model_of_the_class_is_fragile_on_the_others() -> None:
    assert expected_loss("llama-3-8b", "rtn", "w8a8-channel-token").fragile
    assert not expected_loss("llama-3-8b", "smoothquant", "w8a8-channel-token").fragile
    assert not expected_loss("llama-3-70b", "awq", "w4a16-g128").fragile
    assert expected_loss("llama-3-70b", "rtn", "w4a16-channel-sym").fragile
    assert not expected_loss("llama-3-8b", "fp8", "fp8-rowwise").fragile


def test_a_collapse_of_a_model_left_out_is_foreseen_from_its_generation() -> None:
    for model in ("opt-13b", "opt-30b", "opt-66b"):
        seen = expected_loss(model, "rtn", "w8a8-channel-token", rows=without(model))
        assert seen.collapse > 0.5  # type: ignore[operator]
    assert expected_loss("llama-3-70b", "rtn", "w8a8-channel-token", rows=without("llama-3-70b")).collapse < 0.5  # type: ignore[operator]


# --- how far it is off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale", [TOKEN, pytest.param(SCORE, marks=pytest.mark.exhaustive)], ids=lambda s: s.name
)  # fmt: skip
def test_bands_hold_eight_of_ten_losses_that_were_left_out(scale: Scale) -> None:
    tuned = tuning(scale)
    found = by_basis(scale, observations(TABLE, scale), tuned.variances)
    for basis, held in found.items():
        low, high = tuned.bands[basis]
        inside = sum(low <= h.error <= high for h in held) / len(held)
        assert 0.75 <= inside <= 0.85, basis
        assert 0.75 <= coverage(held) <= 0.85, basis
    assert _factor(found["near"]) < 2.4
    assert _factor(found["law"]) < 2.4


def _factor(held: list[HeldOut]) -> float:
    large = [h for h in held if h.seen.loss > 0.009]
    return math.exp(math.sqrt(sum((h.y - h.expected) ** 2 for h in large) / len(large)))


def test_the_band_of_a_whole_model_left_out_holds_its_published_losses() -> None:
    """Through the public function, as a user would ask."""
    inside = total = 0
    for model in ("llama-2-13b", "llama-7b", "opt-6.7b", "llama-3-8b", "bloom-7.1b", "mistral-7b"):
        rows = without(model)
        for seen in observations([r for r in TABLE if r.model == model], TOKEN):
            if seen.row.precision.kv != "none":
                continue
            found = expected_loss(model, seen.row.method, seen.row.precision, rows=rows)
            if found.basis in ("near", "law") and found.metric == "token perplexity":
                total += 1
                inside += found.low <= seen.loss <= found.high  # type: ignore[operator]
    assert total > 40
    assert 0.65 <= inside / total <= 0.95


def test_the_shipped_law_is_the_fit_of_the_shipped_rows() -> None:
    assert law_file()["rows"] == len(TABLE)
    found = laws(TABLE)
    for scale in (TOKEN, SCORE):
        table = law_file()[scale.name]
        assert table["observations"] == len(observations(TABLE, scale))
        coefficients = found[scale.name].coefficients
        assert {n: pytest.approx(coefficients[n], abs=1e-3) for n in FEATURES} == table["coefficients"]


def test_fewer_bits_no_groups_less_data_and_more_training_tokens_lose_more() -> None:
    found = laws(TABLE)["token"].coefficients
    assert found["bits below 4"] > 1
    assert found["one scale per row"] > 0.5
    assert found["ln(training tokens / 2 T)"] > 0
    assert found["ln(parameters / 8 B)"] < 0
    assert found["awq"] < 0
    assert found["gptq"] < 0


def test_every_model_and_served_checkpoint_has_an_answer_in_order() -> None:
    for model in list(known_models())[::5]:
        for served in SERVED:
            found = expected_loss(model, served.method, served.scheme)
            if found.value is not None:
                assert found.low <= found.value <= found.high  # type: ignore[operator]
                assert found.lost_low <= found.lost <= found.lost_high  # type: ignore[operator]
                assert found.basis != "unknown"
            else:
                assert found.note


# --- names and command ---------------------------------------------------------------------------------------------


def test_a_checkpoint_has_the_name_that_an_engine_serves_it_by() -> None:
    assert served_title("awq", "w4a16-g128") == "AWQ INT4 g128"
    assert served_title("awq", "w4a16-g128-sym") == "AWQ INT4 g128"
    assert served_title("fp8", "fp8-rowwise-kvfp8") == "FP8 dynamic + FP8 KV"
    assert served_title("none", "bf16-kvfp8") == "BF16 + FP8 KV"
    assert served_title("rtn", "w8a8-channel-token") is None
    assert served_title("rtn", "w3a16-g128") is None


def test_the_command_prints_what_to_expect() -> None:
    def run(*args: str) -> str:
        return CliRunner().invoke(main, ["evidence", *args], catch_exceptions=False, standalone_mode=False).output

    rows = json.loads(run("llama-3-8b", "--expect", "--json"))
    assert [r["title"] for r in rows] == [s.title for s in SERVED]
    (one,) = json.loads(run("qwen3-8b", "--expect", "--method", "awq", "--scheme", "w4a16-g128", "--json"))
    assert one["basis"] == "published"
    assert one["sources"]
    with pytest.raises(QsimError, match="--expect must have a MODEL"):
        run("--expect")
