"""InternLM 1 to 3."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, mlp, sizes
from ..shape import Layer, Shape


def _internlm(c: Config) -> Shape:
    bias = c.flag("bias")
    return decoder(c, Layer(mixers=(attention(c, qkv_bias=bias, out_bias=bias),), mlps=(mlp(c),)))


def _internlm3(c: Config) -> Shape:
    bias = c.flag("mlp_bias")
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), out_bias=bias)
    return decoder(c, Layer(mixers=(mixer,), mlps=(mlp(c, bias=bias),)))


INTERNLM = Family(
    name="internlm", model_types=("internlm",), architectures=("InternLMForCausalLM",), shape=_internlm,
    defaults=sizes(103168, 4096, 11008, 32, 32, bias=True), harmless=frozenset({"rotary"}),
)  # fmt: skip
INTERNLM2 = Family(
    name="internlm2", model_types=("internlm2",), architectures=("InternLM2ForCausalLM",), shape=_internlm,
    defaults=sizes(103168, 4096, 11008, 32, 32, bias=True),
)  # fmt: skip
INTERNLM3 = Family(
    name="internlm3", model_types=("internlm3",), architectures=("InternLM3ForCausalLM",), shape=_internlm3,
    aliases={"attention_bias": ("qkv_bias",), "mlp_bias": ("bias",)},
    defaults=sizes(128512, 4096, 10240, 48, 32, 2, head_dim=128),
)  # fmt: skip
