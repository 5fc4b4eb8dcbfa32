"""Phi 1 to 4 and their mixtures of experts."""

from dataclasses import replace

from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import KEYS, Numerics
from ..parts import TENSORS, attention, decoder, experts, maybe_sliding, mlp, sizes
from ..shape import Layer, Shape


def _phi(c: Config) -> Shape:
    norms = 4 * (c.hidden // c.heads) if c.flag("qk_layernorm") else 0
    mixer = attention(c, qkv_bias=True, out_bias=True, other=norms)
    layer = Layer(mixers=(mixer,), mlps=(mlp(c, gated=False, bias=True),), norms=1, norm_bias=True, parallel=True)
    return decoder(c, layer, norm_bias=True, head_bias=True)


def _phi3(c: Config) -> Shape:
    return decoder(c, Layer(mixers=(maybe_sliding(c, attention(c)),), mlps=(mlp(c),)))


def _phimoe(c: Config) -> Shape:
    bias = c.flag("attention_bias")
    mixer = maybe_sliding(c, attention(c, qkv_bias=bias, out_bias=bias))
    routed = experts(c, "num_local_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    layer = Layer(mixers=(mixer,), mlps=(routed,), norm_bias=True)
    return decoder(c, layer, norm_bias=True, head_bias=c.flag("lm_head_bias"))


PHI = Family(
    name="phi", model_types=("phi",), architectures=("PhiForCausalLM",), shape=_phi,
    defaults=sizes(51200, 2048, 8192, 24, 32),
)  # fmt: skip
PHI3 = Family(
    name="phi3", model_types=("phi3",), architectures=("Phi3ForCausalLM",), shape=_phi3,
    defaults=sizes(32064, 3072, 8192, 32, 32, max_position_embeddings=4096, rms_norm_eps=1e-5),
    tensors=replace(TENSORS, block=replace(
        TENSORS.block, query=None, key=None, value=None, qkv="self_attn.qkv_proj",
        mlp=MlpTensors(gate_up="mlp.gate_up_proj", down="mlp.down_proj"),
    )),
    numerics=Numerics(
        keys={**KEYS, "partial_rotary_factor": "partial_rotary_factor"},
        writes=("num_key_value_heads", "sliding_window", "original_max_position_embeddings"),
    ),
    harmless=frozenset({"full_attn_mod", "interpolate_factor"}),
)  # fmt: skip
PHIMOE = Family(
    name="phimoe", model_types=("phimoe",), architectures=("PhimoeForCausalLM", "PhiMoEForCausalLM"), shape=_phimoe,
    aliases={"num_local_experts": ("num_experts",)},
    defaults=sizes(32064, 4096, 6400, 32, 32, 8, num_local_experts=16, num_experts_per_tok=2),
)  # fmt: skip
