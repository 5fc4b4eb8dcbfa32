"""The architecture of a model: the shape of its decoder, from any `config.json` or a table shipped here."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from qsim.errors import QsimError, QsimTypeError, nearest, shown
from qsim.families import Attention, Experts, Latent, Linear, Mixer, Mlp, Recurrent, Shape, load_config, read_config
from qsim.files import read_toml

from .hub import hub_ids, resolve_hub_id
from .table import shape_of_table, shipped_table, table_names

CONFIG_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {}
"""Suffix of a model file -> what reads the `config.json` that it amounts to. Filled by who can read such files: GGUF by
`qsim.study.targets`."""
P = TypeVar("P", Mixer, Mlp | Experts)


@dataclass(frozen=True, kw_only=True)
class Part(Linear):
    """A product of an architecture: its name is unique, `count` is over all layers."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder as the predictions see it.

    Attributes:
        name: for tables and messages.
        shape: every layer's attention, recurrence and MLP, the embeddings and the head (`qsim.families.Shape`).
        source: where the numbers are from.
    """

    name: str
    shape: Shape
    source: str = ""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.shape.layers)

    @property
    def hidden(self) -> int:
        """Width of the hidden state."""
        return self.shape.hidden

    @property
    def vocab(self) -> int:
        """Rows of the head."""
        return self.shape.vocab

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or ignored when the config was read."""
        return self.shape.notes

    @cached_property
    def heads(self) -> int:
        """The largest number of devices that every layer can be split over: a common divisor of all heads; 1 where a
        recurrent layer has none, as its split is not priced."""
        if any(isinstance(m, Recurrent) and not m.heads for m, _ in self.shape.mixers):
            return 1
        return math.gcd(*(m.heads for m, _ in self.shape.mixers)) or 1

    @cached_property
    def kv_heads(self) -> int | None:
        """KV heads of attention, the most where layers differ; latent attention has one for each query head. None
        without attention."""
        found = [m.kv_heads if isinstance(m, Attention) else m.heads for m, _ in self.shape.mixers
                 if isinstance(m, Attention | Latent)]  # fmt: skip
        return max(found, default=None)

    @cached_property
    def experts(self) -> int:
        """Routed experts of a layer, the most where layers differ; 1 for a dense model."""
        return max((mlp.experts for mlp, _ in self.shape.mlps if isinstance(mlp, Experts)), default=1)

    def check_split(self, devices: int, expert_devices: int = 1) -> None:
        """Refuse a number of devices that the layers cannot be split over, or that experts cannot be dealt out to.

        Raises:
            QsimError: it does not divide the heads of every layer, or the split of a recurrent layer is not known; a
                number for experts that does not divide those of every layer, or is no divisor or multiple of the other.
        """
        if devices > 1 and any(isinstance(m, Recurrent) and not m.heads for m, _ in self.shape.mixers):
            raise QsimError(f"tensor_parallel must be 1 for {self.name}: how recurrent layers are split is not priced")
        if devices < 1 or self.heads % devices:
            raise QsimError(f"tensor_parallel must divide the {self.heads} heads of {self.name}: got {devices}")
        counts = sorted({mlp.experts for mlp, _ in self.shape.mlps if isinstance(mlp, Experts)})
        if expert_devices > 1 and not counts:
            raise QsimError(f"expert_parallel must be 1 for {self.name}, which has no experts: got {expert_devices}")
        if expert_devices < 1 or any(count % expert_devices for count in counts):
            many = " and ".join(map(str, counts))
            raise QsimError(f"expert_parallel must divide the {many} experts of {self.name}: got {expert_devices}")
        if devices % expert_devices and expert_devices % devices:
            raise QsimError(
                f"expert_parallel must divide tensor_parallel, or be a multiple of it: got {expert_devices} and "
                f"{devices}"
            )

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether some layer keeps a state of fixed size."""
        return any(isinstance(m, Recurrent) for m, _ in self.shape.mixers)

    @cached_property
    def mixers(self) -> tuple[tuple[str, Mixer, int], ...]:
        """Distinct mixers with a prefix for the names of their operators and how often each runs."""
        return _named(self.shape.mixers, _mixer_label)

    @cached_property
    def mlps(self) -> tuple[tuple[str, Mlp | Experts, int], ...]:
        """Distinct MLPs, mixtures of experts first, with a prefix for the names of their operators and a count."""
        ordered = sorted(self.shape.mlps, key=lambda item: not isinstance(item[0], Experts))
        mixed = any(isinstance(mlp, Experts) for mlp, _ in ordered)
        return _named(ordered, lambda mlp: "" if isinstance(mlp, Experts) or not mixed else "dense")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every product of the layers, under a name of its own, with its number over all layers."""
        found = [
            _part(prefix, item, count)
            for prefix, owner, count in (*self.mixers, *self.mlps)
            for item in owner.linears
        ]  # fmt: skip
        return (*found, *(_part("", item, count) for item, count in self.further))

    @cached_property
    def further(self) -> tuple[tuple[Linear, int], ...]:
        """Products beside mixers and MLPs, and how many layers have each; those outside the layers once."""
        found: Counter[Linear] = Counter()
        for layer, count in self.shape.groups:
            for item in layer.linears:
                found[item] += count
        for item in self.shape.linears:
            found[item] += 1
        return tuple(found.items())

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, K) of every linear layer of the blocks, per expert for the experts' own."""
        return {part.name: (part.n, part.k) for part in self.parts}

    @property
    def linear_counts(self) -> dict[str, int]:
        """How many of each of `linear_shapes` the whole model has."""
        return {part.name: part.count for part in self.parts}

    @cached_property
    def block_parameters(self) -> int:
        """Weights of all linear layers of all blocks, lm_head and embedding left out (every expert counted)."""
        return sum(part.weights for part in self.parts)

    @property
    def active_parameters(self) -> int:
        """All parameters less those of the experts that a token does not visit; embeddings are counted."""
        return self.shape.active_parameters

    @property
    def head_parameters(self) -> int:
        """Weights that make the logits, whether or not they are the embedding's."""
        return self.shape.head.weights

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.shape.parameters

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of K and V, or of latent vectors, that one token adds beyond every window, over all layers."""
        return sum(count * sum(m.cache_widths) for m, count in self.shape.mixers if m.window is None)


def _mixer_label(mixer: Mixer) -> str:
    if isinstance(mixer, Recurrent):
        return mixer.kind.replace(" ", "_").replace("-", "_").lower()
    return "shared_kv" if isinstance(mixer, Attention) and mixer.shares_kv else mixer.kind


def _named(items: Sequence[tuple[P, int]], label: Callable[[P], str]) -> tuple[tuple[str, P, int], ...]:
    """A prefix for each kind: none for the only one, else its label, with a number where two share one."""
    if len(items) == 1:
        return (("", items[0][0], items[0][1]),)
    seen: Counter[str] = Counter()
    found = []
    for item, count in items:
        base = label(item)
        seen[base] += 1
        number = str(seen[base]) if seen[base] > 1 else ""
        prefix = f"{base}{number}_" if base else f"mlp{number}_" if number else ""
        found.append((prefix, item, count))
    return tuple(found)


def _part(prefix: str, item: Linear, count: int) -> Part:
    return Part(
        name=prefix + item.name, n=item.n, k=item.k, bias=item.bias, count=count * item.count, router=item.router
    )


def architecture_names() -> tuple[str, ...]:
    """Names of the architectures shipped as data."""
    return table_names()


_ALIASES = {
    "llama-2-7b": "llama-2-7b", "llama2-7b": "llama-2-7b", "llama-7b": "llama-2-7b", "llama3-8b": "llama-3-8b",
    "llama-3.1-8b": "llama-3-8b", "llama3-70b": "llama-3-70b", "llama-3.1-70b": "llama-3-70b",
    "llama2-13b": "llama-2-13b", "llama2-70b": "llama-2-70b", "mixtral": "mixtral-8x7b", "mistral": "mistral-7b",
    "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3",
}  # fmt: skip


def get_architecture(name: str | Path | Architecture | Mapping[str, Any], *, strict: bool = True) -> Architecture:
    """The architecture of a model.

    Arguments:
        name: one of `architecture_names()`; a Hugging Face id that one of them lists (`meta-llama/Meta-Llama-3-8B`,
            `Qwen/Qwen2.5-7B-Instruct`; see `hub_ids`); a path to a Hugging Face `config.json`, to a folder that holds
            one, or to a TOML of this package's form; the parsed config itself; or an `Architecture`, returned as it is.
        strict: refuse a config with a key that is not understood; otherwise the first note names what was ignored.

    Raises:
        QsimError: an unknown name (the nearest are listed) or model type, a config whose values are missing, out of
            range or do not fit each other, and, with `strict`, a key that may change the structure.
    """
    if isinstance(name, Architecture):
        return name
    if isinstance(name, Mapping):
        return from_config(name, strict=strict)
    if isinstance(name, str | Path) and Path(name).suffix in CONFIG_READERS:
        return from_config(CONFIG_READERS[Path(name).suffix](Path(name)), Path(name).stem, strict=strict,
                           where=str(name))  # fmt: skip
    if not isinstance(name, str | Path):
        raise QsimTypeError(f"a model is a name, a path, a config or an Architecture: got {type(name).__name__}")
    path = Path(name)
    if str(name).endswith((".json", ".toml")) or os.path.isdir(path):
        file = path / "config.json" if os.path.isdir(path) else path
        if not os.path.isfile(file):
            raise QsimError(f"model file {shown(file)} does not exist")
        if file.suffix == ".toml":
            return from_table(read_toml(file), str(file), file.stem)
        stem = file.stem if file.stem != "config" else file.resolve().parent.name or "config"
        table, where = load_config(file)
        return from_config(table, stem, strict=strict, where=where)
    key = str(name).strip().lower().replace("_", "-")
    key = resolve_hub_id(str(name)) or _ALIASES.get(key, key)
    if key not in table_names():
        known = [*table_names(), *_ALIASES, *(hub_ids() if "/" in key else ())]
        raise QsimError(
            f"{nearest('model', str(name), known, cutoff=0.3)}; a path to a Hugging Face config.json works too"
        )
    return _shipped(key)


@lru_cache(maxsize=64)
def _shipped(key: str) -> Architecture:
    return from_table(shipped_table(key), f"{key}.toml", key)


def from_table(table: Mapping[str, Any], file: str, name: str) -> Architecture:
    """An architecture from a table of sizes (`hwmodels.workload.table.shape_of_table`), which may also have `name`,
    `source` and `hub`.

    Raises:
        QsimError: an unknown key, or sizes that do not fit each other.
    """
    sizes = {key: value for key, value in table.items() if key not in ("name", "source", "hub")}
    labels = {key: table.get(key, default) for key, default in (("name", name), ("source", ""))}
    for key, value in labels.items():
        if not isinstance(value, str):
            raise QsimError(f"{file}: {key} must be a text: got {value!r:.80}")
    return Architecture(shape=shape_of_table(sizes, file), **labels)


def from_config(
    config: Mapping[str, Any], name: str = "config", *, strict: bool = True, where: str | None = None
) -> Architecture:
    """An architecture from a parsed Hugging Face config of any family that `qsim.families` knows.

    Arguments:
        name: of the architecture, where the config has none (`_name_or_path`).
        strict, where: as in `qsim.families.read_config`.

    Raises:
        QsimError: as `qsim.families.read_config`.
    """
    shape = read_config(config, strict=strict, where=where)
    label = config.get("_name_or_path")
    return Architecture(
        name=(label if isinstance(label, str) and label else name).rsplit("/", 1)[-1], shape=shape, source="config.json"
    )
