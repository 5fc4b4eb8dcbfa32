"""Why do two campaigns on the same GPU differ? Kernel names, power limit, repeats and neighbours, and more layers.

Needs PyTorch with CUDA; the method is that of `h200_measure.py`, whose functions it uses.

    python reports/h200_variation.py OUT_DIR VERB...

    throttle    long runs of one large product: the time of every replay, from a cool start
    kernels     which kernels the library launches for every layer, format and M, with their grids
    repeat NAME layers of two models in four ways: idle before, many replays, GPU busy before, few calls; NAME labels
                the process
    chain NAME  the four products of a layer one after the other, as in a model, beside each of them alone
    step        kernels inside a compiled decoder step of eight layers: their times there, by the profiler
    layers SECS the layers of the models of h200_measure.py, in a settled state (see `settled`)
    more SECS   further layers, likewise
    between SECS  layers of two models at M between the powers of two, likewise
"""

import csv
import itertools
import math
import os
import statistics
import subprocess
import sys
import time

import h200_measure as base
import torch
from _gpu import busy, capture, replay_times, traced

FORMATS = ("bf16", "fp8", "fp8_row", "int8", "int4")
SMALL = {
    "l8b.qkv": (6144, 4096), "l8b.o": (4096, 4096), "l8b.gate_up": (28672, 4096), "l8b.down": (4096, 14336),
    "q7b.qkv": (4608, 3584), "q7b.o": (3584, 3584), "q7b.gate_up": (37888, 3584), "q7b.down": (3584, 18944),
}  # fmt: skip
MORE = {
    "l1b.qkv": (3072, 2048), "l1b.o": (2048, 2048), "l1b.gate_up": (16384, 2048), "l1b.down": (2048, 8192),
    "l3b.qkv": (5120, 3072), "l3b.o": (3072, 3072), "l3b.gate_up": (16384, 3072), "l3b.down": (3072, 8192),
    "l13b.qkv": (15360, 5120), "l13b.o": (5120, 5120), "l13b.gate_up": (27648, 5120), "l13b.down": (5120, 13824),
    "q32b.qkv": (7168, 5120), "q32b.gate_up": (55296, 5120), "q32b.down": (5120, 27648),
    "q72b.down": (8192, 29568), "q3-8b.gate_up": (24576, 4096), "q3-8b.down": (4096, 12288),
    "o30b.qkv": (21504, 7168), "o30b.o": (7168, 7168), "o30b.up": (28672, 7168), "o30b.down": (7168, 28672),
    "l70b-tp4.qkv": (2560, 8192), "l70b-tp4.gate_up": (14336, 8192), "l70b-tp4.down": (8192, 7168),
    "q7b.o2": (3584, 7168),
}  # fmt: skip


def allowed(fmt, m):
    return not ((fmt == "int4" and m > 256) or (fmt == "int8" and m <= 16))


def weights(n, k, fmt, most=24):
    """Copies of a random weight that together exceed the L2 by far."""
    nbytes = n * k * {"bf16": 2, "int4": 0.53}.get(fmt, 1)
    source = torch.randn(n, k, device=base.DEV, dtype=base.BF) * 0.02
    return [base.quant_weight(source.clone(), fmt) for _ in range(min(most, math.ceil(300e6 / nbytes)))]


def products(n, k, m, fmt, ws=None, count=24):
    ws = ws if ws is not None else weights(n, k, fmt)
    x = base.quant_act(torch.randn(m, k, device=base.DEV, dtype=base.BF), fmt)
    turn = itertools.islice(itertools.cycle(ws), max(len(ws), count))
    return [lambda w=w: base.product(x, w, fmt) for w in turn]


def writer(name, head):
    path = f"{base.OUT}/{name}.csv"
    fresh = not os.path.exists(path)
    f = open(path, "a", newline="")
    out = csv.writer(f)
    if fresh:
        out.writerow(head.split())
    return f, out


def throttle():
    log = open(f"{base.OUT}/clocks.csv", "w")
    query = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
    watch = subprocess.Popen(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-lms", "20"], stdout=log)
    f, out = writer("throttle", "fmt N K M clock start replay elapsed_s call_s")
    for fmt, n, k, m in (
        ("bf16", 4096, 4096, 8192), ("bf16", 28672, 4096, 4096), ("bf16", 8192, 28672, 512), ("bf16", 4096, 4096, 512),
        ("fp8", 4096, 4096, 8192), ("fp8", 28672, 4096, 4096), ("fp8_row", 4096, 4096, 8192),
        ("int8", 4096, 4096, 8192), ("int8", 28672, 4096, 4096), ("int4", 28672, 4096, 256),
        ("bf16", 28672, 4096, 1), ("fp8_row", 4096, 4096, 1),
    ):  # fmt: skip
        calls = products(n, k, m, fmt, count=8)
        graph = capture(calls)
        torch.cuda.synchronize()
        time.sleep(1.0)
        stamp = time.strftime("%H:%M:%S", time.localtime()) + f".{int(time.time() % 1 * 1000):03d}"
        graph.replay()
        torch.cuda.synchronize()
        one = replay_times(graph, 1, len(calls))[0] * len(calls)
        time.sleep(0.5)
        times = replay_times(graph, min(2000, math.ceil(0.6 / one)), len(calls))
        elapsed = 0.0
        for i, t in enumerate(times):
            elapsed += t * len(calls)
            if i < 30 or i % max(1, len(times) // 60) == 0:
                out.writerow([fmt, n, k, m, stamp, len(calls), i, f"{elapsed:.6f}", f"{t:.9f}"])
        f.flush()
        del graph, calls
        torch.cuda.empty_cache()
    watch.terminate()
    log.close()


def kernels():
    """Names by the profiler; a spin kernel marks the start and the end of every call."""
    f, out = writer("kernels", "fmt N K M kernel grid block")
    shapes = sorted({*base.layer_shapes().values(), *MORE.values()})
    for fmt in FORMATS:
        cases = []

        def run(fmt=fmt, cases=cases):
            for n, k in shapes:
                w = base.quant_weight(torch.randn(n, k, device=base.DEV, dtype=base.BF) * 0.02, fmt)
                for m in [2**i for i in range(14)]:
                    if allowed(fmt, m):
                        x = base.quant_act(torch.randn(m, k, device=base.DEV, dtype=base.BF), fmt)
                        torch.cuda._sleep(10)
                        base.product(x, w, fmt)
                        torch.cuda._sleep(10)
                        cases.append((n, k, m))

        events = traced(run)
        marks = [i for i, e in enumerate(events) if "spin_kernel" in e["name"]]
        inside = [events[a + 1 : b] for a, b in zip(marks[::2], marks[1::2], strict=False)]
        print("kernels", fmt, len(cases), "cases", len(inside), "found", flush=True)
        for (n, k, m), found in zip(cases, inside, strict=False):
            for e in found:
                grid, block = ("x".join(map(str, e["args"][key])) for key in ("grid", "block"))
                out.writerow([fmt, n, k, m, e["name"][:400], grid, block])
        f.flush()


def repeat(name):
    f, out = writer("repeat", "process layer N K fmt M way call_s least_s most_s")
    for layer, (n, k) in SMALL.items():
        for fmt in ("bf16", "fp8", "fp8_row", "int8", "int4"):
            ws = weights(n, k, fmt)
            for m in (1, 16, 64, 512):
                if not allowed(fmt, m):
                    continue
                calls = products(n, k, m, fmt, ws)
                graph, count = capture(calls), len(calls)
                ways = {}
                time.sleep(0.05)
                ways["idle before, 5 replays"] = replay_times(graph, 6, count)[1:]
                long = replay_times(graph, 80, count)
                ways["replays 60 to 80"] = long[60:]
                busy(0.02)
                ways["busy before, 5 replays"] = replay_times(graph, 6, count)[1:]
                few = calls[: len(ws)]
                graph = capture(few)
                ways["every copy once, 5 replays"] = replay_times(graph, 6, len(few))[1:]
                for way, times in ways.items():
                    row = [statistics.median(times), min(times), max(times)]
                    out.writerow([name, layer, n, k, fmt, m, way, *(f"{t:.9f}" for t in row)])
                del graph
            f.flush()
            del ws
            torch.cuda.empty_cache()


def chain(name):
    f, out = writer("chain", "process model fmt M layers product call_s")
    for model in ("l8b", "q7b"):
        shapes = {key.split(".")[1]: shape for key, shape in SMALL.items() if key.startswith(model)}
        for fmt in ("bf16", "fp8", "fp8_row", "int8"):
            layers = 12
            ws = {key: weights(n, k, fmt, layers)[:layers] for key, (n, k) in shapes.items()}
            for m in (1, 16, 64, 128, 512):
                if not allowed(fmt, m):
                    continue
                turns = []
                for key, (n, k) in shapes.items():
                    calls = products(n, k, m, fmt, ws[key])
                    t = statistics.median(replay_times(capture(calls), 12, len(calls))[4:])
                    out.writerow([name, model, fmt, m, layers, key, f"{t:.9f}"])
                    turns.append(calls[:layers])
                calls = [call for turn in zip(*turns, strict=True) for call in turn]
                t = statistics.median(replay_times(capture(calls), 12, layers)[4:])
                out.writerow([name, model, fmt, m, layers, "four in turn", f"{t:.9f}"])
            f.flush()
            del ws
            torch.cuda.empty_cache()


def step():
    f, out = writer("step", "model fmt phase batch seq layers kernel grid start_us duration_us")
    layers = 8
    for model, fmt, phase, seq in (
        ("qwen2.5-7b", "bf16", "decode", 1024), ("qwen2.5-7b", "fp8", "decode", 1024),
        ("llama3-8b", "bf16", "decode", 1024), ("llama3-8b", "fp8", "decode", 1024),
        ("qwen2.5-7b", "fp8", "prefill", 128), ("llama2-7b", "int8", "prefill", 128),
        ("llama2-7b", "bf16", "prefill", 128), ("llama3-70b-16l", "int8", "prefill", 128),
    ):  # fmt: skip
        h, ffn, q, kv, d, _, _ = base.MODELS[model]
        kind = "fp8_row" if fmt == "fp8" else fmt
        shapes = (((q + 2 * kv) * d, h), (h, q * d), (2 * ffn, h), (h, ffn))
        ws = [
            [base.quant_weight(torch.randn(s, device=base.DEV, dtype=base.BF) * 0.02, kind) for s in shapes]
            for _ in range(layers)
        ]
        rows = 1 if phase == "decode" else seq
        torch._dynamo.reset()
        run = base.make_layer(fmt, phase, q, kv, d, 1, seq)
        caches = [[torch.randn(1, kv, seq, d, device=base.DEV, dtype=base.BF) for _ in range(2)] for _ in ws]
        x0, g = (torch.randn(n, h, device=base.DEV, dtype=base.BF) for n in (rows, 1))
        cos, sin = torch.randn(2, rows, d // 2, device=base.DEV)

        def once(ws=ws, run=run, caches=caches, x0=x0, g=g[0], cos=cos, sin=sin):
            x = x0
            for w, (kc, vc) in zip(ws, caches, strict=True):
                x = run(x, g, g, *w, kc, vc, cos, sin)
            return x

        with torch.no_grad():
            graph = capture([once])
        whole = statistics.median(replay_times(graph, 12, 1)[4:])
        events = traced(graph.replay)
        for e in events:
            grid = "x".join(map(str, e["args"]["grid"]))
            out.writerow([model, fmt, phase, 1, seq, layers, e["name"][:200], grid,
                          f"{e['ts'] - events[0]['ts']:.3f}", f"{e['dur']:.3f}"])  # fmt: skip
        out.writerow([model, fmt, phase, 1, seq, layers, "whole step, not traced", "", 0, f"{whole * 1e6:.3f}"])
        f.flush()
        del ws, caches, graph, once
        torch.cuda.empty_cache()


def settled(seconds, name, layers, sizes):
    """Times of `layers` in a settled state: replays until the clock has adapted to the load, then the median of later.

    Under a load of matrix products the board reaches its power limit after 30 to 60 ms and lowers the clock; loads that
    wait for memory do not, and need less time to settle.
    """
    f, out = writer(name, "device layer N K M fmt median_s min_s max_s first_s")
    start = time.time()
    device = torch.cuda.get_device_name()
    for layer, (n, k) in layers.items():
        for fmt in FORMATS:
            if time.time() - start > seconds:
                print("out of time at", layer, fmt, flush=True)
                return
            ws = weights(n, k, fmt)
            for m in sizes:
                if not allowed(fmt, m):
                    continue
                flop = 2.0 * m * n * k
                calls = products(n, k, m, fmt, ws, 24 if flop < 2e11 else 8 if flop < 5e12 else 3)
                if flop >= 5e12:
                    calls = calls[:3]
                graph, count = capture(calls), len(calls)
                graph.replay()
                torch.cuda.synchronize()
                one = replay_times(graph, 1, count)[0] * count
                settle = max(1, math.ceil((0.06 if flop > 2e10 or fmt == "int4" else 0.01) / one))
                times = replay_times(graph, settle + max(5, math.ceil(0.005 / one)), count)
                late = times[settle:]
                row = [statistics.median(late), min(late), max(late), one / count]
                out.writerow([device, layer, n, k, m, fmt, *(f"{t:.9f}" for t in row)])
                del graph, calls
            f.flush()
            del ws
            torch.cuda.empty_cache()


POWERS = [2**i for i in range(14)]
BETWEEN = [3, 24, 48, 96, 192, 384, 768, 1536, 3072]


if __name__ == "__main__":
    base.OUT = sys.argv[1]
    words = sys.argv[2:]
    busy(0.3)
    while words:
        verb = words.pop(0)
        began = time.time()
        if verb in ("repeat", "chain"):
            {"repeat": repeat, "chain": chain}[verb](words.pop(0))
        elif verb in ("layers", "more", "between"):
            shapes = {"layers": {**base.layer_shapes(), "l8b.lm_head": (128256, 4096)}, "more": MORE, "between": SMALL}
            settled(float(words.pop(0)), f"gemm_{verb}", shapes[verb], BETWEEN if verb == "between" else POWERS)
        else:
            {"throttle": throttle, "kernels": kernels, "step": step}[verb]()
        print("done", verb, f"{time.time() - began:.0f} s", torch.__version__, flush=True)
