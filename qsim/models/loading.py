"""From a folder to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qsim import files
from qsim.errors import QsimError, QsimTypeError, shown
from qsim.fields import Fields
from qsim.safetensors import TensorFiles, open_folder

from . import families, stacked
from .config import ModelConfig
from .model import Model
from .tokenizer import load_tokenizer

TINY = Path(__file__).parent / "tiny"
KEYS = ("quantization_config", "compression_config")  # of config.json; the second is compressed-tensors' older name
_LEGACY = ("quantize_config.json", "quant_config.json")  # AutoGPTQ's and AutoAWQ's own files, before there was a key
_MARKS = (".qweight", ".qzeros", ".scales", ".weight_packed", ".weight_scale", ".weight_scale_inv",
          ".weight_global_scale")  # fmt: skip


def load(path: str | Path) -> Model:
    """A model from a folder of Hugging Face files, or the embedded one.

    Arguments:
        path: `tiny`, or a folder with `config.json` and safetensors: one file, or shards with their index. BF16, FP16,
            FP32, FP64 and FP8 weights become float32. A folder whose config has a `quantization_config` is read by
            `qsim.checkpoints`, and its Linears stay quantised, as do gpt-oss's MXFP4 experts.

    Returns:
        The model, whole. Its `notes` list unknown config keys and tensors that were not used.

    Raises:
        ValueError: not a checkpoint, an unsupported architecture, a file, shard or tensor that is missing, truncated or
            of the wrong shape, weights that are NaN or Inf; the message names the file and the tensor.
        OSError: a file cannot be read.
    """
    folder = resolve(path)
    told = quantization_of(folder, read_json(folder / "config.json"))
    if told is not None and not stacked.is_mxfp4(told[1]):
        from qsim.checkpoints import read  # upward: `load` is the name for all folders

        return read(folder)
    return load_plain(folder)


def load_plain(folder: str | Path) -> Model:
    """As `load`, for a folder without quantised weights."""
    folder = resolve(folder)
    config = read_config(folder)
    found = open_folder(folder)
    check_unquantized(found)
    notes = config_notes(config)
    expected = dict(families.expected_tensors(config))
    tensors, used = stacked.read_experts(found, config)
    tensors |= {name: read_tensor(found, name, shape) for name, shape in expected.items() if name not in tensors}
    names = families.model_names(config)
    head, embedding = f"{names.head}.weight", f"{names.embedding}.weight"
    left = sorted(found.keys() - expected.keys() - used - {head})
    if config.tie_word_embeddings and head in found:
        own = read_tensor(found, head, (config.vocab_size, config.word_embed_proj_dim))
        if not np.array_equal(own, tensors[embedding]):  # transformers does not tie these either
            tensors[head] = own
            notes.append(f"config ties the head to the embedding, but {head} differs from it and is used")
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        notes.append(f"tensors that the architecture does not have were not used: {left[0]}{more}")
    return Model(
        config=config,
        tensors=tensors,
        tokenizer=load_tokenizer(folder),
        name="tiny" if folder == TINY else folder.name,
        path=folder,
        provenance=f"{folder.name}, {config.dtype} safetensors",
        notes=tuple(notes),
    )


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
        raise QsimError(f"{shown(folder)} {what}: a model is `tiny` or a folder with config.json and safetensors files")
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
    odd = next((name for name in found if name.endswith(_MARKS)), None)
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


def tiny_text(which: Literal["calibration", "test"]) -> str:
    """A text of the embedded model that its training never saw: `calibration` (128 KiB) or `test` (256 KiB)."""
    if which not in ("calibration", "test"):
        raise QsimError(f"the text must be calibration or test: got {which!r}")
    return (TINY / f"{which}.txt").read_bytes().decode("utf-8")
