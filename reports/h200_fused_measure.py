"""Time the fused quantised GEMMs of humming-kernels beside cuBLAS BF16 (needs PyTorch with CUDA and humming-kernels).

Weights rotate past the L2, calls stand in one CUDA graph, times are of a settled state (`_gpu.settled_time`). `gemm` is
the product alone, from activations already quantised; `layer` starts from BF16 activations. For BF16 activations the
two are one, written as `layer`.

    python reports/h200_fused_measure.py compile            compile the kernels of all rows, side by side
    python reports/h200_fused_measure.py time OUT.csv SECONDS
"""

import json
import os
import subprocess
import sys
import time

import torch
from _gpu import DEV, START, Rows, busy, guarded, name, rotation, settled_time, turns

LAYERS = {
    "l8b.qkv": (6144, 4096), "l8b.o": (4096, 4096), "l8b.gate_up": (28672, 4096), "l8b.down": (4096, 14336),
    "q32b.qkv": (7168, 5120), "q32b.gate_up": (55296, 5120), "q32b.down": (5120, 27648),
}  # fmt: skip
G128 = {"group_size": 128}
MX = {"dtype": "float4e2m1", "group_size": 32, "scale_dtype": "float8e8m0"}
# format: weight configuration, activations' type
FORMATS = {
    "w4a16_g128_zp": ({"dtype": "uint4", "has_zero_point": True, **G128}, None),
    "w8a16_ch": ({"dtype": "int8"}, None),
    "w2a16_g128": ({"dtype": "int2", **G128}, None),
    "w4a16_g128": ({"dtype": "int4", **G128}, None),
    "w4a8_fp8": ({"dtype": "int4", **G128}, "float8e4m3"),
    "w8a8_fp8": ({"dtype": "float8e4m3"}, "float8e4m3"),
    "w8a8_int8": ({"dtype": "int8"}, "int8"),
    "mxfp4_a16": (MX, None),
    "mxfp4_fp8": (MX, "float8e4m3"),
    "nvfp4_a16": (
        {"dtype": "float4e2m1", "group_size": 16, "scale_dtype": "float8e4m3", "scale_2_type": "tensor"}, None,
    ),
    "w3a16_g128": ({"dtype": "int3", **G128}, None),
    "w4a8_int8": ({"dtype": "int4", **G128}, "int8"),
}  # fmt: skip
NEW = ("w4a16_g128_zp", "w8a16_ch", "w2a16_g128")
POWERS = [2**i for i in range(14)]
LARGE = [192, 512, 2048, 8192]
REPEATED = {("l8b.qkv", "w4a16_g128"): (1, 16, 64, 256, 1024, 4096), ("l8b.down", "w4a8_fp8"): (1, 64, 1024),
            ("l8b.gate_up", "w8a8_fp8"): (1, 64, 1024)}  # fmt: skip


def sizes(layer, fmt):
    """M of the rows of a layer and format."""
    if fmt in NEW or fmt == "bf16_cublas":
        return sorted({*POWERS, *LARGE})
    return sorted({*LARGE, *REPEATED.get((layer, fmt), ())})


def bits_of(fmt):
    weight, _ = FORMATS[fmt]
    scale = {32: 8 / 32, 16: 8 / 16, 128: 16 / 128}.get(weight.get("group_size"), 0)
    digits = "".join(c for c in weight["dtype"].split("e")[0] if c.isdigit())
    return int(digits) + scale


def make_layer(n, k, fmt):
    """A layer with random weights in the library's own layout, and these weights before they were quantised."""
    from humming.layer import HummingLayer

    weight, acts = FORMATS[fmt]
    more = {} if acts is None else {"input_config": {"dtype": acts}}
    layer = HummingLayer(shape_n=n, shape_k=k, weight_config=dict(weight), torch_dtype=torch.bfloat16, **more).cuda()
    source = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    layer.load_from_unquantized(source)
    layer.transform()
    return layer, source


def chosen(layer, needed, **compute):
    """The library's own schedule of every M range that holds a needed M: a tuning configuration with fewer kernels.

    The launcher looks up M = 1 whatever is asked, so the first range kept is let begin at 0.
    """
    from humming.tune import get_heuristics_config

    ranges = get_heuristics_config(layer_config=layer.humming_config, device=0, **compute)
    kept = [list(r) for r in ranges if any(r[0] < m <= r[1] for m in needed)]
    kept[0][0] = 0
    return json.dumps(kept)


def copies_of(layer, count):
    """Tensors of `count` copies of a layer's weight."""
    keys = ("weight", "weight_scale", "zero_point", "weight_scale_2")
    own = {k: v.data for k in keys if (v := getattr(layer, k, None)) is not None}
    return [own, *({k: v.clone() for k, v in own.items()} for _ in range(count - 1))]


def call_of(layer, tensors, x, tuning, **more):
    from humming.forward import humming_forward

    return lambda: humming_forward(
        layer.humming_config, inputs=x, locks=layer.locks, tuning_config=tuning, **tensors, **more
    )


def compile_one(layer_name, fmt):
    """Compile the kernels of one layer and format into the library's cache."""
    n, k = LAYERS[layer_name]
    layer, _ = make_layer(n, k, fmt)
    tuning = chosen(layer, sizes(layer_name, fmt))
    for m in sizes(layer_name, fmt):  # the kernel that quantises activations depends on M too
        call_of(layer, copies_of(layer, 1)[0], torch.randn(m, k, device="cuda", dtype=torch.bfloat16), tuning)()
    torch.cuda.synchronize()
    print("compiled", layer_name, fmt, len(json.loads(tuning)), "ranges", f"{time.time() - START:.0f} s", flush=True)


def compile_all(workers):
    """Several processes, each with a part of the cases: the library's threads alone leave cores idle."""
    cases = [(layer, fmt) for fmt in FORMATS for layer in LAYERS]
    env = {**os.environ, "HUMMING_MAX_PARALLEL_BUILD_WORKERS": "3"}
    running = []
    for i in range(workers):
        words = [f"{layer}:{fmt}" for layer, fmt in cases[i::workers]]
        running.append(subprocess.Popen([sys.executable, __file__, "some", *words], env=env))
    for process in running:
        process.wait()


def time_layer(out, layer_name, fmt, limit):
    n, k = LAYERS[layer_name]
    if fmt == "bf16_cublas":
        ws = [torch.randn(n, k, device=DEV, dtype=torch.bfloat16) * 0.02 for _ in range(rotation(2 * n * k))]
    else:
        layer, source = make_layer(n, k, fmt)
        tuning = chosen(layer, sizes(layer_name, fmt))
        ws = copies_of(layer, rotation(n * k * bits_of(fmt) / 8))
    for m in sizes(layer_name, fmt):
        if time.time() - START > limit:
            print("time is up", layer_name, fmt, m, flush=True)
            return
        x = torch.randn(m, k, device=DEV, dtype=torch.bfloat16)
        flop = 2.0 * m * n * k
        count = 24 if flop < 2e11 else 8 if flop < 1e12 else 4
        if fmt == "bf16_cublas":
            parts = {"layer": [lambda w=w, x=x: x @ w.t() for w in turns(ws, count)]}
        else:
            used = turns(ws, count) if flop < 2e11 else turns(ws[:count], count)
            parts = {"layer": [call_of(layer, w, x, tuning) for w in used]}
            if FORMATS[fmt][1] is not None:
                from humming.forward import may_quant_input

                q, scale = may_quant_input(layer.humming_config, x)
                parts["gemm"] = [call_of(layer, w, q, tuning, input_scale=scale) for w in used]
        error = "0"
        if fmt != "bf16_cublas":
            y, reference = parts["layer"][0]().float(), (x @ source.t()).float()
            error = f"{float((y - reference).norm() / reference.norm()):.3g}"
            del y, reference
        for part, calls in parts.items():
            times = settled_time(calls, 0.06 if flop > 2e10 else 0.01, 0.01)
            out.add(name(), layer_name, n, k, m, fmt, part, *times, error)
        del parts
    del ws
    torch.cuda.empty_cache()


def time_all(path, limit):
    out = Rows(path, "device layer N K M fmt part median_s min_s max_s rel_err")
    busy(0.3)
    for fmt in (*NEW[:1], "bf16_cublas", *(f for f in FORMATS if f != NEW[0])):
        for layer in LAYERS:
            if time.time() - START > limit:
                print("time is up before", layer, fmt, flush=True)
                return
            guarded(f"{fmt} {layer}", time_layer, out, layer, fmt, limit)
    print("done", out.count, "rows", flush=True)


if __name__ == "__main__":
    verb = sys.argv[1]
    if verb == "compile":
        compile_all(6)
    elif verb == "some":
        for word in sys.argv[2:]:
            guarded(word, compile_one, *word.split(":"))
    elif verb == "time":
        time_all(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(f"the verb must be compile, some or time: got {verb}")
