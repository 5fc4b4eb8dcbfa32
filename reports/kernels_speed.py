"""Speed of the fused kernels beside the memory roof, the GEMM peak and torch, in one run.

    python reports/kernels_speed.py --measure 4096x4096     # one shape; appends to reports/kernels_speed.csv
    python reports/kernels_speed.py --write                 # reports/kernels_speed.md and .png from the CSV

Cold: as many separately allocated copies of the packed weight as fill 1 GiB are used in turn. The read bandwidth is
that of a plain sum over the same kind of buffers, used in the same turn. Times are of `linear` as a user calls it,
activation quantisation included. torch (CPU, pinned in the extra `bench`) is optional.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
from numba import njit, prange

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qsim.kernels import available_paths, linear, pack
from qsim.kernels.ladder import by_rows, factored, naive
from qsim.kernels.memory import aligned_copy, aligned_empty
from qsim.quantize import quantize

HERE = Path(__file__).resolve().parent
CSV = HERE / "kernels_speed.csv"
FOOTPRINT = 1 << 30
BUDGET_S = 0.35
KERNELS = [  # label, scheme, activation argument, path
    ("W4A16 g128, float32 x, portable", "w4a16-g128", None, "portable"),
    ("W4A16 g128, bfloat16 x, best path", "w4a16-g128", "bfloat16", None),
    ("W3A16 g128, float32 x, portable", "w3a16-g128", None, "portable"),
    ("W8A8, portable", "w8a8", None, "portable"),
    ("W8A8, best path", "w8a8", None, None),
    ("W4A8 g128, best path", "w4a8", None, None),
    ("FP8 weight-only, float32 x, portable", "fp8-weight-only", None, "portable"),
    ("FP8 x FP8 row-wise, best path", "fp8-rowwise", None, None),
]


@njit(parallel=True)
def read(buffer: Any, out: Any) -> None:
    """Sum of 64 pieces of a buffer."""
    for t in prange(buffer.shape[0]):
        total = np.uint64(0)
        row = buffer[t]
        for i in range(row.shape[0]):
            total += row[i]
        out[t] = total


def set_threads(count: int) -> None:
    """One number for Numba, the BLAS of NumPy, and torch."""
    from threadpoolctl import threadpool_limits

    numba.set_num_threads(count)
    threadpool_limits(limits=count, user_api="blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def measure(call: Callable[[int], Any], copies: int) -> dict[str, float]:
    """Best and median time of call(i), i running over the copies."""
    call(0)
    times: list[float] = []
    start = time.perf_counter()
    while (time.perf_counter() - start < BUDGET_S or len(times) < 4) and len(times) < 600:
        i = len(times) % copies
        t = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - t)
    return {"best_ms": min(times) * 1e3, "median_ms": float(np.median(times)) * 1e3, "runs": len(times)}


class Table:
    """Rows of the CSV of one shape."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k
        self.rows: list[dict[str, Any]] = []

    def add(self, kernel: str, m: int, threads: int, state: str, nbytes: int, result: dict[str, float]) -> None:
        self.rows.append({
            "kernel": kernel, "N": self.n, "K": self.k, "M": m, "threads": threads, "state": state, **result,
            "best_gbytes_per_s": nbytes / result["best_ms"] / 1e6,
            "median_gbytes_per_s": nbytes / result["median_ms"] / 1e6,
            "best_gop_per_s": 2 * m * self.n * self.k / result["best_ms"] / 1e6,
        })  # fmt: skip
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in self.rows[-1].values()), sep="  ", flush=True)


def roofs(table: Table, w: np.ndarray, ms: list[int]) -> None:
    """Read bandwidth over rotated 8 MiB buffers, FP32 GEMV and SGEMM with NumPy."""
    buffers = []
    for _ in range(FOOTPRINT // (8 << 20)):
        b = aligned_empty((64, (8 << 20) // 512), np.uint64)
        b[...] = 1
        buffers.append(b)
    out = np.zeros(64, np.uint64)
    for threads in (1, 2):
        set_threads(threads)
        table.add("read", 0, threads, "cold", 8 << 20, measure(lambda i: read(buffers[i], out), len(buffers)))
    buffers.clear()
    copies = [w, *(w.copy() for _ in range(max(1, (FOOTPRINT >> 1) // w.nbytes)))]
    rng = np.random.default_rng(0)
    for threads in (1, 2):
        set_threads(threads)
        for m in ms:
            x = rng.standard_normal((m, w.shape[1])).astype(np.float32)
            label = "FP32 GEMV, NumPy" if m == 1 else "SGEMM, NumPy"
            table.add(label, m, threads, "cold", w.nbytes, measure(lambda i, x=x: x @ copies[i].T, len(copies)))


def fused(table: Table, w: np.ndarray, ms: list[int]) -> None:
    """Our kernels."""
    rng = np.random.default_rng(0)
    packs: dict[str, Any] = {}
    for label, scheme, activation, path in KERNELS:
        if scheme not in packs:
            packs.clear()
            packed = pack(quantize(w, scheme, scale_rule=None))
            count = max(2, FOOTPRINT // packed.nbytes)
            packs[scheme] = [packed, *(_copy(packed) for _ in range(count - 1))]
        copies = packs[scheme]
        set_threads(2)
        for m in ms:  # compile first; the largest path of a process is loaded, not compiled, when the cache has it
            linear(np.ones((m, w.shape[1]), np.float32), copies[0], activation=activation, path=path)
        for threads in (1, 2):
            set_threads(threads)
            for m in ms:
                x = rng.standard_normal((m, w.shape[1])).astype(np.float32)

                def call(i: int, x: np.ndarray = x, a: Any = activation, p: Any = path, c: Any = copies) -> Any:
                    return linear(x, c[i], activation=a, path=p)

                table.add(label, m, threads, "cold", copies[0].nbytes, measure(call, len(copies)))
                if m == 1:
                    table.add(label, m, threads, "warm", copies[0].nbytes, measure(call, 1))


def _copy(packed: Any) -> Any:
    parts = {name: _fresh(getattr(packed, name)) for name in ("words", "scales", "zeros")}
    return dataclasses.replace(packed, **parts)


def _fresh(array: np.ndarray) -> np.ndarray:
    out = aligned_empty(array.shape, array.dtype)
    out[...] = array
    return aligned_copy(out)


def rungs(table: Table, w: np.ndarray) -> None:
    """The first two rungs of the ladder; the others are in `fused`."""
    packed = pack(quantize(w, "w4a16-g128"))
    words, scales, zeros = by_rows(packed)
    x = np.random.default_rng(0).standard_normal(w.shape[1]).astype(np.float32)
    xsum, out = x.reshape(-1, 128).sum(axis=1), np.empty(w.shape[0], np.float32)
    copies = [words.copy() for _ in range((FOOTPRINT >> 2) // words.nbytes)]
    for threads in (1, 2):
        set_threads(threads)
        table.add("ladder 1 naive", 1, threads, "cold", packed.nbytes,
                  measure(lambda i: naive(copies[i], scales, zeros, x, 128, out), len(copies)))  # fmt: skip
        table.add("ladder 2 factored", 1, threads, "cold", packed.nbytes,
                  measure(lambda i: factored(copies[i], scales, zeros, x, xsum, 128, out), len(copies)))  # fmt: skip


def peers(table: Table, w: np.ndarray, ms: list[int]) -> None:
    """torch: int4pack, bfloat16 linear, `_int_mm` (from int8 to int32, without quantising anything), float32 linear."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: its rows are left out")
        return
    n, k = w.shape
    wt = torch.from_numpy(w)
    weights = {
        "torch int4pack g128, bfloat16 x": torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            torch.randint(0, 16, (n, k), dtype=torch.int32), 1
        ),
        "torch bfloat16 linear": wt.bfloat16(),
        "torch _int_mm": torch.randint(-127, 128, (n, k), dtype=torch.int8),
        "torch float32 linear": wt,
    }
    qparams = torch.rand(k // 128, n, 2).bfloat16()
    for label, weight in weights.items():
        extra = qparams.nbytes if "int4" in label else 0
        nbytes = weight.nbytes + extra
        copies = [
            weight.clone() for _ in range(max(2, (FOOTPRINT if "float32" not in label else FOOTPRINT >> 1) // nbytes))
        ]
        for threads in (1, 2):
            set_threads(threads)
            for m in ms:
                x = torch.randn(m, k)
                x = x.bfloat16() if "bfloat16" in label else x
                xi = torch.randint(-127, 128, (m, k), dtype=torch.int8)

                def call(i: int, x: Any = x, xi: Any = xi, c: Any = copies, label: str = label) -> Any:
                    if "int4" in label:
                        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, c[i], 128, qparams)
                    return torch._int_mm(xi, c[i].T) if "int_mm" in label else torch.nn.functional.linear(x, c[i])

                table.add(label, m, threads, "cold", nbytes, measure(call, len(copies)))
        del copies


def first_calls() -> list[dict[str, Any]]:
    """Seconds of the first call of each kernel: compilation, or loading from Numba's cache."""
    rows = []
    w = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
    for label, scheme, activation, path in KERNELS:
        packed = pack(quantize(w, scheme))
        for m in (1, 64):
            start = time.perf_counter()
            linear(np.ones((m, 256), np.float32), packed, activation=activation, path=path)
            rows.append({"kernel": label, "M": m, "first_call_s": time.perf_counter() - start})
    return rows


def environment() -> str:
    """One paragraph: machine and versions."""
    import llvmlite.binding as llvm

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = [
        f"numpy {np.__version__}",
        f"numba {numba.__version__}",
        f"LLVM {'.'.join(map(str, llvm.llvm_version_info))}",
    ]
    if importlib.util.find_spec("torch"):
        versions.append(f"torch {importlib.metadata.version('torch')}")
    return (f"{cpu}, {os.cpu_count()} cores; paths {', '.join(available_paths())}; "
            f"Python {platform.python_version()}, {', '.join(versions)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="NxK", help="measure one shape")
    parser.add_argument("--parts", default="roofs,fused,rungs,peers", help="which parts to measure")
    parser.add_argument("--tokens", default="1,8,64,256", help="values of M")
    parser.add_argument("--compile", action="store_true", help="time first calls (clear Numba's cache first)")
    parser.add_argument("--write", action="store_true", help="write the report from the CSV")
    options = parser.parse_args()
    if options.compile:
        pd.DataFrame(first_calls()).to_csv(HERE / "kernels_first_call.csv", index=False, float_format="%.2f")
    if options.measure:
        n, k = (int(v) for v in options.measure.split("x"))
        w = (np.random.default_rng(0).standard_normal((n, k), dtype=np.float32) * np.float32(0.02)).astype(np.float32)
        table, ms = Table(n, k), [int(m) for m in options.tokens.split(",")]
        for part in options.parts.split(","):
            if part == "rungs":
                rungs(table, w)
            else:
                {"roofs": roofs, "fused": fused, "peers": peers}[part](table, w, ms)
        frame = pd.DataFrame(table.rows)
        if CSV.exists():
            old = pd.read_csv(CSV)
            keys = ["kernel", "N", "K", "M", "threads", "state"]
            # other work on a shared machine only adds time: of several rounds the one with the least median stands
            frame = pd.concat([old, frame]).sort_values("median_ms").drop_duplicates(keys)
        frame.to_csv(CSV, index=False, float_format="%.5g")
        (HERE / "kernels_machine.txt").write_text(environment() + "\n")
    if options.write:
        from qsim.plots.kernels import write_report

        write_report(HERE)


if __name__ == "__main__":
    main()
