"""Whole GEMMs: order of K, promotion, splits, scales, threads, odd shapes, and what bad input gets."""

from __future__ import annotations

import re
import threading
import tracemalloc

import numpy as np
import pytest

from qsim.formats import encode
from qsim.tensorcore import (
    PRESETS,
    get_instruction,
    get_preset,
    list_instructions,
    matmul,
    matmul_floats,
    mma,
    reference,
)

WGMMA = "hopper.wgmma.f32.e4m3"


def e4m3(rng, *shape, scale=1.0):
    return encode((scale * rng.standard_normal(shape)).astype(np.float32), "e4m3")


def f32(bits):
    return bits.view(np.float32)


def reference_chain(instruction, a, b, c=None):
    ins = get_instruction(instruction)
    step = ins.k if ins.arithmetic == "emulated" else ins.products
    pad = ((0, 0), (0, -a.shape[1] % step))
    c = np.zeros((len(a), len(b)), ins.output_dtype) if c is None else c
    return reference.mma(ins, np.pad(a, pad), np.pad(b, pad), c)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 31), (2, 130, 33), (17, 3, 64), (5, 67, 129), (33, 1, 100)])
@pytest.mark.parametrize("name", [WGMMA, "hopper.mma.f32.e4m3", "ada.mma.f16.e4m3"])
def test_any_shape(name, shape):
    rng = np.random.default_rng(sum(shape))
    m, n, k = shape
    a, b = e4m3(rng, m, k), e4m3(rng, n, k)
    np.testing.assert_array_equal(matmul(a, b, instruction=name), reference_chain(name, a, b))


@pytest.mark.parametrize("shape", [(0, 4, 8), (4, 0, 8), (2, 3, 0)])
def test_empty(shape):
    m, n, k = shape
    y = matmul(np.zeros((m, k), np.uint8), np.zeros((n, k), np.uint8), preset="cublaslt_fp8_fast")
    assert y.shape == (m, n)
    assert not y.any()


def test_a_tile_of_every_kind_of_row():
    """Tall, wide and tiled outputs hold the bits that a plain chain of instructions gives."""
    rng = np.random.default_rng(1)
    for m, n in ((600, 3), (3, 700), (130, 530)):
        a, b = e4m3(rng, m, 96), e4m3(rng, n, 96)
        expected = mma(WGMMA, a, b, np.zeros((m, n), np.uint32))
        np.testing.assert_array_equal(matmul(a, b, instruction=WGMMA, threads=1), expected)
        np.testing.assert_array_equal(matmul(a, b, instruction=WGMMA, threads=3), expected)


def test_unsigned_bytes_are_exact():
    rng = np.random.default_rng(2)
    a, b = np.full((3, 4096), 255, np.uint8), rng.integers(0, 256, (4, 4096)).astype(np.uint8)
    expected = (a.astype(np.int64) @ b.astype(np.int64).T + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(matmul(a, b, instruction="hopper.wgmma.s32.u8"), expected)


def test_integers_wrap_or_clamp():
    a = np.full((1, 64), 127, np.int8)
    c = np.full((1, 1), 2**31 - 1000, np.int32)
    exact = 2**31 - 1000 + 64 * 127 * 127
    assert matmul(a, a, instruction="hopper.mma.s32.s8", c=c)[0, 0] == exact - 2**32
    assert matmul(a, a, instruction="hopper.mma.s32.s8", c=c, satfinite=True)[0, 0] == 2**31 - 1
    # it clamps after each instruction, not at the end
    b = a.copy()
    b[:, 32:] *= -1
    assert mma("ampere.mma.s32.s8", a, b, c, satfinite=True)[0, 0] == 2**31 - 1 - 32 * 127 * 127


def test_c_starts_the_chain():
    rng = np.random.default_rng(3)
    a, b = e4m3(rng, 4, 96), e4m3(rng, 6, 96)
    c = rng.standard_normal((4, 6)).astype(np.float32)
    expected = reference_chain(WGMMA, a, b, c.view(np.uint32))
    np.testing.assert_array_equal(matmul(a, b, instruction=WGMMA, c=c), expected)


def test_promotion_is_a_plain_sum_of_fresh_chains():
    rng = np.random.default_rng(4)
    a, b = e4m3(rng, 5, 300), e4m3(rng, 7, 300)
    total = np.zeros((5, 7), np.float32)
    for k in range(0, 300, 128):
        total = total + f32(matmul(a[:, k : k + 128], b[:, k : k + 128], instruction=WGMMA))
    np.testing.assert_array_equal(f32(matmul(a, b, preset="cublaslt_fp8_precise")), total)
    np.testing.assert_array_equal(f32(matmul(a, b, instruction=WGMMA, promote_every=128)), total)


def test_split_k_adds_slices_forward():
    rng = np.random.default_rng(5)
    a, b = (encode(rng.standard_normal((n, 400)).astype(np.float32), "bf16") for n in (4, 6))
    name = "hopper.wgmma.f32.bf16"
    total = np.zeros((4, 6), np.float32)
    for start, stop in ((0, 192), (192, 384), (384, 400)):  # units of 64: 7 of them on 3 slices
        total = total + f32(matmul(a[:, start:stop], b[:, start:stop], instruction=name))
    np.testing.assert_array_equal(f32(matmul(a, b, instruction=name, split_k=3)), total)
    np.testing.assert_array_equal(f32(matmul(a, b, instruction=name, split_k=[192, 192, 16])), total)
    assert (f32(matmul(a, b, instruction=name)) != total).any()


def test_k_order_permutes_the_products():
    rng = np.random.default_rng(6)
    a, b = e4m3(rng, 4, 128, scale=3), e4m3(rng, 6, 128, scale=3)
    order = rng.permutation(64)
    whole = np.concatenate([order, order + 64])
    got = matmul(a, b, instruction=WGMMA, k_order=order)
    np.testing.assert_array_equal(got, matmul(a[:, whole].copy(), b[:, whole].copy(), instruction=WGMMA))
    assert (got != matmul(a, b, instruction=WGMMA)).any()


def test_emulated_instructions_are_fp16_chains_that_meet_c_at_the_end():
    rng = np.random.default_rng(7)
    a, b = e4m3(rng, 3, 32), e4m3(rng, 4, 32)
    order = list(get_instruction("hopper.mma.f32.e4m3").k_order)
    x, y = (encode(f, "float16") for f in (_values(a[:, order]), _values(b[:, order])))
    chain = f32(matmul(x, y, instruction="hopper.mma.f32.f16"))
    c = rng.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(f32(mma("hopper.mma.f32.e4m3", a, b, c)), chain + c)


def _values(codes):
    from qsim.formats import decode

    return decode(codes, "e4m3")


def test_deepgemm_promotes_with_one_rounding():
    """final = fma(scale_a * scale_b, chain, final), against exact fractions."""
    from fractions import Fraction

    rng = np.random.default_rng(8)
    m, n, k = 3, 140, 300
    a, b = e4m3(rng, m, k), e4m3(rng, n, k)
    sa = rng.uniform(0.01, 1, (m, 3)).astype(np.float32)
    sb = rng.uniform(0.01, 1, (2, 3)).astype(np.float32)
    got = f32(matmul(a, b, preset="deepgemm", scale_a=sa, scale_b=sb))
    for i, j in ((0, 0), (2, 127), (1, 128), (2, 139)):
        total = np.float32(0)
        for block in range(3):
            part = slice(128 * block, 128 * block + 128)
            chain = f32(matmul(a[i : i + 1, part], b[j : j + 1, part], instruction=WGMMA))[0, 0]
            scale = sa[i, block] * sb[j // 128, block]
            exact = Fraction(float(scale)) * Fraction(float(chain)) + Fraction(float(total))
            total = np.float32(_to_float32(exact))
        assert got[i, j] == total


def _to_float32(x):
    """A fraction to the nearest float32, ties to even (float64 first would round twice)."""
    from qsim.formats import reference as codec

    return np.uint32(codec.encode(x, "float32", overflow="nonsaturating")).view(np.float32)


def test_scales_of_the_result():
    rng = np.random.default_rng(9)
    a, b = e4m3(rng, 3, 64), e4m3(rng, 5, 64)
    plain = f32(matmul(a, b, instruction=WGMMA))
    sa, sb = np.float32(0.3), np.float32(0.7)
    np.testing.assert_array_equal(f32(matmul(a, b, instruction=WGMMA, scale_a=sa, scale_b=sb)), plain * (sa * sb))
    rows, columns = rng.random(3).astype(np.float32), rng.random(5).astype(np.float32)
    got = f32(matmul(a, b, instruction=WGMMA, scale_a=rows, scale_b=columns, scale_order="b_first"))
    # cuBLASLt's order for scales of rows, as an H200 showed, is the default
    assert np.array_equal(got, f32(matmul(a, b, instruction=WGMMA, scale_a=rows, scale_b=columns)))
    np.testing.assert_array_equal(got, (plain * columns[None]) * rows[:, None])


def test_out_format_is_one_rounding_of_the_accumulator():
    rng = np.random.default_rng(10)
    a, b = e4m3(rng, 3, 64), e4m3(rng, 5, 64)
    bits = matmul(a, b, instruction=WGMMA)
    for fmt in ("bf16", "f16", "e5m2", "f32"):
        expected = encode(f32(bits), {"f16": "float16", "f32": "float32"}.get(fmt, fmt), overflow="nonsaturating")
        np.testing.assert_array_equal(matmul(a, b, instruction=WGMMA, out_format=fmt), expected)


def test_special_values_reach_only_their_row_and_column():
    rng = np.random.default_rng(11)
    a, b = e4m3(rng, 40, 96), e4m3(rng, 50, 96)
    clean = matmul(a, b, instruction=WGMMA)
    a[7, 3], b[9, 50] = 0x7F, 0xFF
    got = matmul(a, b, instruction=WGMMA)
    assert (got[7] == 0x7FFFFFFF).all()
    assert (got[:, 9] == 0x7FFFFFFF).all()
    keep = np.ix_(np.delete(np.arange(40), 7), np.delete(np.arange(50), 9))
    np.testing.assert_array_equal(got[keep], clean[keep])


def test_bf16_sums_that_overflow_become_infinite():
    """2^128 - 2^128 + 1 within a step is 0 (nothing overflows before the end); a lone 2^128 is Inf, and stays."""
    big, one = 0x5F80, 0x3F80  # 2^64, 1
    a = np.zeros((3, 32), np.uint16)
    b = np.zeros((1, 32), np.uint16)
    b[0, :3] = big, big, one
    a[0, :3] = big, big ^ 0x8000, one
    a[1, 0] = big
    a[2, 0], a[2, 16] = big, big ^ 0x8000
    b[0, 16] = big
    got = matmul(a, b, instruction="hopper.wgmma.f32.bf16")
    assert got[:, 0].tolist() == [0, 0x7F800000, 0x7F800000]


def test_threads_of_the_caller():
    """Several Python threads may multiply at once, each with threads of its own."""
    rng = np.random.default_rng(12)
    a, b = e4m3(rng, 300, 256), e4m3(rng, 300, 256)
    expected = matmul(a, b, instruction=WGMMA, threads=1)
    results = [None] * 4

    def work(i):
        for _ in range(3):
            results[i] = matmul(a, b, instruction=WGMMA, threads=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_rounding_mode_is_back_to_nearest():
    rng = np.random.default_rng(13)
    matmul(e4m3(rng, 64, 64), e4m3(rng, 64, 64), instruction=WGMMA, threads=1)
    x = np.float32(1) + np.full(16, 2.0**-24 + 2.0**-30, np.float64).astype(np.float32)
    assert (x == np.float32(1 + 2.0**-23)).all()


def test_memory_is_that_of_a_tile():
    peaks = []
    for n in (512, 1024):
        rng = np.random.default_rng(14)
        a, b = e4m3(rng, n, n), e4m3(rng, n, n)
        matmul(a[:64], b[:64], instruction=WGMMA, threads=1)
        tracemalloc.start()
        y = matmul(a, b, instruction=WGMMA, threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1] - y.nbytes)
        tracemalloc.stop()
    assert max(peaks) < 8e6
    assert peaks[1] < 1.2 * peaks[0]


def test_batches_broadcast():
    rng = np.random.default_rng(15)
    a, b = e4m3(rng, 2, 3, 4, 32), e4m3(rng, 3, 5, 32)
    c = np.zeros((2, 3, 4, 5), np.uint32)
    d = mma(WGMMA, a, b, c)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(d[i, j], mma(WGMMA, a[i, j], b[j], c[i, j]))


def test_low_bits_of_tf32_are_not_read():
    rng = np.random.default_rng(16)
    a, b = (rng.standard_normal((3, 16)).astype(np.float32).view(np.uint32) for _ in range(2))
    c = np.zeros((3, 3), np.uint32)
    mask = np.uint32(0xFFFFE000)
    name = "hopper.wgmma.f32.tf32"
    np.testing.assert_array_equal(mma(name, a, b, c), mma(name, a & mask, b & mask, c))


def test_float_convenience():
    rng = np.random.default_rng(17)
    x, w = rng.standard_normal((2, 3, 40)).astype(np.float32)
    expected = f32(matmul(encode(x, "e4m3"), encode(w, "e4m3"), preset="cublaslt_fp8_fast"))
    np.testing.assert_array_equal(matmul_floats(x, w, preset="cublaslt_fp8_fast"), expected)
    assert matmul_floats(x, w, instruction="hopper.mma.s32.s8").dtype == np.int32
    scaled = matmul_floats(np.ones((2, 64)), np.ones((3, 64)), instruction="blackwell.tcgen05.f32.nvfp4")
    assert (scaled == 64).all()


def test_block_scales_multiply_exactly():
    ones = np.full((1, 64), 0x38, np.uint8)
    sa, sb = np.array([[127 + 5, 127 - 3]], np.uint8), np.array([[127, 127 + 1]], np.uint8)
    y = matmul(ones, ones, instruction="blackwell.tcgen05.f32.mxfp8_e4m3", scale_a=sa, scale_b=sb)
    assert f32(y)[0, 0] == 32 * 32 + 32 * 0.25


def test_table_and_presets():
    names = list_instructions()
    assert len(names) == len(set(names)) > 250
    for name in names:
        ins = get_instruction(name)
        assert re.fullmatch(r"[a-z0-9_]+\.(mma|wgmma|tcgen05|mfma)\.(f16|f32|f64|s32)(\.[a-z0-9_]+){1,2}", name)
        assert ins.status in ("established", "vectors", "source")
        assert ins.source
        if ins.emulated_by:
            assert ins.emulated_by in names
    for preset in PRESETS.values():
        assert preset.instruction in names
        assert preset.source
    assert get_preset("deepgemm").promotion == "ffma"
    assert [n for n in names if ".s4" in n and n.startswith(("hopper", "blackwell"))] == []
