"""Kernels of 2026: fused products and FP8 attention against their recordings, stacks, and what other devices borrow."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hwmodels
from hwmodels.calibration.store import load_calibration
from hwmodels.fitting import fp8_attention, humming
from hwmodels.fitting.fit import fit_parameters
from hwmodels.timing.families import get_family
from hwmodels.timing.kernel import gemm
from hwmodels.timing.parameters import TRANSFER_BANDS, kernel_parameters
from hwmodels.timing.profiles import choose_kernel, get_profile, stack_names
from qsim.cli import main
from qsim.errors import QsimError
from qsim.scheme import get_scheme

LLAMA_70B = ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672))
SUMS = {
    "humming_w3a16_g128": (13.1, 15.9, 51.5), "humming_mxfp4_a16": (14.6, 21.4, 54.5),
    "humming_nvfp4_a16": (15.0, 21.7, 56.8), "humming_w4a8_fp8": (12.3, 16.9, 37.3),
    "humming_mxfp4_fp8": (11.9, 13.3, 33.1), "humming_w8a8_fp8": (18.5, 19.5, 55.8),
    "humming_w8a8_int8": (18.6, 19.4, 56.5),
}  # fmt: skip
"""Measured milliseconds of all linear layers of Llama-3-70B, from 16-bit activations, at 1, 32 and 256 tokens on an
H200: sums of layers of which no fit has seen one."""


@pytest.mark.parametrize(("fmt", "kernel"), humming.FORMATS.items())
def test_recorded_products_and_layers_are_predicted(fmt: str, kernel: str) -> None:
    """All shapes were fitted; the held-out errors are those of the calibration."""
    parameters = load_calibration("h200").kernels[kernel]  # type: ignore[union-attr]
    limit = 0.05 if "a16" in kernel else 0.08 if kernel == "humming_mxfp4_fp8" else 0.07
    assert parameters.held_out_mape["all"] <= limit
    for part, quantize in (("gemm", False), ("layer", None)):
        t = humming.recorded(fmt, part)
        time_s = hwmodels.gemm_time(
            "h200", t.M.to_numpy(), t.N.to_numpy(), t.K.to_numpy(), kernel=kernel, activation_quantize=quantize
        )
        assert np.abs(time_s / t.median_s.to_numpy() - 1).mean() < 0.035


@pytest.mark.parametrize(("kernel", "sums"), SUMS.items())
def test_layers_that_no_fit_has_seen_are_predicted_in_sum(kernel: str, sums: tuple[float, ...]) -> None:
    limit = 0.08 if get_family(kernel).compute == "bfloat16" else 0.15
    for m, measured_ms in zip((1, 32, 256), sums, strict=True):
        time_s = 80 * sum(float(hwmodels.gemm_time("h200", m, n, k, kernel=kernel)) for n, k in LLAMA_70B)
        assert 1e3 * time_s == pytest.approx(measured_ms, rel=limit)


def test_the_calibration_is_what_the_fit_gives() -> None:
    fitted = fit_parameters(humming.humming_rows("w4a8_int8"), "humming_w4a8_int8", humming.EIGHT, 132)
    stored = load_calibration("h200").kernels["humming_w4a8_int8"]  # type: ignore[union-attr]
    assert stored.t0_s == pytest.approx(fitted.t0_s, rel=1e-3)
    assert stored.eta_compute == pytest.approx(fitted.eta_compute, rel=1e-3)
    got, want = (p.surface(np.array([1.0, 100, 3000]), 8192.0, 8192.0, 132) for p in (stored, fitted))  # type: ignore[misc]
    np.testing.assert_allclose(got, want, atol=2e-3)  # coefficients are stored with four digits


def test_a_layer_holds_the_quantisation_of_its_activations_and_the_product_alone_does_not() -> None:
    for kernel in humming.FORMATS.values():
        layer, alone = (
            float(hwmodels.gemm_time("h200", 16, 8192, 8192, kernel=kernel, activation_quantize=q))
            for q in (None, False)
        )
        more = layer - alone
        assert 1.5e-6 < more < 4e-6 if get_family(kernel).layer_from_16_bit else more == 0
    plain = [
        hwmodels.gemm_time("h200", 16, 8192, 8192, kernel="cublas_fp8", activation_quantize=q) for q in (None, False)
    ]
    assert plain[0] == plain[1]


def test_sizes_between_the_measured_ones_lie_between_their_times() -> None:
    """No law knows a step there: what is below the larger neighbour and above the smaller, both 5 % wide."""
    m = np.arange(1, 8193)
    knots = np.array([1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192])
    for kernel in humming.FORMATS.values():
        time_s = hwmodels.gemm_time("h200", m, 12288, 6144, kernel=kernel, activation_quantize=False)
        right = np.clip(np.searchsorted(knots, m), 1, len(knots) - 1)
        ends = np.stack([time_s[knots[right - 1] - 1], time_s[knots[right] - 1]])
        assert (time_s >= 0.95 * ends.min(axis=0)).all(), kernel
        assert (time_s <= 1.05 * ends.max(axis=0)).all(), kernel


def test_fp8_attention_is_predicted_where_it_was_recorded() -> None:
    t = fp8_attention.recorded_fp8()
    error = [
        float(hwmodels.attention_time("h200", "prefill", r.batch, r.seq, r.q_heads, r.kv_heads, r.head_dim,
                                      kernel="cudnn_fp8")) / r.median_s - 1
        for r in t.itertuples()
    ]  # fmt: skip
    _, guess = fp8_attention.leave_one_out()
    assert np.abs(error).mean() < 0.06
    assert np.abs(guess / t.median_s.to_numpy() - 1).mean() < 0.07
    kinds = [hwmodels.attention("h200", "prefill", 1, 4096, 32, 8, dim, kernel="cudnn_fp8").kind for dim in (128, 96)]
    assert kinds == ["calibrated", "transferred"]
    assert hwmodels.attention("h100", "prefill", 1, 4096, 32, 8, kernel="cudnn_fp8").kind == "transferred"


def test_a_step_with_fp8_attention_is_held_against_the_fp8_peak() -> None:
    p = hwmodels.predict("h200", "llama-3-8b", phase="prefill", context=16384, attention_kernel="cudnn_fp8")
    usual = hwmodels.predict("h200", "llama-3-8b", phase="prefill", context=16384)
    (mine,), (other,) = ([op for op in q.operators if op.kind == "attention"] for q in (p, usual))
    assert mine.formats == ("float8_e4m3fn",)
    assert mine.generation == "cuDNN 9.19 (2026)"
    assert float(mine.time_s) < 0.75 * float(other.time_s)  # recorded: 0.60


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: hwmodels.attention_time("h200", "decode", 1, 512, 32, 8, kernel="cudnn_fp8"), "offers prefill only"),
        (lambda: hwmodels.attention_time("a100", "prefill", 1, 512, 32, 8, kernel="cudnn_fp8"),
         "no float8_e4m3fn peak"),
        (lambda: hwmodels.attention_time("h200", "prefill", 1, 512, 32, 8, np.array([64, 128]), kernel="cudnn_fp8"),
         "one head_dim"),
        (lambda: hwmodels.gemm_time("a100", 1, 4096, 4096, kernel="humming_w4a8_fp8"), "no float8_e4m3fn peak"),
    ],
)  # fmt: skip
def test_what_a_kernel_cannot_do_is_refused(call: Any, says: str) -> None:
    with pytest.raises(QsimError, match=says):
        call()


def test_four_bit_decode_of_a_large_model_takes_what_todays_kernels_take() -> None:
    p = hwmodels.predict("h200", "llama-3-70b", "w4a16-g128-sym", batch=1, context=2048)
    assert (p.kernel, p.fidelity) == ("humming_w4a16_g128", "calibrated")
    assert 12e-3 < p.time_s < 14e-3
    assert 10e-3 < p.low_s < p.high_s < 16e-3
    rows = {op.name: op for op in p.operators}
    assert rows["gate_up"].generation == "vLLM/humming 0.1.20 (2026)"
    assert rows["lm_head"].generation == "PyTorch 2.11 (2026)"


def test_best_takes_the_fastest_measured_family_at_every_size() -> None:
    batch = np.array([1, 8, 64, 1024])
    best, *others = (
        hwmodels.predict("h200", "llama-3-8b", "fp8-rowwise", batch=batch, context=1024, stack=stack)
        for stack in ("best", "vllm-2026", "pytorch-2.11")
    )
    for name in ("qkv", "o", "gate_up", "down"):
        mine, *theirs = (next(op for op in p.operators if op.name == name) for p in (best, *others))
        np.testing.assert_array_equal(
            mine.time_s, np.minimum(*(np.broadcast_to(t.time_s, batch.shape) for t in theirs))
        )
    alone = [hwmodels.predict("h200", "llama-3-8b", "fp8-rowwise", batch=int(b), context=1024).time_s for b in batch]
    np.testing.assert_allclose(best.time_s, alone, rtol=1e-12)  # sums of the same numbers
    assert {op.kernel for op in best.operators if op.kind == "gemm"} & {"humming_w8a8_fp8 or cublas_fp8_rowwise"}


def test_every_stack_that_a_family_names_can_be_asked_for() -> None:
    assert stack_names()[0] == "best"
    assert {"vllm-2026", "trtllm-1.x", "pytorch-2.11", "marlin-2024"} <= set(stack_names())
    kernels = {
        stack: hwmodels.predict("h200", "llama-3-8b", "w4a16-g128-sym", stack=stack).kernel for stack in stack_names()
    }
    assert kernels == {
        "best": "humming_w4a16_g128", "vllm-2026": "humming_w4a16_g128", "pytorch-2.11": "tinygemm_int4",
        "trtllm-1.x": "trtllm_int4_wo", "marlin-2024": "marlin_int4",
        "sglang-2026": "humming_w4a16_g128",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("device", "scheme", "stack", "able"),
    [("h200", "w3a16-g128", "vllm-2026", True), ("h200", "nf4-g64", "pytorch-2.11", False),
     ("mi300x", "w4a16-g128", "trtllm-1.x", False), ("h200", "fp8-block128", "vllm-2026", True),
     ("h200", "w8a8", "sglang-2026", False)],
)  # fmt: skip
def test_a_stack_without_a_kernel_is_refused_when_strict_and_else_noted(
    device: str, scheme: str, stack: str, able: bool
) -> None:
    p = hwmodels.predict(device, "llama-3-8b", scheme, stack=stack)
    usual = hwmodels.predict(device, "llama-3-8b", scheme, stack="best")
    missing = f"stack {stack} has no kernel for {scheme} on {device}"
    assert any(str(note).startswith(missing) for note in p.notes) != able
    if able:
        return
    assert p.time_s == usual.time_s
    with pytest.raises(QsimError, match=f"{missing}: .*best can run it"):
        hwmodels.predict(device, "llama-3-8b", scheme, stack=stack, strict=True)


def test_wrong_stacks_are_refused() -> None:
    with pytest.raises(QsimError, match="vllm-2026"):
        hwmodels.predict("h200", "llama-3-8b", "w4a16-g128", stack="vllm-2025")
    with pytest.raises(QsimError, match="both name what runs"):
        hwmodels.predict("h200", "llama-3-8b", "w4a16-g128", stack="best", kernel="tinygemm_int4")


@pytest.mark.parametrize(
    ("scheme", "kernel", "stands_in"),
    [("w4a16-g128", "humming_w4a16_g128_zp", ""), ("w4a16-g128-sym", "humming_w4a16_g128", ""),
     ("w4a16-g64-sym", "humming_w4a16_g128", "groups of 128 only"),
     ("w3a16-g128", "humming_w3a16_g128", "no 3-bit kernel with zero points"),
     ("w3a16-g128-sym", "humming_w3a16_g128", ""), ("mxfp4-weight-only", "humming_mxfp4_a16", ""),
     ("nvfp4-weight-only", "humming_nvfp4_a16", ""), ("w4afp8-g128-token", "humming_w4a8_fp8", ""),
     ("w4a8-g128", "humming_w4a8_int8", ""), ("mxfp4xfp8", "humming_mxfp4_fp8", "one scale per token only"),
     ("w8a8-channel-token", "humming_w8a8_int8", ""), ("w8a8-tensor", "cublas_int8", "")],
)  # fmt: skip
def test_a_scheme_is_calibrated_only_where_its_own_format_was_measured(
    scheme: str, kernel: str, stands_in: str
) -> None:
    choice = choose_kernel(hwmodels.get_device("h200"), get_scheme(scheme), get_profile("cuda_graph"))
    assert choice.kernel == kernel
    assert stands_in in choice.stands_in if stands_in else choice.stands_in == ""
    p = hwmodels.predict("h200", "llama-3-8b", scheme)
    assert p.fidelity == ("transferred" if stands_in else "calibrated")


LLAMA_7B = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))
GAINS = {
    ("a10", 1): (((73728, 18432),), 3.88), ("a10", 32): (((73728, 18432),), 3.82),
    ("a10", 64): (((73728, 18432),), 3.09), ("a10", 128): (((73728, 18432),), 1.55),
    ("rtx-3090", 16): (LLAMA_7B, 3.60), ("rtx-a6000", 16): (LLAMA_7B, 3.40),
    ("a100-sxm-80gb", 16): (LLAMA_7B, 2.22),
}  # fmt: skip
"""Card and tokens -> (N, K) and Marlin's published gain over 16 bit (github.com/IST-DASLab/marlin, README)."""


@pytest.mark.parametrize("kernel", ["marlin_int4", "humming_w4a16_g128"])
@pytest.mark.parametrize(("case", "published"), GAINS.items(), ids=str)
def test_cards_where_no_fused_kernel_was_measured_borrow_and_the_band_holds_what_is_published(
    kernel: str, case: tuple[str, int], published: tuple[Any, float]
) -> None:
    (device, m), (shapes, gain) = case, published
    n, k = (np.array(v) for v in zip(*shapes, strict=True))
    four, sixteen = (gemm(device, m, n, k, name) for name in (kernel, "cublas_bf16"))
    base = float(np.sum(sixteen.time_s))
    assert four.kind == "transferred"
    assert base / np.sum(four.time_s) == pytest.approx(gain, rel=0.2)
    assert base / np.sum(four.high_s) < gain < base / np.sum(four.low_s)


def test_the_command_line_takes_a_stack_and_shows_generations() -> None:
    words = ["predict", "llama-3-8b", "--device", "h200", "--scheme", "w4a16-g128", "--json", "--stack"]
    shown = {}
    for stack in ("vllm-2026", "pytorch-2.11"):
        result = CliRunner().invoke(main, [*words, stack])
        assert result.exit_code == 0, result.output
        rows = json.loads(result.output)["operators"]
        shown[stack] = next(row["generation"] for row in rows if row["operator"] == "gate_up")
    assert shown == {"vllm-2026": "vLLM/humming 0.1.20 (2026)", "pytorch-2.11": "PyTorch 2.11 (2026)"}


def test_the_evidence_behind_a_product_is_the_nearest_recorded_ones() -> None:
    p = hwmodels.predict("h200", "llama-3-8b", "w4a16-g128-sym", batch=60, context=1024)
    found = p.evidence("gate_up", 4)
    sizes = [(point.m, point.n, point.k) for point in found]
    assert sizes[0] == (64, 28672, 4096)  # the layer itself, at the nearest M
    assert [p.octaves for p in found] == sorted(p.octaves for p in found)
    assert found[0].octaves == pytest.approx(np.log2(64 / 60))
    recorded = humming.recorded("w4a16_g128").set_index(["M", "N", "K"]).median_s
    for point in found:
        assert point.measured_s == recorded[point.m, point.n, point.k]
        law_s = hwmodels.gemm_time("h200", point.m, point.n, point.k, kernel="humming_w4a16_g128")
        assert point.law_s == pytest.approx(float(law_s), rel=1e-12)
    assert len(p.evidence("lm_head")) == 5  # another family: cuBLAS
    assert len(hwmodels.predict("l40s", "llama-3-8b", "w4a16-g128").evidence("qkv")) == 0  # tables that do not ship


def test_evidence_is_asked_for_one_product_of_one_case() -> None:
    with pytest.raises(QsimError, match="gate_up"):
        hwmodels.predict("h200", "llama-3-8b").evidence("gate")
    with pytest.raises(QsimError, match="one batch and context"):
        hwmodels.predict("h200", "llama-3-8b", batch=np.array([1, 2])).evidence("qkv")


def test_the_command_line_explains_a_product() -> None:
    words = ["predict", "llama-3-8b", "--device", "h200", "--scheme", "w4a16-g128", "--explain"]
    result = CliRunner().invoke(main, [*words, "down"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "down: humming_w4a16_g128_zp, vLLM/humming 0.1.20 (2026): calibrated (h200.humming:"
    )
    assert "octaves away" in result.output
    assert CliRunner().invoke(main, [*words, "attention"]).exit_code != 0


def test_a_kernel_lent_by_the_same_chip_has_the_band_of_boards_and_one_of_another_generation_a_wider_one() -> None:
    h100, b200 = (kernel_parameters(hwmodels.get_device(d), "humming_w4a16_g128") for d in ("h100-sxm", "b200"))
    assert (h100.kind, h100.origin) == (b200.kind, b200.origin) == ("transferred", "humming_w4a16_g128 on h200")
    assert h100.band == TRANSFER_BANDS["boards", False]
    assert b200.band == TRANSFER_BANDS["generations", False]
