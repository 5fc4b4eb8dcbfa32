"""What was measured with this project on the very checkpoint that is asked about: it goes before all other evidence.

Such rows (grade M) say nothing of other models: they are of other texts than the published ones, and often of weights
that were rounded before. So no law is fitted to them, and no risk of a collapse is taken from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .find import identity
from .identity import KnownModel
from .law import Prediction, tuning
from .observations import Change, Observation, Scale, change_of, loss_of, scale_of
from .table import Row, independent

Z_80 = 1.2816
"""Standard errors on either side of an 80 % band."""


def own_observations(rows: Sequence[Row]) -> tuple[Observation, ...]:
    """The rows of grade M as observations, destroyed models among them."""
    out = []
    for row in independent([r for r in rows if r.measured_here]):
        model, loss = identity(row.model, rows), loss_of(row)
        if model is not None and loss is not None and scale_of(row) is not None:
            out.append(Observation(model=model, change=change_of(row.method, row.precision), loss=loss, row=row))
    return tuple(out)


def measured_on(
    target: KnownModel, change: Change, scale: Scale, seen: Sequence[Observation]
) -> tuple[Prediction, float | None] | None:
    """The loss that was measured on a model, and its standard error (None where a row has none); None where it was not.

    Several measurements are averaged. Their error is the larger one of what theirs give and of what their scatter
    gives. Where a row says no error, the band is that of one published row.
    """
    mine = tuple(
        o for o in seen
        if o.model.name == target.name and scale_of(o.row) is scale and o.change.method == change.method
        and (o.change.kind, o.change.cell) == (change.kind, change.cell)
    )  # fmt: skip
    if not mine:
        return None
    value = sum(o.loss for o in mine) / len(mine)
    errors = [o.row.standard_error for o in mine]
    known = [e for e in errors if e is not None]
    error = None
    if len(known) == len(mine):
        error = math.hypot(*known) / len(mine)
        if len(mine) > 1:
            error = max(error, float(np.std([o.loss for o in mine], ddof=1)) / math.sqrt(len(mine)))
    low, high = measured_band(value, error, scale)
    return Prediction(scale=scale, value=value, low=low, high=high, basis="measured", used=mine), error


def measured_band(value: float, error: float | None, scale: Scale) -> tuple[float, float]:
    """The 80 % band of a measured loss: from its standard error, or that of one published row where that is not known
    (a text of one or two windows has none)."""
    if error is not None:
        return value - Z_80 * error, value + Z_80 * error
    tuned = tuning(scale)
    y, deviation = math.asinh(value / scale.linear), math.sqrt(tuned.variances[3])
    low, high = (scale.linear * math.sinh(y + q * deviation) for q in tuned.bands["published"])
    return low, high
