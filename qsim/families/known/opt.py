"""OPT: learned positions, LayerNorm, ReLU; OPT-350m has narrow embeddings and its norms after the blocks."""

from ..blocks import Linear
from ..config import Config
from ..family import BlockTensors, Family, MlpTensors, Tensors
from ..numerics import Numerics
from ..parts import attention, decoder, mlp
from ..shape import Layer, Shape


def _shape(c: Config) -> Shape:
    h, bias = c.hidden, c.flag("enable_bias")
    width = c.optional("word_embed_proj_dim") or h
    affine = c.flag("layer_norm_elementwise_affine")
    removed = c.flag("_remove_final_layer_norm")
    last = c.flag("do_layer_norm_before") and not removed
    mixer = attention(c, kv_heads=c.heads, head_dim=c.even_heads(), qkv_bias=bias, out_bias=bias)
    wide = mlp(c, gated=False, bias=bias)
    layer = Layer(mixers=(mixer,), mlps=(wide,), norm_weight=affine, norm_bias=affine)
    ends = () if width == h else (
        Linear(name="project_in", n=h, k=width), Linear(name="project_out", n=width, k=h)
    )  # fmt: skip
    positions = (c.size("max_position_embeddings") + 2) * h  # the first two rows are never used
    normed = affine and last
    return decoder(c, layer, norm_weight=normed, norm_bias=normed, positions=positions, width=width,
                   linears=ends)  # fmt: skip


_BASE = "model.decoder."

OPT = Family(
    name="opt", model_types=("opt",), architectures=("OPTForCausalLM",), shape=_shape,
    aliases={"intermediate_size": ("ffn_dim",)},
    defaults={
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072,
        "num_attention_heads": 12, "max_position_embeddings": 2048, "do_layer_norm_before": True,
        "enable_bias": True, "layer_norm_elementwise_affine": True, "tie_word_embeddings": True,
        "activation_function": "relu",
    },
    tensors=Tensors(
        embedding=_BASE + "embed_tokens", positions=_BASE + "embed_positions", project_in=_BASE + "project_in",
        project_out=_BASE + "project_out", norm=_BASE + "final_layer_norm", prefix=_BASE + "layers.{i}.",
        block=BlockTensors(
            attention_norm="self_attn_layer_norm", mlp_norm="final_layer_norm", output="self_attn.out_proj",
            mlp=MlpTensors(up="fc1", down="fc2"),
        ),
    ),
    numerics=Numerics(norm="layer", keys={"hidden_act": "activation_function"}),
)  # fmt: skip
