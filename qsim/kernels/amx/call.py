"""From a packed weight and activations to the arguments of `many`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim._native.memory import aligned_empty

from ..activations import Activation
from ..fits import are_integers, folds
from ..packing import TOKENS, PackedWeight, tiles_per_task
from . import many

F32 = np.float32
DEPTH = 512  # columns expanded at a time: 32 KiB of bytes, 64 KiB of BF16


def multiply(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The product in tile registers, `TOKENS` tokens at a time."""
    product: Any = many.amx_matmul
    tokens, padded, ints = act.tokens, packed.padded_k, are_integers(act, packed)
    folded = not ints and folds(act, packed)
    step = DEPTH if folded else min(packed.group, DEPTH)
    integer = ints and packed.one_scale and act.group is None
    if packed.group % step and not packed.one_scale and not folded:  # a chunk must not cross a group
        step = 64 if ints else 32
    centred = packed.kind == "float" or (packed.zero_bits == 0 and packed.zero == 1 << (packed.bits - 1))
    full, needs_sums = not centred or act.group is not None, not centred
    out, tiles = np.empty((tokens, packed.shape[0]), F32), tiles_per_task(packed)
    for m in range(0, tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = -(-here.shape[0] // 32) * 32
        xsum = np.zeros((-(-padded // step), rows), F32)
        xgroup = np.ones((padded // packed.group, rows if full else 1), F32)
        if act.group is not None:
            xgroup[:, : here.shape[0]] = act.group[m : m + TOKENS].T
        rest = (row[m : m + TOKENS], step)
        last = (tiles, many.TILE_TABLE, out[m : m + TOKENS])
        if ints:
            xa = aligned_empty((rows // 16, padded // 64, 16, 64), np.int8)
            if here.shape[0] == rows and here.shape[1] == padded and not needs_sums:
                many.pack_whole_tiles(here.view(np.int64), xa.view(np.int64))
            else:
                many.pack_tiles(here, step, needs_sums, xa, xsum)
            product(packed.weights, xa, xsum, xgroup, *rest, integer, full, *last)
        else:
            xh = aligned_empty((rows // 16, padded // 32, 16, 32), np.uint16)
            many.pack_tiles(here, step, needs_sums, xh, xsum)
            product(packed.weights, xh, xsum, xgroup, *rest, folded, full, *last)
    return out
