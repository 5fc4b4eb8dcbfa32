"""Time the small operators of a decoder step, and decode attention with an FP8 cache (needs PyTorch with CUDA).

    python reports/h200_operators.py compile HIDDEN                fill the cache of torch.compile for one hidden size
    python reports/h200_operators.py operators OUT.csv SECONDS [eager] [compile]
    python reports/h200_operators.py sampling OUT.csv SECONDS      arg max and top-k over vocabularies
    python reports/h200_operators.py decode OUT.csv LIBRARY.so     FlashInfer's decode kernels (h200_decode.cu)

Calls stand in one CUDA graph; inputs rotate past the L2; times are of a settled state. `bytes` are those that the
operator must read and write once.
"""

import ctypes
import sys
import time

import torch
import torch.nn.functional as F
from _gpu import DEV, START, Rows, busy, guarded, name, rotation, settled_time, traced, turns

BF, E4M3 = torch.bfloat16, torch.float8_e4m3fn
HIDDEN = (2048, 4096, 8192, 16384)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 8192) if DEV == "cuda" else (1, 4)


def rms_norm(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(BF) * w


def add_rms_norm(x, r, w):
    s = x + r
    return s, rms_norm(s, w)


def rotary(x, cos, sin):
    """Half-split rotary embedding of heads of 128: x (T, heads, 128), cos and sin (T, 1, 64)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(BF)


def silu_mul(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def add(x, r):
    return x + r


def quantize_fp8(x):
    """One scale per token."""
    s = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
    return (x.float() / s).to(E4M3), s


def quantize_int8(x):
    s = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (x.float() / s).round().to(torch.int8), s


def softmax(x):
    return torch.softmax(x.float(), -1).to(BF)


def rand(*shape):
    return torch.randn(*shape, device=DEV, dtype=BF)


# name: function, arguments of (tokens, hidden), bytes that must move for each
OPERATORS = {
    "rms_norm": (rms_norm, lambda t, h: (rand(t, h), rand(h)), lambda t, h: 4 * t * h + 2 * h),
    "add_rms_norm": (add_rms_norm, lambda t, h: (rand(t, h), rand(t, h), rand(h)), lambda t, h: 8 * t * h + 2 * h),
    "rotary": (
        rotary, lambda t, h: (rand(t, h // 128, 128), *torch.randn(2, t, 1, 64, device=DEV)),
        lambda t, h: 4 * t * h + 512 * t,
    ),
    "silu_mul": (silu_mul, lambda t, h: (rand(t, 2 * h),), lambda t, h: 6 * t * h),
    "add": (add, lambda t, h: (rand(t, h), rand(t, h)), lambda t, h: 6 * t * h),
    "quantize_fp8": (quantize_fp8, lambda t, h: (rand(t, h),), lambda t, h: 3 * t * h + 4 * t),
    "quantize_int8": (quantize_int8, lambda t, h: (rand(t, h),), lambda t, h: 3 * t * h + 4 * t),
    "softmax": (softmax, lambda t, h: (rand(t, h),), lambda t, h: 4 * t * h),
}  # fmt: skip


def embed(ids, table):
    return F.embedding(ids, table)


def kv_write(cache_k, cache_v, slots, k, v):
    """New keys and values (T, heads x 128) to their slots of a cache, in place."""
    cache_k.index_copy_(0, slots, k)
    cache_v.index_copy_(0, slots, v)


def compiled(function):
    """The compiled function: any number of tokens, one hidden size, as serving engines compile."""
    run = torch.compile(function)

    def call(*arguments):
        for a in arguments:
            if a.dim() > 1 and a.shape[0] > 1:
                torch._dynamo.mark_dynamic(a, 0)
        return run(*arguments)

    return call


def compile_for(hidden):
    """A run of every operator at one hidden size, so that a later process finds the compiled kernels in the cache."""
    for key, (function, make, _) in OPERATORS.items():
        torch._dynamo.reset()
        run = compiled(function)
        for tokens in (4, 1):
            guarded(f"compile {key} {hidden} {tokens}", lambda run=run, make=make, t=tokens: run(*make(t, hidden)))


def operators(path, limit, modes=("eager", "compile")):
    out = Rows(path, "device operator mode tokens hidden bytes median_s min_s max_s")
    busy(0.2)

    def one(key, mode, hidden):
        function, make, count = OPERATORS[key]
        if mode == "compile":
            torch._dynamo.reset()
            function = compiled(function)
        for tokens in (4, *(t for t in TOKENS if t != 4)):  # the first sizes decide what the compiler assumes
            if time.time() - START > limit:
                raise TimeoutError("time is up")
            nbytes = count(tokens, hidden)
            sets = [make(tokens, hidden) for _ in range(rotation(nbytes, 24, 200e6))]
            calls = [lambda a=a, f=function: f(*a) for a in turns(sets, 24)]
            out.add(name(), key, mode, tokens, hidden, nbytes, *settled_time(calls, 0.004, 0.004))
            del sets, calls

    for mode in modes:
        for key in OPERATORS:
            for hidden in HIDDEN:
                guarded(f"{mode} {key} {hidden}", one, key, mode, hidden)

    def gather(hidden):
        table = rand(128256 if DEV == "cuda" else 64, hidden)
        for tokens in TOKENS:
            ids = [torch.randint(0, len(table), (tokens,), device=DEV) for _ in range(24)]
            calls = [lambda i=i: embed(i, table) for i in ids]
            out.add(name(), "embedding", "eager", tokens, hidden, 4 * tokens * hidden + 8 * tokens,
                    *settled_time(calls, 0.004, 0.004))  # fmt: skip

    def write(kv_heads):
        width = kv_heads * 128
        for label, dtype in (("bf16", BF), ("fp8", E4M3)):
            size = dtype.itemsize
            kind = torch.uint8 if size == 1 else BF
            slots_of_cache = 65536 if DEV == "cuda" else 64
            caches = [torch.zeros(slots_of_cache, width, device=DEV, dtype=kind) for _ in range(4)]
            for tokens in TOKENS:
                slots = [torch.randperm(len(caches[0]), device=DEV)[:tokens] for _ in range(4)]
                new = [[rand(tokens, width).to(kind) for _ in range(2)] for _ in range(4)]
                calls = [
                    lambda i=i, c=caches, s=slots, n=new: kv_write(c[2 * i % 4], c[2 * i % 4 + 1], s[i], *n[i])
                    for i in range(4)
                ] * 6
                out.add(name(), f"kv_write_{label}", "eager", tokens, width, 4 * size * tokens * width + 8 * tokens,
                        *settled_time(calls, 0.004, 0.004))  # fmt: skip

    if "eager" not in modes:
        print("done", out.count, "rows", torch.__version__, flush=True)
        return
    for hidden in HIDDEN:
        guarded(f"embedding {hidden}", gather, hidden)
    for kv_heads in (4, 8, 32):
        guarded(f"kv_write {kv_heads}", write, kv_heads)
    print("done", out.count, "rows", torch.__version__, flush=True)


def greedy(x):
    return x.argmax(-1)


def top_k(x):
    """Sampling as served: the 50 largest logits, their probabilities, one draw by the exponential trick."""
    values, at = x.float().topk(50, -1)
    p = torch.softmax(values, -1)
    noise = torch.empty_like(p).exponential_()
    return at.gather(-1, (p / noise).argmax(-1, keepdim=True))


def all_of_it(x):
    """Sampling over the whole vocabulary without sorting."""
    p = torch.softmax(x.float(), -1)
    return (p / torch.empty_like(p).exponential_()).argmax(-1)


def sampling(path, limit):
    out = Rows(path, "device operator mode tokens vocabulary bytes median_s min_s max_s")
    busy(0.2)

    def one(function, vocabulary):
        for tokens in (1, 4, 16, 64, 256) if DEV == "cuda" else (2,):
            if time.time() - START > limit:
                raise TimeoutError("time is up")
            nbytes = 2 * tokens * vocabulary
            sets = [rand(tokens, vocabulary) for _ in range(rotation(nbytes, 24, 200e6))]
            calls = [lambda x=x: function(x) for x in turns(sets, 12)]
            out.add(name(), function.__name__, "eager", tokens, vocabulary, nbytes, *settled_time(calls, 0.004, 0.004))

    for function in (greedy, top_k, all_of_it):
        for vocabulary in (32000, 128256, 151936, 262144) if DEV == "cuda" else (500,):
            guarded(f"{function.__name__} {vocabulary}", one, function, vocabulary)
    print("done", out.count, "rows", flush=True)


PAGE = 16
HEADS = ((32, 8), (64, 8))
CASES = [(b, s) for b in (1, 8, 32, 64, 128) for s in (512, 2048, 8192, 32768) if b * s <= 2**21]


def decode(path, library):
    """FlashInfer's kernels on a paged cache of 16 slots per page, one query per sequence, pages in random order."""
    lib = ctypes.CDLL(library)
    out = Rows(path, "device kernel kv_dtype batch seq q_heads kv_heads head_dim median_s min_s max_s max_error")
    busy(0.2)

    def at(tensor):
        return ctypes.c_void_p(tensor.data_ptr())

    floats = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")

    def one(kind, kv, batch, seq, q_heads, kv_heads):
        dtype, size = (E4M3, 1) if kv == "fp8" else (BF, 2)
        ints = torch.zeros(8 << 20, dtype=torch.uint8, device="cuda")
        pinned = torch.zeros(8 << 20, dtype=torch.uint8).pin_memory()
        pages = seq // PAGE
        indptr = torch.arange(0, batch + 1, dtype=torch.int32) * pages
        rows = torch.arange(0, batch + 1, dtype=torch.int32)
        words = (ctypes.c_int64 * 32)()
        count = lib.plan(
            kind,
            size,
            at(floats),
            ctypes.c_size_t(floats.numel()),
            at(ints),
            at(pinned),
            ctypes.c_size_t(ints.numel()),
            at(indptr),
            at(rows),
            batch,
            q_heads,
            kv_heads,
            PAGE,
            words,
        )
        if count <= 0:
            raise RuntimeError(f"plan: {count}")
        torch.cuda.synchronize()
        copies = rotation(2 * batch * seq * kv_heads * 128 * size, 8)
        caches = [[rand(batch * pages, PAGE, kv_heads, 128).to(dtype) for _ in range(2)] for _ in range(copies)]
        q = rand(batch, q_heads, 128)
        o = torch.full((batch, q_heads, 128), float("nan"), device="cuda", dtype=BF)
        indptr_d, rows_d = indptr.cuda(), rows.cuda()
        indices = torch.randperm(batch * pages, device="cuda").to(torch.int32)
        last = torch.full((batch,), PAGE, dtype=torch.int32, device="cuda")

        def call(k, v):
            error = lib.run(kind, size, words, count, at(floats), at(ints), at(q), at(k), at(v), at(indptr_d),
                            at(indices), at(last), at(rows_d), at(o), batch, q_heads, kv_heads, PAGE,
                            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))  # fmt: skip
            if error:
                raise RuntimeError(f"run: {error}")

        call(*caches[0])
        torch.cuda.synchronize()
        k, v = (c[indices[:pages].long()].reshape(seq, kv_heads, 128).float() for c in caches[0])
        group = q_heads // kv_heads
        k, v = (c.repeat_interleave(group, 1).transpose(0, 1) for c in (k, v))
        wanted = torch.softmax(q[0].float().unsqueeze(1) @ k.transpose(1, 2) * 128**-0.5, -1) @ v
        error = float((o[0].float() - wanted[:, 0]).abs().max())
        times = settled_time([lambda p=p: call(*p) for p in turns(caches, 16)], 0.01, 0.005)
        out.add(name(), ("flashinfer_cuda_cores", "flashinfer_tensor_cores")[kind], kv, batch, seq, q_heads, kv_heads,
                128, *times, f"{error:.3g}")  # fmt: skip
        if (batch, seq) == (8, 2048):
            print([e["name"][:200] for e in traced(lambda: call(*caches[0]))], flush=True)

    def sdpa(batch, seq, q_heads, kv_heads):
        copies = rotation(4 * batch * seq * kv_heads * 128, 8)
        caches = [[rand(batch, kv_heads, seq, 128) for _ in range(2)] for _ in range(copies)]
        q = rand(batch, q_heads, 1, 128)
        calls = [lambda p=p: F.scaled_dot_product_attention(q, *p, enable_gqa=True) for p in turns(caches, 16)]
        out.add(
            name(), "sdpa_default", "bf16", batch, seq, q_heads, kv_heads, 128, *settled_time(calls, 0.01, 0.005), ""
        )

    for q_heads, kv_heads in HEADS:
        for batch, seq in CASES:
            for kind in (0, 1):
                for kv in ("bf16", "fp8"):
                    what = f"decode {kind} {kv} {batch} {seq} {q_heads}"
                    guarded(what, one, kind, kv, batch, seq, q_heads, kv_heads)
            guarded(f"sdpa {batch} {seq}", sdpa, batch, seq, q_heads, kv_heads)
            torch.cuda.empty_cache()
    print("done", out.count, "rows", flush=True)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "compile":
        compile_for(int(words[0]))
    elif verb == "decode":
        decode(*words)
    else:
        {"operators": operators, "sampling": sampling}[verb](
            words[0], float(words[1]), *([words[2:]] if words[2:] else [])
        )
