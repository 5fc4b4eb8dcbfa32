"""MPT: ALiBi, LayerNorm without bias, no biases at all."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    inner = c.inner("attn_config", {})
    facts = {"alibi": True, "attn_type": "multihead_attention", "qk_ln": False, "qk_gn": False, "prefix_lm": False,
             "kv_n_heads": c.heads}  # fmt: skip
    for key, value in facts.items():
        if key in inner.fields and inner.fields.table[key] != value:
            raise inner.refuse(key, f"must be {value} in the class that is read here")
    ffn = c.inner("ffn_config", {})
    if ffn.has("ffn_type") and ffn.text("ffn_type") not in ("mptmlp",):
        raise ffn.refuse("ffn_type", "must be mptmlp")
    if "no_bias" in c.fields and not c.flag("no_bias"):
        raise c.refuse("no_bias", "must be true in the class that is read here")
    if c.size("expansion_ratio") != 4:
        raise c.refuse("expansion_ratio", "must be 4 in the class that is read here")
    mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads())
    wide = mlp(c, width=4 * c.hidden, gated=False)
    return decoder(c, Layer(mixers=(mixer,), mlps=(wide,)))


MPT = Family(
    name="mpt", model_types=("mpt",), architectures=("MptForCausalLM", "MPTForCausalLM"), shape=_shape,
    aliases={
        "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",), "num_attention_heads": ("n_heads",),
        "max_position_embeddings": ("max_seq_len",),
    },
    defaults={
        "vocab_size": 50368, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
        "expansion_ratio": 4, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    # positions are ALiBi's, whatever learned_pos_emb says
    harmless=frozenset({"learned_pos_emb", "embedding_fraction", "init_config", "init_device", "logit_scale",
                        "norm_type", "tokenizer_name", "verbose", "emb_pdrop", "no_bias", "ffn_config"}),
)  # fmt: skip
