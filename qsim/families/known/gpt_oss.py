"""gpt-oss: attention with sinks, every second layer with a window, experts with biases."""

from dataclasses import replace

from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, experts, sizes, windowed
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    base = attention(c, qkv_bias=bias, out_bias=bias, other=c.heads)
    routed = experts(
        c, "num_local_experts", "num_experts_per_tok", width=c.size("intermediate_size"), bias=True, router_bias=True
    )
    kinds = c.layer_types(
        lambda i: "full_attention" if i % 2 else "sliding_attention", ("full_attention", "sliding_attention")
    )
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(routed,)) for kind in kinds])


_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip

GPT_OSS = Family(
    name="gpt_oss", model_types=("gpt_oss",), architectures=("GptOssForCausalLM",), shape=_shape,
    aliases={"num_experts_per_tok": ("experts_per_token",), "num_local_experts": ("num_experts",)},
    defaults=sizes(
        201088, 2880, 2880, 36, 64, 8, head_dim=64, num_local_experts=128, num_experts_per_tok=4, sliding_window=128,
        attention_bias=True, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=150000.0,
        swiglu_limit=7.0, swiglu_alpha=1.702, rope_scaling=_YARN,
    ),
    harmless=frozenset({"initial_context_length", "swiglu_limit", "swiglu_alpha"}),
    tensors=replace(TENSORS, block=replace(
        TENSORS.block, mlp=None, sinks="self_attn.sinks", router="mlp.router",
        expert=MlpTensors(gate_up="mlp.experts.{e}.gate_up_proj", down="mlp.experts.{e}.down_proj"),
    )),
    numerics=Numerics(
        router="chosen", gate="clamped", gate_order="pairs", stacked_experts=True,
        keys={**KEYS, "swiglu_limit": "swiglu_limit", "swiglu_alpha": "swiglu_alpha"},
        writes=("num_key_value_heads", "head_dim", "attention_bias", "sliding_window", "layer_types",
                "num_local_experts", "num_experts_per_tok"),
    ),
)  # fmt: skip
