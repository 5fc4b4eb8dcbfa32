"""A digest of a model: every byte of its weights, and everything that decides what it computes.

SHA-256 over pieces of 16 MiB, side by side on the cores: hashing lets other threads run, and most processors have
instructions for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from qsim._native.threads import for_each
from qsim.scheme import QuantizedTensor

from .model import Model

_PIECE = 16 << 20  # bytes


def fingerprint(model: Model) -> str:
    """32 hexadecimal digits that differ when any weight, code, scale, zero point or setting of the model differs."""
    total = hashlib.sha256()
    settings = (model.config, model.kv_cache, model.attention, model.activation_format,
                sorted((k, sorted(v.items())) for k, v in model.linear_settings.items()))  # fmt: skip
    total.update(repr(settings).encode())

    def pieces() -> Iterator[np.ndarray]:
        for name in sorted(model.tensors):
            texts, arrays = _parts(model.tensors[name])
            total.update(repr((name, texts, [(a.dtype.str, a.shape) for a in arrays])).encode())
            for array in arrays:
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                yield from (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))

    flat = list(pieces())
    digests = [b""] * len(flat)

    def hash_piece(i: int) -> None:
        digests[i] = hashlib.sha256(flat[i].data).digest()

    for_each(len(flat), hash_piece, threads=os.cpu_count())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()[:32]


def _parts(tensor: Any) -> tuple[Any, list[np.ndarray]]:
    """What an array does not say of a tensor, and its arrays."""
    if not isinstance(tensor, QuantizedTensor):
        return None, [tensor]
    more = [array for label, array in tensor.arrays.items() if label not in ("codes", "scale_codes")]
    texts = (tensor.scheme.to_toml(), tensor.part, tensor.tensor_scale, tensor.input_scale,
             tensor.zeros is not None, tensor.group_index is not None)  # fmt: skip
    return texts, [tensor.codes, tensor.scales, *more]
