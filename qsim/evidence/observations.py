"""Rows as observations of a loss: which kind of change each one measured, on one scale per kind of metric.

Losses of four scales are kept apart: ln-perplexity per token (WikiText-2 in windows of 2048, and of 512), ln-perplexity
per word, and the percent of a score that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qsim.errors import QsimError

from .find import identity
from .identity import KnownModel
from .precision import Precision
from .table import Row, independent

LAW_METHODS = ("rtn", "gptq", "awq", "omniquant", "autoround", "hqq", "rtn-optimised", "imatrix", "smoothquant",
               "quarot", "spinquant")  # fmt: skip
"""Methods whose loss on 3- and 4-bit weights follows one law, each with a factor of its own."""
INTEGERS = "integer weights"
"""The class of 3- and 4-bit integer weights beside 16-bit activations."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Losses that may be compared.

    Attributes:
        name: `token`, `token 512`, `word` or `score`.
        linear: size of a loss below which errors are additive, above which they are factors.
    """

    name: str
    linear: float


TOKEN = Scale(name="token", linear=0.003)
TOKEN_512 = Scale(name="token 512", linear=0.003)
WORD = Scale(name="word", linear=0.003)
SCORE = Scale(name="score", linear=0.5)
SCALES = (TOKEN, WORD, TOKEN_512, SCORE)
"""In the order in which a loss is looked for."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was done to a model: the class whose losses share a law, and the exact cell within it.

    Attributes:
        kind: `integer weights`, `fp8`, `cache 8 bit`, `mxfp4 x mxfp4, rtn`, ...
        cell: what else must agree for two losses to be of the same thing.
        bits: of the weights, or of the cache where only that is quantised.
        method, channel, log_group: further features of the law of integer weights.
    """

    kind: str
    cell: tuple[str, ...]
    method: str = ""
    bits: float = 4.0
    channel: bool = False
    log_group: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One loss: of which model, by which change, and the row it is from."""

    model: KnownModel
    change: Change
    loss: float
    row: Row


def scale_of(row: Row) -> Scale | None:
    """The scale of a row's loss; None where it is of none (one task, long contexts, another text)."""
    metric = row.metric
    if metric.kind == "accuracy":
        return SCORE
    if metric.kind == "word perplexity":
        return WORD
    if metric.kind != "token perplexity" or metric.text not in ("wikitext2", "own"):
        return None
    return TOKEN_512 if "512" in row.context or "512" in metric.name or metric.relative else TOKEN


def change_of(method: str, precision: Precision) -> Change:
    """The change that a method makes in these numbers, apart from a cache beside quantised weights."""
    p = precision
    if p.weight == "none" and p.activation == "none":
        return _cache(method, p.kv)
    kv = () if p.kv == "none" else (f"KV {p.kv}",)
    if p.activation == "none" and not kv and p.weight in ("int3", "int4") and method in LAW_METHODS:
        size = p.group
        if size is not None or p.region == "channel":
            return Change(
                kind=INTEGERS, cell=(method, p.weight, p.region), method=method, bits=p.bits or 4.0,
                channel=size is None, log_group=0.0 if size is None else math.log2(size / 128),
            )  # fmt: skip
    if p.weight == p.activation == "fp8" and method in ("fp8", "rtn", "gptq"):
        return Change(kind=", ".join(("fp8", *kv)), cell=(p.region, p.scaling))
    static = " static" if "static" in p.scaling else ""
    what = p.weight if p.activation == "none" else f"{p.weight} x {p.activation}{static}"
    fine = p.region if p.activation == "none" else ""
    return Change(
        kind=", ".join(part for part in (f"{what} {fine}".strip(), method, *kv) if part),
        cell=(p.region,),
        bits=p.bits or 4.0,
    )


def _cache(method: str, kv: str) -> Change:
    bits = Precision(weight=kv).bits or 4.0
    name = method if method in ("kivi", "kvquant", "turboquant", "kv-attention") else ""
    if kv in ("fp8", "int8") and not name:
        return Change(kind="cache 8 bit", cell=(kv,))
    return Change(kind=f"cache {kv}" + (f", {name}" if name else ""), cell=(kv,), bits=bits)


def observations(rows: Iterable[Row], scale: Scale) -> tuple[Observation, ...]:
    """The independent losses on one scale: no trained weights, no collapse (a risk of its own), no unknown model.
    What was measured with this project is not among them (see `qsim.evidence.own`).

    Where a source has a model with and without a quantised cache, beside 8-bit weights, their difference is a loss of
    the cache.
    """
    mine = [r for r in rows if scale_of(r) is scale and not r.trained and r.method != "embedding"
            and not r.measured_here]  # fmt: skip
    out = []
    alone = independent(mine)
    for row in alone:
        model = identity(row.model, mine)
        loss = loss_of(row)
        if model is None or loss is None or row.collapsed:
            continue
        out.append(Observation(model=model, change=change_of(row.method, row.precision), loss=loss, row=row))
        partner = _without_cache(row, alone)
        if partner is not None and (before := loss_of(partner)) is not None:
            change = _cache(row.method, row.precision.kv)
            out.append(Observation(model=model, change=change, loss=loss - before, row=row))
    return tuple(out)


def loss_of(row: Row) -> float | None:
    """The loss of a row, on whatever scale it is; None for a metric that is no loss."""
    return row.ln_ratio if row.ln_ratio is not None else row.percent_lost


def _without_cache(row: Row, rows: Sequence[Row]) -> Row | None:
    p = row.precision
    if p.kv == "none" or p.weight not in ("fp8", "int8"):
        return None
    return next(
        (r for r in rows if (r.source, r.model, r.method, r.metric, r.context) == (row.source, row.model, row.method,
         row.metric, row.context) and r.precision.kv == "none" and r.precision.weight == p.weight
         and r.precision.activation == p.activation),
        None,
    )  # fmt: skip


def parts_of(method: str, precision: Precision) -> tuple[Change, ...]:
    """The changes whose losses add up: the weights and activations, and the cache.

    Raises:
        QsimError: nothing is changed.
    """
    p = precision
    weights = Precision(weight=p.weight, region=p.region, activation=p.activation, scaling=p.scaling)
    changed = p.weight != "none" or p.activation != "none"
    found = [change_of(method, weights)] if changed else []
    if p.kv != "none":
        found.append(_cache(method if not changed else "kv", p.kv))
    if not found:
        raise QsimError("nothing is quantised: 16 bit loses nothing")
    return tuple(found)
