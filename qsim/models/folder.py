"""What a folder of Hugging Face files says, and its unquantised tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsim import files
from qsim.errors import QsimError, QsimTypeError, shown
from qsim.fields import Fields
from qsim.layouts import LAYOUTS
from qsim.layouts.gguf.file import is_gguf
from qsim.safetensors import TensorFiles

from .config import ModelConfig

TINY = Path(__file__).parent / "tiny"
KEYS = ("quantization_config", "compression_config")  # of config.json; the second is compressed-tensors' older name
_LEGACY = ("quantize_config.json", "quant_config.json")  # AutoGPTQ's and AutoAWQ's own files, before there was a key


def gguf_file(path: str | Path) -> Path | None:
    """The GGUF file that a path is, or the one of a folder without config.json; None when there is none."""
    if not isinstance(path, str | Path) or str(path) == "tiny":
        return None
    place = Path(path)
    if os.path.isfile(place):
        return place if is_gguf(place) or place.suffix == ".gguf" else None
    if not os.path.isdir(place) or os.path.isfile(place / "config.json"):
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        raise QsimError(f"{place} has {len(found)} GGUF files: give one of them, as {found[0]}")
    return found[0] if found else None


def resolve(path: str | Path) -> Path:
    """The folder of a name or path.

    Raises:
        ValueError: it is not a checkpoint folder.
    """
    if not isinstance(path, str | Path):
        raise QsimTypeError(f"a model must be `tiny` or a path: got {type(path).__name__}")
    folder = TINY if str(path) == "tiny" else Path(path)
    if not os.path.isdir(folder):  # False also for names that no file can have
        what = "is a file" if os.path.exists(folder) else "does not exist"
        known = "`tiny`, a folder with config.json and safetensors files, or a GGUF file"
        raise QsimError(f"{shown(folder)} {what}: a model is {known}")
    if not os.path.isfile(folder / "config.json"):
        raise QsimError(f"{folder} is not a checkpoint: it has no config.json")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        QsimError: it is not one; as `qsim.files.read_json`.
    """
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise QsimError(f"{path} is not a JSON object")
    return data


def quantization_of(folder: Path, data: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]] | None:
    """How the weights of a folder are quantised: the file that says it, and what it says; None when none does.

    Arguments:
        data: its config.json.

    Raises:
        QsimError: what says it is not an object.
    """
    where = folder / "config.json"
    for key in KEYS:
        if data.get(key) is not None:
            return where, Fields(data[key], f"{where}: {key}").table
    legacy = next((folder / name for name in _LEGACY if os.path.isfile(folder / name)), None)
    return None if legacy is None else (legacy, read_json(legacy))


def check_unquantized(found: TensorFiles) -> None:
    """Refuse parts of quantised weights in a folder that does not say how to read them.

    Raises:
        QsimError: the first such tensor.
    """
    marks = tuple(f".{mark}" for layout in LAYOUTS.values() for mark in (*layout.marks, *layout.scale))
    odd = next((name for name in found if name.endswith(marks)), None)
    if odd is not None:
        raise QsimError(
            f"{found[odd].path}: tensor {odd} belongs to a quantised checkpoint, but config.json has no "
            "quantization_config that says how to read it"
        )


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder; what is wrong with it is said with the file's name."""
    path = folder / "config.json"
    return ModelConfig.from_dict(read_json(path), str(path))


def config_notes(config: ModelConfig) -> list[str]:
    """What a reader must know of a config: its unknown keys, listed once."""
    unknown = [key for key in config.unknown_keys if key not in KEYS]
    return [f"unknown config keys were ignored: {', '.join(unknown)}"] if unknown else []


def read_tensor(found: TensorFiles, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor of that shape.

    Raises:
        ValueError: it is missing, of another shape, or has NaN or Inf.
    """
    if name not in found:
        raise QsimError(f"{found.path} has no tensor {name}, {shape} by config.json")
    entry = found[name]
    if entry.shape != shape:
        raise QsimError(f"{entry.path}: tensor {name} is {shape} by config.json: got {entry.shape}")
    out = entry.float32()
    if not (np.isfinite(out.min()) and np.isfinite(out.max())):
        raise QsimError(f"{entry.path}: tensor {name} has {int((~np.isfinite(out)).sum())} values that are NaN or Inf")
    return out
