"""Outliers of a model, what follows from them, and the published profiles that the embedded model can be given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import QsimError
from qsim.evidence.outliers import KINDS, WAYS, LayerOutliers, outlier_rows, verdicts
from qsim.methods.outliers import OutlierReport, channel_ratio, measure_outliers, row_range
from qsim.methods.passes import for_many_tokens
from qsim.models import Model, evaluate, list_profiles, load, tiny_text, with_profile, with_scheme
from tests.models.small import CONFIGS, random_model, write_folder

BYTES = 2048


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load("tiny")


@pytest.fixture(scope="module")
def profiles(tiny: Model) -> dict[str, Model]:
    return {name: with_profile(tiny, name) for name in list_profiles()}


@pytest.fixture(scope="module")
def reports(profiles: dict[str, Model], tiny: Model) -> dict[str, OutlierReport]:
    return {name: measure_outliers(model, windows=1) for name, model in {"": tiny, **profiles}.items()}


def loss(model: Model, scheme: str, reference: Model) -> tuple[float, float]:
    rounded = for_many_tokens(with_scheme(model, scheme))  # no kernel of the scheme has to be compiled
    found = evaluate(rounded, tiny_text("test"), max_bytes=BYTES, reference=reference)
    assert found.bits_per_byte_delta is not None
    assert found.bits_per_byte_delta_se is not None
    return found.bits_per_byte_delta, found.bits_per_byte_delta_se


@pytest.mark.parametrize("name", list_profiles())
def test_a_profile_computes_what_the_model_computes(name: str, profiles: dict[str, Model], tiny: Model) -> None:
    found = evaluate(profiles[name], tiny_text("test"), max_bytes=1024, reference=tiny)
    assert abs(found.bits_per_byte_delta or 0.0) < 1e-5  # float32 sums in another order
    assert found.top1_agreement == 1.0
    assert name in profiles[name].name
    assert profiles[name].notes[-1].startswith(f"synthetic outliers, {name}")


def test_opt_like_channels_break_int8_per_token_but_neither_smoothing_nor_fp8(
    profiles: dict[str, Model], tiny: Model, reports: dict[str, OutlierReport]
) -> None:
    model, report = profiles["opt-13b-like"], reports["opt-13b-like"]
    lost, se = loss(model, "w8a8-channel-token", tiny)
    assert lost > 0.1 + 2 * se  # a tenth of what the model knows, and more
    kept, se = loss(model, "fp8-rowwise", tiny)
    assert abs(kept) < 0.005 + 4 * se
    assert {w: report.verdict(w).answer for w in ("w8a8-per-tensor", "w8a8-per-token", "w8a8-smoothed", "fp8")} == {
        "w8a8-per-tensor": "breaks", "w8a8-per-token": "breaks", "w8a8-smoothed": "keeps", "fp8": "keeps",
    }  # fmt: skip
    verdict = report.verdict("w8a8-per-token")
    assert verdict.cause == "channels"
    assert any("OPT-13B" in line and "33.0" in line and "arXiv:2211.10438" in line for line in verdict.evidence)


def test_smoothing_restores_int8_on_opt_like_channels(profiles: dict[str, Model], tiny: Model) -> None:
    from qsim.methods import quantize_model

    text = tiny_text("calibration")[:4096]
    result = quantize_model(profiles["opt-13b-like"], "smoothquant", "w8a8-channel-token", text)
    told = {v["way"]: v for v in result.to_dict()["outliers"]}  # the record of the run says why it was needed
    assert (told["w8a8-per-token"]["answer"], told["w8a8-per-token"]["cause"]) == ("breaks", "channels")
    assert all(r.row_range is not None and r.input_channel_ratio is not None for r in result.layers)
    found = evaluate(for_many_tokens(result.model), tiny_text("test"), max_bytes=BYTES, reference=tiny)
    assert abs(found.bits_per_byte_delta or 0.0) < 0.005 + 4 * (found.bits_per_byte_delta_se or 0.0)


def test_llama_3_like_weights_break_int8_per_channel_and_not_fp8(
    profiles: dict[str, Model], tiny: Model, reports: dict[str, OutlierReport]
) -> None:
    model, report = profiles["llama-3-70b-like"], reports["llama-3-70b-like"]
    lost, se = loss(model, "w8a8-channel-token", tiny)
    assert lost > 0.1 + 2 * se
    kept, se = loss(model, "fp8-rowwise", tiny)
    assert abs(kept) < 0.005 + 4 * se
    verdict = report.verdict("w8a8-per-token")
    assert (verdict.answer, verdict.cause, report.verdict("fp8").answer) == ("breaks", "weights", "keeps")
    assert ".layers.0." in verdict.layer or ".layers.1." in verdict.layer
    assert any("arXiv:2408.15301" in line and "45.5 against 74.1" in line for line in verdict.evidence)
    kinds = {row["kind"]: row for row in report.kinds()}
    assert kinds["qkv"]["row_range"] > 100 > 10 > kinds["o"]["row_range"]
    assert kinds["qkv"]["channel_ratio"] < 10  # the activations have none


def test_a_massive_start_token_breaks_one_scale_for_all_tokens_only(reports: dict[str, OutlierReport]) -> None:
    report = reports["llama-2-7b-like"]
    verdict = report.verdict("w8a8-per-tensor")
    assert (verdict.answer, verdict.cause) == ("breaks", "tokens")
    assert report.verdict("w8a8-per-token").answer == "keeps"
    worst = next(one for one in report.layers if one.layer == verdict.layer)
    assert worst.kind == "down"
    assert (worst.peak_token, worst.peak_position) == (0, 0)  # the NUL that starts a document
    assert (worst.peak_ratio or 0) > 5000


def test_the_embedded_model_as_it_is_keeps_eight_bits(reports: dict[str, OutlierReport]) -> None:
    answers = {v.way: v.answer for v in reports[""].verdicts}
    assert list(answers) == [way.name for way in WAYS]
    assert all(answers[w] == "keeps" for w in ("w8a8-per-token", "w8a8-smoothed", "fp8", "mxfp8"))
    assert answers["mxfp4"] == "loses"  # as published: 1.6 to 16 % of a score
    assert all(v.evidence for v in reports[""].verdicts if v.way not in ("mxfp8", "w8a8-per-tensor"))


def test_blocks_read_one_at_a_time_give_the_same_report(reports: dict[str, OutlierReport]) -> None:
    said = []
    streamed = measure_outliers("tiny", windows=1, announce=said.append)
    assert said[0].streams
    assert said[0].memory_bytes < 4 * load("tiny").nbytes
    assert streamed.to_dict() == reports[""].to_dict()


@pytest.mark.parametrize("kind", ["llama-biases", "opt", "gemma3", "mixtral", "gpt-neox", "phi3"])
def test_every_family_streams_as_it_is_whole(kind: str, tmp_path: Path) -> None:
    model = random_model(kind)
    folder = tmp_path / "m"
    write_folder(folder, CONFIGS[kind], dict(model.tensors))
    ids = np.random.default_rng(0).integers(0, 96, (2, 40))
    whole, streamed = (measure_outliers(m, ids) for m in (model, folder))
    assert [one.layer for one in whole.layers] == [one.layer for one in streamed.layers]
    for one, two in zip(whole.layers, streamed.layers, strict=True):
        assert one.channel_ratio == pytest.approx(two.channel_ratio, rel=1e-4)
        assert one.row_range == pytest.approx(two.row_range)
        assert one.kind in KINDS
    names = [n for one in whole.layers if one.block is not None for n in [one.layer]]
    assert len(names) == len(set(names))


def test_ratios_are_those_of_their_definitions() -> None:
    assert channel_ratio(np.array([0, 1, 2, 3, 200], np.float32)) == 80.0  # a channel of zeros does not count
    w = np.ones((3, 64), np.float32)
    w[:, 5], w[2] = -32.0, 0.0
    assert row_range(w) == (32.0, 32.0)


def test_records_without_measured_products_are_judged_by_their_ratios() -> None:
    plain = LayerOutliers(layer="a", kind="qkv", block=0, channel_ratio=5.0, row_range=5.0)
    opt = LayerOutliers(layer="b", kind="qkv", block=1, channel_ratio=120.0, row_range=5.0)
    wall = LayerOutliers(layer="c", kind="qkv", block=0, channel_ratio=3.0, row_range=300.0)
    assert {v.answer for v in verdicts([plain])} == {"keeps"}
    assert [(v.way, v.answer, v.cause, v.layer) for v in verdicts([plain, opt])] == [
        ("w8a8-per-tensor", "breaks", "channels", "b"), ("w8a8-per-token", "breaks", "channels", "b"),
    ]  # fmt: skip
    assert [(v.answer, v.cause, v.layer) for v in verdicts([plain, wall])] == [("breaks", "weights", "c")] * 2
    assert verdicts([LayerOutliers(layer="h", kind="lm_head", block=None, channel_ratio=500.0)]) == ()


def test_every_published_row_has_a_source_and_a_grade() -> None:
    rows = outlier_rows()
    assert len(rows) > 100
    assert {row.grade for row in rows} == {"A", "B"}
    assert all(row.source and row.value for row in rows)
    smoothing = {row.model for row in rows if row.statistic == "smoothquant_alpha"}
    assert {"Llama-2-7B", "Mixtral-8x7B"} <= smoothing


def test_unknown_profiles_and_models_that_cannot_have_one_are_refused(tiny: Model) -> None:
    with pytest.raises(QsimError, match="opt-13b-like"):
        with_profile(tiny, "opt-13b")
    with pytest.raises(QsimError, match="needs a tokenizer"):
        with_profile(random_model(), "llama-2-7b-like")
    with pytest.raises(QsimError, match="separate gate and up"):
        with_profile(random_model("opt"), "llama-2-7b-like")
    with pytest.raises(QsimError, match="quantised"):
        with_profile(with_scheme(tiny, "w8a16-channel"), "llama-3-70b-like")


def test_the_command_says_what_it_takes_first_and_prints_table_json_and_figure(tmp_path: Path) -> None:
    def run(*more: str) -> object:
        return CliRunner().invoke(main, ["outliers", "--windows", "1", "--window", "64", *more], prog_name="qsim")

    figure = tmp_path / "o.svg"
    table = run("--outliers", "opt-13b-like", "--plot", str(figure))
    assert table.exit_code == 0, table.stderr
    assert "of memory" in table.stderr.splitlines()[0]
    assert "W8A8, activations per token" in table.stdout
    assert "published: OPT-13B" in table.stdout
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    data = json.loads(run("--json").stdout)
    assert {"model", "tokens", "verdicts", "kinds", "layers", "notes"} <= set(data)
    assert {row["kind"] for row in data["kinds"]} == {"qkv", "o", "gate/up", "down", "lm_head"}
    refused = run("--outliers", "opt-14b-like")
    assert refused.exit_code == 2
    assert "opt-13b-like" in refused.stderr
