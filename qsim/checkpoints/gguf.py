"""From a model to a GGUF file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.families.gguf import ROPE, ROUTER, GgufArchitecture, architecture_for, gguf_name, is_norm, metadata_of
from qsim.layouts import Notes
from qsim.layouts.gguf.file import Planned, is_gguf, write_gguf
from qsim.layouts.gguf.tensors import to_blocks, type_of
from qsim.layouts.gguf.types import TensorType, get_type
from qsim.layouts.plain import narrowest, rounded
from qsim.models import Model
from qsim.models.checks import quantizable
from qsim.models.gguf import rope_factors, row_order
from qsim.models.gguf_tokenizer import tokenizer_metadata
from qsim.scheme import QuantizedTensor

from .checks import layer_of
from .folder import copy_beside, new_folder

Progress = Callable[[int, int, str], None]
_TYPE_OF = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_FILE = "model.gguf"
# What llama.cpp takes where rows do not divide into blocks of 256; for Q2_K and Q3_K it takes IQ4_NL, of Q4_0's size.
_SMALLER = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


@dataclass(frozen=True, kw_only=True)
class GgufWritten:
    """What was written: the files, the bytes of all tensors, and what a user must know."""

    files: tuple[str, ...]
    total_bytes: int
    notes: tuple[str, ...]


def write_model(
    model: Model, path: Path, *, overwrite: bool, dequantize: bool, dtype: str | None, tensor_type: str | None,
    progress: Progress | None, add_files: Callable[[Path], object] | None,
) -> GgufWritten:  # fmt: skip
    """Write a model as a GGUF file; see `qsim.checkpoints.write`. The caller has refused layers that do not fit.

    Arguments:
        path: the file, where it ends in `.gguf`; else a folder with `model.gguf`.

    Raises:
        QsimError: a family that llama.cpp does not have here; a layer that is quantised already, to another type.
        OSError: as `qsim.files.write_whole`.
    """
    notes, arch = Notes(), architecture_for(model.config.to_dict()["model_type"])
    metadata = _metadata(model, notes)
    wanted = None if tensor_type is None else get_type(tensor_type)
    if dtype is not None and wanted is not None:
        raise QsimError(f"tensor_type and dtype are one choice: got {tensor_type!r} and {dtype!r}")
    stacks: dict[str, list[Planned]] = {}
    for name, tensor in model.tensors.items():
        one = _plan(model, arch, name, tensor, wanted, dequantize, dtype, notes)
        stacks.setdefault(one.name, []).append(one)
    plans = [_stacked(arch, ones) for ones in stacks.values()]
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.rope_type == "llama3":
        factors = rope_factors(model.config.rope_theta, model.config.head_dim, scaling)
        f32 = get_type("f32")
        plans.append(Planned(name=ROPE, shape=factors.shape, type=f32, blocks=partial(f32.quantize, factors)))
    most = Counter(one.type.name for one in plans if len(one.shape) > 1).most_common(1)[0][0]
    metadata["general.description"] = f"weights mostly {most}"
    with _place(path, overwrite) as (file, folder):
        write_gguf(file, metadata, plans, progress)
        files = [file.name]
        if folder is not None:
            beside, left = copy_beside(model.path, folder)
            if left:
                notes.add(f"not copied, because they are links or no regular files: {', '.join(left)}")
            if add_files is not None:
                add_files(folder)
            files = [*beside, *(one.name for one in folder.iterdir() if one.name not in beside)]
        elif add_files is not None:
            raise QsimError(f"{path} is one file: files beside it need a folder, so give a path without .gguf")
    return GgufWritten(files=tuple(sorted(files)), total_bytes=sum(p.nbytes for p in plans), notes=notes.lines())


@contextmanager
def _place(path: Path, overwrite: bool) -> Iterator[tuple[Path, Path | None]]:
    """The file to write, and the hidden folder that it is in, if any."""
    if path.suffix != ".gguf":
        with new_folder(path, overwrite=overwrite) as folder:
            yield folder / _FILE, folder
        return
    if os.path.lexists(path):
        if not is_gguf(path):
            raise QsimError(f"{path} is there and no GGUF file: it is not replaced; choose another name")
        if not overwrite:
            raise QsimError(f"{path} exists: choose another name, or overwrite=True to replace it")
    yield path, None


def _metadata(model: Model, notes: Notes) -> dict[str, Any]:
    config = model.config
    found, said = metadata_of(config.to_dict(), config.head_dim)
    out = {**found, "general.name": model.name or "model", "general.quantization_version": 2, "general.alignment": 32}
    keys, why = tokenizer_metadata(model.tokenizer, config.vocab_size)
    for text in (*said, *([] if why is None else [why])):
        notes.add(text)
    if config.bos_token_id is not None and config.bos_token_id >= 0:
        keys["tokenizer.ggml.bos_token_id"] = config.bos_token_id
    if config.eos_token_ids and config.eos_token_ids[0] >= 0:
        keys["tokenizer.ggml.eos_token_id"] = config.eos_token_ids[0]
        if len(config.eos_token_ids) > 1:
            notes.add("a GGUF file has one token that ends a text: the others were left out")
    return out | keys


def _plan(
    model: Model, arch: GgufArchitecture, name: str, tensor: np.ndarray | QuantizedTensor, wanted: TensorType | None,
    dequantize: bool, dtype: str | None, notes: Notes,
) -> Planned:  # fmt: skip
    """How a tensor is stored: quantised ones as they are, norms and biases in float32, matrices as asked."""
    stored, _ = gguf_name(arch, name)
    if arch.norm_offset and is_norm(stored):
        tensor = np.asarray(tensor) + np.float32(arch.norm_offset)
    order = row_order(arch, model.config, stored)
    if isinstance(tensor, QuantizedTensor) and not dequantize:
        kind = type_of(tensor.scheme)
        assert kind is not None, "the caller has refused it"
        if wanted is not None and wanted.name != kind.name:
            raise QsimError(
                f"layer {layer_of(name)} is quantised already, as {kind.name}: give dequantize=True to round its "
                f"values to {wanted.name}"
            )
        return _planned(stored, tensor.shape, kind, partial(to_blocks, tensor), order)
    if len(tensor.shape) < 2 or stored.endswith(ROUTER):
        return _planned(stored, tensor.shape, get_type("f32"), partial(_blocks, tensor, get_type("f32"), name), order)
    if wanted is None:
        kind = get_type(_TYPE_OF[_dtype_of(model, tensor, dtype, name)])
        return _planned(stored, tensor.shape, kind, partial(_blocks, tensor, kind, name), order)
    kind = type_for(wanted, tensor.shape[-1])
    if kind is not wanted:
        notes.add(f"rows that are no multiple of {wanted.values} are stored in {kind.name}", layer_of(name))
    elif name not in quantizable(model.config):
        notes.add(f"the embedding is stored in {kind.name} too")
    return _planned(stored, tensor.shape, kind, partial(_blocks, tensor, kind, name), order)


def type_for(wanted: TensorType, columns: int) -> TensorType:
    """The type of a matrix with so many values in a row: the one wanted, or llama.cpp's next where its blocks
    do not divide a row."""
    if columns % wanted.values == 0:
        return wanted
    return get_type(_SMALLER.get(wanted.name, "f16") if columns % 32 == 0 else "f16")


def _stacked(arch: GgufArchitecture, ones: list[Planned]) -> Planned:
    """One tensor of the experts' matrices; what is no expert's is one alone."""
    first = ones[0]
    if not first.name.endswith("_exps.weight"):
        return first
    odd = next((one for one in ones if one.type is not first.type), None)
    if odd is not None:
        raise QsimError(f"tensor {first.name} holds all experts in one type: got {first.type.name} and {odd.type.name}")
    return Planned(
        name=first.name,
        shape=(len(ones), *first.shape),
        type=first.type,
        blocks=lambda: np.concatenate([one.blocks().reshape(1, first.shape[0], -1) for one in ones]),
    )


def _planned(
    name: str, shape: tuple[int, ...], kind: TensorType, blocks: Callable[[], np.ndarray], order: np.ndarray | None
) -> Planned:
    made = blocks if order is None else (lambda: blocks().reshape(shape[0], -1)[order])
    return Planned(name=name, shape=shape, type=kind, blocks=made)


def _blocks(tensor: np.ndarray | QuantizedTensor, kind: TensorType, name: str) -> np.ndarray:
    values = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
    try:
        return kind.quantize(np.asarray(values, np.float32))
    except QsimError as error:
        raise QsimError(f"tensor {name}: {error}") from None


def _dtype_of(model: Model, tensor: np.ndarray | QuantizedTensor, dtype: str | None, name: str) -> str:
    """The dtype of a matrix that is not quantised: the one asked for, or the narrowest that holds it exactly."""
    if dtype is not None:
        return rounded(tensor, dtype, name)[0].dtype
    own = [model.config.dtype] if model.config.dtype in ("bfloat16", "float16") else []
    return narrowest(tensor, (*own, "bfloat16", "float16"))[0].dtype
