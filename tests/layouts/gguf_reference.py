"""Values of GGUF's blocks, one at a time and in float32, as the loops of ggml's `dequantize_row_*` compute them."""

from __future__ import annotations

import numpy as np

F = np.float32
NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)


def half(b, at):
    return F(np.frombuffer(bytes(b[at : at + 2]), "<f2")[0])


def nibble(b, j):
    """Code j of 32: the low halves of 16 bytes, then the high ones."""
    return int(b[j % 16]) >> (4 * (j // 16)) & 15


def fifth(b, j):
    return int.from_bytes(bytes(b[:4]), "little") >> j & 1


def f32(b):
    return [np.frombuffer(bytes(b), "<f4")[0]]


def f16(b):
    return [half(b, 0)]


def bf16(b):
    return [np.frombuffer(b"\0\0" + bytes(b), "<f4")[0]]


def f64(b):
    return [F(np.frombuffer(bytes(b), "<f8")[0])]


def q4_0(b):
    return [F(nibble(b[2:], j) - 8) * half(b, 0) for j in range(32)]


def q4_1(b):
    return [F(nibble(b[4:], j)) * half(b, 0) + half(b, 2) for j in range(32)]


def q5_0(b):
    return [F((nibble(b[6:], j) | fifth(b[2:], j) << 4) - 16) * half(b, 0) for j in range(32)]


def q5_1(b):
    return [F(nibble(b[8:], j) | fifth(b[4:], j) << 4) * half(b, 0) + half(b, 2) for j in range(32)]


def q8_0(b):
    return [F(int(b[2 + j]) - 256 * (int(b[2 + j]) > 127)) * half(b, 0) for j in range(32)]


def iq4_nl(b):
    return [half(b, 0) * F(NL[nibble(b[2:], j)]) for j in range(32)]


def mxfp4(b):
    """2^(e - 127) E2M1, with 2^128 for the code that stands for NaN in OCP's table, and one zero: ggml knows no NaN
    and no -0 here."""
    return [F(E2M1[nibble(b[1:], j)] * 2.0 ** (int(b[0]) - 127)) for j in range(32)]


def q2_k(b):
    scales, q, d, low = b[:16], b[16:80], half(b, 80), half(b, 82)
    out = []
    for n in range(2):
        for j in range(4):
            for part in range(2):
                s = int(scales[8 * n + 2 * j + part])
                dl, ml = d * F(s & 15), low * F(s >> 4)
                out += [dl * F(int(q[32 * n + 16 * part + k]) >> (2 * j) & 3) - ml for k in range(16)]
    return out


def q3_k(b):
    mask, q, packed, d = b[:32], b[32:96], [int(x) for x in b[96:108]], half(b, 108)
    scales = [
        (packed[i % 8] >> (4 * (i // 8)) & 15 | (packed[8 + i % 4] >> (2 * (i // 4)) & 3) << 4) - 32 for i in range(16)
    ]
    out = []
    for n in range(2):
        for j in range(4):
            for part in range(2):
                dl = d * F(scales[8 * n + 2 * j + part])
                for k in range(16 * part, 16 * part + 16):
                    off = 0 if int(mask[k]) >> (4 * n + j) & 1 else 4
                    out.append(dl * F((int(q[32 * n + k]) >> (2 * j) & 3) - off))
    return out


def scale_and_min(b, j):
    if j < 4:
        return int(b[j]) & 63, int(b[j + 4]) & 63
    return int(b[j + 4]) & 15 | int(b[j - 4]) >> 6 << 4, int(b[j + 4]) >> 4 | int(b[j]) >> 6 << 4


def with_min(b, code):
    out = []
    for j in range(8):
        s, m = scale_and_min(b[4:16], j)
        dl, ml = half(b, 0) * F(s), half(b, 2) * F(m)
        out += [dl * F(code(j, k)) - ml for k in range(32)]
    return out


def q4_k(b):
    return with_min(b, lambda j, k: int(b[16 + 32 * (j // 2) + k]) >> (4 * (j % 2)) & 15)


def q5_k(b):
    return with_min(
        b, lambda j, k: int(b[48 + 32 * (j // 2) + k]) >> (4 * (j % 2)) & 15 | (int(b[16 + k]) >> j & 1) << 4
    )


def q6_k(b):
    out = []
    for at in range(256):
        n, j, k = at // 128, at % 128 // 32, at % 32
        low = int(b[64 * n + 32 * (j % 2) + k]) >> (4 * (j // 2)) & 15
        high = int(b[128 + 32 * n + k]) >> (2 * j) & 3
        s = int(b[192 + at // 16])
        out.append(half(b, 208) * F(s - 256 * (s > 127)) * F((low | high << 4) - 32))
    return out


def iq4_xs(b):
    high = int.from_bytes(bytes(b[2:4]), "little")
    out = []
    for j in range(8):
        scale = int(b[4 + j // 2]) >> (4 * (j % 2)) & 15 | (high >> (2 * j) & 3) << 4
        dl = half(b, 0) * F(scale - 32)
        out += [dl * F(NL[nibble(b[8 + 16 * j :], k)]) for k in range(32)]
    return out


def trit(byte, n):
    return ((int(byte) * 3**n & 255) * 3 >> 8) - 1


def tq1_0(b):
    d = half(b, 52)
    out = [trit(b[m], n) for n in range(5) for m in range(32)]
    out += [trit(b[32 + m], n) for n in range(5) for m in range(16)]
    out += [trit(b[48 + m], n) for n in range(4) for m in range(4)]
    return [F(q) * d for q in out]


def tq2_0(b):
    d = half(b, 64)
    return [F((int(b[j + m]) >> (2 * n) & 3) - 1) * d for j in (0, 32) for n in range(4) for m in range(32)]
