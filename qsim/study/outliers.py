"""The outliers of the measured model, and what methods lose where the embedded model is given those of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qsim.methods.outliers import measure_outliers
from qsim.models import evaluate, list_profiles, with_profile
from qsim.models.evaluation import Reference

from . import quality
from .method import NONE, Method
from .rows import KindRow, ProfileRow, VerdictRow
from .spec import StudySpec

LOOKED_AT = 8
"""Windows of the calibration text that the outliers are looked for in."""
CALIBRATION_TOKENS, GRID = 2048, 5
"""What methods are shown of a model with a profile, and candidates of AWQ's search: outliers are no fine matter."""


def outlier_tables(subject: quality.Subject) -> tuple[tuple[KindRow, ...], tuple[VerdictRow, ...]]:
    """The measured model's outliers by kind of layer, and the verdicts on each way to multiply."""
    report = measure_outliers(subject.model, subject.calibration, windows=LOOKED_AT)
    kinds = tuple(KindRow(**row) for row in report.kinds())
    return kinds, tuple(
        VerdictRow(way=v.way, title=v.title, answer=v.answer, cause=v.cause, layer=v.layer, layers=v.layers,
                   error=v.error, why=v.why, evidence=v.evidence)
        for v in report.verdicts
    )  # fmt: skip


def profiles_of(spec: StudySpec) -> tuple[str, ...]:
    """The profiles that a study measures: those of the embedded model, which has no outliers of its own."""
    return list_profiles() if spec.quality.model == "tiny" and spec.quality.outlier_bytes else ()


def profile_methods(spec: StudySpec) -> tuple[Method, ...]:
    """The methods that are measured on a profile: those whose weights have at least four bits, in their own cache."""
    from qsim.scheme import get_scheme

    found = [(m, get_scheme(m.scheme)) for m in spec.methods if m.algorithm != NONE]
    return tuple(m for m, s in found if s.weight.bits >= 4 and not s.kv_cache.is_quantized)


def profile_rows(
    spec: StudySpec, subject: quality.Subject, profile: str, say: Callable[[str], None] = lambda step: None
) -> tuple[ProfileRow, ...]:
    """What each method loses on the embedded model with the outliers of another, against its own 16 bit.

    Arguments:
        say: called with the title of each method before it is measured.
    """
    q = spec.quality
    few = replace(q, calibration_tokens=min(q.calibration_tokens, CALIBRATION_TOKENS),
                  search_grid=min(q.search_grid, GRID))  # fmt: skip
    small = replace(spec, quality=few)
    given = replace(subject, model=with_profile(subject.model, profile, seed=q.seed))
    reference = Reference(quality.in_sixteen_bit(given.model))
    rows = []
    for method in profile_methods(spec):
        say(method.title)
        model, notes = quality.quantised(given, method, small)
        found: Any = evaluate(quality.in_sixteen_bit(model), subject.text, window=quality.window_of(spec, model),
                              reference=reference, max_bytes=q.outlier_bytes)  # fmt: skip
        rows.append(ProfileRow(
            profile=profile, method=method.name, loss=found.bits_per_byte_delta,
            loss_se=found.bits_per_byte_delta_se or 0.0, base_bits_per_byte=found.bits_per_byte
            - found.bits_per_byte_delta, bytes_scored=found.bytes or 0, notes="; ".join(notes),
        ))  # fmt: skip
    return tuple(rows)
