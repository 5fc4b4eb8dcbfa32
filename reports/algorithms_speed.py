"""Speed and memory of the algorithms: GPTQ of large layers, the Hessian, and the whole embedded model by every method.

    python reports/algorithms_speed.py                     # runs everything (about 7 minutes) and prints the tables
    python reports/algorithms_speed.py --only hessian      # one part; repeatable
    python reports/algorithms_speed.py --write             # and writes reports/algorithms_speed.{md,csv}
    python reports/algorithms_speed.py --write --resume    # runs only the parts that the CSV does not have yet

Limits are measured in the same part as what they limit: rounds go through SGEMM, LAPACK's factorisation and inverse,
and the layer in turn, so that all of them see the same machine.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _machine import describe, quiet_check

F32 = np.float32
HERE = Path(__file__).resolve().parent
CSV, PAGE = HERE / "algorithms_speed.csv", HERE / "algorithms_speed.md"
COLUMNS = ("part", "case", "what", "unit", "best", "median", "rounds", "head")
SCHEME = "w4a16-g128"
LAYERS = {"gptq 4096x4096": (4096, 4096, 5), "gptq 11008x4096": (11008, 4096, 3), "gptq 4096x11008": (4096, 11008, 1)}
MODEL = {
    "rtn w4a16-g128": ["--method", "rtn", "--scheme", "w4a16-g128"],
    "gptq w4a16-g128": ["--method", "gptq", "--scheme", "w4a16-g128"],
    "gptq w4a16-g128, act_order": ["--method", "gptq", "--scheme", "w4a16-g128", "--act-order", "on",
                                   "--static-groups"],
    "awq w4a16-g128": ["--method", "awq", "--scheme", "w4a16-g128"],
    "smoothquant w8a8-channel-token": ["--method", "smoothquant"],
    "fp8": ["--method", "fp8"],
    "rtn mxfp4": ["--method", "rtn", "--scheme", "mxfp4"],
    "rtn nvfp4": ["--method", "rtn", "--scheme", "nvfp4"],
    "gptq w4a16-g128, rotated": ["--method", "gptq", "--scheme", "w4a16-g128", "--rotate"],
}  # fmt: skip
CHOSEN = "gptq 4096x4096, kernels as OpenBLAS chooses"  # without the variables that this machine's environment sets
PARTS = (*LAYERS, CHOSEN, "hessian", "memory", *(f"model {name}" for name in MODEL))

LARGE = (
    "The limit is one Cholesky factorisation and one triangular inverse by LAPACK, and the block updates at the rate "
    "of SGEMM. Solve is what finds the codes; the whole call also measures the errors of the method and of "
    "round-to-nearest, tr(D H D^T), for the record."
)

Row = dict[str, Any]


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(part: str, case: str, what: str, unit: str, samples: Sequence[float], *, higher: bool = False) -> Row:
    """`higher`: rates, of which the best is the largest."""
    return {"part": part, "case": case, "what": what, "unit": unit, "best": (max if higher else min)(samples),
            "median": statistics.median(samples), "rounds": len(samples)}  # fmt: skip


# --- one large layer ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def layer(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (rows, columns) and Hessian: correlated inputs with outlier channels, twice as many as columns, at most
    12288."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((rows, columns), dtype=F32) * F32(0.02)).astype(F32)
    rank, tokens = columns // 16, min(2 * columns, 12288)
    mix = rng.standard_normal((rank, columns), dtype=F32) / F32(np.sqrt(rank))
    gain = np.exp(0.5 * rng.standard_normal(columns)).astype(F32)
    gain[rng.permutation(columns)[: columns // 256]] *= 20
    from qsim.methods.linalg import accumulate, mirror

    h = np.zeros((columns, columns), F32)
    for _ in range(0, tokens, 2048):
        x = rng.standard_normal((2048, rank), dtype=F32) @ mix
        x += F32(0.5) * rng.standard_normal(x.shape, dtype=F32)
        accumulate(h, x * gain)
    h = mirror(h)
    h *= F32(2 / tokens)
    return w, h


def products_per_solve(n: int, k: int, block: int = 128, span: int = 512) -> float:
    """Floating-point operations of the products that carry errors on to the columns behind a block and a span."""
    inside = sum(2.0 * n * block * (min(s + span, k) - i - block)
                 for s in range(0, k, span) for i in range(s, min(s + span, k), block))  # fmt: skip
    return inside + sum(2.0 * n * span * max(k - s - span, 0) for s in range(0, k, span))


def large_layer(part: str) -> list[Row]:
    from scipy.linalg import lapack

    from qsim.methods import gptq

    n, k, rounds = LAYERS[part]
    w, h = layer(n, k)
    square, other = w[:4096, :4096], np.ascontiguousarray(h[:4096, :4096])
    damped = h.copy()
    np.fill_diagonal(damped, h.diagonal() + F32(0.01) * h.diagonal().mean())
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    gptq(w[:128, :512], h[:512, :512], SCHEME, act_order=True)  # compile
    for _ in range(rounds):
        best = min(timed(lambda: square @ other) for _ in range(2))
        note("SGEMM 4096", best)
        work = damped.copy()
        note("Cholesky factor", timed(lambda work=work: lapack.spotrf(work.T, lower=0, overwrite_a=1, clean=0)))
        note("triangular inverse", timed(lambda work=work: lapack.strtri(work.T, lower=0, overwrite_c=1)))
        del work
        for act_order in (False, True):
            name = "act_order" if act_order else "no order"
            start = time.perf_counter()
            _, record = gptq(w, h, SCHEME, act_order=act_order)
            note(f"{name}: whole call", time.perf_counter() - start)
            note(f"{name}: solve", record.time_s)
    flops = products_per_solve(n, k)
    factor = [a + b for a, b in zip(samples["Cholesky factor"], samples["triangular inverse"], strict=True)]
    samples["products of the block updates, at the SGEMM rate"] = [
        flops / (2 * 4096.0**3) * s for s in samples["SGEMM 4096"]
    ]
    samples["limit"] = [
        a + b for a, b in zip(factor, samples["products of the block updates, at the SGEMM rate"], strict=True)
    ]
    out = [row(part, "time", what, "s", values) for what, values in samples.items()]
    for name in ("no order", "act_order"):
        ratios = [a / b for a, b in zip(samples[f"{name}: solve"], samples["limit"], strict=True)]
        out.append(row(part, "ratio", f"{name}: solve over the limit", "", ratios))
    return out


def as_openblas_chooses(part: str) -> list[Row]:
    """The first layer in a process without OPENBLAS_*: its kernels and blocks for this processor."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    command = [sys.executable, __file__, "--rows", part.partition(",")[0]]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    return [{**r, "part": part} for r in json.loads(found.stdout.splitlines()[-1])]


# --- the Hessian --------------------------------------------------------------------------------------------


def hessian(part: str) -> list[Row]:
    """A micro-batch of 4096 tokens into the running Hessian, as calibration does it, against SSYRK and SGEMM alone."""
    from scipy.linalg import blas

    from qsim.methods.calibration import InputStatistics

    out = []
    for k in (1024, 4096, 11008):
        x = np.random.default_rng(0).standard_normal((4096, k), dtype=F32)
        square = x[:, :4096] if k > 4096 else x
        stats = InputStatistics(k, hessian=True)
        total = np.zeros((k, k), F32)
        flops, rates = 4096.0 * k * (k + 1), {"accumulation": [], "SSYRK": [], "SGEMM": []}  # type: ignore[var-annotated]
        stats.update(x)
        other = np.ascontiguousarray(square.T)
        for _ in range(9 if k < 11008 else 3):
            rates["accumulation"].append(flops / timed(lambda s=stats, x=x: s.update(x)) / 1e9)
            rates["SSYRK"].append(
                flops / timed(lambda x=x, t=total: blas.ssyrk(1.0, x.T, 1.0, t.T, overwrite_c=1)) / 1e9
            )
            side = square.shape[1]
            rates["SGEMM"].append(2.0 * 4096 * side * side / timed(lambda a=other, b=square: a @ b) / 1e9)
        case = f"{k} columns"
        out += [row(part, case, what, "GFLOP/s", values, higher=True) for what, values in rates.items()]
        for peak in ("SSYRK", "SGEMM"):
            shares = [100 * a / b for a, b in zip(rates["accumulation"], rates[peak], strict=True)]
            out.append(row(part, case, f"accumulation, of {peak}", "%", shares, higher=True))
    return out


# --- memory -------------------------------------------------------------------------------------------------


def memory(part: str) -> list[Row]:
    """Peak resident memory of one call in a fresh process, above what the process held without the layer."""
    out = []
    for n, k in ((4096, 4096), (11008, 4096), (4096, 11008)):
        found = json.loads(subprocess.run(
            [sys.executable, __file__, "--peak", str(n), str(k)], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1])  # fmt: skip
        case = f"{n}x{k}"
        allowed = (3 * 4 * k * k + 4 * n * k) / 2**20
        for what, value in (*found.items(), ("allowed: 3 Hessians and the weights", allowed)):
            out.append(row(part, case, what, "MiB", [value]))
        copies = (found["peak with Hessian and weights"] - 4 * n * k / 2**20) / (4 * k * k / 2**20)
        out.append(row(part, case, "copies of the Hessian, beside the weights", "", [copies]))
    return out


def peak(n: int, k: int) -> None:
    """Print the peak of one call. Linux: the high-water mark of resident memory is reset before it."""
    from qsim.methods import gptq

    w, h = layer(n, k)
    small = layer.__wrapped__(128, 1024)
    gptq(*small, SCHEME, act_order=True)  # compile, start the threads
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that stays resident would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    gptq(w, h, SCHEME, act_order=True)
    held = 4 * (n * k + k * k) / 2**20
    print(json.dumps({"peak with Hessian and weights": status("VmHWM") - before + held}))


def status(name: str) -> float:
    """A field of /proc/self/status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


# --- the embedded model -------------------------------------------------------------------------------------


def whole_model(part: str) -> list[Row]:
    """`qsim quantize tiny`, start of Python and writing of the checkpoint included, from its own 64 KiB of text."""
    name = part.removeprefix("model ")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qsim", "quantize", "tiny", *MODEL[name], "--out", f"{folder}/out"]
        seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True, cwd=HERE.parent))
        record = json.loads((Path(folder) / "out" / "quantization_record.json").read_text())
    times = {"command": seconds, "quantize_model": record["time_s"]}
    return [row("model", name, what, "s", [value]) for what, value in times.items()]


# --- the page -----------------------------------------------------------------------------------------------


def run(part: str) -> list[Row]:
    if part in LAYERS:
        return large_layer(part)
    return {CHOSEN: as_openblas_chooses, "hessian": hessian, "memory": memory}.get(part, whole_model)(part)


def header() -> list[str]:
    import numba

    told = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OPENBLAS", "OMP_", "NUMBA_"))]
    return [
        *describe("numpy", "scipy", "numba", "threadpoolctl", "joblib"),
        f"Threads: {numba.get_num_threads()}; environment: {' '.join(told) or 'plain'}",
        f"Noise of the machine before the run: median over best of a fixed loop {quiet_check():.2f}",
    ]


def asked(rows: list[Row]) -> list[str]:
    """The requirements, each beside what was measured."""

    def find(part: str, case: str, what: str) -> Row | None:
        return next((r for r in rows if (r["part"], r["case"], r["what"]) == (part, case, what)), None)

    lines = ["| asked | best | median | met |", "|---|---|---|---|"]

    def line(text: str, found: Row | None, fits: Callable[[float], bool], form: str = "{:.2f}") -> None:
        if found is not None:
            a, b = float(found["best"]), float(found["median"])
            both = "yes" if fits(a) and fits(b) else "best only" if fits(a) else "**no**"
            lines.append(f"| {text} | {form.format(a)} | {form.format(b)} | {both} |")

    line("GPTQ 4096x4096, act_order, solve: at most 2.0 s",
         find("gptq 4096x4096", "time", "act_order: solve"), lambda v: v <= 2)  # fmt: skip
    line("the same, whole call with its record: at most 2.0 s",
         find("gptq 4096x4096", "time", "act_order: whole call"), lambda v: v <= 2)  # fmt: skip
    for k in (1024, 4096, 11008):
        line(f"Hessian of {k} columns: at least 80 % of SSYRK's rate",
             find("hessian", f"{k} columns", "accumulation, of SSYRK"), lambda v: v >= 80, "{:.0f} %")  # fmt: skip
    for case in ("4096x4096", "11008x4096", "4096x11008"):
        line(f"peak memory of {case}: at most 3 Hessians and the weights",
             find("memory", case, "copies of the Hessian, beside the weights"), lambda v: v <= 3,
             "{:.2f} Hessians")  # fmt: skip
    for name in MODEL:
        line(f"embedded model, {name}: below 60 s", find("model", name, "command"), lambda v: v < 60, "{:.1f} s")
    return lines


def page(rows: list[Row]) -> str:
    heads: dict[str, list[str]] = {}
    for r in rows:
        heads.setdefault(r["head"], []).append(r["part"])
    lines = ["# Speed of the algorithms", ""]
    for head, parts in heads.items():
        lines += [f"* {one}" for one in head.split("\n")]
        lines += [f"* In that run: {', '.join(dict.fromkeys(parts))}.", ""]
    lines += ["## What was asked", "", *asked(rows), ""]
    titles = {"hessian": "Hessian accumulation", "memory": "Peak memory of one layer", "model": "The embedded model"}
    notes = {
        **dict.fromkeys((*LAYERS, CHOSEN), LARGE),
        "hessian": "4096 tokens into the running sum, with the look at every value for NaN, in GFLOP/s of K (K + 1) "
                   "a token.",
        "memory": "The high-water mark of resident memory in a fresh process over one call, BLAS and LAPACK work space "
                  "included; the process's own size without the layer is taken off.",
        "model": "`qsim quantize tiny`, from 64 KiB of the calibration text: the whole command in a fresh process, and "
                 "`quantize_model` in it.",
    }  # fmt: skip
    for part in dict.fromkeys(r["part"] for r in rows):
        lines += [f"## {titles.get(part, part.replace('gptq', 'GPTQ').replace('x', ' x '))}", "", notes[part], ""]
        lines += ["| case | what | best | median | rounds |", "|---|---|---|---|---|"]
        for r in (r for r in rows if r["part"] == part):
            values = [f"{float(r[c]):.3g} {r['unit']}".strip() for c in ("best", "median")]
            lines.append(f"| {r['case']} | {r['what']} | {values[0]} | {values[1]} | {r['rounds']} |")
        lines.append("")
    return "\n".join(lines)


def read() -> list[Row]:
    if not CSV.is_file():
        return []
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


def save(rows: list[Row]) -> None:
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """New rows in the place of old ones, in the order of the parts."""
    done = {(r["part"], r["case"] if r["part"] == "model" else "") for r in new}
    rows = [r for r in old if (r["part"], r["case"] if r["part"] == "model" else "") not in done] + new
    order = {**{p: i for i, p in enumerate(PARTS)}, "model": len(PARTS)}
    names = list(MODEL)
    return sorted(rows, key=lambda r: (order[r["part"]], names.index(r["case"]) if r["part"] == "model" else 0))


def _is_meant(part: str, given: str) -> bool:
    return part == given or (given not in PARTS and part.startswith(given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PART", help=f"repeatable; parts: {', '.join(PARTS)}")
    parser.add_argument("--write", action="store_true", help="write the page and the CSV")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that the CSV has")
    parser.add_argument("--peak", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows:
        print(json.dumps(run(given.rows)))
        return
    if given.peak:
        peak(*given.peak)
        return
    wrong = [p for p in given.only or () if not any(q.startswith(p) for q in PARTS)]
    if wrong:
        parser.error(f"parts are {', '.join(PARTS)}: got {wrong[0]!r}")
    parts = [p for p in PARTS if given.only is None or any(_is_meant(p, one) for one in given.only)]
    rows = read() if given.write else []
    if given.resume:
        have = {r["part"] for r in rows} | {f"model {r['case']}" for r in rows if r["part"] == "model"}
        parts = [p for p in parts if p not in have]
    head = "\n".join(header())
    for part in parts:
        new = [{**r, "head": head} for r in run(part)]
        rows = merged(rows, new)
        print(f"{part}: " + "; ".join(f"{r['what']} {r['best']:.3g} {r['unit']}" for r in new), file=sys.stderr)
        if given.write:
            save(rows)
    text = page(rows)
    print(text)
    if given.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
