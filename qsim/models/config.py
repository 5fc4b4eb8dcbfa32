"""Shape and settings of a decoder, from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from qsim.errors import QsimError
from qsim.families import families, is_harmless

from .rope import RopeScaling

Architecture: TypeAlias = Literal["llama", "mistral", "qwen2", "qwen3", "opt"]

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder is, under Hugging Face's names.

    Arguments:
        architecture: `llama`, `mistral`, `qwen2`, `qwen3` or `opt`.
        vocab_size, hidden_size, intermediate_size, num_hidden_layers: sizes; OPT's `ffn_dim` is `intermediate_size`.
        num_attention_heads, num_key_value_heads, head_dim: query head h reads KV head h // (heads / KV heads).
        max_position_embeddings: the longest context, in tokens.
        norm_eps: epsilon of RMSNorm, or of OPT's LayerNorm (1e-5, not in its config).
        hidden_act: `silu`, `relu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh`.
        rope_theta, rope_scaling: rotary embedding; OPT has learned positions instead.
        attention_bias, attention_out_bias, mlp_bias: which Linears have a bias.
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

    architecture: Architecture
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
    quantization_config: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one way a frozen value can fill what was left out
        if self.architecture not in ARCHITECTURES:
            raise QsimError(f"architecture must be one of {', '.join(ARCHITECTURES)}: got {self.architecture!r}")
        if not self.sliding_windows:
            put(self, "sliding_windows", (None,) * self.num_hidden_layers)
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
        if self.architecture != "opt" and self.head_dim % 2:
            raise QsimError(f"rotary embeddings need an even head_dim: got {self.head_dim}")
        if self.hidden_act not in ("silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh"):
            raise QsimError(
                f"hidden_act must be silu, relu, gelu, gelu_new or gelu_pytorch_tanh: got {self.hidden_act!r}"
            )
        if len(self.sliding_windows) != self.num_hidden_layers:
            raise QsimError(
                f"sliding_windows must have one entry per layer, {self.num_hidden_layers}: "
                f"got {len(self.sliding_windows)}"
            )

    @property
    def is_gated(self) -> bool:
        """Whether the MLP is down(act(gate) * up); OPT's is fc2(act(fc1))."""
        return self.architecture != "opt"

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        """Keys of the config that this project does not know; they were ignored."""
        harmless = families()[self.architecture].harmless
        return tuple(k for k in self.extra if not is_harmless(k) and k not in harmless)

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

        values = read_config(data, _architecture(data, where), where)
        try:
            return cls(**values)
        except QsimError as error:
            raise QsimError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that transformers and the serving engines read; `from_dict` is the inverse."""
        from .hf_config import write_config

        head = {"architectures": list(families()[self.architecture].architectures[:1])}
        return {**head, **write_config(self), **self.extra}


def _architecture(data: Mapping[str, Any], where: str) -> str:
    known = {name: a for a in ARCHITECTURES for name in families()[a].architectures}
    classes, kind = data.get("architectures"), data.get("model_type")
    if isinstance(classes, list | tuple) and classes:
        found = [known[name] for name in classes if isinstance(name, str) and name in known]
        if found and (kind is None or kind == found[0]):
            return found[0]
    elif not classes and kind in ARCHITECTURES:
        return str(kind)
    given = f"architectures={classes!r:.80}, model_type={kind!r:.80}" if classes else f"model_type={kind!r:.80}"
    raise QsimError(f"{where}: supported architectures are {', '.join(known)}: got {given}")
