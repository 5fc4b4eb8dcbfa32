"""Stream-K: the outputs that are possible when parts of K are added in any order, and those an H200 returned."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import qsim
from qsim.kernels.stream_k import MOST_PARTS, is_possible, partial_outputs, possible_outputs

from .test_pipelines import recorded, report, weight_of

F32 = np.float32


def bf16(values):
    return qsim.cast(values, "bfloat16")


@pytest.mark.parametrize(
    ("name", "warps", "stretch"),
    [("w2a16_g128", 4, 64), ("w8a16_ch", 4, 64), ("w8a8_fp8", 4, 64), ("w4a8_fp8", 2, 128)],
)
def test_every_value_seen_on_an_h200_is_possible(name, warps, stretch):
    """64 runs of 384x4096, M = 16, tiles of 256 in K that warps of 64 or 128 share: four parts of 1024."""
    data, record = recorded("h200_kernels"), report().recorder()
    key = f"{name}.384x4096.16"
    assert json.loads(data["notes"].tobytes())["stream_k"][key]["distinct"] > 1
    made, _ = record.fused_inputs(name, 384, 4096, 16)
    q = qsim.quantize.from_codes(made["codes"], report().FORMATS[name][0], made["weight_scale"])
    packed = qsim.pack(q)
    parts = partial_outputs(made["x"][:2], packed, "humming", 1024, warps=warps, stretch=stretch)
    assert len(parts) == 4
    seen = (data[f"stream_k.{key}.seen"].astype(np.uint32) << 16).view(F32)
    for i in range(seen.shape[-1]):
        assert is_possible(seen[..., i], parts).all()
    halves = partial_outputs(made["x"][:2], packed, "humming", 2048)
    assert not is_possible(seen[..., 0], halves).all()  # another split is told apart


@pytest.mark.parametrize("name", ["w4a16_g128", "w8a16_ch", "nvfp4_a16"])
@pytest.mark.parametrize("distribution", ["normal", "wide"])
def test_the_default_schedule_is_one_split_of_k_where_it_is_repeatable(name, distribution):
    """K = 512: two warps of 32 in turn for few tokens; two parts of 256, added in BF16, for 72 tokens."""
    data = recorded("humming_bits")
    packed = qsim.pack(report().weight(data, name, "256x512"))
    for m, how in ((16, {"length": 512, "warps": 2, "stretch": 32}), (72, {"length": 256})):
        values = possible_outputs(partial_outputs(data[f"x.512.{m}.{distribution}"], packed, "humming", **how))
        assert len(values) == 1
        y = report().codes_of(values[0])
        np.testing.assert_array_equal(y, data[f"{name}.256x512.{m}.{distribution}.y"])
    assert (y != data[f"{name}.256x512.72.{distribution}.yi"]).any()


def test_possible_values_are_those_of_all_orders():
    parts = bf16(np.random.default_rng(1).standard_normal((5, 3, 4)).astype(F32) * 8)
    found = possible_outputs(parts)
    assert (np.diff(found, axis=0) >= 0).all()
    orders = []
    for order in itertools.permutations(range(5)):
        total = parts[order[0]]
        for i in order[1:]:
            total = bf16(total + parts[i])
        orders.append(total)
    for i, j in np.ndindex(3, 4):
        assert set(found[:, i, j]) == {t[i, j] for t in orders}
    assert is_possible(orders[7], parts).all()
    assert not is_possible(orders[7] + 64, parts).any()


@pytest.mark.parametrize("name", ["w4a16_g128", "w2a16_g128", "mxfp4_a16"])
def test_values_of_sixteen_parts_seen_on_an_h200_are_possible(name):
    """64 runs of 384x4096, M = 72: sixteen parts of 256. A part more or less is not possible for all."""
    data, record = recorded("h200_kernels"), report().recorder()
    made, _ = record.fused_inputs(name, 384, 4096, 72)
    q = qsim.quantize.from_codes(made["codes"], report().FORMATS[name][0], made["weight_scale"])
    parts = partial_outputs(made["x"][:1], qsim.pack(q), "humming", 256)[..., 5:7]
    assert len(parts) == MOST_PARTS
    seen = (data[f"stream_k.{name}.384x4096.72.seen"][:1, 5:7].astype(np.uint32) << 16).view(F32)
    values = possible_outputs(parts)
    for i in range(seen.shape[-1]):
        assert (values == seen[None, ..., i]).any(axis=0).all()
    assert len(values) > len(set(seen[0, 0]))  # more is possible than was seen
    assert not (possible_outputs(parts[:-1]) == seen[None, ..., 0]).any(axis=0).all()


def test_infinite_sums_are_among_the_possible_ones():
    top = F32(3.3895314e38)
    parts = np.array([top, top, -top], F32).reshape(3, 1, 1)
    found = possible_outputs(parts)[:, 0, 0]
    assert set(found) == {top, F32(np.inf)}
    nothing = possible_outputs(np.array([np.inf, -np.inf, 1], F32).reshape(3, 1, 1))
    assert np.isnan(nothing).all()


def test_one_part_is_the_kernel_itself():
    packed = qsim.pack(weight_of())
    x = np.random.default_rng(2).standard_normal((3, 256)).astype(F32)
    want = qsim.linear(x, packed, exact=True, kernel="humming")
    np.testing.assert_array_equal(partial_outputs(x, packed, "humming", 256), want[None])


def test_parts_that_cut_a_group_or_are_too_many_are_refused():
    packed = qsim.pack(weight_of())
    x = np.ones((1, 256), F32)
    with pytest.raises(qsim.QsimError, match="must be a multiple of 128: got 100"):
        partial_outputs(x, packed, "humming", 100)
    with pytest.raises(qsim.QsimError, match="tinygemm.w4a16 is not known to add parts of K in BF16"):
        partial_outputs(x, packed, "tinygemm", 128)
    with pytest.raises(qsim.QsimError, match="3 warps must share K=256 and parts of 128 in whole stretches: got 64"):
        partial_outputs(x, packed, "humming", 128, warps=3, stretch=64)
    with pytest.raises(qsim.QsimError, match=f"of 1 to {MOST_PARTS} parts can be followed: got 17"):
        possible_outputs(np.zeros((17, 1, 1), F32))
