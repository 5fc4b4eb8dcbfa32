"""Outliers of a model's layers, and what they let one expect of each way to multiply in eight bits or fewer.

A verdict rests on two things: what a way does to the outputs of the layers that were measured, beside what formats with
published losses do to ordinary layers; and published rows on models with the same outliers, which are cited.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qsim.files import read_csv

from .find import find
from .table import Row

Answer: TypeAlias = Literal["keeps", "loses", "breaks"]
Cause: TypeAlias = Literal["channels", "tokens", "weights", "format"]

KEEPS, BREAKS = 0.004, 0.1
"""Squared output error over squared output, of the median token, up to which a layer keeps its output, and from which
it is broken. Ordinary layers have 0.0002 in INT8, 0.0014 in FP8 (published to keep 99 to 100 % of a score), 0.02 in
NVFP4 and 0.04 in MXFP4 (published to keep 88 to 98 %)."""
CHANNELS = 85.0
"""Times the median channel from which the largest one leaves it 3 of the 254 steps of INT8: as OPT's."""
TOKENS = 1000.0
"""Times the typical value from which a single value is massive."""
WEIGHTS = 60.0
"""Times a row's typical weight from which its largest one leaves that 2 of INT8's 127 steps."""


@dataclass(frozen=True, kw_only=True)
class OutlierRow:
    """A published number on outliers.

    Attributes:
        model, place, statistic, value: what was measured where, and the number as the source prints it.
        source: arXiv number or repository with commit and file.
        grade: `A` the publisher's own text, `B` a copy of the paper's text or table.
    """

    model: str
    place: str
    statistic: str
    value: str
    source: str
    grade: str
    note: str = ""

    @property
    def citation(self) -> str:
        """What the row says, on one line."""
        return f"{self.model}, {self.place}: {self.statistic.replace('_', ' ')} {self.value} ({self.source})"


@lru_cache(maxsize=1)
def outlier_rows() -> tuple[OutlierRow, ...]:
    """The shipped rows on outliers, in the order of the table."""
    header, rows = read_csv(Path(__file__).parent / "activation_outliers.csv")
    return tuple(OutlierRow(**dict(zip(header, row, strict=True))) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to multiply: a scheme, with or without SmoothQuant before it."""

    name: str
    title: str
    scheme: str
    smoothed: bool = False
    is_integer: bool = False


WAYS = (
    Way(name="w8a8-per-tensor", title="W8A8, activations per tensor", scheme="w8a8-channel-tensor", is_integer=True),
    Way(name="w8a8-per-token", title="W8A8, activations per token", scheme="w8a8-channel-token", is_integer=True),
    Way(name="w8a8-smoothed", title="W8A8 per token, smoothed", scheme="w8a8-channel-token", smoothed=True,
        is_integer=True),
    Way(name="fp8", title="FP8, per row and token", scheme="fp8-rowwise"),
    Way(name="mxfp8", title="MXFP8", scheme="mxfp8"),
    Way(name="nvfp4", title="NVFP4", scheme="nvfp4"),
    Way(name="mxfp4", title="MXFP4", scheme="mxfp4"),
)  # fmt: skip
"""What verdicts are about; weights have one scale per row where nothing else is said."""

KINDS = ("qkv", "o", "gate/up", "down", "experts gate/up", "experts down", "lm_head")


@dataclass(frozen=True, kw_only=True)
class LayerOutliers:
    """Outliers at one product: Linears that read the same input. None is "not measured".

    Attributes:
        layer: the first Linear's name. kind: one of `KINDS`. block: which.
        tokens: inputs that were seen.
        channel_ratio: largest channel over the median one, each by its largest |x|.
        token_channel_ratio: largest |x| of a token over the median |x| of all, for the median token: outliers that all
            tokens have raise it, those of a few do not.
        peak: largest |x|. peak_ratio: over the median |x|.
        peak_token, peak_position: id and place in its window of the token that holds the peak.
        kurtosis: of the values of a token, median over tokens; 3 is a normal distribution's.
        row_range: largest |w| of a row over its median |w|, for the median row.
        row_range_max: the same for the worst row.
        noise: way -> squared output error over squared output, of the median token.
    """

    layer: str
    kind: str
    block: int | None
    tokens: int | None = None
    channel_ratio: float | None = None
    token_channel_ratio: float | None = None
    peak: float | None = None
    peak_ratio: float | None = None
    peak_token: int | None = None
    peak_position: int | None = None
    kurtosis: float | None = None
    row_range: float | None = None
    row_range_max: float | None = None
    noise: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "noise": dict(self.noise)}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to expect of one way.

    Attributes:
        way, title: which.
        answer: `keeps` the model, `loses` something, or `breaks` it.
        cause: what makes the worst layer bad: outlier `channels`, massive `tokens`, `weights`, or the `format` itself.
        layer: the worst one. layers: how many are as bad as the answer says.
        error: squared output error over squared output there; None without measured products.
        why: one sentence with the numbers.
        evidence: published rows behind it, a line each.
    """

    way: str
    title: str
    answer: Answer
    cause: Cause
    layer: str
    layers: int
    error: float | None
    why: str
    evidence: tuple[str, ...]


def verdicts(layers: Sequence[LayerOutliers]) -> tuple[Verdict, ...]:
    """A verdict for every way, from the layers that were measured.

    Layers without `noise` (the record of a quantisation) are judged by their ratios alone, for the integer ways.
    The head is not quantised by any method here and has no say.
    """
    counted = [one for one in layers if one.kind != "lm_head"]
    return tuple(found for way in WAYS if (found := _verdict(way, counted)) is not None)


def _verdict(way: Way, layers: Sequence[LayerOutliers]) -> Verdict | None:
    judged: list[tuple[Answer, float, LayerOutliers]] = []
    for one in layers:
        found = _severity(way, one)
        if found is not None:
            judged.append((found, one.noise.get(way.name, 0.0), one))
    if not judged:
        return None
    worst = max(_RANK[answer] for answer, _, _ in judged)
    same = [(noise, one) for answer, noise, one in judged if _RANK[answer] == worst]
    _, layer = max(same, key=lambda pair: (pair[0], pair[1].channel_ratio or 0.0, pair[1].row_range or 0.0))
    answer: Answer = _ANSWERS[worst]
    cause = _cause(way, layer) if answer != "keeps" else "format"
    measured = layer.noise.get(way.name)
    return Verdict(
        way=way.name, title=way.title, answer=answer, cause=cause, layer=layer.layer,
        layers=0 if answer == "keeps" else len(same), error=measured, why=_why(way, answer, cause, layer, measured),
        evidence=_evidence(way, answer, cause),
    )  # fmt: skip


_ANSWERS: tuple[Answer, ...] = ("keeps", "loses", "breaks")
_RANK = {answer: rank for rank, answer in enumerate(_ANSWERS)}


def _severity(way: Way, one: LayerOutliers) -> Answer | None:
    noise = one.noise.get(way.name)
    if noise is not None:
        return "keeps" if noise <= KEEPS else "loses" if noise < BREAKS else "breaks"
    if not way.is_integer or way.smoothed:
        return None
    if (one.channel_ratio or 0) >= CHANNELS or (one.row_range or 0) >= WEIGHTS:
        return "breaks"
    if way.name == "w8a8-per-tensor" and (one.peak_ratio or 0) >= TOKENS:
        return "breaks"
    return None if one.channel_ratio is None and one.row_range is None else "keeps"


def _cause(way: Way, one: LayerOutliers) -> Cause:
    if (one.row_range or 0) >= WEIGHTS / 2:
        return "weights"
    by_token = one.noise.get("w8a8-per-token")
    alone = by_token is not None and by_token <= KEEPS if one.noise else (one.channel_ratio or 0) < CHANNELS
    if way.name == "w8a8-per-tensor" and alone:
        return "tokens"
    return "channels" if (one.channel_ratio or 0) >= CHANNELS / 2 else "format"


def _why(way: Way, answer: Answer, cause: Cause, one: LayerOutliers, error: float | None) -> str:
    if answer == "keeps":
        rest = "" if error is None else f": the worst product errs by {error:.2g} of its power ({one.layer})"
        return f"no layer stands out{rest}"
    ratio, reach = max(one.channel_ratio or 1, 1), max(one.row_range or 1, 1)
    says = {
        "channels": f"the largest input channel of {one.layer} is {ratio:.0f} times the median one"
                    + (f", which leaves that {254 / ratio:.1f} of INT8's 254 steps" if way.is_integer else
                       ", and shares scales with its neighbours"),
        "weights": f"rows of {one.layer} reach {reach:.0f} times their median weight"
                   + (f", which leaves that {127 / reach:.1f} of INT8's 127 steps" if way.is_integer else
                      ", and shares scales with its neighbours"),
        "tokens": f"one value at {one.layer} is {one.peak_ratio or 0:.0f} times the typical one{_where(one)}, and sets "
                  "the scale of all tokens",
        "format": f"its steps are coarse for {one.layer}",
    }[cause]  # fmt: skip
    return says if error is None else f"{says}; the product errs by {error:.2g} of its power"


def _where(one: LayerOutliers) -> str:
    return "" if one.peak_token is None else f" (token {one.peak_token} at place {one.peak_position})"


def _evidence(way: Way, answer: Answer, cause: Cause) -> tuple[str, ...]:
    """Published rows: on the cause where there is one, and on what the way loses otherwise."""
    wanted = {
        "channels": (("OPT (6.7B-175B)", "outlier_to_typical_ratio"),
                     ("OPT (6.7B-175B)", "effective_quantisation_levels"),
                     ("OPT-13B", "acc_fp16 / per-token / per-channel")),
        "weights": (("Llama-3-70B / 3.1-70B", "cause_of_W8A8_failure"),),
        "tokens": (("LLMs of the paper", "largest_to_others_ratio"), ("Llama-2-7B", "tokens")),
        "format": (),
    }[cause]  # fmt: skip
    rows = [row.citation for key in wanted for row in outlier_rows() if (row.model, row.statistic) == key]
    return (*rows, *_published(way, cause))


@lru_cache(maxsize=32)
def _published(way: Way, cause: Cause) -> tuple[str, ...]:
    """What the way has cost published models: those that it destroyed where the cause is theirs, else the others."""
    methods = ("smoothquant",) if way.smoothed else ("rtn", "fp8")
    rows = [r for r in find(scheme=way.scheme) if r.method in methods]
    if way.is_integer and not way.smoothed and cause == "weights":
        rows = [r for r in find("llama-3-70b", scheme="w8a8-channel-token") if r.method == "rtn"]
    elif way.is_integer and not way.smoothed:
        rows = [r for r in rows if r.collapsed == (cause == "channels") and r.model != "llama-3-70b"]
    losses = [
        ("of an average score lost", [r for r in rows if r.metric.kind == "accuracy" and r.percent_lost is not None]),
        ("more perplexity", [r for r in rows if r.ln_ratio is not None]),
    ]
    return tuple(_summary(what, found) for what, found in losses if found)


def _summary(what: str, rows: Sequence[Row]) -> str:
    score = "score" in what
    lost = {r: (r.percent_lost or 0.0) if score else 100 * math.expm1(r.ln_ratio or 0.0) for r in rows}
    most = max(rows, key=lambda r: lost[r])
    models = len({r.model for r in rows})
    example = f"{most.model}, {most.value:g} against {most.baseline:g}, {most.citation}"
    if len(rows) == 1:
        return f"{lost[most]:.1f} % {what}: {example}"
    size = f"{min(lost.values()):.1f} to {lost[most]:.1f} % {what} in {len(rows)} rows on {models} models"
    return f"{size}, half of them up to {statistics.median(lost.values()):.1f} %; most: {example}"
