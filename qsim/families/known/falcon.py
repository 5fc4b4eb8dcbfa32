"""Falcon: parallel blocks, one KV head (7B) or groups of them (40B, 180B); Falcon-RW is a plain GPT with ALiBi."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    new, bias, parallel = c.flag("new_decoder_architecture"), c.flag("bias"), c.flag("parallel_attn")
    multi = c.flag("multi_query")
    kv_heads = c.optional("num_key_value_heads") or c.heads
    if multi and not new:
        kv_heads = 1
    elif not new:
        kv_heads = c.heads
    if c.heads % kv_heads:
        raise c.refuse("num_key_value_heads", f"must divide the {c.heads} attention heads")
    mixer = attention(c, kv_heads=kv_heads, head_dim=c.even_heads(), qkv_bias=bias, out_bias=bias)
    width = c.optional("ffn_hidden_size") or (c.optional("ff_factor") or 4) * c.hidden
    c.ignore("ff_factor")
    before = c.optional("num_ln_in_parallel_attn", 2) or (2 if new else 1)
    norms = before if parallel else 2
    wide = mlp(c, width=width, gated=False, bias=bias)
    layer = Layer(mixers=(mixer,), mlps=(wide,), norms=norms, norm_bias=True, parallel=parallel)
    return decoder(c, layer, norm_bias=True)


_ALIASES = {
    "hidden_size": ("n_embed",), "num_hidden_layers": ("n_layer",), "num_attention_heads": ("n_head",),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
}  # fmt: skip
_DEFAULTS = {
    "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True,
    "parallel_attn": True, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
_HARMLESS = frozenset({"alibi", "activation", "apply_residual_connection_post_layernorm"})

FALCON = Family(
    name="falcon", model_types=("falcon", "RefinedWebModel"), architectures=("FalconForCausalLM", "RWForCausalLM"),
    shape=_shape, aliases=_ALIASES, defaults=_DEFAULTS, harmless=_HARMLESS,
)  # fmt: skip
FALCON_40B = Family(  # the class that was published with Falcon-40B
    name="RefinedWeb", model_types=("RefinedWeb",), architectures=("RWForCausalLM",), shape=_shape, aliases=_ALIASES,
    defaults={**_DEFAULTS, "new_decoder_architecture": True}, harmless=_HARMLESS,
)  # fmt: skip
