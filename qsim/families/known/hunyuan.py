"""Hunyuan V1, dense and A13B: norms of Q and K, one shared expert."""

from ..blocks import Attention, Experts
from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp, sizes
from ..shape import Layer, Shape


def _mixer(c: Config) -> Attention:
    bias = c.flag("attention_bias")
    for key, value in (("use_cla", False), ("use_mla", False), ("use_qk_norm", True)):
        if key in c.fields and c.flag(key) is not value:
            raise c.refuse(key, f"must be {str(value).lower()} in the class that is read here")
    return attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)


def _dense(c: Config) -> Shape:
    return decoder(c, Layer(mixers=(_mixer(c),), mlps=(mlp(c),)))


def _moe(c: Config) -> Shape:
    mixer, width = _mixer(c), c.size("intermediate_size")
    lists = {key: c.per_layer(key, c.layers) for key in ("num_experts", "moe_topk")}
    for key in ("moe_intermediate_size", "num_shared_expert"):  # the class has one shared expert as wide as the others
        if c.has(key) and set(c.per_layer(key, c.layers)) != {width if key == "moe_intermediate_size" else 1}:
            raise c.refuse(key, "must be intermediate_size, or 1 for the shared experts, in every layer")
    layers = []
    for count, visited in zip(lists["num_experts"], lists["moe_topk"], strict=True):
        if visited > count:
            raise c.refuse("moe_topk", f"must be at most the {count} experts")
        wide = Experts(inputs=c.hidden, width=width, experts=count, per_token=visited, shared=width)
        layers.append(Layer(mixers=(mixer,), mlps=(wide,)))
    return decoder(c, layers)


_HARMLESS = frozenset({
    "cla_share_factor", "use_mixed_mlp_moe", "attention_head_dim", "norm_type", "pool_type", "mask_init_id",
    "dense_list", "org_vocab_size", "rotary_type", "moe_layer_num_skipped", "moe_drop_tokens",
    "moe_random_routing_dropped_token",
    "use_rotary_pos_emb", "text_start_id", "text_end_id", "eod_token_id", "im_end_id", "im_start_id", "im_newline_id",
    "pad_id",
    "num_media_embeds", "position_embedding_xdrope", "add_classification_head", "class_num", "capacity_factor",
    "group_limited_greedy", "n_group", "topk_group", "routed_scaling_factor", "hidden_act",
})  # fmt: skip

HUNYUAN_DENSE = Family(
    name="hunyuan_v1_dense", model_types=("hunyuan_v1_dense",), architectures=("HunYuanDenseV1ForCausalLM",),
    shape=_dense, harmless=_HARMLESS, defaults=sizes(290943, 4096, 11008, 32, 32),
)  # fmt: skip
HUNYUAN_MOE = Family(
    name="hunyuan_v1_moe", model_types=("hunyuan_v1_moe",), architectures=("HunYuanMoEV1ForCausalLM",), shape=_moe,
    harmless=_HARMLESS, aliases={"moe_topk": ("num_experts_per_tok",), "num_experts": ("num_local_experts",)},
    defaults=sizes(290943, 4096, 11008, 32, 32, num_experts=1, moe_topk=1),
)  # fmt: skip
