"""gpt-oss: attention with sinks, every second layer with a window, experts with biases."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, sizes, windowed
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


GPT_OSS = Family(
    name="gpt_oss", model_types=("gpt_oss",), architectures=("GptOssForCausalLM",), shape=_shape,
    aliases={"num_experts_per_tok": ("experts_per_token",), "num_local_experts": ("num_experts",)},
    defaults=sizes(
        201088, 2880, 2880, 36, 64, 8, head_dim=64, num_local_experts=128, num_experts_per_tok=4, sliding_window=128,
        attention_bias=True,
    ),
    harmless=frozenset({"initial_context_length", "swiglu_limit", "swiglu_alpha"}),
)  # fmt: skip
