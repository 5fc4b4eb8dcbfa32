"""Hybrids of attention and a recurrence: Jamba, Falcon-H1, RecurrentGemma (Griffin), LFM2."""

import math

from ..blocks import Experts, Linear, Mixer, Mlp, Recurrent
from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, mamba, mamba2, mlp, sizes
from ..shape import Layer, Shape
from .granite import SSM, SSM_HARMLESS

_KINDS = ("full_attention", "linear_attention")


def _jamba(c: Config) -> Shape:
    rank = c.fields.table.get("mamba_dt_rank", "auto")
    if rank in ("auto", None):
        c.ignore("mamba_dt_rank")
        rank = math.ceil(c.hidden / 16)
    else:
        rank = c.size("mamba_dt_rank")
    ssm = mamba(
        c, c.size("mamba_expand") * c.hidden, state=c.size("mamba_d_state"), kernel=c.size("mamba_d_conv"), rank=rank,
        norms=True, conv_bias=c.flag("mamba_conv_bias"), proj_bias=c.flag("mamba_proj_bias"),
    )  # fmt: skip
    full, dense = attention(c), mlp(c)
    routed: Mlp | Experts = dense
    if c.size("num_experts") > 1:
        routed = experts(c, "num_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    c.ignore("num_experts_per_tok")
    period, offset = c.size("attn_layer_period"), c.count("attn_layer_offset")
    every, after = c.size("expert_layer_period"), c.count("expert_layer_offset")
    return decoder(c, [
        Layer(mixers=(full if i % period == offset else ssm,), mlps=(routed if i % every == after else dense,))
        for i in range(c.layers)
    ])  # fmt: skip


def _falcon_h1(c: Config) -> Shape:
    """Attention and Mamba 2 side by side in every layer."""
    heads, inner = c.size("mamba_n_heads"), c.optional("mamba_d_ssm") or c.size("mamba_expand") * c.hidden
    if c.fields.table.get("mamba_d_head", "auto") == "auto":
        c.ignore("mamba_d_head")
        head_dim = inner // heads
    else:
        head_dim = c.size("mamba_d_head")
    if heads * head_dim != inner:
        raise c.refuse("mamba_n_heads", f"times mamba_d_head = {head_dim} must be mamba_d_ssm = {inner}")
    ssm = mamba2(
        c, heads=heads, head_dim=head_dim, groups=c.size("mamba_n_groups"), state=c.size("mamba_d_state"),
        kernel=c.size("mamba_d_conv"), norm=c.flag("mamba_rms_norm"), conv_bias=c.flag("mamba_conv_bias"),
        proj_bias=c.flag("mamba_proj_bias"), out_bias=c.flag("projectors_bias"),
    )  # fmt: skip
    c.ignore("mamba_expand")
    bias = c.flag("attention_bias")
    mixers = (attention(c, qkv_bias=bias, out_bias=bias), ssm)
    return decoder(c, Layer(mixers=mixers, mlps=(mlp(c, bias=c.flag("mlp_bias")),)))


def _griffin(c: Config) -> Shape:
    """RG-LRU (arXiv 2402.19427): gates in blocks, one for each head."""
    h, lru, kernel = c.hidden, c.optional("lru_width") or c.hidden, c.size("conv1d_width")
    if lru % c.heads:
        raise c.refuse("lru_width", f"must be a multiple of the {c.heads} attention heads")
    linears = (
        Linear(name="y", n=lru, k=h, bias=True), Linear(name="x", n=lru, k=h, bias=True),
        Linear(name="o", n=h, k=lru, bias=True),
    )  # fmt: skip
    gates = 2 * (lru * (lru // c.heads) + lru) + lru  # two blocked gates with bias, the decay
    recurrent = Recurrent(
        kind="RG-LRU", linears=linears, other=gates + lru * kernel + lru, state=lru, conv_channels=lru,
        conv_kernel=kernel,
    )  # fmt: skip
    local = attention(
        c, qkv_bias=c.flag("attention_bias"), out_bias=True, kind="sliding",
        window=c.size("attention_window_size", 1 << 40),
    )  # fmt: skip
    width = c.size("intermediate_size")
    if width % 2:
        raise c.refuse("intermediate_size", "must be even: it counts gate and up")
    wide = mlp(c, width=width // 2, bias=True)
    types = c.fields.items("block_types", str, ("recurrent", "recurrent", "attention"))
    if not types or set(types) - {"recurrent", "attention"}:
        raise c.refuse("block_types", "must hold only recurrent and attention")
    made: dict[str, Mixer] = {"recurrent": recurrent, "attention": local}
    return decoder(c, [Layer(mixers=(made[types[i % len(types)]],), mlps=(wide,)) for i in range(c.layers)])


def _conv(c: Config) -> Recurrent:
    h, kernel, bias = c.hidden, c.size("conv_L_cache"), c.flag("conv_bias")
    linears = (Linear(name="in_proj", n=3 * h, k=h, bias=bias), Linear(name="out_proj", n=h, k=h, bias=bias))
    return Recurrent(
        kind="short convolution", linears=linears, other=h * kernel + (h if bias else 0), conv_channels=h,
        conv_kernel=kernel,
    )  # fmt: skip


def _lfm2_kinds(c: Config) -> tuple[str, ...]:
    full = c.numbers("full_attn_idxs")
    chosen = set(range(c.layers)) if full is None else set(full)
    return c.layer_types(lambda i: "full_attention" if i in chosen else "conv", ("full_attention", "conv"))


def _lfm2_mixers(c: Config) -> dict[str, Mixer]:
    return {"full_attention": attention(c, qk_norm=True), "conv": _conv(c)}


def _lfm2(c: Config) -> Shape:
    width = c.size("intermediate_size")
    c.ignore(
        "block_mlp_init_scale", "block_use_swiglu", "block_dim", "conv_dim", "conv_dim_out", "conv_use_xavier_init"
    )
    if c.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        width = int(c.fields.number("block_ffn_dim_multiplier", 1e-3, 1e3, 1.0) * width)
        multiple = c.size("block_multiple_of")
        width += -width % multiple
    c.ignore("block_ffn_dim_multiplier", "block_multiple_of")
    made = _lfm2_mixers(c)
    return decoder(c, [Layer(mixers=(made[kind],), mlps=(mlp(c, width=width),)) for kind in _lfm2_kinds(c)])


def _lfm2_moe(c: Config) -> Shape:
    made = _lfm2_mixers(c)
    dense, routed, first = mlp(c), experts(c, "num_experts", "num_experts_per_tok"), c.count("num_dense_layers")
    return decoder(c, [
        Layer(mixers=(made[kind],), mlps=(dense if i < first else routed,)) for i, kind in enumerate(_lfm2_kinds(c))
    ])  # fmt: skip


_MAMBA = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True}

JAMBA = Family(
    name="jamba", model_types=("jamba",), architectures=("JambaForCausalLM",), shape=_jamba,
    aliases={"num_experts": ("num_local_experts",)},
    defaults=sizes(
        65536, 4096, 14336, 32, 32, 8, num_experts=16, num_experts_per_tok=2, expert_layer_period=2,
        expert_layer_offset=1, attn_layer_period=8, attn_layer_offset=4, **_MAMBA,
    ),
    harmless=frozenset({"use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep",
                        "mamba_inner_layernorms", "calc_logits_for_entire_prompt", "n_ctx"}),
)  # fmt: skip
FALCON_H1 = Family(
    name="falcon_h1", model_types=("falcon_h1",), architectures=("FalconH1ForCausalLM",), shape=_falcon_h1,
    defaults=sizes(128000, 4096, 14336, 32, 32, 8, **{**SSM, "mamba_d_head": "auto", "mamba_d_ssm": 1024}),
    harmless=SSM_HARMLESS | {"mamba_norm_before_gate", "mamba_use_mlp", "num_logits_to_keep", "mlp_expansion_factor",
                             "attn_layer_indices"},
)  # fmt: skip
RECURRENT_GEMMA = Family(
    name="recurrent_gemma", model_types=("recurrent_gemma",), architectures=("RecurrentGemmaForCausalLM",),
    shape=_griffin, aliases={"attention_window_size": ("sliding_window",), "block_types": ("_block_types",)},
    defaults=sizes(256000, 2560, 7680, 26, 10, attention_window_size=2048, conv1d_width=4, tie_word_embeddings=True),
    harmless=frozenset({"logits_soft_cap", "w_init_variance_scale", "final_w_init_variance_scale",
                        "embeddings_scale_by_sqrt_dim"}),
)  # fmt: skip
_LFM_HARMLESS = frozenset({
    "block_mlp_init_scale", "block_out_init_scale", "block_norm_eps", "block_use_xavier_init", "conv_use_xavier_init",
    "use_pos_enc", "theta",
})  # fmt: skip
_LFM = {"intermediate_size": ("block_ff_dim",), "tie_word_embeddings": ("tie_embedding",)}
LFM2 = Family(
    name="lfm2", model_types=("lfm2",), architectures=("Lfm2ForCausalLM",), shape=_lfm2, aliases=_LFM,
    harmless=_LFM_HARMLESS,
    defaults=sizes(65536, 2560, 12288, 32, 32, 8, tie_word_embeddings=True, conv_L_cache=3, block_multiple_of=256,
                   block_auto_adjust_ff_dim=True),
)  # fmt: skip
LFM2_MOE = Family(
    name="lfm2_moe", model_types=("lfm2_moe",), architectures=("Lfm2MoeForCausalLM",), shape=_lfm2_moe, aliases=_LFM,
    defaults=sizes(
        65536, 2048, 7168, 32, 32, 8, tie_word_embeddings=True, conv_L_cache=3, moe_intermediate_size=1792,
        num_dense_layers=2, num_experts=32, num_experts_per_tok=4,
    ),
    harmless=_LFM_HARMLESS | {"use_expert_bias"},
)  # fmt: skip
