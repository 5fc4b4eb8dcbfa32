"""Stream-K and split-K: the finite set of outputs that a fused kernel may return when parts of K finish in any order.

A block of threads that has summed its part of K runs the epilogue, rounds to BF16, and adds that to the output in BF16.
The parts are fixed by shape and tile; only their order is not. humming-kernels gives each block four steps of its tile
in K, where there are enough blocks: parts of 256 for tiles of 64, of 1024 for tiles of 256 (`reports/fused_bits.md`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim._native.threads import for_each
from qsim.errors import QsimError
from qsim.formats import decode, encode

from . import orders
from .fused_gemm import columns_of, epilogue, operands_of, sums
from .packing import PackedWeight
from .pipelines import Pipeline

F32 = np.float32
MOST_PARTS = 16
"""Parts whose orders are followed: 16 have 2 * 10^13 orders, but 65536 subsets."""
_ELEMENTS = 64  # that one thread follows in turn


def partial_outputs(
    x: Any, packed: PackedWeight, kernel: str | Pipeline, length: int, *, warps: int = 1, stretch: int = 0
) -> np.ndarray:
    """What each part of K alone gives.

    Arguments:
        x, packed, kernel: as for `linear(..., exact=True, kernel=...)`, x of two axes.
        length: K of a part, a multiple of the group size of the weight and of the kernel's chain; the last part may be
            shorter.
        warps, stretch: so many warps share a block's part, each taking stretches of K in turn; their float32 registers
            are added before the epilogue. humming: the tile's K over the warp's, and the warp's.

    Returns:
        (P, M, N) float32 that holds BF16 values.

    Raises:
        QsimError: as `linear`; a length that cuts a group; a kernel that does not add BF16 parts.
    """
    row, a, scales, b, offset = operands_of(x, packed, kernel)
    k, q = packed.shape[1], packed.source
    unit = int(np.lcm.reduce([row.chain or 32, q.tensor_scheme.group_size or 1]))
    if length < 1 or length % unit:
        raise QsimError(f"a part of K of {row.name} must be a multiple of {unit}: got {length}")
    if row.output != "bfloat16" or row.slices > 1 or (scales is not None and scales.ndim == 2):
        raise QsimError(f"{row.name} is not known to add parts of K in BF16")
    if warps > 1 and (
        stretch < 1 or k % (warps * stretch) or length % (warps * stretch) or stretch % (row.chain or 32)
    ):
        raise QsimError(f"{warps} warps must share K={k} and parts of {length} in whole stretches: got {stretch}")
    parts = []
    for start in range(0, k, length):
        here = np.arange(start, min(start + length, k))
        shares = [here] if warps == 1 else list(here.reshape(-1, warps, stretch).transpose(1, 0, 2).reshape(warps, -1))
        total = sums(row, a[:, shares[0]], b[:, shares[0]], scales, columns_of(q, shares[0]))
        for share in shares[1:]:
            total = total + sums(row, a[:, share], b[:, share], scales, columns_of(q, share))
        parts.append(epilogue(row, total, scales, q, offset))
    return np.stack(parts)


def possible_outputs(parts: np.ndarray) -> np.ndarray:
    """Every value that each element may have: all orders in which its parts can be added.

    Arguments:
        parts: (P, M, N) from `partial_outputs`, P at most MOST_PARTS. Of 16 parts an element takes some 0.2 s; it
            takes half as long for each part less.

    Returns:
        (V, M, N) float32, ascending for each element, the last one repeated. V = 1 means that the answer is unique.

    Raises:
        QsimError: more parts; an element with more than 1024 values.
    """
    count = len(parts)
    if not 1 <= count <= MOST_PARTS:
        raise QsimError(f"the orders of 1 to {MOST_PARTS} parts can be followed: got {count}")
    elements = np.ascontiguousarray(
        np.asarray(encode(parts.reshape(count, -1).T, "bfloat16", overflow="nonsaturating"))
    )
    found: list[np.ndarray] = [np.empty(0, F32)] * len(elements)

    def follow(piece: int) -> None:
        values = np.empty((1 << count, orders.MOST_VALUES), np.uint16)
        counts = np.zeros(1 << count, np.int64)
        for i in range(piece * _ELEMENTS, min((piece + 1) * _ELEMENTS, len(elements))):
            orders.reachable(elements[i], values, counts)
            if counts[-1] > orders.MOST_VALUES:
                raise QsimError(f"an element may have at most {orders.MOST_VALUES} values to be listed: got more")
            found[i] = np.asarray(decode(values[-1, : counts[-1]], "bfloat16"), F32)

    for_each(-(-len(elements) // _ELEMENTS), follow)
    most = max((len(values) for values in found), default=1)
    out = np.empty((most, len(elements)), F32)
    for i, values in enumerate(found):
        out[:, i] = np.concatenate((values, np.repeat(values[-1:], most - len(values))))
    return out.reshape(most, *parts.shape[1:])


def is_possible(y: Any, parts: np.ndarray) -> np.ndarray:
    """Whether each element of a recorded output (M, N) float32 is one of its possible values."""
    return (possible_outputs(parts) == np.asarray(y, F32)[None]).any(axis=0)
