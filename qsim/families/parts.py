"""The usual parts of a decoder from a config; a family's file says what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .blocks import Attention, Experts, Latent, Linear, Mlp, Recurrent
from .config import Config
from .family import BlockTensors, MlpTensors, Tensors
from .shape import Layer, Shape

GATED = MlpTensors(gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
TENSORS = Tensors(
    embedding="model.embed_tokens", norm="model.norm", prefix="model.layers.{i}.", block=BlockTensors(mlp=GATED)
)
"""The names that Llama's checkpoints and those of its kin have."""


def sizes(
    vocab: int, hidden: int, ffn: int | None, layers: int, heads: int | None, kv_heads: int | None = None, **more: Any
) -> Mapping[str, Any]:
    """The defaults of a family's class under the usual names; `kv_heads` None means as many as heads."""
    named = {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    }  # fmt: skip
    return {**named, **more}


def attention(c: Config, **more: Any) -> Attention:
    """Attention of the config's heads; `more` overrides fields, `qk_norm` adds norms over the head width."""
    qk_norm = more.pop("qk_norm", False)
    head_dim = more.pop("head_dim", None) or c.head_dim
    kv_heads = more.pop("kv_heads", None) or c.kv_heads
    value_dim = more.pop("value_dim", None) or head_dim
    other = more.pop("other", 0) + (2 * head_dim if qk_norm else 0)
    values: dict[str, Any] = {
        "inputs": c.hidden, "outputs": c.hidden, "heads": c.heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "value_dim": value_dim, "other": other,
    }  # fmt: skip
    return Attention(**{**values, **more})


def windowed(c: Config, base: Attention, kind: str) -> Attention:
    """The attention of a layer of `layer_types`: full, or sliding with the config's window."""
    if kind == "full_attention":
        return base
    window = c.window
    if window is None:
        raise c.refuse("sliding_window", "must be given, as some layers have a window")
    return replace(base, kind="sliding", window=window)


def maybe_sliding(c: Config, base: Attention) -> Attention:
    """Every layer has the window of the config, where it names one."""
    window = c.window
    return base if window is None else replace(base, kind="sliding", window=window)


def mlp(c: Config, **more: Any) -> Mlp:
    """The MLP of `intermediate_size`."""
    width = more.pop("width", None) or c.size("intermediate_size")
    return Mlp(inputs=c.hidden, width=width, **more)


def experts(c: Config, number: str, per_token: str, **more: Any) -> Experts:
    """Experts of `width` (default `moe_intermediate_size`), their number and how many a token visits by key."""
    width = more.pop("width", None) or c.size("moe_intermediate_size")
    count = c.size(number)
    visited = c.size(per_token)
    if visited > count:
        raise c.refuse(per_token, f"must be at most the {count} experts")
    return Experts(inputs=c.hidden, width=width, experts=count, per_token=visited, **more)


def latent(c: Config, **more: Any) -> Latent:
    """Multi-head latent attention under DeepSeek's names."""
    values: dict[str, Any] = {
        "inputs": c.hidden, "heads": c.heads, "nope_dim": c.size("qk_nope_head_dim"),
        "rope_dim": c.size("qk_rope_head_dim"), "value_dim": c.size("v_head_dim"), "kv_rank": c.size("kv_lora_rank"),
        "q_rank": c.optional("q_lora_rank") or 0,
    }  # fmt: skip
    c.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "qk_nope_head_dim")
    return Latent(**{**values, **more})


def mamba(c: Config, inner: int, *, state: int, kernel: int, rank: int, norms: bool = False, **bias: bool) -> Recurrent:
    """Mamba (arXiv 2312.00752): `inner` channels with a state of `state` each; `rank` of the step size.

    `bias` may say `conv_bias` and `proj_bias`; `norms` adds norms of the step size, B and C (Jamba).
    """
    h, proj = c.hidden, bias.get("proj_bias", False)
    linears = (
        Linear(name="in_proj", n=2 * inner, k=h, bias=proj),
        Linear(name="x_proj", n=rank + 2 * state, k=inner),
        Linear(name="dt_proj", n=inner, k=rank, bias=True),
        Linear(name="out_proj", n=h, k=inner, bias=proj),
    )
    other = inner * state + inner + inner * kernel + (inner if bias.get("conv_bias", True) else 0)
    other += rank + 2 * state if norms else 0
    return Recurrent(
        kind="mamba", linears=linears, other=other, state=inner * state, conv_channels=inner, conv_kernel=kernel
    )


def mamba2(
    c: Config, *, heads: int, head_dim: int, groups: int, state: int, kernel: int, norm: bool = True, **bias: bool
) -> Recurrent:
    """Mamba 2 (arXiv 2405.21060): heads of `head_dim` channels, B and C shared by `groups`.

    `norm` adds a norm of the output; `bias` may say `conv_bias`, `proj_bias`, and `out_bias` where it differs.
    """
    h, inner, proj = c.hidden, heads * head_dim, bias.get("proj_bias", False)
    mixed = inner + 2 * groups * state
    linears = (
        Linear(name="in_proj", n=inner + mixed + heads, k=h, bias=proj),
        Linear(name="out_proj", n=h, k=inner, bias=bias.get("out_bias", proj)),
    )
    other = 3 * heads + mixed * kernel + (mixed if bias.get("conv_bias", True) else 0) + (inner if norm else 0)
    return Recurrent(
        kind="mamba2", linears=linears, other=other, state=inner * state, conv_channels=mixed, conv_kernel=kernel
    )


def decoder(
    c: Config, layer: Layer | Callable[[int], Layer] | Sequence[Layer], *, norm_weight: bool = True,
    norm_bias: bool = False, head_bias: bool = False, positions: int = 0, embedding: int = 0, other: int = 0,
    linears: tuple[Linear, ...] = (), width: int | None = None, tied: bool | None = None
) -> Shape:  # fmt: skip
    """The whole decoder: token embeddings, the layers, a last norm, and the head.

    Arguments:
        layer: the one kind of layer, a function of the layer's index, or all layers.
        norm_weight, norm_bias: what the last norm learns.
        head_bias: whether the head has a bias.
        positions, embedding, other, linears: what is added to learned positions, embeddings and the rest.
        width: of the token embeddings, where it is not the hidden size.
        tied: None reads `tie_word_embeddings`.
    """
    h, vocab = c.hidden, c.size("vocab_size")
    wide = h if width is None else width
    if isinstance(layer, Layer):
        layers: tuple[Layer, ...] = (layer,) * c.layers
    else:
        layers = tuple(layer(i) for i in range(c.layers)) if callable(layer) else tuple(layer)
    return Shape(
        family="", vocab=vocab, hidden=h, layers=layers, embedding=vocab * wide + embedding, positions=positions,
        head=Linear(name="lm_head", n=vocab, k=wide, bias=head_bias),
        tied=c.flag("tie_word_embeddings") if tied is None else tied, linears=linears,
        other=h * (norm_weight + norm_bias) + other, max_positions=c.max_positions,
    )  # fmt: skip
