"""The risk that a method destroys a model: a probability from models that it did and did not destroy, never a mean.

Unsmoothed INT8 activations destroy OPT from 6.7B parameters on and Llama-3-70B, and leave Llama-2-7B and Llama-3-8B
nearly as they are; a loss in between exists for neither. What decides is whether a model has outliers of the kind, so
a model's own outcome counts most, then that of its generation by size, then that of all models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .find import identity, nearness
from .identity import KnownModel
from .observations import INTEGERS, Change, change_of, scale_of
from .table import Row, independent

OWN, SIBLING, ALL = 20.0, 5.0, 1.0
"""Weights: of the model's own outcome, of a sibling's, and of all generations together. Kin count
exp(-|ln size ratio| / 2): a generation shares its outliers, and they grow with size."""
PRIOR, PRIOR_WEIGHT = 0.02, 2.0
"""A kind of change destroys one model in fifty before any was tried, with the weight of two generations."""
FRAGILE = 0.1
"""Probability of a collapse from which a method is fragile on a model."""


@dataclass(frozen=True, kw_only=True)
class Risk:
    """How likely a method destroys a model.

    Attributes:
        probability: None where nobody published an outcome of such a change.
        fragile: whether it destroyed the model or one of its generation, or `probability` is at least `FRAGILE`.
        rows: published collapses, those of the model's generation first.
    """

    probability: float | None
    fragile: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row as an outcome of a change: the model stood it, or was destroyed."""

    row: Row
    change: Change
    model: KnownModel | None


def outcomes_of(rows: Sequence[Row]) -> tuple[Outcome, ...]:
    """The independent rows that tell whether a model was destroyed. Rows that keep a part in more bits, or scale each
    channel of an activation, are no outcome of the plain method."""
    kept = [
        r for r in independent(rows)
        if scale_of(r) is not None and not r.trained and not r.measured_here
        and "+" not in r.precision.region + r.precision.scaling and r.precision.scaling != "channel"
    ]  # fmt: skip
    return tuple(
        Outcome(row=r, change=change_of(r.method, r.precision), model=identity(r.model, rows)) for r in kept
    )  # fmt: skip


def risk(model: KnownModel, change: Change, seen: Sequence[Outcome]) -> Risk:
    """The risk of a change on a model, from `outcomes_of` the rows."""
    outcomes: dict[str, list[Row]] = {}
    models: dict[str, KnownModel | None] = {}
    for one in seen:
        if _alike(one.change, change):
            outcomes.setdefault(one.row.model, []).append(one.row)
            models[one.row.model] = one.model
    shares = {name: sum(r.collapsed for r in mine) / len(mine) for name, mine in outcomes.items()}
    if not shares:
        return Risk(probability=None, fragile=False, rows=())
    generations: dict[str, list[float]] = {}
    for name, share in shares.items():
        other = models[name]
        generations.setdefault(name if other is None else other.generation, []).append(share)
    means = [sum(mine) / len(mine) for mine in generations.values()]
    everywhere = (sum(means) + PRIOR * PRIOR_WEIGHT) / (len(means) + PRIOR_WEIGHT)
    weight, hits, kin = ALL, ALL * everywhere, []
    for name, share in shares.items():
        other = models[name]
        how = None if other is None else nearness(model, other)
        if other is None or (how is None and other.generation != model.generation):
            continue
        mine = {"same": OWN, "sibling": SIBLING}.get(
            how or "", math.exp(-abs(math.log(other.parameters_b / model.parameters_b)) / 2)
        )
        weight, hits = weight + mine, hits + mine * share
        kin += [r for r in outcomes[name] if r.collapsed]
    probability = hits / weight
    destroyed = [r for mine in outcomes.values() for r in mine if r.collapsed]
    return Risk(
        probability=probability, fragile=bool(kin) or probability >= FRAGILE,
        rows=(*kin, *(r for r in destroyed if r not in kin)),
    )  # fmt: skip


def _alike(have: Change, wanted: Change) -> bool:
    """Whether two changes destroy alike: integer weights by method and bits, not by size of group."""
    if have.kind != wanted.kind:
        return False
    return wanted.kind != INTEGERS or (have.method, have.bits, have.channel) == (
        wanted.method, wanted.bits, wanted.channel)  # fmt: skip
