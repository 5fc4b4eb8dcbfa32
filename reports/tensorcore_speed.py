"""Speed of the tensor-core emulation, beside mmasim, in the same run.

python reports/tensorcore_speed.py [--write]

mmasim needs torch and a C++ compiler; without them the ratio is left out.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the peak is that of one core; set before NumPy is loaded

import argparse
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from _machine import describe, quiet_check, times

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qsim.formats import encode
from qsim.tensorcore import matmul

CASES = {
    "E4M3 wgmma": ("hopper.wgmma.f32.e4m3", "e4m3", "m64n256k32.f32.e4m3.e4m3"),
    "BF16 wgmma": ("hopper.wgmma.f32.bf16", "bfloat16", "m64n256k16.f32.bf16.bf16"),
    "FP16 wgmma": ("hopper.wgmma.f32.f16", "float16", "m64n256k16.f32.f16.f16"),
}
# Vector instructions of the inner loop for one step and one vector of columns, by count of the source: two FMAs a
# product, add and max of exponents (64 int8 or 32 int16 a vector), and what begins and ends a step.
INSTRUCTIONS = {
    "E4M3 wgmma": (np.float32, 32, 2 * 32 + 2 * 32 / 4 + 15),
    "BF16 wgmma": (np.float64, 16, 2 * 16 + 2 * 16 / 4 + 13),
    "FP16 wgmma": (np.float64, 16, 2 * 16 + 2 * 16 / 8 + 13),
}
REQUIRED = {"E4M3 wgmma": 3.5, "BF16 wgmma": 2.0, "FP16 wgmma": 2.0}


def operands(fmt: str, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(encode(rng.standard_normal((rows, k)).astype(np.float32), fmt) for rows in (m, n))  # type: ignore[return-value]


def gemm_peak(dtype: type) -> float:
    """GMAC/s of one core in NumPy's own GEMM, best of several."""
    x = np.random.default_rng(0).standard_normal((1024, 1024)).astype(dtype)
    best, _ = times(lambda: x @ x, repeat=7)
    return 1024**3 / best / 1e9


def mmasim_rate(qualifier: str) -> float | None:
    """GMAC/s of mmasim on its widest wgmma, 256 columns, one thread."""
    try:
        import torch
        from mmasim.nv_ptx import WGMMA
    except Exception as error:
        print(f"mmasim is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    torch.set_num_threads(1)
    w = WGMMA("Hopper", qualifier)
    a, b = (torch.randn(rows, w.k).to(w.a_type) for rows in (w.m, w.n))
    c = torch.zeros(w.m, w.n)
    best, _ = times(lambda: w(a, b.T, c), repeat=9)
    return float(w.m * w.n * w.k / best / 1e9)


def first_call(instruction: str, fmt: str) -> float:
    """Seconds of the first GEMM in a new process with an empty compile cache, imports left out."""
    code = (
        "import numpy as np, time; from qsim.formats import encode; from qsim.tensorcore import matmul\n"
        f"x = encode(np.ones((64, 64), np.float32), {fmt!r}); t = time.perf_counter()\n"
        f"matmul(x, x, instruction={instruction!r}); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        root = str(Path(__file__).resolve().parents[1])
        env = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": root}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    return float(result.stdout)


def work_space(instruction: str, fmt: str, n: int) -> int:
    """Peak bytes allocated during a GEMM beyond inputs and output, one thread."""
    a, b = operands(fmt, n, n, n)
    tracemalloc.start()
    y = matmul(a, b, instruction=instruction, threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - y.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write reports/tensorcore_speed.md")
    write = parser.parse_args().write
    lines: list[str] = ["# Speed of the tensor-core emulation", ""]
    lines += [f"* {line}" for line in describe("numpy", "numba", "mmasim", "torch")]
    lines += [f"* Steadiness of the machine before the run (median over best of a fixed loop): {quiet_check():.3f}", ""]
    peaks = {np.float32: gemm_peak(np.float32), np.float64: gemm_peak(np.float64)}
    lines += [
        f"One core's GEMM peak, measured in this run with NumPy's BLAS: float32 {peaks[np.float32]:.1f}, "
        f"float64 {peaks[np.float64]:.1f} GMAC/s. The limit below is that peak times the FMAs a plain GEMM needs over "
        "the vector instructions that this kernel needs for the same products.",
        "",
        "GMAC/s, best (median); every result is bit-exact. `x mmasim`: over mmasim 2.1.1's widest wgmma "
        "(64 x 256 outputs per instruction), one thread, same run.",
        "",
        "| case | M=N=K | 1 thread | 2 threads | 2 over 1 | limit, 1 thread | of limit | x mmasim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for case, (instruction, fmt, qualifier) in CASES.items():
        peer = mmasim_rate(qualifier)
        dtype, products, count = INSTRUCTIONS[case]
        limit = peaks[dtype] * products / count
        for n in (256, 1024, 2048):
            a, b = operands(fmt, n, n, n)
            repeat = {256: 25, 1024: 9, 2048: 3}[n]
            rates = []
            for threads in (1, 2):
                best, median = times(lambda a=a, b=b, t=threads, i=instruction: matmul(a, b, instruction=i, threads=t),
                                     repeat=repeat, warmup=1)  # type: ignore[misc]  # fmt: skip
                rates.append((n**3 / best / 1e9, n**3 / median / 1e9))
            ratio = f"{rates[0][0] / peer:.0f}" if peer else "-"
            lines.append(
                f"| {case} | {n} | {rates[0][0]:.2f} ({rates[0][1]:.2f}) | {rates[1][0]:.2f} ({rates[1][1]:.2f}) "
                f"| {rates[1][0] / rates[0][0]:.2f} | {limit:.1f} | {rates[0][0] / limit:.0%} | {ratio} |"
            )
            print(lines[-1], flush=True)
            if n == 1024:
                ok = rates[0][0] >= REQUIRED[case] and rates[1][0] >= 1.6 * rates[0][0]
                ok = ok and (peer is None or rates[0][0] >= 200 * peer)
                verdicts.append(
                    f"{case}: {rates[0][0]:.2f} GMAC/s (required {REQUIRED[case]}), two threads "
                    f"{rates[1][0] / rates[0][0]:.2f}x (1.6), mmasim {f'{peer * 1e3:.1f} MMAC/s, ' if peer else ''}"
                    f"{ratio}x (200): {'met' if ok else 'MISSED'}"
                )
    lines += ["", "Required at 1024:", "", *[f"* {v}" for v in verdicts], ""]
    lines += [
        "## Ragged shapes, one thread",
        "",
        "| case | M x N x K | GMAC/s | against 1024 cubed |",
        "|---|---|---|---|",
    ]
    for case, (instruction, fmt, _) in CASES.items():
        a, b = operands(fmt, 1024, 1024, 1024)
        base = times(lambda a=a, b=b, i=instruction: matmul(a, b, instruction=i, threads=1), repeat=5, warmup=1)[0]  # type: ignore[misc]
        for m, n, k in ((1000, 1000, 1000), (1025, 1025, 1025), (777, 1337, 911), (130, 130, 2049), (2049, 67, 1003)):
            a, b = operands(fmt, m, n, k)
            best, _ = times(lambda a=a, b=b, i=instruction: matmul(a, b, instruction=i, threads=1), repeat=5, warmup=1)  # type: ignore[misc]
            rate = m * n * k / best / 1e9
            lines.append(f"| {case} | {m} x {n} x {k} | {rate:.2f} | {rate * base * 1e9 / 1024**3:.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "## Memory and compile time",
        "",
        "| case | work space at 1024 | at 2048 | first call, empty cache |",
        "|---|---|---|---|",
    ]
    for case, (instruction, fmt, _) in CASES.items():
        sizes = [work_space(instruction, fmt, n) / 1e6 for n in (1024, 2048)]
        lines.append(f"| {case} | {sizes[0]:.1f} MB | {sizes[1]:.1f} MB | {first_call(instruction, fmt):.1f} s |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if write:
        (Path(__file__).parent / "tensorcore_speed.md").write_text(text)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - start:.0f} s", file=sys.stderr)
