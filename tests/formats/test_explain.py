"""The explanation agrees with the codec, and its words with its numbers."""

from __future__ import annotations

import itertools
import json
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from qsim import formats
from qsim.formats import FloatFormat, get_format, list_formats, reference
from qsim.formats.describe import binades, codes, describe, nan_count, special_codes
from qsim.formats.explain import bit_fields, explain, number
from qsim.formats.explain_blocks import explain_blocks
from qsim.formats.rounding import OVERFLOWS, ROUNDINGS
from qsim.formats.spec import BlockFormat

ELEMENTS = [f.name for f in list_formats() if not isinstance(f, BlockFormat)]


def _samples(name: str) -> list[float]:
    """Values, midpoints, their neighbours and both sides of the ends."""
    fmt = get_format(name)
    rng = random.Random(1)
    if fmt.bits <= 8:
        values = list(fmt.values)
    else:
        some = [rng.randrange(1 << fmt.bits) << fmt.padding_bits for _ in range(60)]
        values = sorted({v for c in some if math.isfinite(v := float(reference.decode(c, fmt)))})
    picks = [*rng.sample(values, min(12, len(values))), fmt.max, fmt.min]
    mids = [(a + b) / 2 for a, b in rng.sample(list(itertools.pairwise(values)), min(12, len(values) - 1))]
    ends = [fmt.max * 1.01, fmt.max * 1.04, fmt.max * 3, -fmt.max * 1.02, 0.0, -0.0, math.inf, -math.inf]
    near = [math.nextafter(m, math.inf) for m in mids]
    return [float(x) for x in (*picks, *mids, *near, *ends, 0.3, -0.7)]


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_code_and_neighbours_agree_with_the_codec(name: str, rounding: str) -> None:
    fmt = get_format(name)
    for x in _samples(name):
        for overflow in OVERFLOWS:
            try:
                code = reference.encode(x, fmt, rounding=rounding, overflow=overflow, random_value=7, random_bits=4)
            except ValueError:
                with pytest.raises(ValueError, match="overflows"):
                    explain(x, fmt, rounding=rounding, overflow=overflow, random_value=7, random_bits=4)
                continue
            e = explain(x, fmt, rounding=rounding, overflow=overflow, random_value=7, random_bits=4)
            assert e.code == code
            assert int(e.bits, 2) == code
            assert e.below is None or e.below.value <= x
            assert e.above is None or e.above.value >= x
            assert e.decision.endswith(".")
            if e.case in ("nearest", "tie", "directed", "to_odd", "stochastic"):
                assert e.result in {n.value for n in (e.below, e.above) if n is not None}
                assert e.below is None or e.above is None or e.fraction is not None
            if e.case in ("nearest", "tie") and e.below and e.above:
                taken = e.below if e.result == e.below.value else e.above
                assert taken.distance_ulp <= 0.5 + 1e-9
                assert (e.case == "tie") == (Fraction(x) * 2 == Fraction(e.below.value) + Fraction(e.above.value))
            if e.case == "exact":
                assert e.result == x
                assert e.error == 0
            if e.case == "overflow":
                assert not fmt.min <= x <= fmt.max


def test_the_fast_codec_gives_the_explained_codes() -> None:
    for name in ("float8_e4m3fn", "float8_e5m2", "int8", "float4_e2m1fn"):
        x = np.array(_samples(name))
        assert [explain(float(v), name).code for v in x] == formats.encode(x, name).tolist()


@pytest.mark.parametrize(
    ("x", "fmt", "choices", "case", "result", "words"),
    [
        (0.3, "e4m3", {}, "nearest", 0.3125, "0.6 ulp above 0.28125 and 0.4 ulp below 0.3125; the nearer is 0.3125"),
        (0.296875, "e4m3", {}, "tie", 0.3125, "nearest_even takes the even code, 0x2A = 0.3125"),
        (0.296875, "e4m3", {"rounding": "nearest_away"}, "tie", 0.3125, "further from zero"),
        (-0.3, "e4m3", {"rounding": "toward_zero"}, "directed", -0.28125, "although -0.3125 is nearer"),
        (-0.3, "e4m3", {"rounding": "to_odd"}, "to_odd", -0.28125, "the odd code, 0xA9"),
        (464, "e4m3", {}, "tie", 448, "480 (which the format no longer has)"),
        (465, "e4m3", {}, "overflow", 448, "rounds on to 480"),
        (1000, "e4m3", {"overflow": "nonsaturating"}, "overflow", math.nan, "no infinity"),
        (1e6, "e5m2", {"overflow": "nonsaturating"}, "overflow", math.inf, "the format's infinity"),
        (math.inf, "e5m2", {"overflow": "saturate_finite"}, "exact", math.inf, "nothing to round"),
        (-math.inf, "e5m2", {}, "overflow", -57344, "infinite"),
        (math.nan, "e4m3", {}, "nan", math.nan, "0x7F"),
        (math.nan, "e2m1", {"nan": "max"}, "nan", 6, "nan=max"),
        (-0.0, "e4m3fnuz", {}, "exact", 0, "one zero"),
        (-3, "uint4", {}, "outside", 0, "no negative values"),
        (0, "e8m0", {}, "outside", 2.0**-127, "no zero"),
        (1e-5, "e4m3", {}, "nearest", 0, "underflow"),
        (1000, "e4m3", {"rounding": "toward_zero"}, "directed", 448, "stops there"),
        (1.0625 + 2**-40, "e4m3", {}, "nearest", 1.125, "a little less than 0.5 ulp below 1.125"),
    ],
)
def test_what_is_said(x: float, fmt: str, choices: dict, case: str, result: float, words: str) -> None:
    e = explain(x, fmt, **choices)
    assert e.case == case
    assert e.result == result or (math.isnan(e.result) and math.isnan(result))
    assert words in e.decision


def test_errors_and_ulp() -> None:
    e = explain(0.3, "e4m3")
    assert e.ulp == 2**-5
    assert e.error == pytest.approx(0.0125)
    assert e.relative_error == pytest.approx(0.0125 / 0.3)
    exact = explain(-0.25, "e4m3")  # a power of two: half the spacing toward zero
    assert (exact.below.value, exact.above.value) == (-0.28125, -0.234375)
    assert (exact.below.distance_ulp, exact.above.distance_ulp) == (1, 0.5)


def test_via_shows_both_roundings_and_the_direct_one() -> None:
    e = explain(1.063, "e4m3", via="bfloat16")
    assert (e.via.result, e.code, e.direct_code) == (1.0625, 0x38, 0x39)
    assert e.code == formats.encode(1.063, "e4m3", via="bfloat16").item()
    assert e.value == 1.063
    assert explain(1.063, "e4m3", via=["float32", "bfloat16"]).via.via.format.name == "float32"


def test_stochastic_follows_the_random_value() -> None:
    low, high = (explain(0.3, "e4m3", rounding="stochastic", random_value=r) for r in (0, 2**32 - 1))
    assert (low.result, high.result) == (0.28125, 0.3125)
    assert "probability 0.6" in low.decision


def test_as_dict_is_plain_data() -> None:
    row = explain(1.063, "e4m3", via="bfloat16").as_dict()
    assert json.loads(json.dumps(row))["via"]["format"] == "bfloat16"
    assert row["fields"][1] == {"name": "exponent", "bits": "0111", "meaning": "7 - bias 7 = 0: 2^0"}


def test_bit_fields_name_every_bit() -> None:
    assert [(f.name, f.bits) for f in bit_fields(0xAA, "e4m3")] == [
        ("sign", "1"), ("exponent", "0101"), ("mantissa", "010")
    ]  # fmt: skip
    assert bit_fields(0x80, "int8")[0].meaning == "two's complement -128"
    assert [len(f.bits) for f in bit_fields(0x3E99A000, "tf32")] == [1, 8, 10, 13]
    with pytest.raises(ValueError, match="not a code"):
        bit_fields(256, "e4m3")


def test_block_format_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="block format"):
        explain(1.0, "mxfp4")
    with pytest.raises(ValueError, match="nearest are"):
        explain(1.0, "e4m33")


def test_numbers_as_text() -> None:
    assert [number(x) for x in (448.0, -0.0, 0.1, 2.0**-127, math.inf, math.nan)] == [
        "448", "-0", "0.1", "2^-127", "Inf", "NaN"
    ]  # fmt: skip


# --- formats as rows ----------------------------------------------------------------------------------------------


def test_describe_gives_the_limits() -> None:
    row = describe("e4m3")
    assert (row["max"], row["smallest_normal"], row["smallest_subnormal"]) == (448, 2**-6, 2**-9)
    assert (row["finite_values"], row["nan_codes"], row["has_inf"]) == (253, 2, False)
    assert describe("nvfp4")["bits_per_element"] == 4.5
    assert describe("int4")["smallest_normal"] is None


@pytest.mark.parametrize("name", [n for n in ELEMENTS if get_format(n).storage_bits <= 8])
def test_codes_are_all_there(name: str) -> None:
    fmt = get_format(name)
    rows = codes(fmt)
    assert [int(r["code"], 16) for r in rows] == list(range(1 << fmt.bits))
    assert [int(r["bits"].replace(" ", ""), 2) for r in rows] == list(range(1 << fmt.bits))
    decoded = formats.decode(np.arange(1 << fmt.bits, dtype=np.uint8), fmt, dtype=np.float64)
    assert np.array_equal([r["value"] for r in rows], decoded, equal_nan=True)
    assert sum(r["class"] == "nan" for r in rows) == len(fmt.nan_codes)


@pytest.mark.parametrize("name", [n for n in ELEMENTS if isinstance(get_format(n), FloatFormat)])
def test_binades_cover_the_positive_values(name: str) -> None:
    fmt = get_format(name)
    rows = binades(fmt)
    assert rows[-1]["last"] == fmt.max
    assert rows[0]["first"] == fmt.smallest_subnormal
    assert sum(r["values"] for r in rows) == fmt.max_magnitude_code + (not fmt.has_zero)
    landmarks = {r["landmark"]: r["value"] for r in special_codes(fmt)}
    assert landmarks["largest finite"] == fmt.max
    assert landmarks["smallest normal"] == fmt.smallest_normal


@pytest.mark.parametrize("name", [n for n in ELEMENTS if n != "float32"])
def test_nan_count_is_the_length_of_the_list(name: str) -> None:
    assert nan_count(get_format(name)) == len(get_format(name).nan_codes)


# --- blocks -------------------------------------------------------------------------------------------------------


def test_scale_rules_side_by_side() -> None:
    found = {e.scale_rule: e for e in explain_blocks([0.1, -2.7, 7.5, 0.01], "mxfp4")}
    # 7.5 is above 6, E2M1's largest: floor keeps scale 1 and clips, the others take 2
    assert {rule: e.scale for rule, e in found.items()} == {"floor": 1, "ceil": 2, "even": 2, "rceil": 2}
    assert {rule: e.clipped for rule, e in found.items()} == {"floor": 1, "ceil": 0, "even": 0, "rceil": 0}
    assert found["floor"].results == (0, -3, 6, 0)
    for rule, e in found.items():
        q = formats.quantize_blocks(np.array([0.1, -2.7, 7.5, 0.01]), "mxfp4", scale_rule=rule, ragged=True)
        assert e.codes == tuple(q.codes.tolist())


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp4", "mxint8"])
def test_the_words_end_in_the_exponent_that_was_chosen(name: str, rule: str) -> None:
    rng = np.random.default_rng(3)
    for e in explain_blocks(
        (rng.standard_normal(160) * 2.0 ** rng.integers(-20, 20)).tolist(), name, scale_rules=[rule]
    ):
        assert e.decision.endswith(f" {int(math.log2(e.scale))}")


def test_blocks_are_cut_and_nvfp4_has_its_tensor_scale() -> None:
    found = explain_blocks(list(range(1, 21)), "nvfp4")
    assert [len(e.values) for e in found] == [16, 4]
    assert found[0].tensor_scale == np.float32(20) / np.float32(2688)
    assert "tensor scale" in found[0].decision


def test_special_blocks() -> None:
    assert math.isnan(explain_blocks([1.0, math.nan], "mxfp8")[0].scale)
    assert explain_blocks([0.0], "mxfp8")[0].scale == 2.0**-127
    with pytest.raises(ValueError, match="not a block format"):
        explain_blocks([1.0], "e4m3")
    with pytest.raises(ValueError, match="at least one value"):
        explain_blocks([], "mxfp4")
