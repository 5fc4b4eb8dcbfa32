"""Checkpoints as targets: GGUF files are priced by the config that they amount to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwmodels.workload.architecture import CONFIG_READERS


def _gguf_config(path: Path) -> Mapping[str, Any]:
    from qsim.models.outline import outline

    return outline(path).config.to_dict()


CONFIG_READERS[".gguf"] = _gguf_config
