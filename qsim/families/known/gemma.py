"""Gemma 1 to 3: tied embeddings by default, heads that are not hidden_size / heads wide, windows."""

from dataclasses import replace

from ..config import Config
from ..family import Family
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, mlp, sizes, windowed
from ..shape import Layer, Shape

KINDS = ("full_attention", "sliding_attention")


def _gemma(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    return decoder(c, Layer(mixers=(attention(c, qkv_bias=bias, out_bias=bias),), mlps=(mlp(c),)))


def _alternating(c: Config, period: int, norms: int, qk_norm: bool) -> Shape:
    bias = c.flag("attention_bias")
    base, wide = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=qk_norm), mlp(c)
    kinds = c.layer_types(c.every(period), KINDS)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,), norms=norms) for kind in kinds])


def _gemma2(c: Config) -> Shape:
    return _alternating(c, 2, 4, False)


def _gemma3(c: Config) -> Shape:
    if c.flag("use_bidirectional_attention"):
        raise c.refuse("use_bidirectional_attention", "must be false for a decoder")
    return _alternating(c, c.size("sliding_window_pattern"), 4, True)


def _vault(c: Config) -> Shape:
    return _alternating(c, 2, 2, False)


_SANDWICH = replace(TENSORS, block=replace(
    TENSORS.block, attention_post="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm",
    mlp_post="post_feedforward_layernorm",
))  # fmt: skip
_WRITES = ("num_key_value_heads", "head_dim", "attention_bias", "sliding_window", "layer_types")
_SOFT = {
    **KEYS, "hidden_act": "hidden_activation", "query_pre_attn_scalar": "query_pre_attn_scalar",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip

GEMMA = Family(
    name="gemma", model_types=("gemma",), architectures=("GemmaForCausalLM",), shape=_gemma,
    defaults=sizes(256000, 3072, 24576, 28, 16, 16, head_dim=256, tie_word_embeddings=True,
                   max_position_embeddings=8192, hidden_act="gelu_pytorch_tanh"),
    tensors=TENSORS,
    # its first configs say gelu and mean the tanh form, which the class takes
    numerics=Numerics(norm_offset=1.0, embedding_scale="root", activations={"gelu": "gelu_pytorch_tanh"},
                      writes=("num_key_value_heads", "head_dim", "attention_bias")),
)  # fmt: skip
GEMMA2 = Family(
    name="gemma2", model_types=("gemma2",), architectures=("Gemma2ForCausalLM",), shape=_gemma2,
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096,
                   max_position_embeddings=8192, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
                   attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    tensors=_SANDWICH,
    numerics=Numerics(norm_offset=1.0, embedding_scale="root", keys=_SOFT, writes=_WRITES),
)  # fmt: skip
GEMMA3 = Family(
    name="gemma3", model_types=("gemma3", "gemma3_text"), shape=_gemma3,
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    aliases={"sliding_window_pattern": ("_sliding_window_pattern",)},
    defaults=sizes(262208, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096,
                   sliding_window_pattern=6, max_position_embeddings=131072, rope_theta=1e6,
                   rope_local_base_freq=1e4, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256),
    tensors=replace(_SANDWICH, block=replace(
        _SANDWICH.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm",
    )),
    numerics=Numerics(model_type="gemma3_text", norm_offset=1.0, embedding_scale="root", writes=_WRITES,
                      keys={**_SOFT, "local_rope_theta": "rope_local_base_freq"}),
)  # fmt: skip
VAULTGEMMA = Family(
    name="vaultgemma", model_types=("vaultgemma",), architectures=("VaultGemmaForCausalLM",), shape=_vault,
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096),
)  # fmt: skip
