"""Record what kernels that serve quantised models compute, bit for bit, on the GPU of this machine.

Needs PyTorch with CUDA; the stream-K part needs humming-kernels, the Triton part Triton. All inputs are made by NumPy
from stated seeds (`inputs`, `fused_inputs`), so that only outputs are stored: their first rows, and the SHA-256 of all.

    python reports/h200_fused_record.py OUT.npz {kernels,stream_k}...

kernels    torch tinygemm (`_weight_int4pack_mm`), `_scaled_mm` with one scale per tensor, per row and per block of 128,
           and a Triton kernel that widens 4-bit codes to BF16 and multiplies: N x K = 256x512 and 384x4096, M = 1, 16,
           72, activations `normal` and `wide`
stream_k   humming-kernels with its own scheduling, 64 repeats of each case: how many distinct outputs, and the values
           seen at every element of the first rows
"""

import hashlib
import json
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

SHAPES = ((256, 512), (384, 4096))
TOKENS = (1, 16, 72)
DISTRIBUTIONS = ("normal", "wide")
GROUP = 128
SHOWN = 8  # rows of an output that are stored


def generator(*words):
    """NumPy's PCG64 seeded by the CRC-32 of the words."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(" ".join(map(str, words)).encode())))


def bf16(values):
    """BF16 codes (uint16) of float32 values, nearest even; no NaN comes in."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def inputs(n, k, m, distribution):
    """{x: BF16 codes [m, k], codes: uint8 0..15 [n, k], scale: BF16 codes [n, k/128], zero: uint8 [n, k/128],
    xe: E4M3 codes [m, k], we: E4M3 codes [n, k], x_scale: float32 [m, 1], w_scale: float32 [n, 1],
    x_blocks: float32 [m, k/128], w_blocks: float32 [n/128, k/128], w_groups: float32 [n, k/128]}.

    `wide` multiplies each column of x by a power of two from 2^-6 to 2^6. E4M3 codes are drawn as finite codes whose
    magnitudes follow a normal distribution times 16.
    """
    draw = generator("weights", n, k)
    codes = draw.integers(0, 16, (n, k), np.uint8)
    scale = bf16(draw.uniform(0.005, 0.02, (n, k // GROUP)).astype(np.float32))
    zero = draw.integers(5, 11, (n, k // GROUP), np.uint8)
    we = e4m3(draw.standard_normal((n, k)).astype(np.float32) * 16)
    w_scale = draw.uniform(0.001, 0.01, (n, 1)).astype(np.float32)
    w_blocks = draw.uniform(0.001, 0.01, (n // GROUP, k // GROUP)).astype(np.float32)
    w_groups = draw.uniform(0.001, 0.01, (n, k // GROUP)).astype(np.float32)
    draw = generator("activations", k, m, distribution)
    x = draw.standard_normal((m, k)).astype(np.float32)
    xe = draw.standard_normal((m, k)).astype(np.float32) * 16
    if distribution == "wide":
        power = np.exp2(draw.integers(-6, 7, k)).astype(np.float32)
        x, xe = x * power, xe * power
    x_scale = draw.uniform(0.001, 0.01, (m, 1)).astype(np.float32)
    x_blocks = draw.uniform(0.001, 0.01, (m, k // GROUP)).astype(np.float32)
    return {"x": bf16(x), "codes": codes, "scale": scale, "zero": zero, "xe": e4m3(xe), "we": we, "x_scale": x_scale,
            "w_scale": w_scale, "x_blocks": x_blocks, "w_blocks": w_blocks, "w_groups": w_groups}  # fmt: skip


def e4m3(values):
    """E4M3 codes (uint8) of float32 values: nearest even, saturating at 448."""
    sign = np.where(np.signbit(values), 128, 0).astype(np.uint8)
    table = np.arange(127, dtype=np.int64)
    exponent, fraction = table >> 3, table & 7
    points = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    middle = (points[1:] + points[:-1]) / 2
    size = np.abs(values).astype(np.float64)
    low = np.searchsorted(middle, size, "left")
    tie = (low < 126) & (size == middle[np.minimum(low, 125)]) & (low % 2 == 1)
    return (low + tie).astype(np.uint8) | sign


def words_of(codes, bits):
    """Codes [rows, k] packed along k into uint32 words, least significant bits first."""
    rows, k = codes.shape
    planes = ((codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1).reshape(rows, k * bits)
    packed = np.packbits(planes, axis=1, bitorder="little")
    return packed.view("<u4").reshape(rows, k * bits // 32)


def tensors(made, device):
    import torch

    def put(a):
        kinds = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}
        return torch.from_numpy(a.view(kinds.get(a.dtype, a.dtype)).copy()).to(device)

    t = {key: put(a) for key, a in made.items()}
    for key in ("x", "scale"):
        t[key] = t[key].view(torch.bfloat16)
    for key in ("xe", "we"):
        t[key] = t[key].view(torch.float8_e4m3fn)
    return t


def bits_of(y):
    import torch

    wide = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[y.dtype]
    return y.contiguous().view(wide).cpu().numpy().view(np.uint16 if wide == torch.int16 else np.uint32)


def tinygemm(t):
    """torch.ops.aten._weight_int4pack_mm: w = (code - 8) scale + zero, both BF16; zero here (8 - zero point) scale."""
    import torch

    pairs = (t["codes"][:, ::2] << 4) | t["codes"][:, 1::2]
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8)
    offset = ((8 - t["zero"].float()) * t["scale"].float()).to(torch.bfloat16)
    both = torch.stack((t["scale"], offset), -1).transpose(0, 1).contiguous()  # [k/128, n, 2]
    return torch.ops.aten._weight_int4pack_mm(t["x"], packed, GROUP, both)


def scaled(t, kind, fast=True):
    import torch

    x, w = t["xe"], t["we"].t()
    if kind == "tensor":
        a, b = t["x_scale"][:1].reshape(()), t["w_scale"][:1].reshape(())
    elif kind == "row":
        a, b = t["x_scale"], t["w_scale"].t().contiguous()
    else:  # one scale per token and 128 of K; one per 128 x 128 of w, or per row and 128 of K: torch asks these strides
        a = t["x_blocks"].t().contiguous().t()
        b = t["w_blocks"].t() if kind == "block" else t["w_groups"].t().contiguous()
    return torch._scaled_mm(x, w, scale_a=a, scale_b=b, out_dtype=torch.bfloat16, use_fast_accum=fast)


def triton_kernel():
    import triton
    import triton.language as tl

    @triton.jit
    def widen_and_dot(x, codes, scale, zero, y, m, n, k, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                      BK: tl.constexpr):  # fmt: skip
        rows = tl.program_id(0) * BM + tl.arange(0, BM)
        columns = tl.program_id(1) * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        for start in range(0, k, BK):
            at = start + tl.arange(0, BK)
            a = tl.load(x + rows[:, None] * k + at[None, :], mask=rows[:, None] < m, other=0.0)
            c = tl.load(codes + columns[None, :] * k + at[:, None])
            group = start // GROUP
            s = tl.load(scale + columns * (k // GROUP) + group)
            z = tl.load(zero + columns * (k // GROUP) + group)
            w = ((c.to(tl.float32) - z.to(tl.float32)[None, :]) * s.to(tl.float32)[None, :]).to(tl.bfloat16)
            total = tl.dot(a, w, total)
        tl.store(y + rows[:, None] * n + columns[None, :], total.to(tl.bfloat16), mask=rows[:, None] < m)

    return widen_and_dot


def with_triton(t, kernel):
    import torch

    m, k = t["x"].shape
    n = t["codes"].shape[0]
    y = torch.empty(m, n, device=t["x"].device, dtype=torch.bfloat16)
    kernel[((m + 15) // 16, n // 64)](t["x"], t["codes"], t["scale"], t["zero"], y, m, n, k, GROUP=GROUP, BM=16, BN=64,
                                      BK=64)  # fmt: skip
    return y


def sha256(outputs):
    """Of the codes in row-major order, little endian."""
    return hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest()


def record_kernels(store, notes):
    import torch
    from _gpu import DEV, guarded, traced

    kinds = {
        "tinygemm": tinygemm,
        "scaled.tensor": lambda t: scaled(t, "tensor"),
        "scaled.tensor.slow": lambda t: scaled(t, "tensor", False),
        "scaled.row": lambda t: scaled(t, "row"),
        "scaled.row.slow": lambda t: scaled(t, "row", False),
        "scaled.block.slow": lambda t: scaled(t, "block", False),
        "scaled.group.slow": lambda t: scaled(t, "group", False),
    }

    def with_kernel():
        kernel = triton_kernel()
        kinds["triton"] = lambda t: with_triton(t, kernel)

    guarded("Triton", with_kernel)
    notes["kernels"] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cases": {}}
    for n, k in SHAPES:
        for m in TOKENS:
            for distribution in DISTRIBUTIONS:
                t = tensors(inputs(n, k, m, distribution), DEV)
                for kind, run in kinds.items():
                    key = f"{kind}.{n}x{k}.{m}.{distribution}"

                    def one(key=key, run=run, t=t, first=distribution == "normal"):
                        y = run(t)
                        full = bits_of(y)
                        store[key] = full[:SHOWN]
                        again = [np.array_equal(bits_of(run(t)), full) for _ in range(4)]
                        names = []
                        if first and DEV == "cuda":
                            names = [e["name"][:100] for e in traced(lambda: run(t))]
                        notes["kernels"]["cases"][key] = {
                            "repeatable": all(again),
                            "sha256": sha256(full),
                            "kernels": names,
                        }

                    guarded(key, one)


STREAM_K = [  # format, N, K, M
    ("w4a16_g128", 384, 4096, 16), ("w4a16_g128", 384, 4096, 72), ("w4a16_g128", 1024, 4096, 16),
    ("w4a16_g128", 256, 512, 72), ("w4a16_g128", 512, 14336, 1), ("w4a16_g128", 1024, 8192, 32),
    ("w4a16_g128_zp", 384, 4096, 16), ("w4a16_g128_zp", 384, 4096, 72), ("w2a16_g128", 384, 4096, 16),
    ("w2a16_g128", 384, 4096, 72), ("w8a16_ch", 384, 4096, 16), ("w8a16_ch", 384, 4096, 72),
    ("w8a8_fp8", 384, 4096, 16), ("w8a8_fp8", 384, 4096, 72), ("w8a8_fp8", 1024, 8192, 32),
    ("w4a8_fp8", 384, 4096, 16), ("w4a8_fp8", 384, 4096, 72), ("w4a8_fp8", 1024, 8192, 32),
    ("mxfp4_a16", 384, 4096, 72), ("mxfp4_fp8", 384, 4096, 72), ("w3a16_g128", 384, 4096, 72),
    ("w8a8_int8", 384, 4096, 72),
]  # fmt: skip
REPEATS = 64
ROWS = 2  # rows of y of which every value seen is stored


def distinct(stack):
    """Values (uint16) seen at each element of stack (R, rows, n), ascending: (rows, n, most), the last one repeated."""
    ordered = np.sort(stack, 0)
    new = np.concatenate((np.ones((1, *stack.shape[1:]), bool), ordered[1:] != ordered[:-1]))
    most = int(new.sum(0).max())
    found = np.repeat(ordered[-1][..., None], most, -1)
    place = new.cumsum(0) - 1
    for r, i, j in np.argwhere(new):
        found[i, j, place[r, i, j]] = ordered[r, i, j]
    return found


def fused_inputs(fmt, n, k, m):
    """{x: BF16 codes [m, k], codes: uint8 [n, k], and what the format has of weight_scale and zero} of one case."""
    bits = {"w2a16": 2, "w3a16": 3, "w8a16": 8}.get(fmt.split("_")[0], 8 if fmt.startswith("w8") else 4)
    draw = generator("stream-K", fmt, n, k, m)
    made = {"x": bf16(draw.standard_normal((m, k)).astype(np.float32))}
    if fmt == "w8a8_fp8":
        made["codes"] = e4m3(draw.standard_normal((n, k)).astype(np.float32) * 16)
    else:
        made["codes"] = draw.integers(0, 1 << bits, (n, k), np.uint8)
    if fmt.startswith("mxfp4"):
        made["weight_scale"] = draw.integers(118, 123, (n, k // 32), np.uint8)  # E8M0: 2^-9 to 2^-5
    else:
        columns = k // GROUP if "_g128" in fmt or fmt.startswith("w4a8") else 1
        made["weight_scale"] = bf16(draw.uniform(0.005, 0.02, (n, columns)).astype(np.float32))
    if fmt.endswith("_zp"):
        made["zero"] = draw.integers(5, 11, (n, k // GROUP), np.uint8)
    return made, bits


def record_stream_k(store, notes):
    import torch
    from _gpu import guarded
    from h200_fused_measure import FORMATS, chosen
    from humming.forward import humming_forward
    from humming.layer import HummingLayer

    notes["stream_k"] = {}

    def one(fmt, n, k, m):
        made, bits = fused_inputs(fmt, n, k, m)
        weight, acts = FORMATS[fmt]
        more = {} if acts is None else {"input_config": {"dtype": acts}}
        layer = HummingLayer(
            shape_n=n, shape_k=k, weight_config=dict(weight), torch_dtype=torch.bfloat16, **more
        ).cuda()
        state = {"weight": torch.from_numpy(words_of(made["codes"], bits).view(np.int32).copy()).cuda()}
        scale = torch.from_numpy(
            made["weight_scale"].view(np.int16 if made["weight_scale"].itemsize == 2 else np.uint8)
        )
        state["weight_scale"] = scale.cuda().view(torch.float8_e8m0fnu if fmt.startswith("mxfp4") else torch.bfloat16)
        if "zero" in made:  # packed along N
            zero = words_of(np.ascontiguousarray(made["zero"].T), bits).T
            state["zero_point"] = torch.from_numpy(np.ascontiguousarray(zero).view(np.int32).copy()).cuda()
        layer.load_from_tensors(state)
        layer.transform()
        x = torch.from_numpy(made["x"].view(np.int16).copy()).cuda().view(torch.bfloat16)
        tuning = chosen(layer, [m])
        keys = ("weight", "weight_scale", "zero_point", "weight_scale_2")
        held = {key: v.data for key in keys if (v := getattr(layer, key, None)) is not None}

        def run(**config):
            y = humming_forward(layer.humming_config, inputs=x, locks=layer.locks, **held, **config)
            return bits_of(y)

        seen, count = {}, Counter()
        for _ in range(REPEATS):
            y = run(tuning_config=tuning)
            digest = sha256(y)
            seen.setdefault(digest, y)
            count[digest] += 1
        stack = np.stack(list(seen.values()))
        different = (stack != stack[0]).any(0)
        invariant = run(
            compute_config={"use_batch_invariant": True}, tuning_config=chosen(layer, [m], use_batch_invariant=True)
        )
        key = f"{fmt}.{n}x{k}.{m}"
        notes["stream_k"][key] = {
            "schedule": json.loads(tuning), "outputs": int(stack[0].size), "distinct": len(seen),
            "counts": sorted(count.values(), reverse=True), "elements_that_differ": int(different.sum()),
            "most_values_of_an_element": int(distinct(stack).shape[-1]),
            "sha256_of_first": next(iter(seen)),
        }  # fmt: skip
        notes["stream_k"][key]["sha256_of_invariant"] = sha256(invariant)
        store[f"stream_k.{key}.invariant"] = invariant[:ROWS]
        store[f"stream_k.{key}.seen"] = distinct(stack[:, :ROWS])
        print(key, "distinct", len(seen), "differ", int(different.sum()), "of", stack[0].size, flush=True)

    for case in STREAM_K:
        guarded(" ".join(map(str, case)), one, *case)


def main(path, verbs):
    store, notes = {}, {}
    for verb in verbs:
        {"kernels": record_kernels, "stream_k": record_stream_k}[verb](store, notes)
        np.savez_compressed(path, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **store)
    print("done", len(store), "arrays", Path(path).stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
