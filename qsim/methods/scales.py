"""The scales of a solver: found for some rows at a time, kept as they are stored and as they are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat, IntFormat
from qsim.scheme import Granularity, find_parameters
from qsim.scheme.rules import ScaleRule
from qsim.scheme.tensor_scheme import TensorScheme

F32 = np.float32
_PAD = 64


def shared_details(own: float | None, shared: float | None) -> dict[str, float]:
    """What a record says of a tensor scale that is shared with the layers that engines fuse: how much larger it is."""
    return {} if own is None or shared is None else {"shared_scale_ratio": shared / own}


@dataclass(frozen=True, kw_only=True)
class ScaleFinder:
    """How scales are found.

    Arguments:
        how: the weight's scheme. rule: the scale rule.
        norm: exponent of the range search, or None.
        stored: solve with scales rounded to their storage format.
    """

    how: TensorScheme
    rule: ScaleRule
    norm: float | None
    stored: bool

    def find(
        self, x: np.ndarray, granularity: Granularity, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scales as stored, scales to solve with, zero points, float32, one a region of x (R, columns)."""
        how = replace(self.how, granularity=granularity, ragged=True)
        try:
            stored, exact, zeros = find_parameters(x, how, self.rule, clip=self.norm)
        except ValueError as error:
            raise QsimError(f"{error}, counting from row {first_row}" if first_row else str(error)) from None
        middle = F32(1 << (how.bits - 1))
        zeros = np.full_like(stored, middle) if zeros is None else zeros.astype(F32)
        return stored, stored if self.stored or self.rule.stored_scale else exact, zeros


class Scales:
    """Scales and zero points of a layer while it is solved.

    `stored` and `zeros` have the shape of the result. `used` and `used_zeros` are (N, G): what a row's group is solved
    with, whatever the granularity.
    """

    def __init__(self, finder: ScaleFinder, shape: tuple[int, int]) -> None:
        granularity = finder.how.granularity
        assert granularity is not None
        self.finder, self.shape, self.granularity = finder, shape, granularity
        regions = granularity.scale_shape(shape)
        groups = -(-shape[1] // (granularity.columns or shape[1]))
        self.stored, self.zeros = np.empty(regions, F32), np.empty(regions, F32)
        self.used, self.used_zeros = np.empty((shape[0], groups), F32), np.empty((shape[0], groups), F32)

    def find_all(self, w: np.ndarray, steps: Iterator[slice]) -> None:
        """All scales from the given weights, beforehand."""
        kind = self.granularity.kind
        if kind in ("channel", "group"):
            for rows in steps:
                found = self.finder.find(w[rows], self.granularity, rows.start)
                self.stored[rows], self.used[rows], self.zeros[rows] = found
            self.used_zeros[:] = self.zeros
            return
        self.stored[...], used, self.zeros[...] = self.finder.find(w, self.granularity)
        repeat = self.granularity.rows or 1
        for out, values in ((self.used, used), (self.used_zeros, self.zeros)):
            out[:] = values.reshape(1, 1) if kind == "tensor" else np.repeat(values, repeat, axis=0)[: self.shape[0]]

    def find_group(self, x: np.ndarray, rows: slice, group: int) -> None:
        """The scales of one group, from its columns `x` (R, size) as they are now."""
        stored, used, zeros = self.finder.find(self._within(x), Granularity(kind="channel"), rows.start)
        self.stored[rows, group], self.used[rows, group] = stored[:, 0], used[:, 0]
        self.zeros[rows, group] = self.used_zeros[rows, group] = zeros[:, 0]

    def _within(self, x: np.ndarray) -> np.ndarray:
        """`x`, or for rows whose scale would be 0 in its format, a row that gets the smallest scale.

        The errors of other columns can move a whole group to nearly nothing. The scale that it needs may then be below
        the smallest of float16, 2^-24; with that one, its values are as near as codes of the scheme can be.
        """
        how = self.finder.how
        if not isinstance(how.format, IntFormat) or not isinstance(how.scale_format, FloatFormat):
            return x
        least, levels = F32(how.scale_format.smallest_subnormal), F32((1 << how.bits) - 1)
        width = np.maximum(x.max(axis=1), 0) - np.minimum(x.min(axis=1), 0)
        if how.symmetric:
            width = 2 * np.abs(x).max(axis=1)
        small = (width > 0) & (width < least * levels)
        if x.shape[1] < 2 or not small.any():
            return x
        out = x.copy()
        out[small] = 0
        out[small, 0], out[small, 1] = -least * levels / 2, least * levels / 2
        return out

    def lanes(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(G, R padded to whole tiles) scales and zero points of some rows; padding is 1 and 0."""
        count = rows.stop - rows.start
        padded = -(-count // _PAD) * _PAD
        scales, zeros = np.ones((self.used.shape[1], padded), F32), np.zeros((self.used.shape[1], padded), F32)
        scales[:, :count], zeros[:, :count] = self.used[rows].T, self.used_zeros[rows].T
        return scales, zeros

    def result(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Scales and zero points as `QuantizedTensor` takes them."""
        how = self.finder.how
        if how.symmetric:
            return self.stored, None
        integer = isinstance(how.zero_point_format, IntFormat)
        return self.stored, self.zeros.astype(np.uint8) if integer else self.zeros
