"""Command R, R+ and A: attention and MLP side by side after one LayerNorm without bias."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp, sizes, windowed
from ..shape import Layer, Shape


def _cohere(c: Config) -> Shape:
    bias, head_dim = c.flag("attention_bias"), c.head_dim
    norms = (c.heads + c.kv_heads) * head_dim if c.flag("use_qk_norm") else 0
    mixer = attention(c, qkv_bias=bias, out_bias=bias, other=norms)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c),), norms=1, parallel=True))


def _cohere2(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    base, wide = attention(c, qkv_bias=bias, out_bias=bias), mlp(c)
    kinds = c.layer_types(c.every(c.size("sliding_window_pattern")), ("full_attention", "sliding_attention"))
    return decoder(
        c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,), norms=1, parallel=True) for kind in kinds]
    )


_DEFAULTS = sizes(256000, 8192, 22528, 40, 64, tie_word_embeddings=True)

COHERE = Family(
    name="cohere", model_types=("cohere",), architectures=("CohereForCausalLM",), shape=_cohere, defaults=_DEFAULTS,
    harmless=frozenset({"logit_scale"}),
)  # fmt: skip
COHERE2 = Family(
    name="cohere2", model_types=("cohere2", "cohere2_text"), architectures=("Cohere2ForCausalLM",), shape=_cohere2,
    defaults={**_DEFAULTS, "sliding_window": 4096, "sliding_window_pattern": 4},
    aliases={"sliding_window_pattern": ("_sliding_window_pattern", "layer_switch")},
    harmless=frozenset({"logit_scale", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct",
                        "use_parallel_embedding"}),
)  # fmt: skip
