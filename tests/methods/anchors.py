"""The layers and errors that the original GPTQ was run on once, and the Hessian with the bits it then had.

Inputs and Hessian are float32 products, whose bits depend on the order of their sums. The recorded runs used OpenBLAS's
AVX-512 kernel; `fused_product` repeats it on any machine, so that round-to-nearest can be held to nine digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from qsim.scheme import QuantizedTensor, Scheme, TensorScheme

F32 = np.float32


@njit(cache=True)
def _fused_product(a: Any, b: Any, cuts: Any, out: Any) -> None:
    """a @ b in float32 with fused multiply-adds over each span of `cuts`, and the spans added up."""
    acc = np.empty(b.shape[1], F32)
    for i in range(a.shape[0]):
        for c in range(len(cuts) - 1):
            acc[:] = 0
            for t in range(cuts[c], cuts[c + 1]):
                x = np.float64(a[i, t])  # its product is exact in float64; one rounding to float32 remains
                for j in range(b.shape[1]):
                    acc[j] = F32(np.float64(acc[j]) + x * np.float64(b[t, j]))
            for j in range(b.shape[1]):
                out[i, j] += acc[j]


def fused_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b with the bits of OpenBLAS's AVX-512 kernel: spans of 448, the last two of equal length."""
    k, cuts = a.shape[1], [0]
    while (left := k - cuts[-1]) > 0:
        cuts.append(cuts[-1] + (448 if left >= 896 else (left // 2 + 15) // 16 * 16 if left > 448 else left))
    out = np.zeros((a.shape[0], b.shape[1]), F32)
    _fused_product(np.ascontiguousarray(a), np.ascontiguousarray(b), np.array(cuts), out)
    return out


def make(rows: int, n: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights (rows, n) and inputs (tokens, n): correlated, with a few outlier channels."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((rows, n)) * 0.02).astype(F32)
    r = n // 16
    z = rng.standard_normal((tokens, r)).astype(F32)
    f = rng.standard_normal((r, n)).astype(F32)
    e = rng.standard_normal((tokens, n)).astype(F32)
    c = np.exp(0.5 * rng.standard_normal(n)).astype(F32)
    c[rng.permutation(n)[: max(1, n // 256)]] *= F32(20)
    x = fused_product(z, f) / F32(np.sqrt(r)) + F32(0.5) * e
    return w, x * c


def hessian(x: np.ndarray) -> np.ndarray:
    """2 / tokens * x^T x as the recorded runs had it."""
    return F32(2.0 / x.shape[0]) * fused_product(x.T, x)


@lru_cache(maxsize=4)
def layer(rows: int, n: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, inputs and Hessian of one size."""
    w, x = make(rows, n, tokens)
    return w, x, hessian(x)


def scheme(bits: int, group: int | None, symmetric: bool = False, scale_format: str = "float32") -> Scheme:
    """Integer weights with float32 scales, as the original has them."""
    return Scheme(
        weight=TensorScheme(
            format=f"{'' if symmetric else 'u'}int{bits}",
            granularity="channel" if group is None else f"group({group})",
            symmetric=symmetric,
            scale_format=scale_format,
        )
    )


def output_error(w: np.ndarray, q: QuantizedTensor, h: np.ndarray) -> float:
    """tr(D H D^T) in float64."""
    d = w.astype(np.float64) - q.dequantize().astype(np.float64)
    return float(np.einsum("nk,nk->", d @ h.astype(np.float64), d))


SMALL, MEDIUM, LARGE = (64, 256, 1024), (256, 1024, 4096), (4096, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what is asked of GPTQ, and the errors of GPTQ and of round-to-nearest at each size."""

    name: str
    bits: int = 4
    group: int | None = 128
    symmetric: bool = False
    options: dict[str, Any]
    gptq: dict[tuple[int, int, int], float]
    rtn: dict[tuple[int, int, int], float]


def _case(name: str, gptq: tuple[float, ...], rtn: tuple[float, ...], bits: int = 4, group: int | None = 128,
          symmetric: bool = False, **options: Any) -> Case:  # fmt: skip
    sizes = (SMALL, MEDIUM, LARGE)
    return Case(name=name, bits=bits, group=group, symmetric=symmetric, options=options,
                gptq=dict(zip(sizes, gptq, strict=False)), rtn=dict(zip(sizes, rtn, strict=False)))  # fmt: skip


_G128, _G32, _3B = (0.3846036999, 11.55635807, 520.3982718), (0.2544918096, 7.308233754), (1.619496498, 53.11295773,
                                                                                      2379.936231)  # fmt: skip
CASES = [
    _case("4b g128", (0.12531574, 2.5639895, 118.0204), _G128),
    _case("4b g128 act_order", (0.10013484, 1.8662337, 71.41757), _G128, act_order=True),
    _case("4b g128 act_order static", (0.095262032, 1.8704894, 71.57873), _G128, act_order=True, static_groups=True),
    _case("4b g128 sym", (0.14203897, 3.0742545), (0.4806832996, 13.84219473), symmetric=True),
    _case("4b g128 mse", (0.11077168, 2.3502110), (0.3473746527, 10.35043552), mse=True),
    _case("4b per row", (0.15156056, 3.9103774), (0.4830829215, 18.04722261), group=None),
    _case("4b g32, stale weights", (0.073503447, 1.6295143), _G32, group=32),
    _case("4b g32 static", (0.074950112, 1.6238055), _G32, group=32, static_groups=True),
    _case("3b g128", (0.53039999, 12.513624, 582.4445), _3B, bits=3),
    _case("3b g128 act_order", (0.42963835, 8.6507701), _3B, bits=3, act_order=True),
    _case("2b g64 act_order", (1.9464234, 39.683783), (7.639344288, 233.5610722), bits=2, group=64, act_order=True),
    _case("8b g128", (0.00043612210, 0.0086645684), (0.001473581266, 0.03905698359), bits=8),
]

# llm-compressor 0.14.0.1: static groups, its own scale rule; 4 bits, groups of 128
COMPRESSOR = [
    _case("asym", (0.1204810981, 2.534322483, 116.5188), (), static_groups=True),
    _case("asym weight", (0.09526203197, 1.870489426, 71.57877), (), static_groups=True, act_order=True),
    _case("sym", (0.1398460632, 3.078791448, 140.7961), (), symmetric=True, static_groups=True),
    _case("sym weight", (0.1108532841, 2.272084454, 86.51985), (), symmetric=True, static_groups=True, act_order=True),
]  # fmt: skip
