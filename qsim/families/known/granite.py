"""Granite 3 and 4: dense, mixtures of experts, hybrids with Mamba 2; and Bamba, whose layers the hybrids have."""

from typing import Any

from ..blocks import Mixer, Mlp, Recurrent
from ..config import Config
from ..family import Family
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, experts, mamba2, mlp, sizes
from ..shape import Layer, Shape

_KINDS = ("full_attention", "linear_attention")


def _granite(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _moe(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    width, shared = c.size("intermediate_size"), c.count("shared_intermediate_size")
    routed = experts(c, "num_local_experts", "num_experts_per_tok", width=width, shared=shared)
    return decoder(c, Layer(mixers=(mixer,), mlps=(routed,)))


def ssm(c: Config) -> Recurrent:
    """Mamba 2 under the names of Bamba, with a gated norm."""
    heads, groups = c.size("mamba_n_heads"), c.size("mamba_n_groups")
    inner = c.size("mamba_expand") * c.hidden
    if c.fields.table.get("mamba_d_head", c.defaults["mamba_d_head"]) == "auto":
        c.ignore("mamba_d_head")
        head_dim = inner // heads
    else:
        head_dim = c.size("mamba_d_head")
    if heads * head_dim != inner:
        raise c.refuse("mamba_n_heads", f"times mamba_d_head = {head_dim} must be mamba_expand * hidden_size = {inner}")
    return mamba2(
        c, heads=heads, head_dim=head_dim, groups=groups, state=c.size("mamba_d_state"), kernel=c.size("mamba_d_conv"),
        conv_bias=c.flag("mamba_conv_bias"), proj_bias=c.flag("mamba_proj_bias"),
    )  # fmt: skip


def _hybrid(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    kinds = c.layer_types(lambda i: "linear_attention", _KINDS)
    mixers: dict[str, Mixer] = {
        kind: attention(c, qkv_bias=bias, out_bias=bias) if kind == "full_attention" else ssm(c) for kind in set(kinds)
    }
    if "linear_attention" not in kinds:  # Granite 4.0 Micro keeps the sizes of recurrences that it does not have
        c.ignore(*SSM, "mamba_proj_bias")
    shared = c.size("shared_intermediate_size")
    if c.count("num_local_experts"):
        width = c.size("intermediate_size")
        wide = experts(c, "num_local_experts", "num_experts_per_tok", width=width, shared=shared)
        return decoder(c, [Layer(mixers=(mixers[kind],), mlps=(wide,)) for kind in kinds])
    c.ignore("intermediate_size", "num_experts_per_tok")  # only the shared expert is there
    dense = Mlp(inputs=c.hidden, width=shared)
    return decoder(c, [Layer(mixers=(mixers[kind],), mlps=(dense,)) for kind in kinds])


def _bamba(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    full = set(c.numbers("attn_layer_indices") or ())
    if full and max(full) >= c.layers:
        raise c.refuse("attn_layer_indices", f"must be below the {c.layers} layers")
    mixers: dict[bool, Mixer] = {True: attention(c, qkv_bias=bias, out_bias=bias), False: ssm(c)}
    wide = mlp(c, bias=c.flag("mlp_bias"))
    return decoder(c, [Layer(mixers=(mixers[i in full],), mlps=(wide,)) for i in range(c.layers)])


_COUNTS = {"num_local_experts": ("num_experts",)}
SSM: dict[str, Any] = {
    "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_conv_bias": True,
}  # fmt: skip
SSM_HARMLESS = frozenset({
    "mamba_chunk_size", "time_step_limit", "time_step_min", "time_step_max", "time_step_floor", "z_loss_coefficient",
    "normalization_function", "position_embedding_type", "init_method", "attn_rotary_emb",
})  # fmt: skip

GRANITE = Family(
    name="granite", model_types=("granite",), architectures=("GraniteForCausalLM",), shape=_granite,
    defaults=sizes(32000, 4096, 11008, 32, 32, max_position_embeddings=2048, attention_multiplier=1.0),
    tensors=TENSORS,
    numerics=Numerics(
        keys={**KEYS, **{key: key for key in ("embedding_multiplier", "attention_multiplier", "residual_multiplier",
                                              "logits_scaling")}},
        writes=("num_key_value_heads", "attention_bias", "mlp_bias"),
    ),
)  # fmt: skip
GRANITE_MOE = Family(
    name="granitemoe", model_types=("granitemoe", "granitemoeshared"), shape=_moe, aliases=_COUNTS,
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    defaults=sizes(32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2),
)  # fmt: skip
GRANITE_HYBRID = Family(
    name="granitemoehybrid", model_types=("granitemoehybrid",), architectures=("GraniteMoeHybridForCausalLM",),
    shape=_hybrid, aliases={**_COUNTS, "layer_types": ("layers_block_type",)}, harmless=SSM_HARMLESS,
    defaults=sizes(
        32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=1024, **SSM
    ),
)  # fmt: skip
BAMBA = Family(
    name="bamba", model_types=("bamba",), architectures=("BambaForCausalLM",), shape=_bamba, harmless=SSM_HARMLESS,
    defaults=sizes(128000, 4096, 14336, 32, 32, 8, **SSM),
)  # fmt: skip
