"""What a family's decoder computes, as plain values: what the shape of its tensors does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What the decoder of a family computes, and under which keys its configs say so.

    The names of its tensors say the rest: a norm before or after attention and MLP, norms of queries and keys, sinks,
    fused projections and experts are there when `Tensors` names them.

    Attributes:
        model_type: of the configs that the decoder runs and writes; None is the family's name.
        norm: `rms`: RMSNorm; `layer`: LayerNorm with weight and bias.
        norm_offset: what every norm adds to its stored weight: 1 in Gemma, whose files hold w of (1 + w).
        head_norm: whether norms of queries and keys take each head alone (`head`), or all heads together (`all`).
        qkv_order: columns of a fused projection: `parts` has all queries, all keys, all values; `heads` has query, key
            and value of the first head, then those of the second, and so on.
        gate_order: columns of a fused gate and up projection: `halves`, or `pairs` (gate and up take turns).
        embedding_scale: `root` multiplies embeddings by the square root of the hidden size.
        router: of experts: `softmax`: softmax over all experts, then the largest; `chosen`: the largest, then softmax
            over these.
        renormalise: whether the shares of the chosen experts are divided by their sum; None reads `norm_topk_prob`.
        gate: `act`: activation(gate) * up; `clamped`: gpt-oss's, see `qsim.models.ops.clamped_swiglu`.
        activations: names of activations that configs give -> what the class takes them for.
        stacked_experts: files hold the weights of all experts as one (E, K, N) array.
        keys: field of `qsim.models.ModelConfig` -> key of the config that gives it, with the family's default for that
            key where it is absent. Only what is here is read; any other key that changes what is computed is refused.
        writes: keys of the shape that the family's configs have beyond those of all.
    """

    model_type: str | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    head_norm: Literal["head", "all"] = "head"
    qkv_order: Literal["parts", "heads"] = "parts"
    gate_order: Literal["halves", "pairs"] = "halves"
    embedding_scale: Literal["none", "root"] = "none"
    router: Literal["softmax", "chosen"] = "softmax"
    renormalise: bool | None = True
    gate: Literal["act", "clamped"] = "act"
    activations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stacked_experts: bool = False
    keys: Mapping[str, str] = field(default_factory=lambda: KEYS)
    writes: tuple[str, ...] = ()


KEYS: Mapping[str, str] = MappingProxyType(
    {"norm_eps": "rms_norm_eps", "hidden_act": "hidden_act", "rope_theta": "rope_theta"}
)
"""The keys that Llama's kin have."""
