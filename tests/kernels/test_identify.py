"""A kernel is told by its bits."""

from __future__ import annotations

import numpy as np
import pytest

import qsim
from qsim.kernels import identify, linear, list_pipelines, pack

from .test_pipelines import HUMMING, packed, recorded, weight_of

F32 = np.float32


@pytest.mark.parametrize("name", HUMMING)
def test_recorded_outputs_are_told_to_be_humming_s(name):
    data = recorded("humming_bits")
    key = f"{name}.256x512.72.wide"
    found = identify(data["x.512.72.wide"], packed(name, "256x512"), data[f"{key}.yi"])
    assert found[0].kernel == "humming"
    assert found.rows[0][1] == 0


def test_kernels_of_one_scheme_are_told_apart_by_sums_that_cancel():
    """Within 32 columns the second half of the products cancels the first: what is left shows the order of K."""
    draw = np.random.default_rng(9)
    codes = np.tile(draw.integers(0, 16, (64, 64, 1, 16), np.uint8), (1, 1, 2, 1)).reshape(64, 2048)
    scales, zeros = draw.uniform(0.005, 0.02, (64, 16)).astype(F32), draw.integers(5, 11, (64, 16))
    weight = pack(qsim.quantize.from_codes(codes, "W4A16", qsim.cast(scales, "bfloat16"), zero_points=zeros))
    half = draw.standard_normal((16, 64, 1, 16)) * np.exp2(draw.integers(-6, 7, (64, 1, 16)))
    x = np.concatenate((half, -half), axis=2).reshape(16, 2048) + draw.standard_normal((16, 2048)) * 2.0**-7
    x = qsim.cast(x.astype(F32), "bfloat16")
    rows = [row for row in list_pipelines() if row.fits(weight.scheme)]
    assert len(rows) >= 4
    for row in rows:
        found = identify(x, weight, linear(x, weight, exact=True, kernel=row))
        same = [name for name, differ, *_ in found.rows if differ == 0]
        assert row.name in same
        if row.name in ("tinygemm.w4a16", "triton.w4a16"):
            assert same == [row.name]
        else:  # one chain over the same operands, whichever library runs it
            assert {"tinygemm.w4a16", "triton.w4a16"}.isdisjoint(same)


def test_outputs_of_another_shape_and_schemes_without_a_kernel_are_refused():
    x = np.ones((2, 256), F32)
    with pytest.raises(qsim.QsimError, match=r"outputs must have the shape \(2, 32\): got \(2, 31\)"):
        identify(x, pack(weight_of()), np.ones((2, 31), F32))
    with pytest.raises(qsim.QsimError, match="no kernel here runs Scheme"):
        identify(x, pack(qsim.quantize(np.ones((32, 256)), "w4a4-channel-token")), np.ones((2, 32), F32))
