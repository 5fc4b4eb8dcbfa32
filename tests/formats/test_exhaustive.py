"""Every float32 input: `make exhaustive`. Minutes."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest

import qsim
from qsim.formats import get_element_format

CHUNK = 1 << 24


@pytest.mark.exhaustive
@pytest.mark.parametrize("overflow", ["nonsaturating", "saturate"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_all_float32_inputs_against_ml_dtypes(name, overflow, capsys):
    """2^32 patterns. ml_dtypes does not saturate; under `saturate` its overflows and infinities become +-max. The NaN
    code is ours with the input's sign (E5M2: ml_dtypes writes 0x7E, compared as NaN)."""
    fmt = get_element_format(name)
    kind = getattr(ml_dtypes, name)
    mismatches = nans = 0
    start = time.perf_counter()
    for first in range(0, 1 << 32, CHUNK):
        x = np.arange(first, first + CHUNK, dtype=np.uint64).astype(np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            theirs = x.astype(kind).view(np.uint8)
        ours = qsim.encode(x, name, overflow=overflow, nan="keep_sign")
        nan = np.isnan(x)
        if overflow == "saturate":
            magnitude = theirs & 0x7F
            theirs = np.where(~nan & (magnitude > fmt.max_code), (theirs & 0x80) | fmt.max_code, theirs)
        nans += np.count_nonzero(nan)
        mismatches += np.count_nonzero((ours != theirs) & ~nan)
        is_nan_code = np.isin(ours[nan], fmt.nan_codes) & ((ours[nan] >> 7) == np.signbit(x[nan]))
        mismatches += np.count_nonzero(~is_nan_code)
    with capsys.disabled():
        print(
            f"\n{name} {overflow}: {mismatches} mismatches in {1 << 32} float32 inputs ({nans} NaN among them), "
            f"{time.perf_counter() - start:.0f} s"
        )
    assert mismatches == 0
