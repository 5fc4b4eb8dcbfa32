"""How far the largest numbers of weights and inputs lie from the typical ones."""

from __future__ import annotations

import numpy as np

COLUMNS = 1024
"""Columns that a row's median is found from, spread evenly."""


def row_range(weight: np.ndarray) -> tuple[float, float]:
    """Largest |w| of a row over its median |w|, for the median row and for the worst, of a weight (N, K).

    The median is that of up to 1024 columns, spread evenly. A row whose median is 0 counts by its mean; one of zeros
    does not count.
    """
    columns = np.unique(np.linspace(0, weight.shape[1] - 1, min(COLUMNS, weight.shape[1])).astype(np.int64))
    part = np.abs(weight[:, columns])
    typical = np.median(part, axis=1)
    typical = np.where(typical > 0, typical, part.mean(axis=1))
    top = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    ratios = (top / np.where(typical > 0, typical, 1))[typical > 0]
    return (float(np.median(ratios)), float(ratios.max())) if len(ratios) else (1.0, 1.0)


def channel_ratio(largest: np.ndarray) -> float:
    """The largest channel over the median one, of each channel's largest |x| (K,); channels that are always 0 do not
    count."""
    alive = largest[largest > 0]
    return float(alive.max() / np.median(alive)) if len(alive) else 1.0
