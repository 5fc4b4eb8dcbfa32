"""What a method loses on a model: the loss to expect, its band, and what that stands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

from qsim.scheme import Scheme, get_scheme

from .collapse import Outcome, Risk, outcomes_of, risk
from .expectation import Expectation
from .find import identity
from .identity import KnownModel, canonical, find_model
from .law import BASES, Fit, Prediction, law_file, laws, tuning
from .observations import (
    INTEGERS,
    SCALES,
    SCORE,
    TOKEN,
    TOKEN_512,
    WORD,
    Change,
    Observation,
    Scale,
    change_of,
    parts_of,
)  # fmt: skip
from .order import MOVED, coarser, finer, held
from .own import measured_on, own_observations
from .precision import GGUF, Precision, cache_word, of_scheme
from .table import Row, method_of, published, shipped

_ORDER = {name: i for i, name in enumerate(BASES)}
_METRIC = {"token": "token perplexity", "word": "word perplexity", "token 512": "token perplexity, windows of 512",
           "score": "score"}  # fmt: skip


def expected_loss(
    model: str | KnownModel, method: str, scheme: str | Scheme | Precision, *, kv: str | None = None,
    rows: Sequence[Row] | None = None,
) -> Expectation:  # fmt: skip
    """The loss to expect of a method on a model.

    Arguments:
        model: a name in any spelling, or a `KnownModel` that says family, size and training tokens.
        method: `rtn`, `gptq`, `awq`, `smoothquant`, `fp8`, ...; of no matter where only the cache is quantised.
        scheme: the numbers, as a name of `qsim schemes`.
        kv: the KV cache's numbers (`fp8`, `int8`, `int4`), where the scheme leaves it in 16 bit.
        rows: the evidence; the shipped table by default. `shipped() + read_rows("my.csv")` adds to it, where `"my.csv"`
            may be the folder of a study of a checkpoint. A part of it asks what would be known without the rest: the
            law is fitted to whatever is given.

    Returns:
        The expectation. A model, method or scheme that no evidence is near gives `unknown`, without a number.

    Raises:
        QsimError: a scheme, or numbers of a cache, that do not exist.
    """
    precision = scheme if isinstance(scheme, Precision) else of_scheme(scheme)
    known = _shipped() if rows is None else _known(tuple(rows))
    if kv is not None and precision.kv == "none":
        precision = replace(precision, kv=cache_word(kv, {r.precision.kv for r in published()}))
    name = canonical(model) if isinstance(model, str) else model.name
    word = scheme if isinstance(scheme, str) else str(precision)
    if isinstance(scheme, Scheme):
        word = get_scheme(scheme).name or str(precision)
    how = method_of(method)
    if GGUF.fullmatch(precision.weight) and how == "rtn":
        how = "gguf"  # what its own rounding is called
    asked = Expectation(model=name, method=how, scheme=word)
    if precision == Precision():
        nothing = dict.fromkeys(("value", "low", "high", "lost", "lost_low", "lost_high", "collapse"), 0.0)
        return replace(asked, metric=_METRIC["token"], basis="exact", **nothing)  # type: ignore[arg-type]
    target = identity(model, known.rows)
    if target is None:
        return replace(asked, note=f"nothing is known of {name}: {MEASURE}")
    found = _alone(target, how, precision, known)
    if found.known and found.basis in MOVED:
        others = ([_alone(target, how, p, known) for p in part] for part in (coarser(precision), finer(precision)))
        found = held(found, precision, *others)
    if found.known and isinstance(model, str) and find_model(model) is None:
        said = f"{name} is not in the table: generation and size are read from its name or your rows"
        found = replace(found, note="; ".join(n for n in (found.note, said) if n))
    return replace(found, scheme=word)


@lru_cache(maxsize=4096)
def _alone(target: KnownModel, method: str, precision: Precision, known: _Known) -> Expectation:
    """What the evidence of these very numbers says, whatever others lose."""
    asked = Expectation(model=target.name, method=method, scheme=str(precision))
    own = _measured(asked, target, change_of(method, precision), known)
    if own is not None:
        return own
    parts = parts_of(method, precision)
    risks = [risk(target, part, known.outcomes) for part in parts if not _is_measured(target, part, known)]
    asked = replace(asked, **_risk(risks))
    if asked.collapse is not None and asked.collapse >= LIKELY:
        return _destroyed(asked)
    best = _best(target, parts, known)
    if best is None:
        missing = " and ".join(p.kind for p in parts if _best(target, (p,), known) is None)
        return replace(asked, note=f"no evidence of {missing} is near {target.name}: {MEASURE}")
    return _filled(asked, target, parts, best, known)


MEASURE = "measure it with qsim study --model FOLDER"
LIKELY = 0.5
"""Probability of a collapse from which no loss is named: the mean of those that survive says nothing."""


def _destroyed(asked: Expectation) -> Expectation:
    """An expectation without a number: the model is most likely destroyed."""
    own = [r for r in asked.collapsed if r.model == asked.model]
    row = (own or asked.collapsed)[0]
    said = f"{row.metric.name} {row.baseline:g} becomes {row.value:g} on {row.model} ({row.reference})"
    return replace(asked, basis="published" if own else "near", rows=tuple(own) or asked.collapsed,
                   note=f"the model is most likely destroyed: {said}")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Known:
    """What is made once of a table of rows."""

    rows: tuple[Row, ...]
    own: tuple[Observation, ...]
    laws: dict[str, Fit]
    outcomes: tuple[Outcome, ...]
    scores: tuple[tuple[KnownModel, float], ...]


@lru_cache(maxsize=8)
def _known(rows: tuple[Row, ...]) -> _Known:
    return _Known(rows, own_observations(rows), *_fitted(tuple(r for r in rows if not r.measured_here)))


@lru_cache(maxsize=4)
def _fitted(rows: tuple[Row, ...]) -> tuple[dict[str, Fit], tuple[Outcome, ...], tuple[tuple[KnownModel, float], ...]]:
    """What takes a second: it is kept when only measurements of one checkpoint join the others."""
    averages = ("avg_zero_shot_acc", "mmlu_acc", "openllm_v1_avg")
    scores = [(identity(r.model, rows), r.baseline) for r in rows if r.metric.name in averages]
    return laws(rows), outcomes_of(rows), tuple((m, base) for m, base in scores if m is not None)


@lru_cache(maxsize=1)
def _shipped() -> _Known:
    return _known(shipped())


def _risk(risks: Sequence[Risk]) -> dict[str, Any]:
    known = [r.probability for r in risks if r.probability is not None]
    return {
        "collapse": 1 - math.prod(1 - p for p in known) if known else None, "fragile": any(r.fragile for r in risks),
        "collapsed": tuple(row for r in risks for row in r.rows),
    }  # fmt: skip


def _measured(asked: Expectation, target: KnownModel, change: Change, known: _Known) -> Expectation | None:
    """The expectation that was measured on the checkpoint itself, in all of its numbers; None where it was not."""
    for scale in SCALES:
        found = measured_on(target, change, scale, known.own)
        if found is None:
            continue
        value, low, high = _as_ln(found[0])
        lost = (found[0].value, found[0].low, found[0].high) if scale is SCORE else percent_of((value, low, high))
        base = _score_of(target, known.scores)
        points: dict[str, float] = {}
        if base is not None:
            at, least, most = (-v * base / 100 for v in lost)
            points = {"points": at, "points_low": most, "points_high": least}
        used = tuple(o.row for o in found[0].used)
        return replace(
            asked, value=value, low=low, high=high, standard_error=None if scale is SCORE else found[1],
            metric=_METRIC[scale.name], lost=lost[0], lost_low=lost[1], lost_high=lost[2], basis="measured", rows=used,
            collapse=float(any(r.collapsed for r in used)), **points,  # type: ignore[arg-type]
            note="; ".join(dict.fromkeys(r.note for r in used if r.note)),
        )  # fmt: skip
    return None


def _is_measured(target: KnownModel, part: Change, known: _Known) -> bool:
    return any(measured_on(target, part, scale, known.own) is not None for scale in SCALES)


def _predict(target: KnownModel, part: Change, scale: Scale, known: _Known) -> Prediction | None:
    own = measured_on(target, part, scale, known.own)
    if own is not None:
        return own[0]
    found = known.laws[scale.name].predict(target, part, tuning(scale).bands)
    if found is not None and found.basis in MOVED and found.value < 0:  # 16 bit, which loses nothing, loses no more
        return replace(found, value=0.0, high=max(found.high, 0.0))
    return found


def _best(target: KnownModel, parts: Sequence[Change], known: _Known) -> tuple[Prediction, ...] | None:
    """For each part the prediction that stands on the best basis; of equal ones perplexity per token goes first."""
    found = []
    for part in parts:
        options = [p for s in SCALES if (p := _predict(target, part, s, known)) is not None]
        if not options:
            return None
        found.append(min(options, key=lambda p: (_ORDER[p.basis], SCALES.index(p.scale))))
    return tuple(found)


def _filled(
    asked: Expectation, target: KnownModel, parts: Sequence[Change], best: Sequence[Prediction], known: _Known
) -> Expectation:
    value, low, high = _sum([_as_ln(p) for p in best])
    basis = max((p.basis for p in best), key=lambda b: _ORDER[b])
    scores = [_predict(target, part, SCORE, known) for part in parts]
    from_scores = None
    if all(p is not None for p in scores):
        from_scores = _sum([(p.value, p.low, p.high) for p in scores if p is not None])
    base = _score_of(target, known.scores)
    points: dict[str, float] = {}
    if base is not None and from_scores is not None:
        part, least, most = from_scores
        points = {"points": -part * base / 100, "points_low": -most * base / 100, "points_high": -least * base / 100}
    only_scores = all(p.scale is SCORE for p in best)
    lost = _joined([None if only_scores else percent_of((value, low, high)), from_scores])
    used = dict.fromkeys(o.row for p in best for o in p.used[:8])
    kinds = dict.fromkeys(_METRIC[p.scale.name] for p in best)
    return replace(
        asked, value=value, low=low, high=high, metric=" and ".join(kinds), basis=basis, rows=tuple(used),
        note=_note(parts, best),
        lost=lost[0], lost_low=lost[1], lost_high=lost[2], **points,  # type: ignore[arg-type]
    )  # fmt: skip


Band: TypeAlias = tuple[float, float, float]
"""A value and the two ends of its band."""


def _as_ln(p: Prediction) -> Band:
    """A prediction in ln perplexity; percent of a score by the usual ratio."""
    if p.scale is not SCORE:
        return p.value, p.low, p.high
    usual, least, most = _ratio()
    return _scaled((p.value, p.low, p.high), 1 / usual, usual / most, usual / least)


def percent_of(loss: Band) -> Band:
    """A loss in ln perplexity as percent of an average score, by the usual ratio."""
    usual, least, most = _ratio()
    return _scaled(loss, usual, least / usual, most / usual)


def _ratio() -> Band:
    table = law_file()["score_to_perplexity"]
    return float(table["percent_per_ln"]), float(table["low"]), float(table["high"])


def _scaled(loss: Band, factor: float, least: float, most: float) -> Band:
    """A loss times a factor that is itself only known between `least` and `most` times its value."""
    value, low, high = (factor * v for v in loss)
    ends = sorted((value * (least - 1), value * (most - 1)))
    return value, value - math.hypot(low - value, ends[0]), value + math.hypot(high - value, ends[1])


def _joined(found: Sequence[Band | None]) -> Band:
    """Two estimates of one loss, weighted by the inverse square of the width of their bands."""
    known = [f for f in found if f is not None]
    weights = [1 / max(high - low, 1e-9) ** 2 for _, low, high in known]
    value = sum(w * v for w, (v, _, _) in zip(weights, known, strict=True)) / sum(weights)
    down, up = (
        math.sqrt(sum((w * (f[i] - f[0])) ** 2 for w, f in zip(weights, known, strict=True))) / sum(weights)
        for i in (1, 2)
    )
    return value, value - down, value + up


def _sum(parts: Sequence[Band]) -> Band:
    """The sum of independent losses: the distances to the ends of the bands add as squares."""
    value = sum(v for v, _, _ in parts)
    down, up = (math.hypot(*(abs(end[i] - end[0]) for end in parts)) for i in (1, 2))
    return value, value - down, value + up


def _score_of(target: KnownModel, scores: Sequence[tuple[KnownModel, float]]) -> float | None:
    """The 16-bit average score of the model or of one of its generation: what a percent of it is in points."""
    found = [(abs(math.log(m.parameters_b / target.parameters_b)), base) for m, base in scores
             if m.generation == target.generation]  # fmt: skip
    if not found:
        return None
    nearest = min(distance for distance, _ in found)
    mine = sorted(base for distance, base in found if distance <= nearest + 0.2)
    return mine[len(mine) // 2]


def _note(parts: Sequence[Change], best: Sequence[Prediction]) -> str:
    said = []
    for part, p in zip(parts, best, strict=True):
        if p.scale is SCORE:
            said.append(f"{part.kind}: from scores, as no perplexity is published")
        elif p.scale is WORD:
            said.append(f"{part.kind}: perplexity per word, which loses 1.1 to 1.3 times as much as per token")
        elif p.scale is TOKEN_512:
            said.append(f"{part.kind}: windows of 512 tokens")
        if part.kind == "cache 8 bit":
            said.append("at long contexts an FP8 cache with FP8 attention kept 94 to 98 % of a retrieval score")
        if part.kind == INTEGERS and p.basis == "law" and p.scale is TOKEN:
            said.append(f"a law over {len({o.model.name for o in p.used})} models")
    return "; ".join(dict.fromkeys(said))
