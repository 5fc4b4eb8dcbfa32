"""DeepSeek 1 to 3.2 and the families with its latent attention."""

from collections.abc import Sequence

from ..blocks import Experts, Linear, Mixer, Mlp, Recurrent
from ..config import POSITIONS, Config
from ..family import Family
from ..parts import attention, decoder, experts, latent, mlp, sizes
from ..shape import Layer, Shape


def routed(c: Config, shared_bias: bool = False) -> Experts:
    """Routed and shared experts under DeepSeek's names."""
    shared = c.count("n_shared_experts") * c.size("moe_intermediate_size")
    return experts(c, "n_routed_experts", "num_experts_per_tok", shared=shared, shared_bias=shared_bias)


def mixed(c: Config, mixers: Mixer | Sequence[Mixer], first: int | None = None, bias: bool = False) -> Shape:
    """Dense first layers, then mixtures of experts; one kind of attention, or one for each layer."""
    sparse = c.sparse_layers(first)
    each = mixers if isinstance(mixers, Sequence) else [mixers] * c.layers
    kinds: dict[bool, Mlp | Experts] = {}
    if not all(sparse):
        kinds[False] = mlp(c, bias=bias)
    if any(sparse):
        kinds[True] = routed(c, bias)
    c.ignore(
        "intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size"
    )
    layers = [Layer(mixers=(mixer,), mlps=(kinds[s],)) for mixer, s in zip(each, sparse, strict=True)]
    return decoder(c, layers)


def _v1(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    return mixed(c, attention(c, qkv_bias=bias, out_bias=bias))


def _mla(c: Config) -> Shape:
    return mixed(c, latent(c, bias=c.flag("attention_bias")))


def _v2(c: Config) -> Shape:
    return mixed(c, latent(c, bias=c.flag("attention_bias")), bias=c.flag("mlp_bias"))


def _sparse_attention(c: Config) -> Shape:
    heads, width = c.size("index_n_heads"), c.size("index_head_dim")
    for key in ("index_topk_pattern", "index_topk_freq", "indexer_types"):
        if key in c.fields and c.fields.table[key] not in (1, ["full"] * c.layers, "F" * c.layers):
            raise c.refuse(key, "must leave every layer its own indexer")
    c.ignore("index_skip_topk_offset")
    topk = c.size("index_topk", POSITIONS)
    return mixed(c, latent(c, bias=c.flag("attention_bias"), index_heads=heads, index_dim=width, index_topk=topk))


def _lite(c: Config) -> Shape:
    return mixed(c, latent(c, bias=c.flag("attention_bias")), first=1)


def _dense(c: Config) -> Shape:
    mixer = latent(c, bias=c.flag("attention_bias"))
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _kda(c: Config, heads: int, width: int, kernel: int) -> Recurrent:
    """Kimi Delta Attention (arXiv 2510.26692): a gate for every channel of the state."""
    h, wide = c.hidden, heads * width
    return Recurrent(
        kind="delta attention",
        linears=(
            Linear(name="qkv", n=3 * wide, k=h), Linear(name="f_a", n=width, k=h), Linear(name="f_b", n=wide, k=width),
            Linear(name="b", n=heads, k=h), Linear(name="g_a", n=width, k=h), Linear(name="g_b", n=wide, k=width),
            Linear(name="o", n=h, k=wide),
        ),
        other=3 * wide * kernel + wide + heads + width, state=heads * width * width, conv_channels=3 * wide,
        conv_kernel=kernel,
    )  # fmt: skip


def _kimi_linear(c: Config) -> Shape:
    inner = c.inner("linear_attn_config", {"head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4})
    heads = inner.size("num_heads") if inner.has("num_heads") else c.size("linear_num_heads")
    width = inner.size("head_dim") if inner.has("head_dim") else c.size("linear_head_dim")
    has_kernel = inner.has("short_conv_kernel_size")
    kernel = inner.size("short_conv_kernel_size") if has_kernel else c.size("linear_conv_kernel_dim")
    full, linear = inner.numbers("full_attn_layers"), inner.numbers("kda_layers")
    if full is not None and linear is not None and sorted((*full, *linear)) != list(range(1, c.layers + 1)):
        raise inner.refuse("kda_layers", f"and full_attn_layers must name each of the layers 1 to {c.layers} once")
    chosen = None if full is None or linear is None else {i - 1 for i in full}
    kinds = c.layer_types(
        lambda i: "full_attention" if (i and i % 4 == 0 if chosen is None else i in chosen) else "linear_attention",
        ("full_attention", "linear_attention"),
    )
    made: dict[str, Mixer] = {
        "full_attention": latent(c, bias=c.flag("attention_bias")), "linear_attention": _kda(c, heads, width, kernel)
    }  # fmt: skip
    if c.has("q_lora_rank"):
        raise c.refuse("q_lora_rank", "must be null in the class that is read here")
    shared = c.count("n_shared_experts") * c.size("moe_intermediate_size")
    mixture = experts(c, "n_routed_experts", "num_experts_per_tok", shared=shared)
    dense = mlp(c)
    sparse = c.sparse_layers(1)
    return decoder(c, [
        Layer(mixers=(made[kind],), mlps=(mixture if s else dense,)) for kind, s in zip(kinds, sparse, strict=True)
    ])  # fmt: skip


_RANKS = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_COUNTS = {"n_routed_experts": ("num_experts", "num_local_experts")}
_V3 = sizes(
    129280, 7168, 18432, 61, 128, moe_intermediate_size=2048, n_shared_experts=1, n_routed_experts=256,
    num_experts_per_tok=8, first_k_dense_replace=3, **_RANKS,
)  # fmt: skip

DEEPSEEK = Family(
    name="deepseek", model_types=("deepseek",), architectures=("DeepseekForCausalLM",), shape=_v1, aliases=_COUNTS,
    defaults=sizes(102400, 4096, 11008, 30, 32, moe_intermediate_size=1407),
)  # fmt: skip
DEEPSEEK_V2 = Family(
    name="deepseek_v2", model_types=("deepseek_v2",), architectures=("DeepseekV2ForCausalLM",), shape=_v2,
    aliases=_COUNTS,
    defaults=sizes(102400, 4096, 11008, 32, 32, moe_intermediate_size=1407, n_shared_experts=2, n_routed_experts=64,
                   **_RANKS),
)  # fmt: skip
DEEPSEEK_V3 = Family(
    name="deepseek_v3", model_types=("deepseek_v3", "kimi_k2"), shape=_mla, aliases=_COUNTS, defaults=_V3,
    architectures=("DeepseekV3ForCausalLM",),
)  # fmt: skip
DEEPSEEK_V32 = Family(
    name="deepseek_v32", model_types=("deepseek_v32",), architectures=("DeepseekV32ForCausalLM",), aliases=_COUNTS,
    shape=_sparse_attention, defaults={**_V3, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
)  # fmt: skip
GLM_MOE_DSA = Family(
    name="glm_moe_dsa", model_types=("glm_moe_dsa",), architectures=("GlmMoeDsaForCausalLM",), aliases=_COUNTS,
    shape=_sparse_attention, harmless=frozenset({"indexer_rope_interleave"}),
    defaults={
        **_V3, "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78,
        "num_attention_heads": 64, "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_n_heads": 32,
        "index_head_dim": 128, "index_topk": 2048,
    },
)  # fmt: skip
GLM4_MOE_LITE = Family(
    name="glm4_moe_lite", model_types=("glm4_moe_lite",), architectures=("Glm4MoeLiteForCausalLM",), aliases=_COUNTS,
    shape=_lite,
    defaults=sizes(
        154880, 2048, 10240, 47, 20, moe_intermediate_size=1536, n_shared_experts=1, n_routed_experts=64,
        kv_lora_rank=512, q_lora_rank=768, qk_rope_head_dim=64, qk_nope_head_dim=192, v_head_dim=256,
        num_experts_per_tok=4,
    ),
)  # fmt: skip
MINICPM3 = Family(
    name="minicpm3", model_types=("minicpm3",), architectures=("MiniCPM3ForCausalLM",), shape=_dense,
    defaults=sizes(
        73448, 2560, 6400, 62, 40, tie_word_embeddings=True, kv_lora_rank=256, q_lora_rank=768, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=64,
    ),
    harmless=frozenset({"scale_emb", "scale_depth", "dim_model_base"}),
)  # fmt: skip
YOUTU = Family(
    name="youtu", model_types=("youtu", "youtu_llm"), architectures=("YoutuForCausalLM",), shape=_dense,
    defaults=sizes(128256, 2048, 6144, 32, 16, tie_word_embeddings=True, **_RANKS),
)  # fmt: skip
KIMI_LINEAR = Family(
    name="kimi_linear", model_types=("kimi_linear",), architectures=("KimiLinearForCausalLM",), shape=_kimi_linear,
    aliases={
        "n_routed_experts": ("num_experts", "num_local_experts"), "num_experts_per_tok": ("num_experts_per_token",),
        "n_shared_experts": ("num_shared_experts",), "max_position_embeddings": ("model_max_length",),
    },
    defaults=sizes(
        163840, 2304, 9216, 27, 32, moe_intermediate_size=1024, n_shared_experts=1, n_routed_experts=256,
        num_experts_per_tok=8, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
        linear_head_dim=128, linear_num_heads=32, linear_conv_kernel_dim=4,
    ),
    harmless=frozenset({"mla_use_nope", "use_grouped_topk", "moe_router_activation_func"}),
)  # fmt: skip
