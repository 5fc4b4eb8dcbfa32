"""The rule of the decision table, on rows made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qsim.evidence.served import served_title
from qsim.study import Case, Speed, StudySpec
from qsim.study.decide import decisions
from qsim.study.method import Method
from qsim.study.rows import DecisionRow, ExpectedRow, SpeedRow
from qsim.study.spec import DeviceSpec

NAMES = {"none:bf16": "bf16", "gptq:w4a16-g128": "w4a16-g128", "awq:w4a16-g128": "w4a16-g128",
         "rtn:w4a16-g128": "w4a16-g128", "fp8:fp8-rowwise": "fp8-rowwise",
         "fp8:fp8-rowwise-kvfp8": "fp8-rowwise-kvfp8", "rtn:w8a8-channel-token": "w8a8-channel-token",
         "smoothquant:w8a8-channel-token": "w8a8-channel-token", "rtn:nvfp4": "nvfp4"}  # fmt: skip
SPEC = StudySpec(
    methods=tuple(Method(algorithm=n.split(":")[0], scheme=s) for n, s in NAMES.items()),
    cases=(Case(name="chat"),), speed=Speed(models=("llama-3-8b",), devices=(DeviceSpec(name="h100-sxm"),)),
)  # fmt: skip
BASE: dict[str, Any] = {
    "model": "llama-3-8b", "device": "h100-sxm", "executed": "full", "case": "chat", "phase": "decode", "batch": 1,
    "context": 2048, "devices": 1, "measure": "tpot", "tokens_per_s": 1.0, "fits": True, "bound": "memory", "mbu": 0.5,
    "mfu": 0.1, "kernel": "k", "fidelity": "calibrated", "weights_gbytes": 16.0, "kv_cache_gbytes": 0.1,
    "total_gbytes": 17.0, "capacity_gbytes": 80.0, "joule_per_token": None,
    "joule_per_token_low": None, "joule_per_token_high": None, "cost_per_million_tokens": None, "notes": "",
}  # fmt: skip


def speed(scheme: str, value: float, spread: float = 0.02, **more: Any) -> SpeedRow:
    low, high = value * (1 - spread), value * (1 + spread)
    return SpeedRow(scheme=scheme, value=value, low=low, high=high, time_s=value, low_s=low, high_s=high,
                    **{**BASE, **more})  # fmt: skip


def loss(method: str, lost: float | None, spread: float = 0.1, *, variant: str = "full", **more: Any) -> ExpectedRow:
    """Expected to lose so many percent, give or take."""
    made = Method(algorithm=method.split(":")[0], scheme=method.split(":")[1])
    ends: dict[str, Any] = {"lost_low": None, "lost_high": None}
    if lost is not None:
        ends = {"lost_low": lost - spread, "lost_high": lost + spread}
    row = ExpectedRow(
        model="llama-3-8b", method=method, variant=variant, title=served_title(made.algorithm, made.scheme),
        effort=EFFORT.get(method, 2.0), basis="near" if lost is not None else "unknown", lost=lost, ln_ratio=None,
        ln_ratio_low=None, ln_ratio_high=None, metric="", points=None, points_low=None, points_high=None, collapse=0.0,
        fragile=False, note="", sources=(), **ends,
    )  # fmt: skip
    return replace(row, **more)


EFFORT = {"none:bf16": 0.0, "fp8:fp8-rowwise": 1.0, "fp8:fp8-rowwise-kvfp8": 1.5, "smoothquant:w8a8-channel-token": 3.0}
LOSSES = [
    loss("none:bf16", 0.0, 0.0, basis="exact"), loss("gptq:w4a16-g128", 2.2, 1.0), loss("awq:w4a16-g128", 2.1, 1.0),
    loss("rtn:w4a16-g128", 2.8, 1.0), loss("fp8:fp8-rowwise", 0.2), loss("fp8:fp8-rowwise-kvfp8", 0.3),
    loss("rtn:w8a8-channel-token", 0.4, fragile=True), loss("smoothquant:w8a8-channel-token", 0.4),
    loss("rtn:nvfp4", 3.4),
]  # fmt: skip


def decide(rows: list[SpeedRow], losses: list[ExpectedRow] = LOSSES, **how: Any) -> DecisionRow:
    (answer,) = decisions(how.pop("spec", SPEC), rows, losses, **how)
    return answer


def changed(method: str, **more: Any) -> list[ExpectedRow]:
    return [replace(e, **more) if e.method == method else e for e in LOSSES]


def test_the_fastest_within_the_limit_wins_by_the_names_that_engines_serve() -> None:
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 4), speed("fp8-rowwise", 6)])
    assert (answer.method, answer.title) == ("gptq:w4a16-g128", "AWQ/GPTQ INT4 g128")
    assert answer.speedup == pytest.approx(2.5)
    assert answer.speedup_low < 2.5 < answer.speedup_high  # type: ignore[operator]
    assert (answer.lost, answer.basis) == (2.2, "near")
    assert answer.equals == ("awq:w4a16-g128",)


def test_a_method_that_no_engine_serves_is_no_answer_unless_the_study_has_no_other() -> None:
    rows = [speed("bf16", 10), speed("w4a16-g128", 4)]
    better = changed("rtn:w4a16-g128", lost=0.1, lost_low=0.0, lost_high=0.2)
    assert "rtn:w4a16-g128" not in (decide(rows, better).method, *decide(rows, better).equals)
    alone = replace(SPEC, methods=tuple(m for m in SPEC.methods if m.algorithm in ("none", "rtn") and "w4" in m.scheme))
    answer = decide(rows, [e for e in LOSSES if e.method in ("none:bf16", "rtn:w4a16-g128")], spec=alone)
    assert answer.method == "rtn:w4a16-g128"


def test_a_faster_method_over_the_limit_is_left_out_with_its_loss() -> None:
    answer = decide([speed("bf16", 10), speed("nvfp4", 3), speed("fp8-rowwise", 6)])
    assert answer.method == "fp8:fp8-rowwise"
    assert answer.excluded == ("NVFP4 loses 3.4 %, over the limit of 3 %",)
    looser = decide([speed("bf16", 10), speed("nvfp4", 3), speed("fp8-rowwise", 6)], spec=replace(SPEC, max_lost=4.0))
    assert looser.method == "rtn:nvfp4"


def test_without_evidence_a_method_is_no_answer() -> None:
    """What the expected losses are for: without them the answer is 16 bit."""
    unknown = [LOSSES[0], *(loss(e.method, None) for e in LOSSES[1:])]
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 4), speed("fp8-rowwise", 6)], unknown)
    assert answer.method == "none:bf16"
    assert "FP8 dynamic what it loses is unknown" in answer.excluded


def test_a_fragile_method_is_left_out_unless_the_model_itself_was_measured() -> None:
    rows = [speed("bf16", 10), speed("w8a8-channel-token", 4)]
    fragile = changed("smoothquant:w8a8-channel-token", fragile=True)
    answer = decide(rows, fragile)
    assert answer.method == "none:bf16"
    assert any("a collapse of its kind is published" in said for said in answer.excluded)
    destroyed = changed("smoothquant:w8a8-channel-token", collapse=0.9)
    assert decide(rows, destroyed).method == "none:bf16"
    assert decide(rows).method == "smoothquant:w8a8-channel-token"


def test_a_larger_loss_must_buy_a_tenth_of_speed() -> None:
    rows = [speed("bf16", 10, 0.001), speed("fp8-rowwise", 5, 0.001)]
    assert decide([*rows, speed("w4a16-g128", 4.8, 0.001)]).method == "fp8:fp8-rowwise"
    assert decide([*rows, speed("w4a16-g128", 4.4, 0.001)]).method == "gptq:w4a16-g128"
    level = [e if "w4a16" not in e.method else replace(e, lost=0.4, lost_low=0.1) for e in LOSSES]
    assert decide([*rows, speed("w4a16-g128", 4.8, 0.001)], level).method == "gptq:w4a16-g128"


def test_losses_that_differ_by_less_than_their_errors_do_not_decide() -> None:
    rows = [speed("bf16", 10), speed("fp8-rowwise", 5.0, 0.2), speed("w8a8-channel-token", 4.5, 0.2)]
    for lost in (0.2, 0.45, 0.6):  # more and less than FP8's 0.2, and never by half a percent
        losses = changed("smoothquant:w8a8-channel-token", lost=lost, lost_low=lost - 0.1, lost_high=lost + 0.1)
        assert decide(rows, losses).method == "smoothquant:w8a8-channel-token"
    wide = changed("smoothquant:w8a8-channel-token", lost=1.5, lost_low=0.1, lost_high=2.9)
    assert decide(rows, wide).method == "smoothquant:w8a8-channel-token"
    sure = changed("smoothquant:w8a8-channel-token", lost=1.5, lost_low=1.2, lost_high=1.8)
    assert decide([*rows[:2], speed("w8a8-channel-token", 4.8, 0.2)], sure).method == "fp8:fp8-rowwise"


def test_of_equals_what_was_measured_goes_before_what_is_borrowed() -> None:
    borrowed = speed("w4a16-g128", 4.5, 0.3, fidelity="transferred")
    answer = decide([speed("bf16", 10), speed("fp8-rowwise", 5.5, 0.3), borrowed])
    assert answer.method == "fp8:fp8-rowwise"
    assert "gptq:w4a16-g128" in answer.equals
    assert "GPTQ INT4 g128 may be 1.22 times as fast: its kernel was measured on another device" in answer.why
    measured = replace(borrowed, fidelity="calibrated")
    assert decide([speed("bf16", 10), speed("fp8-rowwise", 5.5, 0.3), measured]).method == "gptq:w4a16-g128"


def test_within_three_percent_the_simpler_one_is_served() -> None:
    rows = [speed("bf16", 10), speed("fp8-rowwise", 5.1), speed("fp8-rowwise-kvfp8", 5.0)]
    assert decide(rows).title == "FP8 dynamic"
    assert decide([*rows[:2], speed("fp8-rowwise-kvfp8", 4.8)]).title == "FP8 dynamic + FP8 KV"


def test_an_fp8_cache_is_no_answer_where_the_device_multiplies_no_fp8() -> None:
    rows = [speed("bf16", 10), speed("fp8-rowwise", 8), speed("fp8-rowwise-kvfp8", 5)]
    assert decide(rows).title == "FP8 dynamic + FP8 KV"
    ampere = replace(SPEC, speed=replace(SPEC.speed, devices=(DeviceSpec(name="a100-sxm-80gb", label="h100-sxm"),)))
    assert decide(rows, spec=ampere).title == "FP8 dynamic"


def test_sixteen_bit_stays_where_it_was_measured_and_nothing_is_faster_for_sure() -> None:
    answer = decide([speed("bf16", 10, 0.3), speed("w4a16-g128", 9.5, 0.3), speed("fp8-rowwise", 11, 0.3)])
    assert answer.method == "none:bf16"
    assert answer.speedup is None
    assert (answer.lost, answer.basis) == (0.0, "exact")


def test_the_fewest_devices_that_hold_a_candidate() -> None:
    rows = [speed("bf16", 10, fits=False), speed("w4a16-g128", 4, fits=False), speed("fp8-rowwise", 6, fits=False)]
    two = [speed("bf16", 9, fits=False, devices=2), speed("w4a16-g128", 3, devices=2),
           speed("fp8-rowwise", 5, devices=2)]  # fmt: skip
    answer = decide([*rows, *two])
    assert (answer.devices, answer.method, answer.speedup) == (2, "gptq:w4a16-g128", None)
    assert "16 bit would need 17 GB on each device of 80 GB" in answer.why


def test_nothing_fits() -> None:
    answer = decide([speed(s, 1, fits=False, devices=n) for n in (1, 2) for s in ("bf16", "w4a16-g128")])
    assert answer.method is None
    assert answer.why == "nothing that loses at most 3 % of a score fits on up to 2 devices"


def test_the_loss_is_that_of_what_the_device_executes() -> None:
    rows = [speed("bf16", 10), speed("fp8-rowwise", 4, executed="weights")]
    losses = [*LOSSES, loss("fp8:fp8-rowwise", 9.0, variant="weights")]
    assert decide(rows, losses).method == "none:bf16"
    better = [*changed("fp8:fp8-rowwise", lost=9.0), loss("fp8:fp8-rowwise", 0.1, variant="weights")]
    answer = decide(rows, better)
    assert (answer.method, answer.lost) == ("fp8:fp8-rowwise", 0.1)
    assert "activations stay in 16 bit: the device has no such product" in answer.why


def test_rates_are_compared_as_rates() -> None:
    def rate(scheme: str, value: float) -> SpeedRow:
        return speed(scheme, value, measure="tokens_per_s")

    answer = decide([rate("bf16", 100), rate("w4a16-g128", 250), rate("fp8-rowwise", 170)])
    assert answer.method == "gptq:w4a16-g128"
    assert answer.speedup == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"bound": "compute"}, "arithmetic dominates: its products run at a higher rate"),
        ({"bound": "overhead"}, "fixed times of kernels dominate"),
        ({"kv_cache_gbytes": 40.0}, "the cache dominates: 40 GB in 16 bit beside 16 GB of weights"),
        ({}, "weights dominate: 2.0 times smaller"),
    ],
)
def test_the_reason_names_what_dominates(more: dict[str, Any], words: str) -> None:
    base = speed("bf16", 10, **more)
    answer = decide([base, speed("fp8-rowwise", 5, weights_gbytes=8.0, **more)])
    assert words in answer.why


def test_a_quick_study_of_the_target_itself_says_that_it_cannot_tell() -> None:
    rows = [speed("bf16", 10), speed("w4a16-g128", 4), speed("fp8-rowwise", 6)]
    noisy = [e if "w4a16" not in e.method else replace(e, basis="measured", lost=2.5, lost_low=1.0, lost_high=4.0)
             for e in LOSSES]  # fmt: skip
    answer = decide(rows, noisy, quick=True)
    assert answer.method is None
    assert answer.why.startswith("cannot tell: ")
    assert decide(rows, noisy).method == "gptq:w4a16-g128"
    clear = [e if "w4a16" not in e.method else replace(e, basis="measured", lost=2.0, lost_low=1.6, lost_high=2.4)
             for e in LOSSES]  # fmt: skip
    assert decide(rows, clear, quick=True).method == "gptq:w4a16-g128"
    assert decide(rows, quick=True).method == "gptq:w4a16-g128"  # published losses have no noise of this study
