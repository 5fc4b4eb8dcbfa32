"""Speed of the fused kernels beside the memory roof, the GEMM peak and torch, in one run.

    python reports/kernels_speed.py --measure 4096x4096     # one shape; replaces its rows in the CSVs
    python reports/kernels_speed.py --compile               # first calls, each in a process with an empty cache
    python reports/kernels_speed.py --write                 # reports/kernels_speed.md and .png from the CSVs

Kernels, peers and roofs take turns: a round gives each of them one turn of at least 20 ms, and a ratio is taken inside
a round, between turns a second or two apart. The calls of a turn's first 20 ms are dropped, and after NumPy and torch
the process sleeps for 150 ms: OpenBLAS's threads spin for some 100 ms after a product, and two threads beside a
spinning one take 30 times as long. Cold: each has separately allocated copies of its weight,
used in turn, and the copies of all add up to gigabytes. The read bandwidth is that of a plain sum over buffers of
8 MiB. Times are of `linear` as a user calls it, activation quantisation included. torch (CPU, pinned in the extra
`bench`) is optional.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
from _machine import describe, quiet_check
from _memory import read

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qsim._native.memory import aligned_copy, aligned_empty
from qsim.kernels import available_paths, linear, pack
from qsim.kernels.ladder import by_rows, factored, naive
from qsim.scheme import quantize

HERE = Path(__file__).resolve().parent
FOOTPRINT = 256 << 20  # bytes of copies of one contestant; together they are several GiB
SETTLE_S, TURN_S, PAUSE_S = 0.02, 0.02, 0.15
READ = "read"
W4 = "W4A16 g128, float32 x, portable"
KERNELS = [  # label, scheme, activation argument, path
    (W4, "w4a16-g128", None, "portable"),
    ("W4A16 g128, bfloat16 x, best path", "w4a16-g128", "bfloat16", None),
    ("W3A16 g128, float32 x, portable", "w3a16-g128", None, "portable"),
    ("W8A8, portable", "w8a8", None, "portable"),
    ("W8A8, best path", "w8a8", None, None),
    ("W4A8 g128, best path", "w4a8", None, None),
    ("FP8 weight-only, float32 x, portable", "fp8-weight-only", None, "portable"),
    ("FP8 x FP8 row-wise, best path", "fp8-rowwise", None, None),
    ("MXFP4 x MXFP4, best path", "mxfp4", None, None),
    ("NVFP4 x NVFP4, best path", "nvfp4", None, None),
]
INT4PACK, INT_MM = "torch int4pack g128, bfloat16 x", "torch _int_mm"
GEMV, SGEMM, TORCH_F32 = "FP32 GEMV, NumPy", "SGEMM, NumPy", "torch float32 linear"
PEERS = (GEMV, SGEMM, TORCH_F32, INT4PACK, INT_MM, "torch bfloat16 linear")
RATIOS = [  # kernel, over what, M, asked of two threads (None: reported only); READ compares bytes per second
    (W4, READ, 1, 0.65),
    (W4, INT4PACK, 1, 1.3),
    (W4, GEMV, 1, 5.0),
    ("W4A16 g128, bfloat16 x, best path", READ, 1, None),
    ("W4A16 g128, bfloat16 x, best path", INT4PACK, 1, None),
    (INT4PACK, READ, 1, None),
    ("W8A8, best path", READ, 1, 0.7),
    ("FP8 weight-only, float32 x, portable", READ, 1, 0.7),
    ("W8A8, best path", INT_MM, 256, 1.3),
    ("W4A8 g128, best path", SGEMM, 256, 3.5),
    ("W4A16 g128, bfloat16 x, best path", SGEMM, 256, 1.4),
    (W4, SGEMM, 256, 0.8),
    ("W4A8 g128, best path", TORCH_F32, 256, None),
    ("W4A16 g128, bfloat16 x, best path", TORCH_F32, 256, None),
]


def set_threads(count: int) -> None:
    """One number for Numba, the BLAS of NumPy, and torch."""
    from threadpoolctl import threadpool_limits

    numba.set_num_threads(count)
    threadpool_limits(limits=count, user_api="blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


@dataclass
class Contestant:
    """`call(i)` works on copy i; `nbytes` is what one call must read of the weight."""

    label: str
    call: Callable[[int], Any]
    copies: int
    nbytes: int
    at: int = 0

    def turn(self) -> list[float]:
        """Seconds of the calls of one turn."""
        times: list[float] = []
        start = time.perf_counter()
        settled, now = False, start
        while not settled or len(times) < 3 or now - start < TURN_S:
            self.at = (self.at + 1) % self.copies
            t = time.perf_counter()
            self.call(self.at)
            now = time.perf_counter()
            if settled:
                times.append(now - t)
            elif now - start >= SETTLE_S:
                settled, start = True, now
        return times


def contest(entries: list[Contestant], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(best, median) seconds of each turn, by label; who starts a round changes."""
    for entry in entries:
        entry.call(0)
    turns: dict[str, list[tuple[float, float]]] = {entry.label: [] for entry in entries}
    for r in range(rounds):
        shift = r % len(entries)
        for entry in entries[shift:] + entries[:shift]:
            times = entry.turn()
            turns[entry.label].append((min(times), statistics.median(times)))
            if entry.label in PEERS:
                time.sleep(PAUSE_S)
    return turns


def _count(nbytes: int) -> int:
    return max(3, -(-FOOTPRINT // nbytes))


def _fresh(array: np.ndarray) -> np.ndarray:
    out = aligned_empty(array.shape, array.dtype)
    out[...] = array
    return aligned_copy(out)


def _copies(packed: Any) -> list[Any]:
    def one() -> Any:
        return dataclasses.replace(packed, **{n: _fresh(getattr(packed, n)) for n in ("words", "scales", "zeros")})

    return [packed, *(one() for _ in range(_count(packed.nbytes) - 1))]


class Bench:
    """Contestants of one shape; weights are copied once and used at every M."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k
        rng = np.random.default_rng(0)
        self.w = (rng.standard_normal((n, k), dtype=np.float32) * np.float32(0.02)).astype(np.float32)
        self.floats = [self.w, *(self.w.copy() for _ in range(_count(self.w.nbytes) - 1))]
        self.buffers = [_fresh(np.ones((64, (8 << 20) // 512), np.uint64)) for _ in range(_count(8 << 20))]
        packs = {s: pack(quantize(self.w, s, scale_rule=None)) for s in dict.fromkeys(k[1] for k in KERNELS)}
        self.packs = {scheme: _copies(packed) for scheme, packed in packs.items()}
        self.torch = dict(self._torch())
        words, self.scales, self.zeros = by_rows(packs["w4a16-g128"])
        self.words = [words, *(words.copy() for _ in range(_count(words.nbytes) - 1))]

    def _torch(self) -> Iterator[tuple[str, list[Any]]]:
        """Weights of int4pack, bfloat16 linear, `_int_mm` (int8 to int32, quantises nothing) and float32 linear."""
        try:
            import torch
        except ImportError:
            print("torch is not installed: its rows are left out")
            return
        n, k = self.n, self.k
        codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
        for label, weight in (
            (INT4PACK, torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)),
            ("torch bfloat16 linear", torch.from_numpy(self.w).bfloat16()),
            (INT_MM, torch.randint(-127, 128, (n, k), dtype=torch.int8)),
        ):
            yield label, [weight, *(weight.clone() for _ in range(_count(weight.nbytes) - 1))]
        yield TORCH_F32, [torch.from_numpy(w) for w in self.floats]

    def entries(self, m: int) -> list[Contestant]:
        x = np.random.default_rng(1).standard_normal((m, self.k)).astype(np.float32)
        out = np.zeros(64, np.uint64)
        floats, buffers = self.floats, self.buffers
        found = [
            Contestant(READ, lambda i: read(buffers[i], out), len(buffers), 8 << 20),
            Contestant(GEMV if m == 1 else SGEMM, lambda i: x @ floats[i].T, len(floats), self.w.nbytes),
        ]
        for label, scheme, activation, path in KERNELS:

            def ours(i: int, c: Any = self.packs[scheme], a: Any = activation, p: Any = path) -> Any:
                return linear(x, c[i], activation=a, path=p)

            found.append(Contestant(label, ours, len(self.packs[scheme]), self.packs[scheme][0].nbytes))
        if m == 1:
            found += self._rungs(x[0])
        return found + self._peers(x)

    def _rungs(self, x: np.ndarray) -> list[Contestant]:
        """The first two rungs of the ladder; the others are among the kernels."""
        xsum, out, words = x.reshape(-1, 128).sum(axis=1), np.empty(self.n, np.float32), self.words
        s, z, nbytes = self.scales, self.zeros, self.packs["w4a16-g128"][0].nbytes
        return [
            Contestant("ladder 1 naive", lambda i: naive(words[i], s, z, x, 128, out), len(words), nbytes),
            Contestant("ladder 2 factored", lambda i: factored(words[i], s, z, x, xsum, 128, out), len(words), nbytes),
        ]

    def _peers(self, x: np.ndarray) -> list[Contestant]:
        if not self.torch:
            return []
        import torch

        m, k = x.shape
        wide, narrow = torch.from_numpy(x), torch.from_numpy(x).bfloat16()
        codes = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        qparams = torch.rand(k // 128, self.n, 2).bfloat16()
        calls: dict[str, Callable[[Any], Any]] = {
            INT4PACK: lambda w: torch.ops.aten._weight_int4pack_mm_for_cpu(narrow, w, 128, qparams),
            "torch bfloat16 linear": lambda w: torch.nn.functional.linear(narrow, w),
            INT_MM: lambda w: torch._int_mm(codes, w.T),
            TORCH_F32: lambda w: torch.nn.functional.linear(wide, w),
        }
        found = []
        for label, call in calls.items():
            weights = self.torch[label]
            nbytes = weights[0].nbytes + (qparams.nbytes if label == INT4PACK else 0)
            found.append(Contestant(label, lambda i, c=call, w=weights: c(w[i]), len(weights), nbytes))  # type: ignore[misc]
        return found


def measure(n: int, k: int, ms: list[int], rounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Times of every contestant and the ratios of RATIOS."""
    bench, rows, ratios = Bench(n, k), [], []
    for m in ms:
        for threads in (1, 2):
            set_threads(threads)
            for state in ("cold", "warm") if m == 1 else ("cold",):
                entries = bench.entries(m)
                if state == "warm":
                    entries = [dataclasses.replace(e, copies=1) for e in entries if not e.label.startswith("ladder")]
                turns = contest(entries, rounds if m < 64 else max(4, rounds // 2))
                where = {"N": n, "K": k, "M": m, "threads": threads, "state": state}
                for e in entries:
                    best = min(b for b, _ in turns[e.label])
                    median = statistics.median(t for _, t in turns[e.label])
                    rows.append({
                        "kernel": e.label, **where, "best_ms": best * 1e3, "median_ms": median * 1e3,
                        "best_gbytes_per_s": e.nbytes / best / 1e9, "median_gbytes_per_s": e.nbytes / median / 1e9,
                        "best_gop_per_s": float("nan") if e.label == READ else 2 * m * n * k / best / 1e9,
                    })  # fmt: skip
                    print(*(f"{v:.3f}" if isinstance(v, float) else v for v in rows[-1].values()), sep="  ", flush=True)
                sizes = {e.label: e.nbytes for e in entries}
                for kernel, over, at, asked in RATIOS:
                    if at != m or state != "cold" or kernel not in turns or over not in turns:
                        continue
                    scale = sizes[kernel] / sizes[over] if over == READ else 1.0
                    each = [scale * b / a for (_, a), (_, b) in zip(turns[kernel], turns[over], strict=True)]
                    q1, q2, q3 = np.quantile(each, [0.25, 0.5, 0.75])
                    best = scale * min(b for b, _ in turns[over]) / min(a for a, _ in turns[kernel])
                    ratios.append({"kernel": kernel, "over": over, **where, "asked": asked if threads == 2 else None,
                                   "median": q2, "q1": q1, "q3": q3, "best": best})  # fmt: skip
                    print(f"    {kernel} / {over}: {q2:.2f} [{q1:.2f} {q3:.2f}] best {best:.2f}", flush=True)
    return pd.DataFrame(rows), pd.DataFrame(ratios)


FIRST = """
import sys, time, numpy as np
from qsim.kernels import linear, pack
from qsim.scheme import quantize
scheme, activation, path = (None if a == "-" else a for a in sys.argv[1:])
packed = pack(quantize(np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32), scheme))
for m in (1, 64):
    start = time.perf_counter()
    linear(np.ones((m, 256), np.float32), packed, activation=activation, path=path)
    print(time.perf_counter() - start)
"""


def first_calls() -> pd.DataFrame:
    """Seconds of the first decode and prefill call of each kernel, with an empty Numba cache and with a full one.

    Each kernel has a process and a cache of its own; prefill comes after decode in that process.
    """
    rows = []
    for label, *arguments in KERNELS:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-c", FIRST, *(a or "-" for a in arguments)]
            run = {"env": os.environ | {"NUMBA_CACHE_DIR": cache}, "cwd": HERE.parent, "text": True, "check": True}
            empty, full = (subprocess.run(command, stdout=subprocess.PIPE, **run).stdout.split() for _ in range(2))  # type: ignore[call-overload]
        rows.append({"kernel": label, "decode, empty cache": float(empty[0]), "then prefill": float(empty[1]),
                     "decode, full cache": float(full[0]), "then prefill, full": float(full[1])})  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def keep(name: str, frame: pd.DataFrame, n: int, k: int, ms: list[int]) -> None:
    """Replace the rows of these products in a CSV; other shapes stay."""
    path = HERE / name
    if path.exists():
        old = pd.read_csv(path)
        frame = pd.concat([old[~((old.N == n) & (old.K == k) & old.M.isin(ms))], frame])
    frame.to_csv(path, index=False, float_format="%.5g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="NxK", help="measure one shape")
    parser.add_argument("--tokens", default="1,8,64,256", help="values of M")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each; half as many for M >= 64")
    parser.add_argument("--compile", action="store_true", help="time first calls")
    parser.add_argument("--write", action="store_true", help="write the report from the CSVs")
    options = parser.parse_args()
    if options.compile:
        first_calls().to_csv(HERE / "kernels_first_call.csv", index=False, float_format="%.2f")
    if options.measure:
        n, k = (int(v) for v in options.measure.split("x"))
        ms = [int(m) for m in options.tokens.split(",")]
        quiet = quiet_check()
        rows, ratios = measure(n, k, ms, options.rounds)
        keep("kernels_speed.csv", rows, n, k, ms)
        keep("kernels_ratios.csv", ratios, n, k, ms)
        machine = describe("numpy", "numba", "llvmlite", "torch")[:2]
        machine += [
            f"Paths: {', '.join(available_paths())}",
            f"Quiet check (median over best of a fixed loop): {quiet:.2f}",
        ]
        (HERE / "kernels_machine.txt").write_text("\n".join(machine) + "\n")
    if options.write:
        from kernels_report import write_report

        write_report(HERE)


if __name__ == "__main__":
    main()
