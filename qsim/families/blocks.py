"""The parts of a decoder layer as plain values: products, attention, recurrences, MLPs and mixtures of experts.

Every part says which products it makes (`linears`), how many parameters it has beyond them (`other`), and what it keeps
of past tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Weights (n, k) of a product y = x w^T, `count` of them.

    Attributes:
        bias: each has n biases.
        router: it decides where a token goes (a router, or the gate of a shared expert); it stays in 16 bit.
    """

    name: str
    n: int
    k: int
    bias: bool = False
    count: int = 1
    router: bool = False

    @property
    def weights(self) -> int:
        """Elements of all weights, without biases."""
        return self.n * self.k * self.count

    @property
    def biases(self) -> int:
        """Elements of all biases."""
        return self.n * self.count if self.bias else 0


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention with K and V for every KV head.

    Attributes:
        inputs, outputs: width of the hidden state that it reads and writes.
        head_dim, value_dim: width of a head's Q and K, and of its V and output.
        kind, window: `full`; `sliding`: a token sees the last `window` tokens, itself included; `chunked`: it sees
            those of its own chunk of `window` tokens.
        gate: columns that gate the output, made from the same input as the queries.
        shares_kv: it reads the cache of an earlier layer and has no K and V of its own.
        keys_are_values: V is made from the same projection as K (both are cached).
        qkv_bias, out_bias: biases of the projections.
        other: parameters beside the projections: norms of Q and K, sinks.
    """

    inputs: int
    outputs: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    kind: Literal["full", "sliding", "chunked"] = "full"
    window: int | None = None
    gate: int = 0
    shares_kv: bool = False
    keys_are_values: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    other: int = 0

    @property
    def cache_widths(self) -> tuple[int, ...]:
        """Elements that one cached token takes: those of K, those of V."""
        if self.shares_kv:
            return ()
        return self.kv_heads * self.head_dim, self.kv_heads * self.value_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Queries (with gate), keys and values in one product, and the output."""
        n = self.heads * self.head_dim + self.gate
        if not self.shares_kv:
            n += self.kv_heads * (self.head_dim + (0 if self.keys_are_values else self.value_dim))
        name = "q" if self.shares_kv else "qkv"
        return (
            Linear(name=name, n=n, k=self.inputs, bias=self.qkv_bias),
            Linear(name="o", n=self.outputs, k=self.heads * self.value_dim, bias=self.out_bias),
        )

    def cached_tokens(self, context: int) -> int:
        """Tokens of a context that the layer keeps; 0 when it shares."""
        if self.shares_kv:
            return 0
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1): one latent vector is cached for each token.

    Attributes:
        nope_dim, rope_dim: width of a head's Q and K without positions, and of the rotated part, which in K all heads
            share.
        value_dim: width of a head's V.
        kv_rank, q_rank: width of the latent vectors of K and V, and of the queries (0: queries come from the input).
        index_heads, index_dim, index_topk: of the indexer that chooses the `index_topk` tokens to attend to (sparse
            attention, DeepSeek-V3.2); 0 without. It caches a key of `index_dim` for each token.
        gate: columns that gate the output.
        bias: the products that read the hidden state, and the output, have biases.
        other: parameters beside projections and the norms of the latent vectors.
    """

    inputs: int
    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    kv_rank: int
    q_rank: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    gate: int = 0
    bias: bool = False
    norms: bool = True
    other: int = 0

    kind = "latent"
    window = None

    @property
    def head_dim(self) -> int:
        """Width of a head's Q and K."""
        return self.nope_dim + self.rope_dim

    @property
    def cache_widths(self) -> tuple[int, ...]:
        """Elements that one cached token takes: the latent vector with the rotated part, the indexer's key."""
        latent = self.kv_rank + self.rope_dim
        return (latent, self.index_dim) if self.index_heads else (latent,)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Down and up projections, the output, the gate and the indexer's."""
        heads, latent, width = self.heads, self.kv_rank + self.rope_dim, self.inputs
        found = []
        if self.q_rank:
            found.append(Linear(name="qkv_a", n=self.q_rank + latent, k=width, bias=self.bias))
            found.append(Linear(name="q_b", n=heads * self.head_dim, k=self.q_rank))
        else:
            found.append(Linear(name="q", n=heads * self.head_dim, k=width))
            found.append(Linear(name="kv_a", n=latent, k=width, bias=self.bias))
        found.append(Linear(name="kv_b", n=heads * (self.nope_dim + self.value_dim), k=self.kv_rank))
        found.append(Linear(name="o", n=width, k=heads * self.value_dim, bias=self.bias))
        if self.gate:
            found.append(Linear(name="gate", n=self.gate, k=width))
        if self.index_heads:
            found.append(Linear(name="index_q", n=self.index_heads * self.index_dim, k=self.q_rank or width))
            found.append(Linear(name="index_k", n=self.index_dim, k=width))
            found.append(Linear(name="index_weights", n=self.index_heads, k=width))
        return tuple(found)

    def cached_tokens(self, context: int) -> int:
        """All of them."""
        return context


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """A mixer with a state of fixed size: Mamba, gated delta nets, lightning attention, RG-LRU, RWKV, convolutions.

    Attributes:
        kind: what it is, in a word for people.
        linears: its products, in order.
        other: parameters beside them.
        state: elements of the state of one sequence, without the convolution's columns.
        conv_channels, conv_kernel: of the causal convolution over tokens; it keeps kernel - 1 columns.
        heads: that devices share as they do those of attention, every product, channel and state with them; 0 where
            no such split is known.
    """

    kind: str
    linears: tuple[Linear, ...]
    other: int = 0
    state: int = 0
    conv_channels: int = 0
    conv_kernel: int = 1
    heads: int = 0

    window = None
    cache_widths = ()

    @property
    def state_elements(self) -> int:
        """Elements that one sequence keeps, whatever its length."""
        return self.state + self.conv_channels * (self.conv_kernel - 1)

    def cached_tokens(self, context: int) -> int:
        """None."""
        return 0


Mixer: TypeAlias = Attention | Latent | Recurrent


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """down(act(gate) * up), or down(act(up)) without a gate; `other` counts parameters beside the products."""

    inputs: int
    width: int
    gated: bool = True
    bias: bool = False
    other: int = 0

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Gate and up in one product, and down."""
        gate = 2 if self.gated else 1
        return (
            Linear(name="gate_up", n=gate * self.width, k=self.inputs, bias=self.bias),
            Linear(name="down", n=self.inputs, k=self.width, bias=self.bias),
        )


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts.

    Attributes:
        inputs, width: of the hidden state, and of one expert.
        experts, per_token: routed experts, and how many of them a token visits.
        shared: width of the experts that every token passes through, all together; 0 for none.
        shared_gate, shared_bias: their output is scaled by a gate of one column; their products have biases.
        latent: the routed experts read and write a projection of this width; 0 without.
        bias, router_bias: biases of the experts, and of the router.
        other: parameters beside the products, e.g. correction biases.
    """

    inputs: int
    width: int
    experts: int
    per_token: int
    gated: bool = True
    shared: int = 0
    shared_gate: bool = False
    shared_bias: bool = False
    latent: int = 0
    bias: bool = False
    router_bias: bool = False
    other: int = 0

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Router, experts, shared experts."""
        gate, h = 2 if self.gated else 1, self.latent or self.inputs
        found = [
            Linear(name="router", n=self.experts, k=self.inputs, bias=self.router_bias, router=True),
            Linear(name="gate_up", n=gate * self.width, k=h, bias=self.bias, count=self.experts),
            Linear(name="down", n=h, k=self.width, bias=self.bias, count=self.experts),
        ]
        if self.latent:
            found.append(Linear(name="latent_in", n=self.latent, k=self.inputs))
            found.append(Linear(name="latent_out", n=self.inputs, k=self.latent))
        if self.shared:
            bias = self.shared_bias
            found.append(Linear(name="shared_gate_up", n=gate * self.shared, k=self.inputs, bias=bias))
            found.append(Linear(name="shared_down", n=self.inputs, k=self.shared, bias=bias))
        if self.shared_gate:
            found.append(Linear(name="shared_gate", n=1, k=self.inputs, router=True))
        return tuple(found)

    @property
    def idle(self) -> int:
        """Parameters of the experts that a token does not visit."""
        each = [(item.weights + item.biases) // item.count for item in self.linears if item.name in ("gate_up", "down")]
        return (self.experts - self.per_token) * sum(each)
