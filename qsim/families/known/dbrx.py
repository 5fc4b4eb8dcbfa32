"""DBRX: sixteen experts in every layer, LayerNorm without bias; its sizes are in tables of their own."""

from ..blocks import Experts
from ..config import Config
from ..family import Family
from ..parts import attention, decoder
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    inner, ffn = c.inner("attn_config", {"kv_n_heads": 1}), c.inner("ffn_config", {
        "ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1
    })  # fmt: skip
    kv_heads, count, visited = inner.size("kv_n_heads"), ffn.size("moe_num_experts"), ffn.size("moe_top_k")
    if c.heads % kv_heads:
        raise inner.refuse("kv_n_heads", f"must divide the {c.heads} attention heads")
    if visited > count:
        raise ffn.refuse("moe_top_k", f"must be at most the {count} experts")
    mixer = attention(c, kv_heads=kv_heads, head_dim=c.even_heads())
    routed = Experts(inputs=c.hidden, width=ffn.size("ffn_hidden_size"), experts=count, per_token=visited)
    c.ignore("num_key_value_heads")
    return decoder(c, Layer(mixers=(mixer,), mlps=(routed,)))


DBRX = Family(
    name="dbrx", model_types=("dbrx",), architectures=("DbrxForCausalLM",), shape=_shape,
    aliases={
        "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",), "num_attention_heads": ("n_heads",),
        "max_position_embeddings": ("max_seq_len",),
    },
    defaults={"vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
              "max_position_embeddings": 2048},
    harmless=frozenset({"emb_pdrop"}),
)  # fmt: skip
