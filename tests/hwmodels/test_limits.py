"""What holds for every prediction: nothing runs above its roof, utilisation is at most 1, bands hold their middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hwmodels
from hwmodels.describe import roofs
from hwmodels.device.load import device_names
from hwmodels.predicted import Prediction
from qsim.scheme import list_schemes

ROUNDING = 1 + 1e-12  # a ratio of two sums of a few dozen float64 numbers
SCHEMES = [scheme.name for scheme in list_schemes()]


def check_limits(p: Prediction) -> None:
    assert np.all(p.mfu <= ROUNDING), p
    assert np.all(p.mbu <= ROUNDING), p
    assert np.all((p.low_s <= p.time_s) & (p.time_s <= p.high_s)), p
    by_format = {(r["format"], r["bandwidth_bytes_per_s"]): r["peak_flop_per_s"] for r in roofs([p])}
    for op in p.operators:
        assert np.all(op.low_s <= op.time_s * ROUNDING), op.name
        assert np.all(op.time_s <= op.high_s * ROUNDING), op.name
        assert bool(op.formats) == (op.kind in ("gemm", "attention", "fused"))
        if op.formats:
            drawn = max(by_format[fmt, op.bandwidth_bytes_per_s] for fmt in op.formats)
            chips = op.bandwidth_bytes_per_s / p.device.memory.bandwidth_bytes_per_s
            assert np.all(op.peak_flop_per_s * chips <= drawn * chips * ROUNDING), op.name
            roof = np.minimum(op.peak_flop_per_s, op.intensity * op.bandwidth_bytes_per_s)
            assert np.all(op.flop / op.time_s <= roof * ROUNDING), op.name


@pytest.mark.parametrize("device", device_names())
def test_nothing_runs_above_its_roof_on_any_device_with_any_scheme(device: str) -> None:
    for scheme in SCHEMES:
        check_limits(hwmodels.predict(device, "llama-3-8b", scheme, "decode", np.array([1, 16, 512]), 2048))
        check_limits(hwmodels.predict(device, "llama-3-8b", scheme, "prefill", np.array([1, 8]), 4096))
    check_limits(hwmodels.predict(device, "mixtral-8x7b", "w4a16-g128", "prefill", 1, 4096, fidelity="ideal"))


@pytest.mark.parametrize("case", [("h100-sxm", "qwen2.5-32b", "fp8", 3000), ("b200", "llama-3-70b", "nvfp4", 8192)])
def test_utilisation_counts_against_the_peak_that_is_multiplied_at(case: tuple[str, str, str, int]) -> None:
    """Once 102 % and 419 %: FP8 and FP4 operations over the 16-bit peak."""
    device, model, scheme, context = case
    p = hwmodels.predict(device, model, scheme, "prefill", 1, context)
    sixteen = p.device.peak_flop_per_s("bfloat16")
    assert sixteen is not None
    assert float(sum(op.flop for op in p.operators) / p.time_s / sixteen) > 0.8
    assert 0.2 < float(p.mfu) < 0.8
    bf16 = hwmodels.predict(device, model, "bf16", "prefill", 1, context)
    usual = sum(op.flop for op in bf16.operators if op.kind != "small") / bf16.time_s / sixteen
    assert float(bf16.mfu) == pytest.approx(float(usual), rel=1e-12)  # one format: the definition everybody uses


def test_a_weight_only_scheme_is_held_against_16_bit() -> None:
    p = hwmodels.predict("h100", "llama-3-8b", "w8a16-channel", "prefill", 1, 4096)
    assert {fmt for op in p.operators for fmt in op.formats} == {"bfloat16"}
    vector = hwmodels.predict("h200", "llama-3-8b", "w4a16-g128", "decode", 1, 2048)
    assert {op.formats for op in vector.operators if op.kernel == "tinygemm_int4"} == {("vector",)}


def test_a_fused_layer_runs_its_attention_in_16_bit() -> None:
    """Each part at its own peak: INT4 products gain nothing for the attention between them."""
    p = hwmodels.predict("asic", "llama-3-70b", "w4a4", "prefill", 1, 4096)
    layers = p.operators[0]
    assert layers.formats == ("int4", "bfloat16")
    gpu = hwmodels.predict("h100", "llama-3-70b", "bf16", "prefill", 1, 4096)
    attention = sum(op.flop for op in gpu.operators if op.kind == "attention")
    least = (layers.flop - attention) / 2000e12 + attention / 500e12
    assert float(layers.flop / layers.peak_flop_per_s) == pytest.approx(float(least), rel=1e-12)


def test_a_device_with_float16_only_is_priced_at_it(tmp_path: Path) -> None:
    text = 'title = "x"\nkind = "gpu"\n[compute.peaks.{}]\ndense_tflops = 100\n[memory]\n' \
           "capacity_gbytes = 64\nbandwidth_gbytes_per_s = 1000\n"  # fmt: skip
    for name in ("float16", "bfloat16", "int8"):
        (tmp_path / f"{name}.toml").write_text(text.format(name))
    half, brain = (hwmodels.predict(tmp_path / f"{n}.toml", "llama-3-8b") for n in ("float16", "bfloat16"))
    assert float(half.time_s) == float(brain.time_s)
    with pytest.raises(ValueError, match="int8 has no 16-bit peak"):
        hwmodels.predict(tmp_path / "int8.toml", "llama-3-8b")


def test_a_roof_is_drawn_for_every_format_that_is_multiplied_in() -> None:
    found = roofs([hwmodels.predict("asic", "llama-3-70b", "w4a4", "prefill", 1, 4096)])
    assert [r["format"] for r in found] == ["int4", "bfloat16"]
    groq = roofs([hwmodels.predict("groq-like", "llama-2-70b", "w8a8-tensor", "decode", 1, 1024)])
    assert groq[0]["bandwidth_bytes_per_s"] > 80e12  # the chips that work at once
