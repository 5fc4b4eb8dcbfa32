"""How fast the bits of a fused kernel are computed, beside the plain exact BF16 GEMM of the same shape.

    python reports/fused_bits_speed.py        # prints reports/fused_bits_speed.md

The two are timed in turn; the best of all runs counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np
from _machine import describe

import qsim
from qsim.kernels.operands import weight_operand
from qsim.kernels.pipelines import choose

F32 = np.float32
N = K = 4096
ROUNDS = 5
CASES = (("W4A16", 16), ("W4A16", 64), ("w3a16-g128-sym", 16), ("MXFP4A16", 16), ("W4AFP8", 16), ("W4A8", 16))


def packed(scheme: str) -> qsim.kernels.PackedWeight:
    """A random weight with BF16 scales."""
    w = np.random.default_rng(0).standard_normal((N, K)).astype(F32)
    given = qsim.get_scheme(scheme)
    if given.weight.is_integer:
        part = qsim.scheme.TensorScheme(**{**vars(given.weight), "scale_format": qsim.get_format("bfloat16")})
        given = given.replace(weight=part)
    return qsim.pack(qsim.quantize(w, given))


def best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """The least time of one call."""
    start = clock()
    work()
    return clock() - start


def main() -> None:
    print("# The speed of fused kernels, bit for bit\n")
    print(*(f"* {line}" for line in describe("numpy", "numba")), sep="\n")
    print(
        f"* N = K = {N}; best of {ROUNDS} runs, the two in turn. CPU: seconds of the processor with one thread, which"
    )
    print(
        f"  other programs lengthen little. Wall: with {numba.get_num_threads()} threads, on a machine that others use."
    )
    print("* Asked at M = 16 for W4A16: at most 1.3 times the plain GEMM, and 10 GMAC/s on two cores.\n")
    print("| scheme, humming | M | plain BF16, CPU s | fused, CPU s | ratio | GMAC per CPU s | wall s | wall GMAC/s |")
    print("|---|---|---|---|---|---|---|---|")
    threads, verdict = numba.get_num_threads(), ""
    for scheme, m in CASES:
        weight = packed(scheme)
        x = qsim.encode(np.random.default_rng(1).standard_normal((m, K)).astype(F32), "bfloat16")
        if weight.scheme.activation.is_quantized:
            plain = qsim.encode(weight.source.dequantize(), "bfloat16")
        else:
            plain, _ = weight_operand(choose("humming", weight.scheme, m), weight.source)

        def gemm(x: np.ndarray = x, plain: np.ndarray = plain) -> object:
            return qsim.matmul(x, plain, preset="cublaslt_bf16")

        def fused(x: np.ndarray = x, weight: qsim.kernels.PackedWeight = weight) -> object:
            return qsim.linear(x, weight, exact=True, kernel="humming")

        gemm(), fused()
        wall = min(best(fused, time.perf_counter) for _ in range(ROUNDS))
        numba.set_num_threads(1)
        both = [(best(gemm, time.process_time), best(fused, time.process_time)) for _ in range(ROUNDS)]
        numba.set_num_threads(threads)
        one, two = (min(t) for t in zip(*both, strict=True))
        work = m * N * K / 1e9
        print(f"| {scheme} | {m} | {one:.3f} | {two:.3f} | {two / one:.2f} | {work / two:.1f} | {wall:.3f} | "
              f"{work / wall:.1f} |", flush=True)  # fmt: skip
        if (scheme, m) == CASES[0]:
            said = ["met" if fine else "**not met**" for fine in (two / one <= 1.3, work / wall >= 10)]
            verdict = f"ratio {two / one:.2f} ({said[0]}), {work / wall:.1f} GMAC/s ({said[1]})"
    print(f"\nAsked of W4A16 at M = 16: {verdict}.")


if __name__ == "__main__":
    main()
