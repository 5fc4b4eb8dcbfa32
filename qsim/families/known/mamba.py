"""Models of a recurrence only: Mamba 1 and 2, Falcon-Mamba, RWKV 4."""

import math

from ..blocks import Linear, Mlp, Recurrent
from ..config import Config
from ..family import Family
from ..parts import decoder, mamba, mamba2
from ..shape import Layer, Shape


def _rank(c: Config) -> int:
    """The rank of the step size; `auto` (and absent) is a sixteenth of the hidden size."""
    if c.fields.table.get("time_step_rank", "auto") in ("auto", None):
        c.ignore("time_step_rank")
        return math.ceil(c.hidden / 16)
    return c.size("time_step_rank")


def _mamba(c: Config) -> Shape:
    c.ignore("num_heads", "expand")
    return _one(c, c.optional("intermediate_size") or c.size("expand") * c.hidden)


def _one(c: Config, inner: int) -> Shape:
    mixer = mamba(
        c, inner, state=c.size("state_size"), kernel=c.size("conv_kernel"), rank=_rank(c),
        conv_bias=c.flag("use_conv_bias"), proj_bias=c.flag("use_bias"),
    )  # fmt: skip
    return decoder(c, Layer(mixers=(mixer,), norms=1))


def _mamba2(c: Config) -> Shape:
    inner, heads, head_dim = c.size("expand") * c.hidden, c.size("num_heads"), c.size("head_dim")
    if heads * head_dim != inner:
        raise c.refuse("num_heads", f"times head_dim = {head_dim} must be expand * hidden_size = {inner}")
    mixer = mamba2(
        c, heads=heads, head_dim=head_dim, groups=c.size("n_groups"), state=c.size("state_size"),
        kernel=c.size("conv_kernel"), conv_bias=c.flag("use_conv_bias"), proj_bias=c.flag("use_bias"),
    )  # fmt: skip
    return decoder(c, Layer(mixers=(mixer,), norms=1))


def _rwkv(c: Config) -> Shape:
    """RWKV 4 (arXiv 2305.13048): time mixing, then channel mixing with a receptance."""
    h = c.hidden
    wide, width = c.optional("attention_hidden_size") or h, c.optional("intermediate_size") or 4 * h
    mixer = Recurrent(
        kind="rwkv",
        linears=(Linear(name="kvr", n=3 * wide, k=h), Linear(name="o", n=h, k=wide)),
        other=2 * wide + 3 * h,  # decay and bonus; the three mixes with the previous token
        state=2 * h + 3 * wide,  # the previous inputs of both halves; numerator, denominator, largest exponent
    )
    receptance = (Linear(name="receptance", n=h, k=h),)
    layer = Layer(mixers=(mixer,), mlps=(Mlp(inputs=h, width=width, gated=False, other=2 * h),), norm_bias=True,
                  linears=receptance)  # fmt: skip
    return decoder(c, layer, norm_bias=True, other=2 * h)  # a norm before the first layer


_HARMLESS = frozenset({
    "time_step_min", "time_step_max", "time_step_floor", "time_step_limit", "rescale_prenorm_residual",
    "residual_in_fp32", "use_mambapy", "use_associative_scan", "use_falcon_mambapy", "fused_add_norm", "chunk_size",
    "rms_norm", "ssm_cfg", "num_logits_to_keep", "pad_vocab_size_multiple", "norm_before_gate", "d_inner",
})  # fmt: skip
_NAMES = {"hidden_size": ("d_model",), "num_hidden_layers": ("n_layer",), "state_size": ("d_state",)}
_DEFAULTS = {
    "vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32, "expand": 2, "conv_kernel": 4,
    "use_conv_bias": True, "tie_word_embeddings": True,
}  # fmt: skip

MAMBA = Family(
    name="mamba", model_types=("mamba",), architectures=("MambaForCausalLM", "MambaLMHeadModel"), shape=_mamba,
    aliases=_NAMES, defaults=_DEFAULTS, harmless=_HARMLESS,
)  # fmt: skip
FALCON_MAMBA = Family(
    name="falcon_mamba", model_types=("falcon_mamba",), architectures=("FalconMambaForCausalLM",), shape=_mamba,
    aliases=_NAMES, defaults=_DEFAULTS, harmless=_HARMLESS,
)  # fmt: skip
MAMBA2 = Family(
    name="mamba2", model_types=("mamba2",), architectures=("Mamba2ForCausalLM",), shape=_mamba2, aliases=_NAMES,
    harmless=_HARMLESS | {"time_step_rank", "intermediate_size"},
    defaults={**_DEFAULTS, "vocab_size": 32768, "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64,
              "num_heads": 128, "head_dim": 64, "n_groups": 8, "tie_word_embeddings": False},
)  # fmt: skip
RWKV = Family(
    name="rwkv", model_types=("rwkv",), architectures=("RwkvForCausalLM",), shape=_rwkv,
    aliases={"max_position_embeddings": ("context_length",)},
    defaults={"vocab_size": 50277, "hidden_size": 4096, "num_hidden_layers": 32}, harmless=frozenset({"rescale_every"}),
)  # fmt: skip
