"""Record every activation of one decoder block of the embedded model as PyTorch computes it on a GPU, bit for bit.

    python reports/h200_block_record.py OUT.npz {block,reductions,model,lengths}...

block       block 0 on the first 64 tokens of test.txt (NUL, then 63 bytes): eager BF16 with the attention written out
            as Hugging Face's eager attention does; SDPA with each back-end from the same q, k, v; Linears as W4A16 by
            humming-kernels (round to nearest, groups of 128) and as FP8 (one scale per output channel and per token,
            `_scaled_mm`). Activations are BF16 codes (uint16) unless their key ends in `.f32` (uint32) or `.e4m3`
            (uint8); of the quantised variants the first 16 tokens, and the SHA-256 of all
reductions  sums, means and softmax of rows that show the order of adding (see `probes`), and RMSNorm of random rows
model       all blocks of the embedded model on the same tokens, the final norm and the logits: the SHA-256 of every
            activation, hidden states after each block of the first 4 tokens, and the logits of the first 16
lengths     sums of 1 to 256 rows of many lengths, and softmax of many lengths: the first rows, and the SHA-256 of all
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _gpu import DEV, guarded, traced
from h200_fused_measure import chosen
from h200_fused_record import bf16, bits_of, e4m3, generator, sha256, words_of

TINY = Path(__file__).parents[1] / "qsim" / "models" / "tiny"
TOKENS, GROUP = 64, 128
SHOWN = 16  # tokens of which the quantised variants are stored
BF, E4M3 = torch.bfloat16, torch.float8_e4m3fn
LINEARS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def stored(name):
    """A BF16 tensor of the embedded model as codes (uint16)."""
    index = json.loads((TINY / "model.safetensors.index.json").read_text())["weight_map"]
    data = (TINY / index[name]).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8 : 8 + length])[name]
    if entry["dtype"] != "BF16":
        raise ValueError(f"{name} must be BF16: got {entry['dtype']}")
    first, last = (8 + length + at for at in entry["data_offsets"])
    return np.frombuffer(data[first:last], np.uint16).reshape(entry["shape"])


def floats(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32)


def on_gpu(codes):
    return torch.from_numpy(codes.view(np.int16).copy()).to(DEV).view(BF)


def tokens():
    return np.frombuffer(b"\0" + (TINY / "test.txt").read_bytes()[: TOKENS - 1], np.uint8).astype(np.int64)


def rounded_w4(codes):
    """Round to nearest in groups of 128: (codes [n, k], BF16 codes of scales [n, k/128]); w = (code - 8) scale."""
    w = floats(codes)
    groups = w.reshape(len(w), -1, GROUP)
    scale = bf16(np.maximum(np.abs(groups).max(-1), np.float32(1e-8)) / np.float32(7))
    ratio = groups / floats(scale)[..., None]
    return (np.clip(np.rint(ratio), -8, 7) + 8).astype(np.uint8).reshape(w.shape), scale


def rounded_fp8(codes):
    """(E4M3 codes [n, k], scale float32 [n, 1]) with one scale per output channel."""
    w = floats(codes)
    scale = (np.abs(w).max(1, keepdims=True) / np.float32(448)).astype(np.float32)
    return e4m3(w / scale), scale


class Plain:
    def __init__(self, codes, keep):
        self.w = on_gpu(codes)

    def __call__(self, x, name):
        return F.linear(x, self.w)


class Fp8:
    def __init__(self, codes, keep):
        values, scale = rounded_fp8(codes)
        self.w = torch.from_numpy(values).to(DEV).view(E4M3)
        self.scale, self.keep = torch.from_numpy(scale).to(DEV), keep

    def __call__(self, x, name):
        s = x.float().abs().amax(1, keepdim=True) / 448
        q = (x.float() / s).to(E4M3)
        self.keep(f"{name}.x.e4m3", q)
        self.keep(f"{name}.x_scale.f32", s)
        return torch._scaled_mm(q, self.w.t(), scale_a=s, scale_b=self.scale.t().contiguous(), out_dtype=BF,
                                use_fast_accum=True)  # fmt: skip


class Fused:
    def __init__(self, codes, keep):
        from humming.layer import HummingLayer

        n, k = codes.shape
        values, scale = rounded_w4(codes)
        self.layer = HummingLayer(shape_n=n, shape_k=k, weight_config={"dtype": "int4", "group_size": GROUP},
                                  torch_dtype=BF).cuda()  # fmt: skip
        self.layer.load_from_tensors(
            {
                "weight": torch.from_numpy(words_of(values, 4).view(np.int32).copy()).cuda(),
                "weight_scale": on_gpu(scale),
            }
        )
        self.layer.transform()
        self.tuning = chosen(self.layer, [TOKENS], use_batch_invariant=True)

    def __call__(self, x, name):
        compute = {"use_batch_invariant": True}
        return self.layer(x.contiguous(), compute_config=compute, tuning_config=self.tuning)


def norm(x, weight, keep, name):
    """RMSNorm as Hugging Face's Llama has it."""
    y = x.to(torch.float32)
    variance = y.pow(2).mean(-1, keepdim=True)
    scale = torch.rsqrt(variance + 1e-5)
    keep(f"{name}.variance.f32", variance)
    keep(f"{name}.rsqrt.f32", scale)
    out = weight * (y * scale).to(BF)
    keep(name, out)
    return out


def rotate_half(x):
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def embedding():
    return F.embedding(torch.from_numpy(tokens()).to(DEV), on_gpu(stored("model.embed_tokens.weight")))


def block(kind, keep, index=0, x=None):
    """(hidden states after a block, its q, k, v); `keep(name, tensor)` sees every activation."""
    config = json.loads((TINY / "config.json").read_text())
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    prefix = f"model.layers.{index}."
    linear = {short: kind(stored(f"{prefix}{long}.weight"), keep) for short, long in LINEARS.items()}
    x = embedding() if x is None else x
    keep("embedding", x)
    h = norm(x, on_gpu(stored(f"{prefix}input_layernorm.weight")), keep, "norm1")
    q, k, v = (linear[name](h, name) for name in "qkv")
    for name, value in zip("qkv", (q, k, v), strict=True):
        keep(name, value)
    q, k, v = (a.view(TOKENS, -1, dim).transpose(0, 1) for a in (q, k, v))
    inverse = 1.0 / (config["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.int64).float().to(DEV) / dim))
    angles = torch.arange(TOKENS, device=DEV).float()[:, None] * inverse[None, :]
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos().to(BF), angles.sin().to(BF)
    keep("inverse_frequency.f32", inverse)
    keep("cos", cos)
    keep("sin", sin)
    q, k = (a * cos + rotate_half(a) * sin for a in (q, k))
    keep("q_rope", q)
    keep("k_rope", k)
    grouped_k, grouped_v = (a.repeat_interleave(heads // kv_heads, 0) for a in (k, v))
    scores = torch.matmul(q, grouped_k.transpose(1, 2)) * dim**-0.5
    keep("scores", scores)
    mask = torch.full((TOKENS, TOKENS), torch.finfo(BF).min, device=DEV, dtype=BF).triu(1)
    p = F.softmax(scores + mask, dim=-1, dtype=torch.float32)
    keep("softmax.f32", p)
    a = torch.matmul(p.to(BF), grouped_v)
    keep("attention", a)
    o = linear["o"](a.transpose(0, 1).reshape(TOKENS, heads * dim), "o")
    keep("o", o)
    x = x + o
    keep("residual1", x)
    h = norm(x, on_gpu(stored(f"{prefix}post_attention_layernorm.weight")), keep, "norm2")
    gate, up = linear["gate"](h, "gate"), linear["up"](h, "up")
    keep("gate", gate)
    keep("up", up)
    silu = F.silu(gate)
    keep("silu", silu)
    act = silu * up
    keep("act", act)
    down = linear["down"](act, "down")
    keep("down", down)
    x = x + down
    keep("residual2", x)
    return x, {"q": q, "k": k, "v": v}


def codes_of(t):
    if t.dtype == E4M3:
        return t.contiguous().view(torch.uint8).cpu().numpy()
    return bits_of(t.detach())


def of_tokens(name, value, count):
    """The part of an activation that belongs to the first tokens: later ones do not reach back to them."""
    if name == "inverse_frequency.f32":
        return value
    value = value[:, :count] if value.ndim == 3 else value[:count]
    return value[:, :, :count] if name in ("scores", "softmax.f32") else value


def record_block(store, notes):
    notes["block"] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tokens": TOKENS,
        "kernels": {},
        "sha256": {},
    }

    def attention(states):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.CUDNN_ATTENTION):  # fmt: skip

            def one(backend=backend):
                q, k, v = (states[name].unsqueeze(0) for name in "qkv")
                if backend == SDPBackend.EFFICIENT_ATTENTION:  # takes equal heads only
                    k, v = (a.repeat_interleave(q.shape[1] // a.shape[1], 1) for a in (k, v))
                with sdpa_kernel(backend):
                    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
                    store[f"sdpa.{backend.name.lower()}"] = bits_of(run()[0])
                    if DEV == "cuda":
                        notes["block"]["kernels"][f"sdpa.{backend.name}"] = [e["name"][:100] for e in traced(run)]

            guarded(f"sdpa {backend.name}", one)

    for label, kind in (("bf16", Plain), ("fp8", Fp8), ("w4a16", Fused)):

        def one(label=label, kind=kind):
            with torch.no_grad():
                seen, repeat = {}, {}
                _, states = block(kind, lambda name, t: seen.__setitem__(name, codes_of(t)))
                block(kind, lambda name, t: repeat.__setitem__(name, codes_of(t)))
                same = all(np.array_equal(seen[name], value) for name, value in repeat.items())
                notes["block"]["sha256"][label] = {name: sha256(value) for name, value in seen.items()}
                count = TOKENS if label == "bf16" else SHOWN
                store.update({f"block.{label}.{name}": of_tokens(name, value, count) for name, value in seen.items()})
                if DEV == "cuda":
                    events = traced(lambda: block(kind, lambda name, t: None))
                    notes["block"]["kernels"][label] = [e["name"][:100] for e in events]
                notes["block"][f"{label}.repeatable"] = same
                if label == "bf16":
                    attention(states)

        guarded(f"block {label}", one)


LENGTHS = (256, 512, 2048, 4096)
ANCHORS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 63, 64, 96, 127, 128, 129, 192, 255)
BIG = 2.0**40


def probes(length, anchor):
    """Rows (length, length) of float32: BIG at `anchor`, -BIG at p for row p, 1 elsewhere; row `anchor` is all ones.

    BIG absorbs the ones that meet it before -BIG does, so the sum of row p is the number of elements outside the
    smallest partial sum that holds both: the tree of the reduction follows from all pairs (as in FPRev).
    """
    rows = torch.ones(length, length, device=DEV)
    rows[:, anchor] = BIG
    at = torch.arange(length, device=DEV)
    rows[at, at] = -BIG
    rows[anchor] = 1
    return rows


def record_reductions(store, notes):
    notes["reductions"] = {"torch": torch.__version__, "anchors": ANCHORS, "kernels": {}}

    def by_rows(function, rows, chunk):
        return torch.cat([function(part.contiguous()) for part in rows.split(chunk)])

    def tree(length, chunk, what, function):
        anchors = ANCHORS if chunk > 1 else ANCHORS[:4]
        found = np.zeros((len(anchors), length), np.uint16)
        for i, anchor in enumerate(anchors):
            sums = by_rows(function, probes(length, anchor), chunk)
            whole = sums.round().clamp(0, 65535)
            if not bool((whole == sums).all()):
                notes["reductions"][f"{what}.{length}.{chunk}.fractions"] = int((whole != sums).sum())
            found[i] = whole.cpu().numpy().astype(np.uint16)
        store[f"tree.{what}.{length}.{chunk}"] = found
        if DEV == "cuda":
            example = probes(length, 0)[:chunk].contiguous()
            notes["reductions"]["kernels"][f"{what}.{length}.{chunk}"] = [
                e["name"][:100] for e in traced(lambda: function(example))
            ]

    def rows(length):
        draw = generator("rows", length)
        x = draw.standard_normal((16, length)).astype(np.float32)
        wide = x * np.exp2(draw.integers(-6, 7, length)).astype(np.float32)
        for label, values in (("normal", x), ("wide", wide)):
            half = on_gpu(bf16(values))
            full = half.float()
            weight = torch.ones(length, device=DEV, dtype=BF)
            outputs = {
                "sum.f32": full.sum(-1), "mean_square.f32": full.pow(2).mean(-1),
                "softmax.f32": torch.softmax(full, -1), "softmax.bf16": torch.softmax(half, -1),
                "rms_norm.bf16": F.rms_norm(half, (length,), weight, 1e-5),
                "rms_norm.f32": F.rms_norm(full, (length,), weight.float(), 1e-5),
                "layer_norm.bf16": F.layer_norm(half, (length,), weight, torch.zeros_like(weight), 1e-5),
                "log_softmax.f32": torch.log_softmax(full, -1), "logsumexp.f32": torch.logsumexp(full, -1),
                "argmax": full.argmax(-1).to(torch.float32), "cumsum.f32": full.cumsum(-1),
            }  # fmt: skip
            for name, y in outputs.items():
                if y.dim() == 1 or name.startswith(("softmax.f32", "rms_norm")):
                    store[f"rows.{label}.{length}.{name}"] = bits_of(y[:2] if y.dim() > 1 else y)
            # softmax: the largest at i, all others 2^-25 of it; 1 / sum shows how many were added before the largest
        hot = torch.full((length, length), -25 * 0.6931471805599453, device=DEV)
        hot.fill_diagonal_(0.0)
        p = torch.cat([torch.softmax(part, -1) for part in hot.split(64)])
        store[f"rows.one_hot.{length}.softmax.f32"] = bits_of(p.diagonal())

    for length in LENGTHS:
        for chunk in (1, 64, length):
            for what, function in (("sum", lambda x: x.sum(-1)), ("mean", lambda x: x.mean(-1) * x.shape[-1])):
                guarded(f"tree {what} {length} {chunk}", tree, length, chunk, what, function)
        guarded(f"rows {length}", rows, length)


def record_model(store, notes):
    notes["model"] = {"torch": torch.__version__, "cuda": torch.version.cuda, "tokens": TOKENS, "sha256": {}}
    layers = json.loads((TINY / "config.json").read_text())["num_hidden_layers"]

    def run(kind, keep):
        x = embedding()
        for index in range(layers):
            x, _ = block(kind, lambda name, t, index=index: keep(f"{index}.{name}", t), index, x)
        h = norm(x, on_gpu(stored("model.norm.weight")), keep, "norm")
        keep("logits", F.linear(h, on_gpu(stored("lm_head.weight"))))

    for label, kind in (("bf16", Plain), ("fp8", Fp8), ("w4a16", Fused)):

        def one(label=label, kind=kind):
            with torch.no_grad():
                seen, repeat = {}, {}
                run(kind, lambda name, t: seen.__setitem__(name, codes_of(t)))
                run(kind, lambda name, t: repeat.__setitem__(name, codes_of(t)))
            notes["model"][f"{label}.repeatable"] = all(np.array_equal(seen[n], value) for n, value in repeat.items())
            notes["model"]["sha256"][label] = {name: sha256(value) for name, value in seen.items()}
            for index in range(layers):
                store[f"model.{label}.{index}.residual2"] = seen[f"{index}.residual2"][:4]
            store[f"model.{label}.logits"] = seen["logits"][:SHOWN]

        guarded(f"model {label}", one)


FEW_LENGTHS = (
    64, 96, 128, 129, 130, 132, 252, 384, 1000, 1001, 1024, 3584, 4096, 5120, 8192, 14336, 16384, 28672, 65536,
)  # fmt: skip
FEW_ROWS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 64, 100, 256)
SOFTMAX_LENGTHS = (5, 17, 31, 33, 64, 100, 128, 129, 256, 1000, 1024, 1025, 1028, 2048, 3000, 4096, 8192, 32000)


def record_lengths(store, notes):
    notes["lengths"] = {"torch": torch.__version__, "sums": {}, "softmax": {}}

    def sums(length):
        x = torch.from_numpy(generator("few", length).standard_normal((256, length)).astype(np.float32)).to(DEV)
        for rows in FEW_ROWS:
            y = bits_of(x[:rows].contiguous().sum(-1))
            store[f"sums.{length}.{rows}"] = y[:8]
            notes["lengths"]["sums"][f"{length}.{rows}"] = sha256(y)

    def softmax(length):
        x = torch.from_numpy(generator("softmax", length).standard_normal((4, length)).astype(np.float32) * 4).to(DEV)
        y = bits_of(torch.softmax(x, -1))
        store[f"softmax.{length}"] = y[:, :32]
        notes["lengths"]["softmax"][str(length)] = sha256(y)
        half = bits_of(torch.softmax(x.to(BF), -1, dtype=torch.float32))
        store[f"softmax_of_bf16.{length}"] = half[:, :32]
        notes["lengths"]["softmax"][f"{length}.of_bf16"] = sha256(half)

    for length in FEW_LENGTHS:
        guarded(f"sums {length}", sums, length)
    for length in SOFTMAX_LENGTHS:
        guarded(f"softmax {length}", softmax, length)


def main(path, verbs):
    store, notes = {}, {}
    for verb in verbs:
        {
            "block": record_block, "reductions": record_reductions, "model": record_model, "lengths": record_lengths
        }[verb](store, notes)  # fmt: skip
        np.savez_compressed(path, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **store)
    print("done", len(store), "arrays", Path(path).stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
