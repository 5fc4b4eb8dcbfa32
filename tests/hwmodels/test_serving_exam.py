"""Measured serving points: how they are read, that predictions are near those that no fit has seen, and the fit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import click.testing
import numpy as np
import pytest

from hwmodels.fitting.serving import band, constants_toml, fit_all, scorable
from hwmodels.serving import Constants, constants_for, get_policy
from hwmodels.serving.constants import generation_of, read_constants, shipped
from hwmodels.serving.points import Point, Tables, is_dense, read_points, score
from hwmodels.validation.serving import Exam, device_order, exam_rows, examine, line
from qsim.cli import main
from qsim.errors import QsimError


@lru_cache(maxsize=1)
def few() -> tuple[Point, ...]:
    """A dozen dense points of each engine, device and model in the sample."""
    seen: dict[tuple[str, ...], int] = {}
    found = []
    for p in scorable(read_points()):
        if p.concurrency <= 64 and is_dense(p):
            seen[p.block] = seen.get(p.block, 0) + 1
            found += [p] if seen[p.block] <= 12 else []
    return tuple(found)


@lru_cache(maxsize=1)
def examined() -> Exam:
    return examine(few())


def test_the_sample_holds_every_dense_block_and_its_traps_are_left_out() -> None:
    points = read_points()
    assert len(points) > 600
    assert {p.block for p in few()} == {
        ("llama-3-70b", "H200", "trtllm"), ("llama-3-70b", "H200", "vllm"), ("llama-3-8b", "H200", "sglang"),
        ("qwen3-32b", "H100-SXM", "sglang"), ("qwen3-32b", "H100-SXM", "trtllm"), ("qwen3-32b", "H100-SXM", "vllm"),
    }  # fmt: skip
    trapped = [p for p in points if p.text("traps") == "prefix_cache"]
    assert trapped
    assert examine(trapped).left_out == {"prefix_cache": len(trapped)}
    one_wave = next(p for p in points if p.text("traps") == "one_wave")
    assert one_wave.workload().count == one_wave.concurrency
    assert not one_wave.trap


def test_drawn_lengths_and_recipes_are_those_of_the_benchmark() -> None:
    known = next(p for p in few() if p.known)
    workload = known.workload()
    assert workload.mean_prompt == known.number("mean_prompt_tokens")
    assert workload.longest <= 1.05 * (known.number("prompt_tokens") + known.number("output_tokens"))
    for p in few():
        policy = p.policy()
        held = p.text("engine") == "trtllm" and p.known and p.number("output_tokens") == 1024
        held = held and p.number("prompt_tokens") == 1024 and p.number("tp") < 8
        assert policy.batch_wait_steps == (20 if held else 0)
        assert policy.overlap == (p.known or p.text("engine") == "sglang")


def test_predictions_are_near_the_measured_points() -> None:
    """The required figures, on the sample: median and 90th percentile of |error|, and the share in the band."""
    scored = examined().scored
    assert len(scored) == len(few())
    every = line("all", scored)
    assert every.tpot < 0.08
    assert every.tpot_p90 < 0.25
    assert line("known", [s for s in scored if s.point.known]).ttft < 0.20
    assert line("rest", [s for s in scored if not s.point.known]).ttft < 0.35
    for device in ("H100-SXM", "H200"):
        mine = line(device, [s for s in scored if s.point.text("device") == device])
        assert mine.tpot_held > 0.75
        assert mine.ttft_held > 0.75


def mixture(**changes: str) -> Point:
    """A point of a mixture of experts, with some columns changed."""
    row = next(p for p in read_points() if p.text("model") == "deepseek-v3" and p.known and not p.trap).row
    return Point(row={**row, "mode": "agg", "tp": "8", "attention_dp": "1", "moe_tp": "8", "moe_ep": "1", "kv": "",
                      "max_batched_tokens": "", "prompt_tokens": "1024", "output_tokens": "1024",
                      **changes}, line=1)  # fmt: skip


def test_public_recipes_say_budget_cache_drafts_and_what_a_checkpoint_quantises() -> None:
    drafted = mixture(engine="trtllm", engine_version="1.2.0rc6.post3", weights="fp8_block")
    assert drafted.speculation == "drafted"
    assert drafted.policy().speculation.drafts == 3  # type: ignore[union-attr]
    assert drafted.scheme == "fp8-block128-kvfp8"
    assert drafted.drafting == "speculative, 3 drafts, acceptance 0.7"
    plain = mixture(engine="trtllm", engine_version="1.2.0rc6.post2", weights="nvfp4")
    assert plain.speculation == "none"
    assert plain.policy().speculation is None
    assert (plain.quantized, plain.scheme) == ("mlp", "nvfp4-kvfp8")
    small = mixture(model="minimax-m2.5", engine="vllm", engine_version="0.19.0", weights="fp8_block")
    assert small.policy().token_budget == 2048
    assert small.scheme.endswith("kvfp8")
    kimi = mixture(model="kimi-k2.5", engine="vllm", engine_version="0.15.1", weights="int4_wo")
    assert (kimi.quantized, kimi.scheme) == ("experts", "w4a16-g32-sym")
    other = mixture(source="aic-gap", engine="trtllm", engine_version="1.2.0rc6.post3")
    assert other.speculation == "unknown", "somebody else's run of that version need not have followed the recipe"
    assert other.recipe is None


def test_a_version_that_may_have_drafted_has_a_band_down_to_twice_the_speed() -> None:
    told, untold = (
        score(mixture(engine="trtllm", engine_version=v, weights="fp8_block", concurrency="4", engine_concurrency="4"),
              Tables())
        for v in ("1.2.0rc6.post2", "1.1.0rc2.post2")
    )  # fmt: skip
    assert untold.constants.tpot[0] == pytest.approx(told.constants.tpot[0] / 2)
    assert untold.constants.tpot[1] == told.constants.tpot[1]


def test_mixtures_of_experts_are_near_the_measured_points() -> None:
    """The required 15 % on TPOT, and bands, on a sample of those that say whether they drafted."""
    points = [p for p in scorable(read_points()) if not is_dense(p)][::5]
    exam = examine(points)
    every = line("all", exam.scored)
    assert every.count > 40
    assert every.tpot < 0.15
    assert every.tpot_held > 0.75
    assert every.ttft_held > 0.7


def test_the_exam_is_a_table_by_what_points_share() -> None:
    rows = exam_rows(examined())
    assert {r["section"] for r in rows} == {"Serving, dense"}
    groups = {r["group"]: r for r in rows}
    assert {"all", "H200", "vllm", "fp8", "tensor parallel 8", "concurrency up to 8", "protocol known"} <= set(groups)
    assert groups["all"]["rows"] == groups["H200"]["rows"] + groups["H100-SXM"]["rows"] == len(few())
    assert "No point was left out" in " ".join(examined().remarks)


def test_the_order_of_devices_is_counted_at_equal_workload() -> None:
    scored = examined().scored[0]
    other = replace(scored, point=replace(scored.point, row={**scored.point.row, "device": "B200", "tpot_s": "1e-9"}))
    assert device_order([scored, replace(other, tpot_s=scored.tpot_s / 2)]) == (1.0, 1)
    assert device_order([scored, replace(other, tpot_s=scored.tpot_s * 2)]) == (-1.0, 1)
    assert np.isnan(device_order([scored])[0])


def test_constants_are_fitted_back_from_points_that_they_made(tmp_path: Path) -> None:
    """Points that the model itself made with known constants: the fit finds their effect again."""
    from hwmodels.fitting.serving import fit_constants, pooled

    points, tables = [p for p in few() if p.text("engine") == "vllm" and not p.known][:10], Tables()
    truth = Constants(engine="vllm-sync", step_s=1e-3, row_s=2e-5, prompt_step_s=3e-3, request_s=0.03, token_s=2e-6)
    made = [
        replace(p, row={**p.row, "tpot_s": str(s.tpot_s), "ttft_s": str(s.ttft_s)})
        for p in points for s in [score(p, tables, (truth,))]
    ]  # fmt: skip
    found = fit_constants(made, tables, pooled({}, "vllm-sync"))
    for p in made:
        s = score(p, tables, (found,))
        assert abs(s.tpot_ratio - 1) < 0.03
        assert abs(s.ttft_ratio - 1) < 0.15


def test_the_shipped_constants_name_what_stands_behind_them() -> None:
    for c in shipped():
        assert c.rows > 50
        assert "left out" in c.source
        assert 0.7 < c.tpot[0] < 1 < c.tpot[1] < 1.5
    assert constants_for(get_policy("vllm"), "hopper").engine == "vllm"
    assert constants_for(replace(get_policy("vllm"), overlap=False), "hopper").engine == "vllm-sync"
    unknown = constants_for(replace(get_policy("vllm"), name="mine"), "hopper")
    assert unknown.tpot[1] > 1.5
    assert generation_of("h200") == "hopper"
    assert generation_of("gb300") == "blackwell"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"must hold \[\[engines\]\]"),
        ('[[engines]]\nengine = "v"\ntpot = [1.2, 1.3]\nttft = [0.5, 2]\n', "tpot must be two factors"),
        ('[[engines]]\nengine = "v"\nstep_s = -1\ntpot = [0.9, 1.3]\nttft = [0.5, 2]\n', "step_s"),
    ],
)
def test_a_bad_file_of_constants_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(QsimError, match=message):
        read_constants(tmp_path / "c.toml")


def write_csv(path: Path, points: list[Point]) -> None:
    names = list(points[0].row)
    path.write_text("\n".join([",".join(names), *(",".join(p.row[n] for n in names) for p in points)]) + "\n")


def run(*args: str, code: int = 0) -> str:
    result = click.testing.CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "150"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_a_users_own_points_are_fitted_and_compared(tmp_path: Path) -> None:
    points = [p for p in few() if p.text("engine") == "vllm" and p.concurrency <= 16][:9]
    write_csv(tmp_path / "rows.csv", points)
    fits = fit_all([p for p in points if p.known] * 2)
    (tmp_path / "c.toml").write_text(constants_toml(fits, "rows"))
    (back,) = read_constants(tmp_path / "c.toml")
    assert back.engine == "vllm"
    np.testing.assert_allclose(back.row_s, fits["vllm"].constants.row_s, rtol=1e-3)
    low, high = band(fits["vllm"].unseen, "tpot")
    assert low < 1 < high
    rows = json.loads(run("validate", "--serving", str(tmp_path / "rows.csv"), "--json"))
    assert rows[0]["rows"] == len(points)
    assert "TPOT error" in run("validate", "--serving", str(tmp_path / "rows.csv"))
    (tmp_path / "bad.csv").write_text("device,model\nH200,llama-3-8b\n")
    assert "need the column engine" in run("validate", "--serving", str(tmp_path / "bad.csv"), code=2)
    write_csv(tmp_path / "few.csv", points[:2])
    assert "need at least 8 points" in run("calibrate", "--serving", str(tmp_path / "few.csv"), code=2)
