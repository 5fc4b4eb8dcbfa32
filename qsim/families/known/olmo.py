"""OLMo 1 to 3, OLMoE and FlexOLMo."""

from dataclasses import replace

from ..blocks import Attention
from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, experts, mlp, sizes, windowed
from ..shape import Layer, Shape


def _normed(c: Config) -> Attention:
    """Attention with one norm over all heads of Q, and one over those of K."""
    bias, head_dim = c.flag("attention_bias"), c.head_dim
    return attention(c, qkv_bias=bias, out_bias=bias, other=(c.heads + c.kv_heads) * head_dim)


def _olmo(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    # LayerNorm without weight and bias
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c),), norm_weight=False), norm_weight=False)


def _olmo2(c: Config) -> Shape:
    return decoder(c, Layer(mixers=(_normed(c),), mlps=(mlp(c),)))


def _olmo3(c: Config) -> Shape:
    base, wide = _normed(c), mlp(c)
    kinds = c.layer_types(c.every(4), ("full_attention", "sliding_attention"))
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in kinds])


def _olmoe(c: Config) -> Shape:
    routed = experts(c, "num_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    return decoder(c, Layer(mixers=(_normed(c),), mlps=(routed,)))


_COUNTS = {"num_experts": ("num_local_experts",)}

OLMO = Family(
    name="olmo", model_types=("olmo",), architectures=("OlmoForCausalLM",), shape=_olmo,
    defaults=sizes(50304, 4096, 11008, 32, 32),
)  # fmt: skip
OLMO2 = Family(
    name="olmo2", model_types=("olmo2",), architectures=("Olmo2ForCausalLM",), shape=_olmo2,
    defaults=sizes(50304, 4096, 11008, 32, 32, max_position_embeddings=2048, rms_norm_eps=1e-5),
    tensors=replace(TENSORS, block=replace(
        TENSORS.block, attention_norm=None, attention_post="post_attention_layernorm", mlp_norm=None,
        mlp_post="post_feedforward_layernorm", query_norm="self_attn.q_norm", key_norm="self_attn.k_norm",
    )),
    numerics=Numerics(head_norm="all", writes=("num_key_value_heads", "attention_bias")),
)  # fmt: skip
OLMO3 = Family(
    name="olmo3", model_types=("olmo3",), architectures=("Olmo3ForCausalLM",), shape=_olmo3,
    defaults=sizes(50304, 4096, 11008, 32, 32, sliding_window=4096),
)  # fmt: skip
OLMOE = Family(
    name="olmoe", model_types=("olmoe",), architectures=("OlmoeForCausalLM",), shape=_olmoe, aliases=_COUNTS,
    defaults=sizes(50304, 2048, 2048, 16, 16, num_experts=64, num_experts_per_tok=8, max_position_embeddings=4096,
                   rms_norm_eps=1e-5),
    tensors=replace(TENSORS, block=replace(
        TENSORS.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", mlp=None, router="mlp.gate",
        expert=MlpTensors(gate="mlp.experts.{e}.gate_proj", up="mlp.experts.{e}.up_proj",
                          down="mlp.experts.{e}.down_proj"),
    )),
    numerics=Numerics(
        head_norm="all", renormalise=None, keys={**KEYS, "norm_topk_prob": "norm_topk_prob"},
        writes=("num_key_value_heads", "attention_bias", "num_experts", "num_experts_per_tok"),
    ),
)  # fmt: skip
FLEX_OLMO = Family(
    name="flex_olmo", model_types=("flex_olmo",), architectures=("FlexOlmoForCausalLM",), shape=_olmoe, aliases=_COUNTS,
    defaults=sizes(100352, 4096, 11008, 32, 32, num_experts=7, num_experts_per_tok=5),
)  # fmt: skip
