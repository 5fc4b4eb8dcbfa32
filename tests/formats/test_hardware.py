"""The codec against the conversions of an H200, run by run: every boundary and its neighbour, 0 mismatches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qsim

GOLDEN = Path(__file__).parents[1] / "golden" / "conversions.npz"

# table, format, policies that the instruction has
CASES = [
    ("f32_e4m3", "float8_e4m3fn", {}),
    ("f32_e5m2", "float8_e5m2", {}),
    ("f32_f16", "float16", {"overflow": "nonsaturating"}),
    ("f32_bf16", "bfloat16", {"overflow": "nonsaturating"}),
    ("f32_s8", "int8", {"nan": "zero"}),
]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


@pytest.mark.parametrize(("table", "fmt", "policy"), CASES, ids=[c[0] for c in CASES])
def test_every_run_of_every_conversion(golden, table, fmt, policy):
    """The recorded runs cover all 2^32 inputs; ours starts and ends each at the same pattern."""
    low, high = golden[f"{table}.min_bits"].astype(np.uint32), golden[f"{table}.max_bits"].astype(np.uint32)
    count, code = golden[f"{table}.count"].astype(np.uint64), golden[f"{table}.code"]
    assert int(count.sum()) == 1 << 32
    contiguous = count == high.astype(np.uint64) - low + 1
    assert np.all(contiguous | ((table == "f32_s8") & (code == 0)))
    for ends in (low, high):
        got = qsim.encode(ends.view(np.float32), fmt, **policy)
        assert np.count_nonzero(got != code.astype(got.dtype)) == 0
    # one step out of a run lies in another one: the boundary is exactly there
    inside = contiguous & (high != 0x7FFFFFFF) & (high != 0xFFFFFFFF)
    beyond = qsim.encode((high[inside] + np.uint32(1)).view(np.float32), fmt, **policy)
    assert np.all(beyond != code[inside].astype(beyond.dtype))


@pytest.mark.parametrize(("table", "fmt"), [("f16_to_e4m3", "e4m3"), ("f16_to_e5m2", "e5m2")])
def test_all_half_patterns(golden, table, fmt):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert np.count_nonzero(qsim.encode(halves, fmt) != golden[table]) == 0


@pytest.mark.parametrize(("table", "fmt"), [("e4m3_to_f16", "e4m3"), ("e5m2_to_f16", "e5m2")])
def test_all_codes_to_half(golden, table, fmt):
    """FP8 to half: through our decoder and our float16 encoder, bit for bit, canonical NaN included."""
    values = qsim.decode(np.arange(256, dtype=np.uint8), fmt)
    assert np.count_nonzero(qsim.encode(values, "float16", overflow="nonsaturating") != golden[table]) == 0
