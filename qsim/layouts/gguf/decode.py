"""Values of GGUF's blocks, one function for each type: uint8 (B, bytes) to float32 (B, values).

The order of float32 operations is ggml's, so that values agree to the last bit. The names are those of the types.
Types that most files have are decoded by compiled loops, see `loops`.

Source: ggml's `ggml-quants.c`, `dequantize_row_*`; the structs in `ggml-common.h`.
"""

from __future__ import annotations

import numpy as np

from qsim.scheme.superblock import Blocks

F32, U8, I8 = np.float32, np.uint8, np.int8
NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], F32)
"""The 16 values of IQ4_NL and IQ4_XS."""
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], F32)
"""Twice the values of E2M1, which ggml multiplies with half of the scale."""


def halves(raw: np.ndarray) -> np.ndarray:
    """float16 numbers of (B, 2 n) bytes, as float32 (B, n)."""
    return np.ascontiguousarray(raw).view("<f2").astype(F32)


def nibbles(raw: np.ndarray, width: int) -> np.ndarray:
    """Fields of 4 bits: of each `width` bytes first the low ones, then the high ones."""
    parts = raw.reshape(raw.shape[0], -1, 1, width)
    return np.concatenate([parts & U8(15), parts >> U8(4)], axis=2).reshape(raw.shape[0], -1)


def _fields(raw: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Fields of 1 or 2 bits: of each `width` bytes first the lowest ones, then the next, ..."""
    shifts = np.arange(0, 8, bits, dtype=U8).reshape(1, 1, -1, 1)
    parts = (raw.reshape(raw.shape[0], -1, 1, width) >> shifts) & U8((1 << bits) - 1)
    return parts.reshape(raw.shape[0], -1)


def _scaled(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes * scales, where scale j belongs to the j-th of equal parts of a block."""
    count = codes.shape[0]
    return (codes.reshape(count, scales.shape[1], -1) * scales[:, :, None]).reshape(count, -1)


def _run(name: str, b: np.ndarray, values: int, *scales: np.ndarray) -> np.ndarray:
    """Values by the compiled loop of a name."""
    from . import loops  # Numba is loaded when a tensor is read, not when the types are listed

    out = np.empty((b.shape[0], values), F32)
    getattr(loops, name)(b, *scales, out)
    return out


# --- floats and 32 values ---------------------------------------------------------------------------------------


def f32(b: np.ndarray) -> np.ndarray:
    return b.view("<f4")


def f16(b: np.ndarray) -> np.ndarray:
    return halves(b)


def bf16(b: np.ndarray) -> np.ndarray:
    return (b.view("<u2").astype(np.uint32) << np.uint32(16)).view(F32)


def f64(b: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return b.view("<f8").astype(F32)


def q4_0(b: np.ndarray) -> np.ndarray:
    return _run("q4_0", b, 32, halves(b[:, :2])[:, 0])


def q4_1(b: np.ndarray) -> np.ndarray:
    return nibbles(b[:, 4:], 16).astype(F32) * halves(b[:, :2]) + halves(b[:, 2:4])


def _five_bits(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Codes of 5 bits, of 4 bytes of high bits and 16 of low nibbles."""
    top = np.unpackbits(high, axis=1, bitorder="little")
    return nibbles(low, 16) | (top << U8(4))


def q5_0(b: np.ndarray) -> np.ndarray:
    return _run("q5_0", b, 32, halves(b[:, :2])[:, 0])


def five_bit_codes(b: np.ndarray) -> np.ndarray:
    """The codes of Q5_0 as two's complement of 5 bits, uint8 (B, 32)."""
    from . import loops

    out = np.empty((b.shape[0], 32), U8)
    loops.q5_0_codes(b, out)
    return out


def q5_1(b: np.ndarray) -> np.ndarray:
    return _five_bits(b[:, 4:8], b[:, 8:]).astype(F32) * halves(b[:, :2]) + halves(b[:, 2:4])


def q8_0(b: np.ndarray) -> np.ndarray:
    return _run("q8_0", b, 32, halves(b[:, :2])[:, 0])


def iq4_nl(b: np.ndarray) -> np.ndarray:
    return NL[nibbles(b[:, 2:], 16)] * halves(b[:, :2])


def half_e8m0(codes: np.ndarray) -> np.ndarray:
    """Half of the power of two that an E8M0 code stands for, float32; the codes 0 and 1 are subnormal numbers."""
    small = np.uint32(0x00200000) << codes.astype(np.uint32)
    usual = (codes.astype(np.uint32) - np.uint32(1)) << np.uint32(23)
    return np.where(codes < 2, small, usual).view(F32)


def mxfp4(b: np.ndarray) -> np.ndarray:
    return E2M1_DOUBLED[nibbles(b[:, 1:], 16)] * half_e8m0(b[:, :1])


# --- super-blocks of 256 values ---------------------------------------------------------------------------------


def q2_k(b: np.ndarray) -> np.ndarray:
    scales, d, low = b[:, :16], halves(b[:, 80:82]), halves(b[:, 82:84])
    return _run("q2_k", b, 256, d * (scales & U8(15)).astype(F32), low * (scales >> U8(4)).astype(F32))


def q3_k(b: np.ndarray) -> np.ndarray:
    return _run("q3_k", b, 256, halves(b[:, 108:110]) * _sixteen_scales(b[:, 96:108]))


def _sixteen_scales(packed: np.ndarray) -> np.ndarray:
    """The 16 scales of 6 bits that Q3_K packs in 12 bytes, from -32: float32 (B, 16)."""
    codes = nibbles(packed[:, :8], 8) | (_fields(packed[:, 8:], 4, 2) << U8(4))
    return codes.astype(F32) - F32(32)


def six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minima of 6 bits that Q4_K and Q5_K pack in 12 bytes: uint8 (B, 8) each."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & U8(63), (c & U8(15)) | ((a >> U8(2)) & U8(48))], axis=1)
    minima = np.concatenate([b & U8(63), (c >> U8(4)) | ((b >> U8(2)) & U8(48))], axis=1)
    return scales, minima


def _scales_and_minima(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of Q4_K and Q5_K from their first 16 bytes: float32 (B, 8) each."""
    scales, minima = six_bits(head[:, 4:16])
    return halves(head[:, :2]) * scales.astype(F32), halves(head[:, 2:4]) * minima.astype(F32)


def q4_k(b: np.ndarray) -> np.ndarray:
    return _run("q4_k", b, 256, *_scales_and_minima(b[:, :16]))


def q5_k(b: np.ndarray) -> np.ndarray:
    return _run("q5_k", b, 256, *_scales_and_minima(b[:, :16]))


def q6_k(b: np.ndarray) -> np.ndarray:
    return _run("q6_k", b, 256, halves(b[:, 208:210]) * b[:, 192:208].view(I8).astype(F32))


def iq4_xs(b: np.ndarray) -> np.ndarray:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([b[:, 4:8] & U8(15), b[:, 4:8] >> U8(4)], axis=2).reshape(-1, 8)
    scales = low | ((high & np.uint16(3)).astype(U8) << U8(4))
    return _scaled(NL[nibbles(b[:, 8:], 16)], halves(b[:, :2]) * (scales.astype(F32) - F32(32)))


_POWERS = np.array([1, 3, 9, 27, 81], U8)


def _trits(raw: np.ndarray, width: int, count: int) -> np.ndarray:
    """`count` values of -1, 0, 1 of each byte, `width` bytes at a time."""
    parts = raw.reshape(raw.shape[0], -1, 1, width) * _POWERS[:count].reshape(1, 1, -1, 1)  # in 8 bits, as meant
    return ((parts.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)).reshape(raw.shape[0], -1).astype(F32) - F32(1)


def tq1_0(b: np.ndarray) -> np.ndarray:
    codes = [_trits(b[:, :32], 32, 5), _trits(b[:, 32:48], 16, 5), _trits(b[:, 48:52], 4, 4)]
    return np.concatenate(codes, axis=1) * halves(b[:, 52:54])


def tq2_0(b: np.ndarray) -> np.ndarray:
    return (_fields(b[:, :64], 32, 2).astype(F32) - F32(1)) * halves(b[:, 64:66])


# --- blocks of types that are schemes ---------------------------------------------------------------------------


def unpack_q4_1(b: np.ndarray) -> Blocks:
    return Blocks(codes=nibbles(b[:, 4:], 16), scales=halves(b[:, :2]), minima=-halves(b[:, 2:4]))


def unpack_q5_1(b: np.ndarray) -> Blocks:
    return Blocks(codes=_five_bits(b[:, 4:8], b[:, 8:]), scales=halves(b[:, :2]), minima=-halves(b[:, 2:4]))


def unpack_q2_k(b: np.ndarray) -> Blocks:
    scales, minima = (part.astype(F32) for part in (b[:, :16] & U8(15), b[:, :16] >> U8(4)))
    return Blocks(codes=_fields(b[:, 16:80], 32, 2), scales=scales, minima=minima, super_scales=halves(b[:, 80:82]),
                  super_minima=halves(b[:, 82:84]))  # fmt: skip


def unpack_q3_k(b: np.ndarray) -> Blocks:
    codes = _fields(b[:, 32:96], 32, 2) | (_fields(b[:, :32], 32, 1) << U8(2))
    return Blocks(codes=codes ^ U8(4), scales=_sixteen_scales(b[:, 96:108]), super_scales=halves(b[:, 108:110]))


def _with_six_bits(b: np.ndarray, codes: np.ndarray) -> Blocks:
    scales, minima = six_bits(b[:, 4:16])
    return Blocks(codes=codes, scales=scales.astype(F32), minima=minima.astype(F32), super_scales=halves(b[:, :2]),
                  super_minima=halves(b[:, 2:4]))  # fmt: skip


def unpack_q4_k(b: np.ndarray) -> Blocks:
    return _with_six_bits(b, nibbles(b[:, 16:], 32))


def unpack_q5_k(b: np.ndarray) -> Blocks:
    return _with_six_bits(b, nibbles(b[:, 48:], 32) | (_fields(b[:, 16:48], 32, 1) << U8(4)))


def unpack_q6_k(b: np.ndarray) -> Blocks:
    codes = nibbles(b[:, :128], 64) | (_fields(b[:, 128:192], 32, 2) << U8(4))
    scales = b[:, 192:208].view(I8).astype(F32)
    return Blocks(codes=codes ^ U8(32), scales=scales, super_scales=halves(b[:, 208:210]))


UNPACK = {"q4_1": unpack_q4_1, "q5_1": unpack_q5_1, "q2_k": unpack_q2_k, "q3_k": unpack_q3_k, "q4_k": unpack_q4_k,
          "q5_k": unpack_q5_k, "q6_k": unpack_q6_k}  # fmt: skip
"""The inverses of `encode.PACK`."""
