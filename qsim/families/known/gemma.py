"""Gemma 1 to 3: tied embeddings by default, heads that are not hidden_size / heads wide, windows."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp, sizes, windowed
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


GEMMA = Family(
    name="gemma", model_types=("gemma",), architectures=("GemmaForCausalLM",), shape=_gemma,
    defaults=sizes(256000, 3072, 24576, 28, 16, 16, head_dim=256, tie_word_embeddings=True),
)  # fmt: skip
GEMMA2 = Family(
    name="gemma2", model_types=("gemma2",), architectures=("Gemma2ForCausalLM",), shape=_gemma2,
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096),
)  # fmt: skip
GEMMA3 = Family(
    name="gemma3", model_types=("gemma3", "gemma3_text"), shape=_gemma3,
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    aliases={"sliding_window_pattern": ("_sliding_window_pattern",)},
    defaults=sizes(262208, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096,
                   sliding_window_pattern=6),
)  # fmt: skip
VAULTGEMMA = Family(
    name="vaultgemma", model_types=("vaultgemma",), architectures=("VaultGemmaForCausalLM",), shape=_vault,
    defaults=sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True, sliding_window=4096),
)  # fmt: skip
