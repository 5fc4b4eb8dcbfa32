"""More work takes no less time, but where that was measured; memory is exact; all of it on random cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import hwmodels
from hwmodels.calibration.between import corrected
from hwmodels.calibration.store import load_calibration
from hwmodels.device.load import device_names
from hwmodels.predicted import Prediction
from hwmodels.timing.attention_kernel import attention
from hwmodels.timing.kernel import estimate, gemm
from hwmodels.workload.architecture import architecture_names
from hwmodels.workload.footprint import footprint
from hwmodels.workload.operators import gemm_cost, weight_nbytes
from qsim.scheme import get_scheme, list_schemes
from tests.hwmodels.test_limits import check_limits

ROUNDING = 1e-9  # relative; a time is a sum of a few dozen float64 numbers, each a product of exponentials
PLACES = [(d, m, s) for d in device_names() for m in architecture_names() for s in sorted(
    {scheme.name for scheme in list_schemes()})]  # fmt: skip
CASES = [PLACES[i] for i in np.random.default_rng(7).choice(len(PLACES), 50, replace=False)]


def falls(time: np.ndarray) -> np.ndarray:
    """Positions after which the time falls."""
    return np.flatnonzero(time[1:] < time[:-1] * (1 - ROUNDING))


def measured_falls(p: Prediction, sizes: np.ndarray, at: int) -> bool:
    """Whether the operators that fall after a position are kernels that were measured on this device."""
    falling = [op for op in p.operators if np.ndim(op.time_s) and at in falls(np.broadcast_to(op.time_s, sizes.shape))]
    return bool(falling) and all(op.fidelity == "calibrated" for op in falling)


@pytest.mark.parametrize(("device", "model", "scheme"), CASES)
def test_time_rises_with_batch_and_context_on_random_cases(device: str, model: str, scheme: str) -> None:
    rng = np.random.default_rng(len(device) * len(model) * len(scheme))
    batches, contexts = np.arange(1, 300), np.unique(np.round(np.geomspace(16, 20000, 150)))
    for phase in ("decode", "prefill"):
        batch, context = int(rng.integers(1, 65)), int(rng.integers(16, 4097))
        for sizes, one in ((batches, (batches, context)), (contexts, (batch, contexts))):
            p = hwmodels.predict(device, model, scheme, phase, *one)
            check_limits(p)
            time = np.broadcast_to(p.time_s, sizes.shape)
            for at in falls(time):
                assert measured_falls(p, sizes, at), (phase, batch, context, sizes[at], time[at + 1] / time[at])


@pytest.mark.parametrize("device", ["rtx-4090", "mi300x", "h100-pcie", "asic", "tpu-v6e"])
def test_a_device_that_nothing_was_measured_on_has_no_falls_at_all(device: str) -> None:
    for scheme in ("bf16", "fp8", "w4a16-g128", "w8a8", "nvfp4"):
        for model in ("llama-3-8b", "opt-125m") if scheme != "w4a16-g128" else ("mixtral-8x7b",):
            batches = np.arange(1, 600)
            assert not falls(hwmodels.predict(device, model, scheme, "decode", batches, 700).time_s).size
            assert not falls(hwmodels.predict(device, model, scheme, "prefill", 1, batches * 16).time_s).size


@pytest.mark.parametrize("calibration", ["h200", "h100", "a100", "l40s"])
def test_between_two_measured_sizes_a_product_only_rises_or_only_falls(calibration: str) -> None:
    """Steps of tiles once made it fall by 4.3 % from batch 64 to 65, where nothing was measured."""
    table = load_calibration(calibration)
    assert table is not None
    device = {"h100": "h100-sxm", "a100": "a100-sxm-80gb"}.get(calibration, calibration)
    rng = np.random.default_rng(3)
    for name, p in table.kernels.items():
        if not len(p.sizes):
            continue
        m = np.arange(1, 1100)
        for _ in range(6):
            n, k = (int(64 * round(2 ** rng.uniform(4, 9))) for _ in range(2))
            time = np.asarray(gemm(device, m, n, k, name).time_s)
            knots = [int(v) for v in p.sizes[p.knot_of_size] if v <= m[-1]]
            inside = bool(p.measured(n, k))
            for low, high in itertools.pairwise(knots):
                part = time[low - 1 : high]
                down, up = falls(part).size, falls(part[::-1]).size
                assert not (down and up), (name, n, k, low, high)
                assert not down or inside, (name, n, k, low, high)


def test_at_measured_sizes_the_fit_is_left_alone() -> None:
    """What smooths between them changes nothing at them: the errors of the fits stay what they were judged to be."""
    for kernel in ("cublas_bf16", "cublas_int8", "cublas_fp8_rowwise", "trtllm_fp8_block"):
        table = load_calibration("h200")
        assert table is not None
        p = table.kernels[kernel]
        device = hwmodels.get_device("h200")
        m = p.sizes[p.knot_of_size]
        n, k = 6144, 4096
        found = gemm(device, m, n, k, kernel)
        weight = hwmodels.timing.families.FAMILIES[kernel].weight_bits / 8 * n * k
        family = hwmodels.timing.families.FAMILIES[kernel]
        cost = gemm_cost(m, n, k, weight_bytes=weight, activation_bytes=family.activation_bytes,
                         output_bytes=family.output_bytes)  # fmt: skip
        peak = device.peak_flop_per_s(family.compute)
        assert peak is not None
        plain = estimate(device, cost, peak, p, m, None, k)
        exact = plain.time_s * np.exp(p.correction(m, n, k, device.compute.units))
        floor = np.maximum(cost.flop / peak, cost.traffic_bytes / device.memory.bandwidth_bytes_per_s)
        assert found.time_s == pytest.approx(np.maximum(exact, floor), rel=1e-9)


@pytest.mark.parametrize("device", ["h200", "b200", "l40s", "mi300x", "a100"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_attention_rises_with_context_and_with_batch(device: str, phase: str) -> None:
    own = attention(device, phase, 1, 100, 32, 8).kind == "calibrated"
    for q, kv in ((32, 8), (64, 8), (40, 40)):
        grid = np.asarray(
            attention(device, phase, np.arange(1, 80)[:, None], np.arange(16, 400)[None, :], q, kv).time_s
        )
        by_context, by_batch = grid[:, 1:] / grid[:, :-1] - 1, grid[1:] / grid[:-1] - 1
        if not own:
            assert by_context.min() >= -ROUNDING
            assert by_batch.min() >= -ROUNDING


@pytest.mark.parametrize("device", ["h200", "h100-sxm", "b200"])
def test_a_size_has_one_time_whatever_is_asked_with_it(device: str) -> None:
    m = np.unique(np.round(np.geomspace(1, 9000, 120)))
    for kernel in ("trtllm_bf16", "cublas_int8", "trtllm_fp8"):
        many = np.asarray(gemm(device, m, 6144, 4096, kernel).time_s)
        one = [float(gemm(device, size, 6144, 4096, kernel).time_s) for size in m]
        assert many == pytest.approx(np.array(one), rel=ROUNDING)


def test_layers_add_up() -> None:
    """Twice the layers are twice the operators of a layer; the head stays."""
    config = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
              "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
    for device, scheme in (("h200", "fp8-rowwise"), ("b200", "nvfp4"), ("asic", "w4a8")):
        times = [
            float(hwmodels.predict(device, {**config, "num_hidden_layers": n}, scheme, "decode", 4, 900).time_s)
            for n in range(1, 70, 4)
        ]
        assert np.all(np.diff(times) > 0)
        assert np.diff(times, 2) == pytest.approx(np.zeros(len(times) - 2), abs=1e-6 * times[-1])


@pytest.mark.parametrize("seed", range(20))
def test_memory_is_a_recount_from_the_shapes(seed: int) -> None:
    """Weights and cache of random dense decoders, counted from their configs by hand."""
    rng = np.random.default_rng(seed)
    kv, group, d, layers = (int(rng.choice(v)) for v in ((1, 2, 8), (1, 4, 7), (64, 128), (1, 5, 24)))
    h, ffn, vocab = (128 * int(rng.integers(2, 40)) for _ in range(3))
    heads, tied = kv * group, bool(rng.integers(2))
    config = {"model_type": "llama", "hidden_size": h, "intermediate_size": ffn, "num_attention_heads": heads,
              "num_key_value_heads": kv, "head_dim": d, "vocab_size": vocab, "num_hidden_layers": layers,
              "tie_word_embeddings": tied}  # fmt: skip
    scheme = get_scheme(str(rng.choice(["bf16", "fp8-rowwise", "w4a16-g128", "w8a8", "bf16-kvfp8", "nvfp4"])))
    batch, context = int(rng.integers(1, 300)), int(rng.integers(1, 9000))
    device = hwmodels.get_device(str(rng.choice(["h100", "l40s", "asic"])))
    found = footprint(device, hwmodels.get_architecture(config), scheme, batch=batch, context=context)
    shapes = ((heads + 2 * kv) * d, h), (h, heads * d), (2 * ffn, h), (h, ffn)
    blocks = layers * sum(weight_nbytes(scheme, n, k) for n, k in shapes)
    in_16_bit = vocab * h * (1 if tied else 2) + layers * 2 * h + h
    assert found.weights_bytes == blocks + 2 * in_16_bit
    elements = 2 * layers * kv * d * batch * context
    part = scheme.kv_cache
    each = part.bits_per_element((4096, kv * d)) / 8 if part.is_quantized else 2
    assert found.kv_cache_bytes == pytest.approx(elements * each, rel=1e-12)
    assert found.total_bytes == (
        found.weights_bytes + found.kv_cache_bytes + found.activations_bytes + found.reserve_bytes
    )


def test_a_correction_of_one_size_is_that_of_the_nearest_edge() -> None:
    table = load_calibration("h200")
    assert table is not None
    p = table.kernels["cublas_int8"]  # measured from M = 64
    soft = np.array([3.0, 5.0])
    out = corrected(p, soft, lambda s: np.full_like(s, 3.0), np.array([1.0, 64.0]), 4096, 4096, 132, True)
    assert out[0] / soft[0] == pytest.approx(out[1] / soft[1], rel=1e-9)
