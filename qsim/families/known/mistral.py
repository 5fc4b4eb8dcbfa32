"""Mistral, Ministral and Mixtral."""

from dataclasses import replace

from ..config import Config
from ..family import Family, MlpTensors
from ..numerics import Numerics
from ..parts import TENSORS, attention, decoder, experts, maybe_sliding, mlp, sizes, windowed
from ..shape import Layer, Shape


def _mistral(c: Config) -> Shape:
    return decoder(c, Layer(mixers=(maybe_sliding(c, attention(c)),), mlps=(mlp(c),)))


def _ministral(c: Config) -> Shape:
    default = "full_attention" if c.window is None else "sliding_attention"
    kinds = c.layer_types(lambda i: default, ("full_attention", "sliding_attention"))
    return decoder(c, [Layer(mixers=(windowed(c, attention(c), kind),), mlps=(mlp(c),)) for kind in kinds])


def _mixtral(c: Config) -> Shape:
    routed = experts(c, "num_local_experts", "num_experts_per_tok", width=c.size("intermediate_size"))
    return decoder(c, Layer(mixers=(maybe_sliding(c, attention(c)),), mlps=(routed,)))


MISTRAL = Family(
    name="mistral", model_types=("mistral",), architectures=("MistralForCausalLM",), shape=_mistral,
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, sliding_window=4096, max_position_embeddings=131072),
    tensors=TENSORS, numerics=Numerics(writes=("num_key_value_heads", "head_dim", "sliding_window")),
)  # fmt: skip
MINISTRAL3 = Family(
    name="ministral3", model_types=("ministral3",), shape=_mistral,
    architectures=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    defaults=sizes(131072, 4096, 14336, 34, 32, 8, head_dim=128),
)  # fmt: skip
MINISTRAL = Family(
    name="ministral", model_types=("ministral",), architectures=("MinistralForCausalLM",), shape=_ministral,
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, sliding_window=4096),
)  # fmt: skip
MIXTRAL = Family(
    name="mixtral", model_types=("mixtral",), architectures=("MixtralForCausalLM",), shape=_mixtral,
    aliases={"num_local_experts": ("num_experts",)},
    defaults=sizes(32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2,
                   max_position_embeddings=131072, rope_theta=1e6, rms_norm_eps=1e-5),
    tensors=replace(TENSORS, block=replace(
        TENSORS.block, mlp=None, router="block_sparse_moe.gate",
        expert=MlpTensors(gate="block_sparse_moe.experts.{e}.w1", up="block_sparse_moe.experts.{e}.w3",
                          down="block_sparse_moe.experts.{e}.w2"),
    )),
    numerics=Numerics(
        writes=("num_key_value_heads", "odd_head_dim", "sliding_window", "num_local_experts", "num_experts_per_tok")
    ),
)  # fmt: skip
