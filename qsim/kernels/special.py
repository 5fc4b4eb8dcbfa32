"""What stands between `linear` and the VNNI, BF16 and AMX kernels: which products they do, and their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim._native.memory import aligned_empty

from .activations import Activation
from .packing import PackedWeight, tiles_per_task
from .prepare import BF16, BYTES

F32 = np.float32
TILES = 4  # tiles of 64 rows in one task: their sums, 64 KiB each at 256 tokens, stay in L2
TOKENS = 256
# Columns expanded at a time, into L1: 32 KiB of bytes or BF16. 512 columns are also few enough for sums of u8 x s8
# products to be exact in float32.
BYTES_DEPTH, BF16_DEPTH, AMX_DEPTH = 512, 256, 512
_BF16_EXACT = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2",
               "mxfp4")  # fmt: skip
_SUMS = {True: np.empty((0, 0), np.int32), False: np.empty((0, 0), F32)}


def are_integers(act: Activation, packed: PackedWeight) -> bool:
    """Integers by integers, with integer zero points."""
    return act.integer and packed.kind == "uint" and packed.zero_bits <= 8


def are_bf16(act: Activation) -> bool:
    """Whether every activation is a BF16 number. A group's scale comes after the sums."""
    return act.format_name in _BF16_EXACT


def streams_bytes(act: Activation, packed: PackedWeight) -> bool:
    """Whether `vpdpbusd` multiplies these words as they are."""
    return are_integers(act, packed) and packed.bits in (4, 8)


def streams_bf16(act: Activation, packed: PackedWeight) -> bool:
    """Whether `vdpbf16ps` multiplies these words after a table look-up: 4-bit codes."""
    return are_bf16(act) and packed.bits == 4


def amx_fits(act: Activation, packed: PackedWeight) -> bool:
    """Groups of whole tiles."""
    if are_integers(act, packed):
        return packed.group % 64 == 0
    return are_bf16(act) and packed.padded_k % 32 == 0 and (packed.group % 32 == 0 or _folds(act, packed))


def _folds(act: Activation, packed: PackedWeight) -> bool:
    """Whether scales go into the weights before the product. A group's scale of the activation comes after its sums."""
    return packed.folds and act.group is None


def dots(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The product of many tokens by `vpdpbusd` or `vdpbf16ps`; x in the order of the packed columns."""
    from . import native

    padded, ints = packed.padded_k, are_integers(act, packed)
    folded = not ints and _folds(act, packed)
    depth = BYTES_DEPTH if ints else BF16_DEPTH
    step = depth if folded else min(packed.group, depth)
    exact = ints and packed.one_scale and act.group is None
    tiles, out = tiles_per_task(packed, TILES), np.empty((act.tokens, packed.shape[0]), F32)
    groups = padded // packed.group
    spans = padded if folded else packed.group  # what a slice must not cross
    chunks = padded // spans * -(-spans // step)
    pack: Any = native.pack
    multiply: Any = native.dot_matmul
    for m in range(0, act.tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = max(here.shape[0] + here.shape[0] % 2, 4)
        xw, xsum = aligned_empty((rows, padded), np.int8 if ints else np.uint16), np.zeros((rows, chunks), F32)
        pack(here, spans, step, xw, xsum)
        xgroup = np.ones((rows, groups), F32)
        if act.group is not None:
            xgroup[: here.shape[0]] = act.group[m : m + TOKENS]
        multiply(*packed.plan, xw.view(BYTES if ints else BF16), xsum, xgroup, row[m : m + TOKENS], step, folded,
                 _SUMS[exact], exact, tiles, out[m : m + TOKENS])  # fmt: skip
    return out


def amx(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The product in tile registers, `TOKENS` tokens at a time."""
    from . import amx as kernels

    multiply: Any = kernels.amx_matmul
    tokens, padded, ints = act.tokens, packed.padded_k, are_integers(act, packed)
    folded = not ints and _folds(act, packed)
    step = AMX_DEPTH if folded else min(packed.group, AMX_DEPTH)
    integer = ints and packed.one_scale and act.group is None
    if packed.group % step and not packed.one_scale and not folded:  # a chunk must not cross a group
        step = 64 if ints else 32
    centred = packed.kind == "float" or (packed.zero_bits == 0 and packed.zero == 1 << (packed.bits - 1))
    full, needs_sums = not centred or act.group is not None, not centred
    out, tiles = np.empty((tokens, packed.shape[0]), F32), tiles_per_task(packed, TILES)
    for m in range(0, tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = -(-here.shape[0] // 32) * 32
        xsum = np.zeros((-(-padded // step), rows), F32)
        xgroup = np.ones((padded // packed.group, rows if full else 1), F32)
        if act.group is not None:
            xgroup[:, : here.shape[0]] = act.group[m : m + TOKENS].T
        rest = (row[m : m + TOKENS], step)
        last = (tiles, kernels.TILE_TABLE, out[m : m + TOKENS])
        if ints:
            xa = aligned_empty((rows // 16, padded // 64, 16, 64), np.int8)
            if here.shape[0] == rows and here.shape[1] == padded and not needs_sums:
                kernels.pack_whole_tiles(here.view(np.int64), xa.view(np.int64))
            else:
                kernels.pack_tiles(here, step, needs_sums, xa, xsum)
            multiply(*packed.plan, xa, xsum, xgroup, *rest, integer, full, *last)
        else:
            xh = aligned_empty((rows // 16, padded // 32, 16, 32), np.uint16)
            kernels.pack_tiles(here, step, needs_sums, xh, xsum)
            multiply(*packed.plan, xh, xsum, xgroup, *rest, folded, full, *last)
    return out
