"""A decoder in NumPy: embedding, blocks, head; with and without a KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError, QsimTypeError
from qsim.scheme import QuantizedTensor, TensorScheme
from qsim.scheme.kv import check_kv_scheme

from . import families
from .attention import PLAIN, AttentionMath
from .cache import KVCache, new_cache
from .checks import Tensor, check_ids, check_tensors
from .config import ModelConfig
from .linear import Linear

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

F32 = np.float32
Observer: TypeAlias = Callable[[str, np.ndarray], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A decoder with its weights. Frozen: `replace` gives another that shares what did not change.

    Arguments:
        config: shape and settings.
        tensors: every tensor of the config under its Hugging Face name: float32, or a `QuantizedTensor` in place of a
            Linear's or the head's weight. A quantised KV cache with stored scales also has
            `<attention>.k_scale` and `.v_scale` (one number each; 1 where absent, as in vLLM).
        tokenizer: text to token ids and back, or None.
        kv_cache: how keys and values are stored; None is float32. Attention sees them rounded, in prefill too.
        attention: how attention's products are formed.
        activation_format: `bfloat16` or `float16`: hidden states are rounded to it after every operation, as a model of
            that dtype keeps them. None is float32.
        linear_settings: pattern -> keyword arguments of `Linear` (engine, instruction, activation, input_transform) for
            the Linears whose name it matches (`*`, `?`, `[...]`; `lm_head` is one); the last match wins for each key.
        name, path, provenance: what it is and where it is from.
        notes: what a reader of any result of this model must know: ignored keys, fallbacks, synthetic outliers.

    Raises:
        ValueError: a tensor that is missing, unknown, of the wrong shape or dtype; the message names it.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor] = field(repr=False)
    tokenizer: Tokenizer | None = None
    kv_cache: TensorScheme | None = None
    attention: AttentionMath = PLAIN
    activation_format: str | None = None
    linear_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    name: str = ""
    path: Path | None = None
    provenance: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._build({})

    def _build(self, known: Mapping[Any, Linear]) -> None:
        """Make the Linears and blocks; those of `known` that have the same weight and settings are taken over."""
        from .build import build

        check_tensors(self.config, self.tensors)
        if self.kv_cache is not None:
            check_kv_scheme(self.kv_cache)
        if self.activation_format not in (None, "bfloat16", "float16"):
            raise QsimError(f"activation_format must be bfloat16, float16 or None: got {self.activation_format!r}")
        built = build(self, known)
        put = object.__setattr__  # derived once; the value stays the same value
        put(self, "tensors", MappingProxyType(built.tensors))
        put(self, "_built", built)
        fallbacks = sorted({n for linear in built.linears.values() if (n := linear.fallback) is not None})
        put(self, "_own_notes", self.notes)
        put(self, "notes", tuple(dict.fromkeys((*self.notes, *fallbacks, *built.notes))))

    # --- parts --------------------------------------------------------------------------------------------

    def linears(self) -> Mapping[str, Linear]:
        """The decoder blocks' Linears by name, in the order in which they are applied. The head is `head_name`."""
        return self._parts.block_linears

    @property
    def lm_head(self) -> Linear:
        """The Linear from hidden states to logits."""
        return self._parts.linears[self.head_name]

    @property
    def head_name(self) -> str:
        """The name of the head among a checkpoint's tensors, `lm_head` in most families."""
        return self.config.tensor_names.head

    @property
    def _parts(self) -> Any:
        return self.__dict__["_built"]

    def block_linears(self, i: int) -> list[list[str]]:
        """Names of block i's Linears in groups that see the same input, in order: q k v, o, gate up, down; of experts
        gate up of each, then down of each."""
        return families.block_names(self.config, self._index(i)).groups

    def block_stages(self, i: int) -> list[list[list[str]]]:
        """The groups of `block_linears` in the four steps of the computation: what is in one does not depend on what
        else is in it. Only a step of experts has more than one group."""
        return families.block_names(self.config, self._index(i)).stages

    def float_readers(self, source: str) -> list[str]:
        """What reads the output of a norm beside Linears, and is never quantised: the router of experts. `observe` is
        called with its input too."""
        return families.float_readers(self.config, source)

    def input_size(self, name: str) -> int:
        """Columns of what a Linear, or a router, reads."""
        one = self._parts.linears.get(name)
        return self.config.hidden_size if one is None else one.in_features

    def fold_groups(self, i: int) -> list[tuple[str, list[str]]]:
        """Where a per-channel factor of block i can be folded; see `families.fold_groups`."""
        return families.fold_groups(self.config, self._index(i))

    def _index(self, i: int) -> int:
        if not 0 <= i < self.config.num_hidden_layers:
            raise IndexError(f"blocks are 0 to {self.config.num_hidden_layers - 1}: got {i}")
        return i

    @property
    def own_notes(self) -> tuple[str, ...]:
        """The notes that were given, without those of fallbacks, which every model finds for itself."""
        return self.__dict__["_own_notes"]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as their formats store them; float32 here counts 4, whatever the file has."""
        return sum(t.nbytes for t in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(int(np.prod(t.shape)) for n, t in self.tensors.items() if not n.endswith(("k_scale", "v_scale")))

    def replace(self, *, tensors: Mapping[str, Tensor | None] | None = None, **settings: Any) -> Model:
        """Another model with other tensors or settings; packed weights that did not change are shared.

        Arguments:
            tensors: those that change, by name; None removes one (a stored scale, or an untied head).
            settings: any other field.
        """
        merged = {**self.tensors, **(tensors or {})}
        kept = {name: t for name, t in merged.items() if t is not None}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["notes"] = self.own_notes
        out = object.__new__(Model)
        for key, value in {**values, **settings, "tensors": kept}.items():
            if key not in values:
                raise QsimTypeError(f"a Model has no field {key!r}; it has {', '.join(values)}")
            object.__setattr__(out, key, value)
        out._build(self._parts.reusable)
        return out

    # --- what it computes ---------------------------------------------------------------------------------

    def logits(
        self,
        tokens: Any,
        *,
        cache: KVCache | None = None,
        observe: Observer | None = None,
        last_only: bool = False,
    ) -> np.ndarray:
        """Scores of the next token.

        Arguments:
            tokens: (T,) or (B, T) ids. With a cache they continue its sequences, and are added to it.
            cache: from `new_cache`; None computes from the first position and keeps nothing.
            observe: called with every Linear's name and its input (M, K), before the scheme quantises it and after an
                `input_transform`.
            last_only: only of the last token.

        Returns:
            float32 (T, V) or (B, T, V); with `last_only` (V,) or (B, V).

        Raises:
            ValueError: ids outside the vocabulary, more tokens than the context, hidden states that are NaN or Inf.
        """
        ids = self.check_tokens(tokens)
        batch, length = ids.shape
        x = self._hidden(ids, cache, observe)
        if last_only:
            x = x.reshape(batch, length, -1)[:, -1]
        if observe is not None:
            observe(self.head_name, x.reshape(-1, x.shape[-1]))
        y = self.unembed(np.ascontiguousarray(x))
        y = y.reshape((batch, -1) if last_only else (batch, length, -1))
        return y[0] if np.ndim(tokens) == 1 else y

    def new_cache(self, batch: int = 1, capacity: int = 0) -> KVCache:
        """An empty KV cache of this model, with room for `capacity` tokens before it grows."""
        return new_cache(self.config, batch, capacity, self.kv_cache)

    def embed(self, tokens: Any) -> np.ndarray:
        """Hidden states that enter block 0, (B, T, D) float32; of (T,) ids, B is 1."""
        ids = self.check_tokens(tokens)
        self._check_length(ids.shape[1])
        return self._embed(ids, np.zeros(ids.shape[0], np.int64)).reshape(*ids.shape, -1)

    def block(
        self,
        i: int,
        hidden: np.ndarray,
        observe: Observer | None = None,
        *,
        half: Literal["attention", "mlp"] | None = None,
    ) -> np.ndarray:
        """Hidden states after block i, (B, T, D) float32, of whole sequences from the first position on.

        Arguments:
            hidden: (B, T, D) float32, from `embed` or block i - 1; not changed.
            observe: as in `logits`.
            half: only attention with its residual, or only the MLP with its own, of what the first gave.

        Raises:
            ValueError: a half of a block whose attention and MLP read the same hidden state (GPT-NeoX).
        """
        hidden = self._check_hidden(hidden)
        batch, length, size = hidden.shape
        self._check_length(length)
        x, block, starts = hidden.reshape(-1, size), self._parts.blocks[self._index(i)], np.zeros(batch, np.int64)
        if half is None:
            return block(x, batch, starts, None, observe).reshape(batch, length, size)
        if block.parallel:
            raise QsimError(f"block {i} has no halves: its attention and MLP read the same hidden state")
        if half != "mlp":
            x = block.attention_half(x, batch, starts, None, observe)
        if half != "attention":
            x = block.mlp_half(x, observe)
        return x.reshape(batch, length, size)

    def attention_output(self, i: int, x: np.ndarray) -> np.ndarray:
        """What block i's attention adds to the residual, (B, T, D) float32.

        Arguments:
            x: (B, T, D) float32, the input of its query, key and value Linears, of whole sequences.
        """
        x = self._check_hidden(x)
        batch, length, size = x.shape
        self._check_length(length)
        block, starts = self._parts.blocks[self._index(i)], np.zeros(batch, np.int64)
        out = block.attention_output(x.reshape(-1, size), batch, starts, None, None)
        return out.reshape(batch, length, -1)

    def mlp_output(self, i: int, x: np.ndarray) -> np.ndarray:
        """What block i's MLP adds to the residual, (B, T, D) float32, of the input x (B, T, D) of its first Linears."""
        x = self._check_hidden(x)
        out = self._parts.blocks[self._index(i)].mlp_output(x.reshape(-1, x.shape[-1]), None)
        return out.reshape(*x.shape[:-1], -1)

    def head(self, hidden: np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of the hidden states after the last block, (B, T, D)."""
        x = self.head_input(hidden)
        return self.unembed(x).reshape(*hidden.shape[:-1], -1)

    def head_input(self, hidden: np.ndarray) -> np.ndarray:
        """What the head multiplies, rows (M, E), of the hidden states after the last block, (B, T, D)."""
        hidden = self._check_hidden(hidden)
        return self._final(hidden.reshape(-1, hidden.shape[-1]), None)

    def hidden(self, tokens: Any) -> np.ndarray:
        """What the head multiplies: hidden states after the final norm, (B, T, E) float32."""
        ids = self.check_tokens(tokens)
        return self._hidden(ids, None, None).reshape(*ids.shape, -1)

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """Logits (M, V) float32 of what `hidden` returns, as rows (M, E)."""
        y, config = self._parts.round(self.lm_head.rows(hidden)), self.config
        if config.logits_scaling != 1:
            y = self._parts.round(y / F32(config.logits_scaling))
        cap = config.final_logit_softcapping
        return y if cap is None else self._parts.round(np.tanh(y / F32(cap)) * F32(cap))

    def generate(self, tokens: Any, max_new_tokens: int = 256, **options: Any) -> Iterator[Any]:
        """Continue tokens; see `qsim.models.generate`."""
        from .generation import generate

        return generate(self, tokens, max_new_tokens, **options)

    def check_tokens(self, tokens: Any) -> np.ndarray:
        """Ids as (B, T) int64.

        Raises:
            TypeError, ValueError: not whole numbers, no tokens, ids outside the vocabulary.
        """
        return check_ids(tokens, self.config.vocab_size)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise QsimError(
                f"the model's context is {self.config.max_position_embeddings} tokens: got {length}; "
                "cut the text into windows"
            )

    def _check_hidden(self, hidden: np.ndarray) -> np.ndarray:
        if hidden.ndim != 3 or hidden.shape[-1] != self.config.hidden_size:
            raise QsimError(f"hidden states must be (B, T, {self.config.hidden_size}): got shape {hidden.shape}")
        return np.asarray(hidden, dtype=F32)

    def _hidden(self, ids: np.ndarray, cache: KVCache | None, observe: Observer | None) -> np.ndarray:
        batch, length = ids.shape
        if cache is None:
            self._check_length(length)
            starts = np.zeros(batch, np.int64)
        else:
            self._check_cache(cache, batch)
            cache.reserve(length)
            starts = cache.lengths
            self._check_switch(cache, int(starts.max()) + length)
        x = self._embed(ids, starts)
        for block in self._parts.blocks:
            x = block(x, batch, starts, cache, observe)
        x = self._final(x, observe)
        if cache is not None:
            cache.advance(length)
        return x

    def _check_cache(self, cache: KVCache, batch: int) -> None:
        c = self.config
        layers, rows, kv_heads, _, size = cache.keys.shape
        if (layers, kv_heads, size) != (c.num_hidden_layers, c.num_key_value_heads, c.head_dim):
            raise QsimError(
                f"the cache is of a model with {layers} layers of {kv_heads} KV heads of {size}: this one has "
                f"{c.num_hidden_layers} of {c.num_key_value_heads} of {c.head_dim}"
            )
        if rows != batch:
            raise QsimError(f"the cache holds {rows} sequences: got tokens of {batch}")

    def _check_switch(self, cache: KVCache, positions: int) -> None:
        """Refuse to go on with keys that were turned by other frequencies than those of the longer text."""
        for rope in self._parts.ropes:
            if rope.switch is None:
                continue
            now = rope.is_long(positions)
            if ((cache.lengths > 0) & (cache.is_long != now)).any():
                raise QsimError(
                    f"longrope turns all keys of a text of more than {rope.switch} tokens by other frequencies: the "
                    f"cache holds keys of a {'shorter' if now else 'longer'} one; run the whole text with a new cache"
                )
            cache.is_long[:] = now

    def _embed(self, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        names = families.model_names(self.config)
        tensors: Any = self.tensors
        table = tensors[names.embedding + ".weight"]
        x = table.take(ids.reshape(-1)) if isinstance(table, QuantizedTensor) else table[ids.reshape(-1)]
        if self.config.embedding_scale != 1:
            x = x * self._parts.round(np.array([self.config.embedding_scale], F32))
        if names.project_in is not None:
            x = self._parts.linears[names.project_in].rows(x)
        if names.positions is not None:
            positions = (starts[:, None] + np.arange(ids.shape[1])).reshape(-1) + 2  # OPT's offset
            x = x + tensors[names.positions + ".weight"][positions]
        return self._parts.round(x)

    def _final(self, x: np.ndarray, observe: Observer | None) -> np.ndarray:
        names = families.model_names(self.config)
        if self._parts.final_norm is not None:
            x = self._parts.final_norm(x)
        if names.project_out is not None:
            project = self._parts.linears[names.project_out]
            if observe is not None:
                observe(project.name, x)
            x = self._parts.round(project.rows(x))
        return x

    def settings_of(self, name: str) -> dict[str, Any]:
        """The `linear_settings` that apply to a Linear."""
        out: dict[str, Any] = {}
        for pattern, settings in self.linear_settings.items():
            if fnmatchcase(name, pattern):
                out |= settings
        return out

    def __repr__(self) -> str:
        c = self.config
        kinds = {t.scheme.name or "quantised" for t in self.tensors.values() if isinstance(t, QuantizedTensor)}
        size = f"{c.num_hidden_layers} layers of {c.hidden_size}, {self.parameters / 1e6:.1f} M parameters"
        return f"Model({self.name or c.architecture}, {size}, {' + '.join(sorted(kinds)) or 'float32'})"
