"""Whole steps and requests: what is counted, what fits, what falls back, and the bands."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import hwmodels
from hwmodels.validation.claims import seed_claims
from hwmodels.validation.validate import sign_table, step_table
from tests.counting import python_calls


def test_a_step_is_the_sum_of_its_operators() -> None:
    p = hwmodels.predict("h200", "llama-3-8b", "fp8-rowwise", "decode", 4, 2048)
    assert sum(float(op.time_s) for op in p.operators) == pytest.approx(float(p.time_s))
    assert float(p.low_s) < float(p.time_s) < float(p.high_s)
    assert p.tpot_s == p.time_s
    assert p.ttft_s is None
    assert p.tokens_per_s == pytest.approx(4 / float(p.time_s))
    assert {op.name for op in p.operators} >= {"qkv", "o", "gate_up", "down", "attention", "lm_head", "quantize_o"}


def test_fp8_rowwise_is_slower_than_bf16_at_batch_1_on_8b_by_the_kernels_of_pytorch() -> None:
    for context in (1024, 8192):
        fp8, bf16, fused = (
            float(hwmodels.predict("h200", "llama-3-8b", scheme, "decode", 1, context, stack=stack).time_s)
            for scheme, stack in (("fp8-rowwise", "pytorch-2.11"), ("bf16", None), ("fp8-rowwise", "vllm-2026"))
        )
        assert fused < bf16 < fp8


def test_whole_steps_meet_the_required_figures() -> None:
    table = step_table("e2e")
    error = (table.predicted_s / table.median_s - 1).abs()
    for phase in ("decode", "prefill"):
        assert error[table.phase == phase].mean() <= 0.05
    assert (error <= 0.10).mean() >= 0.90
    pairs = sign_table(table)
    assert pairs.wrong_sign.mean() <= 0.05


def test_models_that_are_not_in_that_table_too() -> None:
    table = step_table("e2e_unseen")
    error = (table.predicted_s / table.median_s - 1).abs()
    for phase in ("decode", "prefill"):
        assert error[table.phase == phase].mean() <= 0.05
    assert (error <= 0.10).mean() >= 0.90
    inside = ((table.median_s >= table.low_s) & (table.median_s <= table.high_s)).mean()
    assert 0.75 <= inside <= 0.90


def test_a_scheme_without_a_path_is_priced_as_its_fallback_and_said_so() -> None:
    p = hwmodels.predict("a100", "llama-3-8b", "fp8-tensor", "decode", 1, 512)
    assert p.kernel == "marlin_fp8"
    assert any("no FP8 product on a100-sxm-80gb" in n for n in p.notes)
    with pytest.raises(ValueError, match="no path for fp8"):
        hwmodels.predict("a100", "llama-3-8b", "fp8-tensor", "decode", 1, 512, strict=True)
    weight_only = hwmodels.predict("h100", "llama-3-8b", "nvfp4", "decode", 1, 512)
    assert weight_only.kernel == "humming_nvfp4_a16"
    assert hwmodels.predict("b200", "llama-3-8b", "nvfp4", "decode", 1, 512).kernel.endswith("_nvfp4")


def test_no_int4_tensor_rate_is_invented() -> None:
    """W4A4 integers on Hopper run at the INT8 rate."""
    w4a4 = hwmodels.predict("h100", "llama-3-8b", "w4a4-channel-token", "prefill", 1, 8192, fidelity="ideal")
    w8a8 = hwmodels.predict("h100", "llama-3-8b", "w8a8-channel-token", "prefill", 1, 8192, fidelity="ideal")
    gate = lambda p: next(float(op.compute_s) for op in p.operators if op.name == "gate_up")  # noqa: E731
    assert gate(w4a4) == pytest.approx(gate(w8a8))
    assert any("INT8 rate" in n for n in w4a4.notes)


def test_what_does_not_fit_is_said_first_with_the_shortfall() -> None:
    p = hwmodels.predict("h100", "llama-3-70b", "bf16", "decode", 16, 4096)
    assert not p.fits
    assert p.notes[0].startswith("does not fit: ")
    assert "GB short" in p.notes[0]
    assert "tensor_parallel" in p.notes[0]
    assert hwmodels.predict("h100", "llama-3-70b", "bf16", "decode", 1, 4096, tensor_parallel=4).fits
    with pytest.raises(ValueError, match="does not fit"):
        hwmodels.predict_request("h100", "llama-3-70b", "bf16")


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    p = hwmodels.predict("h100", "llama-3-8b", "fp8-tensor", "decode", 1, 8192)
    most = p.largest_batch
    assert hwmodels.predict("h100", "llama-3-8b", "fp8-tensor", "decode", most, 8192).fits
    assert not hwmodels.predict("h100", "llama-3-8b", "fp8-tensor", "decode", most + 1, 8192).fits


def test_kv_capacity_is_a_cliff() -> None:
    """Requests wait for places when the cache does not hold them."""
    one = hwmodels.predict_request("h100", "llama-3-70b", "fp8-tensor", batch=64, prompt=1024, new_tokens=128)
    two = hwmodels.predict_request(
        "h100", "llama-3-70b", "fp8-tensor", batch=64, prompt=1024, new_tokens=128, tensor_parallel=2
    )
    assert one.running_batch < one.batch
    assert two.running_batch == two.batch
    assert two.output_tokens_per_s > 3 * one.output_tokens_per_s
    assert any("a place is filled again as soon as it is free" in n for n in one.notes)


def test_places_are_kept_full_and_not_emptied_in_waves() -> None:
    """A further request costs its own prefill and its share of the steps: no round of idle places, no jump at a
    multiple of the places; many requests reach the rate of places that are always full."""
    how = {"prompt": 1024, "new_tokens": 128}
    places = hwmodels.predict_request("h100", "llama-3-70b", "fp8-tensor", batch=512, **how).running_batch
    r = {n: hwmodels.predict_request("h100", "llama-3-70b", "fp8-tensor", batch=n, **how)
         for n in (places, places + 1, 2 * places, 50 * places)}  # fmt: skip
    own = float(hwmodels.predict("h100", "llama-3-70b", "fp8-tensor", "prefill", 1, 1024).time_s)
    each = own + 127 * r[places].tpot_s / places
    for n, one in r.items():
        assert one.total_s == pytest.approx(r[places].latency_s + (n - places) * each, rel=1e-12)
    assert r[50 * places].output_tokens_per_s == pytest.approx(128 / each, rel=0.03)


def test_a_request_is_a_prefill_and_its_decode_steps() -> None:
    r = hwmodels.predict_request("h200", "llama-3-8b", "bf16", batch=2, prompt=512, new_tokens=100)
    first = hwmodels.predict("h200", "llama-3-8b", "bf16", "prefill", 2, 512)
    step = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", 2, 562)
    assert r.ttft_s == pytest.approx(float(first.time_s))
    assert r.tpot_s == pytest.approx(float(step.time_s), rel=0.01)
    assert r.latency_s == pytest.approx(r.ttft_s + 99 * r.tpot_s)
    assert r.low_s < r.latency_s < r.high_s
    assert hwmodels.throughput("h200", "llama-3-8b", "fp8-tensor").output_tokens_per_s > 1000


def test_tensor_parallel_pays_for_its_all_reduces() -> None:
    one = hwmodels.predict("a100", "llama-2-7b", "bf16", "decode", 1, 512)
    eight = hwmodels.predict("a100", "llama-2-7b", "bf16", "decode", 1, 512, tensor_parallel=8)
    assert 1.5 < float(one.time_s / eight.time_s) < 5
    assert any(op.kind == "all_reduce" for op in eight.operators)
    with pytest.raises(ValueError, match="tensor_parallel must divide"):
        hwmodels.predict("a100", "llama-2-7b", tensor_parallel=3)


def test_eager_launches_cost_time() -> None:
    graph = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", 1, 512)
    eager = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", 1, 512, profile="eager")
    assert float(eager.time_s) > 1.3 * float(graph.time_s)
    big = [
        hwmodels.predict("h200", "llama-3-8b", "bf16", "prefill", 1, 8192, profile=p) for p in ("eager", "cuda_graph")
    ]
    assert float(big[0].time_s / big[1].time_s) < 1.15


def test_attention_back_ends_and_profiles() -> None:
    kw = {"batch": 16, "context": 8192}
    cudnn = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", profile="sdpa_cudnn", **kw)
    flash = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", profile="sdpa_flash", **kw)
    named = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", attention_kernel="sdpa_flash", **kw)
    assert float(flash.time_s) > 1.1 * float(cudnn.time_s)
    assert float(named.time_s) == pytest.approx(float(flash.time_s))
    with pytest.raises(ValueError, match="cuda_graph"):
        hwmodels.predict("h200", "llama-3-8b", profile="cuda-grap")


def test_eight_bit_kv_cache_helps_long_contexts() -> None:
    wide = hwmodels.predict("h100", "llama-3-8b", "bf16", "decode", 32, 16384)
    half = hwmodels.predict("h100", "llama-3-8b", "bf16-kvfp8", "decode", 32, 16384)
    assert 1.3 < float(wide.time_s / half.time_s) < 2


def test_arrays_give_what_scalars_give() -> None:
    batch, context = np.array([1, 5, 64])[:, None], np.array([100, 4000])[None, :]
    for phase in ("decode", "prefill"):
        grid = hwmodels.predict("h100", "llama-3-8b", "fp8-tensor", phase, batch, context)
        for i in range(3):
            for j in range(2):
                one = hwmodels.predict("h100", "llama-3-8b", "fp8-tensor", phase, int(batch[i, 0]), int(context[0, j]))
                assert grid.time_s[i, j] == pytest.approx(float(one.time_s), rel=1e-12)
                assert np.broadcast_to(grid.high_s, (3, 2))[i, j] == pytest.approx(float(one.high_s), rel=1e-12)


def test_speedups_carry_their_own_band() -> None:
    a = hwmodels.predict("h200", "llama-3-8b", "w4a16-g128", "decode", 1, 1024)
    b = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", 1, 1024)
    s = hwmodels.speedup(a, b)
    assert s.low < s.value < s.high
    assert bool(s.sign_sure)


def test_asics_are_fused_and_tiered() -> None:
    sn = hwmodels.predict("sn40l-like", "llama-3-8b", "bf16", "decode", 1, 1024, tensor_parallel=8)
    assert float(sn.time_s) == pytest.approx(1.55e-3, rel=0.4)
    assert [t.name for t in sn.device.tiers] == ["SRAM", "HBM", "DDR"]
    assert sn.fidelity == "transferred"
    groq = hwmodels.predict("groq-like", "llama-2-70b", "w8a8-tensor", "decode", 1, 1024)
    assert groq.fits
    assert 0.3e-3 < float(groq.time_s) < 5e-3
    fast = hwmodels.predict("asic", "llama-3-8b", "nvfp4", overrides=["memory.bandwidth_gbytes_per_s=8000"])
    assert float(fast.time_s) < float(hwmodels.predict("asic", "llama-3-8b", "nvfp4").time_s)


def test_a_prediction_of_what_is_loaded_is_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """About 2000 Python calls, a millisecond, and no file: counted, because a clock fails on a busy machine."""
    hwmodels.predict("h200", "llama-3-8b", "fp8-tensor", "decode", 4, 2048)
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"a prediction opened {a[0]}"))
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, *a, **k: pytest.fail(f"a prediction read {path}"))
    assert python_calls(lambda: hwmodels.predict("h200", "llama-3-8b", "fp8-tensor", "decode", 4, 2048)) < 6000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"context": -3}, "context must be at least 1"),
        ({"batch": "x"}, "batch must be a number"),
        ({"phase": "decoding"}, "prefill or decode"),
        ({"phase": "prefill", "seq": 4096, "context": 10}, "seq counts the new tokens"),
        ({"scheme": "w4a17"}, "unknown scheme"),
        ({"model": "llama-9"}, "unknown model"),
        ({"device": "h900"}, "unknown device"),
        ({"kernel": "cublas"}, "unknown kernel"),
        ({"fidelity": "guess"}, "fidelity must be one of"),
    ],
)
def test_bad_input(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hwmodels.predict(**{"device": "h100", "model": "llama-3-8b", **arguments})  # type: ignore[arg-type]


def test_seed_claims_have_predictions_and_bands() -> None:
    claims = seed_claims()
    assert len(claims) >= 12
    assert all(c.low <= c.value <= c.high for c in claims)
    byte_claims = [c for c in claims if c.unit == "GB"]
    assert [round(c.value) for c in byte_claims] == [138, 37]


def test_groups_that_do_not_divide_are_said() -> None:
    p = hwmodels.predict("h100", "llama-3-8b", "w4a16-g96")
    assert any("groups of 96 do not divide K = 4096, 14336" in n for n in p.notes)


def test_a_prediction_prints_in_one_line() -> None:
    assert repr(hwmodels.predict("h100", "llama-3-8b", "fp8-tensor")).startswith(
        "Prediction(llama-3-8b fp8-tensor on h100-sxm, decode, "
    )


@pytest.mark.parametrize(("scheme", "wider"), [("w3a16-g128", 4), ("w2a16-g128", 4), ("w6a16-g128", 8)])
def test_a_width_that_no_kernel_was_measured_with_borrows_and_says_so(scheme: str, wider: int) -> None:
    for device in ("a100-sxm-80gb", "l40s"):  # an H200 has kernels of two and three bits
        p = hwmodels.predict(device, "llama-3-8b", scheme, "decode", 1, 2048)
        measured = hwmodels.predict(device, "llama-3-8b", f"w{wider}a16-channel", "decode", 1, 2048)
        assert (p.fidelity, measured.fidelity, p.kernel) == ("transferred", "calibrated", measured.kernel)
        assert p.notes == (
            f"no {scheme[1]}-bit kernel was measured: priced with the efficiencies of the {wider}-bit one",
        )
        assert measured.notes == ()
        assert p.high_s / p.low_s > 1.1 * measured.high_s / measured.low_s  # a band of its own, wider
        products = {op.name: op.fidelity for op in p.operators if op.kind == "gemm"}
        assert products.pop("lm_head") == "calibrated"
        assert set(products.values()) == {"transferred"}


def test_a_borrowed_width_keeps_the_measured_efficiencies() -> None:
    one, other = (hwmodels.timing.kernel.gemm("a100", 1, 4096, 4096, "trtllm_int4_wo", weight_bytes=7e6, stands_in=s)
                  for s in (False, True))  # fmt: skip
    assert (one.kind, other.kind) == ("calibrated", "transferred")
    assert float(one.time_s) == float(other.time_s)
    assert (float(other.low_s / other.time_s), float(other.high_s / other.time_s)) == pytest.approx((0.6, 1.4))


@pytest.mark.parametrize(("device", "fidelity"), [("asic", "calibrated"), ("a100", "ideal")])
def test_where_no_kernel_is_borrowed_none_is_mentioned(device: str, fidelity: str) -> None:
    p = hwmodels.predict(device, "llama-3-8b", "w3a16-g128", "decode", 1, 2048, fidelity=fidelity)
    assert not any("was measured" in note for note in p.notes)


def test_many_points_of_experts_are_the_points_one_by_one() -> None:
    batches = np.repeat([1.0, 8.0], 4096)  # experts that a batch reaches: weight bytes differ from point to point
    many = hwmodels.predict("h100-sxm", "mixtral-8x7b", "fp8-tensor", "decode", batches, 2048)
    for at, batch in ((0, 1), (-1, 8)):
        assert many.time_s[at] == pytest.approx(
            float(hwmodels.predict("h100-sxm", "mixtral-8x7b", "fp8-tensor", "decode", batch, 2048).time_s), rel=1e-12
        )


def test_the_band_of_a_speed_up_errs_on_the_wide_side() -> None:
    """Independent errors are assumed; measured ones share causes, so the band holds more than its 80 %."""
    key = ["model", "phase", "batch", "seq"]
    inside, correlation = [], []
    for name in ("e2e", "e2e_unseen"):
        steps = step_table(name).assign(residual=lambda t: np.log(t.median_s / t.predicted_s))
        base = steps[steps.fmt == "bf16"]
        pairs = steps[steps.fmt != "bf16"].merge(base, on=key, suffixes=("", "_b"))
        for row in pairs.itertuples():
            one, other = (
                SimpleNamespace(time_s=t, low_s=low, high_s=high)
                for t, low, high in ((row.predicted_s, row.low_s, row.high_s),
                                     (row.predicted_s_b, row.low_s_b, row.high_s_b))
            )  # fmt: skip
            ratio = hwmodels.speedup(one, other)
            inside.append(ratio.low <= row.median_s_b / row.median_s <= ratio.high)
        correlation.append(np.corrcoef(pairs.residual, pairs.residual_b)[0, 1])
    assert len(inside) == 103
    assert 0.85 < np.mean(inside) < 0.95
    assert all(0.3 < c < 0.5 for c in correlation)


def test_a_context_beyond_the_models_positions_is_said() -> None:
    note = "context 9000 is beyond the 8192 positions of llama-3-8b: priced as if it reached"
    assert note in hwmodels.predict("h200", "llama-3-8b", context=9000).notes
    assert note in hwmodels.predict("h200", "llama-3-8b", phase="prefill", context=[100, 9000]).notes
    assert not any("beyond" in n for n in hwmodels.predict("h200", "llama-3-8b", context=8192).notes)
    assert any("beyond" in n for n in hwmodels.predict_request("h200", "llama-3-8b", prompt=8192, new_tokens=9).notes)


def test_a_request_says_how_many_wait_and_what_its_ttft_is() -> None:
    r = hwmodels.predict_request("l40s", "llama-3-8b", "bf16", batch=240, prompt=1024, new_tokens=256)
    assert (r.model, r.device, r.scheme, r.tensor_parallel, r.profile) == (
        "llama-3-8b",
        "l40s",
        "bf16",
        1,
        "cuda_graph",
    )
    assert r.notes[0].endswith(
        f"{r.running_batch} of 240 sequences at 1280 tokens: a place is filled again as soon as it is free"
    )
    later = r.total_s - r.latency_s
    assert r.notes[1].endswith(f"of the first {r.running_batch}; the last one starts {later:.4g} s later")
    assert r.notes[2] == f"TTFT is the prefill of {r.running_batch} prompts at once: no token comes before all are read"
    assert hwmodels.predict_request("l40s", "llama-3-8b").notes == ()


def test_a_dataflow_part_says_how_far_the_step_moves_with_what_is_assumed_of_it() -> None:
    p = hwmodels.predict("asic", "llama-3-8b")
    (said,) = [note for note in p.notes if note.code == "assumed"]  # type: ignore[attr-defined]
    slower = hwmodels.predict("asic", "llama-3-8b", overrides={
        "memory.bandwidth_gbytes_per_s": hwmodels.get_device("asic").memory.bandwidth_bytes_per_s / 1e9 * 0.75 / 0.85
    })  # fmt: skip
    longer = float(slower.time_s / p.time_s - 1)
    assert longer > 0.05
    assert said.endswith(f"of bandwidth {round(100 * longer)} %")


def test_weights_beyond_the_nearer_memory_are_read_from_the_tier_behind_it() -> None:
    near, beyond = (hwmodels.predict("sn40l-like", "llama-3-70b", scheme) for scheme in ("w4a16-g128", "bf16"))
    assert not [note for note in near.notes if note.code == "far_tier"]  # type: ignore[attr-defined]
    (said,) = [note for note in beyond.notes if note.code == "far_tier"]  # type: ignore[attr-defined]
    assert "DDR" in said
    assert bool(beyond.fits)
    moved = sum(op.traffic_bytes for op in beyond.operators)
    assert beyond.time_s > (moved - 64e9) / 100e9  # at the rate of the DDR
    assert near.time_s < moved / 1.6e12


def test_a_pipeline_of_chips_gives_more_tokens_with_a_batch_in_every_stage() -> None:
    p = hwmodels.predict("groq-like", "llama-3-70b", batch=1, context=2048)
    (said,) = [note for note in p.notes if note.code == "pipeline"]  # type: ignore[attr-defined]
    assert f"{p.chips} chips hold the model and {p.largest_batch} sequences" in said
    assert f"give {p.largest_batch * float(p.tokens_per_s):.4g} tokens/s" in said  # fewer sequences than layers
