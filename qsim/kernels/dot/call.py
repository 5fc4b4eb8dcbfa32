"""From a packed weight and activations to the arguments of `many`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim._native.memory import aligned_empty

from ..activations import Activation
from ..fits import are_integers, folds
from ..packing import TOKENS, PackedWeight, tiles_per_task
from ..stream.prepare import BF16, BYTES
from . import many

F32 = np.float32
# Columns expanded at a time, into L1: 32 KiB of bytes or BF16. 512 columns are also few enough for sums of u8 x s8
# products to be exact in float32.
BYTES_DEPTH, BF16_DEPTH = 512, 256
_SUMS = {True: np.empty((0, 0), np.int32), False: np.empty((0, 0), F32)}


def multiply(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The product of many tokens by `vpdpbusd` or `vdpbf16ps`; x in the order of the packed columns."""
    padded, ints = packed.padded_k, are_integers(act, packed)
    folded = not ints and folds(act, packed)
    depth = BYTES_DEPTH if ints else BF16_DEPTH
    step = depth if folded else min(packed.group, depth)
    exact = ints and packed.one_scale and act.group is None
    tiles, out = tiles_per_task(packed), np.empty((act.tokens, packed.shape[0]), F32)
    groups = padded // packed.group
    spans = padded if folded else packed.group  # what a slice must not cross
    chunks = padded // spans * -(-spans // step)
    pack: Any = many.pack
    product: Any = many.dot_matmul
    for m in range(0, act.tokens, TOKENS):
        here = x[m : m + TOKENS]
        rows = max(here.shape[0] + here.shape[0] % 2, 4)
        xw, xsum = aligned_empty((rows, padded), np.int8 if ints else np.uint16), np.zeros((rows, chunks), F32)
        pack(here, spans, step, xw, xsum)
        xgroup = np.ones((rows, groups), F32)
        if act.group is not None:
            xgroup[: here.shape[0]] = act.group[m : m + TOKENS]
        product(packed.weights, xw.view(BYTES if ints else BF16), xsum, xgroup, row[m : m + TOKENS], step, folded,
                 _SUMS[exact], exact, tiles, out[m : m + TOKENS])  # fmt: skip
    return out
