"""BLOOM: ALiBi, LayerNorm over the embeddings too, biases everywhere."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads(), qkv_bias=True, out_bias=True)
    wide = mlp(c, width=4 * c.hidden, gated=False, bias=True)
    layer = Layer(mixers=(mixer,), mlps=(wide,), norm_bias=True)
    return decoder(c, layer, norm_bias=True, other=2 * c.hidden)


BLOOM = Family(
    name="bloom", model_types=("bloom",), architectures=("BloomForCausalLM",), shape=_shape,
    aliases={
        "hidden_size": ("n_embed",), "num_hidden_layers": ("n_layer",),
        "num_attention_heads": ("n_head",),
    },
    defaults={"vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
              "tie_word_embeddings": True},
    harmless=frozenset({"n_inner", "skip_bias_add", "skip_bias_add_qkv", "offset_alibi", "bias_dropout_fusion",
                        "masked_softmax_fusion", "seq_length", "slow_but_exact", "unk_token_id"}),
)  # fmt: skip
