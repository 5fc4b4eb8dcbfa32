"""What stands between `linear` and the VNNI and AMX kernels: which products they do, and their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import native
from .activations import Activation
from .memory import aligned_empty
from .packing import PackedWeight

F32 = np.float32
TILES = 4  # tiles of 64 rows in one task: their sums, 64 KiB each at 256 tokens, stay in L2
TOKENS = 256
DEPTH = 512  # columns expanded at a time when a group is longer
_BF16_EXACT = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def _has_integer_zeros(packed: PackedWeight) -> bool:
    return packed.zero_bits <= 8


def _one_scale(packed: PackedWeight) -> bool:
    return packed.group == packed.padded_k


def vnni_fits(act: Activation, packed: PackedWeight) -> bool:
    """Integer activations without group scales, 4- or 8-bit integer weights with integer zero points."""
    return (act.integer and act.group is None and packed.kind == "uint" and packed.bits in (4, 8)
            and _has_integer_zeros(packed))  # fmt: skip


def amx_fits(act: Activation, packed: PackedWeight) -> bool:
    """Integers by integers, or values that BF16 holds exactly; groups of whole tiles."""
    if act.integer and packed.kind == "uint":
        return packed.group % 64 == 0 and _has_integer_zeros(packed)
    return act.format_name in _BF16_EXACT and packed.group % 32 == 0


def _weights(packed: PackedWeight) -> tuple[Any, ...]:
    return (packed.words, packed.scales, packed.scale_kind, packed.rows_per_scale, packed.zeros, packed.zero_bits,
            F32(packed.zero))  # fmt: skip


def vnni(act: Activation, packed: PackedWeight) -> np.ndarray:
    """The product by `vpdpbusd`."""
    from .linear import bias_of, columns

    tokens, padded = act.tokens, packed.padded_k
    step, integer = packed.group, _one_scale(packed)
    xq = np.zeros((tokens, padded), np.int8)
    xsum = np.empty((tokens, padded // step), np.int32)
    native.pack_words(columns(act.given, packed), packed.bits, step, xq, xsum)
    out = np.empty((tokens, packed.shape[0]), F32)
    multiply: Any = native.vnni_matmul
    multiply(*_weights(packed), xq.view(np.uint32), xsum, act.row, bias_of(packed), step, packed.bits, integer, out)
    return out


def amx(act: Activation, packed: PackedWeight) -> np.ndarray:
    """The product in tile registers, `TOKENS` tokens at a time."""
    from .linear import bias_of, columns

    tokens, padded = act.tokens, packed.padded_k
    x = columns(act.given, packed)
    step = min(packed.group, DEPTH)
    ints = act.integer and packed.kind == "uint"
    integer = ints and _one_scale(packed) and act.group is None
    if packed.group % step and not _one_scale(packed):  # a chunk must not cross a group
        step = 64 if ints else 32
    centred = packed.kind == "fp8" or (packed.zero_bits == 0 and packed.zero == 1 << (packed.bits - 1))
    full, needs_sums = not centred or act.group is not None, not centred
    out = np.empty((tokens, packed.shape[0]), F32)
    for m in range(0, tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = -(-here.shape[0] // 32) * 32
        xsum = np.zeros((-(-padded // step), rows), F32)
        xgroup = np.ones((padded // packed.group, rows if full else 1), F32)
        if act.group is not None:
            xgroup[:, : here.shape[0]] = act.group[m : m + TOKENS].T
        rest = (act.row[m : m + TOKENS], bias_of(packed), packed.group, step, packed.number)
        last = (TILES, native.TILE_TABLE, out[m : m + TOKENS])
        if ints:
            xa = aligned_empty((rows // 16, padded // 64, 16, 64), np.int8)
            if here.shape[0] == rows and here.shape[1] == padded and not needs_sums:
                native.pack_whole_tiles(here.view(np.int64), xa.view(np.int64))
            else:
                native.pack_tiles_int8(here, step, needs_sums, xa, xsum)
            multiply: Any = native.amx_int_matmul
            multiply(*_weights(packed), xa, xsum, xgroup, *rest, integer, full, *last)
        else:
            xh = aligned_empty((rows // 16, padded // 32, 16, 32), np.uint16)
            native.pack_tiles_bf16(here.view(np.uint32), step, needs_sums, xh, xsum)
            multiply = native.amx_bf16_matmul
            multiply(*_weights(packed), xh, xsum, xgroup, *rest, full, *last)
    return out
