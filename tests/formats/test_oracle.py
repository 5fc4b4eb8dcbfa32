"""Against implementations from outside that `make oracle` installs: torch and gfloat."""

from __future__ import annotations

import numpy as np
import pytest

import qsim
from qsim.formats import get_element_format

from .oracle import bfloat16_patterns, edges, float16_patterns

pytestmark = pytest.mark.oracle


def everyday(name: str) -> np.ndarray:
    x = np.concatenate([bfloat16_patterns(), float16_patterns(), edges(get_element_format(name), np.float32)])
    return x[~np.isnan(x)]


@pytest.mark.parametrize(
    ("name", "overflow"),
    [
        ("float8_e4m3fn", "saturate"),  # torch saturates E4M3FN since 2.12
        ("float8_e5m2", "nonsaturating"),
        ("float8_e4m3fnuz", "nonsaturating"),
        ("float8_e5m2fnuz", "nonsaturating"),
        ("bfloat16", "nonsaturating"),
        ("float16", "nonsaturating"),
    ],
)
def test_torch_encodes_the_same(name, overflow):
    torch = pytest.importorskip("torch")
    x = everyday(name)
    codes = torch.from_numpy(x).to(getattr(torch, name)).view(torch.uint8 if "float8" in name else torch.uint16)
    assert np.count_nonzero(qsim.encode(x, name, overflow=overflow) != codes.numpy()) == 0


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_torch_decodes_the_same(name):
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes).view(getattr(torch, name)).to(torch.float32).numpy()
    ours = qsim.decode(codes, name)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    number = ~np.isnan(ours)
    assert np.array_equal(ours[number].view(np.uint32), theirs[number].view(np.uint32))


GFLOAT = {
    "float8_e4m3fn": "format_info_ocp_e4m3",
    "float8_e5m2": "format_info_ocp_e5m2",
    "float6_e2m3fn": "format_info_ocp_e2m3",
    "float6_e3m2fn": "format_info_ocp_e3m2",
    "float4_e2m1fn": "format_info_ocp_e2m1",
}
MODES = {
    "nearest_even": "TiesToEven",
    "nearest_away": "TiesToAway",
    "toward_zero": "TowardZero",
    "up": "TowardPositive",
    "down": "TowardNegative",
}


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", GFLOAT)
def test_gfloat_rounds_the_same(name, rounding):
    """Directed modes, which ml_dtypes does not have."""
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    info = getattr(formats, GFLOAT[name])
    # float32 neighbours: at a float64 just below a tie gfloat 0.5.2 adds one half in float64 and rounds up
    x = edges(get_element_format(name), np.float32).astype(np.float64)
    x = x[np.isfinite(x)]
    x = x[:: 1 + x.size // 600]
    mode = getattr(gfloat.RoundMode, MODES[rounding])
    theirs = np.array([gfloat.round_float(info, float(v), mode, sat=True) for v in x])
    ours = qsim.cast(x, name, rounding=rounding)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize(("bits", "precision"), [(8, 4), (8, 3), (8, 1), (6, 3), (4, 2)])
@pytest.mark.parametrize("extended", [True, False])
def test_gfloat_p3109(bits, precision, extended):
    gfloat = pytest.importorskip("gfloat")
    from gfloat.formats import format_info_p3109

    domain = gfloat.Domain.Extended if extended else gfloat.Domain.Finite
    try:
        info = format_info_p3109(bits, precision, gfloat.Signedness.Signed, domain)
    except (AttributeError, TypeError):
        pytest.skip("this gfloat has another signature for P3109 formats")
    fmt = qsim.formats.p3109(bits, precision, extended=extended)
    for code in range(1 << bits):
        theirs = gfloat.decode_float(info, code).fval
        ours = float(qsim.decode(np.uint8(code), fmt))
        assert ours == theirs or (np.isnan(ours) and np.isnan(theirs))
    x = edges(fmt, np.float64)
    x = x[np.isfinite(x)]
    theirs = [gfloat.round_float(info, float(v), gfloat.RoundMode.TiesToEven, sat=True) for v in x]
    assert np.array_equal(qsim.cast(x, fmt), theirs)
