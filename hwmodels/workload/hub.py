"""Models by their Hugging Face id: `meta-llama/Meta-Llama-3-8B` is the architecture llama-3-8b.

An architecture's file lists the ids of models that have exactly its shapes, under `hub`.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from types import MappingProxyType


@lru_cache(maxsize=1)
def hub_ids() -> MappingProxyType[str, str]:
    """Hugging Face id -> name of the architecture shipped as data, in the order of the names."""
    folder = resources.files("hwmodels") / "architectures"
    found: dict[str, str] = {}
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
        for hub_id in tomllib.loads(file.read_text(encoding="utf-8")).get("hub", ()):
            found[hub_id] = file.name.removesuffix(".toml")
    return MappingProxyType(found)


def resolve_hub_id(name: str) -> str | None:
    """The architecture of a Hugging Face id, in any case; None when no shipped architecture lists it."""
    if name.count("/") != 1:
        return None
    wanted = name.strip().lower()
    return next((arch for hub_id, arch in hub_ids().items() if hub_id.lower() == wanted), None)
