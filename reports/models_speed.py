"""Speed of the embedded model beside the GEMM peak for its shapes, the read bandwidth and transformers, in one run.

    python reports/models_speed.py            # prints the tables
    python reports/models_speed.py --write    # and writes reports/models_speed.md

Limits are measured here too: SGEMM by NumPy over the very matrices that the model multiplies, and the time to read as
many bytes as a decode step must, from one buffer that is read again and again as the weights are. transformers
(extra `oracle`) is optional.
"""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import get_num_threads

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _machine import describe, quiet_check, times
from _memory import read

from qsim.models import Model, evaluate, load, tiny_text, with_scheme

HERE = Path(__file__).resolve().parent
TOKENS, CONTEXT = 512, 256
SCHEMES = ["fp32", "w4a16-g128", "w3a16-g128", "w8a16-channel", "w8a8", "fp8-weight-only", "fp8-rowwise",
           "w4a16-g128-kvint8", "mxfp4-weight-only"]  # fmt: skip


def read_time(nbytes: int) -> tuple[float, float]:
    """Best and median time to read so many bytes, again and again."""
    buffer, out = np.ones((64, max(1, nbytes // 512)), np.uint64), np.zeros(64, np.uint64)
    return times(lambda: read(buffer, out), repeat=60)


def sgemm_of_shapes(model: Model, tokens: int) -> tuple[float, float]:
    """Best and median time of all matrix products of a prefill, by NumPy alone, as the model stacks them."""
    best = median = 0.0
    rng = np.random.default_rng(0)
    matrices = [fan.stacked.weight for b in model._parts.blocks[:1] for fan in (b.qkv, b.output, b.up, b.down)]
    for weight, count in [*((w, len(model._parts.blocks)) for w in matrices), (model.lm_head.weight, 1)]:
        x = rng.standard_normal((tokens, weight.shape[1])).astype(np.float32)
        b, m = times(lambda x=x, w=weight: x @ w.T, repeat=25)
        best, median = best + count * b, median + count * m
    return best, median


def linear_flops(model: Model, tokens: int) -> float:
    """Of the Linears and the head."""
    return 2.0 * tokens * sum(one.weight.shape[0] * one.weight.shape[1] for one in every_linear(model))


def every_linear(model: Model) -> list[Any]:
    return [*model.linears().values(), model.lm_head]


def decode_bytes(model: Model, context: int) -> int:
    """What a step must read: weights as stored, and the cache as it is held here (float32)."""
    c = model.config
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4 * context
    return sum(one.nbytes for one in every_linear(model)) + cache


def decode_time(model: Model, ids: np.ndarray, repeat: int = 150) -> tuple[float, float]:
    """Best and median time of one decode step after CONTEXT tokens."""
    cache = model.new_cache(1, CONTEXT + 1)
    model.logits(ids[:CONTEXT], cache=cache)

    def step() -> None:
        model.logits(ids[CONTEXT : CONTEXT + 1], cache=cache, last_only=True)
        cache.truncate(CONTEXT)

    return times(step, repeat=repeat, warmup=10)


def transformers_times(folder: Path, ids: np.ndarray) -> dict[str, tuple[float, float]]:
    """Prefill and decode of the same files by transformers, float32 on the CPU; empty when it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    transformers.utils.logging.disable_progress_bar()
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.from_numpy(ids)[None]
    with torch.no_grad():
        prefill = times(lambda: peer(tokens, use_cache=False), repeat=9)
        # one cache, cut back after every step as ours is
        cache = transformers.DynamicCache()
        key = "cache" if "cache" in inspect.signature(peer.forward).parameters else "past_key_values"
        peer(tokens[:, :CONTEXT], use_cache=True, **{key: cache})

        def step() -> None:
            peer(tokens[:, CONTEXT : CONTEXT + 1], use_cache=True, **{key: cache})
            cache.crop(-1)

        decode = times(step, repeat=60, warmup=5)
    return {"prefill": prefill, "decode": decode}


def command_times() -> list[tuple[str, float, float]]:
    """Seconds of commands in fresh processes: with an empty Numba cache, and again with it full."""
    rows = []
    for args in (["generate", "def fibonacci(n):", "--max-new-tokens", "64"],
                 ["generate", "def fibonacci(n):", "--max-new-tokens", "64", "--scheme", "w4a16-g128"],
                 ["eval", "--max-bytes", "4096"]):  # fmt: skip
        with tempfile.TemporaryDirectory() as cache:
            env = {**os.environ, "NUMBA_CACHE_DIR": cache}
            took = []
            for _ in range(2):
                start = time.perf_counter()
                subprocess.run([sys.executable, "-m", "qsim", *args], env=env, check=True, capture_output=True,
                               cwd=HERE.parent)  # fmt: skip
                took.append(time.perf_counter() - start)
        shown = " ".join(f'"{a}"' if " " in a else a for a in args)
        rows.append((f"qsim {shown}", *took))
    return rows


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)]


def busy_s() -> tuple[float, float]:
    """Processor seconds of the whole machine, and of this process and its ended children; zeros off Linux."""
    try:
        ticks = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    t = os.times()
    used = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return used, t.user + t.system + t.children_user + t.children_system


def ms(pair: tuple[float, float]) -> str:
    return f"{pair[0] * 1e3:.3g} / {pair[1] * 1e3:.3g}"


def met(value: bool) -> str:
    return "yes" if value else "NO"


def report(model: Model, echo: Callable[[str], None]) -> list[str]:
    """The lines of the report."""
    before, started = busy_s(), time.perf_counter()
    ids = model.tokenizer.encode(tiny_text("test"))[: TOKENS + 1]  # type: ignore[union-attr]
    out = ["# Speed of the embedded model", "", *(f"* {line}" for line in describe("numpy", "numba", "torch",
                                                                                 "transformers"))]  # fmt: skip
    out += [
        f"* {model!r}, {get_num_threads()} threads; times are best / median.",
        f"* Noise of the machine before the run: median over best of a fixed loop {quiet_check():.2f}.",
    ]
    loads = times(lambda: load("tiny"), repeat=5, warmup=1)
    out.append(f'* `load("tiny")`: {ms(loads)} ms.')
    limit = sgemm_of_shapes(model, TOKENS)
    prefill = times(lambda: model.logits(ids[:TOKENS]), repeat=25)
    flops = linear_flops(model, TOKENS)
    peer = transformers_times(model.path, ids)  # type: ignore[arg-type]
    fp32 = decode_time(model, ids)
    nbytes = decode_bytes(model, CONTEXT)
    bound = read_time(nbytes)
    large = read_time(1 << 29)
    out += ["", f"## Prefill of {TOKENS} tokens, float32"]
    rows = [
        [
            "qsim",
            ms(prefill),
            f"{flops / prefill[0] / 1e9:.0f}",
            f"{limit[0] / prefill[0]:.0%} / {limit[1] / prefill[1]:.0%}",
        ],
        ["SGEMM of the same shapes, NumPy", ms(limit), f"{flops / limit[0] / 1e9:.0f}", "100 %"],
    ]
    if peer:
        rows.append(["transformers, float32", ms(peer["prefill"]), f"{flops / peer['prefill'][0] / 1e9:.0f}",
                     f"{limit[0] / peer['prefill'][0]:.0%} / {limit[1] / peer['prefill'][1]:.0%}"])  # fmt: skip
    out += table(["what", "ms", "GFLOP/s of the Linears", "of the SGEMM peak for its shapes"], rows)
    out += ["", f"Asked: at least 50 % of the SGEMM peak. Met: {met(limit[0] / prefill[0] >= 0.5)} (best), "
            f"{met(limit[1] / prefill[1] >= 0.5)} (median). Attention, norms and SwiGLU are in the time, not in the "
            "GFLOP."]  # fmt: skip
    if peer:
        out.append(f"qsim takes {prefill[0] / peer['prefill'][0]:.2f} of transformers' time.")
    for line in out:
        echo(line)
    shown = len(out)
    out += ["", f"## Decode at a context of {CONTEXT} tokens, batch 1"]
    rate = (1 << 29) / large[0]  # bytes per second, of a buffer that no cache holds
    rows, found = [], {}
    for name in SCHEMES:
        q = model if name == "fp32" else with_scheme(model, name)
        found[name] = t = fp32 if name == "fp32" else decode_time(q, ids)
        size = decode_bytes(q, CONTEXT)
        here = bound if name == "fp32" else read_time(size)
        rows.append([name, f"{size / 1e6:.1f}", f"{t[0] * 1e6:.0f} / {t[1] * 1e6:.0f}", f"{1 / t[1]:.0f}",
                     f"{size / rate * 1e6:.0f}", f"{t[0] * rate / size:.2f} / {t[1] * rate / size:.2f}",
                     f"{t[0] / here[0]:.2f} / {t[1] / here[1]:.2f}",
                     f"{fp32[0] / t[0]:.2f} / {fp32[1] / t[1]:.2f}"])  # fmt: skip
    out += table(["scheme", "MB a step", "µs a step", "tokens/s", "µs at the memory's rate", "times that bound",
                  "times a repeated read", "speed-up over float32"], rows)  # fmt: skip
    limit_s, w4 = nbytes / rate, found["w4a16-g128"]
    out += [
        "",
        f"The memory's rate is that of reading 512 MiB, {rate / 1e9:.0f} GB/s. A repeated read is of as many bytes as "
        "the step needs, again and again, so that the last-level cache serves part of it, or all.",
        "",
        f"Asked: float32 within 2x of the memory-bandwidth bound. Met: {met(fp32[0] <= 2 * limit_s)} (best), "
        f"{met(fp32[1] <= 2 * limit_s)} (median). Against the repeated read it would be "
        f"{met(fp32[0] <= 2 * bound[0])} (best), {met(fp32[1] <= 2 * bound[1])} (median).",
        "",
        f"Asked: W4A16 faster than float32. Met: {met(w4[0] < fp32[0])} (best), {met(w4[1] < fp32[1])} (median). "
        "Weights of 4 to 8 bits fit in the cache; what their step takes is arithmetic and about 80 calls of compiled "
        "code.",
    ]
    if peer:
        out += ["", f"transformers, float32: {peer['decode'][0] * 1e6:.0f} / {peer['decode'][1] * 1e6:.0f} µs a step, "
                f"{peer['decode'][0] / fp32[0]:.1f} times qsim's."]  # fmt: skip
    start = time.perf_counter()
    result = evaluate(model, tiny_text("test"), max_bytes=1 << 15)
    took = time.perf_counter() - start
    out += ["", "## Evaluation", "", f"32 KiB of the test text, windows of 512: {took:.1f} s, "
            f"{result.tokens / took:.0f} tokens/s."]  # fmt: skip
    out += ["", "## Whole commands", "", "In a fresh process, seconds: with Numba's cache empty, and full."]
    out += table(["command", "first", "again"], [[f"`{c}`", f"{a:.1f}", f"{b:.1f}"] for c, a, b in command_times()])
    after = busy_s()
    others = ((after[0] - before[0]) - (after[1] - before[1])) / (time.perf_counter() - started)
    out += ["", f"Other processes used {max(others, 0.0):.2f} processors in the mean of this run."]
    for line in out[shown:]:
        echo(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write reports/models_speed.md")
    options = parser.parse_args()
    lines = report(load("tiny"), print)
    if options.write:
        (HERE / "models_speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
