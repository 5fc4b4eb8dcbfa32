"""ChatGLM 2 and 3, GLM 4, 4.5 and what follows GLM-4.5's class; GLM-5 is with DeepSeek's latent attention."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp, sizes, windowed
from ..shape import Layer, Shape
from .deepseek import mixed


def _chatglm(c: Config) -> Shape:
    """The remote class of ChatGLM 2 and 3 and of the first GLM-4 checkpoints."""
    if not c.flag("rmsnorm") or c.flag("apply_residual_connection_post_layernorm"):
        raise c.refuse("rmsnorm", "must be true, and the residual must not be taken after it")
    bias = c.flag("add_bias_linear")
    qkv = bias or c.flag("add_qkv_bias")
    head_dim = c.optional("kv_channels") or c.even_heads()
    kv_heads = c.size("multi_query_group_num") if c.flag("multi_query_attention") else c.heads
    c.ignore("multi_query_group_num")
    if c.heads % kv_heads:
        raise c.refuse("multi_query_group_num", f"must divide the {c.heads} attention heads")
    mixer = attention(c, kv_heads=kv_heads, head_dim=head_dim, qkv_bias=qkv, out_bias=bias)
    last = c.flag("post_layer_norm")
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=bias),)), norm_weight=last)


def _glm(c: Config) -> Shape:
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c),)))


def _glm4(c: Config) -> Shape:
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c),), norms=4))


def _dots1(c: Config) -> Shape:
    bias, window, first = c.flag("attention_bias"), c.window, c.count("max_window_layers")
    base = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    kinds = c.layer_types(
        lambda i: "sliding_attention" if window is not None and i >= first else "full_attention",
        ("full_attention", "sliding_attention"),
    )
    return mixed(c, [windowed(c, base, kind) for kind in kinds])


def _hy_v3(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    return mixed(c, attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True), first=1, bias=c.flag("mlp_bias"))


def _glm4_moe(c: Config) -> Shape:
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), qk_norm=c.flag("use_qk_norm"))
    return mixed(c, mixer)


_COUNTS = {"n_routed_experts": ("num_experts", "num_local_experts")}

CHATGLM = Family(
    name="chatglm", model_types=("chatglm",), shape=_chatglm,
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    aliases={
        "num_hidden_layers": ("num_layers",), "intermediate_size": ("ffn_hidden_size",),
        "vocab_size": ("padded_vocab_size",), "max_position_embeddings": ("seq_length",),
    },
    defaults=sizes(65024, 4096, 13696, 28, 32, kv_channels=128, rmsnorm=True, post_layer_norm=True,
                   multi_query_group_num=1),
    harmless=frozenset({
        "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "fp32_residual_connection",
        "original_rope", "pre_seq_len", "prefix_projection", "rope_ratio", "interleaved_qkv",
    }),
)  # fmt: skip
GLM = Family(
    name="glm", model_types=("glm",), architectures=("GlmForCausalLM",), shape=_glm,
    defaults=sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128, attention_bias=True),
)  # fmt: skip
GLM4 = Family(
    name="glm4", model_types=("glm4",), architectures=("Glm4ForCausalLM",), shape=_glm4,
    defaults=sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128, attention_bias=True),
)  # fmt: skip
GLM4_MOE = Family(
    name="glm4_moe", model_types=("glm4_moe",), architectures=("Glm4MoeForCausalLM",), shape=_glm4_moe, aliases=_COUNTS,
    defaults=sizes(
        151552, 4096, 10944, 46, 96, 8, moe_intermediate_size=1408, num_experts_per_tok=8, n_shared_experts=1,
        n_routed_experts=128, first_k_dense_replace=1,
    ),
)  # fmt: skip
SOLAR_OPEN = Family(
    name="solar_open", model_types=("solar_open",), architectures=("SolarOpenForCausalLM",), shape=_glm4_moe,
    aliases=_COUNTS,
    defaults=sizes(
        196608, 4096, None, 48, 64, 8, head_dim=128, moe_intermediate_size=1280, num_experts_per_tok=8,
        n_shared_experts=1, n_routed_experts=128,
    ),
)  # fmt: skip
DOTS1 = Family(
    name="dots1", model_types=("dots1",), architectures=("Dots1ForCausalLM",), shape=_dots1, aliases=_COUNTS,
    defaults=sizes(
        152064, 4608, 10944, 62, 32, moe_intermediate_size=1408, sliding_window=4096, max_window_layers=62,
    ),
)  # fmt: skip
HY_V3 = Family(
    name="hy_v3", model_types=("hy_v3",), architectures=("HYV3ForCausalLM",), shape=_hy_v3,
    aliases={"n_routed_experts": ("num_experts", "num_local_experts"), "n_shared_experts": ("num_shared_experts",)},
    defaults=sizes(
        120832, 4096, 13312, 80, 64, 8, head_dim=128, n_routed_experts=192, num_experts_per_tok=8, n_shared_experts=1,
        moe_intermediate_size=1536,
    ),
    harmless=frozenset({"enable_moe_fp32_combine"}),
)  # fmt: skip
