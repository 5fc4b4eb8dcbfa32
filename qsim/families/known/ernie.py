"""ERNIE 4.5, dense and mixtures of experts."""

from dataclasses import replace

from ..config import LAYERS, Config
from ..family import Family
from ..parts import attention, decoder, experts, mlp, sizes
from ..shape import Layer, Shape


def _dense(c: Config) -> Shape:
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=bias),)))


def _moe(c: Config) -> Shape:
    bias = c.flag("use_bias")
    mixer, dense = attention(c, qkv_bias=bias, out_bias=bias), mlp(c, bias=bias)
    width = c.size("moe_intermediate_size")
    mixture = experts(c, "moe_num_experts", "moe_k", shared=c.count("moe_num_shared_experts") * width, shared_bias=bias)
    mixture = replace(mixture, other=mixture.experts)  # the correction biases are parameters here
    start, step = c.count("moe_layer_start_index"), c.size("moe_layer_interval")
    end = c.fields.integer("moe_layer_end_index", -1, LAYERS, -1)
    end = c.layers - 1 if end == -1 else end
    sparse = [(i + 1) % step == 0 and start <= i <= end for i in range(c.layers)]
    return decoder(c, [Layer(mixers=(mixer,), mlps=(mixture if s else dense,)) for s in sparse], head_bias=bias)


ERNIE = Family(
    name="ernie4_5", model_types=("ernie4_5",), shape=_dense,
    architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    defaults=sizes(103424, 1024, 3072, 18, 16, 2, head_dim=128, tie_word_embeddings=True),
)  # fmt: skip
ERNIE_MOE = Family(
    name="ernie4_5_moe", model_types=("ernie4_5_moe",), shape=_moe,
    architectures=("Ernie4_5_MoeForCausalLM", "Ernie4_5MoeForCausalLM"),
    aliases={"moe_num_experts": ("num_experts",), "moe_k": ("num_experts_per_tok",)},
    defaults=sizes(
        103424, 2560, 12288, 28, 20, 4, moe_intermediate_size=1536, moe_k=6, moe_num_experts=64,
        moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_interval=1,
        tie_word_embeddings=True,
    ),
    harmless=frozenset({"moe_gate", "moe_use_aux_free", "moe_norm_min", "moe_capacity", "moe_norm_gate_logits"}),
)  # fmt: skip
