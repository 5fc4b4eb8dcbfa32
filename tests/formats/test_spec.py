"""The formats as values: limits, special codes, names."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from qsim.formats import (
    BlockFormat,
    CodebookFormat,
    FloatFormat,
    IntFormat,
    get_element_format,
    get_format,
    list_formats,
    p3109,
    register,
)

# name, bits, bias, max, code of max, smallest normal, smallest positive, Inf code, NaN codes, -0, finite values.
# OCP OFP8 v1.0 table 1; OCP MX v1.0 tables 1, 4, 5; ml_dtypes; P3109 interim report 4.0.
TABLE = [
    ("float8_e4m3fn", 8, 7, 448, 0x7E, 2**-6, 2**-9, None, (0x7F, 0xFF), True, 253),
    ("float8_e4m3", 8, 7, 240, 0x77, 2**-6, 2**-9, 0x78, (*range(0x79, 0x80), *range(0xF9, 0x100)), True, 239),
    ("float8_e4m3fnuz", 8, 8, 240, 0x7F, 2**-7, 2**-10, None, (0x80,), False, 255),
    ("float8_e4m3b11fnuz", 8, 11, 30, 0x7F, 2**-10, 2**-13, None, (0x80,), False, 255),
    ("float8_e5m2", 8, 15, 57344, 0x7B, 2**-14, 2**-16, 0x7C, (0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), True, 247),
    ("float8_e5m2fnuz", 8, 16, 57344, 0x7F, 2**-15, 2**-17, None, (0x80,), False, 255),
    ("float8_e3m4", 8, 3, 15.5, 0x6F, 2**-2, 2**-6, 0x70, (*range(0x71, 0x80), *range(0xF1, 0x100)), True, 223),
    ("float8_e8m0fnu", 8, 127, 2.0**127, 0xFE, 2.0**-127, 2.0**-127, None, (0xFF,), False, 255),
    ("float6_e3m2fn", 6, 3, 28, 0x1F, 2**-2, 2**-4, None, (), True, 63),
    ("float6_e2m3fn", 6, 1, 7.5, 0x1F, 1, 2**-3, None, (), True, 63),
    ("float4_e2m1fn", 4, 1, 6, 0x7, 1, 0.5, None, (), True, 15),
    ("binary8p4se", 8, 8, 224, 0x7E, 2**-7, 2**-10, 0x7F, (0x80,), False, 253),
    ("binary8p3se", 8, 16, 49152, 0x7E, 2**-15, 2**-17, 0x7F, (0x80,), False, 253),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_limits_and_special_codes(row):
    name, bits, bias, top, top_code, normal, smallest, inf_code, nan_codes, negative_zero, count = row
    f = get_element_format(name)
    assert (f.bits, f.bias, f.max, f.max_code) == (bits, bias, top, top_code)
    assert (f.smallest_normal, f.smallest_subnormal) == (normal, smallest)
    assert (f.inf_code, f.nan_codes) == (inf_code, nan_codes)
    assert f.has_negative_zero == negative_zero
    assert f.finite_count == count == f.values.size == np.unique(f.values).size


@pytest.mark.parametrize("name", [f.name for f in list_formats() if hasattr(ml_dtypes, f.name)])
def test_agrees_with_ml_dtypes_finfo(name):
    f = get_element_format(name)
    kind = getattr(ml_dtypes, name)
    if isinstance(f, IntFormat):
        info = ml_dtypes.iinfo(kind)
        assert (f.max, f.min, f.bits) == (info.max, info.min, info.bits)
        return
    info = ml_dtypes.finfo(kind)
    assert f.bits == info.bits
    assert f.max == float(info.max)
    assert f.min == float(info.min)
    assert f.eps == f.epsilon == float(info.eps)
    assert f.tiny == f.smallest_normal == float(info.smallest_normal)
    assert f.smallest_subnormal == float(info.smallest_subnormal)
    assert (f.nmant, f.nexp) == (info.nmant, info.nexp)
    if name != "float8_e8m0fnu":  # ml_dtypes counts E8M0's exponents as if code 0 were subnormal
        assert (f.minexp, f.maxexp) == (info.minexp, info.maxexp)


def test_decoded_table_of_fp4_and_integers():
    assert get_element_format("fp4").values.tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert get_element_format("int4").values.tolist() == list(range(-8, 8))
    assert get_element_format("uint2").values.tolist() == [0, 1, 2, 3]
    assert get_element_format("int8_q6").max == 127 / 64
    assert get_element_format("int8_q6").min == -2


def test_nf4_is_symmetric_at_its_ends_and_has_zero():
    table = get_element_format("nf4").table
    assert (len(table), table[0], table[7], table[15]) == (16, -1.0, 0.0, 1.0)
    assert all(np.float32(v) == v for v in table)  # published as float32


@pytest.mark.parametrize("name", ["tf32", "bfloat16", "float16", "float32"])
def test_wide_formats(name):
    f = get_element_format(name)
    assert f.max == {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}.get(name, f.max)
    assert f.nan_code == {"tf32": 0x7FFFE000, "bfloat16": 0x7FFF, "float16": 0x7FFF, "float32": 0x7FFFFFFF}[name]
    assert f.storage_bits in (16, 32)


def test_tf32_is_kept_in_a_float32_word():
    f = get_element_format("tf32")
    assert (f.bits, f.storage_bits, f.code_dtype) == (19, 32, np.uint32)
    assert f.max_code == np.float32(f.max).view(np.uint32)


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_p3109_family(bits, extended, signed):
    for precision in range(1, bits if signed else bits + 1):
        f = p3109(bits, precision, signed=signed, extended=extended)
        assert get_format(f.name) == f
        assert f.nan_codes == ((1 << (bits - 1),) if signed else ((1 << bits) - 1,))
        top = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 2
        assert f.inf_code == (top if extended else None)
        assert f.max_code == top - extended
        # report 4.0, 4.3: bias 2^(K-P-1) signed, 2^(K-P) unsigned
        assert f.bias == 2 ** (bits - precision - signed)
        assert f.precision == precision


def test_aliases_and_grammar():
    assert get_format("e4m3") is get_format("E4M3") is get_format("float8_e4m3fn")
    assert get_format("bf16").name == "bfloat16"
    assert get_format("mxfp8").name == "mxfp8_e4m3"
    f = get_format("float7_e3m3fn")
    assert (f.bits, f.bias, f.has_nan, f.has_inf) == (7, 3, False, False)
    f = get_format("float8_e4m3b9fnuz")
    assert (f.bias, f.nan) == (9, "negative_zero")
    f = get_format("float9_e4m4")
    assert f.has_inf
    assert f.nan == "ieee"
    assert dataclasses.replace(get_format("float8_e4m3b7fn"), name="float8_e4m3fn") == get_format("float8_e4m3fn")


@pytest.mark.parametrize("name", ["e4m4", "fp9", "mxfp5", "", "float8_e4m3fnu"])
def test_unknown_names_are_answered_with_near_ones(name):
    with pytest.raises(ValueError, match="unknown format"):
        get_format(name)
    if name == "e4m4":
        with pytest.raises(ValueError, match="e4m3"):
            get_format(name)


def test_wrong_formats_are_refused():
    with pytest.raises(ValueError, match="sign \\+ exponent \\+ mantissa make 7"):
        get_format("float8_e3m3")
    with pytest.raises(TypeError, match="or a format value: got int"):
        get_format(8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 <= P < K"):
        p3109(8, 8)
    with pytest.raises(ValueError, match="every value must be a float64"):
        FloatFormat(name="x", exponent_bits=12, mantissa_bits=3, bias=2047)
    with pytest.raises(ValueError, match="2 to 8 bits: got 9"):
        IntFormat(name="int9", bits=9)
    with pytest.raises(ValueError, match="strictly ascending"):
        CodebookFormat(name="bad", bits=1, table=(1.0, 0.0))
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        dataclasses.replace(get_format("mxfp4"), block_size=0)
    with pytest.raises(ValueError, match="is a block format: use"):
        get_element_format("mxfp4")
    with pytest.raises(ValueError, match="taken by"):
        register(FloatFormat(name="e4m3", exponent_bits=3, mantissa_bits=4, bias=3))


def test_blocks():
    f = get_format("nvfp4")
    assert isinstance(f, BlockFormat)
    assert (f.element.name, f.scale.name, f.block_size, f.tensor_scale) == ("float4_e2m1fn", "float8_e4m3fn", 16, True)
    assert f.bits_per_element == 4.5
    assert get_format("mxfp4").bits_per_element == 4.25
    # OCP MX v1.0 table 1: emax of the element formats
    emax = {"mxfp8_e4m3": 8, "mxfp8_e5m2": 15, "mxfp6_e3m2": 4, "mxfp6_e2m3": 2, "mxfp4": 2, "mxint8": 0}
    for name, e in emax.items():
        element = get_format(name).element
        assert element.emax == e == math.floor(math.log2(element.max))


def test_formats_are_frozen_and_hashable():
    f = get_format("e4m3")
    with pytest.raises(dataclasses.FrozenInstanceError):
        f.bias = 3  # type: ignore[misc]
    assert len({f, get_format("e5m2"), get_format("float8_e4m3fn")}) == 2
    with pytest.raises(ValueError, match="read-only"):
        f.values[0] = 1
