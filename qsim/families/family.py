"""What is known of a model family, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .config import Config
from .shape import Shape


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of decoders: the models of one class in transformers, or of one published remote class.

    Attributes:
        name: of the family; its first model type.
        model_types: `model_type` of its configs, older spellings included.
        architectures: classes that its configs name.
        defaults: values of the class where a config has no such key.
        aliases: key -> its older names.
        harmless: keys of its configs that change no shape, beyond those that are harmless everywhere.
        shape: what the decoder is made of, from a config.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    shape: Callable[[Config], Shape]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    harmless: frozenset[str] = frozenset()
