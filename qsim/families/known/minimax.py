"""MiniMax: lightning attention with every eighth layer full (Text-01, M1), and M2 with full attention only."""

from ..blocks import Linear, Mixer, Recurrent
from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, maybe_sliding, sizes
from ..shape import Layer, Shape


def _lightning(c: Config) -> Recurrent:
    """Lightning attention (arXiv 2501.08313): a state of head_dim x head_dim for each head, its output gated."""
    wide, h = c.heads * c.head_dim, c.hidden
    linears = (Linear(name="qkv", n=3 * wide, k=h), Linear(name="gate", n=wide, k=h), Linear(name="o", n=h, k=wide))
    return Recurrent(kind="lightning attention", linears=linears, other=wide, state=wide * c.head_dim)


def _shape(c: Config) -> Shape:
    if c.count("shared_intermediate_size"):
        raise c.refuse("shared_intermediate_size", "must be 0 in the class that is read here")
    flags = c.numbers("attn_type_list", c.layers)
    kinds = c.layer_types(
        lambda i: ("linear_attention", "full_attention")[bool(flags[i]) if flags else i % 2 == 0],
        ("full_attention", "linear_attention"),
    )
    made: dict[str, Mixer] = {"full_attention": maybe_sliding(c, attention(c)), "linear_attention": _lightning(c)}
    routed = experts(c, "num_local_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    return decoder(c, [Layer(mixers=(made[kind],), mlps=(routed,)) for kind in kinds])


def _m2(c: Config) -> Shape:
    kinds = c.numbers("attn_type_list", c.layers)
    if kinds is not None and set(kinds) != {1}:
        raise c.refuse("attn_type_list", "must be 1 in every layer")
    norms = 0
    if not c.has("use_qk_norm") or c.flag("use_qk_norm"):
        norms = (c.heads + c.kv_heads) * c.head_dim
    routed = experts(c, "num_local_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    return decoder(c, Layer(mixers=(attention(c, other=norms),), mlps=(routed,)))


_COUNTS = {"num_local_experts": ("num_experts",)}
_HARMLESS = frozenset({
    "block_size", "postnorm", "layernorm_full_attention_alpha", "layernorm_full_attention_beta",
    "layernorm_linear_attention_alpha", "layernorm_linear_attention_beta", "layernorm_mlp_alpha", "layernorm_mlp_beta",
    "full_attn_alpha_factor", "full_attn_beta_factor", "linear_attn_alpha_factor", "linear_attn_beta_factor",
    "mlp_alpha_factor", "mlp_beta_factor", "shared_moe_mode", "rotary_dim", "max_model_len",
})  # fmt: skip

MINIMAX = Family(
    name="minimax", model_types=("minimax", "minimax_text_01", "minimax_m1"), shape=_shape, aliases=_COUNTS,
    architectures=("MiniMaxForCausalLM", "MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"), harmless=_HARMLESS,
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
)  # fmt: skip
MINIMAX_M2 = Family(
    name="minimax_m2", model_types=("minimax_m2",), architectures=("MiniMaxM2ForCausalLM",), shape=_m2,
    aliases=_COUNTS,
    defaults=sizes(200064, 3072, 1536, 62, 48, 8, head_dim=128, num_local_experts=256, num_experts_per_tok=8),
    harmless=_HARMLESS | {"qk_norm_type", "use_routing_bias", "use_mtp", "num_mtp_modules", "mtp_transformer_layers",
                          "scoring_func", "mlp_intermediate_size"},
)  # fmt: skip
