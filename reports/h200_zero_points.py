"""What zero points cost a 4-bit product: layers of Llama-3 with and without them, in turn, in one run.

The other recordings have the two on different days, and a large product on this chip differs by several percent from
one day to another. Needs PyTorch with CUDA and humming-kernels.

    python reports/h200_zero_points.py compile              compile the kernels of all rows, side by side
    python reports/h200_zero_points.py time OUT.csv SECONDS
"""

import os
import subprocess
import sys
import time

import h200_fused_measure as fused
import torch
from _gpu import START, Rows, busy, guarded, name, rotation, settled_time, turns

LAYERS = {
    "l8b.gate_up": (28672, 4096), "l8b.down": (4096, 14336), "l70b.qkv": (10240, 8192), "l70b.o": (8192, 8192),
    "l70b.gate_up": (57344, 8192), "l70b.down": (8192, 28672),
}  # fmt: skip
FORMATS = ("w4a16_g128", "w4a16_g128_zp")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def built(layer, fmt):
    n, k = LAYERS[layer]
    made, _ = fused.make_layer(n, k, fmt)
    return made, fused.chosen(made, TOKENS)


def compile_one(layer, fmt):
    made, tuning = built(layer, fmt)
    own = fused.copies_of(made, 1)[0]
    for m in TOKENS:
        fused.call_of(made, own, torch.randn(m, LAYERS[layer][1], device="cuda", dtype=torch.bfloat16), tuning)()
    torch.cuda.synchronize()
    print("compiled", layer, fmt, f"{time.time() - START:.0f} s", flush=True)


def time_layer(out, layer, limit):
    n, k = LAYERS[layer]
    both = []
    for fmt in FORMATS:
        made, tuning = built(layer, fmt)
        both.append((fmt, made, tuning, fused.copies_of(made, rotation(n * k * fused.bits_of(fmt) / 8))))
    for m in TOKENS:
        if time.time() - START > limit:
            print("time is up", layer, m, flush=True)
            return
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        for fmt, made, tuning, ws in both:
            times = settled_time([fused.call_of(made, w, x, tuning) for w in turns(ws, 24)], 0.02, 0.01)
            out.add(name(), layer, n, k, m, fmt, "layer", *times, "0")
    del both
    torch.cuda.empty_cache()


if __name__ == "__main__":
    verb = sys.argv[1]
    cases = [(layer, fmt) for layer in LAYERS for fmt in FORMATS]
    if verb == "compile":
        env = {**os.environ, "HUMMING_MAX_PARALLEL_BUILD_WORKERS": "3"}
        parts = [[f"{layer}:{fmt}" for layer, fmt in cases[i::6]] for i in range(6)]
        for process in [subprocess.Popen([sys.executable, __file__, "some", *words], env=env) for words in parts]:
            process.wait()
    elif verb == "some":
        for word in sys.argv[2:]:
            guarded(word, compile_one, *word.split(":"))
    elif verb == "time":
        rows = Rows(sys.argv[2], "device layer N K M fmt part median_s min_s max_s rel_err")
        busy(0.3)
        for layer in LAYERS:
            guarded(layer, time_layer, rows, layer, float(sys.argv[3]))
        print("done", rows.count, "rows", flush=True)
    else:
        sys.exit(f"the verb must be compile, some or time: got {verb}")
