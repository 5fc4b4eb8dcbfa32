"""The operators of a prefill or decode step, in order, with how often each runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .architecture import Architecture
from .operators import Cost, Operator, _kv_bytes, _operand_bytes, attention_cost, gemm_cost, grouped_cost, weight_nbytes

if TYPE_CHECKING:
    from qsim.scheme import Scheme


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

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1) keeps one latent vector a token. A prefill expands
    it to the K and V of every head (`kv_b`); a decode step absorbs the expansion into the query and the output
    (`absorb`, in 16 bit as engines do it) and reads the latent vectors as keys and values of a single head.
    """
    batch = np.asarray(batch, dtype=np.float64)
    context = np.asarray(context, dtype=np.float64)
    new = np.float64(1.0) if phase == "decode" else (context if seq is None else np.asarray(seq, np.float64))
    quantized = scheme.activation.is_quantized
    act = activation_bytes if activation_bytes is not None else _operand_bytes(scheme)
    step = _Step(
        a=architecture, scheme=scheme, phase=phase, batch=batch, context=context, new=new, tp=tensor_parallel,
        act=act, stored=act if quantized and separate_quantize else 2.0, out=output_bytes,
        quantizes=quantized and separate_quantize and scheme.activation.dynamic,
        rereads=scheme.activation.dynamic and separate_quantize, alone=quantized and unfused_quantize,
    )  # fmt: skip
    yield from step.latent_projections() if architecture.is_latent else step.projections()
    yield from step.attention()
    yield from step.feed_forward()
    yield from step.head()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the operators of a step share.

    Attributes:
        act, stored, out: bytes of an element of a product's operand, as the element-wise kernel before it writes it,
            and of its result.
        quantizes: a kernel of its own finds scales at run time; rereads: fused with one that reads its input twice;
            alone: unfused.
    """

    a: Architecture
    scheme: Scheme
    phase: str
    batch: Any
    context: Any
    new: Any
    tp: int
    act: float
    stored: float
    out: float
    quantizes: bool
    rereads: bool
    alone: bool

    @property
    def tokens(self) -> Any:
        return self.batch * self.new

    def product(
        self, name: str, n: int, k: int, rows: Any, *, calls: Any = None, groups: Any = None, sixteen: bool = False
    ) -> Operator:
        """x[rows,K] w[N,K]^T, in every layer unless `calls` says otherwise; `sixteen` leaves it in 16 bit."""
        weight = np.asarray(2 * n * k if sixteen else weight_nbytes(self.scheme, n, k), dtype=np.float64)
        weight = weight if groups is None else groups * weight
        operand, output = (2.0, 2.0) if sixteen else (self.act, self.out)
        if groups is None:
            cost = gemm_cost(rows, n, k, weight_bytes=weight, activation_bytes=operand, output_bytes=output)
        else:
            cost = grouped_cost(rows, n, k, groups, weight_bytes=weight, operand=operand, output=output)
        return Operator(
            name=name, kind="gemm", cost=cost, calls=float(self.a.layers) if calls is None else calls, m=rows, n=n, k=k,
            head=sixteen, groups=groups, weight_bytes=weight,
        )  # fmt: skip

    def small(
        self, name: str, traffic: Any, *, row: int = 0, flop: Any = 0.0, calls: Any = None, reread: Any = 0.0
    ) -> Operator:
        cost = Cost(flop=flop, traffic_bytes=np.asarray(traffic, dtype=np.float64))
        return Operator(
            name=name, kind="small", cost=cost, calls=float(self.a.layers) if calls is None else calls, row=row,
            reread_bytes=reread if self.rereads else 0.0,
        )  # fmt: skip

    def quantize(self, name: str, width: int, calls: Any = None) -> Iterator[Operator]:
        if self.alone:
            yield self.small(name, self.tokens * width * (2 + self.act), row=width, calls=calls)

    def all_reduce(self, name: str) -> Iterator[Operator]:
        if self.tp > 1:
            cost = Cost(flop=0.0, traffic_bytes=self.tokens * self.a.hidden * 2.0)
            yield Operator(name=name, kind="all_reduce", cost=cost, calls=float(self.a.layers))

    def norm_qkv(self) -> Iterator[Operator]:
        h, tokens = self.a.hidden, self.tokens
        yield self.small(
            "norm_qkv", tokens * h * (2 + self.stored), row=h, flop=5.0 * tokens * h, reread=tokens * h * 2.0
        )
        yield from self.quantize("quantize_qkv", h)

    def projections(self) -> Iterator[Operator]:
        """Queries, keys and values, rotated and written to the cache."""
        a, tokens, out = self.a, self.tokens, self.out
        heads, kv_heads, d = a.heads // self.tp, max(1, a.kv_heads // self.tp), a.head_dim
        yield from self.norm_qkv()
        yield self.product("qkv", (heads + 2 * kv_heads) * d, a.hidden, tokens)
        # consumers read a product's result in the format that it was written in
        rotated = tokens * (heads + kv_heads) * d
        yield self.small("rope", rotated * (out + 2), flop=6.0 * rotated)
        yield self.small("kv_write", tokens * kv_heads * d * (2 + out + 2 * _kv_bytes(self.scheme, a)))

    def latent_projections(self) -> Iterator[Operator]:
        """Multi-head latent attention: every device makes all latent vectors, and the heads that are its own."""
        a, tokens, out = self.a, self.tokens, self.out
        heads, rope, rank = a.heads // self.tp, a.rope_dim, a.kv_lora_rank
        yield from self.norm_qkv()
        if a.q_lora_rank:
            yield self.product("qkv_a", a.q_lora_rank + a.cache_row, a.hidden, tokens)
        else:
            yield self.product("q", heads * a.head_dim, a.hidden, tokens)
            yield self.product("kv_a", a.cache_row, a.hidden, tokens)
        normed = a.q_lora_rank + rank
        yield self.small("norm_latent", tokens * normed * (out + self.stored), row=normed, flop=5.0 * tokens * normed)
        if a.q_lora_rank:
            yield self.product("q_b", heads * a.head_dim, a.q_lora_rank, tokens)
        yield self.small("rope", tokens * (heads + 1) * rope * (out + 2), flop=6.0 * tokens * (heads + 1) * rope)
        yield self.small("kv_write", tokens * a.cache_row * (2 + _kv_bytes(self.scheme, a)))
        expanded = heads * (a.head_dim - rope + a.value_dim)
        if self.phase == "prefill":
            yield self.product("kv_b", expanded, rank, self.batch * self.context)
        else:
            yield self.product("absorb", expanded, rank, tokens, sixteen=True)

    def attention(self) -> Iterator[Operator]:
        a, tokens = self.a, self.tokens
        cost = attention_cost(
            self.phase, batch=self.batch, context=self.context, seq=self.new if self.phase == "prefill" else None,
            **attention_shape(a, self.phase, self.scheme, self.tp),
        )  # fmt: skip
        yield Operator(name="attention", kind="attention", cost=cost, calls=float(a.layers))
        width = a.heads // self.tp * a.value_dim
        if self.quantizes:  # a static scale is applied where the operand is made
            yield self.small("quantize_o", tokens * width * (2 + self.act), row=width, reread=tokens * width * 2.0)
        yield self.product("o", a.hidden, width, tokens)
        yield from self.all_reduce("all_reduce_o")

    def feed_forward(self) -> Iterator[Operator]:
        a, h, tokens = self.a, self.a.hidden, self.tokens
        yield self.small(
            "norm_mlp", tokens * h * (self.out + 2 + 2 + self.stored), row=h, flop=5.0 * tokens * h,
            reread=tokens * h * 2.0,
        )  # fmt: skip
        yield from self.quantize("quantize_gate_up", h)
        if a.experts > 1:
            yield from self.experts()
            if a.dense_layers:
                yield from self.dense("dense_", a.dense_ffn, float(a.dense_layers))
        else:
            yield from self.dense("", a.ffn, float(a.layers))
        yield from self.all_reduce("all_reduce_down")
        yield self.small("residual", tokens * h * (self.out + 4.0))

    def dense(self, prefix: str, ffn: int, calls: float) -> Iterator[Operator]:
        h, tokens, gate, ffn = self.a.hidden, self.tokens, 2 if self.a.gated else 1, ffn // self.tp
        yield self.product(f"{prefix}gate_up", gate * ffn, h, tokens, calls=calls)
        yield self.small(
            f"{prefix}activation", tokens * ffn * (gate * self.out + self.stored), row=ffn if self.quantizes else 0,
            flop=4.0 * tokens * ffn, reread=tokens * ffn * gate * self.out, calls=calls,
        )  # fmt: skip
        yield from self.quantize(f"{prefix}quantize_down", ffn, calls)
        yield self.product(f"{prefix}down", h, ffn, tokens, calls=calls)

    def experts(self) -> Iterator[Operator]:
        """Routed experts, each with the tokens that go to it, all in one grouped kernel; and the shared one."""
        a, h, tokens, gate, ffn = self.a, self.a.hidden, self.tokens, 2 if self.a.gated else 1, self.a.ffn // self.tp
        layers = float(a.layers - a.dense_layers)
        active = _active_experts(a, tokens)
        rows, assigned = np.maximum(tokens * a.experts_per_token / active, 1.0), tokens * a.experts_per_token
        yield self.product("router", a.experts, h, tokens, calls=layers, sixteen=True)
        yield self.product("gate_up", gate * ffn, h, rows, calls=layers, groups=active)
        yield self.small(
            "activation", assigned * ffn * (gate * 2 + self.stored), row=ffn if self.quantizes else 0, calls=layers
        )
        yield self.product("down", h, ffn, rows, calls=layers, groups=active)
        yield self.small("combine", assigned * h * 2.0 + tokens * h * 2.0, calls=layers)
        shared = a.shared_ffn // self.tp
        if shared:
            yield self.product("shared_gate_up", gate * shared, h, tokens, calls=layers)
            yield self.product("shared_down", h, shared, tokens, calls=layers)

    def head(self) -> Iterator[Operator]:
        """Logits of the last token of every sequence."""
        h, vocab = self.a.hidden, -(-self.a.vocab // self.tp)
        yield self.small("norm_head", self.batch * h * 2.0 * 2, row=h, calls=1.0)
        yield self.product("lm_head", vocab, h, self.batch, calls=1.0, sixteen=True)
        yield self.small("sample", self.batch * vocab * 2.0, row=vocab, calls=1.0)


def attention_shape(architecture: Architecture, phase: str, scheme: Scheme, tensor_parallel: int = 1) -> dict[str, Any]:
    """The arguments of `attention_cost` and `timing.attention` that depend on the architecture."""
    a, tp = architecture, tensor_parallel
    heads = a.heads // tp
    if not a.is_latent:
        kv = max(1, a.kv_heads // tp)
        return {"q_heads": heads, "kv_heads": kv, "head_dim": a.head_dim, "kv_bytes_per_element": _kv_bytes(scheme, a)}
    if phase == "prefill":  # K and V were expanded, in 16 bit
        return {"q_heads": heads, "kv_heads": heads, "head_dim": a.head_dim, "value_dim": a.value_dim}
    return {"q_heads": heads, "kv_heads": 1, "head_dim": a.cache_row, "value_dim": a.kv_lora_rank, "shared_kv": True,
            "kv_bytes_per_element": _kv_bytes(scheme, a)}  # fmt: skip


def _active_experts(architecture: Architecture, tokens: Any) -> Any:
    """Experts that at least one token goes to, in the mean, with uniform routing."""
    e, k = architecture.experts, architecture.experts_per_token
    if e == 1:
        return 1.0
    return e * (1 - (1 - k / e) ** tokens)
