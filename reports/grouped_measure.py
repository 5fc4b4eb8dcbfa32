"""Measure grouped products, as the experts of a mixture run them, on the GPU of this machine (needs PyTorch with CUDA).

One kernel multiplies every expert's rows with that expert's weight: `torch._grouped_mm` in BF16 and
`torch._scaled_grouped_mm` in FP8 with a scale per row. Tokens choose experts uniformly, each call of a CUDA graph with
another choice, so that weights come from memory. First replay dropped, median over replays.

    python reports/grouped_measure.py OUT.csv SECONDS
"""

import csv
import functools
import itertools
import statistics
import sys
import time

import torch
from h200_measure import E4M3, graph_time

START = time.time()
DEV = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = [  # model, layer, experts, experts of a token, N, K
    ("qwen3-30b-a3b", "gate_up", 128, 8, 1536, 2048), ("qwen3-30b-a3b", "down", 128, 8, 2048, 768),
    ("mixtral-8x7b", "gate_up", 8, 2, 28672, 4096), ("mixtral-8x7b", "down", 8, 2, 4096, 14336),
    ("deepseek-v3", "gate_up", 256, 8, 4096, 7168), ("deepseek-v3", "down", 256, 8, 7168, 2048),
    ("deepseek-v2-lite", "gate_up", 64, 6, 2816, 2048), ("deepseek-v2-lite", "down", 64, 6, 2048, 1408),
]  # fmt: skip
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
CALLS, REPLAYS = 6, 5


def route(tokens, experts, chosen, generator):
    """Rows of each expert when every token picks `chosen` different ones."""
    picks = torch.rand(tokens, experts, generator=generator).topk(chosen, dim=1).indices
    return torch.bincount(picks.reshape(-1), minlength=experts)


def timed(calls):
    """(median, least, largest) seconds of one call; on a CPU, where only the script is tried, of the first."""
    if DEV == "cuda":
        return graph_time(calls, REPLAYS)
    start = time.perf_counter()
    calls[0]()
    return (time.perf_counter() - start,) * 3


def products(fmt, weight, x, offs):
    """One call for each routing; weight (experts, N, K), x (rows, K) sorted by expert, offs the ends of their rows."""
    by_columns = weight.transpose(-2, -1)
    if fmt == "bf16":
        return [functools.partial(torch._grouped_mm, x, by_columns, offs=o) for o in offs]
    scales = (torch.ones(len(x), device=DEV), torch.ones(weight.shape[:2], device=DEV))
    more = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return [functools.partial(torch._scaled_grouped_mm, x.to(E4M3), by_columns, *scales, offs=o, **more) for o in offs]


def main(out, limit):
    name = torch.cuda.get_device_name() if DEV == "cuda" else "cpu"
    generator = torch.Generator().manual_seed(0)
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["device", "model", "layer", "experts", "chosen", "N", "K", "tokens", "active", "fmt",
                         "median_s", "min_s", "max_s"])  # fmt: skip
        for fmt, (model, layer, experts, chosen, n, k) in itertools.product(("bf16", "fp8_rowwise"), LAYERS):
            if DEV == "cpu":
                experts, n, k = min(experts, 8), 64, 128
                chosen = min(chosen, 2)
            wide = torch.empty(experts, n, k, device=DEV, dtype=torch.bfloat16).normal_(std=0.02)
            weight = wide if fmt == "bf16" else wide.to(E4M3)
            for tokens in TOKENS if DEV == "cuda" else (1, 4):
                if time.time() - START > limit:
                    print("time is up", flush=True)
                    return
                counts = [route(tokens, experts, chosen, generator) for _ in range(CALLS)]
                offs = [c.cumsum(0).to(device=DEV, dtype=torch.int32) for c in counts]
                calls = products(fmt, weight, torch.randn(tokens * chosen, k, device=DEV, dtype=torch.bfloat16), offs)
                active = statistics.mean(int((c > 0).sum()) for c in counts)
                try:
                    found = timed(calls)
                except (RuntimeError, NotImplementedError) as error:
                    print(model, layer, fmt, tokens, str(error).splitlines()[0][:200], flush=True)
                    break
                row = [name, model, layer, experts, chosen, n, k, tokens, f"{active:.2f}", fmt,
                       *(f"{t:.9f}" for t in found)]  # fmt: skip
                writer.writerow(row)
                file.flush()
                print(*row[1:], flush=True)
                del calls
            del wide, weight


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 600.0)
