"""Logits that transformers computed for a small model of every family, and how they were recorded.

`python -m tests.models.recorded` (with torch and transformers) writes `recorded.npz` again.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from qsim.models import ModelConfig
from qsim.models.families import expected_tensors
from qsim.models.stacked import names as stacked_names

from .small import CONFIGS, write_folder

FILE = Path(__file__).parent / "recorded.npz"
TOKENS = np.random.default_rng(7).integers(0, 96, 21)
EVERY = 7  # columns of the logits that are kept


def tensors_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights that follow from their names alone, so that the order of a family's tensors changes nothing."""
    out = {}
    for name, shape in expected_tensors(config).items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 2:
            x *= 1.0 if "embed" in name else 1.3 / np.sqrt(shape[1])
        else:
            x = x * 0.2 + (0.5 if "norm" in name and name.endswith("weight") else 0)
        out[name] = x.astype(np.float32)
    return out


def on_disk(config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as transformers lays them out: experts of some families as one array."""
    out = dict(tensors)
    for stacked, layers in stacked_names(config):
        out[stacked] = np.ascontiguousarray(np.stack([out.pop(f"{n}.weight").T for n in layers]))
        if f"{layers[0]}.bias" in out:
            out[f"{stacked}_bias"] = np.stack([out.pop(f"{n}.bias") for n in layers])
    return out


def folder_of(kind: str, folder: Path, **changes: Any) -> ModelConfig:
    """Write the model of one kind as a checkpoint folder; its config."""
    config = ModelConfig.from_dict({**CONFIGS[kind], **changes})
    data = {**config.to_dict(), **changes, "pad_token_id": 0}
    write_folder(folder, data, on_disk(config, tensors_of(config)))
    return config


def main() -> None:
    """Record the logits of every kind."""
    import tempfile

    import torch
    import transformers

    found = {}
    for kind in CONFIGS:
        with tempfile.TemporaryDirectory() as name:
            folder_of(kind, Path(name))
            model = transformers.AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager").eval()
            with torch.no_grad():
                found[re.sub(r"\W", "-", kind)] = model(torch.from_numpy(TOKENS)[None]).logits[0, :, ::EVERY].numpy()
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
