"""The shape of a decoder as plain values, and what can be counted from it.

A `Shape` is a sequence of layers. A layer holds mixers (attention, latent attention, a recurrence: what moves
information between tokens) and MLPs (gated or not, or a mixture of experts), which are in `blocks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .blocks import Experts, Latent, Linear, Mixer, Mlp, Recurrent

BYTES = 2
"""Bytes of an element of the cache at 16 bit."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer.

    Attributes:
        mixers: usually one; two side by side in parallel hybrids; none where the layer is only an MLP.
        mlps: usually one; two where a dense MLP runs beside the experts.
        norms: norms over the hidden state.
        norm_weight, norm_bias: what each of them learns.
        parallel: mixers and MLPs read the same input, side by side.
        linears, other: products and parameters beside all this.
    """

    mixers: tuple[Mixer, ...] = ()
    mlps: tuple[Mlp | Experts, ...] = ()
    norms: int = 2
    norm_weight: bool = True
    norm_bias: bool = False
    parallel: bool = False
    linears: tuple[Linear, ...] = ()
    other: int = 0

    @property
    def own_linears(self) -> tuple[Linear, ...]:
        """Products whose weights belong to this layer."""
        parts = (*self.mixers, *self.mlps)
        return (*(item for part in parts for item in part.linears), *self.linears)

    def own_other(self, hidden: int) -> int:
        """Parameters of this layer that are neither weights of products nor of routers."""
        parts = (*self.mixers, *self.mlps)
        total = self.norms * hidden * (self.norm_weight + self.norm_bias) + self.other
        total += sum(part.other for part in parts)
        total += sum(p.kv_rank + p.q_rank for p in parts if isinstance(p, Latent) and p.norms)
        # LayerNorm of the indexer's keys: weight and bias
        total += sum(2 * p.index_dim for p in parts if isinstance(p, Latent) and p.index_heads)
        return total + sum(item.biases for item in self.own_linears)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a decoder is made of.

    Attributes:
        family: name of the family that described it.
        vocab, hidden: rows of the embedding, and width of the hidden state.
        layers: every decoder layer, in order.
        embedding, positions: elements of the token embeddings (all of them) and of learned positions.
        head: the product that makes logits; `tied` when its weights are the embedding's.
        linears, other: products and parameters outside the layers.
        max_positions: the context that the config names, in tokens; None where it names none.
        notes: what a reader should know, e.g. what was left out.
    """

    family: str
    vocab: int
    hidden: int
    layers: tuple[Layer, ...]
    embedding: int
    head: Linear
    tied: bool
    positions: int = 0
    linears: tuple[Linear, ...] = ()
    other: int = 0
    max_positions: int | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Shape({self.family}, {len(self.layers)} layers, {self.parameters} parameters)"

    @cached_property
    def groups(self) -> tuple[tuple[Layer, int], ...]:
        """Distinct layers with how often each occurs, in the order of their first appearance."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def mixers(self) -> tuple[tuple[Mixer, int], ...]:
        """Distinct mixers with how often each runs."""
        found: Counter[Mixer] = Counter()
        for layer, count in self.groups:
            for mixer in layer.mixers:
                found[mixer] += count
        return tuple(found.items())

    @cached_property
    def mlps(self) -> tuple[tuple[Mlp | Experts, int], ...]:
        """Distinct MLPs with how often each runs."""
        found: Counter[Mlp | Experts] = Counter()
        for layer, count in self.groups:
            for mlp in layer.mlps:
                found[mlp] += count
        return tuple(found.items())

    def all_linears(self) -> Iterator[tuple[Linear, int]]:
        """Every product with weights of its own and how many layers have it; the head is not among them."""
        for layer, count in self.groups:
            for item in layer.own_linears:
                yield item, count
        for item in self.linears:
            yield item, 1

    @cached_property
    def quantisable_parameters(self) -> int:
        """Weights of products and experts, without embedding, head and routers."""
        return sum(item.weights * count for item, count in self.all_linears() if not item.router)

    @cached_property
    def router_parameters(self) -> int:
        """Weights of routers and of the gates of shared experts."""
        return sum(item.weights * count for item, count in self.all_linears() if item.router)

    @cached_property
    def other_parameters(self) -> int:
        """Norms, biases, convolutions, parameters of states, sinks."""
        total = self.other + self.head.biases + sum(item.biases for item in self.linears)
        return total + sum(layer.own_other(self.hidden) * count for layer, count in self.groups)

    @property
    def head_parameters(self) -> int:
        """Weights of the head; 0 when they are the embedding's."""
        return 0 if self.tied else self.head.weights

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        parts = self.embedding + self.positions + self.head_parameters + self.quantisable_parameters
        return parts + self.router_parameters + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters without those of the experts that a token does not visit; embeddings are counted."""
        idle = sum(mlp.idle * count for mlp, count in self.mlps if isinstance(mlp, Experts))
        return self.parameters - idle

    def cache_bytes(self, context: int) -> int:
        """Bytes of the KV cache of one sequence of `context` tokens at 16 bit, without recurrent state."""
        return BYTES * sum(count * m.cached_tokens(context) * sum(m.cache_widths) for m, count in self.mixers)

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state of one sequence at 16 bit, whatever its length."""
        return BYTES * sum(count * m.state_elements for m, count in self.mixers if isinstance(m, Recurrent))
