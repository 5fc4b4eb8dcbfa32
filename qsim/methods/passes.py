"""Calibration windows through a block: of small models on several threads, with the same bits for any number of them.

A window is the unit: BLAS multiplies it on one thread, and threads take one window after the other. Wide models are
left to BLAS's own threads, a micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from qsim._native.blas import one_blas_thread
from qsim._native.threads import for_chunks
from qsim.models import Linear, Model

from .linalg import SMALL

F32 = np.float32
Half: TypeAlias = Literal["attention", "mlp"] | None
_ALONE = 8  # tokens up to which a Linear runs in Numba's threads, which two threads must not enter


class _BlockDone(Exception):
    """Everything that a pass wanted to see has been seen."""


def is_small(model: Model) -> bool:
    """Whether products are so short that BLAS's threads would cost more than they gain."""
    return max(one.in_features for one in model.linears().values()) <= SMALL


def for_many_tokens(model: Model) -> Model:
    """The model with dequantised weights, which BLAS multiplies by thousands of tokens in half the time of packed ones.

    An engine that was asked for stays. The dequantised weights go with the returned model.
    """
    return model.replace(linear_settings={"*": {"engine": "dequantized"}, **model.linear_settings})


def through_block(
    model: Model, i: int, hidden: np.ndarray, wanted: Sequence[str] = (), *, half: Half = None, last: str | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Hidden states behind block i, and the inputs of some of its Linears on the way.

    Arguments:
        model: see `for_many_tokens`.
        hidden: (B, T, D) float32.
        wanted: names of Linears. last: the one at which to stop; the hidden states are then of no use.
        half: as in `Model.block`.

    Returns:
        (B, T, D) float32, and (B * T, K) float32 by name; of an expert only the rows of tokens that chose it, in order.
    """
    seen: dict[str, dict[int, np.ndarray]] = {name: {} for name in wanted}
    out = np.empty(hidden.shape, F32)

    def work(first: int, stop: int) -> None:
        def observe(name: str, x: np.ndarray) -> None:
            if name in seen:
                seen[name][first] = x.copy()
            if name == last:
                raise _BlockDone

        try:
            with np.errstate(over="ignore", invalid="ignore"):  # who takes the inputs in refuses NaN, by name
                out[first:stop] = model.block(i, hidden[first:stop], observe=observe, half=half)
        except _BlockDone:
            pass

    by_windows(model, i, hidden.shape, work)
    none = {name: np.empty((0, model.input_size(name)), F32) for name in wanted}
    return out, {
        name: np.concatenate([parts[first] for first in sorted(parts)]) if parts else none[name]
        for name, parts in seen.items()
    }


def by_windows(model: Model, i: int, shape: tuple[int, ...], work: Callable[[int, int], None]) -> None:
    """Call work(first, stop) for windows of (B, T, ...): one at a time, side by side where block i allows it; all at
    once for a wide model."""
    if not is_small(model):
        work(0, shape[0])
        return
    with one_blas_thread():
        if shape[1] > _ALONE and _may_share(model, i):
            for_chunks(shape[0], work, chunk=1)
        else:
            for window in range(shape[0]):
                work(window, window + 1)


def _may_share(model: Model, i: int) -> bool:
    """Whether block i stays out of Numba's parallel loops, whose threads two callers must not share."""
    linears = model.linears()
    if model.config.sparse_layers[i]:  # an expert may have few tokens of a window
        return False
    plain = model.attention.is_plain and model.kv_cache is None
    return plain and all(_is_plain(linears[name]) for group in model.block_linears(i) for name in group)


def _is_plain(one: Linear) -> bool:
    if isinstance(one.weight, np.ndarray):
        return one.engine in ("fused", "dequantized") and one.activation is None
    quantised = one.weight.scheme.activation.is_quantized or one.activation is not None
    return one.engine == "dequantized" and not quantised
