"""What a quantised weight loses, measured a slice of rows at a time so that no second weight matrix is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import for_chunks
from qsim.formats import BlockFormat, IntFormat
from qsim.scheme import QuantizedTensor, quantize
from qsim.scheme.tensor import expand

from .linalg import DOUBLE_COLUMNS, by_rows, dot, output_error

F32 = np.float32
_ROWS = 256  # rows a thread takes at a time: a slice's temporaries are small beside the Hessian
_CHECKED = 16  # every 16th row's output error is measured where its loss is known
_AGREES = 1e-4  # of the checked rows: float32 sums of large layers agree to some 1e-6


@dataclass(frozen=True, kw_only=True)
class WeightError:
    """Sums over a layer.

    Arguments:
        weight: sum of (w - q)^2.
        output: tr((W - Q) H (W - Q)^T); None without a Hessian.
        clipped: how many weights lie beyond the values of their region: by more than half a step (integers), beyond the
            largest value (floats).
        count: weights.
    """

    weight: float
    output: float | None
    clipped: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Sum of w^2, and tr(W H W^T) or None."""

    weight: float
    output: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowLosses:
    """GPTQ's loss of each row, (N,) float64, and its damping: 2 loss = d (H + damp I) d^T for a row d of W - Q."""

    loss: np.ndarray
    damp: float

    def output_error(self, delta: np.ndarray, rows: slice, hessian: np.ndarray) -> float:
        """tr(D H D^T) of some rows without the product D H, which costs as much as solving them.

        A part of the rows is measured all the same. Should it not agree (a Hessian so badly conditioned that its
        factor lost digits), all rows are.
        """
        some = np.ascontiguousarray(delta[::_CHECKED])
        told = 2 * float(self.loss[rows][::_CHECKED].sum()) - self.damp * dot(some, some)
        if abs(told - (measured := output_error(some, hessian))) > _AGREES * measured:
            return output_error(delta, hessian)
        return 2 * float(self.loss[rows].sum()) - self.damp * dot(delta, delta)


@njit(cache=True, nogil=True, boundscheck=False)
def _delta(
    w: Any, values: Any, offset: Any, top: Any, scales: Any, zeros: Any, group_of: Any, first: int, stop: int,
    out: Any, clipped: Any,
) -> None:  # fmt: skip
    for r in range(first, stop):
        outside = 0
        for j in range(w.shape[1]):
            g = group_of[j]
            s, z = scales[r, g], zeros[r, g]
            v = F32(F32(values[r, j]) + offset)
            x = w[r, j]
            out[r, j] = F32(x - F32(s * F32(v - z)))
            outside += (x < F32(s * F32(F32(-0.5) - z))) | (x > F32(s * F32(F32(top + F32(0.5)) - z)))
        clipped[r] = outside


def delta(w: np.ndarray, q: QuantizedTensor) -> tuple[np.ndarray, int]:
    """w - q as float32, and how many weights lie beyond the values of their region."""
    part = q.tensor_scheme
    assert part.granularity is not None
    fmt = part.format
    if part.has_own_rule:
        return w - q.dequantize(), _beyond(w, q)
    if isinstance(fmt, IntFormat) and fmt.fraction_bits == 0 and w.ndim == 2:
        n = w.shape[0]
        scales, group_of = by_row(q.scales, q, n)
        half = 1 << (fmt.bits - 1)
        zeros = np.full_like(scales, half) if q.zeros is None else by_row(q.zeros.astype(F32), q, n)[0]
        out, clipped = np.empty_like(w), np.zeros(n, np.int64)
        values = q.integers
        offset, top = F32(half if q.zeros is None else 0), F32(2 * half - 1)
        for_chunks(n, lambda a, b: _delta(w, values, offset, top, scales, zeros, group_of, a, b, out, clipped),
                   chunk=64)  # fmt: skip
        return out, int(clipped.sum())
    scale = expand(q.scales, part.granularity, q.shape) * F32(1 if q.tensor_scale is None else q.tensor_scale)
    largest = fmt.element.max if isinstance(fmt, BlockFormat) else fmt.max
    return w - q.dequantize(), int((np.abs(w) > scale * F32(largest)).sum())


def _beyond(w: np.ndarray, q: QuantizedTensor) -> int:
    """How many weights lie beyond the values of their group, for schemes with minima or superblocks."""
    part = q.tensor_scheme
    assert part.granularity is not None
    low = F32(-(1 << (part.bits - 1)) if part.symmetric else 0)
    minima = F32(0) if q.minima is None else q.minima
    ends = [q.scales * (low + end) - minima for end in (F32(-0.5), F32((1 << part.bits) - 0.5))]
    least, most = (expand(pick(*ends), part.granularity, w.shape) for pick in (np.minimum, np.maximum))
    return int(((w < least) | (w > most)).sum())


def by_row(values: np.ndarray, q: QuantizedTensor, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values a region as (N, G), and the group (K,) of each column."""
    where = q.tensor_scheme.granularity
    assert where is not None
    k = q.shape[1]
    if where.kind == "tensor":
        values = np.broadcast_to(values.reshape(1, 1), (rows, 1))
    elif where.kind == "block":
        assert where.rows is not None
        values = np.repeat(values, where.rows, axis=0)[:rows]
    columns = where.columns or k
    group_of = np.arange(k) // columns if q.group_index is None else q.group_index
    return np.ascontiguousarray(values), group_of.astype(np.intp)


def _slices(q: QuantizedTensor) -> list[slice]:
    where = q.tensor_scheme.granularity
    assert where is not None
    block = where.rows or 1
    step = max(_ROWS // block, 1) * block
    return [slice(r, min(r + step, q.shape[0])) for r in range(0, q.shape[0], step)]


def weight_error(
    w: np.ndarray, q: QuantizedTensor, hessian: np.ndarray | None = None, scale: np.ndarray | None = None,
    losses: RowLosses | None = None,
) -> WeightError:  # fmt: skip
    """The error of a quantised weight against `w` (N, K) float32.

    Arguments:
        scale: (K,) when `q` is the quantised w * scale; the error is that of q / scale.
        losses: what is known of the output error from solving; used above 1024 columns, below which measuring in
            float64 is quick.
    """
    weight, clipped = np.zeros(w.shape[0]), np.zeros(w.shape[0], np.int64)  # of slices, where they start

    def work(rows: slice) -> float:
        d, clipped[rows.start] = delta(w[rows] if scale is None else w[rows] * scale, q[rows])
        d = d if scale is None else d / scale
        weight[rows.start] = dot(d, d)
        if hessian is None:
            return 0.0
        if losses is not None and w.shape[1] > DOUBLE_COLUMNS:
            return losses.output_error(d, rows, hessian)
        return output_error(d, hessian)

    output = by_rows(_slices(q), work)
    return WeightError(weight=float(weight.sum()), output=None if hessian is None else output,
                       clipped=int(clipped.sum()), count=w.size)  # fmt: skip


def round_to_nearest_error(
    w: np.ndarray, like: QuantizedTensor, hessian: np.ndarray | None = None, **how: Any
) -> WeightError:
    """The error of plain rounding under the scheme of `like`; `how` goes to `qsim.scheme.quantize`."""
    where = like.tensor_scheme.granularity
    assert where is not None
    fmt = like.tensor_scheme.format
    if where.kind == "tensor" or (isinstance(fmt, BlockFormat) and fmt.tensor_scale):
        return weight_error(w, quantize(w, like.scheme, **how), hessian)
    parts: dict[int, WeightError] = {}

    def work(rows: slice) -> float:
        parts[rows.start] = weight_error(w[rows], quantize(w[rows], like.scheme, **how), hessian)
        return parts[rows.start].output or 0.0

    output = by_rows(_slices(like), work)
    return WeightError(
        weight=sum(parts[start].weight for start in sorted(parts)),
        output=None if hessian is None else output,
        clipped=sum(p.clipped for p in parts.values()),
        count=w.size,
    )


def signal(w: np.ndarray, hessian: np.ndarray | None = None) -> Signal:
    """What errors are relative to."""
    rows = [slice(r, r + _ROWS) for r in range(0, w.shape[0], _ROWS)]
    return Signal(
        weight=by_rows(rows, lambda one: dot(w[one], w[one])),
        output=None if hessian is None else by_rows(rows, lambda one: output_error(w[one], hessian)),
    )
