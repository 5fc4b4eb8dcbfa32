"""A quantised tensor as arrays and in a file: codes packed, scales and zero points as the bits of their formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.files import write_bytes, write_whole
from qsim.formats import BlockFormat, IntFormat

from . import superblock
from .bits import bits_of, codes_of, pack_bits, restored, stored, unpack_bits
from .scheme import Scheme
from .tensor import QuantizedTensor
from .tensor_scheme import TensorScheme

_SINGULAR = {"zeros": "zero point", "minima": "minimum", "super_scales": "scale of superblocks",
             "super_minima": "minimum of superblocks"}  # fmt: skip


def to_arrays(q: QuantizedTensor) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What is stored of it: packed codes, shape, scales and zero points in their formats, and a few texts."""
    arrays = {"codes": pack_bits(q.codes, q.element.bits), "shape": np.array(q.shape, dtype=np.int64)}
    for label, fmt in _scale_formats(q.tensor_scheme).items():
        if isinstance(fmt, IntFormat):
            whole = q.scale_codes if label == "scales" else superblock.unsigned(q.integers_of(label), fmt)
            arrays[label] = pack_bits(whole, fmt.bits)
            arrays[f"super_{label}"] = _stored(q, f"super_{label}", superblock.ABOVE)
        else:
            arrays[label] = stored(q.scale_codes, fmt) if label == "scales" else _stored(q, label, fmt)
    if q.zeros is not None:
        zero_format: Any = q.tensor_scheme.zero_point_format
        integer = isinstance(zero_format, IntFormat)
        arrays["zeros"] = pack_bits(q.zeros, zero_format.bits) if integer else _stored(q, "zeros", zero_format)
    if q.group_index is not None:
        arrays["group_index"] = q.group_index.astype(np.int32)
    for key in ("tensor_scale", "input_scale"):
        if getattr(q, key) is not None:
            arrays[key] = np.array([getattr(q, key)], dtype=np.float32)
    return arrays, {"scheme": q.scheme.to_toml(), "part": q.part, "name": q.name}


def _stored(q: QuantizedTensor, label: str, fmt: Any) -> np.ndarray:
    return stored(bits_of(getattr(q, label), fmt, _SINGULAR[label], q.name), fmt)


def from_arrays(arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> QuantizedTensor:
    """The inverse of `to_arrays`: equal in codes, scales, zero points and scheme."""
    scheme = Scheme.from_toml(meta["scheme"])
    part: TensorScheme = getattr(scheme, meta["part"])
    assert part.granularity is not None
    shape = tuple(int(n) for n in arrays["shape"])
    element = part.format.element if isinstance(part.format, BlockFormat) else part.format
    region = part.granularity.scale_shape(shape)
    zeros = None
    if "zeros" in arrays:
        zero_format = part.zero_point_format
        if isinstance(zero_format, IntFormat):
            zeros = unpack_bits(arrays["zeros"], zero_format.bits, region)
        else:
            zeros = restored(arrays["zeros"], zero_format)
    more: dict[str, np.ndarray] = {}
    for label, fmt in _scale_formats(part).items():
        if isinstance(fmt, IntFormat):
            above = restored(arrays[f"super_{label}"], superblock.ABOVE)
            whole = unpack_bits(arrays[label], fmt.bits, region)
            more[f"super_{label}"] = above
            if label == "scales":
                more["scale_codes"] = whole
            else:
                more[label] = superblock.products(superblock.signed(whole, fmt), above)
        elif label == "scales":
            more["scale_codes"] = codes_of(arrays[label], fmt)
        else:
            more[label] = restored(arrays[label], fmt)
    scalars = {k: float(arrays[k][0]) for k in ("tensor_scale", "input_scale") if k in arrays}
    return QuantizedTensor(
        codes=unpack_bits(arrays["codes"], element.bits, shape),
        **more,
        zeros=zeros,
        scheme=scheme,
        part=meta["part"],  # type: ignore[arg-type]
        group_index=arrays.get("group_index"),
        name=meta.get("name", ""),
        tensor_scale=scalars.get("tensor_scale"),
        input_scale=scalars.get("input_scale"),
    )


def save(q: QuantizedTensor, path: Path) -> None:
    """Write to one file, `.safetensors` or `.npz`, which is there as a whole or not at all; see `to_arrays`.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written.
    """
    arrays, meta = to_arrays(q)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save as in_bytes

        write_bytes(path, in_bytes(arrays, metadata=meta))
    elif path.suffix == ".npz":
        both: Any = {**arrays, **{f"meta_{k}": np.array(v) for k, v in meta.items()}}
        write_whole(path, lambda file: np.savez(file, **both))
    else:
        raise QsimError(f"a quantised tensor must be saved as .safetensors or .npz: got {path.name!r}")


def load(path: Path) -> QuantizedTensor:
    """The inverse of `save`: equal in codes, scales, zero points and scheme."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            meta = dict(file.metadata())
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    elif path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {k: file[k] for k in file.files if not k.startswith("meta_")}
            meta = {k[5:]: str(file[k]) for k in file.files if k.startswith("meta_")}
    else:
        raise QsimError(f"a quantised tensor must be saved as .safetensors or .npz: got {path.name!r}")
    return from_arrays(arrays, meta)


def _scale_formats(part: TensorScheme) -> dict[Any, Any]:
    """The formats of scales and, where there are some, minima."""
    both = {"scales": part.scale_format, "minima": part.minimum_format}
    return {label: fmt for label, fmt in both.items() if fmt is not None}
