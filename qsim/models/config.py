"""Shape and settings of a decoder, from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError
from qsim.families import FACTS, Numerics, Tensors, families, is_harmless

from .rope import RopeScaling

ACTIVATIONS = ("silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh")


def architectures() -> tuple[str, ...]:
    """Names of the families that the decoder runs."""
    return tuple(name for name, family in families().items() if family.numerics is not None)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder is, under Hugging Face's names.

    Arguments:
        architecture: name of a family that has `numerics`, see `architectures`.
        vocab_size, hidden_size, intermediate_size, num_hidden_layers: sizes; OPT's `ffn_dim` is `intermediate_size`.
        num_attention_heads, num_key_value_heads, head_dim: query head h reads KV head h // (heads / KV heads).
        max_position_embeddings: the longest context, in tokens.
        norm_eps: epsilon of RMSNorm, or of LayerNorm (OPT: 1e-5, not in its config).
        hidden_act: `silu`, `relu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh`.
        rope_theta, rope_scaling: rotary embedding; OPT has learned positions instead.
        partial_rotary_factor: the share of each head, from its start, that is rotated.
        local_rope_theta: base of layers with a sliding window, whose frequencies are not scaled; None is `rope_theta`
            with its scaling (Gemma 3 has two bases).
        attention_bias, attention_out_bias, mlp_bias: which Linears have a bias; `mlp_bias` is of experts too.
        query_pre_attn_scalar, attention_multiplier: scores are multiplied by scalar^-0.5, or by the multiplier; where
            both are None by head_dim^-0.5.
        attn_logit_softcapping, final_logit_softcapping: scores, or logits, become c tanh(x / c); None leaves them.
        embedding_multiplier, residual_multiplier: of embeddings, and of what attention and MLP add to the residual.
        logits_scaling: logits are divided by it.
        use_parallel_residual: attention and MLP read the same hidden state (GPT-NeoX).
        num_experts, num_experts_per_tok, moe_intermediate_size: of mixtures of experts; 0 without.
        sparse_layers: for each layer, whether its MLP is a mixture of experts.
        norm_topk_prob: the shares of the chosen experts are divided by their sum.
        router_bias: the router has a bias.
        swiglu_limit, swiglu_alpha: of gpt-oss's experts.
        tie_word_embeddings: the head is the embedding.
        sliding_windows: for each layer, how many of the last tokens (itself included) a token attends to; None is all.
        bos_token_id, eos_token_ids: special tokens.
        dtype: what the checkpoint's weights are stored in, as Hugging Face names it.
        do_layer_norm_before, word_embed_proj_dim, final_layer_norm, layer_norm_affine: OPT's variants.
        quantization_config: as found; a folder that has one is read by `qsim.checkpoints`.
        extra: keys that have no effect here, unknown ones included, so that `to_dict` writes them back.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    local_rope_theta: float | None = None
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"
    do_layer_norm_before: bool = True
    word_embed_proj_dim: int = 0
    final_layer_norm: bool = True
    layer_norm_affine: bool = True
    query_pre_attn_scalar: float | None = None
    attention_multiplier: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    use_parallel_residual: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    sparse_layers: tuple[bool, ...] = ()
    norm_topk_prob: bool = True
    router_bias: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float | None = None
    quantization_config: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one way a frozen value can fill what was left out
        if self.architecture not in architectures():
            raise QsimError(f"architecture must be one of {', '.join(architectures())}: got {self.architecture!r}")
        if not self.sliding_windows:
            put(self, "sliding_windows", (None,) * self.num_hidden_layers)
        if not self.sparse_layers:
            put(self, "sparse_layers", (False,) * self.num_hidden_layers)
        if not self.word_embed_proj_dim:
            put(self, "word_embed_proj_dim", self.hidden_size)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise QsimError(f"{name} must be a whole number of at least 1: got {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise QsimError(
                "num_key_value_heads must divide num_attention_heads: got "
                f"{self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.is_rotary and (self.rotary_dim % 2 or not self.rotary_dim):
            raise QsimError(
                f"rotary embeddings need an even head_dim: got {self.head_dim}"
                + (f" times {self.partial_rotary_factor:g}" if self.partial_rotary_factor != 1 else "")
            )
        if self.hidden_act not in ACTIVATIONS:
            raise QsimError(f"hidden_act must be {', '.join(ACTIVATIONS[:-1])} or {ACTIVATIONS[-1]}: "
                            f"got {self.hidden_act!r}")  # fmt: skip
        for name in ("sliding_windows", "sparse_layers"):
            if len(getattr(self, name)) != self.num_hidden_layers:
                raise QsimError(
                    f"{name} must have one entry per layer, {self.num_hidden_layers}: got {len(getattr(self, name))}"
                )
        if any(self.sparse_layers) and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise QsimError(f"num_experts_per_tok must be from 1 to the {self.num_experts} experts: "
                            f"got {self.num_experts_per_tok}")  # fmt: skip

    @property
    def numerics(self) -> Numerics:
        """What the family's decoder computes."""
        found = families()[self.architecture].numerics
        assert found is not None  # `architectures` are the families that have it
        return found

    @property
    def tensor_names(self) -> Tensors:
        """Names of the family's tensors."""
        found = families()[self.architecture].tensors
        assert found is not None  # as above
        return found

    @property
    def is_rotary(self) -> bool:
        """Whether positions enter by rotary embeddings; OPT learns them."""
        return self.tensor_names.positions is None

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def score_scale(self) -> float:
        """What q k^T is multiplied by."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        root = self.hidden_size**0.5 if self.numerics.embedding_scale == "root" else 1.0
        return root * self.embedding_multiplier

    @property
    def is_gated(self) -> bool:
        """Whether the MLP is down(act(gate) * up), and not down(act(up))."""
        block = self.tensor_names.block
        found = block.mlp or block.expert
        return found is not None and found.is_gated

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        """Keys of the config that this project does not know; they were ignored."""
        known = {*families()[self.architecture].harmless, *FACTS}  # of the latter one that contradicts is refused
        return tuple(k for k, v in self.extra.items() if v is not None and not is_harmless(k) and k not in known)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Read the values of a `config.json`.

        Accepts the spellings of transformers 4 and 5: `rope_theta` beside `rope_scaling` (with `type` or `rope_type`)
        or all in `rope_parameters`; `torch_dtype` or `dtype`; `sliding_window` with `use_sliding_window` and
        `max_window_layers`, or `layer_types`. Missing optional keys take the family's defaults in transformers.

        Arguments:
            data: the parsed config.
            where: how messages name it, e.g. its path.

        Raises:
            QsimError: an architecture or a rope scaling that is not supported; a value that is missing, mistyped, out
                of range or contradicts another.
        """
        from .hf_config import read_config

        values = read_config(data, architecture_of(data, where), where)
        try:
            return cls(**values)
        except QsimError as error:
            raise QsimError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that transformers and the serving engines read; `from_dict` is the inverse."""
        from .hf_config import write_config

        head: dict[str, Any] = {"architectures": list(families()[self.architecture].architectures[:1])}
        head["model_type"] = _model_type(self.architecture)
        return {**head, **write_config(self), **self.extra}


def architecture_of(data: Mapping[str, Any], where: str) -> str:
    """The family that a config's class and model type name.

    Raises:
        QsimError: none that the decoder runs, or two that contradict each other.
    """
    kinds = {_model_type(name): name for name in architectures()}
    known = {c: name for name in kinds.values() for c in families()[name].architectures if c.endswith("ForCausalLM")}
    classes, kind = data.get("architectures"), data.get("model_type")
    if isinstance(classes, list | tuple) and classes:
        found = [known[name] for name in classes if isinstance(name, str) and name in known]
        if found and (kind is None or kind == _model_type(found[0])):
            return found[0]
    elif not classes and isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    given = f"architectures={classes!r:.80}, model_type={kind!r:.80}" if classes else f"model_type={kind!r:.80}"
    raise QsimError(f"{where}: supported architectures are {', '.join(known)}: got {given}")


def _model_type(name: str) -> str:
    numerics = families()[name].numerics
    return name if numerics is None or numerics.model_type is None else numerics.model_type
