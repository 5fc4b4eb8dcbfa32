"""The loss to expect of a method on a model, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .table import Row

Basis: TypeAlias = Literal["exact", "measured", "published", "near", "law", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The loss to expect of a method on a model.

    Attributes:
        model, method, scheme: what was asked; `scheme` says the numbers.
        value, low, high: ln(perplexity / perplexity in 16 bit), and its 80 % band; None where nothing is known.
        standard_error: of `value`, where it was measured with this project and the rows say so.
        metric: what `value` is of: `token perplexity`, `word perplexity` (1.1 to 1.3 times as large), or `score`, where
            only scores are known, turned into a perplexity by the usual ratio.
        points, points_low, points_high: change of an average score in points, with its 80 % band (a loss is negative);
            None where no score is known.
        lost, lost_low, lost_high: percent of an average 16-bit score that is lost (100 minus what the field calls
            recovery), with its 80 % band: from perplexity and from scores, weighted by how sure each is.
        basis: `measured` (with this project, on this checkpoint), `published` (the same model and numbers), `near` (the
            same generation of models), `law` (fitted over models), `unknown`; `exact` for 16 bit.
        collapse: probability that the model is destroyed, a risk beside the band; None where it is not known. 0 or 1
            where that was measured.
        fragile: whether a collapse of this kind was published for the model's class, and the model itself was not
            measured with this project in these numbers.
        rows: what the value stands on, the nearest first. `collapsed` are the published collapses.
        note: what to know, in a sentence; for an unknown loss, what to do.
    """

    model: str
    method: str
    scheme: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    metric: str = ""
    points: float | None = None
    points_low: float | None = None
    points_high: float | None = None
    lost: float | None = None
    lost_low: float | None = None
    lost_high: float | None = None
    basis: Basis = "unknown"
    collapse: float | None = None
    fragile: bool = False
    rows: tuple[Row, ...] = field(default=(), repr=False)
    collapsed: tuple[Row, ...] = field(default=(), repr=False)
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None
