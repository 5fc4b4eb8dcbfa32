"""What rows let one expect: a law over models and methods, and how much a near model's own losses correct it.

Losses are taken as y = asinh(loss / linear): a logarithm where they are large, linear where they are noise and may be
negative. y is modelled as linear features (bits, one scale per row, group, size, training tokens, method; an intercept
for every other kind of change) plus deviations that are shared within a generation of models, within one cell of it,
and within one model, each smaller as sizes differ (kriging; Rasmussen and Williams 2006, chapter 2). A query is
answered with the mean and deviation of y given all observations; without near ones that is the law alone.

The variances and the quantiles that turn deviations into 80 % bands are in law.toml, which
`python reports/quality_evidence.py --fit` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular

from qsim.files import read_toml

from .identity import KnownModel
from .observations import INTEGERS, LAW_METHODS, SCALES, Change, Observation, Scale, observations
from .table import Row

Basis: TypeAlias = Literal["measured", "published", "near", "law"]
BASES: tuple[Basis, ...] = ("measured", "published", "near", "law")
Floats: TypeAlias = NDArray[np.float64]
FEATURES = ("all", "bits below 4", "one scale per row", "log2(group / 128)", "ln(parameters / 8 B)",
            "ln(training tokens / 2 T)", *LAW_METHODS[1:])  # fmt: skip
_PRIOR = np.array([4.0, 1.0, 1.0, 0.1, 0.1, 0.2, *[0.5] * (len(LAW_METHODS) - 1)])
"""Variance of each coefficient before any row is seen; it only matters for what few rows say."""
_KIND_PRIOR = 2.0
_SIGNS = {"bits below 4": 1, "one scale per row": 1, "log2(group / 128)": 1, "ln(parameters / 8 B)": -1}
"""Coefficients whose sign is known: fewer bits and coarser scales never lose less, nor do smaller models. A fit can say
otherwise where sources measured some models in one group and others in another; such a coefficient is left out."""
UNKNOWN_TOKENS_T = 3.0
"""Training tokens, in trillions, of a model whose maker did not say: the middle of the table."""
LEAST_MODELS, LEAST_GENERATIONS, LEAST_BITS = 4, 2, 3
"""Models and generations that must have been measured before a kind of change has a law. Below 3 bits there is none:
what 2 bits lose differs from model to model by factors that no feature here tells."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What law.toml holds for one scale.

    Attributes:
        variances: of y, shared within a generation, within a cell of it, within one model's cell, and of one row.
        bands: for each basis, the deviations from the mean that hold 80 % of held-out losses.
    """

    variances: tuple[float, float, float, float]
    bands: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A loss on one scale, with its 80 % band, what it stands on, and the observations nearest to it."""

    scale: Scale
    value: float
    low: float
    high: float
    basis: Basis
    used: tuple[Observation, ...]


@lru_cache(maxsize=1)
def law_file() -> dict[str, Any]:
    """The shipped law.toml."""
    return read_toml(Path(__file__).parent / "law.toml")


def tuning(scale: Scale) -> Tuning:
    """Variances and bands of a scale; the perplexities share those of tokens, which has most rows."""
    table = law_file()["score" if scale.name == "score" else "token"]
    a, b, c, d = (float(v) for v in table["variances"].values())
    return Tuning(variances=(a, b, c, d), bands={k: (v[0], v[1]) for k, v in table["bands"].items()})


@dataclass(frozen=True, eq=False)
class Fit:
    """The law of one scale, fitted to observations."""

    scale: Scale
    seen: tuple[Observation, ...]
    variances: tuple[float, float, float, float]
    kinds: tuple[str, ...] = ()
    prior: Floats = field(repr=False, default_factory=lambda: _PRIOR)
    _design: Floats = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    _weights: Floats = field(repr=False, default_factory=lambda: np.zeros(0))
    _factor: Floats = field(repr=False, default_factory=lambda: np.zeros((0, 0)))
    _mean: float = 0.0

    @property
    def coefficients(self) -> dict[str, float]:
        """The law itself: what each feature adds to y."""
        found = self.prior * (self._design.T @ self._weights) + 0.0  # no coefficient is -0
        names = (*FEATURES, *self.kinds)
        return {"all": self._mean + float(found[0])} | {n: float(v) for n, v in zip(names[1:], found[1:], strict=True)}

    def expect(self, model: KnownModel, change: Change) -> tuple[float, float]:
        """Mean and standard deviation of y for one model and change, the scatter between sources included."""
        query = Observation(model=model, change=change, loss=0.0, row=None)  # type: ignore[arg-type]
        x = _design([query], self.kinds)
        cross = (x * self.prior) @ self._design.T + _shared([query], self.seen, self.variances)
        alone = float((x[0] * self.prior) @ x[0]) + sum(self.variances)
        mean = self._mean + float(cross[0] @ self._weights)
        solved = solve_triangular(self._factor, cross[0], lower=True)
        return mean, float(np.sqrt(max(alone - solved @ solved, self.variances[3])))

    def basis(self, model: KnownModel, change: Change) -> tuple[Basis | None, tuple[Observation, ...]]:
        """What the observations are for this question, and those that are nearest."""
        same_kind = [o for o in self.seen if o.change.kind == change.kind]
        cell = [o for o in same_kind if o.change.cell == change.cell and o.change.method == change.method]
        own = [o for o in cell if o.model.name == model.name]
        if own:
            return "published", tuple(own)
        near = [o for o in cell if o.model.generation == model.generation]
        near = near or [o for o in same_kind if o.model.generation == model.generation]
        if near:
            return "near", tuple(sorted(near, key=lambda o: _distance(model, o)))
        if _has_law(change, same_kind):
            return "law", tuple(sorted(cell or same_kind, key=lambda o: _distance(model, o)))
        return None, ()

    def predict(self, model: KnownModel, change: Change, bands: dict[str, tuple[float, float]]) -> Prediction | None:
        """The expected loss of a change on a model; None where no observation is of its kind."""
        basis, used = self.basis(model, change)
        if basis is None:
            return None
        mean, deviation = self.expect(model, change)
        low, high = bands[basis]
        value, least, most = (
            self.scale.linear * float(np.sinh(y)) for y in (mean, mean + low * deviation, mean + high * deviation)
        )
        return Prediction(scale=self.scale, value=value, low=least, high=most, basis=basis, used=used)


def _has_law(change: Change, seen: Sequence[Observation]) -> bool:
    """Whether enough models were measured, and a law of integer weights is asked within the methods and bits it saw."""
    if change.kind == INTEGERS:
        seen = [o for o in seen if o.change.method == change.method and o.change.bits == change.bits]
    models, generations = {o.model.name for o in seen}, {o.model.generation for o in seen}
    return change.bits >= LEAST_BITS and len(models) >= LEAST_MODELS and len(generations) >= LEAST_GENERATIONS


def _distance(model: KnownModel, seen: Observation) -> float:
    return abs(float(np.log(model.parameters_b / seen.model.parameters_b))) + 3.0 * (
        seen.model.generation != model.generation
    )


def _design(seen: Sequence[Observation], kinds: Sequence[str]) -> Floats:
    place = {kind: len(FEATURES) + i for i, kind in enumerate(kinds)}
    out = np.zeros((len(seen), len(FEATURES) + len(kinds)))
    out[:, 0] = 1.0
    for line, o in zip(out, seen, strict=True):
        change, model = o.change, o.model
        if change.kind == INTEGERS:
            tokens = model.training_tokens_t or UNKNOWN_TOKENS_T
            line[1:6] = (4 - change.bits, change.channel, change.log_group, np.log(model.parameters_b / 8),
                         np.log(tokens / 2))  # fmt: skip
            if change.method in LAW_METHODS[1:]:
                line[5 + LAW_METHODS.index(change.method)] = 1.0
        elif change.kind in place:
            line[place[change.kind]] = 1.0
    return out


def _codes(values: Sequence[object], others: Sequence[object]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    known: dict[object, int] = {}
    return tuple(np.array([known.setdefault(v, len(known)) for v in part], np.intp) for part in (values, others))  # type: ignore[return-value]


def _shared(a: Sequence[Observation], b: Sequence[Observation], variances: Sequence[float]) -> Floats:
    """Covariance of the deviations of two lists of observations."""
    generation, cell, own, _ = variances

    def equal(key: Any) -> NDArray[np.bool_]:
        one, two = _codes([key(o) for o in a], [key(o) for o in b])
        return one[:, None] == two[None, :]

    size_a, size_b = (np.log([o.model.parameters_b for o in part]) for part in (a, b))
    kin = equal(lambda o: o.model.generation) * np.exp(-np.abs(size_a[:, None] - size_b[None, :]) / 2)
    alike = equal(lambda o: (o.change.kind, o.change.cell, o.change.method))
    same = equal(lambda o: o.model.name)
    return np.asarray(kin * (generation + cell * alike) + own * (same & alike), np.float64)


def fit(scale: Scale, seen: Sequence[Observation], variances: Sequence[float]) -> Fit:
    """Fit the law of one scale.

    Arguments:
        seen: observations on that scale.
        variances: see `Tuning`.
    """
    a, b, c, d = variances
    kinds = tuple(sorted({o.change.kind for o in seen} - {INTEGERS}))
    prior = prior_of(kinds)
    if not seen:
        return Fit(scale, (), (a, b, c, d), kinds, prior)
    y = np.arcsinh(np.array([o.loss for o in seen]) / scale.linear)
    centre = float(y.mean())
    x = _design(seen, kinds)
    alike = _shared(seen, seen, variances) + d * np.eye(len(seen))
    while True:
        factor = np.asarray(np.linalg.cholesky((x * prior) @ x.T + alike), np.float64)
        weights = cho_solve((factor, True), y - centre)
        found = prior * (x.T @ weights)
        wrong = [i for i, name in enumerate(FEATURES) if _SIGNS.get(name, 0) * found[i] < 0]
        if not wrong:
            return Fit(scale, tuple(seen), (a, b, c, d), kinds, prior, x, weights, factor, centre)
        prior[wrong] = 0.0


def prior_of(kinds: Sequence[str]) -> Floats:
    """Variance of every coefficient before any row is seen: those of `FEATURES`, then of other kinds of change."""
    return np.concatenate([_PRIOR, np.full(len(kinds), _KIND_PRIOR)])


def laws(rows: tuple[Row, ...]) -> dict[str, Fit]:
    """The law of every scale, fitted to these rows with the shipped variances."""
    return {s.name: fit(s, observations(rows, s), tuning(s).variances) for s in SCALES}
