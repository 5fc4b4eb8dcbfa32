"""How fast the bits of a fused kernel are computed, beside the plain exact BF16 GEMM of the same shape.

    python reports/fused_bits_speed.py        # prints reports/fused_bits_speed.md

The two are timed in turn, so that what else the machine does meets both; the best of all runs counts.
"""

from __future__ import annotations

import time

import numba
import numpy as np
from _machine import describe

import qsim
from qsim.kernels.operands import weight_operand
from qsim.kernels.pipelines import choose

F32 = np.float32
N = K = 4096
ROUNDS = 12
CASES = (("W4A16", 16), ("W4A16", 64), ("w3a16-g128-sym", 16), ("MXFP4A16", 16), ("W4AFP8", 16), ("W4A8", 16))


def packed(scheme: str) -> qsim.kernels.PackedWeight:
    """A random weight with BF16 scales."""
    w = np.random.default_rng(0).standard_normal((N, K)).astype(F32)
    given = qsim.get_scheme(scheme)
    if given.weight.is_integer:
        part = qsim.scheme.TensorScheme(**{**vars(given.weight), "scale_format": qsim.get_format("bfloat16")})
        given = given.replace(weight=part)
    return qsim.pack(qsim.quantize(w, given))


def main() -> None:
    print("# The speed of fused kernels, bit for bit\n")
    print(*(f"* {line}" for line in describe("numpy", "numba")), sep="\n")
    print(f"* {numba.get_num_threads()} threads; N = K = {N}; best of {ROUNDS} runs in turn\n")
    print("| scheme, humming | M | plain exact BF16 GEMM, s | fused kernel, s | ratio | GMAC/s |")
    print("|---|---|---|---|---|---|")
    for scheme, m in CASES:
        weight = packed(scheme)
        x = qsim.encode(np.random.default_rng(1).standard_normal((m, K)).astype(F32), "bfloat16")
        if weight.scheme.activation.is_quantized:
            plain = qsim.encode(weight.source.dequantize(), "bfloat16")
        else:
            plain, _ = weight_operand(choose("humming", weight.scheme, m), weight.source)
        best = [np.inf, np.inf]
        for _ in range(ROUNDS):
            for which, work in enumerate(
                (
                    lambda plain=plain, x=x: qsim.matmul(x, plain, preset="cublaslt_bf16"),
                    lambda weight=weight, x=x: qsim.linear(x, weight, exact=True, kernel="humming"),
                )
            ):
                start = time.perf_counter()
                work()
                best[which] = min(best[which], time.perf_counter() - start)
        rate = m * N * K / best[1] / 1e9
        print(f"| {scheme} | {m} | {best[0]:.4f} | {best[1]:.4f} | {best[1] / best[0]:.2f} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
