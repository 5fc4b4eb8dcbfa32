"""A config as one family reads it: its older key names, its class's defaults, every value with type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from qsim.errors import QsimError
from qsim.fields import Fields

T = TypeVar("T")

SIZE = 1 << 24
"""The largest width, head count or vocabulary that is read; the largest published one is below 2 million."""
LAYERS = 2048
"""The most layers that are read; the deepest published decoder has below 200."""
POSITIONS = 1 << 40
"""The longest context or window that is read, in tokens."""

_FULL = {"full_attention": "full_attention", "attention": "full_attention"}
_LINEAR = {"linear_attention": "linear_attention", "mamba": "linear_attention", "recurrent": "linear_attention"}


class Config:
    """The values of one config, read with a family's names and defaults.

    Arguments:
        table: the config, a text model's part of it where it has several.
        where: how messages name it.
        defaults: values of the family's own class where a key is absent.
        aliases: name -> its older names.

    A key that is null is None where None means something (`optional`), and absent otherwise.
    """

    def __init__(
        self, table: Mapping[str, Any], where: str, defaults: Mapping[str, Any], aliases: Mapping[str, Sequence[str]]
    ) -> None:
        self.fields = Fields(table, where)
        self.defaults = defaults
        self.aliases = aliases
        self.inners: dict[str, Config] = {}

    def _names(self, key: str) -> tuple[str, ...]:
        names = (key, *self.aliases.get(key, ()))
        given = {repr(self.fields.table[n]): n for n in names if self.fields.table.get(n) is not None}
        if len(given) > 1 and key != "max_position_embeddings":  # of several lengths the first counts
            raise QsimError(f"{self.fields.where}: {' and '.join(given.values())} mean the same and differ")
        return names

    def has(self, key: str) -> bool:
        """Whether a key (or an older name) is there and not null."""
        return any(name in self.fields for name in self._names(key))

    def _is_null(self, key: str) -> bool:
        names = self._names(key)
        return not self.has(key) and any(name in self.fields.table for name in names)

    def _default(self, key: str, read: Callable[..., T], *ranges: Any) -> T:
        value = self.defaults.get(key)
        return read(self._names(key), *ranges) if value is None else read(self._names(key), *ranges, default=value)

    def size(self, key: str, most: int = SIZE) -> int:
        """A whole number of at least 1; the family's default when absent; refused when null, and where it has none."""
        if self._is_null(key):
            raise QsimError(f"{self.fields.where}: {key} must be an integer: got null")
        return self._default(key, self.fields.integer, 1, most)

    def optional(self, key: str, most: int = SIZE) -> int | None:
        """A whole number of at least 1, or None: when null, and when absent without a default."""
        if self._is_null(key):
            return None
        return self.fields.integer(self._names(key), 1, most, self.defaults.get(key))

    def count(self, key: str, most: int = SIZE) -> int:
        """A whole number of at least 0; null is 0."""
        if self._is_null(key):
            return 0
        return self.fields.integer(self._names(key), 0, most, self.defaults.get(key, 0))

    def flag(self, key: str) -> bool:
        """true or false; absent or null is the family's default, false where it has none."""
        return self.fields.flag(self._names(key), bool(self.defaults.get(key, False)))

    def text(self, key: str, choices: Sequence[str] = ()) -> str:
        """A text; absent or null is the family's default, or empty."""
        return self.fields.text(self._names(key), self.defaults.get(key, ""), choices=choices)

    def numbers(self, key: str, length: int | None = None) -> tuple[int, ...] | None:
        """A list of whole numbers of at least 0, or None when absent, null or empty."""
        if self.fields.table.get(key) == []:
            self.fields.read.add(key)
            return None
        found = self.fields.items(self._names(key), int, None, length=length)
        if found is not None and any(not 0 <= v <= SIZE for v in found):
            raise self.fields.refuse(key, f"must hold numbers from 0 to {SIZE}")
        return found

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """One whole number of at least 1 for each layer, from a list or from one number for all."""
        names = self._names(key)
        name = next((n for n in names if n in self.fields), key)
        if isinstance(self.fields.table.get(name), list | tuple):
            found = self.fields.items(name, int, length=layers)
            if any(not 1 <= v <= SIZE for v in found):
                raise self.fields.refuse(name, f"must hold numbers from 1 to {SIZE}")
            return tuple(found)
        return (self.size(key),) * layers

    def inner(self, key: str, defaults: Mapping[str, Any]) -> Config:
        """A table within, as a config of its own; an empty one when it is absent."""
        found = self.fields.inner(key, None)
        where = f"{self.fields.where}: {key}"
        self.inners[key] = Config({} if found is None else found.table, where, defaults, {})
        return self.inners[key]

    def refuse(self, key: str, rule: str) -> QsimError:
        """The error for a key whose value breaks a rule; to be raised by the caller."""
        return self.fields.refuse(next((n for n in self._names(key) if n in self.fields), key), rule)

    def ignore(self, *keys: str) -> None:
        """Keys that the family knows and that change no shape."""
        self.fields.read.update(name for key in keys for name in (key, *self.aliases.get(key, ())))

    # What most decoders have, under Hugging Face's names.

    @property
    def hidden(self) -> int:
        """Width of the hidden state."""
        return self.size("hidden_size")

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return self.size("num_hidden_layers", LAYERS)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """KV heads; null means as many as query heads. They must divide the query heads."""
        found = self.optional("num_key_value_heads") or self.heads
        if self.heads % found:
            raise QsimError(
                f"{self.fields.where}: num_key_value_heads must divide the {self.heads} attention heads: got {found}"
                + ("" if self.has("num_key_value_heads") else ", the default where it is absent")
            )
        return found

    @property
    def head_dim(self) -> int:
        """Width of a head; null or absent means hidden_size / num_attention_heads."""
        return self.optional("head_dim") or self.even_heads()

    def even_heads(self) -> int:
        """hidden_size / num_attention_heads, which must be whole."""
        if self.hidden % self.heads:
            raise self.refuse(
                "num_attention_heads", f"must divide hidden_size = {self.hidden} when there is no head_dim"
            )
        return self.hidden // self.heads

    @property
    def window(self) -> int | None:
        """Tokens of a sliding window; null means none."""
        return self.optional("sliding_window", POSITIONS)

    @property
    def max_positions(self) -> int | None:
        """The context that the config names, or None."""
        return self.optional("max_position_embeddings", POSITIONS)

    def layer_types(
        self,
        default: Callable[[int], str],
        kinds: Sequence[str],
        *,
        key: str = "layer_types",
        layers: int | None = None,
    ) -> tuple[str, ...]:
        """The kind of every layer: the list of the config, or `default(i)`.

        Older names are read as what they mean: `attention` as full attention, `mamba` as linear attention.
        """
        layers = self.layers if layers is None else layers
        given = self.fields.items(self._names(key), str, None, length=layers)
        if given is None:
            return tuple(default(i) for i in range(layers))
        older = {**_FULL, **_LINEAR}
        found = tuple(name if name in kinds else older.get(name, name) for name in given)
        odd = [name for name in found if name not in kinds]
        if odd:
            raise QsimError(f"{self.fields.where}: {key} must hold only {', '.join(kinds)}: got {odd[0]!r}")
        return found

    def every(
        self, period: int, kind: str = "full_attention", other: str = "sliding_attention"
    ) -> Callable[[int], str]:
        """Every `period`-th layer is of one kind, the rest of another."""
        return lambda i: other if (i + 1) % period else kind

    def sparse_layers(self, default_first: int | None = None) -> tuple[bool, ...]:
        """Which layers are mixtures of experts: `mlp_layer_types`, or from `first_k_dense_replace` on."""
        types = self.fields.items("mlp_layer_types", str, None, length=self.layers)
        if types is not None:
            odd = [name for name in types if name not in ("dense", "sparse")]
            if odd:
                raise self.refuse("mlp_layer_types", "must hold only dense and sparse")
            self.ignore("first_k_dense_replace", "moe_layer_freq")
            return tuple(name == "sparse" for name in types)
        freq = self.fields.table.get("moe_layer_freq")
        if isinstance(freq, list):
            found = self.fields.items("moe_layer_freq", int, length=self.layers)
            self.ignore("first_k_dense_replace")
            return tuple(bool(v) for v in found)
        first = self.fields.integer(
            "first_k_dense_replace", 0, LAYERS, default_first or self.count("first_k_dense_replace")
        )
        period = self.fields.integer("moe_layer_freq", 1, LAYERS, 1)
        return tuple(i >= first and i % period == 0 for i in range(self.layers))
