"""Gemma 3n and 4: embeddings for every layer, and last layers that read an earlier layer's cache."""

from dataclasses import replace

from qsim.errors import QsimError

from ..blocks import Attention, Experts, Linear
from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, mlp, sizes, windowed
from ..shape import Layer, Shape
from .gemma import KINDS


def _first_shared(c: Config) -> int:
    shared = c.count("num_kv_shared_layers")
    if shared >= c.layers:
        raise c.refuse("num_kv_shared_layers", f"must be less than the {c.layers} layers")
    return c.layers - shared


def _sharing(mixer: Attention) -> Attention:
    """It has no keys and values, and so no norm of keys."""
    return replace(mixer, shares_kv=True, other=mixer.head_dim)


def _gemma3n(c: Config) -> Shape:
    h, bias, inputs, rank = c.hidden, c.flag("attention_bias"), c.size("altup_num_inputs"), c.size("laurel_rank")
    small = c.size("hidden_size_per_layer_input")
    base = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    widths, first = c.per_layer("intermediate_size", c.layers), _first_shared(c)
    kinds = c.layer_types(c.every(5), KINDS)
    linears = (
        Linear(name="altup_router", n=inputs, k=h, router=True),
        Linear(name="altup_predict", n=inputs * inputs, k=inputs), Linear(name="altup_correct", n=inputs, k=inputs),
        Linear(name="laurel_left", n=rank, k=h), Linear(name="laurel_right", n=h, k=rank),
        Linear(name="per_layer_gate", n=small, k=h), Linear(name="per_layer_projection", n=h, k=small),
    )  # fmt: skip
    layers = []
    for i, kind in enumerate(kinds):
        mixer = windowed(c, base, kind)
        # norms: four of the block, those of the router, of laurel, of the per-layer input; and AltUp's output scale
        layers.append(Layer(
            mixers=(mixer if i < first else _sharing(mixer),), mlps=(mlp(c, width=widths[i]),), norms=7, other=h,
            linears=linears,
        ))  # fmt: skip
    around = tuple(Linear(name="altup_in_out", n=h, k=h, count=inputs - 1) for _ in range(2)) if inputs > 1 else ()
    return decoder(
        c, layers, embedding=c.size("vocab_size_per_layer_input") * c.layers * small, other=small,
        linears=(*around, Linear(name="per_layer_model_projection", n=c.layers * small, k=h)),
    )  # fmt: skip


def _gemma4(c: Config) -> Shape:
    h, bias, small = c.hidden, c.flag("attention_bias"), c.count("hidden_size_per_layer_input")
    if c.has("use_bidirectional_attention") and c.text("use_bidirectional_attention") == "all":
        raise c.refuse("use_bidirectional_attention", "must not be all for a decoder")
    kinds = list(c.layer_types(c.every(6), KINDS))
    kinds[-1] = "full_attention"
    same = c.flag("attention_k_eq_v")
    wide_heads = c.optional("num_global_key_value_heads")
    local = attention(c, qkv_bias=bias, out_bias=bias, qk_norm=True)
    full = attention(
        c, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=c.size("global_head_dim"), keys_are_values=same,
        kv_heads=wide_heads if same else None,
    )  # fmt: skip
    if full.heads % full.kv_heads:
        raise c.refuse("num_global_key_value_heads", f"must divide the {full.heads} attention heads")
    first, width, double = _first_shared(c), c.size("intermediate_size"), c.flag("use_double_wide_mlp")
    linears = (
        Linear(name="per_layer_gate", n=small, k=h), Linear(name="per_layer_projection", n=h, k=small)
    ) if small else ()  # fmt: skip
    routed: tuple[Experts, ...] = ()
    if c.flag("enable_moe_block"):
        # beside the dense MLP; the router scales its input and every expert
        mixture = experts(c, "num_experts", "top_k_experts")
        routed = (replace(mixture, other=h + mixture.experts),)
    else:
        c.ignore("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size")
    layers = []
    for i, kind in enumerate(kinds):
        mixer = full if kind == "full_attention" else windowed(c, local, kind)
        shared = i >= first
        if shared and kind not in kinds[:first]:
            raise QsimError(f"{c.fields.where}: layer {i} shares a cache, but no earlier layer is {kind}")
        dense = mlp(c, width=width * (2 if double and shared else 1))
        layers.append(Layer(
            mixers=(_sharing(mixer) if shared else mixer,), mlps=(dense, *routed),
            norms=4 + bool(small) + 3 * len(routed), linears=linears,
        ))  # fmt: skip
    if not small:
        return decoder(c, layers)
    return decoder(
        c, layers, embedding=c.size("vocab_size_per_layer_input") * c.layers * small, other=small,
        linears=(Linear(name="per_layer_model_projection", n=c.layers * small, k=h),),
    )  # fmt: skip


GEMMA3N = Family(
    name="gemma3n", model_types=("gemma3n", "gemma3n_text"), shape=_gemma3n,
    architectures=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    defaults=sizes(
        262400, 2048, 16384, 35, 8, 2, head_dim=256, tie_word_embeddings=True, sliding_window=512,
        vocab_size_per_layer_input=262144, hidden_size_per_layer_input=256, altup_num_inputs=4, num_kv_shared_layers=15,
        laurel_rank=64,
    ),
    harmless=frozenset({"activation_sparsity_pattern", "altup_active_idx", "altup_coef_clip", "altup_correct_scale",
                        "altup_lr_multiplier"}),
)  # fmt: skip
GEMMA4 = Family(
    name="gemma4", model_types=("gemma4", "gemma4_text"), shape=_gemma4,
    architectures=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    aliases={"moe_intermediate_size": ("expert_intermediate_size",)},
    defaults=sizes(
        262144, 2304, 9216, 30, 8, 4, head_dim=256, global_head_dim=512, tie_word_embeddings=True, sliding_window=512,
        vocab_size_per_layer_input=262144, hidden_size_per_layer_input=256,
    ),
)  # fmt: skip
