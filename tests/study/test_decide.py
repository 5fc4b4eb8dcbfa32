"""The rule of the decision table, on rows made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qsim.study import Case, Quality, Speed, StudySpec
from qsim.study.decide import acceptable, decisions
from qsim.study.rows import DecisionRow, QualityRow, SpeedRow
from qsim.study.spec import DeviceSpec, Method

NAMES = {"none:bf16": "bf16", "gptq:w4a16-g128": "w4a16-g128", "rtn:w4a16-g128": "w4a16-g128", "fp8:fp8": "fp8"}
SPEC = StudySpec(
    methods=tuple(Method(algorithm=n.split(":")[0], scheme=s) for n, s in NAMES.items()),  # type: ignore[arg-type]
    cases=(Case(name="chat"),), quality=Quality(max_loss=0.02),
    speed=Speed(models=("llama-3-8b",), devices=(DeviceSpec(name="h100-sxm"),)),
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


def quality(method: str, loss: float, se: float = 0.001, variant: str = "full") -> QualityRow:
    return QualityRow(method=method, variant=variant, bits_per_byte=1.5 + loss, bits_per_byte_se=0.01, loss=loss,
                      loss_se=se, perplexity=3.0, kl=None, kl_se=None, top1_agreement=None, bytes_scored=1000,
                      model_bits=4.0, notes="")  # fmt: skip


LOSSES = [quality("none:bf16", 0.0, 0.0), quality("gptq:w4a16-g128", 0.012), quality("rtn:w4a16-g128", 0.05),
          quality("fp8:fp8", 0.002)]  # fmt: skip


def decide(rows: list[SpeedRow], losses: list[QualityRow] = LOSSES) -> DecisionRow:
    (answer,) = decisions(SPEC, rows, losses)
    return answer


def test_the_fastest_within_the_limit_wins() -> None:
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 4), speed("fp8", 6)])
    assert (answer.method, answer.equals) == ("gptq:w4a16-g128", ())
    assert answer.speedup == pytest.approx(2.5)
    assert answer.speedup_low < 2.5 < answer.speedup_high
    assert answer.loss == 0.012


def test_a_faster_method_over_the_limit_does_not() -> None:
    losses = [q if q.method != "gptq:w4a16-g128" else replace(q, loss=0.019) for q in LOSSES]
    assert not acceptable(losses[1], 0.02)  # 0.019 + 1.645 * 0.001 > 0.02
    assert decide([speed("bf16", 10), speed("w4a16-g128", 4), speed("fp8", 6)], losses).method == "fp8:fp8"


def test_of_methods_that_bands_cannot_tell_apart_the_one_that_loses_least() -> None:
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 4, 0.3), speed("fp8", 5, 0.3)])
    assert answer.method == "fp8:fp8"
    assert answer.equals == ("gptq:w4a16-g128",)
    assert "GPTQ W4 may be faster, within the bands" in answer.why


def test_what_another_method_beats_for_sure_is_no_answer() -> None:
    """The fastest is borrowed, with a band that reaches 16 bit; FP8, measured, beats 16 bit all the same."""
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 5, 0.6, fidelity="transferred"), speed("fp8", 7)])
    assert answer.method == "fp8:fp8"
    assert answer.equals == ("gptq:w4a16-g128",)


def test_what_was_measured_goes_before_what_is_borrowed_whatever_it_loses() -> None:
    borrowed = speed("fp8", 5, 0.3, fidelity="transferred")
    answer = decide([speed("bf16", 10), speed("w4a16-g128", 5.5, 0.3), borrowed])
    assert answer.method == "gptq:w4a16-g128"  # fp8 loses less
    assert answer.equals == ("fp8:fp8",)
    measured = replace(borrowed, fidelity="calibrated")
    assert decide([speed("bf16", 10), speed("w4a16-g128", 5.5, 0.3), measured]).method == "fp8:fp8"


def test_sixteen_bit_stays_when_nothing_is_faster_for_sure() -> None:
    answer = decide([speed("bf16", 10, 0.3), speed("w4a16-g128", 9, 0.3), speed("fp8", 11, 0.3)])
    assert answer.method == "none:bf16"
    assert answer.speedup is None
    assert "nothing is faster for sure" in answer.why


def test_the_fewest_devices_that_hold_an_acceptable_method() -> None:
    rows = [speed("bf16", 10, fits=False), speed("w4a16-g128", 4, fits=False), speed("fp8", 6, fits=False)]
    two = [speed("bf16", 9, fits=False, devices=2), speed("w4a16-g128", 3, devices=2), speed("fp8", 5, devices=2)]
    answer = decide([*rows, *two])
    assert (answer.devices, answer.method, answer.speedup) == (2, "gptq:w4a16-g128", None)
    assert "16 bit would need 17 GB on each device of 80 GB" in answer.why


def test_nothing_fits() -> None:
    answer = decide([speed(s, 1, fits=False, devices=n) for n in (1, 2) for s in ("bf16", "w4a16-g128", "fp8")])
    assert answer.method is None
    assert answer.why == "nothing that loses at most 0.02 bits per byte fits on up to 2 devices"


def test_the_loss_is_that_of_what_the_device_executes() -> None:
    rows = [speed("bf16", 10), speed("fp8", 4, executed="weights")]
    losses = [*LOSSES, quality("fp8:fp8", 0.5, variant="weights")]
    assert decide(rows, losses).method == "none:bf16"
    better = [*LOSSES[:3], quality("fp8:fp8", 0.5), quality("fp8:fp8", 0.001, variant="weights")]
    answer = decide(rows, better)
    assert (answer.method, answer.loss) == ("fp8:fp8", 0.001)
    assert "activations stay in 16 bit: the device has no such product" in answer.why


def test_rates_are_compared_as_rates() -> None:
    def rate(scheme: str, value: float) -> SpeedRow:
        return speed(scheme, value, measure="tokens_per_s")

    answer = decide([rate("bf16", 100), rate("w4a16-g128", 250), rate("fp8", 170)])
    assert answer.method == "gptq:w4a16-g128"
    assert answer.speedup == pytest.approx(2.5)


def test_a_loss_below_zero_is_chance() -> None:
    losses = [LOSSES[0], *(replace(q, loss=-0.001) for q in LOSSES[1:])]
    assert decide([speed("bf16", 10, 0.3), speed("w4a16-g128", 9.9, 0.3), speed("fp8", 11, 0.3)], losses).method == (
        "none:bf16"
    )
