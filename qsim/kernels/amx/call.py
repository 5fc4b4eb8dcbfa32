"""From a packed weight and activations to the arguments of `int8` and `bf16`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim._native.memory import aligned_empty

from ..activations import Activation
from ..fits import are_integers, folds
from ..packing import TOKENS, PackedWeight, tiles_per_task
from . import bf16, int8
from .ir import TILE_TABLE

F32 = np.float32
DEPTH = 512  # columns expanded at a time: 32 KiB of bytes, 64 KiB of BF16


def multiply(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The product in tile registers, `TOKENS` tokens at a time."""
    ints, padded, weights = are_integers(act, packed), packed.padded_k, packed.weights
    folded = not ints and folds(act, packed)
    step = DEPTH if folded else min(packed.group, DEPTH)
    if packed.group % step and not packed.one_scale and not folded:  # a chunk must not cross a group
        step = 64 if ints else 32
    chunks = -(-padded // step)
    integer = ints and packed.one_scale and act.group is None
    centred = packed.kind == "float" or (packed.zero_bits == 0 and packed.zero == 1 << (packed.bits - 1))
    # zero points that go into weights expanded to BF16
    whole = not ints and not centred and not folded and packed.zero_bits <= 8 and float(packed.zero).is_integer()
    needs_sums = not centred and not whole
    full = needs_sums or act.group is not None
    out, tiles = np.empty((act.tokens, packed.shape[0]), F32), tiles_per_task(packed)
    for m in range(0, act.tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = -(-here.shape[0] // 32) * 32
        xsum = np.zeros((chunks, rows), F32)
        xgroup = np.ones((padded // packed.group, rows if full else 1), F32)
        if act.group is not None:
            xgroup[:, : here.shape[0]] = act.group[m : m + TOKENS].T
        last: tuple[Any, ...] = (tiles, TILE_TABLE, out[m : m + TOKENS])
        product: Any = int8.int8_matmul if ints else bf16.bf16_matmul
        if ints:
            xa = aligned_empty((rows // 16, padded // 64, 16, 64), np.int8)
            if here.shape[0] == rows and here.shape[1] == padded and not needs_sums:
                int8.pack_whole_tiles(here.view(np.int64), xa.view(np.int64))
            else:
                int8.pack_tiles(here, step, needs_sums, xa, xsum)
            product(weights, xa, xsum, xgroup, row[m : m + TOKENS], step, integer, full, *last)
        else:
            xa = aligned_empty((chunks, rows // 16, step // 32, 16, 32), np.uint16)
            bf16.pack_chunks(here, step, needs_sums, xa, xsum)
            product(weights, xa, xsum, xgroup, row[m : m + TOKENS], folded, whole, full, *last)
    return out
