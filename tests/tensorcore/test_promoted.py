"""Chains that join float32 registers: the compiled loop, the slow one for Inf and NaN, and every way to join."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from qsim.formats import encode
from qsim.tensorcore import Preset, matmul

E4M3, BF16 = "hopper.wgmma.f32.e4m3", "hopper.wgmma.f32.bf16"
F32 = np.float32


def nearest(exact: Fraction) -> np.float32:
    """The float32 nearest to a number, ties to even: the nearest of the neighbours of its float64."""
    near = F32(float(exact))
    around = (np.nextafter(near, F32(-np.inf)), near, np.nextafter(near, F32(np.inf)))
    return min(around, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))


def joined(how: str, chain: np.float32, a: np.float32, b: np.float32, register: np.float32) -> np.float32:
    """One chain to a register, in exact rationals."""
    if how == "add":
        return nearest(Fraction(float(chain)) + Fraction(float(register)))
    one, other = (nearest(Fraction(float(a)) * Fraction(float(b))), chain) if how == "ffma" else (
        nearest(Fraction(float(chain)) * Fraction(float(a))), b)  # fmt: skip
    return nearest(Fraction(float(one)) * Fraction(float(other)) + Fraction(float(register)))


@pytest.mark.parametrize("how", ["add", "ffma", "ffma_a_first"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 70)])  # either operand may be the one that lies in panels
def test_registers_are_joined_as_the_promotion_says(how, shape):
    rng = np.random.default_rng(5)
    (m, n), k = shape, 300  # the last chain is shorter
    a, b = (encode(rng.standard_normal((rows, k)).astype(F32) * 8, "e4m3") for rows in (m, n))
    scales = {}
    if how != "add":
        scales = {
            "scale_a": rng.uniform(0.1, 3, (m, 3)).astype(F32),
            "scale_b": rng.uniform(0.1, 3, (n, 3)).astype(F32),
        }
    preset = Preset(name="test", instruction=E4M3, block=(1, 1, 128))
    got = matmul(a, b, preset=preset, promote_every=128, promotion=how, **scales).view(F32)
    chains = [matmul(a[:, i : i + 128], b[:, i : i + 128], instruction=E4M3).view(F32) for i in (0, 128, 256)]
    one = np.ones((max(m, n), 3), F32)
    sa, sb = scales.get("scale_a", one), scales.get("scale_b", one)
    for i, j in itertools.product(range(m), range(0, n, 4)):
        register = F32(0)
        for number, chain in enumerate(chains):
            register = joined(how, chain[i, j], sa[i, number], sb[j, number], register)
        assert got[i, j] == register


@pytest.mark.parametrize("how", ["add", "ffma", "ffma_a_first"])
def test_a_row_with_inf_does_not_change_the_others(how):
    rng = np.random.default_rng(6)
    a, b = (encode(rng.standard_normal((rows, 96)).astype(F32), "bfloat16") for rows in (4, 9))
    scales = {} if how == "add" else {"scale_a": np.full((4, 3), 0.3, F32), "scale_b": np.full((9, 3), 0.7, F32)}
    preset = Preset(name="test", instruction=BF16, block=(1, 1, 32))
    plain = matmul(a, b, preset=preset, promote_every=32, promotion=how, **scales)
    a[2, 40] = 0x7F80
    special = matmul(a, b, preset=preset, promote_every=32, promotion=how, **scales)
    np.testing.assert_array_equal(np.delete(special, 2, 0), np.delete(plain, 2, 0))
    assert not np.isfinite(special[2].view(F32)).any()


def test_sums_near_the_end_of_float32_take_the_slow_loop():
    a = np.full((2, 64), 0x7F00, np.uint16)  # 2^127
    b = encode(np.array([[0.25], [2.0]]).repeat(64, 1).astype(F32), "bfloat16")
    y = matmul(a, b, instruction=BF16, promote_every=32, promotion="add").view(F32)
    assert np.isinf(y).all()
    y = matmul(a[:, :2], b[:, :2], instruction=BF16, promote_every=32, promotion="add").view(F32)
    np.testing.assert_array_equal(y, [[2.0**126, np.inf]] * 2)
