"""Llama 4: chunked attention in three of four layers, one routed expert beside a shared one."""

from ..config import POSITIONS, Config
from ..family import Family
from ..parts import attention, decoder, experts, mlp, sizes
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    bias, width = c.flag("attention_bias"), c.size("intermediate_size")
    chunk = c.optional("attention_chunk_size", POSITIONS)
    period = c.size("no_rope_layer_interval")
    rope = c.numbers("no_rope_layers", c.layers) or tuple(int((i + 1) % period != 0) for i in range(c.layers))
    kinds = c.layer_types(
        lambda i: "chunked_attention" if rope[i] and chunk is not None else "full_attention",
        ("chunked_attention", "full_attention"),
    )
    step = c.size("interleave_moe_layer_step")
    routed = c.numbers("moe_layers")
    sparse = set(range(step - 1, c.layers, step) if routed is None else routed)
    both = {
        "full_attention": attention(c, qkv_bias=bias, out_bias=bias),
        "chunked_attention": attention(c, qkv_bias=bias, out_bias=bias, kind="chunked", window=chunk),
    }
    if chunk is None and "chunked_attention" in kinds:
        raise c.refuse("attention_chunk_size", "must be given, as some layers are chunked")
    mixture = experts(c, "num_local_experts", "num_experts_per_tok", width=width, shared=width)
    dense = mlp(c, width=c.size("intermediate_size_mlp"))
    c.ignore("use_qk_norm")  # its norms learn nothing
    return decoder(
        c, [Layer(mixers=(both[k],), mlps=(mixture if i in sparse else dense,)) for i, k in enumerate(kinds)]
    )


LLAMA4 = Family(
    name="llama4", model_types=("llama4", "llama4_text"), shape=_shape,
    architectures=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    aliases={"num_local_experts": ("num_experts",)},
    defaults=sizes(
        202048, 5120, 8192, 48, 40, 8, head_dim=128, intermediate_size_mlp=16384, num_experts_per_tok=1,
        num_local_experts=16, interleave_moe_layer_step=1, attention_chunk_size=8192, no_rope_layer_interval=4,
    ),
    harmless=frozenset({"attn_temperature_tuning", "floor_scale", "attn_scale", "for_llm_compressor"}),
)  # fmt: skip
