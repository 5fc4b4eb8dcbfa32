"""From a folder to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qsim.errors import QsimError
from qsim.safetensors import TensorFiles, open_folder

from . import families
from .config import ModelConfig
from .model import Model
from .tokenizer import load_tokenizer

F32 = np.float32
TINY = Path(__file__).parent / "tiny"
_LEGACY = ("quantize_config.json", "quant_config.json")  # AutoGPTQ's and AutoAWQ's own files
_QUANTIZED = (".weight_scale", ".weight_scale_inv", ".weight_packed", ".qweight", ".qzeros", ".scales")


def load(path: str | Path) -> Model:
    """A model from a folder of Hugging Face files, or the embedded one.

    Arguments:
        path: `tiny`, or a folder with `config.json` and safetensors: one file, or shards with their index. BF16, FP16,
            FP32, FP64 and FP8 weights become float32. A folder whose config has a `quantization_config` is read by
            `qsim.checkpoints`, and its Linears stay quantised.

    Returns:
        The model, whole. Its `notes` list unknown config keys and tensors that were not used.

    Raises:
        ValueError: not a checkpoint, an unsupported architecture, a file, shard or tensor that is missing, truncated or
            of the wrong shape, weights that are NaN or Inf; the message names the file and the tensor.
        OSError: a file cannot be read.
    """
    folder = resolve(path)
    data = read_json(folder / "config.json")
    legacy = ("quantize_config.json", "quant_config.json")
    if data.get("quantization_config") is not None or any((folder / name).is_file() for name in legacy):
        from qsim.checkpoints import read  # upward: `load` is the name for all folders

        return read(folder)
    return load_plain(folder)


def load_plain(folder: str | Path) -> Model:
    """As `load`, for a folder without quantised weights."""
    folder = resolve(folder)
    config = read_config(folder)
    files = open_folder(folder)
    notes = config_notes(config)
    expected = dict(families.expected_tensors(config))
    tensors = {name: read_tensor(files, name, shape) for name, shape in expected.items()}
    head, embedding = "lm_head.weight", families.model_names(config).embedding + ".weight"
    left = sorted(files.keys() - expected.keys() - {head})
    if config.tie_word_embeddings and head in files:
        own = read_tensor(files, head, (config.vocab_size, config.word_embed_proj_dim))
        if not np.array_equal(own, tensors[embedding]):  # transformers does not tie these either
            tensors[head] = own
            notes.append("config ties the head to the embedding, but lm_head.weight differs from it and is used")
    odd = [name for name in left if name.endswith(_QUANTIZED)]
    if odd:
        raise QsimError(
            f"{files[odd[0]].path}: tensor {odd[0]} belongs to a quantised checkpoint, but config.json has no "
            "quantization_config that says how to read it"
        )
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
    folder = TINY if str(path) == "tiny" else Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise QsimError(f"{folder} {what}: a model is `tiny` or a folder with config.json and safetensors files")
    if not (folder / "config.json").is_file():
        raise QsimError(f"{folder} is not a checkpoint: it has no config.json")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QsimError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise QsimError(f"{path} is not a JSON object")
    return data


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder; what is wrong with it is said with the file's name."""
    path = folder / "config.json"
    try:
        return ModelConfig.from_dict(read_json(path))
    except (ValueError, TypeError) as error:
        text = str(error)
        raise QsimError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def config_notes(config: ModelConfig) -> list[str]:
    """What a reader must know of a config: its unknown keys, listed once."""
    unknown = config.unknown_keys
    return [f"unknown config keys were ignored: {', '.join(unknown)}"] if unknown else []


def read_tensor(files: TensorFiles, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor of that shape.

    Raises:
        ValueError: it is missing, of another shape, or has NaN or Inf.
    """
    if name not in files:
        raise QsimError(f"{files.path} has no tensor {name}, {shape} by config.json")
    entry = files[name]
    if entry.shape != shape:
        raise QsimError(f"{entry.path}: tensor {name} is {shape} by config.json: got {entry.shape}")
    out = entry.float32()
    if not (np.isfinite(out.min()) and np.isfinite(out.max())):
        raise QsimError(f"{entry.path}: tensor {name} has {int((~np.isfinite(out)).sum())} values that are NaN or Inf")
    return out


def tiny_text(which: Literal["calibration", "test"]) -> str:
    """A text of the embedded model that its training never saw: `calibration` (128 KiB) or `test` (256 KiB)."""
    if which not in ("calibration", "test"):
        raise QsimError(f"texts are calibration and test: got {which!r}")
    return (TINY / f"{which}.txt").read_bytes().decode("utf-8")
