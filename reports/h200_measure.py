"""Measure linear layers, attention and whole decoder steps on the GPU of this machine (needs PyTorch with CUDA).

The method is that of `hwmodels/measurements/README.md`: calls captured in one CUDA graph, weights and KV caches rotated
past the L2, first replay dropped, median over replays. The shapes are those that `gemm.csv` and `e2e.csv` do not hold,
so that the calibration fitted on the latter can be tried on layers and models that it has not seen.

    python reports/h200_measure.py OUT_DIR {gemm,attention,e2e} SECONDS
"""

import csv
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F

START = time.time()
OUT, LIMIT = ".", 600.0
DEV, BF = "cuda", torch.bfloat16
E4M3 = torch.float8_e4m3fn

# name: hidden, ffn, query heads, KV heads, head_dim, vocabulary, layers run
MODELS = {
    "llama2-7b": (4096, 11008, 32, 32, 128, 32000, 32),
    "llama3-70b-16l": (8192, 28672, 64, 8, 128, 128256, 16),
    "qwen2.5-7b": (3584, 18944, 28, 4, 128, 152064, 28),
    "llama3-8b": (4096, 14336, 32, 8, 128, 128256, 32),  # measured before: shows how far two machines agree
}


def graph_time(calls, replays):
    """Median, least and largest time of one call, seconds: `calls` in one CUDA graph, first replay dropped."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays + 1):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b) * 1e-3 / len(calls))
    times = times[1:]
    return statistics.median(times), min(times), max(times)


def quant_weight(w, fmt):
    n, k = w.shape
    if fmt == "bf16":
        return (w,)
    if fmt == "fp8":
        return ((w * 100).to(E4M3).t(), torch.ones((), device=DEV))
    if fmt == "fp8_row":
        return ((w * 100).to(E4M3).t(), torch.ones(1, n, device=DEV))
    if fmt == "int8":
        return ((w * 1000).clamp(-127, 127).to(torch.int8).t(), torch.ones(1, n, device=DEV))
    codes = torch.randint(0, 255, (n, k // 2), device=DEV, dtype=torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    return (packed, torch.ones(k // 128, n, 2, device=DEV, dtype=BF))


def product(x, w, fmt):
    """The product alone: x is already in its storage format."""
    if fmt == "bf16":
        return x[0] @ w[0].t()
    if fmt.startswith("fp8"):
        return torch._scaled_mm(x[0], w[0], scale_a=x[1], scale_b=w[1], out_dtype=BF, use_fast_accum=True)
    if fmt == "int8":
        return torch._int_mm(x[0], w[0])
    return torch.ops.aten._weight_int4pack_mm(x[0], w[0], 128, w[1])


def quant_act(x, fmt):
    if fmt == "fp8":
        return (x.to(E4M3), torch.ones((), device=DEV))
    if fmt == "fp8_row":
        s = x.float().abs().amax(1, keepdim=True) / 448
        return ((x.float() / s).to(E4M3), s)
    if fmt == "int8":
        s = x.float().abs().amax(1, keepdim=True) / 127
        return ((x.float() / s).round().to(torch.int8), s)
    return (x,)


def layer_shapes():
    """name -> (N, K) of the linear layers of all models here."""
    layers = {}
    for name, (h, f, q, kv, d, _, _) in MODELS.items():
        short = {"llama2-7b": "l2-7b", "llama3-70b-16l": "l70b", "qwen2.5-7b": "q7b", "llama3-8b": "l8b"}[name]
        layers[f"{short}.qkv"] = ((q + 2 * kv) * d, h)
        layers[f"{short}.o"] = (h, q * d)
        layers[f"{short}.gate_up"] = (2 * f, h)
        layers[f"{short}.down"] = (h, f)
    layers["l70b.lm_head"] = (128256, 8192)
    layers.pop("l2-7b.o")  # the shape of l8b.o
    return layers


def gemm():
    wake = torch.randn(8192, 8192, device=DEV, dtype=BF)
    for _ in range(300):  # clocks rise from idle within about 0.1 s
        wake @ wake
    torch.cuda.synchronize()
    with open(f"{OUT}/gemm_unseen.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow("device layer N K M fmt median_s min_s max_s".split())
        for name, (n, k) in layer_shapes().items():
            for fmt in ("bf16", "fp8", "fp8_row", "int8", "int4"):
                base = torch.randn(n, k, device=DEV, dtype=BF) * 0.02
                nbytes = n * k * {"bf16": 2, "int4": 0.53}.get(fmt, 1)
                copies = min(24, math.ceil(300e6 / nbytes))
                ws = [quant_weight(base.clone(), fmt) for _ in range(copies)]
                for m in [2**i for i in range(14)]:
                    if (fmt == "int4" and m > 256) or (fmt == "int8" and m <= 16):
                        continue
                    if time.time() - START > LIMIT:
                        return
                    x = quant_act(torch.randn(m, k, device=DEV, dtype=BF), fmt)
                    calls = [lambda w=ws[i % copies], x=x, fmt=fmt: product(x, w, fmt) for i in range(max(copies, 24))]
                    t = graph_time(calls, 5)
                    out.writerow([torch.cuda.get_device_name(), name, n, k, m, fmt, *(f"{s:.9f}" for s in t)])
                del ws, base
                f.flush()
                torch.cuda.empty_cache()


def attention():
    with open(f"{OUT}/attention_unseen.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow("op batch seq q_heads kv_heads head_dim median_s".split())
        for q, kv in ((32, 32), (64, 8), (28, 4)):
            for b, s in [(1, 512), (1, 2048), (1, 8192), (1, 16384), (8, 2048)]:
                qq = torch.randn(b, q, s, 128, device=DEV, dtype=BF)
                kk, vv = (torch.randn(b, kv, s, 128, device=DEV, dtype=BF) for _ in range(2))
                run = lambda qq=qq, kk=kk, vv=vv, c=True: F.scaled_dot_product_attention(  # noqa: E731
                    qq, kk, vv, is_causal=c, enable_gqa=qq.shape[1] != kk.shape[1]
                )
                t = graph_time([run] * 10, 6)[0]
                out.writerow(["prefill_default", b, s, q, kv, 128, f"{t:.9f}"])
            for b in (1, 8, 32, 64):
                for s in (512, 2048, 8192, 32768):
                    nbytes = 4 * b * kv * s * 128
                    if nbytes > 2e10:
                        continue
                    copies = max(1, min(16, int(300e6 / nbytes)))
                    ks = [[torch.randn(b, kv, s, 128, device=DEV, dtype=BF) for _ in range(2)] for _ in range(copies)]
                    qq = torch.randn(b, q, 1, 128, device=DEV, dtype=BF)
                    calls = [
                        lambda p=ks[i % copies], qq=qq: F.scaled_dot_product_attention(
                            qq, p[0], p[1], enable_gqa=qq.shape[1] != p[0].shape[1]
                        )
                        for i in range(32)
                    ]
                    t = graph_time(calls, 6)[0]
                    out.writerow(["decode_default", b, s, q, kv, 128, f"{t:.9f}"])
                    del ks, calls
            f.flush()


def norm(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(BF) * w


def linear(x, w, fmt):
    if fmt in ("bf16", "int4"):
        return product((x,), w, fmt)
    if fmt == "fp8":
        return product(quant_act(x, "fp8_row"), w, "fp8_row")
    q = quant_act(x, "int8")
    return (product(q, w, "int8").float() * q[1] * w[1]).to(BF)


def rope(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(BF)


def make_layer(fmt, phase, q, kv, d, batch, seq):
    t = 1 if phase == "decode" else seq

    def layer(x, g1, g2, wqkv, wo, wgu, wd, kc, vc, cos, sin):
        y = linear(norm(x, g1), wqkv, fmt).view(batch, t, q + 2 * kv, d)
        qq, kk, vv = (z.transpose(1, 2) for z in y.split((q, kv, kv), 2))
        qq, kk = rope(qq, cos, sin), rope(kk, cos, sin)
        if phase == "decode":
            kc[:, :, seq - 1 : seq] = kk
            vc[:, :, seq - 1 : seq] = vv
            a = F.scaled_dot_product_attention(qq, kc, vc, enable_gqa=q != kv)
        else:
            kc.copy_(kk)
            vc.copy_(vv)
            a = F.scaled_dot_product_attention(qq, kk, vv, is_causal=True, enable_gqa=q != kv)
        x = x + linear(a.transpose(1, 2).reshape(batch * t, q * d), wo, fmt)
        gate, up = linear(norm(x, g2), wgu, fmt).chunk(2, -1)
        return x + linear(F.silu(gate) * up, wd, fmt)

    return torch.compile(layer, dynamic=False)


CASES = [
    ("decode", 1, 1024), ("decode", 16, 1024), ("prefill", 1, 2048), ("decode", 64, 1024), ("prefill", 1, 512),
    ("prefill", 1, 8192), ("decode", 1, 8192), ("decode", 16, 8192), ("prefill", 1, 128),
]  # fmt: skip


def e2e():
    with open(f"{OUT}/e2e_unseen.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow("model fmt phase batch seq median_s".split())
        for name, (h, ffn, q, kv, d, vocab, layers) in MODELS.items():
            head = torch.randn(vocab, h, device=DEV, dtype=BF) * 0.02
            g = torch.ones(h, device=DEV, dtype=BF)
            shapes = (((q + 2 * kv) * d, h), (h, q * d), (2 * ffn, h), (h, ffn))
            for fmt in ("bf16", "fp8", "int4", "int8"):
                kind = "fp8_row" if fmt == "fp8" else fmt
                ws = [
                    [quant_weight(torch.randn(s, device=DEV, dtype=BF) * 0.02, kind) for s in shapes]
                    for _ in range(layers)
                ]
                for phase, b, s in CASES:
                    rows = b if phase == "decode" else b * s
                    if (fmt == "int8" and rows <= 16) or (fmt == "int4" and phase == "prefill" and s > 512):
                        continue
                    if 4 * b * s * kv * d * layers > 5e10 or time.time() - START > LIMIT:
                        continue
                    torch._dynamo.reset()
                    run = make_layer(fmt, phase, q, kv, d, b, s)
                    caches = [[torch.randn(b, kv, s, d, device=DEV, dtype=BF) for _ in range(2)] for _ in range(layers)]
                    x0 = torch.randn(rows, h, device=DEV, dtype=BF)
                    cos, sin = torch.randn(2, 1 if phase == "decode" else s, d // 2, device=DEV)

                    def step(run=run, caches=caches, x0=x0, cos=cos, sin=sin, b=b, ws=ws, g=g, h=h, head=head):
                        x = x0
                        for w, (kc, vc) in zip(ws, caches, strict=True):
                            x = run(x, g, g, *w, kc, vc, cos, sin)
                        x = norm(x.view(b, -1, h)[:, -1], g)
                        return (x @ head.t()).argmax(-1)

                    try:
                        with torch.no_grad():
                            t = graph_time([step], 7)[0]
                        out.writerow([name, fmt, phase, b, s, f"{t:.6f}"])
                        f.flush()
                        print(name, fmt, phase, b, s, t, f"{time.time() - START:.0f}s", flush=True)
                    except Exception as e:
                        print("failed", name, fmt, phase, b, s, repr(e)[:300], flush=True)
                    del caches, x0
                    torch.cuda.empty_cache()
                del ws
                torch.cuda.empty_cache()


if __name__ == "__main__":
    OUT, LIMIT = sys.argv[1], float(sys.argv[3])
    {"gemm": gemm, "attention": attention, "e2e": e2e}[sys.argv[2]]()
    print("done", sys.argv[2], f"{time.time() - START:.0f} s", torch.__version__)
