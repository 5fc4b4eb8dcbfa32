"""FLOPs and bytes of every operator of a prefill or decode step.

Shapes: T tokens in the step (prefill batch * seq, decode batch), B sequences, L context, H hidden, d head dimension,
h query heads, h_kv KV heads, I ffn, V vocabulary. Every size may be an array; results broadcast. A product of M rows
with a weight (N, K) does 2 M N K operations; bytes are all operands read and the result written, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .architecture import Architecture

if TYPE_CHECKING:
    from qsim.quantize import Scheme


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations and bytes of one operator.

    Attributes:
        flop, traffic_bytes: what the mathematics needs.
        weight_bytes: the part of the bytes that is parameters.
        exp: exponentials (softmax).
        tile_work: operations of the whole tiles that a kernel computes, over those needed: a causal mask cuts tiles.
    """

    flop: Any
    traffic_bytes: Any
    weight_bytes: Any = 0.0
    exp: Any = 0.0
    tile_work: Any = 1.0

    @property
    def intensity(self) -> Any:
        """Operations per byte."""
        return self.flop / self.traffic_bytes


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a step.

    Attributes:
        name: `qkv`, `attention`, `norm_qkv`, ...
        kind: `gemm`, `attention`, `small` (element-wise or a row reduction) or `all_reduce`.
        cost: of one call.
        calls: how often it runs in the step.
        m, n, k: of a product, else 0.
        row: elements of the row that an element-wise kernel first reduces over (norm, quantise); 0 without.
        head: lm_head or router, which stay in 16 bit.
        weight_bytes: of the packed weight.
        reread_bytes: input that a quantising kernel reads a second time (largest value first, codes second); it costs
            traffic only when it is larger than the on-chip memory.
    """

    name: str
    kind: str
    cost: Cost
    calls: float
    m: Any = 0
    n: Any = 0
    k: Any = 0
    row: int = 0
    head: bool = False
    weight_bytes: Any = 0.0
    reread_bytes: Any = 0.0


def weight_nbytes(scheme: Scheme, n: int, k: int) -> int:
    """Bytes of a packed weight (N, K): codes, scales and zero points, equal to the packed tensor's to the byte."""
    part = scheme.weight
    if part.granularity is not None and not part.ragged:
        columns = part.granularity.columns
        if columns is not None and k % columns:
            from dataclasses import replace

            part = replace(part, ragged=True)
    return int(part.nbytes((n, k)))


def gemm_cost(m: Any, n: Any, k: Any, *, weight_bytes: Any, activation_bytes: float, output_bytes: float = 2.0) -> Cost:
    """y[M,N] = x[M,K] w[N,K]^T: 2 M N K operations; weight, activation and result cross the bus once."""
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (m, n, k))
    return Cost(
        flop=2.0 * m * n * k,
        traffic_bytes=weight_bytes + activation_bytes * m * k + output_bytes * m * n,
        weight_bytes=weight_bytes,
    )


CAUSAL_TILE = 128
"""Keys of the tile that a flash-attention kernel computes whole where the causal mask cuts it."""


def attention_cost(
    phase: str,
    *,
    batch: Any,
    context: Any,
    q_heads: Any,
    kv_heads: Any,
    head_dim: Any,
    seq: Any = None,
    kv_bytes_per_element: float = 2.0,
    activation_bytes: float = 2.0,
) -> Cost:
    """Scaled dot-product attention over a KV cache, without its projections.

    Arguments:
        phase: `prefill`: seq causal queries, the last of them at position `context`; `decode`: one query a sequence.
        context: keys and values, in tokens, including the new ones.
        seq: queries of a prefill; None means the whole context.
        kv_bytes_per_element: of the cache, with its scales.

    Returns:
        Prefill: 4 B h d (S L - S^2/2 + S/2) operations: causal, half of the square. Each of K and V is read once (it
        stays in the L2 between query blocks). Decode: 4 B h d L operations, K and V read once, grouped heads
        share them.

    Raises:
        ValueError: a phase that is neither.
    """
    batch, context, q_heads, kv_heads = (np.asarray(v, dtype=np.float64) for v in (batch, context, q_heads, kv_heads))
    if phase == "prefill":
        s = context if seq is None else np.asarray(seq, dtype=np.float64)
        pairs = s * context - s * s / 2 + s / 2
        tile_work: Any = 1 + s * CAUSAL_TILE / 2 / pairs
        new = batch * s * head_dim
        past = 2 * batch * (context - s) * kv_heads * head_dim * kv_bytes_per_element
        traffic = activation_bytes * new * (2 * q_heads + 2 * kv_heads) + past
    elif phase == "decode":
        pairs, tile_work = context, 1.0
        traffic = 2 * batch * context * kv_heads * head_dim * kv_bytes_per_element
        traffic = traffic + 2 * batch * q_heads * head_dim * activation_bytes
    else:
        raise ValueError(f"phase is prefill or decode: got {phase!r}")
    heads = batch * q_heads * pairs
    return Cost(flop=4 * heads * head_dim, traffic_bytes=traffic, exp=heads, tile_work=tile_work)


def step_operators(
    architecture: Architecture,
    scheme: Scheme,
    phase: str,
    *,
    batch: Any,
    context: Any,
    seq: Any = None,
    tensor_parallel: int = 1,
    output_bytes: float = 2.0,
    activation_bytes: float | None = None,
    separate_quantize: bool = True,
    unfused_quantize: bool = False,
    fused: bool = False,
) -> Iterator[Operator]:
    """The operators of one step, in order; `calls` counts all layers.

    Arguments:
        phase: `prefill` (batch sequences of `seq` new tokens, default all of `context`) or `decode`.
        context: tokens in the KV cache including the new ones.
        tensor_parallel: devices that share every layer; the costs are those of one device.
        output_bytes: of a product's result (4 for int32).
        activation_bytes: of a product's operand; None derives it from the scheme.
        separate_quantize: the run-time quantisation of the activation is a kernel of its own, fused with the
            element-wise kernel before it; False when the product's own time contains it.
        unfused_quantize: it stands alone, unfused, and is read and written once more.
        fused: dataflow: activations stay on the chip between the operators of a layer.
    """
    a, tp = architecture, tensor_parallel
    batch = np.asarray(batch, dtype=np.float64)
    context = np.asarray(context, dtype=np.float64)
    new = np.float64(1.0) if phase == "decode" else (context if seq is None else np.asarray(seq, np.float64))
    tokens = batch * new
    layers = float(a.layers)
    dynamic = scheme.activation.is_quantized
    act = activation_bytes if activation_bytes is not None else _operand_bytes(scheme)
    act_stored = 2.0 if not (dynamic and separate_quantize) else act
    kv = _kv_bytes(scheme, a)
    h, heads, kv_heads, d = a.hidden, a.heads // tp, max(1, a.kv_heads // tp), a.head_dim
    active = _active_experts(a, tokens)

    def product(name: str, n: int, k: int, rows: Any, copies: Any = 1.0) -> Operator:
        weight = np.asarray(weight_nbytes(scheme, n, k), dtype=np.float64)
        cost = gemm_cost(rows, n, k, weight_bytes=weight, activation_bytes=act, output_bytes=output_bytes)
        return Operator(name=name, kind="gemm", cost=cost, calls=layers * copies, m=rows, n=n, k=k, weight_bytes=weight)

    def small(
        name: str, traffic: Any, row: int = 0, flop: Any = 0.0, calls: Any = layers, reread: Any = 0.0
    ) -> Operator:
        cost = Cost(flop=flop, traffic_bytes=np.asarray(traffic, dtype=np.float64))
        again = reread if scheme.activation.dynamic and separate_quantize else 0.0
        return Operator(name=name, kind="small", cost=cost, calls=calls, row=row, reread_bytes=again)

    def quantize(name: str, width: int) -> Iterator[Operator]:
        if dynamic and unfused_quantize:
            yield small(name, tokens * width * (2 + act), row=width)

    ffn = a.ffn // tp
    quantized_row = ffn if dynamic and separate_quantize and scheme.activation.dynamic else 0
    (n_qkv, _), (_, k_o) = ((heads + 2 * kv_heads) * d, h), (h, heads * d)
    gate = 2 if a.gated else 1
    shared = a.shared_ffn // tp
    # consumers read a product's result in the format that it was written in
    out = output_bytes
    yield small("norm_qkv", tokens * h * (2 + act_stored), row=h, flop=5.0 * tokens * h, reread=tokens * h * 2.0)
    yield from quantize("quantize_qkv", h)
    yield product("qkv", n_qkv, h, tokens)
    yield small("rope", tokens * (heads + kv_heads) * d * (out + 2), flop=6.0 * tokens * (heads + kv_heads) * d)
    yield small("kv_write", tokens * kv_heads * d * (2 + out + 2 * kv))
    cost = attention_cost(
        phase, batch=batch, context=context, seq=new if phase == "prefill" else None, q_heads=heads, kv_heads=kv_heads,
        head_dim=d, kv_bytes_per_element=kv,
    )  # fmt: skip
    yield Operator(name="attention", kind="attention", cost=cost, calls=layers)
    if (
        dynamic and separate_quantize and scheme.activation.dynamic
    ):  # a static scale is applied where the operand is made
        width = tokens * heads * d
        yield small("quantize_o", width * (2 + act), row=heads * d, reread=width * 2.0)
    yield product("o", h, k_o, tokens)
    if tp > 1:
        yield _all_reduce("all_reduce_o", tokens, h, layers)
    yield small(
        "norm_mlp", tokens * h * (out + 2 + 2 + act_stored), row=h, flop=5.0 * tokens * h,
        reread=tokens * h * 2.0,
    )  # fmt: skip
    yield from quantize("quantize_gate_up", h)
    if a.experts > 1:
        yield Operator(
            name="router", kind="gemm", cost=gemm_cost(tokens, a.experts, h, weight_bytes=2.0 * a.experts * h,
            activation_bytes=2.0), calls=layers,
            m=tokens, n=a.experts, k=h, head=True, weight_bytes=2.0 * a.experts * h,
        )  # fmt: skip
        routed = tokens * a.experts_per_token / active
        yield product("gate_up", gate * ffn, h, np.maximum(routed, 1.0), active)
        yield small("activation", tokens * a.experts_per_token * ffn * (gate * 2 + act_stored), row=quantized_row)
        yield product("down", h, ffn, np.maximum(routed, 1.0), active)
        yield small("combine", tokens * a.experts_per_token * h * 2.0 + tokens * h * 2.0)
        if shared:
            yield product("shared_gate_up", gate * shared, h, tokens)
            yield product("shared_down", h, shared, tokens)
    else:
        yield product("gate_up", gate * ffn, h, tokens)
        yield small(
            "activation", tokens * ffn * (gate * out + act_stored), row=quantized_row,
            flop=4.0 * tokens * ffn,
            reread=tokens * ffn * gate * out,
        )  # fmt: skip
        yield from quantize("quantize_down", ffn)
        yield product("down", h, ffn, tokens)
    if tp > 1:
        yield _all_reduce("all_reduce_down", tokens, h, layers)
    yield small("residual", tokens * h * (out + 4.0))
    yield small("norm_head", batch * h * 2.0 * 2, row=h, calls=1.0)
    vocab = -(-a.vocab // tp)
    head_weight = 2.0 * vocab * h
    yield Operator(
        name="lm_head", kind="gemm", cost=gemm_cost(batch, vocab, h, weight_bytes=head_weight, activation_bytes=2.0),
        calls=1.0, m=batch, n=vocab, k=h, head=True, weight_bytes=head_weight,
    )  # fmt: skip
    yield small("sample", batch * vocab * 2.0, row=vocab, calls=1.0)


def _all_reduce(name: str, tokens: Any, hidden: int, layers: float) -> Operator:
    return Operator(
        name=name, kind="all_reduce", cost=Cost(flop=0.0, traffic_bytes=tokens * hidden * 2.0), calls=layers
    )


def _operand_bytes(scheme: Scheme) -> float:
    return float(scheme.activation.bits) / 8 if scheme.activation.is_quantized else 2.0


def _kv_bytes(scheme: Scheme, architecture: Architecture) -> float:
    """Bytes per KV element with its scales, for a token's K of all KV heads."""
    part = scheme.kv_cache
    row = (4096, architecture.kv_heads * architecture.head_dim)
    if part.granularity is not None and part.granularity.columns and row[1] % part.granularity.columns:
        from dataclasses import replace

        part = replace(part, ragged=True)
    return float(part.bits_per_element(row)) / 8


def _active_experts(architecture: Architecture, tokens: Any) -> Any:
    """Experts that at least one token goes to, in the mean, with uniform routing."""
    e, k = architecture.experts, architecture.experts_per_token
    if e == 1:
        return 1.0
    return e * (1 - (1 - k / e) ** tokens)
