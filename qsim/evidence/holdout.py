"""Losses that a law has not seen: what it says of a model, a generation or a source that was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import minimize

from .law import Basis, Fit, Floats, _design, _shared, fit
from .observations import Observation, Scale

Left: TypeAlias = Literal["model", "generation", "source"]
_GROUP: dict[Left, Callable[[Observation], object]] = {
    "model": lambda o: o.model.name,
    "generation": lambda o: o.model.generation,
    "source": lambda o: (o.model.name, o.row.source),
}
BAND = (0.1, 0.9)
"""Quantiles between which an 80 % band lies."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One loss, and what was expected of it without its group.

    Attributes:
        basis: of the expectation; None where nothing of the kind was left.
        expected, deviation: mean and standard deviation of y = asinh(loss / linear).
        y: that of the loss.
    """

    seen: Observation
    basis: Basis | None
    expected: float = 0.0
    deviation: float = 1.0
    y: float = 0.0

    @property
    def error(self) -> float:
        """The error of y in deviations; the bands are its quantiles."""
        return (self.y - self.expected) / self.deviation


def held_out(scale: Scale, seen: Sequence[Observation], variances: Sequence[float], left: Left) -> list[HeldOut]:
    """Every observation with what is expected of it when its model, generation, or source of that model is left out."""
    group = _GROUP[left]
    out = []
    for name in dict.fromkeys(group(o) for o in seen):
        law = fit(scale, [o for o in seen if group(o) != name], variances)
        out += [_one(law, o) for o in seen if group(o) == name]
    return out


def _one(law: Fit, o: Observation) -> HeldOut:
    basis, _ = law.basis(o.model, o.change)
    if basis is None:
        return HeldOut(seen=o, basis=None)
    mean, deviation = law.expect(o.model, o.change)
    return HeldOut(
        seen=o, basis=basis, expected=mean, deviation=deviation, y=float(np.arcsinh(o.loss / law.scale.linear))
    )


def by_basis(scale: Scale, seen: Sequence[Observation], variances: Sequence[float]) -> dict[Basis, list[HeldOut]]:
    """Held-out losses by what their expectation stood on, each as it stands when a user asks: `published` without the
    source, `near` without the model, `law` without the generation or the model."""
    without = {left: held_out(scale, seen, variances, left) for left in _GROUP}
    return {
        "published": [h for h in without["source"] if h.basis in ("published", "measured")],
        "near": [h for h in without["model"] if h.basis == "near"],
        "law": [h for left in ("generation", "model") for h in without[left] if h.basis == "law"],
    }  # fmt: skip


def band_of(found: Sequence[HeldOut]) -> tuple[float, float]:
    """The deviations from the mean between which 80 % of held-out losses lie (split conformal prediction; Lei et al.
    2018). At least a tenth of a deviation on either side, so that the middle is inside."""
    low, high = np.quantile([h.error for h in found], BAND)
    return min(float(low), -0.1), max(float(high), 0.1)


def coverage(found: Sequence[HeldOut]) -> float:
    """Share of held-out losses inside a band that was found without their own model."""
    inside = 0
    for model in {h.seen.model.name for h in found}:
        mine = [h for h in found if h.seen.model.name == model]
        low, high = band_of([h for h in found if h.seen.model.name != model])
        inside += sum(low <= h.error <= high for h in mine)
    return inside / len(found)


def variances_of(scale: Scale, seen: Sequence[Observation]) -> tuple[float, float, float, float]:
    """The variances under which the observations are most likely (marginal likelihood, Nelder-Mead)."""
    first = fit(scale, seen, (0.1, 0.1, 0.1, 0.1))
    y = np.arcsinh(np.array([o.loss for o in seen]) / scale.linear)
    y = y - y.mean()
    x = _design(seen, first.kinds)
    law = (x * first.prior) @ x.T
    unit = [_shared(seen, seen, [float(i == j) for j in range(3)] + [0.0]) for i in range(3)]

    def unlikely(logs: Floats) -> float:
        v = np.exp(logs)
        cov = law + sum(s * u for s, u in zip(v, unit, strict=False)) + v[3] * np.eye(len(y))
        factor = np.linalg.cholesky(cov)
        z = np.linalg.solve(factor, y)
        return float(0.5 * z @ z + np.log(np.diag(factor)).sum())

    found = minimize(unlikely, np.log([0.2, 0.1, 0.1, 0.1]), method="Nelder-Mead",
                     options={"maxiter": 300, "xatol": 0.02, "fatol": 0.02})  # fmt: skip
    a, b, c, d = (float(v) for v in np.exp(found.x))
    return a, b, c, d
