"""FLOPs and bytes of one operator; `hwmodels.workload.step` lists those of a prefill or decode step.

Shapes: T tokens in the step (prefill batch * seq, decode batch), B sequences, L context, H hidden, d head dimension,
h query heads, h_kv KV heads, I ffn, V vocabulary. Every size may be an array; results broadcast. A product of M rows
with a weight (N, K) does 2 M N K operations; bytes are all operands read and the result written, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError

if TYPE_CHECKING:
    from qsim.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations and bytes of one operator.

    Attributes:
        flop, traffic_bytes: what the mathematics needs.
        weight_bytes: the part of the bytes that is parameters.
        exp: exponentials (softmax).
        tile_work: operations of the whole tiles that a kernel computes, over those needed: a causal mask cuts tiles.
        cached: keys and values (numbers) that a decode step reads; those of a prefill stay on the chip.
    """

    flop: Any
    traffic_bytes: Any
    weight_bytes: Any = 0.0
    exp: Any = 0.0
    tile_work: Any = 1.0
    cached: Any = 0.0

    @property
    def intensity(self) -> Any:
        """Operations per byte."""
        return self.flop / self.traffic_bytes


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of a step.

    Attributes:
        name: `qkv`, `attention`, `norm_qkv`, ...; of models with several kinds of layers with the kind before it.
        role: the name without the kind.
        kind: `gemm`, `attention`, `small` (element-wise or a row reduction), or a collective: `all_reduce`,
            `all_gather`, `alltoall`.
        cost: of one call.
        calls: how often it runs in the step.
        m, n, k: of a product, else 0.
        row: elements of the row that an element-wise kernel first reduces over (norm, quantise); 0 without.
        head: lm_head or router, which stay in 16 bit.
        groups: products of this shape that the kernel does at once, each with rows and a weight of its own (experts);
            None for a single product.
        weight_bytes: of the packed weights of all groups.
        devices: that take part in a collective, else 1.
        attention: of an attention operator, the arguments of `timing.attention` that depend on the layer.
        experts: of an operator of the routed experts, the arguments of `timing.moe.moe`, and as `share` its part of the
            time of a kernel that does them all.
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
    groups: Any = None
    weight_bytes: Any = 0.0
    reread_bytes: Any = 0.0
    role: str = ""
    devices: int = 1
    attention: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    experts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def weight_nbytes(scheme: Scheme, n: int, k: int) -> int:
    """Bytes of a packed weight (N, K): codes, scales and zero points, equal to the packed tensor's to the byte.

    Last groups may be shorter; superblocks may not, so that rows are padded to whole ones.
    """
    part = scheme.weight
    if part.superblock is not None:
        return int(part.nbytes((n, -(-k // part.superblock) * part.superblock)))
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


TILE_ROWS = 256
"""Rows of an output tile of a grouped kernel: an expert's last one is half empty in the mean, and is computed whole."""


def grouped_cost(m: Any, n: Any, k: Any, groups: Any, *, weight_bytes: Any, operand: float, output: float) -> Cost:
    """`groups` products of m rows each with a weight (N, K) of its own.

    Arguments:
        weight_bytes: of all weights.
        operand, output: bytes of an element of x and of y.
    """
    m, groups = np.asarray(m, dtype=np.float64), np.asarray(groups, dtype=np.float64)
    return Cost(
        flop=2.0 * groups * m * n * k, traffic_bytes=weight_bytes + groups * m * (operand * k + output * n),
        weight_bytes=weight_bytes, tile_work=1 + TILE_ROWS / 2 / m,
    )  # fmt: skip


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
    value_dim: Any = None,
    shared_kv: bool = False,
    kv_bytes_per_element: float = 2.0,
    activation_bytes: float = 2.0,
    window: int | None = None,
    chunked: bool = False,
) -> Cost:
    """Scaled dot-product attention over a KV cache, without its projections.

    Arguments:
        phase: `prefill`: seq causal queries, the last of them at position `context`; `decode`: one query per sequence.
        context: keys and values, in tokens, including the new ones.
        seq: queries of a prefill; None means the whole context.
        value_dim: of a head's V and output; None is head_dim.
        shared_kv: V is a part of what was read as K (multi-head latent attention in decode).
        kv_bytes_per_element: of the cache, with its scales.
        window: a query sees at most that many of the last tokens, itself included; None means all.
        chunked: it sees those of its own chunk of `window` tokens. A decode step reads the whole window or chunk that
            is kept: the most that it can be.

    Returns:
        Prefill: 2 B h (d + d_v) (S L - S^2/2 + S/2) operations: causal, half of the square. Each of K and V is read
        once (it stays in the L2 between query blocks). Decode: 2 B h (d + d_v) L operations, K and V read once, grouped
        heads share them.

    Raises:
        ValueError: a phase that is neither.
    """
    batch, context, q_heads, kv_heads = (np.asarray(v, dtype=np.float64) for v in (batch, context, q_heads, kv_heads))
    cached: Any = 0.0
    wide = head_dim + (head_dim if value_dim is None else value_dim)  # q and output, or k and v
    stored = head_dim if shared_kv else wide
    if phase == "prefill":
        s = context if seq is None else np.asarray(seq, dtype=np.float64)
        pairs = s * context - s * s / 2 + s / 2
        tile_work: Any = 1 + s * CAUSAL_TILE / 2 / pairs
        kept = context - s
        if window is not None:
            pairs = _pairs(context, window, chunked) - _pairs(kept, window, chunked)
            # the mask cuts tiles at both ends of a window
            tile_work = 1 + s * CAUSAL_TILE / np.where(context > window, 1, 2) / pairs
            kept = np.minimum(kept, window)
        past = batch * kept * kv_heads * stored * kv_bytes_per_element
        traffic = activation_bytes * batch * s * (q_heads * wide + kv_heads * stored) + past
    elif phase == "decode":
        context = context if window is None else np.minimum(context, window)
        pairs, tile_work = context, 1.0
        cached = batch * context * kv_heads * stored
        traffic = cached * kv_bytes_per_element + batch * q_heads * wide * activation_bytes
    else:
        raise QsimError(f"phase must be prefill or decode: got {phase!r}")
    heads = batch * q_heads * pairs
    return Cost(flop=2 * heads * wide, traffic_bytes=traffic, exp=heads, tile_work=tile_work, cached=cached)


def _pairs(tokens: Any, window: int, chunked: bool) -> Any:
    """Pairs of a query and a key that a mask leaves over the first `tokens` positions."""
    if chunked:
        whole, rest = tokens // window, tokens % window
        return whole * (window * (window + 1) / 2) + rest * (rest + 1) / 2
    short = np.minimum(tokens, window)
    return short * (short + 1) / 2 + (tokens - short) * window


def _operand_bytes(scheme: Scheme) -> float:
    return float(scheme.activation.bits) / 8 if scheme.activation.is_quantized else 2.0


def _kv_bytes(scheme: Scheme, width: int) -> float:
    """Bytes per KV element with its scales, for a token's K (or V) of all KV heads, `width` elements."""
    part = scheme.kv_cache
    row = (4096, width)
    if part.granularity is not None and part.granularity.columns and row[1] % part.granularity.columns:
        from dataclasses import replace

        part = replace(part, ragged=True)
    return float(part.bits_per_element(row)) / 8
