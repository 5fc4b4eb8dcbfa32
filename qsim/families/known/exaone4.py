"""EXAONE 4, dense and mixtures of experts: windows in three of four layers, norms after the blocks."""

from ..config import Config
from ..family import Family
from ..parts import attention, decoder, experts, mlp, sizes, windowed
from ..shape import Layer, Shape

_KINDS = ("full_attention", "sliding_attention")


def _kinds(c: Config) -> tuple[str, ...]:
    """The pattern is a number (every n-th layer is full) or a text of L and G that repeats."""
    pattern = c.fields.table.get("sliding_window_pattern", 4)
    c.ignore("sliding_window_pattern")
    if c.window is None or pattern is None:
        return c.layer_types(lambda i: "full_attention", _KINDS)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return c.layer_types(lambda i: _KINDS[pattern[i % len(pattern)] == "L"], _KINDS)
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 1:
        raise c.refuse("sliding_window_pattern", "must be a positive integer, or a text of L and G")
    return c.layer_types(c.every(pattern), _KINDS)


def _dense(c: Config) -> Shape:
    base, wide = attention(c, qk_norm=True), mlp(c)
    return decoder(c, [Layer(mixers=(windowed(c, base, kind),), mlps=(wide,)) for kind in _kinds(c)])


def _moe(c: Config) -> Shape:
    base, dense = attention(c, qk_norm=True), mlp(c)
    shared = c.count("num_shared_experts") * c.size("moe_intermediate_size")
    routed = experts(c, "num_experts", "num_experts_per_tok", shared=shared)
    return decoder(c, [
        Layer(mixers=(windowed(c, base, kind),), mlps=(routed if sparse else dense,))
        for kind, sparse in zip(_kinds(c), c.sparse_layers(), strict=True)
    ])  # fmt: skip


EXAONE4 = Family(
    name="exaone4", model_types=("exaone4",), architectures=("Exaone4ForCausalLM",), shape=_dense,
    defaults=sizes(102400, 4096, 16384, 32, 32, 32, sliding_window=4096),
)  # fmt: skip
EXAONE_MOE = Family(
    name="exaone_moe", model_types=("exaone_moe",), architectures=("ExaoneMoeForCausalLM",), shape=_moe,
    aliases={"num_experts": ("num_local_experts", "n_routed_experts")},
    defaults=sizes(
        102400, 4096, 16384, 32, 32, 32, sliding_window=4096, first_k_dense_replace=1, moe_intermediate_size=1024,
        num_experts=64, num_experts_per_tok=8, num_shared_experts=1,
    ),
)  # fmt: skip
