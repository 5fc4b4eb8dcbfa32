"""From a GGUF file to a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.families.gguf import ROPE, GgufArchitecture, architecture_of, config_of, gguf_name, is_norm
from qsim.fields import Fields
from qsim.layouts import Notes
from qsim.layouts.gguf.file import GgufFile, GgufTensor, open_gguf
from qsim.layouts.gguf.tensors import from_blocks
from qsim.scheme import QuantizedTensor

from .checks import quantizable
from .config import ModelConfig
from .families import expected_tensors
from .gguf_tokenizer import tokenizer_of
from .model import Model
from .rope import RopeScaling, frequencies

# The one scaling that llama.cpp stores as a tensor, with the constants that every published model has.
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def load_gguf(path: str | Path) -> Model:
    """A model from a GGUF file, with its tokenizer.

    Linears and the embedding stay quantised in a type that is a scheme (Q4_0 to Q8_0, Q2_K to Q6_K, MXFP4); everything
    else becomes float32. The file is read one tensor at a time.

    Raises:
        QsimError: as `qsim.layouts.gguf.file.open_gguf`; an architecture that the decoder does not run, a tensor that
            is missing, of another shape or a type that is not read; the message names the file and the tensor or key.
        OSError: the file cannot be read.
    """
    file, notes = open_gguf(path), Notes()
    metadata = Fields(file.metadata, str(file.path))
    arch = architecture_of(metadata)
    data, unknown = config_of(metadata, {name: one.shape for name, one in file.tensors.items()})
    if unknown:
        notes.add(f"unknown keys of the file were ignored: {', '.join(key[:80] for key in unknown[:20])}")
    config = ModelConfig.from_dict(_with_rope(file, data), str(file.path))
    kept, used = quantizable(config) | {f"{config.tensor_names.embedding}.weight"}, {ROPE}
    tensors: dict[str, np.ndarray | QuantizedTensor] = {}
    for name, shape in expected_tensors(config).items():
        stored, expert = gguf_name(arch, name)
        one = file.tensors.get(stored)
        if one is not None and expert is not None:
            used.add(stored)
            one = one.part(expert)
        if one is None:
            raise QsimError(f"{file.path} has no tensor {stored}, {shape} by its metadata")
        if one.shape != shape:
            raise QsimError(f"{file.path}: tensor {stored} is {shape} by the file's metadata: got {one.shape}")
        used.add(stored)
        tensors[name] = _read(one, name, row_order(arch, config, stored), name in kept, notes)
        if arch.norm_offset and is_norm(stored):
            tensors[name] = np.asarray(tensors[name]) - np.float32(arch.norm_offset)
    left = sorted(file.tensors.keys() - used)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        notes.add(f"tensors that the architecture does not have were not used: {left[0]}{more}")
    tokenizer, why = tokenizer_of(metadata)
    if why is not None:
        notes.add(why)
    return Model(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        name=file.path.stem,
        path=file.path,
        provenance=f"{file.path.name}, {arch.name} GGUF",
        notes=notes.lines(),
    )


def _read(
    one: GgufTensor, name: str, order: np.ndarray | None, kept: bool, notes: Notes
) -> np.ndarray | QuantizedTensor:
    if one.type.scheme is not None and kept:
        raw = one.raw() if order is None else in_order(one.raw(), order)
        try:
            return from_blocks(one.type, raw, name.removesuffix(".weight"))
        except QsimError as error:
            raise QsimError(f"{one.path}: tensor {one.name}: {error}") from None
    if kept and one.type.values > 1:
        notes.add(f"matrices in {one.type.name} were read as float32", name.removesuffix(".weight"))
    values = one.values()
    return values if order is None else in_order(values, order)


def row_order(arch: GgufArchitecture, config: ModelConfig, stored: str) -> np.ndarray | None:
    """For each row of a stored tensor, by GGUF's name, which of Hugging Face's it is; None where they are the same."""
    parts = stored.split(".")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(parts[-2])
    if arch.paired and heads is not None:
        return paired(np.arange(heads * config.head_dim), heads)
    if arch.by_kind and parts[-2] == "attn_qkv":  # `convert_hf_to_gguf.py`: of each head its query, key and value
        rows = np.arange(3 * config.num_attention_heads * config.head_dim)
        return rows.reshape(config.num_attention_heads, 3, -1).swapaxes(0, 1).reshape(-1)
    return None


def in_order(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Stored rows in Hugging Face's order, by `row_order`."""
    out = np.empty_like(rows)
    out[order] = rows
    return out


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order, in which the two numbers that a rotation turns are neighbours; of each head Hugging
    Face has the first of all pairs, then the second."""
    parts = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def rope_factors(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """What llama.cpp divides the frequencies by, float32 (head_dim / 2,)."""
    plain, _ = frequencies(theta, head_dim, None, 1)
    scaled, _ = frequencies(theta, head_dim, scaling, 1)
    return (plain / scaled).astype(np.float32)


def _with_rope(file: GgufFile, data: Mapping[str, Any]) -> dict[str, Any]:
    """The config with Llama 3.1's rotary scaling, where the file has the tensor of its factors.

    Raises:
        QsimError: factors that are not those of Llama 3.1.
    """
    one = file.tensors.get(ROPE)
    if one is None:
        return dict(data)
    factors, head_dim = one.values().reshape(-1), data["head_dim"]
    if factors.size != head_dim // 2 or data["rope_scaling"] is not None:
        raise QsimError(f"{file.path}: tensor {ROPE} must have {head_dim // 2} factors, and no other rotary scaling")
    if (factors == 1).all():
        return dict(data)
    scaling = {**LLAMA3, "factor": float(np.round(factors.max(), 4))}
    found = RopeScaling.from_dict(scaling)
    # the factors are quotients of float32 numbers, computed by another program: a few units in the last place
    if found is None or not np.allclose(rope_factors(data["rope_theta"], head_dim, found), factors, rtol=1e-4, atol=0):
        raise QsimError(f"{file.path}: tensor {ROPE} holds other factors than those of Llama 3.1: not read here")
    return {**data, "rope_scaling": scaling}
