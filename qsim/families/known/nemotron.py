"""Nemotron-H (Mamba 2 with few attention layers, one block in each layer) and Nemotron-NAS (widths of every layer)."""

from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields

from ..blocks import Linear, Mixer, Mlp
from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, mamba2, sizes
from ..shape import Layer, Shape

_MARKS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def _kinds(c: Config) -> tuple[str, ...]:
    pattern = c.text("hybrid_override_pattern")
    if pattern and not c.has("layer_types"):
        if set(pattern) - set(_MARKS):
            raise c.refuse("hybrid_override_pattern", "must hold only M, E, * and -")
        kinds = tuple(_MARKS[mark] for mark in pattern)
    else:
        given = c.fields.table.get("layer_types") or c.fields.table.get("layers_block_type")
        if not isinstance(given, list):
            raise QsimError(f"{c.fields.where}: hybrid_override_pattern or layers_block_type is missing")
        kinds = c.layer_types(lambda i: "", tuple(_MARKS.values()), layers=len(given))
    named = c.optional("num_hidden_layers")
    if not kinds or (named is not None and named != len(kinds)):
        raise c.refuse("num_hidden_layers", f"must be the {len(kinds)} layers of the pattern")
    return kinds


def _hybrid(c: Config) -> Shape:
    kinds, bias = _kinds(c), c.flag("mlp_bias")
    made = {}
    if "full_attention" in kinds:
        with_bias = c.flag("attention_bias")
        made["full_attention"] = Layer(mixers=(attention(c, qkv_bias=with_bias, out_bias=with_bias),), norms=1)
    if "linear_attention" in kinds:
        made["linear_attention"] = Layer(mixers=(mamba2(
            c, heads=c.size("mamba_num_heads"), head_dim=c.size("mamba_head_dim"), groups=c.size("n_groups"),
            state=c.size("ssm_state_size"), kernel=c.size("conv_kernel"), conv_bias=c.flag("use_conv_bias"),
            proj_bias=c.flag("use_bias"),
        ),), norms=1)  # fmt: skip
    if "mlp" in kinds:
        wide = Mlp(inputs=c.hidden, width=c.size("intermediate_size"), gated=False, bias=bias)
        made["mlp"] = Layer(mlps=(wide,), norms=1)
    if "moe" in kinds:
        if bias:
            raise c.refuse("mlp_bias", "must be false with experts")
        shared = c.size("moe_shared_expert_intermediate_size")
        if c.count("n_shared_experts") != 1:
            raise c.refuse("n_shared_experts", "must be 1 in the class that is read here")
        routed = experts(
            c, "n_routed_experts", "num_experts_per_tok", gated=False, shared=shared,
            latent=c.optional("moe_latent_size") or 0,
        )  # fmt: skip
        made["moe"] = Layer(mlps=(routed,), norms=1)
    c.ignore(
        "intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
        "moe_shared_expert_intermediate_size", "moe_latent_size", "head_dim", "mlp_bias", "attention_bias",
    )  # fmt: skip
    return decoder(c, [made[kind] for kind in kinds])


def _part(table: Any, where: str, known: tuple[str, ...]) -> Fields:
    """One half of a layer's block; anything beyond what is known must be off."""
    fields = Fields(table, where)
    for key, value in fields.table.items():
        if key not in known and value not in (None, False):
            raise fields.refuse(key, "is not understood")
    return fields


def _nas(c: Config) -> Shape:
    """DeciLM's class: a layer may have no attention, or a linear layer in its place; the same for the MLP."""
    h = c.hidden
    blocks = c.fields.items("block_configs", dict, length=c.layers)
    c.ignore("intermediate_size", "num_key_value_heads")
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    layers = []
    for i, block in enumerate(blocks):
        where = f"{c.fields.where}: block_configs[{i}]"
        if set(block) - {"attention", "ffn", "parallel_blocks"} or block.get("parallel_blocks"):
            raise QsimError(f"{where} must hold attention and ffn only")
        heads = _part(
            block.get("attention"), f"{where}.attention", ("n_heads_in_group", "no_op", "replace_with_linear")
        )
        ffn = _part(block.get("ffn"), f"{where}.ffn", ("ffn_mult", "no_op", "replace_with_linear"))
        mixers: tuple[Mixer, ...] = ()
        mlps: tuple[Mlp, ...] = ()
        linears: list[Linear] = []
        if heads.flag("replace_with_linear", False):
            linears.append(Linear(name="attention_linear", n=h, k=h, bias=bias))
        elif not heads.flag("no_op", False):
            group = heads.integer("n_heads_in_group", 1, c.heads)
            if c.heads % group:
                raise heads.refuse("n_heads_in_group", f"must divide the {c.heads} attention heads")
            mixers = (attention(c, kv_heads=c.heads // group, qkv_bias=bias, out_bias=bias),)
        if ffn.flag("replace_with_linear", False):
            linears.append(Linear(name="ffn_linear", n=h, k=h, bias=mlp_bias))
        elif not ffn.flag("no_op", False):
            raw = int(2 * ffn.number("ffn_mult", 1e-3, 1e3) * h / 3)
            mlps = (Mlp(inputs=h, width=raw + -raw % 256, bias=mlp_bias),)
        norms = (not heads.flag("no_op", False)) + (not ffn.flag("no_op", False))
        layers.append(Layer(mixers=mixers, mlps=mlps, norms=norms, linears=tuple(linears)))
    return decoder(c, layers)


NEMOTRON_H = Family(
    name="nemotron_h", model_types=("nemotron_h",), architectures=("NemotronHForCausalLM",), shape=_hybrid,
    aliases={
        "layer_types": ("layers_block_type",), "head_dim": ("attention_head_dim",), "n_groups": ("mamba_n_groups",),
        "conv_kernel": ("mamba_d_conv",), "use_conv_bias": ("mamba_conv_bias",),
        "n_routed_experts": ("num_local_experts", "num_experts"),
    },
    defaults={
        "vocab_size": 131072, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 21504, "ssm_state_size": 128, "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8,
        "conv_kernel": 4, "use_conv_bias": True, "n_routed_experts": 8, "n_shared_experts": 1,
        "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2,
    },
    # the width of the recurrence is heads * head_dim, whatever expand says
    harmless=frozenset({
        "expand", "mamba_expand", "chunk_size", "mamba_chunk_size", "use_mamba_kernels", "mamba_hidden_act",
        "mlp_hidden_act", "time_step_limit", "time_step_min", "time_step_max", "time_step_floor", "time_step_rank",
        "residual_in_fp32", "rescale_prenorm_residual", "num_logits_to_keep", "mamba_ssm_cache_dtype", "sliding_window",
        "moe_shared_expert_overlap", "mtp_hybrid_override_pattern", "mtp_layers_block_type", "mamba_dt_min",
        "mamba_dt_max", "mamba_dt_limit", "mamba_dt_init_floor",
    }),
)  # fmt: skip
NEMOTRON_NAS = Family(
    name="nemotron-nas", model_types=("nemotron-nas", "deci"), architectures=("DeciLMForCausalLM",), shape=_nas,
    defaults=sizes(32000, 4096, None, 32, 32),
)  # fmt: skip
