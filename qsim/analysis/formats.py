"""What the choice of a format does to a value of a given magnitude."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsim import formats
from qsim.errors import QsimError
from qsim.formats import CodebookFormat, ElementFormat, FloatFormat, Format, get_element_format

from .error import ErrorCurve, error_against_magnitude


@dataclass(frozen=True, kw_only=True)
class FormatError:
    """Relative error against magnitude of one format.

    Arguments:
        format: the format.
        scale: what a stored value is multiplied by; 1 for a float format as it is.
        max: the largest magnitude that is not clipped, scale included.
        curve: the error of positive values up to `max`, nearest even. Above it the format clips.
    """

    format: ElementFormat
    scale: float
    max: float
    curve: ErrorCurve

    @property
    def label(self) -> str:
        """The name, and for a scaled format where its largest value was put."""
        return self.format.name if self.scale == 1 else f"{self.format.name} (scaled: max = {self.max:.6g})"


def common_max(fmts: Sequence[ElementFormat]) -> float:
    """Where formats without an exponent of their own put their largest value: the smallest max of the float formats
    beside them, as one tensor would be scaled into each; 1 when there is none."""
    return min((f.max for f in fmts if isinstance(f, FloatFormat)), default=1.0)


def compare(
    names: Sequence[str | Format],
    *,
    scaled_max: float | None = None,
    align: bool = False,
    bins_per_octave: int = 1,
    samples_per_bin: int = 256,
) -> list[FormatError]:
    """Relative error against magnitude, for formats side by side.

    Arguments:
        names: element formats.
        scaled_max: value to which the largest of every integer and codebook format is scaled; None: `common_max`.
        align: scale float formats to that maximum too, as a per-tensor scale does.
        bins_per_octave, samples_per_bin: resolution; the samples are equally spaced in log2. The worst case is
            exact for formats up to 16 bits: the midpoints between values are looked at too.

    Returns:
        One `FormatError` a format, over magnitudes from below the smallest value of any to its own largest.

    Raises:
        ValueError: unknown and block formats, no format, a scaled_max that is not positive and finite.
    """
    fmts = [get_element_format(name) for name in names]
    if not fmts:
        raise QsimError("compare needs at least one format")
    top = common_max(fmts) if scaled_max is None else float(scaled_max)
    if not (np.isfinite(top) and top > 0):
        raise QsimError(f"the common largest value must be positive and finite: got {scaled_max}")
    scales = [top / f.max if align or not isinstance(f, FloatFormat) else 1.0 for f in fmts]
    low = min(_smallest(f) * s for f, s in zip(fmts, scales, strict=True)) / 4
    high = max(f.max * s for f, s in zip(fmts, scales, strict=True))
    first, last = int(np.floor(np.log2(low))), int(np.ceil(np.log2(high)))
    steps = (last - first) * bins_per_octave * samples_per_bin
    x = np.exp2(first + np.arange(steps) / (bins_per_octave * samples_per_bin))
    out = []
    for fmt, scale in zip(fmts, scales, strict=True):
        curve = _curve(np.append(x[x < fmt.max * scale], fmt.max * scale), fmt, scale, bins_per_octave)
        out.append(FormatError(format=fmt, scale=scale, max=fmt.max * scale, curve=curve))
    return out


def _curve(x: np.ndarray, fmt: ElementFormat, scale: float, bins_per_octave: int) -> ErrorCurve:
    """rms from the samples alone; the worst case also from the midpoints of neighbours, where it is attained."""
    curve = error_against_magnitude(x, formats.cast(x / scale, fmt) * scale, bins_per_octave=bins_per_octave)
    if fmt.bits > 16:
        return curve
    values = np.concatenate([[0.0] if fmt.has_zero else [], fmt.values[fmt.values > 0]])
    x = np.concatenate([x, (values[1:] + values[:-1]) / 2 * scale])
    both = error_against_magnitude(x, formats.cast(x / scale, fmt) * scale, bins_per_octave=bins_per_octave)
    return dataclasses.replace(curve, worst=both.worst)


def _smallest(fmt: ElementFormat) -> float:
    return fmt.smallest_subnormal if not isinstance(fmt, CodebookFormat) else min(v for v in fmt.table if v > 0)
