"""From a folder to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from qsim.errors import QsimError
from qsim.layouts.layout import Meaning
from qsim.safetensors import open_folder

from . import families, stacked
from .folder import (
    TINY,
    check_unquantized,
    config_notes,
    gguf_file,
    quantization_of,
    read_config,
    read_json,
    read_tensor,
    resolve,
)
from .model import Model
from .source import HEAD, Source
from .tokenizer import load_tokenizer


def load(path: str | Path, *, scale_inv: Meaning | None = None) -> Model:
    """A model from a folder of Hugging Face files, from a GGUF file, or the embedded one.

    Arguments:
        path: `tiny`; a GGUF file, or a folder with one, see `qsim.layouts.gguf`; or a folder with `config.json` and
            safetensors: one file, or shards with their index. BF16, FP16,
            FP32, FP64 and FP8 weights become float32. How it is quantised is read from `quantization_config`, or from a
            legacy `quantize_config.json` or `quant_config.json`: in any layout of `qsim.list_layouts()`, or with MXFP4
            experts as gpt-oss ships them.
        scale_inv: what FP8's `weight_scale_inv` does to the codes, `multiply` or `divide`, where the config does not
            say; see `qsim.layouts.fp8`.

    Returns:
        The model, whole; Linears that are stored quantised stay so. Its `notes` list what was ignored or met on the
        way: unknown keys, tensors that were not used, zero points that contradict the config, KV scales of 1.

    Raises:
        QsimError: not a checkpoint, an unsupported architecture or quantisation, a file, shard or tensor that is
            missing, truncated or of the wrong shape or dtype, weights that are NaN or Inf; the message names the file
            and the tensor.
        OSError: a file cannot be read.
    """
    file = gguf_file(path)
    if file is not None:
        from .gguf import load_gguf

        return load_gguf(file)
    folder = resolve(path)
    told = quantization_of(folder, read_json(folder / "config.json"))
    if told is None or stacked.is_mxfp4(told[1]):
        return _load_plain(folder)
    source = Source(folder, scale_inv=scale_inv)
    assert source.plan is not None, "the config is quantised"
    tensors: dict[str, Any] = {name: source.load(name) for name in source}
    head, embedding = tensors.get(HEAD), next(iter(tensors.values()))
    if source.config.tie_word_embeddings and isinstance(head, np.ndarray) and np.array_equal(head, embedding):
        del tensors[HEAD]  # a copy of what it is tied to
    return Model(
        config=source.config,
        tensors=tensors,
        tokenizer=load_tokenizer(folder),
        kv_cache=source.kv_cache,
        name=folder.name,
        path=folder,
        provenance=f"{folder.name}, {source.plan.layout.quant_method} safetensors",
        notes=source.notes.lines(),
    )


def _load_plain(folder: Path) -> Model:
    """As `load`, for a folder without quantised weights."""
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


def tiny_text(which: Literal["calibration", "test"]) -> str:
    """A text of the embedded model that its training never saw: `calibration` (128 KiB) or `test` (256 KiB)."""
    if which not in ("calibration", "test"):
        raise QsimError(f"the text must be calibration or test: got {which!r}")
    return (TINY / f"{which}.txt").read_bytes().decode("utf-8")
