"""The probe on every row of the table: it finds the parameters that the row was made of, from outputs alone."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from qsim.tensorcore import generic, get_instruction, list_instructions, matmul_floats, probe
from qsim.tensorcore.probing import _parameters

DISTINCT = {_parameters(get_instruction(name)): name for name in reversed(list_instructions())}


def run(ins, **arguments):
    return probe(
        lambda a, b: matmul_floats(a, b, instruction=ins, **arguments), input=ins.input_a, input_b=ins.input_b, rows=32
    )


@pytest.mark.parametrize("name", DISTINCT.values())
def test_every_row(name):
    ins = get_instruction(name)
    found = run(ins)
    if ins.arithmetic == "integer":
        assert found.integer == ("wrap" if ins.format_a.bits + ins.format_b.bits == 16 else "unseen")
        assert name in found.matches
        return
    assert name in found.matches
    if found.products is None:  # formats too narrow to lose a bit
        assert found.at_least < (ins.fraction_bits or 100)
        return
    if ins.arithmetic == "truncated":
        assert found.products == ins.products
        if found.fraction_bits is None:
            assert found.at_least <= ins.fraction_bits
        else:
            assert (found.fraction_bits, found.alignment) == (ins.fraction_bits, "truncate")
        assert found.zero_exponent in (None, ins.zero_exponent)
        rounding = "nearest_even" if ins.output == "f16" else "toward_zero"
        assert (found.rounding, found.result_bits) == (rounding, ins.sum_rounding.fraction_bits)
        assert found.order[0] == tuple(range(ins.products))
        assert found.k_order == "ascending"
    elif ins.arithmetic == "emulated":
        assert (found.products, found.fraction_bits, found.promote_every) == (16, 25, 32)
        assert found.order[0] + found.order[1] == ins.k_order
    elif ins.arithmetic == "fma":
        assert (found.products, found.rounding) == (1, "nearest_even")


def test_most_rows_show_their_parameters():
    """e0 is visible with bf16 and tf32 into f32 and with f16 into f16, and not where products cannot be that small."""
    assert run(get_instruction("hopper.wgmma.f32.bf16")).zero_exponent == -133
    assert run(get_instruction("ampere.mma.f32.bf16")).zero_exponent == -132
    assert run(get_instruction("volta.mma.f16.f16")).zero_exponent == -19
    assert run(get_instruction("hopper.wgmma.f32.f16")).zero_exponent is None
    assert run(get_instruction("hopper.wgmma.f32.e4m3")).zero_exponent is None


@pytest.mark.parametrize(
    ("products", "fraction_bits", "rounding", "zero_exponent"),
    [(8, 20, "rz_e8m19", -130), (64, 30, "rz_f32", -140), (4, 23, "rne_f32", -128), (32, 11, "rz_e8m9", -133)],
)
def test_made_up_hardware(products, fraction_bits, rounding, zero_exponent):
    ins = generic(
        input="bf16",
        products=products,
        fraction_bits=fraction_bits,
        rounding=rounding,
        zero_exponent=zero_exponent,
        name="made up",
    )
    found = run(ins)
    assert (found.products, found.fraction_bits) == (products, fraction_bits)
    assert found.result_bits == ins.sum_rounding.fraction_bits
    assert found.rounding == ("nearest_even" if rounding.startswith("rne") else "toward_zero")
    if rounding.endswith("f32"):
        assert found.zero_exponent == zero_exponent
    assert found.matches == ()


def test_k_order_of_a_kernel():
    order = np.arange(32).reshape(2, 16).T.reshape(-1)  # 0 16 1 17 ...
    found = run(get_instruction("ampere.mma.f32.bf16"), k_order=order)
    assert found.order[0] == tuple(sorted(order[:8].tolist()))
    assert found.k_order != "ascending"
    assert found.matches == ()


@pytest.mark.parametrize("interval", [128, 256])
def test_promotion_interval(interval):
    ins = get_instruction("hopper.wgmma.f32.e4m3")
    found = run(ins, promote_every=interval)
    assert (found.products, found.fraction_bits, found.promote_every) == (32, 13, interval)
    assert "hopper.wgmma.f32.e4m3" in found.matches


def test_bad_black_boxes():
    with pytest.raises(ValueError, match="must return floats of shape"):
        probe(lambda a, b: a, input="bf16")
    with pytest.raises(ValueError, match="must return integers"):
        probe(lambda a, b: a.astype(float) @ b.T, input="s8")


def test_numpy_itself():
    """A float64 GEMM of FP8 values loses nothing that can be seen."""
    found = probe(lambda a, b: (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.float32), input="e4m3")
    assert found.fraction_bits is None
    assert found.products is None


def test_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "qsim.tensorcore.floats", None)
    found = probe(lambda a, b: a @ b.T, input="bf16", rows=32, k_promotion=0)
    assert dataclasses.asdict(found)["matches"] == ()
    assert "not compared" in found.note
