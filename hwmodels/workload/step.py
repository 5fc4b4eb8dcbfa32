"""The operators of a prefill or decode step, in order, with how often each runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.families import Attention, Experts, Latent, Mixer, Mlp, Recurrent

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
    expert_parallel: int = 1,
    output_bytes: float = 2.0,
    activation_bytes: float | None = None,
    separate_quantize: bool = True,
    unfused_quantize: bool = False,
) -> Iterator[Operator]:
    """The operators of one step; `calls` counts all layers. Equal layers are one group, in the order of appearance.

    Arguments:
        phase: `prefill` (batch sequences of `seq` new tokens, default all of `context`) or `decode`.
        context: tokens in the KV cache including the new ones.
        tensor_parallel: devices that share every layer; the costs are those of one device.
        expert_parallel: devices that routed experts are dealt out to whole. Within `tensor_parallel`, every device
            gives what its experts add to all tokens, and the all-reduce sums it. Beyond, as many groups of
            `tensor_parallel` devices run `batch` sequences each, and tokens go to their experts and back by two
            all-to-alls: each once to every device that has one of its experts.
        output_bytes: of a product's result (4 for int32).
        activation_bytes: of a product's operand; None derives it from the scheme.
        separate_quantize: the run-time quantisation of the activation is a kernel of its own, fused with the
            element-wise kernel before it; False when the product's own time contains it.
        unfused_quantize: it stands alone, unfused, and is read and written once more.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1) keeps one latent vector per token. A prefill
    expands it to the K and V of every head (`kv_b`); a decode step absorbs the expansion into the query and the
    output (`absorb`, in 16 bit as engines do it) and reads the latent vectors as keys and values of a single head.
    Where an indexer chooses the tokens (DeepSeek-V3.2), it reads a key of every token, and attention reads the chosen
    ones.

    A recurrent layer is its products, and one pass over its state and its channels at the rate of the memory: in decode
    the state is read and written once for each sequence, in prefill it stays on the chip and is written once.

    Raises:
        QsimError: devices that do not divide the heads, or several for recurrent layers without heads, whose split is
            not priced.
    """
    architecture.check_split(tensor_parallel, expert_parallel)
    batch = np.asarray(batch, dtype=np.float64)
    context = np.asarray(context, dtype=np.float64)
    new = np.float64(1.0) if phase == "decode" else (context if seq is None else np.asarray(seq, np.float64))
    quantized = scheme.activation.is_quantized
    act = activation_bytes if activation_bytes is not None else _operand_bytes(scheme)
    step = _Step(
        a=architecture, scheme=scheme, phase=phase, batch=batch, context=context, new=new, tp=tensor_parallel,
        ep=expert_parallel,
        act=act, stored=act if quantized and separate_quantize else 2.0, out=output_bytes,
        quantizes=quantized and separate_quantize and scheme.activation.dynamic,
        rereads=scheme.activation.dynamic and separate_quantize, alone=quantized and unfused_quantize,
    )  # fmt: skip
    for prefix, mixer, count in architecture.mixers:
        yield from step.mixer(prefix, mixer, float(count))
    yield from step.feed_forward()
    yield from step.others()
    yield from step.head()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the operators of a step share.

    Attributes:
        a: the architecture; tp: devices that share every layer; ep: that experts are dealt out to.
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
    ep: int
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
        self, name: str, n: int, k: int, rows: Any, *, calls: float, groups: Any = None, sixteen: bool = False
    ) -> Operator:
        """x[rows,K] w[N,K]^T; `sixteen` leaves it in 16 bit."""
        weight = np.asarray(2 * n * k if sixteen else weight_nbytes(self.scheme, n, k), dtype=np.float64)
        weight = weight if groups is None else groups * weight
        operand, output = (2.0, 2.0) if sixteen else (self.act, self.out)
        if groups is None:
            cost = gemm_cost(rows, n, k, weight_bytes=weight, activation_bytes=operand, output_bytes=output)
        else:
            cost = grouped_cost(rows, n, k, groups, weight_bytes=weight, operand=operand, output=output)
        return Operator(
            name=name, kind="gemm", cost=cost, calls=calls, m=rows, n=n, k=k, head=sixteen, groups=groups,
            weight_bytes=weight,
        )  # fmt: skip

    def small(
        self, name: str, traffic: Any, *, calls: float, row: int = 0, flop: Any = 0.0, reread: Any = 0.0, role: str = ""
    ) -> Operator:
        cost = Cost(flop=flop, traffic_bytes=np.asarray(traffic, dtype=np.float64))
        return Operator(
            name=name, kind="small", cost=cost, calls=calls, row=row, reread_bytes=reread if self.rereads else 0.0,
            role=role,
        )  # fmt: skip

    def quantize(self, name: str, width: int, calls: float) -> Iterator[Operator]:
        if self.alone:
            yield self.small(name, self.tokens * width * (2 + self.act), row=width, calls=calls)

    def all_reduce(self, name: str, calls: float) -> Iterator[Operator]:
        if self.tp > 1 and calls:
            cost = Cost(flop=0.0, traffic_bytes=self.tokens * self.a.hidden * 2.0)
            yield Operator(name=name, kind="all_reduce", cost=cost, calls=calls, devices=self.tp)

    def norm(self, name: str, calls: float) -> Iterator[Operator]:
        """A norm of the hidden state whose result a product reads."""
        h, tokens = self.a.hidden, self.tokens
        if calls:
            yield self.small(
                name, tokens * h * (2 + self.stored), row=h, flop=5.0 * tokens * h, reread=tokens * h * 2.0, calls=calls
            )

    def mixer(self, prefix: str, mixer: Mixer, calls: float) -> Iterator[Operator]:
        """Everything between the norm before a mixer and its output, for all layers that have it."""
        normed = sum(count for layer, count in self.a.shape.groups if layer.mixers[:1] == (mixer,))
        yield from self.norm(prefix + "norm_qkv", float(normed))
        yield from self.quantize(prefix + "quantize_qkv", mixer.linears[0].k, calls)
        if isinstance(mixer, Recurrent):
            yield from self.recurrence(prefix, mixer, calls)
            return
        if isinstance(mixer, Latent):
            yield from self.latent_projections(prefix, mixer, calls)
        else:
            yield from self.projections(prefix, mixer, calls)
        yield from self.attention(prefix, mixer, calls)

    def projections(self, prefix: str, m: Attention, calls: float) -> Iterator[Operator]:
        """Queries, keys and values, rotated and written to the cache."""
        tokens, out = self.tokens, self.out
        heads, kv_heads, d = m.heads // self.tp, 0 if m.shares_kv else max(1, m.kv_heads // self.tp), m.head_dim
        values = 0 if m.keys_are_values else m.value_dim
        n = (heads + kv_heads) * d + kv_heads * values + m.gate // self.tp
        yield self.product(prefix + ("q" if m.shares_kv else "qkv"), n, m.inputs, tokens, calls=calls)
        # consumers read a product's result in the format that it was written in
        rotated = tokens * (heads + kv_heads) * d
        yield self.small(prefix + "rope", rotated * (out + 2), flop=6.0 * rotated, calls=calls, role="rope")
        if kv_heads:
            both = _kv_bytes(self.scheme, m.kv_heads * d) + _kv_bytes(self.scheme, m.kv_heads * m.value_dim)
            mean = (d + m.value_dim) / 2
            yield self.small(prefix + "kv_write", tokens * kv_heads * mean * (2 + out + both), calls=calls)

    def latent_projections(self, prefix: str, m: Latent, calls: float) -> Iterator[Operator]:
        """Multi-head latent attention: every device makes all latent vectors, and the heads that are its own."""
        tokens, out = self.tokens, self.out
        heads, rope, rank = m.heads // self.tp, m.rope_dim, m.kv_rank
        row = rank + rope
        if m.q_rank:
            yield self.product(prefix + "qkv_a", m.q_rank + row, m.inputs, tokens, calls=calls)
        else:
            yield self.product(prefix + "q", heads * m.head_dim, m.inputs, tokens, calls=calls)
            yield self.product(prefix + "kv_a", row, m.inputs, tokens, calls=calls)
        normed = m.q_rank + rank
        yield self.small(
            prefix + "norm_latent", tokens * normed * (out + self.stored), row=normed, flop=5.0 * tokens * normed,
            calls=calls,
        )  # fmt: skip
        if m.q_rank:
            yield self.product(prefix + "q_b", heads * m.head_dim, m.q_rank, tokens, calls=calls)
        rotated = tokens * (heads + 1) * rope
        yield self.small(prefix + "rope", rotated * (out + 2), flop=6.0 * rotated, calls=calls, role="rope")
        yield self.small(prefix + "kv_write", tokens * row * (2 + _kv_bytes(self.scheme, row)), calls=calls)
        if m.index_heads:
            yield from self.indexer(prefix, m, calls)
        expanded = heads * (m.nope_dim + m.value_dim)
        if self.phase == "prefill":
            yield self.product(prefix + "kv_b", expanded, rank, self.batch * self.context, calls=calls)
        else:
            yield self.product(prefix + "absorb", expanded, rank, tokens, sixteen=True, calls=calls)

    def indexer(self, prefix: str, m: Latent, calls: float) -> Iterator[Operator]:
        """The indexer's queries, key and head weights, and its scores: one key of every token for all its heads."""
        for item in m.linears:
            if item.name.startswith("index_"):
                yield self.product(prefix + item.name, item.n, item.k, self.tokens, calls=calls)
        kv = _kv_bytes(self.scheme, m.index_dim)
        yield self.small(prefix + "index_write", self.tokens * m.index_dim * (2 + kv), calls=calls)
        yield self.scores(prefix + "index_scores", calls, {
            "q_heads": m.index_heads, "kv_heads": 1, "head_dim": m.index_dim, "value_dim": 0, "shared_kv": True,
            "kv_bytes_per_element": kv,
        })  # fmt: skip

    def scores(self, name: str, calls: float, how: Mapping[str, Any]) -> Operator:
        """An attention operator."""
        seq = self.new if self.phase == "prefill" else None
        cost = attention_cost(self.phase, batch=self.batch, context=self.context, seq=seq, **how)
        return Operator(name=name, kind="attention", cost=cost, calls=calls, attention=how)

    def attention(self, prefix: str, m: Attention | Latent, calls: float) -> Iterator[Operator]:
        tokens = self.tokens
        yield self.scores(prefix + "attention", calls, attention_shape(m, self.phase, self.scheme, self.tp))
        width = m.heads // self.tp * m.value_dim
        if m.gate:
            yield self.small(prefix + "gate", tokens * (m.gate // self.tp * self.out + width * 4.0), calls=calls)
        if isinstance(m, Latent) and m.gate:
            yield self.product(prefix + "gate_proj", m.gate // self.tp, m.inputs, tokens, calls=calls)
        if self.quantizes:  # a static scale is applied where the operand is made
            yield self.small(
                prefix + "quantize_o", tokens * width * (2 + self.act), row=width, reread=tokens * width * 2.0,
                calls=calls,
            )  # fmt: skip
        yield self.product(prefix + "o", self.a.hidden, width, tokens, calls=calls)
        yield from self.all_reduce(prefix + "all_reduce_o", calls)

    def recurrence(self, prefix: str, m: Recurrent, calls: float) -> Iterator[Operator]:
        """The products of a recurrent layer, and its convolution and state in between; devices share its heads."""
        *first, last = m.linears
        for item in first:
            yield self.product(prefix + item.name, item.n // self.tp, item.k, self.tokens, calls=calls)
        moves = 2 if self.phase == "decode" else 1
        made = (sum(item.n for item in first) * self.out + last.k * 2.0) / self.tp
        yield self.small(
            prefix + "state", self.tokens * made + self.batch * m.state_elements * 2.0 * moves / self.tp, calls=calls,
            flop=self.tokens * (6.0 * m.state + 2.0 * m.conv_channels * m.conv_kernel) / self.tp,
        )  # fmt: skip
        width = last.k // self.tp
        if self.quantizes:
            yield self.small(
                prefix + "quantize_o", self.tokens * width * (2 + self.act), row=width,
                reread=self.tokens * width * 2.0, calls=calls,
            )  # fmt: skip
        yield self.product(prefix + last.name, last.n, width, self.tokens, calls=calls)
        yield from self.all_reduce(prefix + "all_reduce_o", calls)

    def feed_forward(self) -> Iterator[Operator]:
        a, h, tokens = self.a, self.a.hidden, self.tokens
        groups = [(layer, float(count)) for layer, count in a.shape.groups if layer.mlps]
        layers = sum(count for _, count in groups)
        # side by side with attention, one norm can serve both
        normed = sum(count for layer, count in groups if not (layer.parallel and layer.norms < 2))
        if normed:
            yield self.small(
                "norm_mlp", tokens * h * (self.out + 2 + 2 + self.stored), row=h, flop=5.0 * tokens * h,
                reread=tokens * h * 2.0, calls=normed,
            )  # fmt: skip
        further = sum(count * max(0, layer.norms - len(layer.mixers[:1]) - 1) for layer, count in groups)
        if further:  # norms after the blocks
            yield self.small("norm_post", tokens * h * 4.0, row=h, flop=5.0 * tokens * h, calls=further)
        if layers:
            yield from self.quantize("quantize_gate_up", h, layers)
        for prefix, mlp, count in a.mlps:
            if isinstance(mlp, Experts):
                yield from self.experts(prefix, mlp, float(count))
            else:
                yield from self.dense(prefix, mlp, float(count))
        joined = 0.0 if self.groups == 1 else sum(float(count) for _, mlp, count in a.mlps if isinstance(mlp, Experts))
        yield from self.all_reduce("all_reduce_down", layers - joined)
        if layers:
            yield self.small("residual", tokens * h * (self.out + 4.0), calls=layers)

    def dense(self, prefix: str, mlp: Mlp, calls: float) -> Iterator[Operator]:
        h, tokens, gate, ffn = mlp.inputs, self.tokens, 2 if mlp.gated else 1, mlp.width // self.tp
        yield self.product(f"{prefix}gate_up", gate * ffn, h, tokens, calls=calls)
        yield self.small(
            f"{prefix}activation", tokens * ffn * (gate * self.out + self.stored), row=ffn if self.quantizes else 0,
            flop=4.0 * tokens * ffn, reread=tokens * ffn * gate * self.out, calls=calls,
        )  # fmt: skip
        yield from self.quantize(f"{prefix}quantize_down", ffn, calls)
        yield self.product(f"{prefix}down", h, ffn, tokens, calls=calls)

    def experts(self, prefix: str, mlp: Experts, calls: float) -> Iterator[Operator]:
        """Routed experts, each with the tokens that go to it, all in one grouped kernel; and the shared one."""
        h, tokens, gate, split = mlp.inputs, self.tokens, 2 if mlp.gated else 1, max(1, self.tp // self.ep)
        inner, ffn, every = mlp.latent or h, mlp.width // split, tokens * self.groups
        active = _active_experts(mlp, every)
        rows, assigned = np.maximum(every * mlp.per_token / active, 1.0), every * mlp.per_token / self.ep
        yield self.product(prefix + "router", mlp.experts, h, tokens, calls=calls, sixteen=True)
        if mlp.latent:
            yield self.product(prefix + "latent_in", mlp.latent, h, tokens, calls=calls)
        yield from self.exchange(prefix + "dispatch", mlp, inner * self.stored, calls)
        yield from self.routed(
            mlp,
            self.product(prefix + "gate_up", gate * ffn, inner, rows, calls=calls, groups=active / self.ep),
            self.small(
                prefix + "activation", assigned * ffn * (gate * 2 + self.stored), row=ffn if self.quantizes else 0,
                calls=calls,
            ),
            self.product(prefix + "down", inner, ffn, rows, calls=calls, groups=active / self.ep),
            self.small(prefix + "combine", assigned * inner * 2.0 + every / self.ep * inner * 2.0, calls=calls),
        )  # fmt: skip
        yield from self.exchange(prefix + "collect", mlp, inner * 2.0, calls)
        if self.groups > 1 and self.tp > 1:
            whole = Cost(flop=0.0, traffic_bytes=tokens * inner * 2.0)
            yield Operator(name=prefix + "gather", kind="all_gather", cost=whole, calls=calls, devices=self.tp)
        if mlp.latent:
            yield self.product(prefix + "latent_out", h, mlp.latent, tokens, calls=calls)
        shared = mlp.shared // (self.tp if self.groups == 1 else 1)  # else no all-reduce follows: each has it whole
        if shared:
            yield self.product(prefix + "shared_gate_up", gate * shared, h, tokens, calls=calls)
            yield self.product(prefix + "shared_down", h, shared, tokens, calls=calls)

    @property
    def groups(self) -> int:
        """Groups of `tp` devices that have sequences of their own."""
        return max(1, self.ep // self.tp)

    def exchange(self, name: str, mlp: Experts, row_bytes: float, calls: float) -> Iterator[Operator]:
        """Tokens to the devices of their experts, or back: a device sends its part of its group's tokens."""
        if self.groups == 1:
            return
        reached = self.ep * (1 - (1 - 1 / self.ep) ** mlp.per_token)
        cost = Cost(flop=0.0, traffic_bytes=self.tokens / self.tp * reached * row_bytes)
        yield Operator(name=name, kind="alltoall", cost=cost, calls=calls, devices=self.ep)

    def routed(self, mlp: Experts, *operators: Operator) -> Iterator[Operator]:
        """Operators of the routed experts, with what a kernel that fuses them is asked."""
        layer = {"tokens": self.tokens * self.groups, "hidden": mlp.latent or mlp.inputs, "inter": mlp.width,
                 "topk": mlp.per_token, "experts": mlp.experts, "moe_tp": max(1, self.tp // self.ep),
                 "moe_ep": self.ep, "gated": mlp.gated}  # fmt: skip
        first = 2 / 3 if mlp.gated else 1 / 2
        for op, share in zip(operators, (first, 0.0, 1 - first, 0.0), strict=True):
            yield replace(op, experts={**layer, "share": share})

    def others(self) -> Iterator[Operator]:
        """Products beside mixers and MLPs; small ones, which every device does whole."""
        for item, count in self.a.further:
            yield self.product(
                item.name, item.n, item.k, self.tokens, calls=float(count * item.count), sixteen=item.router
            )

    def head(self) -> Iterator[Operator]:
        """Logits of the last token of every sequence."""
        h, head = self.a.hidden, self.a.shape.head
        vocab = -(-head.n // self.tp)
        yield self.small("norm_head", self.batch * h * 2.0 * 2, row=h, calls=1.0)
        yield self.product("lm_head", vocab, head.k, self.batch, calls=1.0, sixteen=True)
        yield self.small("sample", self.batch * vocab * 2.0, row=vocab, calls=1.0)


def attention_shape(m: Attention | Latent, phase: str, scheme: Scheme, tensor_parallel: int = 1) -> dict[str, Any]:
    """The arguments of `attention_cost` and `timing.attention` that depend on the layer."""
    heads = m.heads // tensor_parallel
    if isinstance(m, Attention):
        kv = max(1, m.kv_heads // tensor_parallel)
        how: dict[str, Any] = {
            "q_heads": heads, "kv_heads": kv, "head_dim": m.head_dim,
            "kv_bytes_per_element": _kv_bytes(scheme, m.kv_heads * m.head_dim),
        }  # fmt: skip
        if m.value_dim != m.head_dim:
            how["value_dim"] = m.value_dim
        if m.window is not None:
            how |= {"window": m.window, "chunked": m.kind == "chunked"}
        return how
    chosen = {"window": m.index_topk} if m.index_heads else {}
    if phase == "prefill":  # K and V were expanded, in 16 bit
        return {"q_heads": heads, "kv_heads": heads, "head_dim": m.head_dim, "value_dim": m.value_dim, **chosen}
    row = m.kv_rank + m.rope_dim
    return {"q_heads": heads, "kv_heads": 1, "head_dim": row, "value_dim": m.kv_rank, "shared_kv": True,
            "kv_bytes_per_element": _kv_bytes(scheme, row), **chosen}  # fmt: skip


def _active_experts(mlp: Experts, tokens: Any) -> Any:
    """Experts that at least one token goes to, in the mean, with uniform routing."""
    if mlp.experts == 1:
        return 1.0
    return mlp.experts * (1 - (1 - mlp.per_token / mlp.experts) ** tokens)
