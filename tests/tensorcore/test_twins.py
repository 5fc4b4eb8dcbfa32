"""Every row of the table: the compiled model against the exact reference, one instruction and chains of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qsim.tensorcore import Instruction, generic, get_instruction, list_instructions, mma, reference
from qsim.tensorcore.engine import Chain
from qsim.tensorcore.gemm import _prepare

from . import cases

GENERIC = {
    "fp32_chain": generic(input="bf16", arithmetic="fma"),
    "fp32_inputs": generic(input="f32", arithmetic="fma"),
    "exact": generic(input="bf16", arithmetic="exact", products=16),
    "exact_fp8": generic(input="e4m3", arithmetic="exact", products=32),
    "exact_rz": generic(input="f16", arithmetic="exact", products=8, rounding="rz_f32"),
    "int32": generic(input="s8", arithmetic="integer", output="s32", products=32),
    "wide": generic(input="bf16", products=8, fraction_bits=40, zero_exponent=None),
    "narrow": generic(input="e4m3", products=32, fraction_bits=5, rounding="rz_e8m7"),
    "nearest": generic(input="f16", products=4, fraction_bits=22, rounding="rne_f32"),
    "tf32": generic(input="tf32", products=32, fraction_bits=30, rounding="rz_e8m10"),
    "high_e0": generic(input="bf16", products=16, zero_exponent=-40),
    "float32": generic(input="f32", products=8, fraction_bits=30),
    "e3m4": generic(input="e3m4", input_b="e5m2", products=16, fraction_bits=16, output="f16"),
}


def one_of_each() -> list[str]:
    """One instruction a set of parameters: others differ in the name of the architecture only."""
    seen: dict[Instruction, str] = {}
    for name in list_instructions():
        ins = get_instruction(name)
        key = dataclasses.replace(ins, name="", status="", source="", shape="", opcode="", k=ins.products, k_order=())
        if ins.arithmetic != "emulated":
            seen.setdefault(key, name)
        else:
            seen[dataclasses.replace(ins, name=name)] = name
    return list(seen.values())


def run_both(ins: Instruction, kind: str, rng: np.random.Generator, rows: int, columns: int, steps: int) -> None:
    step = ins.k if ins.arithmetic == "emulated" else ins.products
    k = step * steps
    a, b = cases.operand(ins, "a", kind, (rows, k), rng), cases.operand(ins, "b", kind, (columns, k), rng)
    c = cases.addend(ins, kind, (rows, columns), rng)
    sa, sb = (cases.scales(ins, w, n, k, kind, rng) for w, n in (("a", rows), ("b", columns)))
    expected = reference.mma(ins, a, b, c, sa, sb)
    np.testing.assert_array_equal(mma(ins, a, b, c, scale_a=sa, scale_b=sb), expected)
    if ins.arithmetic in ("truncated", "scaled"):
        chain = Chain(ins=ins)
        if chain.plan is not None:
            got = chain.run(_prepare(chain, ins, a, "a", sa), _prepare(chain, ins, b, "b", sb), c, np.arange(k))
            np.testing.assert_array_equal(got, expected, err_msg="vector kernel")


@pytest.mark.parametrize("name", one_of_each())
def test_every_row_matches_the_exact_reference(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    for kind in cases.KINDS:
        run_both(get_instruction(name), kind, rng, 3, 4, 1 if get_instruction(name).products > 16 else 2)


@pytest.mark.parametrize("name", GENERIC)
def test_generic_instructions_match_the_exact_reference(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    for kind in cases.KINDS:
        run_both(GENERIC[name], kind, rng, 4, 5, 2)


@pytest.mark.parametrize(
    "name", ["hopper.wgmma.f32.e4m3", "hopper.wgmma.f32.bf16", "hopper.wgmma.f32.tf32", "hopper.wgmma.f16.f16"]
)
def test_the_vector_kernel_matches_on_wider_tiles(name):
    """More columns than one panel holds, long chains, signed zeros, Inf and NaN in single rows and columns."""
    rng = np.random.default_rng(5)
    ins = get_instruction(name)
    for kind in ("normal", "wide", "subnormal", "zeros"):
        run_both(ins, kind, rng, 3, 133, 3)
    a = cases.operand(ins, "a", "normal", (4, 4 * ins.products), rng)
    b = cases.operand(ins, "b", "normal", (70, 4 * ins.products), rng)
    a[1] = cases.operand(ins, "a", "raw", a[1].shape, rng)
    b[5], b[66] = cases.operand(ins, "b", "raw", b[5].shape, rng), 0
    c = cases.addend(ins, "normal", (4, 70), rng)
    c[2, 3], c[3, 60] = np.array([np.inf, np.nan], c.dtype.str.replace("u", "f")).view(c.dtype)
    chain = Chain(ins=ins)
    got = chain.run(_prepare(chain, ins, a, "a", None), _prepare(chain, ins, b, "b", None), c, np.arange(a.shape[1]))
    np.testing.assert_array_equal(got, reference.mma(ins, a, b, c))
