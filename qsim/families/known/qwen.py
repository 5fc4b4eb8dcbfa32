"""Qwen 1 to 3.5: dense, mixtures of experts, and the hybrids with gated delta nets."""

from dataclasses import replace

from ..blocks import Experts, Linear, Mixer, Mlp, Recurrent
from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, experts, mlp, sizes, windowed
from ..shape import Layer, Shape

_KINDS = ("full_attention", "sliding_attention")
_HYBRID = ("full_attention", "linear_attention")


def _qwen(c: Config) -> Shape:
    """The first Qwen: its `intermediate_size` counts gate and up together."""
    head_dim = c.optional("kv_channels") or c.even_heads()
    free = not c.flag("no_bias")
    width = c.size("intermediate_size")
    if width % 2:
        raise c.refuse("intermediate_size", "must be even: it counts gate and up")
    c.ignore("num_key_value_heads")
    mixer = attention(c, kv_heads=c.heads, head_dim=head_dim, qkv_bias=True, out_bias=free)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, width=width // 2, bias=free),)))


def _windows(c: Config) -> tuple[str, ...]:
    """Layers from `max_window_layers` on slide, where windows are used at all."""
    window, first = c.window, c.count("max_window_layers")
    used = c.flag("use_sliding_window") and window is not None
    kinds = c.layer_types(lambda i: "sliding_attention" if used and i >= first else "full_attention", _KINDS)
    if "sliding_attention" in kinds and not used:
        raise c.refuse("layer_types", "has sliding layers, but use_sliding_window is not true")
    return kinds


def _qwen2(c: Config) -> Shape:
    base, wide = attention(c, qkv_bias=True), mlp(c)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in _windows(c)])


def _qwen3(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    base, wide = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True), mlp(c)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in _windows(c)])


def _sparse(c: Config) -> tuple[bool, ...]:
    """Every `decoder_sparse_step`-th layer is a mixture of experts, those of `mlp_only_layers` never."""
    step, never = c.size("decoder_sparse_step"), set(c.numbers("mlp_only_layers") or ())
    return tuple(i not in never and (i + 1) % step == 0 for i in range(c.layers))


def _shared(c: Config) -> Experts:
    """Experts with one shared expert behind a gate."""
    width = c.size("shared_expert_intermediate_size")
    return experts(c, "num_experts", "num_experts_per_tok", shared=width, shared_gate=True)


def _qwen2_moe(c: Config) -> Shape:
    base = attention(c, qkv_bias=c.flag("qkv_bias"))
    used, most = c.flag("use_sliding_window"), c.count("max_window_layers")
    c.ignore("sliding_window")
    kinds = c.layer_types(
        lambda i: "sliding_attention" if used and (i + 1) % 2 and i < most else "full_attention", _KINDS
    )
    routed, dense = _shared(c), mlp(c)
    return decoder(c, [
        Layer(mixers=(windowed(c, base, kind),), mlps=(routed if sparse else dense,))
        for kind, sparse in zip(kinds, _sparse(c), strict=True)
    ])  # fmt: skip


def _qwen3_moe(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    c.ignore("max_window_layers")
    if c.flag("use_sliding_window") and c.window is not None:
        mixer = windowed(c, mixer, "sliding_attention")
    c.ignore("sliding_window")
    routed, dense = experts(c, "num_experts", "num_experts_per_tok"), mlp(c)
    return decoder(c, [Layer(mixers=(mixer,), mlps=(routed if sparse else dense,)) for sparse in _sparse(c)])


def _delta(c: Config) -> Recurrent:
    """A gated delta net (arXiv 2412.06464): one state of key x value for each value head."""
    keys, values = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    key, value = keys * c.size("linear_key_head_dim"), values * c.size("linear_value_head_dim")
    kernel, h = c.size("linear_conv_kernel_dim"), c.hidden
    if values % keys:
        raise c.refuse("linear_num_key_heads", f"must divide the {values} value heads")
    return Recurrent(
        kind="gated delta net",
        linears=(
            Linear(name="in_proj_qkvz", n=2 * key + 2 * value, k=h), Linear(name="in_proj_ba", n=2 * values, k=h),
            Linear(name="out_proj", n=h, k=value),
        ),
        other=(2 * key + value) * kernel + 2 * values + c.size("linear_value_head_dim"),
        state=values * c.size("linear_key_head_dim") * c.size("linear_value_head_dim"), conv_channels=2 * key + value,
        conv_kernel=kernel, heads=keys,
    )  # fmt: skip


def _hybrid(c: Config, mlps: list[Mlp | Experts]) -> Shape:
    """Three delta nets, then one attention whose output is gated."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    mixer = replace(mixer, gate=mixer.heads * mixer.head_dim)
    if "attn_output_gate" in c.fields and not c.flag("attn_output_gate"):
        raise c.refuse("attn_output_gate", "must be true in the class that is read here")
    kinds = c.layer_types(c.every(c.size("full_attention_interval"), other="linear_attention"), _HYBRID)
    made: dict[str, Mixer] = {"full_attention": mixer, "linear_attention": _delta(c)}
    return decoder(c, [Layer(mixers=(made[k],), mlps=(m,)) for k, m in zip(kinds, mlps, strict=True)])


def _qwen3_next(c: Config) -> Shape:
    routed, dense = _shared(c), mlp(c)
    return _hybrid(c, [routed if sparse else dense for sparse in _sparse(c)])


def _qwen3_5(c: Config) -> Shape:
    c.ignore("mlp_only_layers")
    return _hybrid(c, [mlp(c)] * c.layers)


def _qwen3_5_moe(c: Config) -> Shape:
    c.ignore("mlp_only_layers", "intermediate_size", "decoder_sparse_step")
    return _hybrid(c, [_shared(c)] * c.layers)


_NORMED = replace(TENSORS, block=replace(TENSORS.block, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"))
_SLIDING = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_LINEAR = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "head_dim": 256,
}  # fmt: skip
_MTP = frozenset({"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"})

QWEN = Family(
    name="qwen", model_types=("qwen",), architectures=("QWenLMHeadModel",), shape=_qwen,
    defaults=sizes(151936, 4096, 22016, 32, 32, kv_channels=128, no_bias=True),
        harmless=frozenset({
        "bf16", "fp16", "fp32", "use_flash_attn", "use_dynamic_ntk", "use_logn_attn", "onnx_safe", "use_cache_kernel",
        "use_cache_quantization", "softmax_in_fp32",
    }),
)  # fmt: skip
QWEN2 = Family(
    name="qwen2", shape=_qwen2, tensors=TENSORS,
    numerics=Numerics(writes=("num_key_value_heads", "odd_head_dim", *_SLIDING)),
    model_types=("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "mimo"),
    architectures=("Qwen2ForCausalLM", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration",
                   "MiMoForCausalLM"),
    defaults=sizes(151936, 4096, 22016, 32, 32, 32, max_window_layers=28, sliding_window=4096,
                   max_position_embeddings=32768),
)  # fmt: skip
QWEN3 = Family(
    name="qwen3", model_types=("qwen3", "qwen3_vl", "qwen3_vl_text"), shape=_qwen3, tensors=_NORMED,
    numerics=Numerics(writes=("num_key_value_heads", "head_dim", "attention_bias", *_SLIDING)),
    architectures=("Qwen3ForCausalLM", "Qwen3VLForConditionalGeneration"),
    defaults=sizes(151936, 4096, 22016, 32, 32, 32, head_dim=128, max_window_layers=28, sliding_window=4096,
                   max_position_embeddings=32768),
)  # fmt: skip
_COUNTS = {"num_experts": ("num_local_experts", "n_routed_experts")}
QWEN2_MOE = Family(
    name="qwen2_moe", model_types=("qwen2_moe",), architectures=("Qwen2MoeForCausalLM",), shape=_qwen2_moe,
    aliases=_COUNTS,
    defaults=sizes(
        151936, 2048, 5632, 24, 16, 16, decoder_sparse_step=1, moe_intermediate_size=1408, max_window_layers=28,
        shared_expert_intermediate_size=5632, num_experts_per_tok=4, num_experts=60, qkv_bias=True, sliding_window=4096,
    ),
)  # fmt: skip
QWEN3_MOE = Family(
    name="qwen3_moe", model_types=("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text"), shape=_qwen3_moe,
    architectures=("Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration"),
    aliases=_COUNTS,
    defaults=sizes(
        151936, 2048, 6144, 24, 32, 4, decoder_sparse_step=1, moe_intermediate_size=768, num_experts_per_tok=8,
        num_experts=128, sliding_window=4096, max_position_embeddings=32768,
    ),
    tensors=replace(_NORMED, block=replace(
        _NORMED.block, router="mlp.gate",
        expert=MlpTensors(gate="mlp.experts.{e}.gate_proj", up="mlp.experts.{e}.up_proj",
                          down="mlp.experts.{e}.down_proj"),
    )),
    numerics=Numerics(
        renormalise=None, keys={**KEYS, "norm_topk_prob": "norm_topk_prob"},
        writes=("num_key_value_heads", "head_dim", "attention_bias", "use_sliding_window", "sliding_window",
                "num_experts", "num_experts_per_tok", "moe_intermediate_size", "mlp_only_layers",
                "decoder_sparse_step"),
    ),
)  # fmt: skip
QWEN3_NEXT = Family(
    name="qwen3_next", model_types=("qwen3_next",), architectures=("Qwen3NextForCausalLM",), shape=_qwen3_next,
    aliases=_COUNTS, harmless=_MTP,
    defaults=sizes(
        151936, 2048, 5632, 48, 16, 2, decoder_sparse_step=1, moe_intermediate_size=512,
        shared_expert_intermediate_size=512, num_experts_per_tok=10, num_experts=512, **_LINEAR,
    ),
)  # fmt: skip
QWEN3_5 = Family(
    name="qwen3_5", model_types=("qwen3_5", "qwen3_5_text"), shape=_qwen3_5,
    architectures=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    harmless=_MTP, defaults=sizes(248320, 4096, 12288, 32, 16, 4, **_LINEAR),
)  # fmt: skip
QWEN3_5_MOE = Family(
    name="qwen3_5_moe", model_types=("qwen3_5_moe", "qwen3_5_moe_text"), shape=_qwen3_5_moe,
    architectures=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"), harmless=_MTP, aliases=_COUNTS,
    defaults=sizes(
        248320, 2048, None, 40, 16, 2, moe_intermediate_size=512, shared_expert_intermediate_size=512,
        num_experts_per_tok=8, num_experts=256, **_LINEAR,
    ),
)  # fmt: skip
