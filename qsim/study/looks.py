"""What the figures of a study share: how methods look, and the rows that several figures pick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qsim.plots.marks import Mark
from qsim.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

from .method import Method, default_algorithm
from .result import StudyResult
from .rows import DecisionRow, ExpectedRow, QualityRow, SpeedRow


def marks(methods: Sequence[Method], names: Mapping[str, str] | None = None) -> dict[str, Mark]:
    """Method name -> its look: the colour is the format, the marker the algorithm or the granularity.

    Arguments:
        names: what a study called the methods when it ran; without it, what they are called today.
    """
    from qsim.formats import BlockFormat, IntFormat
    from qsim.methods import METHODS
    from qsim.scheme import get_scheme

    out: dict[str, Mark] = {}
    variants: dict[str, int] = {}
    for m in methods:
        scheme = get_scheme(m.scheme)
        weight = scheme.weight
        if not weight.is_quantized:
            color = BLACK
        elif isinstance(weight.format, BlockFormat):
            color = PURPLE
        elif isinstance(weight.format, IntFormat):
            color = BLUE if scheme.activation.is_quantized else {4: VERMILLION, 3: ORANGE}.get(weight.bits, SKY)
        else:
            color = GREEN
        declared = METHODS.get(m.algorithm)
        marker = "*" if declared is None else declared.marker
        usual = m.algorithm == default_algorithm(m.scheme)
        if color in (GREEN, PURPLE) and usual:  # one algorithm: the marker tells the scheme
            shapes = "v><Pd" if color == GREEN else "oXph"
            marker = shapes[variants.get(color, 0) % len(shapes)]
            variants[color] = variants.get(color, 0) + 1
        plain = declared is None or declared.filled or color == PURPLE
        cached = scheme.kv_cache.is_quantized and color != GREEN  # FP8 with an FP8 cache has a marker of its own
        out[m.name] = Mark(label=(names or {}).get(m.name, m.title), color=color, marker=marker,
                           filled=plain and not cached)  # fmt: skip
    return out


def quality_of(result: StudyResult) -> dict[tuple[str, str], QualityRow]:
    return {(q.method, q.variant): q for q in result.quality}


def expected_of(result: StudyResult) -> dict[tuple[str, str, str], ExpectedRow]:
    return {(e.model, e.method, e.variant): e for e in result.expected}


def titles(result: StudyResult) -> dict[str, str]:
    """What the study called its methods when it ran; today's titles where it has no table of them."""
    return {m.name: m.title for m in result.spec.methods} | {m.method: m.title for m in result.methods}


def first_model(result: StudyResult) -> str:
    """The first target; empty where a study has neither times nor losses of one."""
    return next(iter([*(r.model for r in result.speed[:1]), *(e.model for e in result.expected[:1])]), "")


def case_rows(result: StudyResult, case: str, model: str) -> list[SpeedRow]:
    """Rows of a case on one device, or on the fewest that hold 16 bit."""
    mine = [r for r in result.speed if r.case == case and r.model == model]
    least = {d: min((r.devices for r in mine if r.device == d), default=1) for d in {r.device for r in mine}}
    return [r for r in mine if r.devices == least[r.device]]


def decided(result: StudyResult, model: str) -> dict[str, dict[str, DecisionRow]]:
    """case -> device -> answer, for one model."""
    out: dict[str, dict[str, DecisionRow]] = {}
    for d in result.decisions:
        if d.model == model:
            out.setdefault(d.case, {})[d.device] = d
    return out


def column(rows: Sequence[Any], name: str) -> np.ndarray:
    return np.array([getattr(r, name) for r in rows], np.float64)


def curve_schemes(result: StudyResult) -> list[str]:
    """The schemes of the curves against batch: the first of each kind (integer weights, integer activations, FP8, FP8
    with an FP8 cache, blocks), in the order of the study's methods."""
    from qsim.formats import BlockFormat, IntFormat
    from qsim.scheme import get_scheme

    found: dict[str, str] = {}
    for m in result.spec.methods:
        scheme = get_scheme(m.scheme)
        weight = scheme.weight
        if not weight.is_quantized:
            continue
        if isinstance(weight.format, BlockFormat):
            family = "block"
        elif isinstance(weight.format, IntFormat):
            family = "integers" if scheme.activation.is_quantized else "weights only"
        else:
            family = "fp8 cache" if scheme.kv_cache.is_quantized else "fp8"
        found.setdefault(family, m.scheme)
    return list(found.values())
