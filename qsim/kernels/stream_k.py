"""Stream-K and split-K: the finite set of outputs that a fused kernel may return when parts of K finish in any order.

A block of threads that has summed its part of K runs the epilogue, rounds to BF16, and adds that to the output in BF16.
The parts are fixed by shape and tile; only their order is not. humming-kernels gives each block four steps of its tile
in K, where there are enough blocks: parts of 256 for tiles of 64, of 1024 for tiles of 256 (`reports/fused_bits.md`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError

from .fused_gemm import columns_of, epilogue, operands_of, sums
from .packing import PackedWeight
from .pipelines import Pipeline

F32 = np.float32
MOST_PARTS = 8
"""Parts whose orders are followed: 8 have 40320 orders and 256 subsets."""


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


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """BF16 sum of BF16 values: the float32 sum of two BF16 numbers rounded again, which equals one rounding because
    float32 has more than twice the bits of BF16 and two more."""
    with np.errstate(all="ignore"):
        bits = (a + b).view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # the low half of a NaN is 0: it stays one
    bits &= np.uint32(0xFFFF0000)
    return bits.view(F32)


def _distinct(values: np.ndarray) -> np.ndarray:
    """(V, ...) ascending values of each element without repeats, the last one repeated to the longest list."""
    ordered = np.sort(values, axis=0)
    new = np.concatenate((np.ones((1, *ordered.shape[1:]), bool), ordered[1:] != ordered[:-1]))
    place = new.cumsum(axis=0) - 1
    most = int(place[-1].max()) + 1 if place.size else 1
    found = np.repeat(ordered[-1][None], most, axis=0)
    np.put_along_axis(found, place, ordered, axis=0)
    return found


def possible_outputs(parts: np.ndarray) -> np.ndarray:
    """Every value that each element may have: all orders in which its parts can be added.

    Arguments:
        parts: (P, M, N) from `partial_outputs`, P at most MOST_PARTS.

    Returns:
        (V, M, N) float32, ascending for each element, the last one repeated. V = 1 means that the answer is unique.

    Raises:
        QsimError: more parts.
    """
    count = len(parts)
    if not 1 <= count <= MOST_PARTS:
        raise QsimError(f"the orders of 1 to {MOST_PARTS} parts can be followed: got {count}")
    reached = {1 << i: parts[i][None] for i in range(count)}
    for size in range(2, count + 1):
        larger: dict[int, list[np.ndarray]] = {}
        for subset, values in reached.items():
            if subset.bit_count() != size - 1:
                continue
            for i in range(count):
                if not subset >> i & 1:
                    larger.setdefault(subset | 1 << i, []).append(_add(values, parts[i][None]))
        reached = {subset: _distinct(np.concatenate(found)) for subset, found in larger.items()}
    return reached[(1 << count) - 1]


def is_possible(y: Any, parts: np.ndarray) -> np.ndarray:
    """Whether each element of a recorded output (M, N) float32 is one of its possible values."""
    return (possible_outputs(parts) == np.asarray(y, F32)[None]).any(axis=0)
