"""Record how cuBLAS and cuBLASLt split K, from the results themselves (needs PyTorch with CUDA).

A kernel that splits K sums each part in an accumulator of its own. Inputs that cancel show which steps of K share one:
x is all ones; column n of w holds BIG at the first step of a part, -BIG at K = n STEP and SMALL a few elements later.
In one accumulator BIG absorbs nothing but what stands between it and -BIG, so the result is SMALL; where -BIG stands in
another part, BIG and -BIG + SMALL are rounded apart and the result is 0. The first n that gives 0 is the end of the
part; the search is repeated from there. A second set of columns shows in which order the parts are added, a third
whether they are kept in float32. INT8 sums are exact: no split shows, so only kernels are recorded.

    python reports/h200_split_record.py OUT.csv [SECONDS] [FORMAT]...

Kernels' names and grids come from the profiler, of the same calls.
"""

import itertools
import random
import sys
import time
from collections import Counter

import torch
from _gpu import DEV, START, Rows, guarded, traced

BF, E4M3 = torch.bfloat16, torch.float8_e4m3fn
# format: (dtype, BIG, SMALL, elements of a probed step); BIG / SMALL exceeds the accumulator's fraction
FORMATS = {
    "bf16": (BF, 2.0**30, 1.0, 64),
    "fp16": (torch.float16, 2.0**15, 2.0**-14, 64),
    "tf32": (torch.float32, 2.0**30, 1.0, 32),
    "fp8": (E4M3, 2.0**8, 2.0**-6, 128),
    "fp8_row": (E4M3, 2.0**8, 2.0**-6, 128),
    "int8": (torch.int8, 1, 1, 128),
}
SHAPES = (  # (N, K) of linear layers of Llama, Qwen, Mistral, Gemma and OPT models, and shards of them
    (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (3072, 2048), (2048, 8192), (5120, 3072), (3584, 3584),
    (4608, 3584), (3584, 18944), (10240, 8192), (8192, 8192), (8192, 28672), (5120, 5120), (5120, 27648), (2560, 8192),
    (8192, 7168), (1024, 8192), (8192, 2048), (1280, 8192),
)  # fmt: skip
TOKENS = (1, 2, 3, 4, 8, 16, 17, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
HEAD = "fmt N K M held_out parts bounds order partials regular first_survives kernel kernels grid block"


def product(x, w, fmt, scales):
    if fmt.startswith("fp8"):
        return torch._scaled_mm(x, w.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=BF, use_fast_accum=True)
    if fmt == "int8":
        return torch._int_mm(x, w.t())
    return torch.mm(x, w.t())


def scales_of(m, n, fmt):
    if fmt == "fp8_row":
        return torch.ones(m, 1, device=DEV), torch.ones(1, n, device=DEV)
    return torch.ones((), device=DEV), torch.ones((), device=DEV)


def put(n, k, dtype, entries):
    """w (n, k) of zeros with entries (rows, columns, value); rows and columns are tensors or integers."""
    kind = torch.uint8 if dtype == E4M3 else dtype
    w = torch.zeros(n, k, device=DEV, dtype=kind)
    for rows, columns, value in entries:
        w[rows, columns] = torch.tensor(value, device=DEV).to(dtype).view(kind)
    return w.view(dtype)


def lengths(flags):
    """'12x1 44x0' of a list of 0 and 1."""
    return " ".join(f"{len(list(run))}x{int(flag)}" for flag, run in itertools.groupby(flags))


def survivors(x, n, k, fmt, start, scales):
    """For every step after `start`: does SMALL survive there, i.e. does -BIG meet BIG; and do all rows of y agree?"""
    dtype, big, small, step = FORMATS[fmt]
    steps = min(n, (k - start) // step - 1)
    i = torch.arange(steps, device=DEV)
    place = start + (i + 1) * step
    w = put(n, k, dtype, ((i, torch.full_like(i, start), big), (i, place, -big), (i, place + step // 2, small)))
    y = product(x, w, fmt, scales)[:, :steps].float()
    return [bool(v) for v in (y[0] != 0).tolist()], bool((y == y[:1]).all())


def probe(m, n, k, fmt):
    """(bounds of the parts, order of adding, kind of partial sums, all rows alike, survivors from 0)."""
    dtype, big, small, step = FORMATS[fmt]
    x = torch.ones(m, k, device=DEV).to(dtype)
    scales = scales_of(m, n, fmt)
    bounds, regular, first = [0], True, ""
    while bounds[-1] < k and len(bounds) < 66:
        start = bounds[-1]
        if (k - start) // step <= 1:
            bounds.append(k)
            break
        seen, alike = survivors(x, n, k, fmt, start, scales)
        if not first:
            first = lengths(seen)
        regular &= alike
        length = seen.index(False) if False in seen else len(seen)
        regular &= not any(seen[length:])
        if length == len(seen) and (k - start) // step - 1 > n:
            regular = False  # more steps than columns: the end may lie beyond
            bounds.append(k)
            break
        bounds.append(start + (length + 1) * step if length < len(seen) else k)
    parts = len(bounds) - 1
    order, partials = "", ""
    if 1 < parts <= 32 and n >= parts * parts:
        middle = [(a + b) // 2 // step * step for a, b in itertools.pairwise(bounds)]
        far = x.clone()
        if dtype == E4M3:  # the type alone does not reach far enough for float32: 2^16 against 2^-12
            at = torch.tensor(middle, device=DEV)
            kind = far.view(torch.uint8)
            kind[:, at] = torch.tensor(2.0**8, device=DEV).to(dtype).view(torch.uint8)
            kind[:, at + 1] = torch.tensor(2.0**-6, device=DEV).to(dtype).view(torch.uint8)
        entries = []
        for s, t in itertools.product(range(1, parts), range(parts)):
            # BIG in part 0, -BIG in part s, SMALL in part t
            if t not in (0, s):
                entries += [
                    (s * parts + t, middle[0], big),
                    (s * parts + t, middle[s], -big),
                    (s * parts + t, middle[t] + 1, small),
                ]
        y = (
            product(far, put(n, k, dtype, entries), fmt, scales)[0, : parts * parts]
            .float()
            .view(parts, parts)
            .ne(0)
            .tolist()
        )
        pairs = [(s, t) for s in range(1, parts) for t in range(1, parts) if s != t]
        forward = all(y[s][t] == (t > s) for s, t in pairs)
        backward = all(y[s][t] == (t < s) for s, t in pairs)  # part 0 last: BIG comes when -BIG has absorbed
        if parts == 2:
            order = "two"
        elif forward:
            order = "forward"
        elif not any(y[s][t] for s, t in pairs):
            order = "none survives"
        else:
            order = "backward" if backward else "other:" + ";".join("".join(str(int(v)) for v in row) for row in y[1:])
        # a partial sum that the output's type cannot hold: 1 + tiny, less 1
        tiny = 2.0**-12 if fmt == "fp16" else 2.0**-9
        entries = [(0, middle[0], 1.0), (0, middle[0] + step // 2, tiny), (0, middle[1], -1.0)]
        partials = "float32" if float(product(x, put(n, k, dtype, entries), fmt, scales)[0, 0]) != 0 else "rounded"
    return bounds, order, partials, regular, first


def kernels(cases, fmt):
    """Kernel events of every case; a spin kernel marks its start and its end."""
    if DEV == "cpu":
        return [[] for _ in cases]
    dtype = FORMATS[fmt][0]

    def run():
        for m, n, k in cases:
            x, w = (torch.zeros(s, device=DEV, dtype=dtype) for s in ((m, k), (n, k)))
            scales = scales_of(m, n, fmt)
            torch.cuda._sleep(10)
            product(x, w, fmt, scales)
            torch.cuda._sleep(10)
            del x, w

    events = traced(run)
    marks = [i for i, e in enumerate(events) if "spin_kernel" in e["name"]]
    inside = [events[a + 1 : b] for a, b in zip(marks[::2], marks[1::2], strict=False)]
    return inside if len(inside) == len(cases) else [[] for _ in cases]


def cases_of(fmt, held_out):
    if held_out:
        draw = random.Random(f"held out {fmt}")
        cases = [
            (draw.choice((draw.randint(1, 64), draw.randint(65, 512), draw.randint(513, 4096))),
             16 * draw.randint(16, 2048), 128 * draw.randint(4, 224))
            for _ in range(100)
        ]  # fmt: skip
    else:
        cases = [(m, n, k) for n, k in SHAPES for m in TOKENS]
    if DEV == "cpu":
        cases = [(m, 256, 1024) for m, _, _ in cases[:1]]
    return [c for c in cases if not (fmt == "int8" and c[0] <= 16)]


def record(out, fmt, held_out, limit):
    cases = cases_of(fmt, held_out)
    found = kernels(cases, fmt)
    parts_seen = Counter()
    for (m, n, k), events in zip(cases, found, strict=True):
        if time.time() - START > limit:
            print("time is up", fmt, m, n, k, flush=True)
            return
        if fmt == "int8":
            bounds, order, partials, regular, first = [], "", "", "", ""
        else:
            bounds, order, partials, regular, first = probe(m, n, k, fmt)
            parts_seen[len(bounds) - 1] += 1
        events = [e for e in events if "Memset" not in e["name"]]
        main = max(events, key=lambda e: e["dur"], default=None)
        a = main["args"] if main else {}
        out.add(
            fmt, n, k, m, int(held_out), len(bounds) - 1 if bounds else "", " ".join(map(str, bounds)), order, partials,
            regular if regular == "" else int(regular), first, main["name"][:300] if main else "",
            " | ".join(e["name"][:120] for e in events if e is not main),
            "x".join(map(str, a.get("grid", []))), "x".join(map(str, a.get("block", []))),
        )  # fmt: skip
    print(fmt, "held out" if held_out else "", len(cases), "cases, parts:", dict(parts_seen), flush=True)


def main(path, limit, formats):
    out = Rows(path, HEAD)
    for held_out in (False, True):
        for fmt in formats or FORMATS:
            torch.backends.cuda.matmul.allow_tf32 = fmt == "tf32"
            guarded(f"split {fmt} {'held out' if held_out else ''}", record, out, fmt, held_out, limit)
    print("done", out.count, "rows", torch.__version__, torch.version.cuda, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 600.0, sys.argv[3:])
