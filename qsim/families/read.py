"""One reader of `config.json`: a family is found by its model type and says what the decoder is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError, nearest
from qsim.files import check_depth, read_json
from qsim.registry import add_installed

from .config import Config
from .family import Family
from .keys import is_harmless, repeats
from .shape import Shape

ENTRY_POINTS = "qsim.families"
"""The entry-point group of installed packages: each entry is a `Family`."""
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
"""Where a model of several modalities keeps the config of its language model."""
_NEXT_TOKENS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


_FAMILIES: dict[str, Family] = {}
_TYPES: dict[str, Family] = {}


@lru_cache(maxsize=1)
def _load() -> None:
    """The families of the files of `qsim.families.known`, and of installed packages."""
    from . import known

    for module in sorted(m.name for m in iter_modules(known.__path__)):
        for family in vars(import_module(f"{known.__name__}.{module}")).values():
            if isinstance(family, Family):
                _FAMILIES[family.name] = family
                _TYPES.update(dict.fromkeys(family.model_types, family))
    add_installed("family", ENTRY_POINTS, _add)


def _add(family: Family) -> None:
    if not isinstance(family, Family):
        raise QsimError(f"a model family must be a Family: got {type(family).__name__}")
    for kind in family.model_types:
        taken = _TYPES.get(kind)
        if taken is not None and taken.name != family.name:
            raise QsimError(f"model type {kind!r} is that of the family {taken.name}: a family must have its own")
    known = _FAMILIES.get(family.name)
    if known is not None and known.shape.__module__ != family.shape.__module__:
        raise QsimError(f"two families are called {family.name!r}: give the one that is added another name")
    _FAMILIES[family.name] = family
    _TYPES.update(dict.fromkeys(family.model_types, family))


def register_family(family: Family) -> None:
    """Make a family known to whatever reads a `config.json`: prices, the NumPy decoder, methods, the command line.

    For a family outside this package. In an installed package an entry point of the group `qsim.families` does the
    same for every program:

        [project.entry-points."qsim.families"]
        mine = "my_package.my_module:FAMILY"

    Registering a family of the same module again replaces it, as when a cell of a notebook runs again.

    Raises:
        QsimError: no `Family`, or a name or model type that another one has.
    """
    _load()
    _add(family)


def families() -> Mapping[str, Family]:
    """Every family by name: those of `qsim.families.known`, of installed packages, and those registered."""
    _load()
    return MappingProxyType(_FAMILIES)


def model_types() -> Mapping[str, Family]:
    """Every family by each of the model types that its configs name."""
    _load()
    return MappingProxyType(_TYPES)


def load_config(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """A config and how messages name it, from a mapping, a `config.json`, or a folder that holds one.

    Raises:
        QsimError: the file is not a JSON object, or nested too deep.
        OSError: it cannot be opened.
    """
    if isinstance(source, Mapping):
        check_depth(source, "config")
        return source, "config"
    path = Path(source)
    path = path / "config.json" if os.path.isdir(path) else path
    table = read_json(path)
    if not isinstance(table, dict):
        raise QsimError(f"{path} must hold a JSON object")
    return table, str(path)


def text_part(table: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """The language model's part of a config; `table` itself where it has only one.

    What the part leaves open and the whole says is taken from the whole: the model type, and whether the head is tied.
    """
    for key in _TEXT_PARTS:
        part = table.get(key)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise QsimError(f"{where}: {key} must be a table: got {type(part).__name__}")
        outer = {k: table[k] for k in ("model_type", "tie_word_embeddings") if table.get(k) is not None}
        return {**outer, **{k: v for k, v in part.items() if v is not None or k not in outer}}, f"{where}: {key}"
    return table, where


def family_of(table: Mapping[str, Any], where: str) -> Family:
    """The family that a config's `model_type` names.

    Raises:
        QsimError: no model type, or one that is not known; the nearest known ones are listed.
    """
    kind = table.get("model_type")
    if not isinstance(kind, str):
        raise QsimError(f"{where}: model_type must be a text: got {kind!r:.80}")
    family = model_types().get(kind)
    if family is None:
        raise QsimError(f"{where}: {nearest('model_type', kind, model_types())}")
    return family


def config_of(table: Mapping[str, Any], where: str, family: Family) -> Config:
    """A config with a family's defaults and older names."""
    return Config(table, where, family.defaults, family.aliases)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A config that was read: its family, the shape, and the values with those that are left to read."""

    family: Family
    config: Config
    shape: Shape


def read_config(source: str | Path | Mapping[str, Any], *, strict: bool = True, where: str | None = None) -> Shape:
    """What the decoder of a `config.json` is made of.

    Arguments:
        source: the parsed config, its path, or a folder that holds a `config.json`. Of a model of several modalities
            the language model is read.
        strict: refuse a key that nothing here understands, as it may change the structure. Otherwise the first note
            of the result names what was ignored.
        where: how messages name the config; None takes its path.

    Raises:
        QsimError: an unknown model type, a value that is missing, mistyped or out of range, values that contradict each
            other, and, with `strict`, keys that are not understood.
        OSError: the file cannot be opened.
    """
    return open_config(source, strict=strict, where=where).shape


def open_config(source: str | Path | Mapping[str, Any], *, strict: bool = True, where: str | None = None) -> Reading:
    """As `read_config`, for a caller that reads further values of the same config.

    Raises:
        QsimError, OSError: as `read_config`.
    """
    whole, path = load_config(source)
    table, where = text_part(whole, where or path)
    family = family_of(table, where)
    c = config_of(table, where, family)
    _check_class(table, family, where)
    shape = replace(family.shape(c), family=family.name)
    if any(c.count(key) for key in _NEXT_TOKENS):
        shape = replace(shape, notes=("layers that predict further tokens are left out", *shape.notes))
    unknown = _not_understood(c, family, shape)
    if unknown:
        named = ", ".join(f"{key} = {_brief(value)}" for key, value in unknown.items())
        if strict:
            raise QsimError(
                f"{where}: {named} is not understood for {family.name} and may change the structure; "
                "remove it if it does not, or read with strict=False"
            )
        shape = replace(shape, notes=(f"not understood and ignored: {named}", *shape.notes))
    return Reading(family=family, config=c, shape=shape)


def _check_class(table: Mapping[str, Any], family: Family, where: str) -> None:
    """A class of another family, or one that is no language model, contradicts the model type."""
    names = table.get("architectures")
    if names is None:
        return
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise QsimError(f"{where}: architectures must be a list of texts: got {names!r:.80}")
    if not names or any(name in family.architectures for name in names):
        return
    if not any(name.endswith(_SUFFIXES) for name in names):
        raise QsimError(f"{where}: architectures = {names[0]!r:.80} is not a model with a language head")
    owner = next((f.name for f in families().values() if names[0] in f.architectures), None)
    if owner is not None:
        raise QsimError(f"{where}: architectures = {names[0]!r} is of {owner}, but model_type is of {family.name}")


def _not_understood(c: Config, family: Family, shape: Shape) -> dict[str, Any]:
    """Keys that were not read, are not harmless, and do not only repeat what the shape says, with their values.

    An older name that repeats the one that was read is understood.
    """
    table = c.fields.table
    older = {name for key in c.fields.read for name in c.aliases.get(key, ()) if table.get(name) == table.get(key)}
    found = {
        key: value
        for key, value in table.items()
        if key not in c.fields.read | older
        and key not in family.harmless
        and not is_harmless(key)
        and not repeats(key, value, shape)
    }
    for name, inner in c.inners.items():
        found |= {f"{name}.{key}": value for key, value in _not_understood(inner, family, shape).items()}
    return found


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
